//! Tables that people like to read.

use chrono::{DateTime, Utc};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Cell, CellAlignment, ColumnConstraint, ContentArrangement, Table};

use super::output::{Output, Paint};
use super::times::{duration, instant, number, relative};
use crate::history::{Alert, AlertState, DeadLetter, DeadLetterCount, Message, MessageState, Run, RunState, Severity};
use crate::units::Size;

/// What is left of a text in a table's last column.
const MAX_TEXT: usize = 120;

/// A table under construction: headings, rows, and which words of one column are coloured.
struct Sheet {
    table: Table,
    painted: Vec<(String, Paint)>,
}

impl Sheet {
    fn new(out: &Output, headings: &[&str]) -> Self {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_width(out.width).set_header(headings.iter().map(Cell::new));
        Self { table, painted: Vec::new() }
    }

    fn row(&mut self, cells: Vec<Cell>) {
        self.table.add_row(cells);
    }

    fn paint(&mut self, word: &str, paint: Paint) {
        if !self.painted.iter().any(|(painted, _)| painted == word) {
            self.painted.push((word.to_owned(), paint));
        }
    }

    /// The text. Colours are put in last, because a table that measures its cells must not see them.
    fn finish(mut self, out: &Output) -> String {
        // The first column is what people copy: a name or an id, which stays in one piece however narrow the terminal is.
        if let Some(column) = self.table.column_mut(0) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
        let mut text = self.table.to_string();
        for (word, paint) in self.painted {
            let (cell, coloured) = (format!(" {word} "), format!(" {} ", out.paint(paint, &word)));
            let lines = text.lines().map(|line| line.replacen(&cell, &coloured, 1));
            text = lines.collect::<Vec<_>>().join("\n");
        }
        text
    }
}

fn right(text: impl ToString) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

/// Runs, newest first.
pub(super) fn runs(out: &Output, runs: &[Run], now: DateTime<Utc>) -> String {
    let headings = ["Job", "State", "When (UTC)", "", "Took", "Rows", "Try", "Why", "What happened"];
    let mut sheet = Sheet::new(out, &headings);
    for run in runs {
        let when = run.started_at.or(run.slot).unwrap_or(run.created_at);
        sheet.paint(run.state.as_str(), run_paint(run.state));
        sheet.row(vec![
            Cell::new(&run.job),
            Cell::new(run.state),
            Cell::new(instant(when)),
            Cell::new(relative(when, now)),
            right(run.duration_ms.map(duration).unwrap_or_default()),
            right(run.rows.map(number).unwrap_or_default()),
            right(run.attempt),
            Cell::new(run.trigger.as_str().replace('_', "-")),
            Cell::new(what_happened(run)),
        ]);
    }
    sheet.finish(out)
}

/// The colour of a state.
pub(super) fn run_paint(state: RunState) -> Paint {
    match state {
        RunState::Succeeded => Paint::Good,
        RunState::Failed | RunState::TimedOut | RunState::Lost => Paint::Bad,
        RunState::Missed | RunState::Cancelled => Paint::Warn,
        RunState::Running => Paint::Strong,
        RunState::Skipped => Paint::Faint,
    }
}

/// One line about a run: its error, why it was missed, or which of its findings breached a limit.
pub(super) fn what_happened(run: &Run) -> String {
    // Findings of one name differ in what they are about; in one line their sum will do.
    let mut breached: Vec<(&str, f64)> = Vec::new();
    for finding in run.findings.as_array().into_iter().flatten().filter(|finding| finding["breached"] == true) {
        let (name, value) = (finding["name"].as_str().unwrap_or("?"), finding["value"].as_f64().unwrap_or(0.0));
        match breached.iter_mut().find(|(other, _)| *other == name) {
            Some((_, sum)) => *sum += value,
            None => breached.push((name, value)),
        }
    }
    let breached = breached.iter().map(|(name, value)| {
        let name = if *value == 1.0 { name.strip_suffix('s').unwrap_or(name) } else { name };
        format!("{value} {}", name.replace('_', " "))
    });
    let cause = run.cause.map(|cause| cause.as_str().replace('_', " "));
    let parts = [cause, run.error.clone()].into_iter().flatten().chain(breached);
    shorten(&parts.collect::<Vec<_>>().join("; "), MAX_TEXT)
}

