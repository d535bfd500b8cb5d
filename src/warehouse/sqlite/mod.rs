//! SQLite as a warehouse, for a machine without BigQuery: the same tables, loads and complaints in one file.
//!
//! A load and the line that records it in `lamplighter_loads` are one transaction, so a name succeeds at most once here too.

mod cells;
mod load;

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{AssertSqlSafe, Row, SqliteConnection};

use self::load::Spool;
use super::{
    BadRow, Column, ColumnType, FailureCause, Load, LoadFailure, LoadStatus, LoadWriter, Mode, TableRef, TableSchema,
    Warehouse, WarehouseError, fields,
};

/// How long a writer waits for another one. Loads of tens of thousands of rows hold the file for a second or so.
const BUSY_TIMEOUT: Duration = Duration::from_secs(60);

const BOOKS: &str = "
    CREATE TABLE IF NOT EXISTS lamplighter_tables (name TEXT PRIMARY KEY, schema TEXT NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS lamplighter_loads (
        job_id TEXT PRIMARY KEY, table_name TEXT NOT NULL, rows INTEGER NOT NULL, reading INTEGER NOT NULL,
        failure TEXT) STRICT;";

/// A warehouse in one SQLite file.
pub struct SqliteWarehouse {
    pool: SqlitePool,
    path: PathBuf,
}

impl SqliteWarehouse {
    /// Opens the file, and makes it if it is not there.
    ///
    /// # Errors
    /// If it is no SQLite file or cannot be written.
    pub async fn open(path: &Path) -> Result<Self, WarehouseError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT);
        let pool = SqlitePoolOptions::new().max_connections(4).acquire_timeout(BUSY_TIMEOUT);
        let service = name(path);
        let pool = pool.connect_with(options).await.map_err(|error| explained(&service, "opening", &error))?;
        sqlx::raw_sql(BOOKS).execute(&pool).await.map_err(|error| explained(&service, "opening", &error))?;
        Ok(Self { pool, path: path.to_owned() })
    }

    fn error(&self, doing: &str, error: &sqlx::Error) -> WarehouseError {
        explained(&self.describe(), doing, error)
    }
}

fn name(path: &Path) -> String {
    format!("SQLite {}", path.display())
}

/// SQLite's complaint as ours. A locked file or a full disk may pass; the rest is for people.
fn explained(service: &str, doing: &str, error: &sqlx::Error) -> WarehouseError {
    let (service, doing, reason) = (service.to_owned(), doing.to_owned(), error.to_string());
    let code = error.as_database_error().and_then(|error| error.code()).and_then(|code| code.parse::<u32>().ok());
    // The lower byte is the family: https://www.sqlite.org/rescode.html
    match code.map(|code| code & 0xff) {
        Some(5 | 6 | 9 | 10 | 13) => WarehouseError::Unavailable { service, doing, reason, retry_after: None },
        None if matches!(error, sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed) => {
            WarehouseError::Unavailable { service, doing, reason, retry_after: None }
        }
        _ => {
            let cure = "Check that the path is a file of ours, in a folder that exists and that we may write to";
            WarehouseError::Refused { service, doing, reason, cure: cure.to_owned() }
        }
    }
}

