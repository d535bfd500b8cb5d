//! Where uploads land: tables that are loaded in whole batches, each batch under a name that can succeed at most once.

mod bigquery;
mod fields;
mod sqlite;

pub use self::bigquery::{BigQuery, BigQuerySettings, Credentials, Timeouts};
pub use self::sqlite::SqliteWarehouse;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde::Deserialize;

/// A table: `dataset.table`, or `project.dataset.table`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableRef {
    /// The Google Cloud project; `None` means the configured one.
    pub project: Option<String>,
    /// The warehouse's dataset.
    pub dataset: String,
    /// The table in it.
    pub table: String,
}

impl FromStr for TableRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('.').collect();
        let (project, dataset, table) = match parts[..] {
            [dataset, table] => (None, dataset, table),
            [project, dataset, table] => (Some(project), dataset, table),
            _ => return Err(format!("{text:?} is not a table; write \"dataset.table\" or \"project.dataset.table\"")),
        };
        let word = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-');
        if !word(dataset) || !word(table) || project.is_some_and(|project| !word(&project.replace(':', "-"))) {
            return Err(format!("{text:?} is not a table name: letters, digits, _ and - between the dots"));
        }
        Ok(Self { project: project.map(str::to_owned), dataset: dataset.to_owned(), table: table.to_owned() })
    }
}

impl fmt::Display for TableRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(project) = &self.project {
            write!(f, "{project}.")?;
        }
        write!(f, "{}.{}", self.dataset, self.table)
    }
}

impl<'de> Deserialize<'de> for TableRef {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A column's type, by BigQuery's names (<https://cloud.google.com/bigquery/docs/reference/rest/v2/tables>).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ColumnType {
    /// Text.
    String,
    /// 64-bit signed.
    Integer,
    /// IEEE 754 double; `NaN`, `Infinity` and `-Infinity` are values of it.
    Float,
    /// 38 digits, 9 of them after the point.
    Numeric,
    /// 76 digits, 38 of them after the point.
    BigNumeric,
    /// True or false.
    Boolean,
    /// An instant, to the microsecond.
    Timestamp,
    /// A day.
    Date,
    /// A time of day.
    Time,
    /// A day and a time of day without a zone.
    DateTime,
    /// Any JSON value.
    Json,
    /// Base64 of bytes.
    Bytes,
    /// Columns inside a column.
    Record(Vec<Column>),
    /// A type that we pass through unchecked, by its name.
    Other(String),
}

/// Whether a column may be empty, or holds a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// May be null or absent.
    Nullable,
    /// Must have a value.
    Required,
    /// A list of values.
    Repeated,
}

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name; BigQuery does not distinguish upper and lower case.
    pub name: String,
    /// Its type.
    pub column_type: ColumnType,
    /// Nullable, required or repeated.
    pub mode: Mode,
}

impl Column {
    /// A column that may be null.
    pub fn nullable(name: impl Into<String>, column_type: ColumnType) -> Self {
        Self { name: name.into(), column_type, mode: Mode::Nullable }
    }

    /// A column that must have a value.
    pub fn required(name: impl Into<String>, column_type: ColumnType) -> Self {
        Self { name: name.into(), column_type, mode: Mode::Required }
    }
}

/// A table's columns and layout.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TableSchema {
    /// The columns, in order.
    pub columns: Vec<Column>,
    /// The TIMESTAMP or DATE column that splits the table into daily partitions.
    pub partition_by: Option<String>,
    /// Up to four columns that sort each partition.
    pub cluster_by: Vec<String>,
    /// Whether queries must name a partition.
    pub require_partition_filter: bool,
}

/// One load: an atomic append to one table under a name that can succeed at most once.
#[derive(Debug, Clone)]
pub struct Load {
    /// The table, which exists.
    pub table: TableRef,
    /// The name: letters, digits, `_` and `-`, at most 1,024 of them.
    pub job_id: String,
    /// The columns of the rows that follow. Columns that the table lacks are added to it, as nullable ones, when the load
    /// succeeds.
    pub columns: Vec<Column>,
    /// Which reading of the batch the rows come from; comes back in [`LoadStatus::Done`].
    pub reading: u32,
}

/// What became of a load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadStatus {
    /// The warehouse has never heard of it: no row of it was or will be written by a sender that has stopped.
    Absent,
    /// It is being carried out.
    Running,
    /// All its rows are in the table.
    Done {
        /// How many rows were written.
        rows: u64,
        /// The [`Load::reading`] whose rows they are.
        reading: u32,
    },
    /// None of its rows are in the table, and the name is used up.
    Failed(LoadFailure),
}

