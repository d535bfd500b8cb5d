//! One record into one row: checked against the table's shape, and written as a line of JSON.

use std::borrow::Cow;
use std::collections::HashMap;

use super::super::datasets::{Dataset, Layout, NonFinite};
use super::members::{Members, one_line};
use super::shape::{BODY, Fields, INGESTED, Shape, TIMESTAMP};
use super::timestamp;
use super::values::{Checker, Form};
use crate::warehouse::Mode;

/// Why a record cannot become a row: the dead letter's word, and a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rejection {
    /// One word for counting.
    pub(super) reason: &'static str,
    /// One sentence for people.
    pub(super) detail: String,
}

impl Rejection {
    pub(super) fn new(reason: &'static str, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

/// Turns the records of one dataset into rows.
pub(super) struct Encoder<'a> {
    pub(super) dataset: &'a Dataset,
    pub(super) shape: &'a Shape,
    /// When the rows are uploaded, in the form that is sent.
    pub(super) ingested_at: &'a str,
}

impl Encoder<'_> {
    /// Appends the row for `value` to `out`, with a newline; on a rejection, or when the record has fields that the table
    /// lacks (they are noted in `new_fields`), `out` is left as it was.
    pub(super) fn encode(&self, value: &[u8], new_fields: &mut Fields, out: &mut Vec<u8>) -> Result<(), Rejection> {
        let text = std::str::from_utf8(value)
            .map_err(|error| Rejection::new("not_json", format!("the record is not UTF-8: {error}")))?
            .trim_matches([' ', '\t', '\n', '\r']);
        let start = out.len();
        let first_try = self.row(text, false, new_fields, out);
        let result = match first_try {
            Err(rejection) if rejection.reason == "not_json" && (text.contains("NaN") || text.contains("Infinity")) => {
                out.truncate(start);
                if self.dataset.non_finite == NonFinite::Reject {
                    let why = "the record holds NaN or Infinity, which is not JSON, and the dataset says non_finite = \"reject\"";
                    return Err(Rejection::new("not_json", why));
                }
                let quoted = self.dataset.layout == Layout::Columns;
                let again = self.row(&quote_non_finite(text, quoted), true, new_fields, out);
                again.map_err(|again| if again.reason == "not_json" { rejection } else { again })
            }
            other => other,
        };
        if result.is_err() {
            out.truncate(start);
        }
        result
    }

    fn row(&self, text: &str, repaired: bool, new_fields: &mut Fields, out: &mut Vec<u8>) -> Result<(), Rejection> {
        match self.dataset.layout {
            Layout::Json => self.json_row(text, out),
            Layout::Columns => self.columns_row(text, repaired, new_fields, out),
        }
    }

