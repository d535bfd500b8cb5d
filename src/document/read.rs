//! Reads a struct out of a table, again and again, until every mistake has been found.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor,
};
use serde::forward_to_deserialize_any;

use super::fault::{Fault, What};
use super::fill::{FILLERS, Filler};
use super::node::{Node, Path, Step, Table, Text, Value, parse_value};

/// Mistakes that are looked for in one table. Whoever has more will come back anyway, and each costs a reading.
const MOST_ROUNDS: usize = 100;

/// A table that is to be read into structs.
#[derive(Debug, Clone)]
pub(crate) struct Reading<'t> {
    /// The table.
    pub(crate) table: &'t Table,
    /// Where it is in the document.
    pub(crate) path: Path,
}

/// Which of a table's keys a struct answers for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scope {
    /// All: a key that the struct does not know is a mistake.
    All,
    /// Those that the struct knows; somebody else reads the others.
    Known,
    /// All but these, which somebody else reads.
    Except(&'static [&'static str]),
}

impl Reading<'_> {
    /// Reads the table as a `T`. Either there are faults, or there is a `T`.
    pub(crate) fn read<T: DeserializeOwned>(&self, scope: Scope) -> Result<T, Vec<Fault>> {
        match self.read_around(scope) {
            (Some(value), faults) if faults.is_empty() => Ok(value),
            (_, faults) => Err(faults),
        }
    }

    /// Reads the table as a `T`, with all faults. Where there are some, there still is a `T` as a rule: what is at fault is
    /// missing from it or made up, so it is good for finding more of them, see [`super::add_further`], and for nothing else.
    pub(crate) fn read_around<T: DeserializeOwned>(&self, scope: Scope) -> (Option<T>, Vec<Fault>) {
        let cx = Context {
            root: self.path.clone(),
            scope,
            faults: RefCell::default(),
            left_out: RefCell::default(),
            filled: RefCell::default(),
            masked: Cell::new(false),
        };
        for _ in 0..MOST_ROUNDS {
            let top = InTable { cx: &cx, table: self.table, path: self.path.clone() };
            let fault = match T::deserialize(top) {
                Ok(value) => return (Some(value), cx.faults.into_inner()),
                Err(fault) => fault.or_at(&self.path),
            };
            if !self.note::<T>(&cx, fault) {
                break;
            }
        }
        (None, cx.faults.into_inner())
    }

    /// Takes a fault down and sees to it that the next reading passes it by. `false`: that cannot be done.
    fn note<T: DeserializeOwned>(&self, cx: &Context, fault: Fault) -> bool {
        let path = fault.path.clone().unwrap_or_default();
        let filler = cx.filled.borrow().keys().find(|filled| filled.holds(&path)).cloned();
        if let Some(filler) = filler {
            let mut filled = cx.filled.borrow_mut();
            let number = filled.get_mut(&filler).expect("it was found under this key a moment ago");
            *number += 1;
            return *number < FILLERS;
        }
        if let What::MissingKey(key) = fault.what {
            let key = path.key(key);
            // Left out means that it is there, but wrong, which has been said.
            if !cx.left_out.borrow().contains(&key) {
                cx.faults.borrow_mut().push(fault);
            }
            return cx.filled.borrow_mut().insert(key, 0).is_none();
        }
        let fault = self.masked::<T>(cx, fault, &path);
        cx.faults.borrow_mut().push(fault);
        path != self.path && cx.left_out.borrow_mut().insert(path)
    }

    /// The fault without what must not be shown: it is provoked once more with the text as written in place of its value.
    fn masked<T: DeserializeOwned>(&self, cx: &Context, fault: Fault, path: &Path) -> Fault {
        let below = Path(path.0[self.path.0.len()..].to_vec());
        let Some(hidden) = below.find(self.table).0.map(|(_, node)| node).filter(|node| node.hides()) else {
            return fault;
        };
        if hidden.text().is_some_and(|text| fault.keeps(&text.value)) {
            return fault;
        }
        cx.masked.set(true);
        let again = T::deserialize(InTable { cx, table: self.table, path: self.path.clone() });
        cx.masked.set(false);
        match again {
            Err(again) if again.path.as_ref() == Some(path) => again,
            _ => Fault::said(path.clone(), "its value is not accepted here"),
        }
    }
}

