//! The cache in a SQLite file, for where no Redis is configured: demos, first steps, tests. It keeps the same promises.

#[macro_use]
mod file;
mod sealed;
mod steps;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::Row;

use self::file::{File, millis};
use self::steps::{append_entries, insert_batch, push, settle};
use super::{
    AfterUpload, CLAIM_LIMIT, CacheError, Digest, Inflight, Lease, Mark, Produced, QueueRef, Reading, Released, Rival,
    Sent, Stored, UploadCache, Uploaded,
};
use crate::clock::Clock;

/// The cache in a SQLite file.
pub struct SqliteCache {
    file: File,
}

impl SqliteCache {
    /// Opens the file, and makes it if it is not there.
    ///
    /// # Errors
    /// [`CacheError::Refused`] if the path cannot be written or holds something else.
    pub async fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Self, CacheError> {
        Ok(Self { file: File::open(path, clock).await? })
    }

    /// The number of a lease's batch, whoever holds it, unless it is finished.
    async fn batch(&self, lease: &Lease) -> Result<Option<i64>, CacheError> {
        let query = "SELECT id FROM batches WHERE database = ? AND queue = ? AND batch = ? AND finished_at IS NULL";
        sqlx::query_scalar(query)
            .bind(lease.queue.database)
            .bind(&lease.queue.queue)
            .bind(&lease.batch)
            .fetch_optional(self.file.pool())
            .await
            .map_err(|error| self.file.error(&error))
    }
}

#[async_trait]
impl UploadCache for SqliteCache {
    async fn ping(&self) -> Result<(), CacheError> {
        ask!(self.file, sqlx::query("SELECT count(*) FROM batches"), execute, self.file.pool());
        Ok(())
    }

    async fn depth(&self, queue: &QueueRef) -> Result<u64, CacheError> {
        let query = sqlx::query_scalar("SELECT count(*) FROM waiting WHERE database = ? AND queue = ?")
            .bind(queue.database)
            .bind(&queue.queue);
        let depth: i64 = ask!(self.file, query, fetch_one, self.file.pool());
        Ok(depth.unsigned_abs())
    }

    async fn peek(&self, queue: &QueueRef, skip: u64, count: u32) -> Result<Vec<Bytes>, CacheError> {
        let query = sqlx::query_scalar(
            "SELECT entry FROM waiting WHERE database = ? AND queue = ? ORDER BY number LIMIT ? OFFSET ?",
        )
        .bind(queue.database)
        .bind(&queue.queue)
        .bind(count)
        .bind(i64::try_from(skip).unwrap_or(i64::MAX));
        Ok(entries(ask!(self.file, query, fetch_all, self.file.pool())))
    }

    async fn inflight(&self, queue: &QueueRef) -> Result<Vec<Inflight>, CacheError> {
        let query = sqlx::query(
            "SELECT batch, (SELECT count(*) FROM claimed WHERE batch_id = id), owner IS NOT NULL AND lease_ends > ? \
             FROM batches WHERE database = ? AND queue = ? AND finished_at IS NULL ORDER BY batch",
        )
        .bind(self.file.now())
        .bind(queue.database)
        .bind(&queue.queue);
        let rows = ask!(self.file, query, fetch_all, self.file.pool());
        let read = |row: &sqlx::sqlite::SqliteRow| -> Result<Inflight, sqlx::Error> {
            let entries: i64 = row.try_get(1)?;
            Ok(Inflight { batch: row.try_get(0)?, entries: entries.unsigned_abs(), leased: row.try_get(2)? })
        };
        rows.iter().map(|row| read(row).map_err(|error| self.file.error(&error))).collect()
    }

