//! What is passed to a statement: single values, and lists of rows, column by column.

use std::borrow::Cow;

use chrono::{DateTime, Utc};

/// One value.
#[derive(Debug, Clone)]
pub(in crate::history) enum Value<'a> {
    Text(Option<Cow<'a, str>>),
    Json(Cow<'a, str>),
    Int(Option<i64>),
    Flag(bool),
    Time(Option<DateTime<Utc>>),
    Bytes(Option<&'a [u8]>),
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(Some(without_nul(text)))
    }
}

impl<'a> From<Option<&'a str>> for Value<'a> {
    fn from(text: Option<&'a str>) -> Self {
        Self::Text(text.map(without_nul))
    }
}

impl From<i64> for Value<'_> {
    fn from(number: i64) -> Self {
        Self::Int(Some(number))
    }
}

impl From<Option<i64>> for Value<'_> {
    fn from(number: Option<i64>) -> Self {
        Self::Int(number)
    }
}

impl From<DateTime<Utc>> for Value<'_> {
    fn from(instant: DateTime<Utc>) -> Self {
        Self::Time(Some(instant))
    }
}

impl From<Option<DateTime<Utc>>> for Value<'_> {
    fn from(instant: Option<DateTime<Utc>>) -> Self {
        Self::Time(instant)
    }
}

impl Value<'_> {
    /// Something that can be written as JSON, written.
    pub(super) fn json(value: &impl serde::Serialize) -> Value<'static> {
        Value::Json(Cow::Owned(json_text(value)))
    }
}

/// One column of a list of rows.
#[derive(Debug)]
pub(in crate::history) struct Column<'a> {
    pub(in crate::history) name: &'static str,
    pub(in crate::history) cells: Cells<'a>,
}

/// The cells of a column.
#[derive(Debug)]
pub(in crate::history) enum Cells<'a> {
    Text(Vec<Option<Cow<'a, str>>>),
    Json(Vec<String>),
    Int(Vec<Option<i64>>),
    Flag(Vec<bool>),
    Time(Vec<Option<DateTime<Utc>>>),
    Bytes(Vec<Option<&'a [u8]>>),
}

impl<'a> Cells<'a> {
    pub(in crate::history) fn len(&self) -> usize {
        match self {
            Self::Text(cells) => cells.len(),
            Self::Json(cells) => cells.len(),
            Self::Int(cells) => cells.len(),
            Self::Flag(cells) => cells.len(),
            Self::Time(cells) => cells.len(),
            Self::Bytes(cells) => cells.len(),
        }
    }

    pub(in crate::history) fn get(&self, row: usize) -> Value<'_> {
        match self {
            Self::Text(cells) => Value::Text(cells[row].as_deref().map(Cow::Borrowed)),
            Self::Json(cells) => Value::Json(Cow::Borrowed(&cells[row])),
            Self::Int(cells) => Value::Int(cells[row]),
            Self::Flag(cells) => Value::Flag(cells[row]),
            Self::Time(cells) => Value::Time(cells[row]),
            Self::Bytes(cells) => Value::Bytes(cells[row]),
        }
    }
}

/// A column of texts, one for each of `rows`.
pub(super) fn text<'a, R>(
    name: &'static str,
    rows: impl IntoIterator<Item = R>,
    cell: impl Fn(R) -> &'a str,
) -> Column<'a> {
    maybe_text(name, rows, |row| Some(cell(row)))
}

/// A column of texts that may be missing.
pub(super) fn maybe_text<'a, R>(
    name: &'static str,
    rows: impl IntoIterator<Item = R>,
    cell: impl Fn(R) -> Option<&'a str>,
) -> Column<'a> {
    Column { name, cells: Cells::Text(rows.into_iter().map(|row| cell(row).map(without_nul)).collect()) }
}

/// A column of numbers.
pub(super) fn int<'a, R>(
    name: &'static str,
    rows: impl IntoIterator<Item = R>,
    cell: impl Fn(R) -> Option<i64>,
) -> Column<'a> {
    Column { name, cells: Cells::Int(rows.into_iter().map(cell).collect()) }
}

/// A column of instants.
pub(super) fn time<'a, R>(
    name: &'static str,
    rows: impl IntoIterator<Item = R>,
    cell: impl Fn(R) -> Option<DateTime<Utc>>,
) -> Column<'a> {
    Column { name, cells: Cells::Time(rows.into_iter().map(cell).collect()) }
}

/// Postgres cannot hold U+0000 in a text; what other programs wrote may contain it.
fn without_nul(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{fffd}")) } else { Cow::Borrowed(text) }
}

/// Writes JSON.
pub(super) fn json_text(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("our rows have text keys and nothing in them can refuse to be written")
}