    fn json_row(&self, text: &str, out: &mut Vec<u8>) -> Result<(), Rejection> {
        let field = &self.dataset.timestamp_field;
        let members = Members::read(text).map_err(|error| unreadable(text, &error))?;
        let without =
            |how: &str| Rejection::new("schema", format!("field `{field}` is {how}, and it is the row's {TIMESTAMP}"));
        let time = match members.last(field) {
            None => return Err(without("missing")),
            Some("null") => return Err(without("null")),
            Some(time) => time,
        };
        let at = match serde_json::from_str::<Cow<'_, str>>(time) {
            Ok(text) => timestamp::parse(&text),
            Err(_) => time.parse().ok().and_then(timestamp::from_unix_seconds),
        };
        let at = at.ok_or_else(|| {
            let shown: String = time.chars().take(60).collect();
            Rejection::new(
                "schema",
                format!("field `{field}` should be a time such as \"2025-09-27T14:30:00Z\", and is {shown}"),
            )
        })?;
        let body = members.one_line();
        out.extend_from_slice(b"{\"");
        out.extend_from_slice(TIMESTAMP.as_bytes());
        out.extend_from_slice(b"\":\"");
        timestamp::write(at, out);
        out.extend_from_slice(b"\",\"");
        out.extend_from_slice(BODY.as_bytes());
        out.extend_from_slice(b"\":");
        if self.shape.body_is_text {
            serde_json::to_writer(&mut *out, body.as_ref()).expect("text is written to memory");
        } else {
            out.extend_from_slice(body.as_bytes());
        }
        self.close(out, true);
        Ok(())
    }

    fn columns_row(
        &self,
        text: &str,
        repaired: bool,
        new_fields: &mut Fields,
        out: &mut Vec<u8>,
    ) -> Result<(), Rejection> {
        let record = Members::read(text).map_err(|error| unreadable(text, &error))?;
        let members = record.list();
        let columns = &self.shape.columns;
        let mut given = vec![false; columns.len()];
        // Fields whose text differs from the record's, by position in it: `None` leaves the field out.
        let mut changes: Vec<(usize, Option<String>)> = Vec::new();
        let mut lacking = Fields::default();
        // As written, by their lower case.
        let mut new_names = HashMap::new();
        let mut checker = Checker { new_fields: &mut lacking, repaired };
        let reject = |detail: String| Rejection::new("schema", detail);
        for (at, (name, value)) in members.iter().enumerate() {
            if name.eq_ignore_ascii_case(INGESTED) {
                changes.push((at, None));
                continue;
            }
            let Some(position) = self.shape.position(name, at) else {
                if let Some(other) = new_names.insert(name.to_ascii_lowercase(), name)
                    && other != name
                {
                    return Err(two_cases(other, name));
                }
                checker.note_new(&[name], value).map_err(reject)?;
                changes.push((at, None));
                continue;
            };
            if std::mem::replace(&mut given[position], true) {
                // JSON readers take the last of two members with one name.
                let earlier = members[..at].iter().rposition(|(other, _)| other.eq_ignore_ascii_case(name));
                let earlier = earlier.expect("the column was given by an earlier member");
                if members[earlier].0 != *name {
                    return Err(two_cases(&members[earlier].0, name));
                }
                changes.retain(|(changed, _)| *changed != earlier);
                changes.push((earlier, None));
            }
            if let Form::Changed(form) = checker.check(&columns[position], &[name], value).map_err(reject)? {
                changes.push((at, Some(form)));
            }
        }
        let absent = |(at, column): &(usize, &crate::warehouse::Column)| {
            column.mode == Mode::Required && !given[*at] && column.name != INGESTED
        };
        if let Some((_, column)) = columns.iter().enumerate().find(absent) {
            return Err(reject(format!("field `{}` is missing, and its column is required", column.name)));
        }
        if !lacking.is_empty() {
            new_fields.merge(&lacking);
            return Ok(());
        }
        if changes.is_empty() {
            let body = record.one_line();
            let open = body.strip_suffix('}').expect("an object ends with a brace").trim_end();
            out.extend_from_slice(open.as_bytes());
            self.close(out, !members.is_empty());
            return Ok(());
        }
        out.push(b'{');
        let mut any = false;
        for (at, (name, value)) in members.iter().enumerate() {
            let form = match changes.iter().find(|(changed, _)| *changed == at) {
                Some((_, None)) => continue,
                Some((_, Some(form))) => Cow::Borrowed(form.as_str()),
                None => one_line(value),
            };
            if any {
                out.push(b',');
            }
            any = true;
            serde_json::to_writer(&mut *out, name.as_ref()).expect("text is written to memory");
            out.push(b':');
            out.extend_from_slice(form.as_bytes());
        }
        self.close(out, any);
        Ok(())
    }

    /// Adds the ingestion time and ends the line.
    fn close(&self, out: &mut Vec<u8>, any: bool) {
        if any {
            out.push(b',');
        }
        out.push(b'"');
        out.extend_from_slice(INGESTED.as_bytes());
        out.extend_from_slice(b"\":\"");
        out.extend_from_slice(self.ingested_at.as_bytes());
        out.extend_from_slice(b"\"}\n");
    }
}

fn two_cases(one: &str, other: &str) -> Rejection {
    let why = "BigQuery does not distinguish upper and lower case";
    Rejection::new("schema", format!("fields `{one}` and `{other}` are the same column: {why}"))
}

fn unreadable(text: &str, error: &serde_json::Error) -> Rejection {
    if error.is_data() {
        let what = match text.as_bytes().first() {
            Some(b'[') => "a list",
            Some(b'"') => "text",
            Some(b'n') => "null",
            Some(b't' | b'f') => "true or false",
            _ => "a number",
        };
        return Rejection::new("not_an_object", format!("the record is {what}, not a JSON object"));
    }
    let hint = if text.is_empty() { "it is empty".to_owned() } else { error.to_string() };
    Rejection::new("not_json", format!("the record is not JSON: {hint}"))
}

/// Replaces bare `NaN`, `Infinity` and `-Infinity` outside of strings: by null or, for members of the outermost object if
/// `quoted`, by the same word in quotes, which a FLOAT column takes.
fn quote_non_finite(text: &str, quoted: bool) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    let (mut rest, mut depth) = (text, 0_usize);
    while let Some(at) = rest.find(['"', '{', '}', '[', ']', 'N', 'I', '-']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let word = ["-Infinity", "Infinity", "NaN"].into_iter().find(|word| rest.starts_with(word));
        let taken = match (rest.as_bytes()[0], word) {
            (_, Some(word)) => {
                match quoted && depth == 1 {
                    true => out.extend(["\"", word, "\""]),
                    false => out.push_str("null"),
                }
                rest = &rest[word.len()..];
                continue;
            }
            (b'"', _) => string_len(rest),
            (b'{' | b'[', _) => {
                depth += 1;
                1
            }
            (b'}' | b']', _) => {
                depth = depth.saturating_sub(1);
                1
            }
            _ => 1,
        };
        out.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    out.push_str(rest);
    out
}

/// Length of the JSON string at the start of `text`, quotes included; the rest of the text if it does not end.
fn string_len(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.bytes().enumerate().skip(1) {
        match c {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests;
