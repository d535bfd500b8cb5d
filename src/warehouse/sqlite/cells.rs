//! One row of JSON into SQLite's values, with the checks that BigQuery makes: unknown columns, missing ones, and values
//! that are not of their column's type.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime, Utc};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::warehouse::{Column, ColumnType, Mode, fields};

/// A value as SQLite stores it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cell {
    Null,
    Integer(i64),
    Real(f64),
    Text(String),
    Blob(Vec<u8>),
}

/// Reads rows for a list of columns.
pub(super) struct RowReader {
    columns: Vec<Column>,
    places: HashMap<String, usize>,
}

impl RowReader {
    pub(super) fn new(columns: Vec<Column>) -> Self {
        let places =
            columns.iter().enumerate().map(|(place, column)| (column.name.to_ascii_lowercase(), place)).collect();
        Self { columns, places }
    }

    /// The row's cells, in the columns' order.
    ///
    /// # Errors
    /// Why the row cannot be loaded.
    pub(super) fn read(&self, line: &[u8]) -> Result<Vec<Cell>, String> {
        let row: HashMap<String, &RawValue> =
            serde_json::from_slice(line).map_err(|error| format!("this is not one JSON object: {error}"))?;
        let mut cells = vec![Cell::Null; self.columns.len()];
        for (name, value) in row {
            let place =
                *self.places.get(&name.to_ascii_lowercase()).ok_or_else(|| format!("No such field: {name}."))?;
            let column = &self.columns[place];
            cells[place] = cell(column, value).map_err(|wrong| format!("{}: {wrong}", column.name))?;
        }
        match self
            .columns
            .iter()
            .zip(&cells)
            .find(|(column, cell)| column.mode == Mode::Required && **cell == Cell::Null)
        {
            Some((column, _)) => Err(format!("Missing required field: {}.", column.name)),
            None => Ok(cells),
        }
    }
}

fn cell(column: &Column, value: &RawValue) -> Result<Cell, String> {
    let json = value.get();
    if json == "null" && !matches!(column.column_type, ColumnType::Json) {
        return Ok(Cell::Null);
    }
    if column.mode == Mode::Repeated {
        let items: Vec<&RawValue> = serde_json::from_str(json).map_err(|_| "this is not a list".to_owned())?;
        for item in items {
            if scalar(&column.column_type, item)? == Cell::Null {
                return Err("a list may not hold null".to_owned());
            }
        }
        return Ok(Cell::Text(json.to_owned()));
    }
    scalar(&column.column_type, value)
}

fn scalar(column_type: &ColumnType, value: &RawValue) -> Result<Cell, String> {
    let json = value.get();
    match column_type {
        ColumnType::Json => return Ok(Cell::Text(json.to_owned())),
        ColumnType::Record(inner) => {
            RowReader::new(inner.clone()).read(json.as_bytes())?;
            return Ok(Cell::Text(json.to_owned()));
        }
        _ => {}
    }
    let value: Value = serde_json::from_str(json).map_err(|error| error.to_string())?;
    if value.is_null() {
        return Ok(Cell::Null);
    }
    let wrong = || {
        let shown: String = json.chars().take(40).collect();
        format!("Could not convert {shown} to {}.", fields::type_name(column_type))
    };
    // Numbers may come as strings, as everywhere in BigQuery, and most other types only as strings.
    let text = match &value {
        Value::String(text) => text.trim().to_owned(),
        Value::Number(number) => number.to_string(),
        Value::Bool(yes) => yes.to_string(),
        Value::Array(_) | Value::Object(_) | Value::Null => return Err(wrong()),
    };
    let cell = match column_type {
        ColumnType::String | ColumnType::Other(_) => Some(Cell::Text(match value {
            Value::String(text) => text,
            _ => text,
        })),
        ColumnType::Integer => integer(&text).map(Cell::Integer),
        ColumnType::Float => float(&text),
        ColumnType::Numeric => decimal(&text, 29, 9).map(Cell::Text),
        ColumnType::BigNumeric => decimal(&text, 38, 38).map(Cell::Text),
        ColumnType::Boolean => match text.to_ascii_lowercase().as_str() {
            "true" | "t" | "yes" | "y" | "1" => Some(Cell::Integer(1)),
            "false" | "f" | "no" | "n" | "0" => Some(Cell::Integer(0)),
            _ => None,
        },
        ColumnType::Timestamp => timestamp(&text).map(Cell::Text),
        ColumnType::Date => NaiveDate::parse_from_str(&text, "%Y-%m-%d").ok().map(|date| Cell::Text(date.to_string())),
        ColumnType::Time => NaiveTime::parse_from_str(&text, "%H:%M:%S%.f")
            .ok()
            .map(|time| Cell::Text(time.format("%H:%M:%S%.6f").to_string())),
        ColumnType::DateTime => {
            naive(&text).map(|moment| Cell::Text(moment.format("%Y-%m-%dT%H:%M:%S%.6f").to_string()))
        }
        ColumnType::Bytes => STANDARD.decode(&text).ok().map(Cell::Blob),
        ColumnType::Json | ColumnType::Record(_) => unreachable!("returned above"),
    };
    cell.ok_or_else(wrong)
}

