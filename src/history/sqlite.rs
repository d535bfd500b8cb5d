//! The history in SQLite: opening the file, moving values in and out, migrating, and what its errors mean.

use std::ops::DerefMut;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::error::DatabaseError;
use sqlx::migrate::MigrateError;
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{SqliteArguments, SqliteConnectOptions, SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Sqlite, SqliteConnection, SqlitePool, Transaction};

use super::HistoryError;
use super::sql::{Backend, Column, Session, Value, columns, explain_migration};
use crate::clock::Clock;

/// How long to wait for another process, such as `lamplighter history` beside the daemon, to finish its transaction.
const BUSY: Duration = Duration::from_secs(10);
/// Readers do not wait for the writer, so lists stay quick while much is claimed.
const READERS: u32 = 2;

/// The history in SQLite.
#[derive(Debug)]
pub struct SqliteHistory {
    path: PathBuf,
    clock: Arc<dyn Clock>,
    writer: SqlitePool,
    readers: SqlitePool,
}

impl SqliteHistory {
    /// Prepares to use the database in this file, inside a Tokio runtime; creates its folder if needed. The file itself is
    /// opened, and created, when it is first needed.
    pub fn open(path: impl AsRef<Path>, clock: Arc<dyn Clock>) -> Result<Self, HistoryError> {
        let path = path.as_ref().to_owned();
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(|e| HistoryError::Refused {
                database: name(&path),
                reason: format!("the folder {} cannot be created: {e}", folder.display()),
                cure: "Let LAMPLIGHTER_DATA name a folder that may be written to".to_owned(),
            })?;
        }
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .busy_timeout(BUSY)
            // A dead letter that was acknowledged must survive a power cut; NORMAL would lose the last ones.
            .synchronous(SqliteSynchronous::Full)
            .disable_statement_logging();
        let pool = |connections| SqlitePoolOptions::new().max_connections(connections).acquire_timeout(BUSY * 2);
        let writer = pool(1).connect_lazy_with(options.clone());
        let readers = pool(READERS).connect_lazy_with(options);
        Ok(Self { path, clock, writer, readers })
    }

    /// Lets readers go on while one writes. The file remembers it; the switch needs the file for itself, and SQLite does
    /// not wait for that, so we do.
    async fn write_ahead(&self) -> Result<(), sqlx::Error> {
        const TRIES: u32 = 200;
        let mut connection = self.writer.acquire().await?;
        for _ in 1..TRIES {
            match sqlx::raw_sql("PRAGMA journal_mode = WAL").execute(&mut *connection).await {
                Err(sqlx::Error::Database(e)) if result_code(&*e) == Some(BUSY_CODE) => {
                    tokio::time::sleep(Duration::from_millis(fastrand::u64(10..50))).await;
                }
                done => return done.map(drop),
            }
        }
        sqlx::raw_sql("PRAGMA journal_mode = WAL").execute(&mut *connection).await.map(drop)
    }

    /// Closes the file, after what is under way.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

fn name(path: &Path) -> String {
    format!("SQLite {}", path.display())
}

impl Backend for SqliteHistory {
    type Read = SqliteSession<PoolConnection<Sqlite>>;
    type Write = SqliteSession<Transaction<'static, Sqlite>>;

    const SHARED: bool = false;

    fn name(&self) -> String {
        name(&self.path)
    }

    async fn read(&self) -> Result<Self::Read, sqlx::Error> {
        Ok(SqliteSession { connection: self.readers.acquire().await?, now: self.clock.now() })
    }

    /// IMMEDIATE takes the write lock at once: a transaction that read first could not wait for it any more.
    async fn write(&self) -> Result<Self::Write, sqlx::Error> {
        let connection = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        Ok(SqliteSession { connection, now: self.clock.now() })
    }

    async fn commit(transaction: Self::Write) -> Result<(), sqlx::Error> {
        transaction.connection.commit().await
    }

    /// The write lock makes two daemons that start at once take turns.
    async fn migrate(&self) -> Result<(), sqlx::Error> {
        self.write_ahead().await?;
        let mut transaction = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        let migrator = sqlx::migrate!("migrations/sqlite");
        // Not `run`: rustc does not see that its future may be sent to another thread.
        migrator.run_direct(None, &mut *transaction, false).await.map_err(|e| sqlx::Error::Migrate(Box::new(e)))?;
        transaction.commit().await
    }

    fn explain(&self, error: sqlx::Error) -> HistoryError {
        explain(&self.name(), &error)
    }
}

/// A connection, or a transaction.
pub(super) struct SqliteSession<C> {
    connection: C,
    now: DateTime<Utc>,
}

impl<C: DerefMut<Target = SqliteConnection> + Send> Session for SqliteSession<C> {
    type Row = SqliteRow;

