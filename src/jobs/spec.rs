//! A `[jobs.NAME]` table: what every job has, whatever its kind.

mod keys;

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

pub(crate) use self::keys::Defaults;
use self::keys::{JobKeys, Zone};
use super::datasets::Datasets;
use super::registry::{Job, Registry};
use crate::document::{Fault, Reading, Scope, add_further};
use crate::history::Severity;
pub use crate::schedule::CatchUp;
use crate::schedule::Schedule;
use crate::units::Span;

/// The keys that every `[jobs.NAME]` table may have, whatever its kind. A kind cannot use them for itself.
pub(super) const COMMON_KEYS: &[&str] = &[
    "kind",
    "schedule",
    "every",
    "timezone",
    "timeout",
    "retry",
    "overlap",
    "catch_up",
    "catch_up_window",
    "on_crash",
    "when_db_down",
    "notify",
    "severity",
    "paused",
];

/// A job, checked and ready to run.
#[derive(Clone)]
pub struct JobSpec {
    /// The name in `[jobs.NAME]`.
    pub name: String,
    /// When it runs; `None` if only by hand.
    pub schedule: Option<Schedule>,
    /// Time limit of one attempt.
    pub timeout: Duration,
    /// What happens after a failure.
    pub retry: Retry,
    /// What happens when a slot comes while the run before it is going.
    pub overlap: Overlap,
    /// What happens to slots that were missed.
    pub catch_up: CatchUp,
    /// Slots older than this are not caught up.
    pub catch_up_window: Duration,
    /// What happens to a run whose process died.
    pub on_crash: OnCrash,
    /// What happens when the history database is away.
    pub when_db_down: WhenDbDown,
    /// Who is told, by receiver name.
    pub notify: Vec<String>,
    /// How bad a failure is.
    pub severity: Severity,
    /// Slots pass without a run, and are recorded as missed.
    pub paused: bool,
    /// The kind with its parameters.
    pub job: Arc<dyn Job>,
}

impl JobSpec {
    /// Reads a `[jobs.NAME]` table. `notify` is who is told where neither the job nor `[defaults]` says so.
    pub(crate) fn read(
        name: &str,
        table: &Reading<'_>,
        defaults: &Defaults,
        kinds: &Registry,
        datasets: &Datasets,
        notify: &[String],
    ) -> Result<Self, Vec<Fault>> {
        let (keys, mut faults) = table.read_around::<JobKeys>(Scope::Known);
        let (job, found) = kinds.read(table);
        faults.extend(found);
        if table.table.contains_key("schedule") && table.table.contains_key("every") {
            let sentence = "a job has either `schedule` (a cron line) or `every` (a period), not both";
            faults.push(Fault::said(table.path.key("every"), sentence));
        }
        let (Some(keys), Some(job)) = (keys, job) else { return Err(faults) };

        let mut further = Vec::new();
        let Zone(tz) = keys.timezone.or(defaults.timezone).unwrap_or(Zone(chrono_tz::Tz::UTC));
        let schedule = match (keys.schedule, keys.every) {
            (Some(line), _) => Schedule::cron(&line.0, tz)
                .map_err(|sentence| {
                    let hidden = table.table["schedule"].node.hides();
                    let sentence = if hidden { format!("this cron line is refused in {tz}") } else { sentence };
                    further.push(Fault::said(table.path.key("schedule"), sentence));
                })
                .ok(),
            (None, Some(period)) => Some(period.0),
            (None, None) => None,
        };
        let retry = keys.retry.over(defaults.retry);
        let longest = table.path.key("retry").key("max_backoff");
        if retry.backoff > retry.max_backoff && faults.iter().all(|fault| fault.place() != longest) {
            let (backoff, longest) = (Span(retry.backoff), Span(retry.max_backoff));
            let sentence = format!("{backoff} is longer than `retry.max_backoff`, which is {longest}");
            further.push(Fault::said(table.path.key("retry").key("backoff"), sentence));
        }
        let sentences = job.validate(datasets).into_iter();
        further.extend(sentences.map(|(key, sentence)| Fault::said(table.path.key(key), sentence)));
        add_further(&mut faults, further);
        if !faults.is_empty() {
            return Err(faults);
        }

        let day = Duration::from_secs(86_400);
        Ok(Self {
            name: name.to_owned(),
            schedule,
            timeout: keys.timeout.or(defaults.timeout).map_or_else(|| job.default_timeout(), |timeout| timeout.0),
            retry,
            overlap: keys.overlap.or(defaults.overlap).unwrap_or_default(),
            catch_up: keys.catch_up.or(defaults.catch_up).unwrap_or_default(),
            catch_up_window: keys.catch_up_window.or(defaults.catch_up_window).map_or(day, |window| window.0),
            on_crash: keys.on_crash.or(defaults.on_crash).unwrap_or_default(),
            when_db_down: keys.when_db_down.or(defaults.when_db_down).unwrap_or_default(),
            notify: keys.notify.or_else(|| defaults.notify.clone()).unwrap_or_else(|| notify.to_vec()),
            severity: keys.severity.or(defaults.severity).unwrap_or(Severity::Warning),
            paused: keys.paused,
            job,
        })
    }
}

/// How often and how fast a failed run is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Attempts in all; 1 means none after the first.
    pub attempts: u32,
    /// The wait before the second attempt; it doubles with each one, plus or minus a random quarter.
    pub backoff: Duration,
    /// The longest wait.
    pub max_backoff: Duration,
}

/// What happens when a slot comes while the run before it is going.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Overlap {
    /// The slot is recorded as missed.
    #[default]
    Skip,
    /// The slot waits for the run to end; of several that wait, all run, in order.
    Queue,
    /// Both run.
    Allow,
}

/// What happens to a run whose process died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnCrash {
    /// It is run again, as the next attempt.
    #[default]
    Rerun,
    /// It has failed.
    Fail,
}

/// What happens when the history database is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenDbDown {
    /// The job runs; its result is kept and recorded when the database is back.
    #[default]
    Run,
    /// The slot waits for the database, within the catch-up window.
    Wait,
}
