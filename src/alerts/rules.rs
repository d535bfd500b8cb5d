//! Which alerts there are, and what their messages say: pure functions from facts to [`AlertChange`]s.
//!
//! | alert | fires | is resolved |
//! |---|---|---|
//! | `job_failed` | a run failed and no further attempt follows | the job's next success |
//! | `run_missed` | a slot did not run, and nobody chose that | the job's next success |
//! | `dead_letters` | a run succeeded and left dead letters | the next success that leaves none |
//! | `database_away` | the history database cannot be reached | it can be again |
//!
//! A change that is no change does nothing (see [`AlertChange`]), so every success wishes all its job's alerts resolved.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};

use super::words;
use crate::history::{AlertChange, AlertState, MissedCause, RunState, Severity};

/// The finding that counts dead letters, by `dataset` and `reason`.
const DEAD_LETTERS: &str = "dead_letters";
/// So much of an error is in the summary,
const MAX_LINE: usize = 300;
/// and so much in the details.
const MAX_ERROR: usize = 2500;
/// So many datasets are listed.
const MAX_DATASETS: usize = 12;

/// Whom an alert is about, and who is told. (Alerts know nothing of jobs: the runner fills this in.)
#[derive(Debug, Clone)]
pub struct Subject {
    /// The job's name.
    pub job: String,
    /// How bad a failure of it is.
    pub severity: Severity,
    /// Who is told, by receiver name; empty means nobody.
    pub receivers: Vec<String>,
}

/// A run that is over.
#[derive(Debug, Clone)]
pub struct Settled {
    /// What became of it.
    pub state: RunState,
    /// The slot, for scheduled runs.
    pub slot: Option<DateTime<Utc>>,
    /// When its body started.
    pub started_at: DateTime<Utc>,
    /// When it ended or, for a lost run, when that was noticed.
    pub finished_at: DateTime<Utc>,
    /// 1 for the first try of a slot.
    pub attempt: u32,
    /// Attempts in all.
    pub attempts: u32,
    /// Whether another attempt follows: a retry, or a takeover of a lost run. Then nobody is told yet.
    pub again: bool,
    /// Rows moved.
    pub rows: Option<u64>,
    /// What went wrong.
    pub error: Option<String>,
    /// What the run found.
    pub findings: Vec<Found>,
    /// The job's next slot, if it has one.
    pub next_run: Option<DateTime<Utc>>,
}

/// One thing that a run found.
#[derive(Debug, Clone)]
pub struct Found {
    /// What was measured.
    pub name: String,
    /// The value.
    pub value: f64,
    /// What it is about.
    pub labels: Vec<(String, String)>,
}

/// Slots that did not run, for one cause.
#[derive(Debug, Clone)]
pub struct Missed {
    /// Why.
    pub cause: MissedCause,
    /// The first slot.
    pub first: DateTime<Utc>,
    /// The last slot; the first one if there is only one.
    pub last: DateTime<Utc>,
    /// How many.
    pub slots: u32,
    /// When that was noticed.
    pub at: DateTime<Utc>,
    /// The job's next slot, if it has one.
    pub next_run: Option<DateTime<Utc>>,
}

/// The history database is away, or back.
#[derive(Debug, Clone)]
pub struct Outage {
    /// Its name, without user and password.
    pub database: String,
    /// Since when it is, or was, away.
    pub since: DateTime<Utc>,
    /// What it said, without its name.
    pub reason: String,
    /// Whether it is back.
    pub back: bool,
    /// The time now.
    pub at: DateTime<Utc>,
}

/// What a run that is over means for its job's alerts. To be given to the history together with the run's end.
pub fn run_settled(subject: &Subject, run: &Settled) -> Vec<AlertChange> {
    match run.state {
        RunState::Succeeded => succeeded(subject, run),
        RunState::Failed | RunState::TimedOut | RunState::Lost if !run.again => vec![failed(subject, run)],
        // Cancelled and skipped runs say nothing about whether the job works; a missed slot goes to `run_missed`.
        _ => Vec::new(),
    }
}

