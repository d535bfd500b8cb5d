//! Datasets: which records of the cache belong to which table of the warehouse, and in what shape.

use std::collections::BTreeMap;

use serde::Deserialize;

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
    pub queue: String,
    /// The form of the keys, such as `tx:{id}`.
    pub keys: KeyPattern,
    /// The warehouse table.
    pub table: TableRef,
    /// One JSON column for the record, or one column for each field.
    pub layout: Layout,
    /// The record's field with its time: the partition column. For layout `json` it becomes `_timestamp`.
    #[serde(default = "timestamp_field")]
    pub timestamp_field: String,
    /// Columns that a table created by us is clustered by: at most four.
    #[serde(default)]
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
    #[serde(default = "max_record_size")]
    pub max_record_size: Size,
    /// How long a record lives when a dead letter is put back.
    #[serde(default = "ttl")]
    pub ttl: Span,
}

fn timestamp_field() -> String {
    "_timestamp".to_owned()
}

fn max_record_size() -> Size {
    Size(8_000_000)
}

fn ttl() -> Span {
    Span(std::time::Duration::from_secs(7 * 86_400))
}

impl Dataset {
    /// The queue and its database.
    pub fn queue_ref(&self) -> QueueRef {
        QueueRef { database: self.database, queue: self.queue.clone() }
    }

    /// Checks what the types cannot: one sentence for each mistake, as (key, sentence).
    pub(crate) fn validate(&self) -> Vec<(&'static str, String)> {
        let mut mistakes = Vec::new();
        if self.queue.is_empty() {
            mistakes.push(("queue", "a queue has a name; it cannot be empty".to_owned()));
        }
        if self.timestamp_field.is_empty() {
            mistakes.push(("timestamp_field", "a field has a name; it cannot be empty".to_owned()));
        }
        if self.cluster_by.len() > MOST_CLUSTER_COLUMNS {
            let found = self.cluster_by.len();
            mistakes.push(("cluster_by", format!("{found} columns; BigQuery clusters by {MOST_CLUSTER_COLUMNS} at most")));
        }
        for (position, column) in self.cluster_by.iter().enumerate() {
            if self.cluster_by[..position].contains(column) {
                mistakes.push(("cluster_by", "the same column is named twice".to_owned()));
            }
            if self.layout == Layout::Json && !["_timestamp", "_ingestion_timestamp"].contains(&column.as_str()) {
                let sentence = "layout \"json\" has no such column to cluster by: only `_timestamp` and `_ingestion_timestamp`";
                mistakes.push(("cluster_by", sentence.to_owned()));
            }
        }
        if self.max_record_size.0 == 0 || self.max_record_size > LARGEST_ROW {
            mistakes.push(("max_record_size", format!("it must be from 1 B to {LARGEST_ROW}, BigQuery's largest row")));
        }
        if self.ttl.0 < std::time::Duration::from_secs(1) {
            mistakes.push(("ttl", "a record must live for at least a second".to_owned()));
        }
        mistakes.dedup();
        mistakes
    }

    /// Why two datasets cannot both be there, if so: the key of the second that is to blame, and a sentence.
    pub(crate) fn clash(&self, name: &str, other: &Self) -> Option<(&'static str, String)> {
        if self.queue_ref() == other.queue_ref() && self.keys.same_form(&other.keys) {
            let sentence = format!("dataset `{name}` has the same keys on the same queue; nothing tells their records apart");
            return Some(("keys", sentence));
        }
        if self.table == other.table && self.layout != other.layout {
            return Some(("layout", format!("dataset `{name}` puts another layout into the same table")));
        }
        None
    }
}

/// Columns that BigQuery clusters a table by.
const MOST_CLUSTER_COLUMNS: usize = 4;

/// BigQuery's limit for one row of a load.
const LARGEST_ROW: Size = Size(100_000_000);

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

    /// Whether both match the same keys, whatever they call the id.
    pub(crate) fn same_form(&self, other: &Self) -> bool {
        (&self.prefix, &self.suffix) == (&other.prefix, &other.suffix)
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
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}
