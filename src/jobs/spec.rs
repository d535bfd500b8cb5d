//! A `[jobs.NAME]` table: what every job has, whatever its kind.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::registry::Job;
use crate::history::Severity;
pub use crate::schedule::CatchUp;
use crate::schedule::Schedule;

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
