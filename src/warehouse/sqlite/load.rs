//! A load into SQLite. The body waits, compressed as it came, in a file without a name; at the commit it is read, checked
//! and inserted in one transaction. So a slow sender never holds the database, and whatever ends us leaves no trace.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use sqlx::sqlite::SqlitePool;
use sqlx::{AssertSqlSafe, SqliteConnection};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::cells::{Cell, RowReader};
use super::{declaration, explained, failure_to_json, name, quoted, read_schema, table_name, written};
use crate::warehouse::{BadRow, Column, FailureCause, Load, LoadFailure, LoadWriter, WarehouseError, fields};

/// The longest row that is read: twice the largest record that a dataset may allow, because one that is sent as text is escaped.
const MAX_ROW_BYTES: u64 = 200_000_000;
/// How many bad rows are named, as BigQuery names only the first ones.
const MAX_BAD_ROWS: usize = 100;
/// Rows are inserted so many at a time, or fewer if they are large or wide.
const ROWS_PER_INSERT: usize = 100;
const BYTES_PER_INSERT: usize = 1 << 20;
/// SQLite's limit is 32,766 values in a statement.
const VALUES_PER_INSERT: usize = 32_000;

/// The writer of one load.
pub(super) struct Spool {
    pool: SqlitePool,
    service: String,
    load: Load,
    file: File,
}

/// What the reading thread makes of the body.
enum Reading {
    /// Good rows.
    Rows(Vec<Vec<Cell>>),
    /// A row that cannot be loaded.
    Bad(BadRow),
    /// The body itself is damaged.
    Damaged(String),
}

impl Spool {
    pub(super) fn new(pool: SqlitePool, database: &Path, load: &Load) -> Result<Self, WarehouseError> {
        let service = name(database);
        let file = nameless_file(database).map_err(|error| no_room(&service, &load.job_id, &error))?;
        Ok(Self { pool, service, load: load.clone(), file })
    }

    /// Carries the load out. `Ok(Err(..))`: its rows are at fault, and nothing has been written.
    async fn carry_out(
        &self,
        connection: &mut SqliteConnection,
        body: File,
    ) -> Result<Result<u64, LoadFailure>, sqlx::Error> {
        let table = table_name(&self.load.table);
        let permanent = |message: String| LoadFailure { cause: FailureCause::Permanent, message, bad_rows: Vec::new() };
        let Some(mut schema) = read_schema(connection, &table).await? else {
            return Ok(Err(permanent(format!("notFound: there is no table {}", self.load.table))));
        };
        let new = match fields::additions(&schema.columns, &self.load.columns) {
            Ok(new) => new,
            // The table was changed after the load had begun; the next attempt reads its columns anew.
            Err(message) => return Ok(Err(LoadFailure { cause: FailureCause::Passing, ..permanent(message) })),
        };
        for column in &new {
            let sql = format!("ALTER TABLE {} ADD COLUMN {}", quoted(&table), declaration(column));
            sqlx::query(AssertSqlSafe(sql)).execute(&mut *connection).await?;
        }
        if !new.is_empty() {
            schema.columns.extend(new);
            let update = sqlx::query("UPDATE lamplighter_tables SET schema = ? WHERE name = ?");
            update.bind(written(&schema)).bind(&table).execute(&mut *connection).await?;
        }

        let insert = Insert::new(&table, &schema.columns);
        let (sender, mut readings) = mpsc::channel(2);
        let at_once = insert.rows_at_once;
        let reader = spawn_blocking(move || read_rows(body, &RowReader::new(schema.columns), at_once, &sender));
        let mut rows = 0;
        let mut bad_rows = Vec::new();
        while let Some(reading) = readings.recv().await {
            match reading {
                // After the first bad row only the others are of interest.
                Reading::Rows(_) if !bad_rows.is_empty() => {}
                Reading::Rows(batch) => {
                    rows += batch.len() as u64;
                    insert.execute(connection, batch).await?;
                }
                Reading::Bad(row) => bad_rows.push(row),
                Reading::Damaged(message) => return Ok(Err(permanent(message))),
            }
        }
        reader.await.map_err(|_| sqlx::Error::WorkerCrashed)?;
        if bad_rows.is_empty() {
            return Ok(Ok(rows));
        }
        let message = format!("invalid: {} or more rows cannot be loaded", bad_rows.len());
        Ok(Err(LoadFailure { cause: FailureCause::Rows, message, bad_rows }))
    }

