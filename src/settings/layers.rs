//! What lies over the file: `LAMPLIGHTER__SECTION__KEY`, and `${VARIABLES}` in its texts.

use std::collections::{BTreeMap, BTreeSet};

use config::{Environment, Source};

use super::problems::Problem;
use super::variables::{Variables, disagree};
use crate::document::{Entry, Fault, Node, Origin, Path, Table, Value};
use crate::units::nearest;

const PREFIX: &str = "LAMPLIGHTER";

/// Puts the variables' values into the document.
pub(super) fn overlay(root: &mut Table, variables: Variables<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    let start = format!("{PREFIX}__");
    // Names are compared without case below, so two that differ in it alone would race.
    let mut names: BTreeMap<String, &str> = BTreeMap::new();
    for name in variables.0.keys().filter(|name| name.to_uppercase().starts_with(&start)) {
        match names.insert(name.to_lowercase().replace("__", "."), name) {
            Some(other) if variables.0[other] != variables.0[name] => problems.push(disagree(&[other, name])),
            _ => {}
        }
    }
    let own = names.values().map(|name| ((*name).to_owned(), variables.0[*name].clone())).collect();
    let source = Environment::with_prefix(PREFIX).prefix_separator("__").separator("__").source(Some(own));
    let Ok(found) = source.collect() else { return problems };
    let found: BTreeMap<_, _> = found.into_iter().collect();
    for (key, value) in found {
        let name = names.get(&format!("{}.{key}", PREFIX.to_lowercase())).copied().unwrap_or(&key);
        let Ok(value) = value.into_string() else { continue };
        let segments: Vec<&str> = key.split('.').collect();
        if let Err(problem) = put(root, name, &segments, value) {
            problems.push(*problem);
        }
    }
    problems
}

fn put(root: &mut Table, name: &str, segments: &[&str], value: String) -> Result<(), Box<Problem>> {
    let cure = "write LAMPLIGHTER__SECTION__NAME__KEY, for example LAMPLIGHTER__JOBS__NIGHTLY_UPLOAD__TIMEOUT=30m";
    let wrong = |message: String| Box::new(Problem::variables(&[name], message, cure));
    let named = ["jobs", "datasets", "receivers"].contains(&segments[0]);
    if segments.contains(&"") || segments.len() < if named { 3 } else { 2 } {
        return Err(wrong(format!("{name} names no key of the settings")));
    }
    let mut table = root;
    for (depth, segment) in segments[..segments.len() - 1].iter().enumerate() {
        let key = match existing(table, segment) {
            Ok(Some(key)) => key,
            Ok(None) if named && depth == 1 => {
                // A variable changes what the file has. A table of its own would more likely be a slip of the pen.
                let choices: Vec<&str> = table.keys().map(String::as_str).collect();
                let mut problem = wrong(format!("the file has no [{}.{segment}] for {name} to change", segments[0]));
                problem.did_you_mean = nearest(segment, choices).map(|near| format!("`{near}`"));
                return Err(problem);
            }
            Ok(None) => {
                let origin = Origin::Variable(name.to_owned());
                let node = Node { value: Value::Table(Table::new()), origin: origin.clone(), secret: false };
                table.insert((*segment).to_owned(), Entry { key: origin, node });
                (*segment).to_owned()
            }
            Err(message) => return Err(wrong(message)),
        };
        let entry = table.get_mut(&key).expect("it is there, or was put there");
        match &mut entry.node.value {
            Value::Table(inner) => table = inner,
            _ => return Err(wrong(format!("`{key}` is not a table in the file, so {name} can change nothing in it"))),
        }
    }
    let last = segments[segments.len() - 1];
    let key = existing(table, last).map_err(wrong)?.unwrap_or_else(|| last.to_owned());
    let entry = Entry { key: Origin::Variable(name.to_owned()), node: Node::variable(name, value) };
    table.insert(key, entry);
    Ok(())
}

/// The key that a variable's lower-case word stands for: variables know neither `-` nor lower case.
fn existing(table: &Table, word: &str) -> Result<Option<String>, String> {
    let same = |key: &&String| key.to_lowercase().replace('-', "_") == word.replace('-', "_");
    let mut keys = table.keys().filter(same);
    match (keys.next(), keys.next()) {
        (Some(one), Some(two)) => Err(format!("it could mean `{one}` or `{two}`; rename one of them")),
        (one, _) => Ok(one.cloned()),
    }
}

