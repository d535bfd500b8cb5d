//! Where commands write: standard output for what was asked for, standard error for remarks, and nobody is hurt when the
//! reader of a pipe goes away early.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;

use serde::Serialize;

/// How wide a table may get where no terminal tells.
const WIDTH_WITHOUT_TERMINAL: u16 = 160;

/// The place where a command writes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    /// Write JSON instead of text for people.
    pub(super) json: bool,
    /// Colour words: a terminal is listening, and nobody asked for none (<https://no-color.org>).
    pub(super) colour: bool,
    /// Somebody watches the standard error on a terminal: progress bars make sense.
    pub(super) watched: bool,
    /// Columns that a table may take.
    pub(super) width: u16,
}

/// Colours by what they mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Paint {
    Good,
    Bad,
    Warn,
    Faint,
    Strong,
}

impl Output {
    /// Looks at the terminal and the environment.
    pub(super) fn new(json: bool) -> Self {
        let terminal = io::stdout().is_terminal();
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let width = terminal_size::terminal_size().map_or(WIDTH_WITHOUT_TERMINAL, |(width, _)| width.0.max(60));
        Self { json, colour: terminal && !no_colour && !dumb, watched: io::stderr().is_terminal(), width }
    }

    /// Writes a line to the standard output.
    pub(super) fn line(&self, text: impl Display) {
        note(write_to(io::stdout().lock(), &format!("{text}\n")));
    }

    /// Writes a value as one JSON document.
    pub(super) fn json(&self, value: &impl Serialize) {
        let text = serde_json::to_string_pretty(value).expect("our rows are plain data with text keys");
        self.line(text);
    }

    /// Writes a remark that is no part of the answer to the standard error.
    pub(super) fn remark(&self, text: impl Display) {
        // There is nobody left to tell if this fails.
        drop(write_to(io::stderr().lock(), &format!("{text}\n")));
    }

    /// Writes bytes as they are.
    pub(super) fn bytes(&self, bytes: &[u8]) {
        let mut out = io::stdout().lock();
        note(out.write_all(bytes).and_then(|()| out.flush()));
    }

    /// The text in its colour, if colours are on.
    pub(super) fn paint(&self, paint: Paint, text: &str) -> String {
        let code = match paint {
            Paint::Good => "32",
            Paint::Bad => "31",
            Paint::Warn => "33",
            Paint::Faint => "2",
            Paint::Strong => "1",
        };
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

fn write_to(mut out: impl Write, text: &str) -> io::Result<()> {
    out.write_all(text.as_bytes()).and_then(|()| out.flush())
}

/// `lamplighter history | head` closes the pipe early: that is no error of ours. Any other failure (a full disk, say) is, and
/// the exit code tells: `dead-letters export > file && dead-letters drop --all` must not go on after half a file.
fn note(written: io::Result<()>) {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            FAILED.get_or_init(|| error.to_string());
        }
        _ => {}
    }
}

/// Why the first write that failed did.
static FAILED: OnceLock<String> = OnceLock::new();

/// Why the output is not complete; `None` if it is.
pub(super) fn failed() -> Option<&'static str> {
    FAILED.get().map(String::as_str)
}

/// The error as people read it: one line, whatever it is made of.
pub(super) fn complain(text: &str) {
    drop(write_to(io::stderr().lock(), &format!("lamplighter: {text}\n")));
}