    /// The load and its line in the books, in one transaction; `false` if there is a line of this name already.
    async fn settle(&self, body: File) -> Result<bool, sqlx::Error> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        if !self.write_line(&mut transaction, 0, None).await? {
            return Ok(false);
        }
        match self.carry_out(&mut transaction, body).await? {
            Ok(rows) => {
                let update = sqlx::query("UPDATE lamplighter_loads SET rows = ? WHERE job_id = ?");
                update.bind(rows.cast_signed()).bind(&self.load.job_id).execute(&mut *transaction).await?;
                transaction.commit().await?;
                Ok(true)
            }
            Err(failure) => {
                transaction.rollback().await?;
                let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
                let first = self.write_line(&mut transaction, 0, Some(&failure)).await?;
                transaction.commit().await?;
                Ok(first)
            }
        }
    }

    async fn write_line(
        &self,
        connection: &mut SqliteConnection,
        rows: i64,
        failure: Option<&LoadFailure>,
    ) -> Result<bool, sqlx::Error> {
        let line = sqlx::query(
            "INSERT INTO lamplighter_loads (job_id, table_name, rows, reading, failure) VALUES (?, ?, ?, ?, ?)
             ON CONFLICT DO NOTHING",
        );
        let line = line.bind(&self.load.job_id).bind(table_name(&self.load.table)).bind(rows).bind(self.load.reading);
        Ok(line.bind(failure.map(failure_to_json)).execute(connection).await?.rows_affected() == 1)
    }
}

#[async_trait]
impl LoadWriter for Spool {
    async fn write(&mut self, body: Bytes) -> Result<(), WarehouseError> {
        let lost = |error: &io::Error| no_room(&self.service, &self.load.job_id, error);
        let mut file = self.file.try_clone().map_err(|error| lost(&error))?;
        let written = spawn_blocking(move || file.write_all(&body)).await;
        written.unwrap_or_else(|panic| Err(io::Error::other(panic))).map_err(|error| lost(&error))
    }

    async fn commit(self: Box<Self>) -> Result<(), WarehouseError> {
        let mut body = self.file.try_clone().map_err(|error| no_room(&self.service, &self.load.job_id, &error))?;
        body.seek(SeekFrom::Start(0)).map_err(|error| no_room(&self.service, &self.load.job_id, &error))?;
        match self.settle(body).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(WarehouseError::Duplicate { job_id: self.load.job_id.clone() }),
            Err(error) => Err(explained(&self.service, &format!("carrying out load {}", self.load.job_id), &error)),
        }
    }
}

fn no_room(service: &str, job_id: &str, error: &io::Error) -> WarehouseError {
    WarehouseError::Unavailable {
        service: service.to_owned(),
        doing: format!("keeping the rows of load {job_id} beside the database"),
        reason: error.to_string(),
        retry_after: None,
    }
}

