//! Datasets: which records of the cache belong to which table of the warehouse, and in what shape.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Error};

use crate::cache::{AfterUpload, QueueRef};
use crate::units::{Size, Span};
use crate::warehouse::TableRef;

/// The configured datasets, by name.
pub type Datasets = BTreeMap<String, Dataset>;

/// A `[datasets.NAME]` table.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dataset {
    /// The Redis database that holds the queue and the records.
    #[serde(default)]
    pub database: u16,
    /// The queue's name. Several datasets may share a queue; `keys` tells their records apart.
    #[serde(deserialize_with = "name")]
    pub queue: String,
    /// The form of the keys, such as `tx:{id}`.
    pub keys: KeyPattern,
    /// The warehouse table.
    pub table: TableRef,
    /// One JSON column for the record, or one column for each field.
    pub layout: Layout,
    /// The record's field with its time: the partition column. For layout `json` it becomes `_timestamp`.
    #[serde(default = "timestamp_field", deserialize_with = "name")]
    pub timestamp_field: String,
    /// Columns that a table created by us is clustered by: at most four.
    #[serde(default, deserialize_with = "cluster_columns")]
    pub cluster_by: Vec<String>,
    /// Whether a table created by us demands a partition filter in queries.
    #[serde(default)]
    pub require_partition_filter: bool,
    /// What happens to a record once its row is in the warehouse.
    #[serde(default)]
    pub after_upload: AfterUpload,
    /// What becomes of `NaN` and `Infinity`, which Python writes and JSON does not know.
    #[serde(default)]
    pub non_finite: NonFinite,
    /// Records above this size become dead letters and stay where they are. BigQuery's limit for a row is 100 MB.
    #[serde(default = "max_record_size", deserialize_with = "record_size")]
    pub max_record_size: Size,
    /// How long a record lives when a dead letter is put back.
    #[serde(default = "ttl", deserialize_with = "lifetime")]
    pub ttl: Span,
}

fn timestamp_field() -> String {
    "_timestamp".to_owned()
}

fn max_record_size() -> Size {
    Size(8_000_000)
}

fn ttl() -> Span {
    Span(Duration::from_secs(7 * 86_400))
}

impl Dataset {
    /// The queue and its database.
    pub fn queue_ref(&self) -> QueueRef {
        QueueRef { database: self.database, queue: self.queue.clone() }
    }

    /// Checks what one key alone cannot show: one sentence for each mistake, as (key, sentence).
    pub(crate) fn validate(&self) -> Option<(&'static str, String)> {
        let there = |column: &String| ["_timestamp", "_ingestion_timestamp"].contains(&column.as_str());
        if self.layout == Layout::Columns || self.cluster_by.iter().all(there) {
            return None;
        }
        let sentence = "layout \"json\" has only the columns `_timestamp` and `_ingestion_timestamp` to cluster by";
        Some(("cluster_by", sentence.to_owned()))
    }

    /// Why this dataset and an earlier one cannot both be there, if so: the key to blame, and a sentence.
    pub(crate) fn clash(&self, name: &str, earlier: &Self) -> Option<(&'static str, String)> {
        let differs = self.table == earlier.table && self.layout != earlier.layout;
        differs.then(|| ("layout", format!("dataset `{name}` puts another layout into the same table")))
    }
}

/// Where a dataset's records are: what must tell datasets apart. Read on its own, so that other mistakes do not hide a clash.
#[derive(Debug, Deserialize)]
pub(crate) struct Place {
    #[serde(default)]
    database: u16,
    queue: String,
    keys: KeyPattern,
}

impl Place {
    /// Whether nothing tells the records of both apart.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let same_form = (&self.keys.prefix, &self.keys.suffix) == (&other.keys.prefix, &other.keys.suffix);
        (self.database, &self.queue) == (other.database, &other.queue) && same_form
    }
}

/// Columns that BigQuery clusters a table by.
const MOST_CLUSTER_COLUMNS: usize = 4;

/// BigQuery's limit for one row of a load.
const LARGEST_ROW: Size = Size(100_000_000);

fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    if name.is_empty() { Err(D::Error::custom("it has a name; it cannot be empty")) } else { Ok(name) }
}

fn cluster_columns<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let columns = Vec::<String>::deserialize(deserializer)?;
    if columns.len() > MOST_CLUSTER_COLUMNS {
        let found = columns.len();
        return Err(D::Error::custom(format!("{found} columns; BigQuery clusters by {MOST_CLUSTER_COLUMNS} at most")));
    }
    let is_name = |name: &String| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if let Some(column) = columns.iter().find(|column| !is_name(column)) {
        return Err(D::Error::custom(format!("{column:?} is no column's name: letters, digits and _")));
    }
    if columns.iter().enumerate().any(|(position, column)| columns[..position].contains(column)) {
        return Err(D::Error::custom("the same column is named twice"));
    }
    Ok(columns)
}

fn record_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
    let size = Size::deserialize(deserializer)?;
    if size.0 == 0 || size > LARGEST_ROW {
        return Err(D::Error::custom(format!("{size}; it must be from 1 B to {LARGEST_ROW}, BigQuery's largest row")));
    }
    Ok(size)
}

fn lifetime<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
    let span = Span::deserialize(deserializer)?;
    if span.0 < Duration::from_secs(1) || span.0 > Duration::from_secs(3_650 * 86_400) {
        return Err(D::Error::custom(format!("{span}; a record lives for 1s to 3650d")));
    }
    Ok(span)
}

/// How a record becomes a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Three columns: `_timestamp`, `json_body` (the whole record), `_ingestion_timestamp`.
    Json,
    /// One column for each field of the record, and `_ingestion_timestamp`.
    Columns,
}

/// What becomes of numbers that JSON does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NonFinite {
    /// Kept as such where a FLOAT column can hold them, else null.
    #[default]
    Null,
    /// The record becomes a dead letter.
    Reject,
}

/// The form of a dataset's keys: text with exactly one `{…}`, which stands for the id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPattern {
    prefix: String,
    suffix: String,
    text: String,
}

impl KeyPattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// A sentence that says what was found and how a pattern is written.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is not a key pattern; write for example \"tx:{{id}}\", with one {{…}} for the id");
        let (prefix, rest) = text.split_once('{').ok_or_else(wrong)?;
        let (name, suffix) = rest.split_once('}').ok_or_else(wrong)?;
        if name.contains('{') || suffix.contains(['{', '}']) || prefix.contains('}') {
            return Err(wrong());
        }
        Ok(Self { prefix: prefix.to_owned(), suffix: suffix.to_owned(), text: text.to_owned() })
    }

    /// The id in `key`, if the key has this form and the id is not empty.
    pub fn id<'a>(&self, key: &'a str) -> Option<&'a str> {
        let id = key.strip_prefix(self.prefix.as_str())?.strip_suffix(self.suffix.as_str())?;
        (!id.is_empty()).then_some(id)
    }

    /// How much of the pattern is fixed: of two patterns that both match a key, the longer one says more.
    pub fn fixed_len(&self) -> usize {
        self.prefix.len() + self.suffix.len()
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl<'de> Deserialize<'de> for KeyPattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}
