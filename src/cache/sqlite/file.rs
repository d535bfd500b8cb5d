//! The file, its transactions, and what can go wrong with it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Sqlite, Transaction};

use crate::cache::{CacheError, Lease};
use crate::clock::Clock;

/// Runs a query and turns its error into ours.
macro_rules! ask {
    ($file:expr, $query:expr, $how:ident, $on:expr) => {
        $query.$how($on).await.map_err(|error| $file.error(&error))?
    };
}

/// How long a change waits for another process's change to end.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct File {
    pool: SqlitePool,
    pub(super) name: String,
    clock: Arc<dyn Clock>,
}

/// A change to the file: all of it or nothing.
pub(super) struct Change<'a> {
    pub(super) tx: Transaction<'static, Sqlite>,
    pub(super) file: &'a File,
    /// Milliseconds since 1970.
    pub(super) now: i64,
}

impl File {
    pub(super) async fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Self, CacheError> {
        let name = path.display().to_string();
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(PATIENCE);
        let pool = SqlitePoolOptions::new()
            .max_connections(4)
            .acquire_timeout(PATIENCE)
            .connect_with(options)
            .await
            .map_err(|error| translate(&name, &error))?;
        let file = Self { pool, name, clock };
        let mut change = file.change().await?;
        sqlx::raw_sql(include_str!("schema.sql")).execute(&mut *change.tx).await.map_err(|e| file.error(&e))?;
        change.commit().await?;
        Ok(file)
    }

    pub(super) fn pool(&self) -> &SqlitePool {
        &self.pool
    }

    pub(super) fn now(&self) -> i64 {
        self.clock.now().timestamp_millis()
    }

    /// Begins a change; it has the file's only pen from now on.
    pub(super) async fn change(&self) -> Result<Change<'_>, CacheError> {
        let tx = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(|error| self.error(&error))?;
        Ok(Change { tx, file: self, now: self.now() })
    }

    /// Something is gone that was written under this lease.
    pub(super) fn vanished(&self, lease: &Lease) -> CacheError {
        CacheError::Refused {
            server: self.name.clone(),
            reason: format!("parts of batch {} were written and are gone", lease.batch),
            cure: "Nobody else may change the file".to_owned(),
        }
    }

    pub(super) fn error(&self, error: &sqlx::Error) -> CacheError {
        translate(&self.name, error)
    }
}

impl Change<'_> {
    /// Checks that the lease is still held and renews it; returns the number of its batch.
    pub(super) async fn hold(&mut self, lease: &Lease) -> Result<i64, CacheError> {
        let held = sqlx::query_scalar(
            "UPDATE batches SET lease_ends = ? WHERE database = ? AND queue = ? AND batch = ? AND owner = ? \
             AND lease_ends > ? AND finished_at IS NULL RETURNING id",
        )
        .bind(self.now.saturating_add(millis(lease.ttl)))
        .bind(lease.queue.database)
        .bind(&lease.queue.queue)
        .bind(&lease.batch)
        .bind(&lease.owner)
        .bind(self.now)
        .fetch_optional(&mut *self.tx)
        .await
        .map_err(|error| self.file.error(&error))?;
        held.ok_or_else(|| CacheError::LeaseLost { batch: lease.batch.clone() })
    }

    pub(super) async fn commit(self) -> Result<(), CacheError> {
        let file = self.file;
        self.tx.commit().await.map_err(|error| file.error(&error))
    }
}

/// Whole milliseconds of a length of time.
pub(super) fn millis(length: Duration) -> i64 {
    i64::try_from(length.as_millis()).unwrap_or(i64::MAX)
}

fn translate(name: &str, error: &sqlx::Error) -> CacheError {
    let (server, reason) = (name.to_owned(), error.to_string());
    let code = match error {
        sqlx::Error::Database(said) => said.code().and_then(|code| code.parse::<u32>().ok()).unwrap_or_default(),
        _ => 0,
    };
    // The low byte of SQLite's result codes: BUSY, LOCKED, READONLY, IOERR, FULL.
    match code & 0xff {
        5 | 6 | 8 | 10 | 13 => CacheError::Full { server, reason },
        _ if matches!(error, sqlx::Error::PoolTimedOut) => CacheError::Full { server, reason },
        _ => CacheError::Refused {
            server,
            reason,
            cure:
                "Check that the state folder (LAMPLIGHTER_DATA) exists, that it may be written, and that the file is a \
                   cache of this program"
                    .to_owned(),
        },
    }
}