/// What the parts of one reading share.
struct Context {
    root: Path,
    scope: Scope,
    faults: RefCell<Vec<Fault>>,
    left_out: RefCell<BTreeSet<Path>>,
    filled: RefCell<BTreeMap<Path, usize>>,
    masked: Cell<bool>,
}

impl Context {
    fn is_left_out(&self, path: &Path) -> bool {
        self.left_out.borrow().contains(path)
    }

    /// The keys of a struct's table that are to be read; the unknown ones are taken down at once.
    fn keys(&self, table: &Table, path: &Path, known: &'static [&'static str]) -> Vec<String> {
        let scope = if *path == self.root { self.scope } else { Scope::All };
        let mut keys = Vec::new();
        for key in table.keys() {
            let elsewhere = matches!(scope, Scope::Except(others) if others.contains(&key.as_str()));
            let here = path.key(key);
            if elsewhere || self.is_left_out(&here) || self.filled.borrow().contains_key(&here) {
                continue;
            }
            if known.contains(&key.as_str()) {
                keys.push(key.clone());
            } else if !matches!(scope, Scope::Known) && self.left_out.borrow_mut().insert(here) {
                let mut choices = known.to_vec();
                if let Scope::Except(others) = scope {
                    choices.extend(others);
                }
                let what = What::UnknownKey { key: key.clone(), choices };
                self.faults.borrow_mut().push(Fault::at(path.clone(), what));
            }
        }
        keys
    }
}

/// The deserializer of a table.
struct InTable<'a> {
    cx: &'a Context,
    table: &'a Table,
    path: Path,
}

impl<'a> InTable<'a> {
    fn visit<'de, V: Visitor<'de>>(self, keys: Vec<String>, visitor: V) -> Result<V::Value, Fault> {
        let path = self.path.clone();
        let depth = path.0.len();
        let filled = self.cx.filled.borrow();
        let mut fillers = Vec::new();
        for (key, number) in filled.iter().filter(|(key, _)| key.0.len() == depth + 1 && path.holds(key)) {
            if let Some(Step::Key(key)) = key.0.last() {
                fillers.push((key.clone(), *number));
            }
        }
        drop(filled);
        let entries = Entries { at: self, keys: keys.into_iter(), fillers: fillers.into_iter(), next: None };
        visitor.visit_map(entries).map_err(|fault| fault.or_at(&path))
    }
}

impl<'de> Deserializer<'de> for InTable<'_> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let keys = self.table.keys().filter(|key| !self.cx.is_left_out(&self.path.key(key))).cloned().collect();
        self.visit(keys, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let keys = self.cx.keys(self.table, &self.path, fields);
        self.visit(keys, visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// A key, and the number of its filler if it is not there.
type Next = (String, Option<usize>);

struct Entries<'a> {
    at: InTable<'a>,
    keys: std::vec::IntoIter<String>,
    fillers: std::vec::IntoIter<(String, usize)>,
    next: Option<Next>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        let there = self.keys.next().map(|key| (key, None));
        let Some(next) = there.or_else(|| self.fillers.next().map(|(key, number)| (key, Some(number)))) else {
            return Ok(None);
        };
        let name: StrDeserializer<'_, Fault> = next.0.as_str().into_deserializer();
        let key = seed.deserialize(name).map_err(|fault| fault.or_at(&self.at.path.key(&next.0)))?;
        self.next = Some(next);
        Ok(Some(key))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let (key, filler) = self.next.take().expect("serde asks for a key before its value");
        let path = self.at.path.key(&key);
        match filler {
            None => {
                // A type that checks what it has read complains after the deserializer is done: the place is still this.
                let node = InNode { cx: self.at.cx, node: &self.at.table[&key].node, path: path.clone() };
                seed.deserialize(node).map_err(|fault| fault.or_at(&path))
            }
            Some(number) => seed.deserialize(Filler(number)).map_err(|fault| Fault::at(path, fault.what)),
        }
    }
}

/// The deserializer of any value.
struct InNode<'a> {
    cx: &'a Context,
    node: &'a Node,
    path: Path,
}

