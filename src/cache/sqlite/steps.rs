//! Steps that several changes have in common.

use bytes::Bytes;

use super::file::{Change, millis};
use crate::cache::{AfterUpload, CacheError, Digest, Lease, QueueRef};

pub(super) async fn push(change: &mut Change<'_>, queue: &QueueRef, entry: &[u8]) -> Result<(), CacheError> {
    let query = sqlx::query("INSERT INTO waiting (database, queue, entry) VALUES (?, ?, ?)")
        .bind(queue.database)
        .bind(&queue.queue)
        .bind(entry);
    ask!(change.file, query, execute, &mut *change.tx);
    Ok(())
}

pub(super) async fn insert_batch(
    change: &mut Change<'_>,
    batch: &Lease,
    holder: Option<&Lease>,
) -> Result<i64, CacheError> {
    let query = sqlx::query_scalar(
        "INSERT INTO batches (database, queue, batch, owner, lease_ends) VALUES (?, ?, ?, ?, ?) RETURNING id",
    )
    .bind(batch.queue.database)
    .bind(&batch.queue.queue)
    .bind(&batch.batch)
    .bind(holder.map(|lease| &lease.owner))
    .bind(holder.map_or(0, |lease| change.now.saturating_add(millis(lease.ttl))));
    Ok(ask!(change.file, query, fetch_one, &mut *change.tx))
}

pub(super) async fn append_entries(change: &mut Change<'_>, batch: i64, entries: &[Bytes]) -> Result<(), CacheError> {
    let query = sqlx::query_scalar("SELECT count(*) FROM claimed WHERE batch_id = ?").bind(batch);
    let start: i64 = ask!(change.file, query, fetch_one, &mut *change.tx);
    for (position, entry) in (start..).zip(entries) {
        let query = sqlx::query("INSERT INTO claimed (batch_id, position, entry) VALUES (?, ?, ?)")
            .bind(batch)
            .bind(position)
            .bind(&entry[..]);
        ask!(change.file, query, execute, &mut *change.tx);
    }
    Ok(())
}

/// Deletes a record that still holds what was sent, or remembers that it was sent.
pub(super) async fn settle(
    change: &mut Change<'_>,
    lease: &Lease,
    key: &str,
    digest: Digest,
    after: AfterUpload,
    expires_at: i64,
) -> Result<(), CacheError> {
    let queue = &lease.queue;
    match after {
        AfterUpload::Delete => {
            let query =
                sqlx::query("DELETE FROM records WHERE database = ? AND key = ?").bind(queue.database).bind(key);
            ask!(change.file, query, execute, &mut *change.tx);
        }
        AfterUpload::Keep => {
            let query = sqlx::query(
                "INSERT OR REPLACE INTO sent (database, queue, key, digest, expires_at) VALUES (?, ?, ?, ?, ?)",
            )
            .bind(queue.database)
            .bind(&queue.queue)
            .bind(key)
            .bind(&digest.0[..])
            .bind(expires_at);
            ask!(change.file, query, execute, &mut *change.tx);
        }
    }
    Ok(())
}