/// A file beside the database whose name is gone as soon as it is open, so that it goes when we do.
fn nameless_file(database: &Path) -> io::Result<File> {
    let mut name = database.as_os_str().to_owned();
    name.push(format!("-load-{}", ulid::Ulid::new()));
    let path = PathBuf::from(name);
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// An `INSERT` of many rows.
struct Insert {
    head: String,
    row: String,
    rows_at_once: usize,
}

impl Insert {
    fn new(table: &str, columns: &[Column]) -> Self {
        let names: Vec<String> = columns.iter().map(|column| quoted(&column.name)).collect();
        Self {
            head: format!("INSERT INTO {} ({}) VALUES ", quoted(table), names.join(", ")),
            row: format!("({})", vec!["?"; columns.len()].join(", ")),
            rows_at_once: (VALUES_PER_INSERT / columns.len().max(1)).clamp(1, ROWS_PER_INSERT),
        }
    }

    async fn execute(&self, connection: &mut SqliteConnection, rows: Vec<Vec<Cell>>) -> Result<(), sqlx::Error> {
        let sql = format!("{}{}", self.head, vec![self.row.as_str(); rows.len()].join(", "));
        // Full batches share one prepared statement; the odd sizes would only fill the cache.
        let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(rows.len() == self.rows_at_once);
        for cell in rows.into_iter().flatten() {
            query = match cell {
                Cell::Null => query.bind(None::<i64>),
                Cell::Integer(number) => query.bind(number),
                Cell::Real(number) => query.bind(number),
                Cell::Text(text) => query.bind(text),
                Cell::Blob(bytes) => query.bind(bytes),
            };
        }
        query.execute(connection).await.map(drop)
    }
}

/// Reads the body to its end, or until nobody listens any more.
fn read_rows(body: File, reader: &RowReader, rows_at_once: usize, sender: &mpsc::Sender<Reading>) {
    if let Err(damage) = try_read_rows(body, reader, rows_at_once, sender) {
        // If nobody listens, nobody misses it.
        let _ = sender.blocking_send(Reading::Damaged(format!("the body cannot be read: {damage}")));
    }
}

fn try_read_rows(
    body: File,
    reader: &RowReader,
    rows_at_once: usize,
    sender: &mpsc::Sender<Reading>,
) -> io::Result<()> {
    let mut body = BufReader::with_capacity(64 * 1024, MultiGzDecoder::new(BufReader::new(body)));
    let (mut line, mut batch, mut batch_bytes, mut bad_rows) = (Vec::new(), Vec::new(), 0, 0);
    let mut offset = 0;
    loop {
        line.clear();
        let length = (&mut body).take(MAX_ROW_BYTES).read_until(b'\n', &mut line)? as u64;
        let start = offset;
        offset += length;
        let too_long = length == MAX_ROW_BYTES && !line.ends_with(b"\n");
        if too_long {
            offset += skip_line(&mut body)?;
        }
        let row = match line.trim_ascii() {
            [] if length > 0 => continue,
            [] => None,
            _ if too_long => Some(Err(format!("the row is longer than {MAX_ROW_BYTES} bytes"))),
            row => Some(reader.read(row)),
        };
        let at_end = row.is_none();
        match row {
            Some(Ok(cells)) => {
                batch.push(cells);
                batch_bytes += line.len();
            }
            Some(Err(message)) => {
                bad_rows += 1;
                if sender.blocking_send(Reading::Bad(BadRow { offset: start, message })).is_err() {
                    return Ok(());
                }
            }
            None => {}
        }
        if at_end || bad_rows == MAX_BAD_ROWS || batch.len() == rows_at_once || batch_bytes >= BYTES_PER_INSERT {
            batch_bytes = 0;
            let full = std::mem::take(&mut batch);
            if !full.is_empty() && sender.blocking_send(Reading::Rows(full)).is_err() {
                return Ok(());
            }
        }
        if at_end || bad_rows == MAX_BAD_ROWS {
            return Ok(());
        }
    }
}

/// Skips to the end of the line, without keeping it.
fn skip_line(body: &mut impl BufRead) -> io::Result<u64> {
    let mut skipped = 0;
    loop {
        let part = body.fill_buf()?;
        let (length, found) = match part.iter().position(|byte| *byte == b'\n') {
            Some(end) => (end + 1, true),
            None => (part.len(), part.is_empty()),
        };
        body.consume(length);
        skipped += length as u64;
        if found {
            return Ok(skipped);
        }
    }
}