/// What slots that did not run mean for their job's alerts.
///
/// A paused job's slots were given up by a person, in jobs.toml, and an overlap has a run that is still going: that run
/// will succeed, fail or reach its time limit, and is told about then. Both have their rows in the history and no alert.
pub fn run_missed(subject: &Subject, missed: &Missed) -> Vec<AlertChange> {
    let cause = match missed.cause {
        MissedCause::Paused | MissedCause::Overlap => return Vec::new(),
        MissedCause::Down => "no daemon was running",
        MissedCause::Asleep => "the machine slept, or the process was stopped",
        MissedCause::DatabaseAway => "the history database was away",
        MissedCause::ClockJump => "the machine's clock jumped over it",
    };
    let job = &subject.job;
    let when = words::near(missed.first, missed.at);
    let what = match missed.slots {
        0 | 1 => format!("{job} did not run at {when}"),
        slots => {
            let last = words::near(missed.last, missed.at);
            format!("{job} missed {}, from {when} to {last}", words::count(slots.into(), "run"))
        }
    };
    let mut details = vec![("Cause".to_owned(), cause.to_owned())];
    details.extend(next_run(missed.next_run));
    details.push(("Run it now".to_owned(), format!("lamplighter run {job}")));
    details.push(look_closer(job));
    let summary = format!("{what}: {cause}.{}", next_sentence(missed.next_run, missed.at));
    vec![change(subject, "run_missed", subject.severity, AlertState::Firing, summary, details, missed.at)]
}

/// What an absent history database means. To be delivered without it: [`super::Dispatcher::send_direct`].
pub fn database_away(receivers: &[String], outage: &Outage) -> Vec<AlertChange> {
    let subject = Subject { job: String::new(), severity: Severity::Critical, receivers: receivers.to_vec() };
    let Outage { database, since, reason, back, at } = outage;
    let (state, summary, details) = if *back {
        let away = words::span((*at - *since).to_std().unwrap_or_default());
        let summary = format!("{database} is back after {away}. What was kept meanwhile is being recorded.");
        (AlertState::Resolved, summary, Vec::new())
    } else {
        let summary = format!(
            "{database}, where the run history is kept, cannot be reached since {}: {}. Jobs with when_db_down = \"run\" \
             go on, and their results are kept until it is back; the others wait.",
            words::near(*since, *at),
            words::first_line(reason, MAX_LINE).trim_end_matches('.')
        );
        let details = vec![
            ("Error".to_owned(), words::cut(reason.trim(), MAX_ERROR)),
            ("What to check".to_owned(), "that the database runs, and that DATABASE_URL is right".to_owned()),
        ];
        (AlertState::Firing, summary, details)
    };
    let mut change = change(&subject, "database_away", Severity::Critical, state, summary, details, *at);
    change.labels = BTreeMap::from([("database".to_owned(), database.clone())]);
    change.fingerprint = fingerprint(&change.name, &change.labels);
    vec![change]
}

fn failed(subject: &Subject, run: &Settled) -> AlertChange {
    let job = &subject.job;
    let what = match run.state {
        RunState::TimedOut => "was stopped at its time limit",
        RunState::Lost => "was lost: the process that ran it died",
        _ => "failed",
    };
    let attempt = match (run.attempt, run.attempts) {
        (n, m) if m > 1 && n >= m => format!(" on its last attempt ({n} of {m})"),
        (n, m) if m > 1 => format!(" on attempt {n} of {m}, and no other attempt follows"),
        _ => String::new(),
    };
    let error = run.error.as_deref().map(str::trim).filter(|error| !error.is_empty());
    let line = error.map(|error| format!(": {}", words::first_line(error, MAX_LINE).trim_end_matches('.')));
    let summary =
        format!("{job} {what}{attempt}{}.{}", line.unwrap_or_default(), next_sentence(run.next_run, run.finished_at));
    let mut details = Vec::new();
    details.extend(run.slot.map(|slot| ("Slot".to_owned(), words::instant(slot))));
    details.push(("Attempt".to_owned(), format!("{} of {}", run.attempt, run.attempts.max(run.attempt))));
    details.push(("Started".to_owned(), words::instant(run.started_at)));
    details.push(("Ended".to_owned(), words::instant(run.finished_at)));
    details.extend(next_run(run.next_run));
    details.push(look_closer(job));
    details.extend(error.map(|error| ("Error".to_owned(), words::cut(error, MAX_ERROR))));
    change(subject, "job_failed", subject.severity, AlertState::Firing, summary, details, run.finished_at)
}

fn succeeded(subject: &Subject, run: &Settled) -> Vec<AlertChange> {
    let (job, at) = (&subject.job, run.finished_at);
    let rows = run.rows.map(|rows| format!(" and moved {}", words::count(rows, "row"))).unwrap_or_default();
    let took = words::span((at - run.started_at).to_std().unwrap_or_default());
    let again = format!("{job} succeeded again{rows}, in {took}.{}", next_sentence(run.next_run, at));
    let resolved = |name: &str, severity, summary: String| {
        change(subject, name, severity, AlertState::Resolved, summary, vec![look_closer(job)], at)
    };
    let mut changes =
        vec![resolved("job_failed", subject.severity, again.clone()), resolved("run_missed", subject.severity, again)];
    let letters = dead_letters(&run.findings);
    changes.push(match letters.values().flatten().map(|(_, count)| count).sum::<u64>() {
        0 => {
            let summary = format!(
                "{job} left no new dead letters. Those from before are kept until they are retried or dropped."
            );
            resolved("dead_letters", Severity::Warning, summary)
        }
        total => dead_letters_kept(subject, at, total, &letters),
    });
    changes
}

