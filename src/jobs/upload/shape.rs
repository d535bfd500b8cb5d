//! The shape that a table gives its rows, and how it grows: the table's schema where there is one, else what the data shows.

use std::collections::HashMap;

use super::super::datasets::{Dataset, Layout};
use crate::warehouse::{Column, ColumnType, Mode, TableSchema};

/// The column that says when the row was uploaded.
pub(super) const INGESTED: &str = "_ingestion_timestamp";
/// The time column of layout `json`.
pub(super) const TIMESTAMP: &str = "_timestamp";
/// The record's column of layout `json`.
pub(super) const BODY: &str = "json_body";

/// The columns of a table, found by name without regard to case, as BigQuery finds them.
#[derive(Debug, Clone, Default)]
pub(super) struct Shape {
    /// In the table's order; new ones at the end.
    pub(super) columns: Vec<Column>,
    by_name: HashMap<String, usize>,
    /// Layout `json` on a table whose body column is text: the record is sent as a JSON string.
    pub(super) body_is_text: bool,
}

impl Shape {
    /// The shape of these columns.
    pub(super) fn of(columns: Vec<Column>) -> Self {
        let by_name = columns.iter().enumerate().map(|(at, column)| (column.name.to_ascii_lowercase(), at)).collect();
        Self { columns, by_name, body_is_text: false }
    }

    /// Position of the column called `name`. `guess` is tried first: records name their fields in the same order.
    pub(super) fn position(&self, name: &str, guess: usize) -> Option<usize> {
        if self.columns.get(guess).is_some_and(|column| column.name == name) {
            return Some(guess);
        }
        if let Some(&at) = self.by_name.get(name) {
            return Some(at);
        }
        self.by_name.get(&name.to_ascii_lowercase()).copied()
    }

    /// The shape for `dataset`, given its table as it is; `None` stands for a table that is still to be created.
    ///
    /// # Errors
    /// Why the table cannot take the dataset's layout.
    pub(super) fn for_dataset(dataset: &Dataset, table: Option<&TableSchema>) -> Result<Self, String> {
        let Some(table) = table else {
            let mut columns = Vec::new();
            if dataset.layout == Layout::Json {
                columns.push(Column::required(TIMESTAMP, ColumnType::Timestamp));
                columns.push(Column::required(BODY, ColumnType::Json));
                columns.push(Column::required(INGESTED, ColumnType::Timestamp));
            }
            return Ok(Self::of(columns));
        };
        let mut shape = Self::of(table.columns.clone());
        if dataset.layout == Layout::Json {
            shape.check_json_layout()?;
        }
        shape.ensure(INGESTED, ColumnType::Timestamp);
        Ok(shape)
    }

    fn check_json_layout(&mut self) -> Result<(), String> {
        let column_type = |name: &str| self.position(name, 0).map(|at| &self.columns[at].column_type);
        let names: Vec<&str> = self.columns.iter().map(|column| column.name.as_str()).collect();
        let found = format!("it has the columns {}", names.join(", "));
        if !matches!(column_type(TIMESTAMP), Some(ColumnType::Timestamp)) {
            return Err(format!("layout \"json\" needs a column {TIMESTAMP} of type TIMESTAMP, and {found}"));
        }
        let body_is_text = match column_type(BODY) {
            Some(ColumnType::Json) => false,
            Some(ColumnType::String) => true,
            _ => return Err(format!("layout \"json\" needs a column {BODY} of type JSON (or STRING), and {found}")),
        };
        let others = self.columns.iter().filter(|column| ![TIMESTAMP, BODY, INGESTED].contains(&column.name.as_str()));
        if let Some(required) = others.clone().find(|column| column.mode == Mode::Required) {
            return Err(format!("layout \"json\" cannot fill the required column {}", required.name));
        }
        self.body_is_text = body_is_text;
        Ok(())
    }

    /// Adds a nullable column, unless there is one of that name.
    pub(super) fn ensure(&mut self, name: &str, column_type: ColumnType) {
        if self.position(name, 0).is_none() {
            self.by_name.insert(name.to_ascii_lowercase(), self.columns.len());
            self.columns.push(Column::nullable(name, column_type));
        }
    }

