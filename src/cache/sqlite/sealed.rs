//! Sealed readings, from their sealing until two days after their batch was finished.

use bytes::Bytes;

use super::file::{Change, File, millis};
use super::steps::{append_entries, insert_batch};
use crate::cache::{CacheError, Digest, Lease, Mark, QueueRef, Rival, UPLOADED_FOR, Uploaded, successor_of};

/// See [`crate::cache::UploadCache::seal`].
pub(super) async fn seal(file: &File, lease: &Lease, reading: u32) -> Result<Vec<Rival>, CacheError> {
    let mut change = file.change().await?;
    let batch = change.hold(lease).await?;
    let query = sqlx::query_as("SELECT began, sealed FROM readings WHERE batch_id = ? AND number = ?")
        .bind(batch)
        .bind(reading);
    let noted: Option<(i64, Option<i64>)> = ask!(file, query, fetch_optional, &mut *change.tx);
    let Some((began, sealed)) = noted else { return Err(file.vanished(lease)) };
    let sealed = match sealed {
        Some(sealed) => sealed,
        None => {
            let number = next_number(&mut change, &lease.queue).await?;
            let query = sqlx::query("UPDATE readings SET sealed = ? WHERE batch_id = ? AND number = ?")
                .bind(number)
                .bind(batch)
                .bind(reading);
            ask!(file, query, execute, &mut *change.tx);
            number
        }
    };
    let query = sqlx::query_as(
        "SELECT batch, number FROM readings JOIN batches ON id = batch_id WHERE database = ? AND queue = ? AND id <> ? \
         AND sealed < ? AND (finished_at IS NULL OR (finishing > ? AND finished_at > ?)) ORDER BY sealed",
    )
    .bind(lease.queue.database)
    .bind(&lease.queue.queue)
    .bind(batch)
    .bind(sealed)
    .bind(began)
    .bind(change.now - millis(UPLOADED_FOR));
    let rivals: Vec<(String, u32)> = ask!(file, query, fetch_all, &mut *change.tx);
    change.commit().await?;
    Ok(rivals.into_iter().map(|(batch, reading)| Rival { batch, reading }).collect())
}

/// See [`crate::cache::UploadCache::rival_marks`].
pub(super) async fn rival_marks(
    file: &File,
    queue: &QueueRef,
    rival: &Rival,
    start: u64,
    count: u32,
) -> Result<Vec<Mark>, CacheError> {
    let start = i64::try_from(start).unwrap_or(i64::MAX);
    let query = sqlx::query_scalar(
        "SELECT mark FROM marks JOIN batches ON id = batch_id WHERE database = ? AND queue = ? AND batch = ? \
         AND (finished_at IS NULL OR finished_at > ?) AND reading = ? AND position >= ? AND position < ? \
         ORDER BY position",
    )
    .bind(queue.database)
    .bind(&queue.queue)
    .bind(&rival.batch)
    .bind(file.now() - millis(UPLOADED_FOR))
    .bind(rival.reading)
    .bind(start)
    .bind(start.saturating_add(count.into()));
    let stored: Vec<Vec<u8>> = ask!(file, query, fetch_all, file.pool());
    Ok(stored.iter().flat_map(|mark| Mark::read_all(mark)).collect())
}

/// See [`crate::cache::UploadCache::uploaded`].
pub(super) async fn uploaded(file: &File, queue: &QueueRef, keys: &[&str]) -> Result<Vec<Uploaded>, CacheError> {
    let mut found = Vec::with_capacity(keys.len());
    for key in keys {
        // The marks' conditions are written as in their index, which is used for that reason.
        let query = sqlx::query_scalar(
            "SELECT max(finished_at IS NOT NULL) FROM marks \
             JOIN readings ON readings.batch_id = marks.batch_id AND number = reading \
             JOIN batches ON id = marks.batch_id \
             WHERE substr(mark, 1, 1) = x'01' AND substr(mark, 3, 8) = ? AND database = ? AND queue = ? \
             AND sealed IS NOT NULL AND (finished_at IS NULL OR finished_at > ?)",
        )
        .bind(Digest::of(key.as_bytes()).0.to_vec())
        .bind(queue.database)
        .bind(&queue.queue)
        .bind(file.now() - millis(UPLOADED_FOR));
        found.push(match ask!(file, query, fetch_one, file.pool()) {
            None => Uploaded::No,
            Some(false) => Uploaded::Pending,
            Some(true) => Uploaded::Yes,
        });
    }
    Ok(found)
}

/// See [`crate::cache::UploadCache::finish`].
pub(super) async fn finish(file: &File, lease: &Lease, loaded: &[u32], unsettled: &[Bytes]) -> Result<(), CacheError> {
    let mut change = file.change().await?;
    let query = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM batches WHERE database = ? AND queue = ? AND batch = ? AND owner = ? \
         AND finished_at IS NOT NULL)",
    )
    .bind(lease.queue.database)
    .bind(&lease.queue.queue)
    .bind(&lease.batch)
    .bind(&lease.owner);
    if ask!(file, query, fetch_one, &mut *change.tx) {
        return Ok(());
    }
    let batch = change.hold(lease).await?;
    if !unsettled.is_empty() {
        let successor = Lease { batch: successor_of(&lease.batch), ..lease.clone() };
        let successor = insert_batch(&mut change, &successor, None).await?;
        append_entries(&mut change, successor, unsettled).await?;
    }
    for reading in loaded {
        let query = "UPDATE readings SET loaded = TRUE, sealed = coalesce(sealed, 0) WHERE batch_id = ? AND number = ?";
        let query = sqlx::query(query).bind(batch).bind(reading);
        ask!(file, query, execute, &mut *change.tx);
    }
    let finishing = next_number(&mut change, &lease.queue).await?;
    let long_ago = change.now - millis(UPLOADED_FOR);
    for query in [
        sqlx::query("DELETE FROM claimed WHERE batch_id = ?").bind(batch),
        sqlx::query("DELETE FROM readings WHERE batch_id = ? AND NOT loaded").bind(batch),
        sqlx::query(
            "DELETE FROM marks WHERE batch_id = ?1 AND reading NOT IN (SELECT number FROM readings WHERE batch_id = ?1)",
        )
        .bind(batch),
        sqlx::query("DELETE FROM buried WHERE batch_id = ?").bind(batch),
        sqlx::query("UPDATE batches SET finished_at = ?, finishing = ? WHERE id = ?")
            .bind(change.now)
            .bind(finishing)
            .bind(batch),
        sqlx::query("DELETE FROM batches WHERE finished_at <= ?").bind(long_ago),
        sqlx::query("DELETE FROM sent WHERE expires_at <= ?").bind(change.now),
    ] {
        ask!(file, query, execute, &mut *change.tx);
    }
    change.commit().await
}

async fn next_number(change: &mut Change<'_>, queue: &QueueRef) -> Result<i64, CacheError> {
    let query = sqlx::query_scalar(
        "INSERT INTO sequences (database, queue, number) VALUES (?, ?, 1) \
         ON CONFLICT DO UPDATE SET number = number + 1 RETURNING number",
    )
    .bind(queue.database)
    .bind(&queue.queue);
    Ok(ask!(change.file, query, fetch_one, &mut *change.tx))
}
