//! The tree: values with the place each came from.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// These bytes of the file.
    File(Range<usize>),
    /// The environment variable of this name.
    Variable(String),
}

/// A table's entries by key.
pub(crate) type Table = BTreeMap<String, Entry>;

/// A key with its value.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Where the key was written.
    pub(crate) key: Origin,
    /// Its value.
    pub(crate) node: Node,
}

/// A value, where it came from, and whether it may be shown.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// The value.
    pub(crate) value: Value,
    /// Where it was written.
    pub(crate) origin: Origin,
    /// Never to be shown to anybody.
    pub(crate) secret: bool,
}

/// A TOML value.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    /// Text in quotes, or a variable's value.
    Text(Text),
    /// A whole number.
    Integer(i64),
    /// A whole number beyond 64 bits.
    Huge,
    /// A number with a fraction.
    Float(f64),
    /// `true` or `false`.
    Boolean(bool),
    /// A date or a time.
    Datetime,
    /// A list.
    Array(Vec<Node>),
    /// A table.
    Table(Table),
}

/// A piece of text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Text {
    /// What it says, after `${VARIABLES}` were filled in.
    pub(crate) value: String,
    /// What was written, if it names variables: only this is ever shown.
    pub(crate) written: Option<String>,
    /// It is an environment variable's value, so it may stand for a number, a list or a table too.
    pub(crate) from_variable: bool,
}

impl Text {
    /// What may be shown of it.
    pub(crate) fn shown(&self) -> &str {
        self.written.as_deref().unwrap_or(&self.value)
    }
}

impl Node {
    /// The value of an environment variable.
    pub(crate) fn variable(name: &str, value: String) -> Self {
        let text = Text { value, written: None, from_variable: true };
        Self { value: Value::Text(text), origin: Origin::Variable(name.to_owned()), secret: false }
    }

    /// The table, if it is one.
    pub(crate) fn table(&self) -> Option<&Table> {
        match &self.value {
            Value::Table(table) => Some(table),
            _ => None,
        }
    }

    /// The text, if it is text.
    pub(crate) fn text(&self) -> Option<&Text> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Whether it, or anything in it, must not be shown as it is.
    pub(crate) fn hides(&self) -> bool {
        self.secret
            || match &self.value {
                Value::Text(text) => text.written.is_some(),
                Value::Array(items) => items.iter().any(Self::hides),
                Value::Table(table) => table.values().any(|entry| entry.node.hides()),
                _ => false,
            }
    }

    /// What sort of value it is, in the words of whoever wrote it.
    pub(crate) fn sort(&self) -> &'static str {
        match &self.value {
            Value::Text(_) => "text",
            Value::Integer(_) | Value::Huge => "a whole number",
            Value::Float(_) => "a number",
            Value::Boolean(_) => "true or false",
            Value::Datetime => "a date or time",
            Value::Array(_) => "a list",
            Value::Table(_) => "a table",
        }
    }
}

/// One step down the tree.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Step {
    /// Into a table.
    Key(String),
    /// Into a list.
    Index(usize),
}

/// The way from the document's root to a value.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct Path(pub(crate) Vec<Step>);

impl Path {
    /// The path of nested keys.
    pub(crate) fn of(keys: &[&str]) -> Self {
        Self(keys.iter().map(|key| Step::Key((*key).to_owned())).collect())
    }

    /// One step further, into a table.
    pub(crate) fn key(&self, key: &str) -> Self {
        self.step(Step::Key(key.to_owned()))
    }

    /// One step further, into a list.
    pub(crate) fn index(&self, index: usize) -> Self {
        self.step(Step::Index(index))
    }

    fn step(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }

    /// Whether `other` is this path or lies below it.
    pub(crate) fn holds(&self, other: &Self) -> bool {
        other.0.starts_with(&self.0)
    }

    /// The deepest entry or element on the way that exists under `root`, and whether that is the whole way.
    pub(crate) fn find<'t>(&self, root: &'t Table) -> (Option<(&'t Origin, &'t Node)>, bool) {
        let mut found: Option<(&Origin, &Node)> = None;
        let mut table = Some(root);
        for step in &self.0 {
            let next = match (step, found) {
                (Step::Key(key), _) => table.and_then(|table| table.get(key)).map(|entry| (&entry.key, &entry.node)),
                (Step::Index(index), Some((_, Node { value: Value::Array(items), .. }))) => {
                    items.get(*index).map(|item| (&item.origin, item))
                }
                (Step::Index(_), _) => None,
            };
            let Some(next) = next else { return (found, false) };
            table = next.1.table();
            found = Some(next);
        }
        (found, true)
    }
}

impl fmt::Display for Path {
    /// As TOML writes it: `jobs.nightly-upload.notify[0]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) => {
                    if position > 0 {
                        f.write_str(".")?;
                    }
                    let key = super::clip(key, 60);
                    let bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || "-_…".contains(c));
                    if bare { f.write_str(&key)? } else { write!(f, "{key:?}")? }
                }
            }
        }
        Ok(())
    }
}

/// A place where the text is not TOML.
#[derive(Debug, Clone)]
pub(crate) struct SyntaxError {
    /// Where, in bytes.
    pub(crate) span: Range<usize>,
    /// What was expected there.
    pub(crate) message: String,
}

/// Reads a whole document.
///
/// # Errors
/// The first place that is not TOML; what follows it cannot be trusted.
pub(crate) fn parse(text: &str) -> Result<Table, SyntaxError> {
    match DeTable::parse(text) {
        Ok(root) => Ok(table(root.get_ref())),
        Err(error) => {
            Err(SyntaxError { span: error.span().unwrap_or(0..0), message: error.message().trim().replace('\n', ", ") })
        }
    }
}

/// Reads one value, as a variable may hold one: `["a", "b"]`, `{ attempts = 3 }`.
pub(super) fn parse_value(text: &str, origin: &Origin) -> Option<Node> {
    let mut value = node(&DeValue::parse(text).ok()?);
    relocate(&mut value, origin);
    Some(value)
}

fn relocate(node: &mut Node, origin: &Origin) {
    node.origin = origin.clone();
    match &mut node.value {
        Value::Array(items) => items.iter_mut().for_each(|item| relocate(item, origin)),
        Value::Table(table) => table.values_mut().for_each(|entry| {
            entry.key = origin.clone();
            relocate(&mut entry.node, origin);
        }),
        _ => {}
    }
}

fn table(table: &DeTable<'_>) -> Table {
    let entry = |key: &Spanned<_>, value| Entry { key: Origin::File(key.span()), node: node(value) };
    table.iter().map(|(key, value)| (key.get_ref().to_string(), entry(key, value))).collect()
}

fn node(value: &Spanned<DeValue<'_>>) -> Node {
    let parsed = match value.get_ref() {
        DeValue::String(text) => Value::Text(Text { value: text.to_string(), ..Text::default() }),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => Value::Huge,
        },
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(boolean) => Value::Boolean(*boolean),
        DeValue::Datetime(_) => Value::Datetime,
        DeValue::Array(items) => Value::Array(items.iter().map(node).collect()),
        DeValue::Table(entries) => Value::Table(table(entries)),
    };
    Node { value: parsed, origin: Origin::File(value.span()), secret: false }
}