/// Dead letters, oldest first.
pub(super) fn dead_letters(out: &Output, letters: &[DeadLetter], now: DateTime<Utc>) -> String {
    // Seven columns on a narrow terminal would break every word.
    let narrow = out.width < 120;
    let headings: &[&str] = if narrow {
        &["Id", "Reason", "Record"]
    } else {
        &["Id", "Dataset", "Key", "Size", "Kept", "Reason", "Detail"]
    };
    let mut sheet = Sheet::new(out, headings);
    for letter in letters {
        let key =
            if letter.key.is_empty() { String::from_utf8_lossy(&letter.entry) } else { letter.key.as_str().into() };
        let key = shorten(&key, 48);
        let dataset = if letter.dataset.is_empty() { "-" } else { &letter.dataset };
        let detail = shorten(&letter.detail, MAX_TEXT);
        sheet.row(if narrow {
            vec![Cell::new(&letter.id), Cell::new(&letter.reason), Cell::new(format!("{dataset}: {key}\n{detail}"))]
        } else {
            vec![
                Cell::new(&letter.id),
                Cell::new(dataset),
                Cell::new(key),
                right(letter.size_bytes.map(|size| Size(size).to_string()).unwrap_or_default()),
                Cell::new(relative(letter.created_at, now)),
                Cell::new(&letter.reason),
                Cell::new(detail),
            ]
        });
    }
    sheet.finish(out)
}

/// How many dead letters there are for each dataset and reason.
pub(super) fn dead_letter_counts(out: &Output, counts: &[DeadLetterCount], now: DateTime<Utc>) -> String {
    let mut sheet = Sheet::new(out, &["Dataset", "Reason", "Dead letters", "Oldest"]);
    for count in counts {
        sheet.row(vec![
            Cell::new(if count.dataset.is_empty() { "-" } else { &count.dataset }),
            Cell::new(&count.reason),
            right(number(count.count)),
            Cell::new(relative(count.oldest, now)),
        ]);
    }
    sheet.finish(out)
}

/// Alerts, firing ones first.
pub(super) fn alerts(out: &Output, alerts: &[Alert], now: DateTime<Utc>) -> String {
    let mut sheet = Sheet::new(out, &["State", "Severity", "Alert", "About", "Since (UTC)", "", "Summary"]);
    for alert in alerts {
        let paint = if alert.state == AlertState::Firing { Paint::Bad } else { Paint::Good };
        sheet.paint(alert.state.as_str(), paint);
        let when = alert.ends_at.filter(|_| alert.state == AlertState::Resolved).unwrap_or(alert.starts_at);
        let about: Vec<String> = alert.labels.iter().map(|(label, value)| format!("{label}={value}")).collect();
        sheet.row(vec![
            Cell::new(alert.state),
            Cell::new(severity(alert.severity)),
            Cell::new(&alert.name),
            Cell::new(about.join(" ")),
            Cell::new(instant(when)),
            Cell::new(relative(when, now)),
            Cell::new(shorten(&alert.summary, MAX_TEXT)),
        ]);
    }
    sheet.finish(out)
}

fn severity(severity: Severity) -> &'static str {
    severity.as_str()
}

/// Messages, newest first.
pub(super) fn messages(out: &Output, messages: &[Message], now: DateTime<Utc>) -> String {
    let mut sheet = Sheet::new(out, &["State", "Receiver", "Tries", "Queued (UTC)", "", "Says", "Last error"]);
    for message in messages {
        let paint = match message.state {
            MessageState::Sent => Paint::Good,
            MessageState::Dead => Paint::Bad,
            MessageState::Queued | MessageState::Leased => Paint::Warn,
            MessageState::Superseded => Paint::Faint,
        };
        sheet.paint(message.state.as_str(), paint);
        sheet.row(vec![
            Cell::new(message.state),
            Cell::new(&message.receiver),
            right(message.attempts),
            Cell::new(instant(message.created_at)),
            Cell::new(relative(message.created_at, now)),
            Cell::new(shorten(&format!("{}: {}", message.notice.state, message.notice.summary), MAX_TEXT)),
            Cell::new(shorten(message.last_error.as_deref().unwrap_or_default(), 80)),
        ]);
    }
    sheet.finish(out)
}

