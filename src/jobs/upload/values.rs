//! Whether a JSON value fits a column, and in what form it is sent.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::members::Members;
use super::shape::{Fields, Seen, is_column_name};
use super::timestamp;
use crate::warehouse::{Column, ColumnType, Mode};

/// The form in which a value is sent.
pub(super) enum Form {
    /// As it is.
    Same,
    /// As this JSON instead.
    Changed(String),
}

/// Checks values of one record.
pub(super) struct Checker<'f> {
    /// Where fields that the table lacks are noted.
    pub(super) new_fields: &'f mut Fields,
    /// Whether bare `NaN` and `Infinity` of the record were put into quotes.
    pub(super) repaired: bool,
}

impl Checker<'_> {
    /// Checks `raw`, the value of the field at `path`, against its column.
    ///
    /// # Errors
    /// Why the value does not fit, as a sentence.
    pub(super) fn check(&mut self, column: &Column, path: &[&str], raw: &str) -> Result<Form, String> {
        if raw == "null" {
            return match column.mode {
                Mode::Required => Err(format!("field `{}` is null, and its column is required", path.join("."))),
                _ => Ok(Form::Same),
            };
        }
        if column.mode == Mode::Repeated {
            let items: Vec<&RawValue> = serde_json::from_str(raw).map_err(|_| mismatch(path, "a list", raw))?;
            let single = Column { mode: Mode::Required, ..column.clone() };
            let mut forms = Vec::with_capacity(items.len());
            for item in &items {
                forms.push(self.check(&single, path, item.get())?);
            }
            if forms.iter().all(|form| matches!(form, Form::Same)) {
                return Ok(Form::Same);
            }
            let texts: Vec<&str> = forms
                .iter()
                .zip(&items)
                .map(|(form, item)| match form {
                    Form::Same => item.get(),
                    Form::Changed(text) => text.as_str(),
                })
                .collect();
            return Ok(Form::Changed(format!("[{}]", texts.join(","))));
        }
        if self.repaired && non_finite(raw) && column.column_type != ColumnType::Float {
            return Ok(Form::Changed("null".to_owned()));
        }
        self.check_single(column, path, raw)
    }

    fn check_single(&mut self, column: &Column, path: &[&str], raw: &str) -> Result<Form, String> {
        let first = raw.as_bytes()[0];
        let number = first == b'-' || first.is_ascii_digit();
        let boolean = raw == "true" || raw == "false";
        let text = || -> Option<Cow<'_, str>> { (first == b'"').then(|| serde_json::from_str(raw).ok()).flatten() };
        let fits = |fits: bool, expected: &str| if fits { Ok(Form::Same) } else { Err(mismatch(path, expected, raw)) };
        match &column.column_type {
            ColumnType::Json | ColumnType::Other(_) => Ok(Form::Same),
            ColumnType::String => fits(first == b'"' || number || boolean, "text"),
            ColumnType::Boolean => fits(
                boolean || text().is_some_and(|t| ["true", "false"].contains(&t.to_ascii_lowercase().as_str())),
                "true or false",
            ),
            ColumnType::Integer => {
                if let Some(text) = text() {
                    return fits(text.trim().parse::<i64>().is_ok(), "a whole number");
                }
                if raw.parse::<i64>().is_ok() {
                    return Ok(Form::Same);
                }
                // 5.0 and 1e3 are whole numbers too.
                match raw.parse::<f64>() {
                    Ok(float) if number && float.fract() == 0.0 && float.abs() < 9e15 => {
                        Ok(Form::Changed(format!("{}", float as i64)))
                    }
                    _ => Err(mismatch(path, "a whole number of 64 bits", raw)),
                }
            }
            ColumnType::Float => fits(number || text().is_some_and(|t| t.trim().parse::<f64>().is_ok()), "a number"),
            ColumnType::Numeric | ColumnType::BigNumeric => {
                let finite = text().is_some_and(|t| t.trim().parse::<f64>().is_ok_and(f64::is_finite));
                fits(number || finite, "a number")
            }
            ColumnType::Timestamp => {
                let (at, plain) = match text() {
                    Some(text) => (timestamp::parse(&text), timestamp::is_plain(&text)),
                    None if number => (raw.parse().ok().and_then(timestamp::from_unix_seconds), false),
                    None => (None, false),
                };
                let at = at.ok_or_else(|| mismatch(path, "a time such as \"2025-09-27T14:30:00Z\"", raw))?;
                Ok(if plain { Form::Same } else { Form::Changed(format!("\"{}\"", timestamp::canonical(at))) })
            }
            ColumnType::Date => {
                let date = |t: Cow<'_, str>| chrono::NaiveDate::parse_from_str(&t, "%Y-%m-%d").is_ok();
                fits(text().is_some_and(date), "a date such as \"2025-09-27\"")
            }
            ColumnType::DateTime => {
                let at = text().and_then(|t| timestamp::parse(&t));
                fits(at.is_some(), "a date and time such as \"2025-09-27T14:30:00\"")
            }
            ColumnType::Time | ColumnType::Bytes => fits(first == b'"', "text"),
            ColumnType::Record(columns) => self.check_record(columns, path, raw),
        }
    }

    fn check_record(&mut self, columns: &[Column], path: &[&str], raw: &str) -> Result<Form, String> {
        let members = Members::read(raw).map_err(|_| mismatch(path, "an object", raw))?;
        let mut changed = false;
        let mut parts = Vec::with_capacity(members.list().len());
        for (name, value) in members.list() {
            let inner: Vec<&str> = path.iter().copied().chain([name.as_ref()]).collect();
            let Some(column) = columns.iter().find(|column| column.name.eq_ignore_ascii_case(name)) else {
                changed = true;
                self.note_new(&inner, value)?;
                continue;
            };
            match self.check(column, &inner, value)? {
                Form::Same => parts.push((name, Cow::Borrowed(*value))),
                Form::Changed(text) => {
                    changed = true;
                    parts.push((name, Cow::Owned(text)));
                }
            }
        }
        let given = |column: &Column| members.list().iter().any(|(name, _)| column.name.eq_ignore_ascii_case(name));
        if let Some(column) = columns.iter().find(|column| column.mode == Mode::Required && !given(column)) {
            return Err(format!("field `{}.{}` is missing, and its column is required", path.join("."), column.name));
        }
        if !changed {
            return Ok(Form::Same);
        }
        let parts: Vec<String> =
            parts.iter().map(|(name, value)| format!("{}:{value}", serde_json::Value::from(name.as_ref()))).collect();
        Ok(Form::Changed(format!("{{{}}}", parts.join(","))))
    }

    /// Notes a field that the table lacks. A null says nothing of its type, so it needs no column yet.
    ///
    /// # Errors
    /// Why there can be no column of that name.
    pub(super) fn note_new(&mut self, path: &[&str], raw: &str) -> Result<(), String> {
        let Some(mut seen) = look(raw) else { return Ok(()) };
        let name = path.last().copied().unwrap_or_default();
        if !is_column_name(name) {
            return Err(format!(
                "field `{}` is new, and BigQuery allows no column of that name: letters, digits and _, at most 300",
                path.join(".")
            ));
        }
        if self.repaired && non_finite(raw) {
            seen = Seen::Float;
        }
        self.new_fields.note(path, seen);
        Ok(())
    }
}

/// What a value looks like; `None` for null.
fn look(raw: &str) -> Option<Seen> {
    Some(match raw.as_bytes()[0] {
        b'n' => return None,
        b't' | b'f' => Seen::Boolean,
        b'{' | b'[' => Seen::Json,
        b'"' => match serde_json::from_str::<Cow<'_, str>>(raw) {
            Ok(text) if timestamp::parse(&text).is_some() => Seen::Timestamp,
            _ => Seen::String,
        },
        _ if raw.parse::<i64>().is_ok() => Seen::Integer,
        _ => Seen::Float,
    })
}

fn non_finite(raw: &str) -> bool {
    matches!(raw, "\"NaN\"" | "\"Infinity\"" | "\"-Infinity\"")
}

fn mismatch(path: &[&str], expected: &str, raw: &str) -> String {
    let shown: String = raw.chars().take(60).collect();
    let dots = if shown.len() < raw.len() { "…" } else { "" };
    format!("field `{}` should be {expected}, and is {shown}{dots}", path.join("."))
}
