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

/// The places of a document that must not be shown, in order.
pub(super) fn secret_places(root: &Table) -> Vec<Range<usize>> {
    let mut places = Vec::new();
    root.values().for_each(|entry| secrets(&entry.node, &mut places));
    places.sort_by_key(|place| place.start);
    places
}

/// Part of a line of a document that could be read, without its secrets.
pub(super) fn of_line(text: &str, secrets: &[Range<usize>], part: Range<usize>) -> String {
    let before = secrets.partition_point(|place| place.end <= part.start);
    let mut places = secrets[before..].iter().peekable();
    let mut shown = String::with_capacity(part.len());
    for (at, c) in text[part.clone()].char_indices() {
        let at = part.start + at;
        while places.next_if(|place| place.end <= at).is_some() {}
        let secret = places.peek().is_some_and(|place| place.contains(&at));
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
            // All of it; nothing inside needs a place of its own.
            found.push(span.clone());
            return;
        }
    }
    match &node.value {
        Value::Array(items) => items.iter().for_each(|item| secrets(item, found)),
        Value::Table(table) => table.values().for_each(|entry| secrets(&entry.node, found)),
        _ => {}
    }
}

/// Part of a line of a text that is not TOML: nobody knows where its values begin and end, so rather too much is blotted out.
pub(super) fn of_broken_line(text: &str, line: Range<usize>, part: Range<usize>) -> String {
    let header = text[..line.start].lines().rev().map(str::trim_start).find(|line| line.starts_with('['));
    let in_receivers = header.is_some_and(|header| header.contains("receivers"));
    let whole = &text[line.clone()];
    let hidden_from = match whole.find('=') {
        Some(at) if in_receivers || is_secret_key(&whole[..at]) || looks_secret(whole) => Some(at + 1),
        None if looks_secret(whole) => Some(0),
        // The inside of a text that spans lines, perhaps.
        None if in_receivers && !whole.trim_start().starts_with(['[', '#']) => Some(0),
        _ => None,
    };
    let shown = &text[part.clone()];
    match hidden_from {
        Some(from) => blot(shown, (line.start + from).saturating_sub(part.start)),
        None => shown.to_owned(),
    }
}

fn blot(text: &str, from: usize) -> String {
    text.char_indices().map(|(at, c)| if at < from || c.is_whitespace() { c } else { '*' }).collect()
}