impl InNode<'_> {
    /// The text as it may be seen in this reading.
    fn seen<'t>(&self, text: &'t Text) -> &'t str {
        match (self.cx.masked.get(), &text.written) {
            (true, Some(written)) => written,
            (true, None) if self.node.secret => "…",
            _ => &text.value,
        }
    }

    /// A variable's value read as TOML, where a list or a table is wanted.
    fn variable_as_toml(&self) -> Option<Node> {
        let Value::Text(Text { value, from_variable: true, .. }) = &self.node.value else { return None };
        let mut node = parse_value(value.trim(), &self.node.origin)?;
        node.secret = self.node.secret;
        Some(node)
    }

    /// Numbers and booleans: a variable's value is read as one.
    fn scalar<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.variable_as_toml() {
            Some(node) if node.text().is_none() => InNode { node: &node, ..self }.deserialize_any(visitor),
            _ => self.deserialize_any(visitor),
        }
    }
}

impl<'de> Deserializer<'de> for InNode<'_> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let path = self.path.clone();
        let hidden = self.cx.masked.get() && self.node.secret;
        let result = match &self.node.value {
            Value::Text(text) => visitor.visit_str(self.seen(text)),
            Value::Integer(_) | Value::Float(_) if hidden => {
                Err(Fault::invalid_type(Unexpected::Other(self.node.sort()), &visitor))
            }
            Value::Integer(number) => visitor.visit_i64(*number),
            Value::Huge => Err(Fault::invalid_type(Unexpected::Other("a number beyond 64 bits"), &visitor)),
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Boolean(boolean) => visitor.visit_bool(*boolean),
            Value::Datetime => Err(Fault::invalid_type(Unexpected::Other("a date or time"), &visitor)),
            Value::Array(items) => {
                visitor.visit_seq(Items { cx: self.cx, items: items.iter().enumerate(), path: self.path })
            }
            Value::Table(table) => InTable { cx: self.cx, table, path: self.path }.deserialize_any(visitor),
        };
        result.map_err(|fault| fault.or_at(&path))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Fault> {
        let path = self.path.clone();
        visitor.visit_newtype_struct(self).map_err(|fault| fault.or_at(&path))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let parsed = self.variable_as_toml();
        match &parsed.as_ref().unwrap_or(self.node).value {
            Value::Table(table) => {
                InTable { cx: self.cx, table, path: self.path }.deserialize_struct(name, fields, visitor)
            }
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.variable_as_toml() {
            Some(node) if node.table().is_some() => InNode { node: &node, ..self }.deserialize_any(visitor),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let Value::Text(text) = &self.node.value else { return self.deserialize_any(visitor) };
        if !text.from_variable {
            return self.deserialize_any(visitor);
        }
        if let Some(node) = self.variable_as_toml().filter(|node| matches!(node.value, Value::Array(_))) {
            return InNode { node: &node, ..self }.deserialize_any(visitor);
        }
        // Without brackets: words with commas between them.
        let words = text.value.split(',').map(str::trim).filter(|word| !word.is_empty());
        let items: Vec<Node> = words
            .map(|word| {
                let value = Value::Text(Text { value: word.to_owned(), ..text.clone() });
                Node { value, origin: self.node.origin.clone(), secret: self.node.secret }
            })
            .collect();
        let path = self.path.clone();
        visitor
            .visit_seq(Items { cx: self.cx, items: items.iter().enumerate(), path: self.path })
            .map_err(|fault| fault.or_at(&path))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let result = match &self.node.value {
            Value::Text(text) => {
                let word: StrDeserializer<'_, Fault> = self.seen(text).into_deserializer();
                visitor.visit_enum(word)
            }
            _ => {
                let choices = format!("one of \"{}\"", variants.join("\", \""));
                Err(Fault::invalid_type(Unexpected::Other(self.node.sort()), &choices.as_str()))
            }
        };
        result.map_err(|fault| fault.or_at(&self.path))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.scalar(visitor)
    }

    fn deserialize_i8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.scalar(visitor)
    }

    fn deserialize_i16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.scalar(visitor)
    }

    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.scalar(visitor)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.scalar(visitor)
    }

    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.scalar(visitor)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.scalar(visitor)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.scalar(visitor)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.scalar(visitor)
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.scalar(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.scalar(visitor)
    }

    forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

struct Items<'a> {
    cx: &'a Context,
    items: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
    path: Path,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        for (index, node) in self.items.by_ref() {
            let path = self.path.index(index);
            if !self.cx.is_left_out(&path) {
                let node = InNode { cx: self.cx, node, path: path.clone() };
                return seed.deserialize(node).map(Some).map_err(|fault| fault.or_at(&path));
            }
        }
        Ok(None)
    }
}
