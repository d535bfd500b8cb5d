//! The rows of the history database, as Rust sees them.

use std::collections::BTreeMap;

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// Defines an enum that is stored and shown as one lower-case word per variant.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name { $($(#[$vmeta])* #[serde(rename = $word)] $variant),+ }

        impl $name {
            /// Every variant, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word that is stored and shown.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;
            fn from_str(word: &str) -> Result<Self, String> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    other => Err(format!("{other:?} is none of: {}", [$($word),+].join(", "))),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

words! {
    /// What became of a run.
    RunState {
        /// It is being carried out.
        Running = "running",
        /// It did its work.
        Succeeded = "succeeded",
        /// It ended with an error or a panic.
        Failed = "failed",
        /// It was stopped at its time limit.
        TimedOut = "timed_out",
        /// It was stopped because the daemon was.
        Cancelled = "cancelled",
        /// The job itself found that there was nothing to do.
        Skipped = "skipped",
        /// It never started; the cause says why.
        Missed = "missed",
        /// Its process died.
        Lost = "lost",
    }
}

words! {
    /// Why a run was started.
    Trigger {
        /// Its slot came.
        Schedule = "schedule",
        /// A person asked for it.
        Manual = "manual",
        /// Its slot had been missed.
        CatchUp = "catch_up",
        /// The attempt before it failed.
        Retry = "retry",
        /// The process that ran it died.
        Takeover = "takeover",
    }
}

words! {
    /// Why a slot did not run.
    MissedCause {
        /// No daemon was running.
        Down = "down",
        /// The job is paused in jobs.toml.
        Paused = "paused",
        /// The machine slept, or the process was stopped.
        Asleep = "asleep",
        /// The run before it was still going.
        Overlap = "overlap",
        /// The history database was away and the job waits for it.
        DatabaseAway = "database_away",
        /// The wall clock jumped over it.
        ClockJump = "clock_jump",
    }
}

words! {
    /// Whether an alert holds now.
    AlertState {
        /// Something is wrong.
        Firing = "firing",
        /// It is right again.
        Resolved = "resolved",
    }
}

words! {
    /// How bad it is.
    Severity {
        /// Worth knowing.
        Info = "info",
        /// Needs a look in working hours.
        Warning = "warning",
        /// Needs a look now.
        Critical = "critical",
    }
}

words! {
    /// What became of a message.
    MessageState {
        /// It waits to be sent, perhaps for another try.
        Queued = "queued",
        /// A replica is sending it.
        Leased = "leased",
        /// The receiver took it.
        Sent = "sent",
        /// It was given up; the error says why.
        Dead = "dead",
        /// It was merged into a newer one before it could be sent.
        Superseded = "superseded",
    }
}

/// A job as configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JobRow {
    /// The name in `[jobs.NAME]`.
    pub name: String,
    /// The kind's word.
    pub kind: String,
    /// The cron line or interval, as written; `None` for a job that only runs by hand or after another.
    pub schedule: Option<String>,
    /// The IANA zone of the schedule.
    pub timezone: String,
}

/// A run that somebody wants to start.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// The run's ULID.
    pub id: String,
    /// The job.
    pub job: String,
    /// The slot, for scheduled runs.
    pub slot: Option<DateTime<Utc>>,
    /// 1 for the first try of a slot.
    pub attempt: u32,
    /// Why.
    pub trigger: Trigger,
    /// Whether no other run of the job may be running.
    pub exclusive: bool,
    /// The process that claims it: unique for each start of the program.
    pub owner: String,
    /// The machine.
    pub host: String,
    /// The program's version.
    pub version: String,
    /// When its body starts (the slot may lie a little ahead of the claim).
    pub started_at: DateTime<Utc>,
    /// How long the claim lasts without a heartbeat.
    pub lease: Duration,
}

/// The answer to a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// It is ours and recorded as running.
    Won,
    /// This (job, slot, attempt) has a row already: another replica has it.
    Taken,
    /// Another run of the job is going, by this run's id.
    Busy(String),
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct RunEnd {
    /// The state; not `running`.
    pub state: RunState,
    /// When its body started.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: DateTime<Utc>,
    /// Rows moved, for kinds that move rows.
    pub rows: Option<u64>,
    /// What went wrong, or why it was skipped.
    pub error: Option<String>,
    /// What the job found: a JSON list of findings.
    pub findings: serde_json::Value,
}

/// A run, or a slot that did not run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Run {
    /// Its ULID.
    pub id: String,
    /// The job.
    pub job: String,
    /// The slot, for scheduled runs.
    pub slot: Option<DateTime<Utc>>,
    /// 1 for the first try of a slot.
    pub attempt: u32,
    /// Why it was started.
    pub trigger: Trigger,
    /// What became of it.
    pub state: RunState,
    /// Why it did not run, in state `missed`.
    pub cause: Option<MissedCause>,
    /// How many slots this row stands for: more than one where a long outage missed many.
    pub slots: u32,
    /// The process that ran it.
    pub owner: String,
    /// Its machine.
    pub host: String,
    /// Its version.
    pub version: String,
    /// When it was claimed or, for a missed slot, recorded.
    pub created_at: DateTime<Utc>,
    /// When its body started.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// From start to end, in milliseconds.
    pub duration_ms: Option<u64>,
    /// Rows moved.
    pub rows: Option<u64>,
    /// What went wrong, or why it was skipped.
    pub error: Option<String>,
    /// What the job found: a JSON list.
    pub findings: serde_json::Value,
}