fn integer(text: &str) -> Option<i64> {
    let whole = text.strip_suffix(".0").unwrap_or(text);
    whole.parse().ok()
}

/// A double. SQLite has no NaN, so that one is text.
fn float(text: &str) -> Option<Cell> {
    let number: f64 = text.parse().ok()?;
    Some(if number.is_nan() { Cell::Text("NaN".to_owned()) } else { Cell::Real(number) })
}

/// A decimal number of limited length, kept digit by digit.
fn decimal(text: &str, max_whole: usize, max_fraction: usize) -> Option<String> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let fits = whole.trim_start_matches('0').len() <= max_whole && fraction.trim_end_matches('0').len() <= max_fraction;
    (fits && !(whole.is_empty() && fraction.is_empty()) && all_digits(whole) && all_digits(fraction))
        .then(|| text.to_owned())
}

/// An instant in the forms that BigQuery reads, as text that sorts by time. Without a zone it is UTC.
fn timestamp(text: &str) -> Option<String> {
    let seconds = || {
        let seconds: f64 = text.parse().ok()?;
        DateTime::<Utc>::from_timestamp_micros((seconds * 1e6) as i64)
    };
    let plain = text.strip_suffix("UTC").or_else(|| text.strip_suffix(['Z', 'z'])).unwrap_or(text).trim_end();
    let instant = naive(plain)
        .map(|moment| moment.and_utc())
        .or_else(|| DateTime::parse_from_rfc3339(text).ok().map(|instant| instant.to_utc()))
        .or_else(|| DateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f%#z").ok().map(|instant| instant.to_utc()))
        .or_else(seconds)?;
    Some(instant.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string())
}

fn naive(text: &str) -> Option<NaiveDateTime> {
    let with_time = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M"];
    with_time.iter().find_map(|format| NaiveDateTime::parse_from_str(text, format).ok()).or_else(|| {
        let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
        Some(date.and_time(NaiveTime::MIN))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(column_type: ColumnType, json: &str) -> Result<Cell, String> {
        let reader = RowReader::new(vec![Column::nullable("c", column_type)]);
        reader.read(format!("{{\"C\": {json}}}").as_bytes()).map(|mut cells| cells.remove(0))
    }

    fn text(text: &str) -> Cell {
        Cell::Text(text.to_owned())
    }

    #[test]
    fn values_become_cells() {
        use ColumnType::{
            BigNumeric, Boolean, Bytes, Date, DateTime, Float, Integer, Json, Numeric, String, Time, Timestamp,
        };
        for (column_type, json, cell) in [
            (String, r#""a\nb""#, text("a\nb")),
            (String, "12", text("12")),
            (Integer, "-9223372036854775808", Cell::Integer(i64::MIN)),
            (Integer, r#""12""#, Cell::Integer(12)),
            (Integer, "3.0", Cell::Integer(3)),
            (Float, "2.5", Cell::Real(2.5)),
            (Float, r#""-Infinity""#, Cell::Real(f64::NEG_INFINITY)),
            (Float, r#""NaN""#, text("NaN")),
            (Float, "null", Cell::Null),
            (Numeric, r#""12345678901234567890.123456789""#, text("12345678901234567890.123456789")),
            (
                BigNumeric,
                r#""0.00000000000000000000000000000000000001""#,
                text("0.00000000000000000000000000000000000001"),
            ),
            (Boolean, "true", Cell::Integer(1)),
            (Timestamp, r#""2025-09-27T14:30:00.123456""#, text("2025-09-27T14:30:00.123456Z")),
            (Timestamp, r#""2025-09-27 14:30:00 UTC""#, text("2025-09-27T14:30:00.000000Z")),
            (Timestamp, r#""2025-09-27T14:30:00+02:00""#, text("2025-09-27T12:30:00.000000Z")),
            (Timestamp, "1735689600", text("2025-01-01T00:00:00.000000Z")),
            (Date, r#""2025-02-28""#, text("2025-02-28")),
            (Time, r#""14:30:00.5""#, text("14:30:00.500000")),
            (DateTime, r#""2025-02-28 01:02:03""#, text("2025-02-28T01:02:03.000000")),
            (Json, r#"{"k":[1,null]}"#, text(r#"{"k":[1,null]}"#)),
            (Json, "null", text("null")),
            (Bytes, r#""aGk=""#, Cell::Blob(b"hi".to_vec())),
        ] {
            assert_eq!(read(column_type.clone(), json), Ok(cell), "{column_type:?} {json}");
        }
    }

    #[test]
    fn values_of_another_type_are_refused() {
        use ColumnType::{Boolean, Bytes, Date, Float, Integer, Numeric, Record, String, Timestamp};
        let inner = vec![Column::required("a", Integer)];
        for (column_type, json) in [
            (String, r#"{"a": 1}"#),
            (Integer, "1.5"),
            (Integer, "9223372036854775808"),
            (Float, r#""high""#),
            (Numeric, r#""0.0000000001""#),
            (Numeric, r#""1e3""#),
            (Boolean, r#""maybe""#),
            (Timestamp, r#""tomorrow""#),
            (Timestamp, r#""2025-02-30T00:00:00""#),
            (Date, r#""27.9.2025""#),
            (Bytes, r#""no base64!""#),
            (Record(inner.clone()), r#"{"b": 1}"#),
            (Record(inner), "[]"),
        ] {
            assert!(read(column_type.clone(), json).is_err(), "{column_type:?} should refuse {json}");
        }
    }

    #[test]
    fn rows_are_held_against_the_columns() {
        let tags = Column { name: "tags".into(), column_type: ColumnType::String, mode: Mode::Repeated };
        let reader = RowReader::new(vec![Column::required("id", ColumnType::String), tags]);
        assert_eq!(reader.read(br#"{"id":"a","tags":["x"]}"#), Ok(vec![text("a"), text(r#"["x"]"#)]));
        for (row, complaint) in [
            ("{\"id\":\"a\",\"extra\":1}", "No such field: extra."),
            ("{}", "Missing required field: id."),
            ("{\"id\":null}", "Missing required field: id."),
            ("{\"id\":\"a\",\"tags\":\"x\"}", "tags: this is not a list"),
            ("{\"id\":\"a\",\"tags\":[null]}", "tags: a list may not hold null"),
            ("{\"id\":NaN}", "this is not one JSON object"),
            ("[1]", "this is not one JSON object"),
            ("{\"id\":\"a\"} {\"id\":\"b\"}", "this is not one JSON object"),
        ] {
            let message = reader.read(row.as_bytes()).unwrap_err();
            assert!(message.contains(complaint), "{row}: {message}");
        }
    }
}