    /// There is one writer at a time.
    const LOCK: &'static str = "";
    const LOCK_FREE: &'static str = "";

    async fn now(&mut self) -> Result<DateTime<Utc>, sqlx::Error> {
        Ok(self.now)
    }

    async fn query(&mut self, sql: &str, values: &[Value<'_>]) -> Result<Vec<SqliteRow>, sqlx::Error> {
        // Safe: the text is put together from our own words only; what others wrote is always bound.
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for value in values {
            query = bind(query, value);
        }
        query.fetch_all(&mut *self.connection).await
    }

    async fn given(&mut self, columns: &[Column<'_>], sql: &str) -> Result<Vec<SqliteRow>, sqlx::Error> {
        /// SQLite takes 32,766 values in a statement. Beyond some hundreds, more rows in one do not make it faster.
        const MAX_VALUES: usize = 8_000;
        let names: Vec<&str> = columns.iter().map(|column| column.name).collect();
        let rows = columns.iter().map(|column| column.cells.len()).min().unwrap_or(0);
        let row = format!("({})", vec!["?"; columns.len()].join(","));
        let mut answers = Vec::new();
        let most = MAX_VALUES / columns.len();
        for start in (0..rows).step_by(most) {
            let end = rows.min(start + most);
            let list = vec![row.as_str(); end - start].join(",");
            // Safe: names are our own words; the cells are bound.
            let sql = format!("WITH given({}) AS (VALUES {list}) {sql}", names.join(", "));
            // The full chunks share one text, which is worth keeping prepared; the rest differs each time.
            let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(end - start == most);
            for row in start..end {
                for column in columns {
                    query = bind(query, &column.cells.get(row));
                }
            }
            answers.append(&mut query.fetch_all(&mut *self.connection).await?);
        }
        Ok(answers)
    }
}

type Query<'q> = sqlx::query::Query<'q, Sqlite, SqliteArguments>;

fn bind<'q>(query: Query<'q>, value: &Value<'_>) -> Query<'q> {
    match value {
        Value::Text(text) => query.bind(text.as_deref()),
        Value::Json(text) => query.bind(&**text),
        Value::Int(number) => query.bind(number),
        Value::Flag(flag) => query.bind(flag),
        // Always UTC and six digits, so that the texts sort as the instants do; and as exact as in Postgres.
        Value::Time(instant) => query.bind(instant.map(|instant| instant.format("%FT%T%.6fZ").to_string())),
        Value::Bytes(bytes) => query.bind(bytes),
    }
}

columns!(SqliteRow);

/// SQLite's word for "another process has it locked".
const BUSY_CODE: u32 = 5;

/// What kind of error it is: the low byte; the rest says more (https://www.sqlite.org/rescode.html).
fn result_code(error: &dyn DatabaseError) -> Option<u32> {
    Some(error.code()?.parse::<u32>().ok()? & 0xff)
}

fn explain(database: &str, error: &sqlx::Error) -> HistoryError {
    let refused = |reason: String, cure: &str| HistoryError::Refused {
        database: database.to_owned(),
        reason,
        cure: cure.to_owned(),
    };
    let unreachable = |reason: String| HistoryError::Unreachable { database: database.to_owned(), reason };
    match error {
        sqlx::Error::Database(e) => match result_code(&**e) {
            Some(BUSY_CODE | 6) => unreachable(format!(
                "another process kept it locked for {} s. Check that only one daemon uses this folder",
                BUSY.as_secs()
            )),
            Some(10 | 13) => unreachable(format!("{}. Check that the disk is healthy and has room", e.message())),
            Some(3 | 8 | 14) => {
                refused(e.message().to_owned(), "Let LAMPLIGHTER_DATA name a folder that may be written to")
            }
            Some(11 | 26) => refused(
                e.message().to_owned(),
                "Move the file away; a new one is started, and a copy of the old may be repaired with sqlite3's .recover",
            ),
            Some(1) => refused(
                e.message().to_owned(),
                "The tables are missing or of another version: restart Lamplighter to set them up",
            ),
            _ => refused(e.message().to_owned(), "This is a fault in Lamplighter: please report it"),
        },
        sqlx::Error::Io(e) => unreachable(e.to_string()),
        sqlx::Error::PoolTimedOut => unreachable("it is too busy".to_owned()),
        sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => unreachable("it is being closed".to_owned()),
        sqlx::Error::Migrate(e) => match &**e {
            MigrateError::Execute(e) | MigrateError::ExecuteMigration(e, _) => explain(database, e),
            e => explain_migration(database, e),
        },
        e => refused(e.to_string(), "This is a fault in Lamplighter: please report it"),
    }
}