/// Which runs to list.
#[derive(Debug, Clone, Default)]
pub struct RunFilter {
    /// Only this job's.
    pub job: Option<String>,
    /// Only in these states; empty means all.
    pub states: Vec<RunState>,
    /// Only runs created at or after this instant.
    pub since: Option<DateTime<Utc>>,
    /// At most this many.
    pub limit: u32,
}

/// A wish: this alert should be firing, or resolved, from now on. If it is already, nothing happens; otherwise the alert's
/// row changes and one message for each receiver is queued, in the same transaction.
#[derive(Debug, Clone, PartialEq)]
pub struct AlertChange {
    /// Tells alerts apart: the rule's name and its labels, hashed.
    pub fingerprint: String,
    /// The rule's name, such as `job_failed`.
    pub name: String,
    /// What it is about, such as `job = nightly-upload`.
    pub labels: BTreeMap<String, String>,
    /// How bad it is.
    pub severity: Severity,
    /// The state it should have.
    pub state: AlertState,
    /// One line for people.
    pub summary: String,
    /// More facts, in the order in which people should read them.
    pub details: Vec<(String, String)>,
    /// Who is told, by receiver name.
    pub receivers: Vec<String>,
    /// When it came about.
    pub at: DateTime<Utc>,
}

/// An alert.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Alert {
    /// See [`AlertChange::fingerprint`].
    pub fingerprint: String,
    /// The rule's name.
    pub name: String,
    /// What it is about.
    pub labels: BTreeMap<String, String>,
    /// How bad it is.
    pub severity: Severity,
    /// Whether it holds now.
    pub state: AlertState,
    /// One line for people.
    pub summary: String,
    /// When it last began to fire.
    pub starts_at: DateTime<Utc>,
    /// When it was resolved.
    pub ends_at: Option<DateTime<Utc>>,
    /// Counts the transitions.
    pub seq: u32,
}

/// A message in the outbox: one transition of one alert for one receiver.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Message {
    /// Its ULID, the same for every try.
    pub id: String,
    /// Who is told.
    pub receiver: String,
    /// The alert's fingerprint.
    pub fingerprint: String,
    /// The alert's [`Alert::seq`] after the transition.
    pub seq: u32,
    /// What is told.
    pub notice: Notice,
    /// What became of it.
    pub state: MessageState,
    /// How often it was given out to be tried, this time included.
    pub attempts: u32,
    /// When it was queued.
    pub created_at: DateTime<Utc>,
    /// Not before this instant.
    pub next_at: DateTime<Utc>,
    /// Why the last try failed.
    pub last_error: Option<String>,
}

/// What a message says; stored as JSON, so a receiver's format is chosen when it is sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Notice {
    /// See [`AlertChange::fingerprint`].
    pub fingerprint: String,
    /// The rule's name.
    pub name: String,
    /// What it is about.
    pub labels: BTreeMap<String, String>,
    /// How bad it is.
    pub severity: Severity,
    /// Firing or resolved.
    pub state: AlertState,
    /// One line for people.
    pub summary: String,
    /// More facts, in reading order.
    pub details: Vec<(String, String)>,
    /// When it began to fire.
    pub starts_at: DateTime<Utc>,
    /// When it was resolved.
    pub ends_at: Option<DateTime<Utc>>,
    /// Counts the transitions of the alert.
    pub seq: u32,
}

/// What became of one try to send a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MessageOutcome {
    /// The receiver took it.
    Sent,
    /// Try again in this long.
    Retry {
        /// From now.
        after: Duration,
        /// What went wrong.
        error: String,
    },
    /// Trying again cannot help.
    Dead {
        /// What went wrong.
        error: String,
    },
}

/// A record that could not be loaded, kept with all that is needed to try again.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeadLetter {
    /// Its ULID.
    pub id: String,
    /// The dataset; empty when no dataset claims the key.
    pub dataset: String,
    /// The queue's database.
    pub database: u16,
    /// The queue.
    pub queue: String,
    /// The batch that found it.
    pub batch: String,
    /// The queue entry, as the producer wrote it.
    #[serde(serialize_with = "lossy")]
    pub entry: Vec<u8>,
    /// The record's key; empty if the entry could not be read.
    pub key: String,
    /// Why, in one word: `not_json`, `not_an_object`, `schema`, `missing`, `wrong_type`, `too_large`, `bad_entry`,
    /// `no_dataset`, `refused`.
    pub reason: String,
    /// Why, in a sentence.
    pub detail: String,
    /// The record's bytes; `None` if there are none (or, in a list, if they were not asked for).
    #[serde(serialize_with = "lossy_option")]
    pub body: Option<Vec<u8>>,
    /// The record's size in bytes, known even when `body` is not there.
    pub size_bytes: Option<u64>,
    /// When it was kept.
    pub created_at: DateTime<Utc>,
}

fn lossy<S: serde::Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(bytes))
}

fn lossy_option<S: serde::Serializer>(bytes: &Option<Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
    match bytes {
        Some(bytes) => lossy(bytes, serializer),
        None => serializer.serialize_none(),
    }
}

/// Which dead letters to list.
#[derive(Debug, Clone, Default)]
pub struct DeadLetterFilter {
    /// Only this dataset's.
    pub dataset: Option<String>,
    /// Only with this reason.
    pub reason: Option<String>,
    /// Only those after this id (ids sort by age): for paging.
    pub after: Option<String>,
    /// At most this many.
    pub limit: u32,
}

/// How many dead letters share a dataset and a reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeadLetterCount {
    /// The dataset.
    pub dataset: String,
    /// The reason's word.
    pub reason: String,
    /// How many.
    pub count: u64,
    /// When the oldest was kept.
    pub oldest: DateTime<Utc>,
}