/// A plain table.
pub(super) fn plain(out: &Output, headings: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut sheet = Sheet::new(out, headings);
    for row in rows {
        let cell = |text: &String| {
            let numeric = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit() || c == ',');
            if numeric { right(text) } else { Cell::new(text) }
        };
        sheet.row(row.iter().map(cell).collect());
    }
    sheet.finish(out)
}

/// At most `most` characters, on one line; `…` says that there was more.
pub(super) fn shorten(text: &str, most: usize) -> String {
    let one_line = tame(text).split_whitespace().collect::<Vec<_>>().join(" ");
    if one_line.chars().count() <= most {
        return one_line;
    }
    let mut cut: String = one_line.chars().take(most.saturating_sub(1)).collect();
    cut.truncate(cut.trim_end().len());
    cut.push('…');
    cut
}

/// Text that others wrote, such as a key, without what could steer a terminal.
pub(super) fn tame(text: &str) -> String {
    text.replace(|letter: char| letter.is_control() && !matches!(letter, '\n' | '\t'), "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_cannot_steer_the_terminal() {
        assert_eq!(tame("tx:\u{1b}[31mred\u{7}\r\n\tend"), "tx:\u{fffd}[31mred\u{fffd}\u{fffd}\n\tend");
        assert_eq!(shorten("tx:\u{1b}]0;x\u{9c}", 48), "tx:\u{fffd}]0;x\u{fffd}");
    }

    #[test]
    fn wide_errors_are_cut_and_lie_on_one_line() {
        assert_eq!(shorten("a\n  b", 10), "a b");
        assert_eq!(shorten("abcdefghij", 5), "abcd…");
        assert_eq!(shorten("abc defghij", 5), "abc…");
    }

    #[test]
    fn ids_stay_in_one_piece_on_a_narrow_terminal() {
        let now: DateTime<Utc> = "2026-11-21T02:00:00Z".parse().unwrap();
        let letter = DeadLetter {
            id: "01M7ZHAZFMCMT99GRDS8B811PV".to_owned(),
            dataset: "transactions".to_owned(),
            database: 0,
            queue: "upload_queue".to_owned(),
            batch: "b".to_owned(),
            entry: b"tx:1".to_vec(),
            key: "tx:2025-11-20-customer-2-abcdefghijkl".to_owned(),
            reason: "schema".to_owned(),
            detail: "field `_timestamp` is missing, and it is the row's _timestamp".to_owned(),
            body: None,
            size_bytes: Some(243),
            created_at: now,
        };
        for width in [80, 200] {
            let table = dead_letters(
                &Output { json: false, colour: false, watched: false, width },
                std::slice::from_ref(&letter),
                now,
            );
            assert!(table.contains(&letter.id) && table.contains("_timestamp"), "{table}");
            assert!(table.lines().all(|line| line.chars().count() <= usize::from(width)), "{table}");
        }
    }

    #[test]
    fn colours_do_not_change_the_shape_of_a_table() {
        let out = Output { json: false, colour: false, watched: false, width: 80 };
        let draw = |out: &Output| {
            let mut sheet = Sheet::new(out, &["Job", "State"]);
            sheet.paint("failed", Paint::Bad);
            sheet.row(vec![Cell::new("nightly-upload"), Cell::new("failed")]);
            sheet.finish(out)
        };
        let coloured = draw(&Output { colour: true, ..out });
        assert!(coloured.contains("\u{1b}[31mfailed\u{1b}[0m"), "{coloured}");
        assert_eq!(coloured.replace("\u{1b}[31m", "").replace("\u{1b}[0m", ""), draw(&out));
    }
}
