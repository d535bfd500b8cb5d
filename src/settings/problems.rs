//! Mistakes as people read them: where, what was found, what is allowed, what was probably meant. Never a secret.

use std::fmt;
use std::ops::Range;

use serde::Serialize;

use super::masking;
use crate::document::{Fault, Origin, Path, Step, SyntaxError, Table, What, clip};
use crate::units::nearest;

/// Problems that are shown; whoever has more will come back anyway.
const MOST_SHOWN: usize = 100;

/// Characters of a source line that are shown.
const LINE_WIDTH: usize = 120;

/// Everything that is wrong with the settings. Nothing starts until it is empty.
#[derive(Debug, Clone, Serialize)]
pub struct Problems {
    problems: Vec<Problem>,
}

/// One mistake in the settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file it is in, unless it is in a variable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Its line, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// Its column in characters, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<usize>,
    /// The environment variables it is in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub variables: Vec<String>,
    /// The key, such as `jobs.nightly-upload.timeout`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// What was found, in a sentence.
    pub message: String,
    /// What is allowed, or what would cure it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed: Option<String>,
    /// What was probably meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub did_you_mean: Option<String>,
    #[serde(skip)]
    snippet: Option<Snippet>,
}

/// The source line, with its secrets blotted out, and the characters of it that are wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Snippet {
    line: String,
    wrong: Range<usize>,
}

/// A settings file: its name and its text, and what of it must not be shown.
pub(super) struct Source<'a> {
    name: &'a str,
    text: &'a str,
    lines: Vec<usize>,
    secrets: Vec<Range<usize>>,
}

impl<'a> Source<'a> {
    pub(super) fn new(name: &'a str, text: &'a str) -> Self {
        let after_breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self { name, text, lines: std::iter::once(0).chain(after_breaks).collect(), secrets: Vec::new() }
    }

    /// Notes the places that must not be shown, in order.
    pub(super) fn hide(&mut self, secrets: Vec<Range<usize>>) {
        self.secrets = secrets;
    }
}

impl Problems {
    /// Sorts problems by their place: the file from top to bottom, then variables.
    pub(super) fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort_by(|a, b| {
            let place = |p: &Problem| (p.line.is_none(), p.line, p.column, p.variables.clone(), p.path.clone());
            place(a).cmp(&place(b))
        });
        problems.dedup();
        Self { problems }
    }

    /// The problems, in the order of their places.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Problem> {
        self.problems.iter()
    }
}

impl From<Box<Problem>> for Problems {
    fn from(problem: Box<Problem>) -> Self {
        Self::new(vec![*problem])
    }
}

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in self.problems.iter().take(MOST_SHOWN) {
            writeln!(f, "{problem}")?;
        }
        if let Some(more) = self.problems.len().checked_sub(MOST_SHOWN).filter(|more| *more > 0) {
            writeln!(f, "… and {more} more.\n")?;
        }
        match self.problems.len() {
            1 => write!(f, "1 mistake in the settings; nothing was started."),
            count => write!(f, "{count} mistakes in the settings; nothing was started."),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "error: {}", printable(&self.message))?;
        let gutter = self.line.map_or(1, |line| line.to_string().len());
        let indent = " ".repeat(gutter);
        let key = if self.path.is_empty() { String::new() } else { format!("  ({})", printable(&self.path)) };
        match (&self.file, self.line) {
            (Some(file), Some(line)) => writeln!(f, "{indent}--> {file}:{line}:{}{key}", self.column.unwrap_or(1))?,
            (Some(file), None) => writeln!(f, "{indent}--> {file}{key}")?,
            (None, _) if !self.variables.is_empty() => {
                let noun = if self.variables.len() == 1 { "variable" } else { "variables" };
                writeln!(f, "{indent}--> {noun} {}{key}", self.variables.join(", "))?;
            }
            (None, _) => {}
        }
        if let (Some(snippet), Some(line)) = (&self.snippet, self.line) {
            let before = " ".repeat(snippet.wrong.start);
            let carets = "^".repeat(snippet.wrong.len().max(1));
            writeln!(f, "{indent} |\n{line} | {}\n{indent} | {before}{carets}", snippet.line)?;
        }
        if let Some(meant) = &self.did_you_mean {
            writeln!(f, "{indent} = did you mean {}?", printable(meant))?;
        }
        if let Some(allowed) = &self.allowed {
            writeln!(f, "{indent} = {}", printable(allowed))?;
        }
        Ok(())
    }
}

impl Problem {
    /// A problem with a file as a whole.
    pub(super) fn file(file: &str, message: impl Into<String>, cure: &str) -> Self {
        Self { file: Some(file.to_owned()), allowed: Some(cure.to_owned()), ..Self::say(message.into()) }
    }

    /// A problem with environment variables.
    pub(super) fn variables(names: &[&str], message: impl Into<String>, cure: &str) -> Self {
        let variables = names.iter().map(|name| (*name).to_owned()).collect();
        Self { variables, allowed: Some(cure.to_owned()), ..Self::say(message.into()) }
    }

    /// A place where the file is not TOML.
    pub(super) fn syntax(source: &Source<'_>, error: &SyntaxError) -> Self {
        let mut problem = Self::say(format!("this is not TOML: {}", clip(&error.message, 200)));
        problem.point(source, &error.span, |line, part| masking::of_broken_line(source.text, line, part));
        problem
    }