    /// Adds the columns for fields that the data shows and the table lacks. A field's type never changes what is there.
    pub(super) fn grow(&mut self, fields: &Fields) {
        for (path, seen) in &fields.seen {
            grow(&mut self.columns, path, *seen);
        }
        *self = Self { body_is_text: self.body_is_text, ..Self::of(std::mem::take(&mut self.columns)) };
    }

    /// The schema of a table to be created.
    pub(super) fn new_table(&self, dataset: &Dataset) -> TableSchema {
        let mut shape = self.clone();
        let partition = match dataset.layout {
            Layout::Json => TIMESTAMP.to_owned(),
            Layout::Columns => dataset.timestamp_field.clone(),
        };
        shape.ensure(&partition, ColumnType::Timestamp);
        shape.ensure(INGESTED, ColumnType::Timestamp);
        let at = shape.position(&partition, 0).expect("it was added above");
        shape.columns[at].column_type = ColumnType::Timestamp;
        TableSchema {
            columns: shape.columns,
            partition_by: Some(partition),
            cluster_by: dataset.cluster_by.clone(),
            require_partition_filter: dataset.require_partition_filter,
        }
    }
}

fn grow(columns: &mut Vec<Column>, path: &[String], seen: Seen) {
    let [name, rest @ ..] = path else { return };
    match (columns.iter_mut().find(|column| column.name.eq_ignore_ascii_case(name)), rest) {
        (None, []) => columns.push(Column::nullable(name, seen.column_type())),
        (Some(Column { column_type: ColumnType::Record(inner), .. }), [_, ..]) => grow(inner, rest, seen),
        _ => {}
    }
}

/// What the values of a field looked like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// `true`, `false`.
    Boolean,
    /// Whole numbers of at most 64 bits.
    Integer,
    /// Other numbers.
    Float,
    /// Dates with a time.
    Timestamp,
    /// Other text.
    String,
    /// Objects and lists, or a mixture with them.
    Json,
}

impl Seen {
    /// The type for a field of which some values looked like this and others like that.
    fn or(self, other: Self) -> Self {
        match (self, other) {
            (a, b) if a == b => a,
            (Self::Integer, Self::Float) | (Self::Float, Self::Integer) => Self::Float,
            (Self::Json, _) | (_, Self::Json) => Self::Json,
            _ => Self::String,
        }
    }

    fn column_type(self) -> ColumnType {
        match self {
            Self::Boolean => ColumnType::Boolean,
            Self::Integer => ColumnType::Integer,
            Self::Float => ColumnType::Float,
            Self::Timestamp => ColumnType::Timestamp,
            Self::String => ColumnType::String,
            Self::Json => ColumnType::Json,
        }
    }
}

/// Fields that the data shows and the table lacks, in the order in which they appeared; a path for each, because a field
/// may be new inside a RECORD.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Fields {
    seen: Vec<(Vec<String>, Seen)>,
}

impl Fields {
    /// Notes a value of a field.
    pub(super) fn note(&mut self, path: &[&str], seen: Seen) {
        let same = |known: &[String]| {
            known.len() == path.len() && known.iter().zip(path).all(|(a, b)| a.eq_ignore_ascii_case(b))
        };
        match self.seen.iter_mut().find(|(known, _)| same(known)) {
            Some((_, before)) => *before = before.or(seen),
            None => self.seen.push((path.iter().map(|&name| name.to_owned()).collect(), seen)),
        }
    }

    /// Adds what another part of the data showed.
    pub(super) fn merge(&mut self, other: &Self) {
        for (path, seen) in &other.seen {
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            self.note(&path, *seen);
        }
    }

    /// Whether the table lacks nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }

    /// The fields' names, with dots between the parts of a path.
    pub(super) fn names(&self) -> Vec<String> {
        self.seen.iter().map(|(path, _)| path.join(".")).collect()
    }
}

/// Whether BigQuery lets a column have this name
/// (<https://cloud.google.com/bigquery/docs/schemas#column_names>; of the flexible names only letters and digits).
pub(super) fn is_column_name(name: &str) -> bool {
    const RESERVED: [&str; 6] = ["_TABLE_", "_FILE_", "_PARTITION", "_ROW_TIMESTAMP", "__ROOT__", "_COLIDENTIFIER"];
    let upper = name.to_ascii_uppercase();
    name.len() <= 300
        && name.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !RESERVED.iter().any(|prefix| upper.starts_with(prefix))
}
