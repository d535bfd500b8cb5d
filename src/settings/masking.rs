//! What must not be shown of a settings file, even in a message about a mistake in it.
//!
//! A character that is blotted out becomes one `*`, so that columns stay where they are.

use std::ops::Range;

use crate::alerts::ReceiverSettings;
use crate::document::{Node, Origin, Table, Value};

/// A key with one of these in its name has a secret value, wherever it is.
const SECRET_WORDS: [&str; 12] = [
    "password",
    "passwd",
    "secret",
    "token",
    "url",
    "uri",
    "dsn",
    "credential",
    "webhook",
    "authorization",
    "apikey",
    "bearer",
];

/// Marks what is secret: a receiver's keys but for a few, and anything anywhere that looks like a secret.
pub(super) fn mark(root: &mut Table) {
    for (section, entry) in root {
        mark_in(section, &mut entry.node);
        let Value::Table(receivers) = &mut entry.node.value else { continue };
        if section != "receivers" {
            continue;
        }
        for receiver in receivers.values_mut() {
            let Value::Table(keys) = &mut receiver.node.value else { continue };
            for (key, entry) in keys {
                if ReceiverSettings::is_secret(key) {
                    mark_all(&mut entry.node);
                }
            }
        }
    }
}

fn mark_in(key: &str, node: &mut Node) {
    match &mut node.value {
        Value::Text(text) if looks_secret(&text.value) || is_secret_key(key) => node.secret = true,
        Value::Array(items) => items.iter_mut().for_each(|item| mark_in(key, item)),
        Value::Table(table) => table.iter_mut().for_each(|(key, entry)| mark_in(key, &mut entry.node)),
        _ => {}
    }
}

fn mark_all(node: &mut Node) {
    node.secret = true;
    match &mut node.value {
        Value::Array(items) => items.iter_mut().for_each(mark_all),
        Value::Table(table) => table.values_mut().for_each(|entry| mark_all(&mut entry.node)),
        _ => {}
    }
}

fn is_secret_key(key: &str) -> bool {
    let key: String = key.to_ascii_lowercase().chars().filter(char::is_ascii_alphanumeric).collect();
    SECRET_WORDS.iter().any(|word| key.contains(word))
}

fn looks_secret(text: &str) -> bool {
    text.contains("://") || text.contains("whsec_")
}

/// A line of a document that could be read, without its secrets. `start` is the position of its first byte.
pub(super) fn of_line(root: &Table, line: &str, start: usize) -> String {
    let mut hidden = Vec::new();
    root.values().for_each(|entry| secrets(&entry.node, &mut hidden));
    hidden.retain(|span| span.start < start + line.len() && start < span.end);
    hidden.sort_by_key(|span| span.start);
    let mut shown = String::with_capacity(line.len());
    let mut spans = hidden.iter().peekable();
    for (at, c) in line.char_indices() {
        while spans.next_if(|span| span.end <= start + at).is_some() {}
        let secret = spans.peek().is_some_and(|span| span.contains(&(start + at)));
        shown.push(if secret { '*' } else { c });
    }
    // What stands in comments was never read.
    if looks_secret(&shown) { blot(&shown, shown.find(['=', '#']).map_or(0, |at| at + 1)) } else { shown }
}

fn secrets(node: &Node, found: &mut Vec<Range<usize>>) {
    if node.secret {
        // `${VARIABLE}` names a secret but is none.
        let names_one = node.text().and_then(|text| text.written.as_deref()).is_some_and(|written| {
            let name = written.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
            name.is_some_and(|name| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
        });
        if let (Origin::File(span), false) = (&node.origin, names_one || node.table().is_some()) {
            found.push(span.clone());
        }
    }
    match &node.value {
        Value::Array(items) => items.iter().for_each(|item| secrets(item, found)),
        Value::Table(table) => table.values().for_each(|entry| secrets(&entry.node, found)),
        _ => {}
    }
}

/// A line of a text that is not TOML: nobody knows where its values begin and end, so rather too much is blotted out.
pub(super) fn of_broken_line(text: &str, line: &str, start: usize) -> String {
    let header = text[..start].lines().rev().map(str::trim_start).find(|line| line.starts_with('['));
    let in_receivers = header.is_some_and(|header| header.contains("receivers"));
    let trimmed = line.trim_start();
    match line.find('=') {
        Some(at) if in_receivers || is_secret_key(&line[..at]) || looks_secret(line) => blot(line, at + 1),
        None if looks_secret(line) => blot(line, 0),
        // The inside of a text that spans lines, perhaps.
        None if in_receivers && !trimmed.starts_with(['[', '#']) => blot(line, 0),
        _ => line.to_owned(),
    }
}

fn blot(line: &str, from: usize) -> String {
    line.char_indices().map(|(at, c)| if at < from || c.is_whitespace() { c } else { '*' }).collect()
}