    async fn claim(&self, lease: &Lease, count: u32) -> Result<Vec<Bytes>, CacheError> {
        let mut change = self.file.change().await?;
        let query = sqlx::query("DELETE FROM records WHERE expires_at <= ?").bind(change.now);
        ask!(self.file, query, execute, &mut *change.tx);
        let known: bool = ask!(
            self.file,
            sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM batches WHERE database = ? AND queue = ? AND batch = ?)")
                .bind(lease.queue.database)
                .bind(&lease.queue.queue)
                .bind(&lease.batch),
            fetch_one,
            &mut *change.tx
        );
        let held = if known { Some(change.hold(lease).await?) } else { None };
        let query = sqlx::query_as(
            "DELETE FROM waiting WHERE number IN \
             (SELECT number FROM waiting WHERE database = ? AND queue = ? ORDER BY number LIMIT ?) RETURNING number, entry",
        )
        .bind(lease.queue.database)
        .bind(&lease.queue.queue)
        .bind(count.min(CLAIM_LIMIT));
        let mut moved: Vec<(i64, Vec<u8>)> = ask!(self.file, query, fetch_all, &mut *change.tx);
        if moved.is_empty() {
            change.commit().await?;
            return Ok(Vec::new());
        }
        moved.sort_unstable_by_key(|(number, _)| *number);
        let batch = match held {
            Some(batch) => batch,
            None => insert_batch(&mut change, lease, Some(lease)).await?,
        };
        let moved = entries(moved.into_iter().map(|(_, entry)| entry).collect());
        append_entries(&mut change, batch, &moved).await?;
        change.commit().await?;
        Ok(moved)
    }

    async fn adopt(&self, lease: &Lease) -> Result<bool, CacheError> {
        let mut change = self.file.change().await?;
        let query = sqlx::query(
            "UPDATE batches SET owner = ?, lease_ends = ? WHERE database = ? AND queue = ? AND batch = ? \
             AND finished_at IS NULL AND (owner IS NULL OR lease_ends <= ?)",
        )
        .bind(&lease.owner)
        .bind(change.now.saturating_add(millis(lease.ttl)))
        .bind(lease.queue.database)
        .bind(&lease.queue.queue)
        .bind(&lease.batch)
        .bind(change.now);
        let adopted = ask!(self.file, query, execute, &mut *change.tx).rows_affected() == 1;
        change.commit().await?;
        Ok(adopted)
    }

    async fn renew(&self, lease: &Lease) -> Result<(), CacheError> {
        let mut change = self.file.change().await?;
        change.hold(lease).await?;
        change.commit().await
    }

    async fn release_lease(&self, lease: &Lease) -> Result<(), CacheError> {
        let mut change = self.file.change().await?;
        let query = sqlx::query_as(
            "SELECT id, finished_at IS NOT NULL OR (owner IS NOT NULL AND owner <> ? AND lease_ends > ?) FROM batches \
             WHERE database = ? AND queue = ? AND batch = ?",
        )
        .bind(&lease.owner)
        .bind(change.now)
        .bind(lease.queue.database)
        .bind(&lease.queue.queue)
        .bind(&lease.batch);
        let found: Option<(i64, bool)> = ask!(self.file, query, fetch_optional, &mut *change.tx);
        match found {
            Some((_, true)) => Err(CacheError::LeaseLost { batch: lease.batch.clone() }),
            Some((id, false)) => {
                let query = sqlx::query("UPDATE batches SET owner = NULL, lease_ends = 0 WHERE id = ?").bind(id);
                ask!(self.file, query, execute, &mut *change.tx);
                change.commit().await
            }
            None => Ok(()),
        }
    }

    async fn entries(&self, lease: &Lease, start: u64, count: u32) -> Result<Vec<Bytes>, CacheError> {
        let start = i64::try_from(start).unwrap_or(i64::MAX);
        let query = sqlx::query_scalar(
            "SELECT entry FROM claimed WHERE batch_id = ? AND position >= ? AND position < ? ORDER BY position",
        )
        .bind(self.batch(lease).await?)
        .bind(start)
        .bind(start.saturating_add(count.into()));
        Ok(entries(ask!(self.file, query, fetch_all, self.file.pool())))
    }

    async fn read(
        &self,
        database: u16,
        keys: &[&str],
        max_value: u64,
        max_total: u64,
    ) -> Result<Vec<Stored>, CacheError> {
        let (mut stored, mut total, now) = (Vec::with_capacity(keys.len()), 0_u64, self.file.now());
        let max_value = i64::try_from(max_value).unwrap_or(i64::MAX);
        for key in keys {
            let query = sqlx::query_as(
                "SELECT length(value), iif(length(value) > ?, NULL, value) FROM records \
                 WHERE database = ? AND key = ? AND expires_at > ?",
            )
            .bind(max_value)
            .bind(database)
            .bind(*key)
            .bind(now);
            let found: Option<(i64, Option<Vec<u8>>)> = ask!(self.file, query, fetch_optional, self.file.pool());
            let value = match found {
                None => Stored::Missing,
                Some((length, None)) => Stored::TooLarge(length.unsigned_abs()),
                Some((_, Some(value))) => {
                    total = total.saturating_add(value.len() as u64);
                    Stored::Value(value.into())
                }
            };
            if total > max_total && !stored.is_empty() {
                break;
            }
            stored.push(value);
        }
        Ok(stored)
    }

    async fn begin_reading(&self, lease: &Lease, note: &str) -> Result<u32, CacheError> {
        let mut change = self.file.change().await?;
        let batch = change.hold(lease).await?;
        let query = sqlx::query_scalar(
            "INSERT INTO readings (batch_id, number, note, began) SELECT ?1, coalesce(max(number), 0) + 1, ?2, \
             coalesce((SELECT number FROM sequences WHERE database = ?3 AND queue = ?4), 0) \
             FROM readings WHERE batch_id = ?1 RETURNING number",
        )
        .bind(batch)
        .bind(note)
        .bind(lease.queue.database)
        .bind(&lease.queue.queue);
        let number = ask!(self.file, query, fetch_one, &mut *change.tx);
        change.commit().await?;
        Ok(number)
    }

    async fn seal(&self, lease: &Lease, reading: u32) -> Result<Vec<Rival>, CacheError> {
        sealed::seal(&self.file, lease, reading).await
    }

    async fn rival_marks(
        &self,
        queue: &QueueRef,
        rival: &Rival,
        start: u64,
        count: u32,
    ) -> Result<Vec<Mark>, CacheError> {
        sealed::rival_marks(&self.file, queue, rival, start, count).await
    }

    async fn readings(&self, lease: &Lease) -> Result<Vec<Reading>, CacheError> {
        let query = sqlx::query_as("SELECT number, note FROM readings WHERE batch_id = ? ORDER BY number")
            .bind(self.batch(lease).await?);
        let rows: Vec<(u32, String)> = ask!(self.file, query, fetch_all, self.file.pool());
        Ok(rows.into_iter().map(|(number, note)| Reading { number, note }).collect())
    }

    async fn append_marks(&self, lease: &Lease, reading: u32, start: u64, marks: &[Mark]) -> Result<(), CacheError> {
        let mut change = self.file.change().await?;
        let batch = change.hold(lease).await?;
        let start = i64::try_from(start).unwrap_or(i64::MAX);
        let query = sqlx::query_scalar("SELECT count(*) FROM marks WHERE batch_id = ? AND reading = ?")
            .bind(batch)
            .bind(reading);
        let there: i64 = ask!(self.file, query, fetch_one, &mut *change.tx);
        if there < start {
            return Err(self.file.vanished(lease));
        }
        for (position, mark) in (start..).zip(marks) {
            let mut stored = Vec::with_capacity(Mark::SIZE);
            mark.write(&mut stored);
            let query =
                sqlx::query("INSERT OR REPLACE INTO marks (batch_id, reading, position, mark) VALUES (?, ?, ?, ?)")
                    .bind(batch)
                    .bind(reading)
                    .bind(position)
                    .bind(stored);
            ask!(self.file, query, execute, &mut *change.tx);
        }
        change.commit().await
    }

    async fn marks(&self, lease: &Lease, reading: u32, start: u64, count: u32) -> Result<Vec<Mark>, CacheError> {
        let start = i64::try_from(start).unwrap_or(i64::MAX);
        let query = sqlx::query_scalar(
            "SELECT mark FROM marks WHERE batch_id = ? AND reading = ? AND position >= ? AND position < ? \
             ORDER BY position",
        )
        .bind(self.batch(lease).await?)
        .bind(reading)
        .bind(start)
        .bind(start.saturating_add(count.into()));
        let stored: Vec<Vec<u8>> = ask!(self.file, query, fetch_all, self.file.pool());
        Ok(stored.iter().flat_map(|mark| Mark::read_all(mark)).collect())
    }

    async fn bury(&self, lease: &Lease, positions: &[u32]) -> Result<(), CacheError> {
        let mut change = self.file.change().await?;
        let batch = change.hold(lease).await?;
        for position in positions {
            let query = sqlx::query("INSERT OR IGNORE INTO buried (batch_id, position) VALUES (?, ?)")
                .bind(batch)
                .bind(position);
            ask!(self.file, query, execute, &mut *change.tx);
        }
        change.commit().await
    }

    async fn buried(&self, lease: &Lease) -> Result<Vec<u32>, CacheError> {
        let query = sqlx::query_scalar("SELECT position FROM buried WHERE batch_id = ? ORDER BY position")
            .bind(self.batch(lease).await?);
        Ok(ask!(self.file, query, fetch_all, self.file.pool()))
    }

    async fn release(&self, lease: &Lease, records: &[Sent<'_>], after: AfterUpload) -> Result<Released, CacheError> {
        let mut change = self.file.change().await?;
        change.hold(lease).await?;
        let mut released = Released::default();
        for Sent { key, value: sent, .. } in records {
            let query = sqlx::query_as(
                "SELECT value, expires_at FROM records WHERE database = ? AND key = ? AND expires_at > ?",
            )
            .bind(lease.queue.database)
            .bind(&**key)
            .bind(change.now);
            let found: Option<(Vec<u8>, i64)> = ask!(self.file, query, fetch_optional, &mut *change.tx);
            match found {
                None => released.gone += 1,
                Some((value, _)) if Digest::of(&value) != *sent => released.rewritten += 1,
                Some((_, expires_at)) => {
                    settle(&mut change, lease, key, *sent, after, expires_at).await?;
                    released.done += 1;
                }
            }
        }
        change.commit().await?;
        Ok(released)
    }

    async fn uploaded(&self, queue: &QueueRef, keys: &[&str]) -> Result<Vec<Uploaded>, CacheError> {
        sealed::uploaded(&self.file, queue, keys).await
    }

    async fn sent(&self, queue: &QueueRef, keys: &[&str]) -> Result<Vec<Option<Digest>>, CacheError> {
        let mut digests = Vec::with_capacity(keys.len());
        for key in keys {
            let query = sqlx::query_scalar(
                "SELECT digest FROM sent WHERE database = ? AND queue = ? AND key = ? AND expires_at > ?",
            )
            .bind(queue.database)
            .bind(&queue.queue)
            .bind(*key)
            .bind(self.file.now());
            let digest: Option<Vec<u8>> = ask!(self.file, query, fetch_optional, self.file.pool());
            digests.push(digest.and_then(|digest| digest.try_into().ok()).map(Digest));
        }
        Ok(digests)
    }

    async fn finish(&self, lease: &Lease, loaded: &[u32], unsettled: &[Bytes]) -> Result<(), CacheError> {
        sealed::finish(&self.file, lease, loaded, unsettled).await
    }

    async fn requeue(
        &self,
        queue: &QueueRef,
        entry: &[u8],
        key: &str,
        value: Option<&[u8]>,
        ttl: Duration,
    ) -> Result<(), CacheError> {
        let mut change = self.file.change().await?;
        if let Some(value) = value {
            let query = sqlx::query("DELETE FROM records WHERE database = ? AND key = ? AND expires_at <= ?")
                .bind(queue.database)
                .bind(key)
                .bind(change.now);
            ask!(self.file, query, execute, &mut *change.tx);
            let query =
                sqlx::query("INSERT OR IGNORE INTO records (database, key, value, expires_at) VALUES (?, ?, ?, ?)")
                    .bind(queue.database)
                    .bind(key)
                    .bind(value)
                    .bind(change.now.saturating_add(millis(ttl)));
            ask!(self.file, query, execute, &mut *change.tx);
        }
        push(&mut change, queue, entry).await?;
        change.commit().await
    }

    async fn produce(&self, queue: &QueueRef, records: &[Produced], ttl: Duration) -> Result<(), CacheError> {
        let mut change = self.file.change().await?;
        for record in records {
            if let Some(value) = &record.value {
                let query = sqlx::query(
                    "INSERT OR REPLACE INTO records (database, key, value, expires_at) VALUES (?, ?, ?, ?)",
                )
                .bind(queue.database)
                .bind(&record.key)
                .bind(&value[..])
                .bind(change.now.saturating_add(millis(ttl)));
                ask!(self.file, query, execute, &mut *change.tx);
            }
            push(&mut change, queue, &record.entry).await?;
        }
        change.commit().await
    }
}

fn entries(stored: Vec<Vec<u8>>) -> Vec<Bytes> {
    stored.into_iter().map(Bytes::from).collect()
}