/// Why a load failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadFailure {
    /// What can be done.
    pub cause: FailureCause,
    /// The warehouse's words.
    pub message: String,
    /// The rows it named, as byte offsets of their first byte in the uncompressed rows. Perhaps not all the bad ones;
    /// perhaps none.
    pub bad_rows: Vec<BadRow>,
}

/// A row that the warehouse refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRow {
    /// Offset of the row's first byte in the uncompressed rows.
    pub offset: u64,
    /// Why it was refused.
    pub message: String,
}

/// What can be done about a failed load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureCause {
    /// A passing trouble: try again under a new name.
    Passing,
    /// Some rows are bad: leave them out.
    Rows,
    /// Nothing helps until a person acts: permission, a missing dataset, a quota.
    Permanent,
}

/// Rows on their way into a load.
#[async_trait]
pub trait LoadWriter: Send {
    /// Sends more of the load's body: newline-delimited JSON, compressed as one gzip stream, cut anywhere.
    async fn write(&mut self, body: Bytes) -> Result<(), WarehouseError>;

    /// Sends what is left and asks for the load to be carried out. Until this is called, nothing happens in the warehouse;
    /// dropping the writer instead leaves no trace. After an error whose [`WarehouseError::is_transient`] is true, the load
    /// may or may not have been accepted: ask [`Warehouse::status`].
    async fn commit(self: Box<Self>) -> Result<(), WarehouseError>;
}

/// A warehouse: BigQuery, or SQLite where no BigQuery is configured.
#[async_trait]
pub trait Warehouse: Send + Sync + 'static {
    /// Its name for people: `BigQuery project flit-data-platform`, `SQLite data/warehouse.db`.
    fn describe(&self) -> String;

    /// Asks the service whether it is there and lets us in.
    async fn ping(&self) -> Result<(), WarehouseError>;

    /// The table's schema as it is now; `None` if there is no such table. A missing dataset is an error.
    async fn schema(&self, table: &TableRef) -> Result<Option<TableSchema>, WarehouseError>;

    /// Creates the table. It is no error if somebody else did first.
    async fn create(&self, table: &TableRef, schema: &TableSchema) -> Result<(), WarehouseError>;

    /// Starts to send a load.
    async fn begin(&self, load: &Load) -> Result<Box<dyn LoadWriter>, WarehouseError>;

    /// What became of the load `job_id` into `table`.
    async fn status(&self, table: &TableRef, job_id: &str) -> Result<LoadStatus, WarehouseError>;
}

/// A warehouse that is shared between the parts of the program.
pub type SharedWarehouse = Arc<dyn Warehouse>;

/// What can go wrong with the warehouse.
#[derive(Debug, thiserror::Error)]
pub enum WarehouseError {
    /// Cannot be reached, is overloaded, or broke off. Trying again can help.
    #[error("{service} does not answer ({doing}): {reason}")]
    Unavailable {
        /// The service and project.
        service: String,
        /// What was tried.
        doing: String,
        /// What came back.
        reason: String,
        /// How long the service asked us to wait.
        retry_after: Option<std::time::Duration>,
    },
    /// We are not let in, or something does not exist. Trying again cannot help.
    #[error("{service} refuses ({doing}): {reason}. {cure}")]
    Refused {
        /// The service and project.
        service: String,
        /// What was tried.
        doing: String,
        /// What came back.
        reason: String,
        /// What to do about it.
        cure: String,
    },
    /// The load's name is taken. For us that is good news: ask [`Warehouse::status`].
    #[error("a load named {job_id} exists already")]
    Duplicate {
        /// The name.
        job_id: String,
    },
}

impl WarehouseError {
    /// Whether trying again can help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_names_are_read() {
        let table: TableRef = "flit-data-platform.flit_ml.prediction_logs".parse().unwrap();
        assert_eq!((table.project.as_deref(), table.dataset.as_str()), (Some("flit-data-platform"), "flit_ml"));
        assert_eq!(table.to_string(), "flit-data-platform.flit_ml.prediction_logs");
        for wrong in ["", "table", "a.b.c.d", "a..b", "a.b; DROP TABLE x"] {
            assert!(wrong.parse::<TableRef>().is_err(), "{wrong:?} should be refused");
        }
    }
}