/// What came of filling in `${VARIABLES}`.
#[derive(Default)]
pub(super) struct Filled {
    /// Mistakes.
    pub(super) faults: Vec<Fault>,
    /// Files that variables name and that cannot be read.
    pub(super) problems: Vec<Problem>,
    /// Values that could not be filled in: what is wrong with them has been said.
    pub(super) unfilled: BTreeSet<Path>,
    /// Receivers that are off, and the variables that would turn them on.
    pub(super) off: BTreeMap<String, String>,
}

/// Fills in `${VARIABLE}` and `${VARIABLE:-default}` in every text of the file; `$${` stands for `${`.
pub(super) fn fill_in(root: &mut Table, variables: Variables<'_>) -> Filled {
    let mut filled = Filled::default();
    for (key, entry) in root {
        fill_in_node(&mut entry.node, &Path::of(&[key]), variables, &mut filled);
    }
    filled
}

fn fill_in_node(node: &mut Node, path: &Path, variables: Variables<'_>, filled: &mut Filled) {
    match &mut node.value {
        Value::Table(table) => {
            table.iter_mut().for_each(|(key, entry)| fill_in_node(&mut entry.node, &path.key(key), variables, filled));
        }
        Value::Array(items) => {
            items
                .iter_mut()
                .enumerate()
                .for_each(|(index, item)| fill_in_node(item, &path.index(index), variables, filled));
        }
        Value::Text(text) if !text.from_variable && text.value.contains("${") => {
            let written = std::mem::take(&mut text.value);
            match expand(&written, variables) {
                Ok(value) => text.value = value,
                Err(Unfilled::Unset(variable)) => {
                    filled.unfilled.insert(path.clone());
                    match receiver_of(path) {
                        Some(receiver) => {
                            filled.off.insert(receiver, variable);
                        }
                        None => {
                            let sentence = format!(
                                "the variable {variable} is not set; set it, or write ${{{variable}:-what to use instead}}"
                            );
                            filled.faults.push(Fault::said(path.clone(), sentence));
                        }
                    }
                }
                Err(Unfilled::Broken(sentence)) => {
                    filled.unfilled.insert(path.clone());
                    filled.faults.push(Fault::said(path.clone(), sentence));
                }
                Err(Unfilled::Unreadable(problem)) => {
                    filled.unfilled.insert(path.clone());
                    filled.problems.push(*problem);
                }
            }
            text.written = Some(written);
        }
        _ => {}
    }
}

/// The receiver that a missing variable turns off: the address and the secret are what differs between machines.
fn receiver_of(path: &Path) -> Option<String> {
    use crate::document::Step::Key;
    match &path.0[..] {
        [Key(section), Key(name), Key(key)] if section == "receivers" && (key == "url" || key == "secret") => {
            Some(name.clone())
        }
        _ => None,
    }
}

enum Unfilled {
    Unset(String),
    Broken(String),
    Unreadable(Box<Problem>),
}

fn expand(text: &str, variables: Variables<'_>) -> Result<String, Unfilled> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            out.push_str(&rest[..at]);
            out.push('{');
            rest = &rest[at + 2..];
            continue;
        }
        out.push_str(&rest[..at]);
        let Some(end) = rest[at..].find('}') else {
            return Err(Unfilled::Broken(
                "`${` is never closed; write ${VARIABLE}, or $${ for the characters".to_owned(),
            ));
        };
        let inside = &rest[at + 2..at + end];
        rest = &rest[at + end + 1..];
        let (name, default) = match inside.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        let word = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if name.is_empty() || !word || name.starts_with(|c: char| c.is_ascii_digit()) {
            let sentence = "what stands between `${` and `}` is not the name of a variable; write ${VARIABLE} or \
                            ${VARIABLE:-default}, or $${ for the characters";
            return Err(Unfilled::Broken(sentence.to_owned()));
        }
        match (variables.get(name), default) {
            (Ok(Some(value)), _) => out.push_str(&value),
            (Ok(None), Some(default)) => out.push_str(default),
            (Ok(None), None) => return Err(Unfilled::Unset(name.to_owned())),
            (Err(problem), _) => return Err(Unfilled::Unreadable(problem)),
        }
    }
    out.push_str(rest);
    Ok(out)
}