    /// A mistake that was found in the document.
    pub(super) fn fault(source: &Source<'_>, root: &Table, fault: &Fault) -> Self {
        let path = fault.path.clone().unwrap_or_default();
        let (message, allowed, did_you_mean) = in_words(&path, &fault.what);
        let full = fault.place();
        let mut problem = Self { path: full.to_string(), allowed, did_you_mean, ..Self::say(message) };
        // A missing key is shown where its table begins, everything else where it is written.
        let (found, whole) = full.find(root);
        match found {
            Some((key, node)) => {
                let at_key = matches!(fault.what, What::UnknownKey { .. } | What::MissingKey(_)) || !whole;
                let origin = if at_key || (node.table().is_some() && *key != node.origin) { key } else { &node.origin };
                match origin {
                    Origin::Variable(name) => problem.variables = vec![name.clone()],
                    Origin::File(span) => {
                        problem.point(source, span, |_, part| masking::of_line(source.text, &source.secrets, part))
                    }
                }
            }
            None => problem.file = Some(source.name.to_owned()),
        }
        problem
    }

    fn say(message: String) -> Self {
        Self {
            file: None,
            line: None,
            column: None,
            variables: Vec::new(),
            path: String::new(),
            message,
            allowed: None,
            did_you_mean: None,
            snippet: None,
        }
    }

    /// Notes the place, and shows part of its line as `mask` lets it through (it is given the ranges of line and part).
    fn point(
        &mut self,
        source: &Source<'_>,
        span: &Range<usize>,
        mask: impl FnOnce(Range<usize>, Range<usize>) -> String,
    ) {
        let text = source.text;
        let mut at = span.start.min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        let number = source.lines.partition_point(|start| *start <= at);
        let start = source.lines[number - 1];
        let end = source.lines.get(number).map_or(text.len(), |next| next - 1);
        let line = start..end;
        let column = text[start..at].chars().count();
        let wrong = text.get(at..span.end.clamp(at, end)).map_or(1, |wrong| wrong.chars().count()).max(1);
        (self.file, self.line, self.column) = (Some(source.name.to_owned()), Some(number), Some(column + 1));

        // Of a long line, the part around the mistake.
        let first = if column + wrong > LINE_WIDTH { column.saturating_sub(LINE_WIDTH / 4) } else { 0 };
        let byte = |characters: usize, from: usize| {
            text[from..end].char_indices().nth(characters).map_or(end, |(offset, _)| from + offset)
        };
        let part_start = byte(first, start);
        let part = part_start..byte(LINE_WIDTH, part_start);
        let shown = printable(mask(line, part).trim_end());
        let begin = column - first;
        self.snippet = Some(Snippet { line: shown, wrong: begin..(begin + wrong).min(LINE_WIDTH).max(begin + 1) });
    }
}

/// What is wrong, what is allowed, and what was probably meant.
fn in_words(path: &Path, what: &What) -> (String, Option<String>, Option<String>) {
    let name = subject(path);
    match what {
        What::UnknownKey { key, choices } => {
            let message = if path.0.is_empty() {
                format!("unknown section `{}`", clip(key, 60))
            } else {
                format!("unknown key `{}`", clip(key, 60))
            };
            let meant = nearest(key, choices.iter().copied()).map(|choice| format!("`{choice}`"));
            (message, Some(format!("allowed: {}", choices.join(", "))), meant)
        }
        What::MissingKey(key) => (format!("`{key}` is missing in [{path}]"), None, None),
        What::WrongType { found, expected } => {
            (format!("{name} should be {expected}, found {}", clip(found, 80)), None, None)
        }
        What::NotAChoice { found, choices } => {
            let allowed = match choices.len() {
                0 => "there is nothing to choose from yet".to_owned(),
                1..=40 => format!("allowed: {}", choices.join(", ")),
                _ => "allowed: the names of the IANA time zone database, such as UTC or Europe/Berlin".to_owned(),
            };
            let meant = nearest(found, choices.iter().map(String::as_str)).map(|choice| format!("{choice:?}"));
            (format!("{name} cannot be {:?}", clip(found, 60)), Some(allowed), meant)
        }
        What::NoSuch { noun, found, choices } => {
            let allowed = match choices.len() {
                0 => format!("no [{noun}s.NAME] is configured"),
                _ => format!("configured: {}", choices.join(", ")),
            };
            let meant = nearest(found, choices.iter().map(String::as_str)).map(|choice| format!("{choice:?}"));
            (format!("there is no {noun} {:?}", clip(found, 60)), Some(allowed), meant)
        }
        What::Said(sentence) => (format!("{name}: {}", clip(sentence, 400)), None, None),
    }
}

/// The last key of a path, with the position in a list.
fn subject(path: &Path) -> String {
    let from = path.0.iter().rposition(|step| matches!(step, Step::Key(_))).unwrap_or(0);
    format!("`{}`", Path(path.0[from..].to_vec()))
}

/// Text that cannot play tricks on a terminal.
fn printable(text: &str) -> String {
    let tricks = |c: char| {
        c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars()
        .map(|c| {
            if c == '\t' {
                ' '
            } else if tricks(c) {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}