/// The SQLite table of a BigQuery table; the project makes no difference.
fn table_name(table: &TableRef) -> String {
    format!("{}.{}", table.dataset, table.table)
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A column in `CREATE TABLE`. The declared word gives SQLite's affinity: exact decimals and dates are text.
fn declaration(column: &Column) -> String {
    let sql_type = match (&column.column_type, column.mode) {
        (_, Mode::Repeated) | (ColumnType::Record(_) | ColumnType::Json, _) => "JSON_TEXT",
        (ColumnType::Integer, _) => "INTEGER",
        (ColumnType::Boolean, _) => "BOOLEAN",
        (ColumnType::Float, _) => "REAL",
        (ColumnType::Bytes, _) => "BLOB",
        _ => "TEXT",
    };
    let required = if column.mode == Mode::Required { " NOT NULL" } else { "" };
    format!("{} {sql_type}{required}", quoted(&column.name))
}

async fn read_schema(connection: &mut SqliteConnection, name: &str) -> Result<Option<TableSchema>, sqlx::Error> {
    let text: Option<String> = sqlx::query_scalar("SELECT schema FROM lamplighter_tables WHERE name = ?")
        .bind(name)
        .fetch_optional(connection)
        .await?;
    Ok(text.map(|text| {
        let schema: Value = serde_json::from_str(&text).unwrap_or_default();
        let names = schema["cluster_by"].as_array().into_iter().flatten().filter_map(Value::as_str);
        TableSchema {
            columns: fields::from_json(&schema["fields"]),
            partition_by: schema["partition_by"].as_str().map(str::to_owned),
            cluster_by: names.map(str::to_owned).collect(),
            require_partition_filter: schema["require_partition_filter"].as_bool().unwrap_or_default(),
        }
    }))
}

fn written(schema: &TableSchema) -> String {
    json!({
        "fields": fields::to_json(&schema.columns),
        "partition_by": schema.partition_by,
        "cluster_by": schema.cluster_by,
        "require_partition_filter": schema.require_partition_filter,
    })
    .to_string()
}

/// A failure as `lamplighter_loads` keeps it.
fn failure_to_json(failure: &LoadFailure) -> String {
    let cause = match failure.cause {
        FailureCause::Passing => "passing",
        FailureCause::Rows => "rows",
        FailureCause::Permanent => "permanent",
    };
    let bad_rows: Vec<Value> =
        failure.bad_rows.iter().map(|row| json!({"offset": row.offset, "message": row.message})).collect();
    json!({"cause": cause, "message": failure.message, "bad_rows": bad_rows}).to_string()
}

fn failure_from_json(text: &str) -> LoadFailure {
    let failure: Value = serde_json::from_str(text).unwrap_or_default();
    let message = |value: &Value| value["message"].as_str().unwrap_or_default().to_owned();
    let bad_rows = failure["bad_rows"].as_array().into_iter().flatten();
    LoadFailure {
        cause: match failure["cause"].as_str() {
            Some("passing") => FailureCause::Passing,
            Some("rows") => FailureCause::Rows,
            _ => FailureCause::Permanent,
        },
        message: message(&failure),
        bad_rows: bad_rows
            .filter_map(|row| Some(BadRow { offset: row["offset"].as_u64()?, message: message(row) }))
            .collect(),
    }
}

#[async_trait]
impl Warehouse for SqliteWarehouse {
    fn describe(&self) -> String {
        name(&self.path)
    }

    async fn ping(&self) -> Result<(), WarehouseError> {
        let found = sqlx::query("SELECT count(*) FROM lamplighter_tables").execute(&self.pool).await;
        found.map(drop).map_err(|error| self.error("saying hello", &error))
    }

    async fn schema(&self, table: &TableRef) -> Result<Option<TableSchema>, WarehouseError> {
        let found = async { read_schema(&mut *self.pool.acquire().await?, &table_name(table)).await };
        found.await.map_err(|error| self.error(&format!("reading the schema of {table}"), &error))
    }

    async fn create(&self, table: &TableRef, schema: &TableSchema) -> Result<(), WarehouseError> {
        let name = table_name(table);
        let create = async {
            let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
            if read_schema(&mut transaction, &name).await?.is_some() {
                return Ok(());
            }
            let columns: Vec<String> = schema.columns.iter().map(declaration).collect();
            let sql = format!("CREATE TABLE {} ({})", quoted(&name), columns.join(", "));
            sqlx::query(AssertSqlSafe(sql)).execute(&mut *transaction).await?;
            let remember = sqlx::query("INSERT INTO lamplighter_tables (name, schema) VALUES (?, ?)");
            remember.bind(&name).bind(written(schema)).execute(&mut *transaction).await?;
            transaction.commit().await
        };
        create.await.map_err(|error| self.error(&format!("creating {table}"), &error))
    }

    async fn begin(&self, load: &Load) -> Result<Box<dyn LoadWriter>, WarehouseError> {
        let doing = format!("preparing load {}", load.job_id);
        let refused = |reason: String, cure: &str| {
            let (service, cure) = (self.describe(), cure.to_owned());
            WarehouseError::Refused { service, doing: doing.clone(), reason, cure }
        };
        let Some(schema) = self.schema(&load.table).await? else {
            let reason = format!("there is no table {}", load.table);
            return Err(refused(reason, "Run the job again: it creates what is missing"));
        };
        fields::additions(&schema.columns, &load.columns)
            .map_err(|mismatch| refused(mismatch, "Run the job again: it reads the table's columns anew"))?;
        Ok(Box::new(Spool::new(self.pool.clone(), &self.path, load)?))
    }

    async fn status(&self, _table: &TableRef, job_id: &str) -> Result<LoadStatus, WarehouseError> {
        let question = sqlx::query("SELECT rows, reading, failure FROM lamplighter_loads WHERE job_id = ?");
        let read = async {
            let Some(line) = question.bind(job_id).fetch_optional(&self.pool).await? else {
                return Ok(LoadStatus::Absent);
            };
            Ok(match line.try_get::<Option<String>, _>("failure")? {
                Some(failure) => LoadStatus::Failed(failure_from_json(&failure)),
                None => LoadStatus::Done {
                    rows: line.try_get::<i64, _>("rows")?.cast_unsigned(),
                    reading: line.try_get("reading")?,
                },
            })
        };
        read.await.map_err(|error| self.error(&format!("asking for load {job_id}"), &error))
    }
}
