//! What is wrong with a value, in words for whoever wrote it. Serde's own sentences are taken apart and said again.

use std::fmt;

use serde::de::{Error, Expected, Unexpected};

use super::node::Path;

/// A mistake, and the value that it is in.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    /// Which value; the table, for keys that are unknown or missing. Filled in by the reader.
    pub(crate) path: Option<Path>,
    /// What is wrong with it.
    pub(crate) what: What,
}

/// What is wrong with a value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum What {
    /// The table has a key that means nothing.
    UnknownKey {
        /// The key.
        key: String,
        /// The keys that mean something.
        choices: Vec<&'static str>,
    },
    /// The table lacks a key that it must have.
    MissingKey(&'static str),
    /// It is of the wrong type, or out of range.
    WrongType {
        /// What was found.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// It is none of the words it may be.
    NotAChoice {
        /// What was found.
        found: String,
        /// What it may be.
        choices: Vec<String>,
    },
    /// It names something that is not there.
    NoSuch {
        /// What sort of thing.
        noun: &'static str,
        /// The name that was found.
        found: String,
        /// The names that are there.
        choices: Vec<String>,
    },
    /// A sentence.
    Said(String),
}

impl Fault {
    /// A mistake in the value at `path`.
    pub(crate) fn at(path: Path, what: What) -> Self {
        Self { path: Some(path), what }
    }

    /// A sentence about the value at `path`.
    pub(crate) fn said(path: Path, sentence: impl Into<String>) -> Self {
        Self::at(path, What::Said(sentence.into()))
    }

    /// The key that it is about, whether that is there or not.
    pub(crate) fn place(&self) -> Path {
        let path = self.path.clone().unwrap_or_default();
        match &self.what {
            What::UnknownKey { key, .. } => path.key(key),
            What::MissingKey(key) => path.key(key),
            _ => path,
        }
    }

    /// Whether it is a sentence that repeats no piece of `secret`.
    pub(super) fn keeps(&self, secret: &str) -> bool {
        matches!(&self.what, What::Said(sentence) if !repeats(sentence, secret))
    }

    /// Notes the value, unless one further down has been noted.
    pub(super) fn or_at(mut self, path: &Path) -> Self {
        self.path.get_or_insert_with(|| path.clone());
        self
    }

    fn new(what: What) -> Self {
        Self { path: None, what }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            What::UnknownKey { key, .. } => write!(f, "unknown key `{}`", clip(key, 60)),
            What::MissingKey(key) => write!(f, "`{key}` is missing"),
            What::WrongType { found, expected } => write!(f, "expected {expected}, found {}", clip(found, 80)),
            What::NotAChoice { found, .. } => write!(f, "{:?} is not one of the choices", clip(found, 60)),
            What::NoSuch { noun, found, .. } => write!(f, "there is no {noun} {:?}", clip(found, 60)),
            What::Said(sentence) => f.write_str(&clip(sentence, 400)),
        }
    }
}

impl std::error::Error for Fault {}

impl Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(What::Said(message.to_string()))
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(What::WrongType { found: found_in_words(found), expected: in_words(&expected.to_string()) })
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn invalid_length(length: usize, expected: &dyn Expected) -> Self {
        let found = format!("{length} of them");
        Self::new(What::WrongType { found, expected: in_words(&expected.to_string()) })
    }

    fn unknown_variant(found: &str, choices: &'static [&'static str]) -> Self {
        let choices = choices.iter().map(|choice| (*choice).to_owned()).collect();
        Self::new(What::NotAChoice { found: found.to_owned(), choices })
    }

    fn unknown_field(key: &str, choices: &'static [&'static str]) -> Self {
        Self::new(What::UnknownKey { key: key.to_owned(), choices: choices.to_vec() })
    }

    fn missing_field(key: &'static str) -> Self {
        Self::new(What::MissingKey(key))
    }

    fn duplicate_field(key: &'static str) -> Self {
        Self::new(What::Said(format!("`{key}` is there twice")))
    }
}

/// Adds what was found in values that were read around `faults`: no more than is not about what is at fault anyway.
pub(crate) fn add_further(faults: &mut Vec<Fault>, further: impl IntoIterator<Item = Fault>) {
    let known: Vec<Path> = faults.iter().map(Fault::place).collect();
    let is_new = |fault: &Fault| {
        let place = fault.place();
        !known.iter().any(|known| known.holds(&place) || place.holds(known))
    };
    faults.extend(further.into_iter().filter(is_new));
}

/// Whether a sentence has a piece of a secret in it, as far as it is more than how all such values begin.
fn repeats(sentence: &str, secret: &str) -> bool {
    /// Bytes that a word of our own may have in common with it.
    const BY_CHANCE: usize = 4;
    let secret = secret.split_once("://").map_or(secret, |(_, rest)| rest).as_bytes();
    let is_in = |text: &[u8], piece: &[u8]| memchr::memmem::find(text, piece).is_some();
    match secret.len() {
        0 => false,
        1..=BY_CHANCE => is_in(sentence.as_bytes(), secret),
        _ => sentence.as_bytes().windows(BY_CHANCE + 1).any(|piece| is_in(secret, piece)),
    }
}

fn found_in_words(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(value) => value.to_string(),
        Unexpected::Unsigned(value) => value.to_string(),
        Unexpected::Signed(value) => value.to_string(),
        Unexpected::Float(value) => value.to_string(),
        Unexpected::Str(text) => format!("the text {:?}", clip(text, 60)),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "a table".to_owned(),
        other => other.to_string(),
    }
}

/// Serde's and Rust's names of types, as people call them.
fn in_words(expected: &str) -> String {
    let range = |least: i128, most: i128| format!("a whole number from {least} to {most}");
    match expected {
        "u8" => range(0, u8::MAX.into()),
        "u16" => range(0, u16::MAX.into()),
        "u32" => range(0, u32::MAX.into()),
        "u64" | "usize" => "a whole number, not negative".to_owned(),
        "i8" => range(i8::MIN.into(), i8::MAX.into()),
        "i16" => range(i16::MIN.into(), i16::MAX.into()),
        "i32" => range(i32::MIN.into(), i32::MAX.into()),
        "i64" | "isize" => "a whole number".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a string" | "string" | "a borrowed string" | "a character" => "text in quotes".to_owned(),
        "a sequence" | "sequence" => "a list".to_owned(),
        "a map" | "map" => "a table".to_owned(),
        other if other.starts_with("struct ") => "a table".to_owned(),
        other => other.to_owned(),
    }
}

/// At most `most` characters of a text, so that no message is longer than the mistake deserves.
pub(crate) fn clip(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::repeats;

    #[test]
    fn a_sentence_that_has_a_piece_of_a_secret_in_it_is_known() {
        let ours = "it must begin with https:// (or http://)";
        assert!(!repeats(ours, "ftp://ops.example/key"));
        assert!(!repeats(ours, "https://"));
        assert!(!repeats(ours, ""));
        assert!(repeats("\"hunter2\" is no URL", "hunter2"));
        assert!(repeats("\"hunter…\" is no URL", "hunter2-and-more"));
        assert!(repeats("ops.example is refused", "https://ops.example/key"));
        assert!(repeats("12 is too short", "12"));
    }
}