fn dead_letters_kept(
    subject: &Subject,
    at: DateTime<Utc>,
    total: u64,
    letters: &BTreeMap<String, Vec<(String, u64)>>,
) -> AlertChange {
    let job = &subject.job;
    let list = |reasons: &[(String, u64)]| {
        let reasons = reasons.iter().map(|(reason, count)| format!("{} {reason}", words::thousands(*count)));
        reasons.collect::<Vec<_>>().join(", ")
    };
    let each = letters.iter().map(|(dataset, reasons)| format!("{dataset}: {}", list(reasons))).collect::<Vec<_>>();
    let were = if total == 1 { "was" } else { "were" };
    let summary = format!(
        "{job} succeeded, but {} could not be loaded and {were} kept as {} ({}).",
        words::count(total, "record"),
        if total == 1 { "a dead letter" } else { "dead letters" },
        words::cut(&each.join("; "), MAX_LINE)
    );
    let mut details: Vec<(String, String)> = letters
        .iter()
        .take(MAX_DATASETS)
        .map(|(dataset, reasons)| (dataset.clone(), words::cut(&list(reasons), MAX_LINE)))
        .collect();
    if letters.len() > MAX_DATASETS {
        details.push(("More datasets".to_owned(), (letters.len() - MAX_DATASETS).to_string()));
    }
    details.push(("Look closer".to_owned(), "lamplighter dead-letters list".to_owned()));
    details.push(("Try them again".to_owned(), "lamplighter dead-letters retry --all".to_owned()));
    change(subject, "dead_letters", Severity::Warning, AlertState::Firing, summary, details, at)
}

/// The dead letters of a run: for each dataset its reasons with their counts, the most frequent first.
fn dead_letters(findings: &[Found]) -> BTreeMap<String, Vec<(String, u64)>> {
    let mut counts: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    for found in findings.iter().filter(|found| found.name == DEAD_LETTERS && found.value >= 1.0) {
        let label = |name: &str| found.labels.iter().find(|(label, _)| label == name).map(|(_, value)| value.clone());
        let dataset = label("dataset").filter(|name| !name.is_empty()).unwrap_or_else(|| "no dataset".to_owned());
        let reason = label("reason").unwrap_or_default();
        *counts.entry(dataset).or_default().entry(reason).or_default() += found.value as u64;
    }
    let sorted = |mut reasons: BTreeMap<String, u64>| {
        // A count without a reason is the dataset's sum, and counts only where no reasons are given.
        let sum = reasons.remove("");
        if reasons.is_empty() {
            reasons.extend(sum.map(|sum| ("in all".to_owned(), sum)));
        }
        let mut reasons: Vec<(String, u64)> = reasons.into_iter().collect();
        reasons.sort_by_key(|(_, count)| Reverse(*count));
        reasons
    };
    counts.into_iter().map(|(dataset, reasons)| (dataset, sorted(reasons))).collect()
}

fn change(
    subject: &Subject,
    name: &str,
    severity: Severity,
    state: AlertState,
    summary: String,
    details: Vec<(String, String)>,
    at: DateTime<Utc>,
) -> AlertChange {
    let labels = BTreeMap::from([("job".to_owned(), subject.job.clone())]);
    let receivers = subject.receivers.clone();
    let fingerprint = fingerprint(name, &labels);
    AlertChange { fingerprint, name: name.to_owned(), labels, severity, state, summary, details, receivers, at }
}

/// 16 hexadecimal digits that stay the same for the same name and labels: the alert's identity in the history.
fn fingerprint(name: &str, labels: &BTreeMap<String, String>) -> String {
    let mut hash = Sha256::new();
    // Each text with its length in front, so that no two lists of texts run together.
    for text in std::iter::once(name).chain(labels.iter().flat_map(|(name, value)| [name.as_str(), value.as_str()])) {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text.as_bytes());
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// In full, because the message may be read, or delivered, on another day; the summary says it as people do.
fn next_run(next: Option<DateTime<Utc>>) -> Option<(String, String)> {
    next.map(|next| ("Next run".to_owned(), words::instant(next)))
}

fn next_sentence(next: Option<DateTime<Utc>>, now: DateTime<Utc>) -> String {
    next.map(|next| format!(" Next run {}.", words::near(next, now))).unwrap_or_default()
}

fn look_closer(job: &str) -> (String, String) {
    ("Look closer".to_owned(), format!("lamplighter history {job}"))
}
