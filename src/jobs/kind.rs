//! What a job kind is: [`JobKind`], what it is given, what it returns.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use super::datasets::Datasets;
use crate::cache::SharedCache;
use crate::clock::Clock;
use crate::history::SharedHistory;
use crate::warehouse::SharedWarehouse;

/// A kind of job. Its fields are the keys of a `[jobs.NAME]` table.
pub trait JobKind: DeserializeOwned + Send + Sync + 'static {
    /// The word in `kind = "…"`. It is stored in history: a promise, never renamed.
    const KIND: &'static str;

    /// The time limit where jobs.toml sets none.
    const TIMEOUT: Duration = Duration::from_secs(600);

    /// Checks what a type cannot: one sentence for each mistake, as (key, sentence).
    fn validate(&self, datasets: &Datasets) -> Vec<(&'static str, String)> {
        let _ = datasets;
        Vec::new()
    }

    /// Does the work once. Must be safe to run twice, and may be dropped at any await when its time is up.
    fn run(&self, ctx: &JobContext) -> impl Future<Output = Result<Outcome, JobError>> + Send;

    /// What [`JobKind::run`] would do now, without touching anything. `None`: this kind cannot tell.
    fn plan(&self, ctx: &JobContext) -> impl Future<Output = Result<Option<Plan>, JobError>> + Send {
        let _ = ctx;
        async { Ok(None) }
    }
}

/// What a run would do.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// For people, line by line.
    pub lines: Vec<String>,
    /// The same for programs.
    pub json: serde_json::Value,
    /// Whether a run would meet trouble.
    pub trouble: bool,
}

/// What a run is given.
#[derive(Clone)]
pub struct JobContext {
    /// The job's name.
    pub job: String,
    /// The run's ULID.
    pub run_id: String,
    /// Unique for each start of the program; names leases.
    pub owner: String,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The cache.
    pub cache: SharedCache,
    /// The warehouse.
    pub warehouse: SharedWarehouse,
    /// The history, for dead letters.
    pub history: SharedHistory,
    /// The configured datasets.
    pub datasets: Arc<Datasets>,
    /// Cancelled when the run should come to an end soon: the daemon is stopping.
    pub stopping: CancellationToken,
    /// Is told how far the run has come.
    pub progress: Progress,
}

/// Tells whoever watches a run how far it has come.
#[derive(Clone, Default)]
pub struct Progress(Option<Arc<Watcher>>);

/// Is called with every report.
type Watcher = dyn Fn(&ProgressReport) + Send + Sync;

/// How far a run has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProgressReport {
    /// Entries dealt with.
    pub done: u64,
    /// Entries to deal with, as far as known.
    pub total: u64,
    /// What is being done, in a few words.
    pub doing: String,
}

impl Progress {
    /// Calls `watcher` at every report.
    pub fn to(watcher: impl Fn(&ProgressReport) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(watcher)))
    }

    /// Reports.
    pub fn report(&self, report: &ProgressReport) {
        if let Some(watcher) = &self.0 {
            watcher(report);
        }
    }
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It did its work, and this is what it found.
    Done {
        /// What it found; a breached limit is a finding, not an error.
        findings: Vec<Finding>,
        /// Rows moved, for kinds that move rows.
        rows: Option<u64>,
    },
    /// There was nothing to do, or it could not be done and need not be; the reason.
    Skipped(String),
}

/// One thing that a run found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// What was measured, in snake case with its unit at the end.
    pub name: String,
    /// The value.
    pub value: f64,
    /// The unit, where the name does not say it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub unit: String,
    /// The limit, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<f64>,
    /// Whether the limit is breached.
    pub breached: bool,
    /// What it is about, such as `("dataset", "transactions")`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<(String, String)>,
}

impl Finding {
    /// A plain count, without a limit.
    pub fn count(name: &str, value: u64) -> Self {
        let name = name.to_owned();
        Self { name, value: value as f64, unit: String::new(), limit: None, breached: false, labels: Vec::new() }
    }

    /// A value that should be at most `limit`.
    pub fn at_most(name: &str, value: f64, limit: f64) -> Self {
        let (name, breached) = (name.to_owned(), value > limit);
        Self { name, value, unit: String::new(), limit: Some(limit), breached, labels: Vec::new() }
    }

    /// Adds a label.
    #[must_use]
    pub fn with(mut self, label: &str, value: &str) -> Self {
        self.labels.push((label.to_owned(), value.to_owned()));
        self
    }
}

/// Why a run failed.
#[derive(Debug)]
pub struct JobError {
    /// Whether another attempt can help.
    pub retry: bool,
    /// What was found up to then.
    pub findings: Vec<Finding>,
    /// Rows moved up to then.
    pub rows: Option<u64>,
    source: anyhow::Error,
}

impl JobError {
    /// A failure that another attempt cannot mend.
    pub fn permanent(error: impl Into<anyhow::Error>) -> Self {
        Self { retry: false, findings: Vec::new(), rows: None, source: error.into() }
    }

    /// A failure that another attempt may mend.
    pub fn passing(error: impl Into<anyhow::Error>) -> Self {
        Self { retry: true, findings: Vec::new(), rows: None, source: error.into() }
    }

    /// Adds what was done before it failed.
    #[must_use]
    pub fn after(mut self, findings: Vec<Finding>, rows: Option<u64>) -> Self {
        (self.findings, self.rows) = (findings, rows);
        self
    }
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.source)
    }
}

/// Any error through `?` is worth another attempt, unless it says that trying again cannot help.
impl<E: std::error::Error + Send + Sync + 'static> From<E> for JobError {
    fn from(error: E) -> Self {
        use crate::{cache::CacheError, history::HistoryError, warehouse::WarehouseError};
        let source = anyhow::Error::new(error);
        let retry = source.chain().all(|cause| {
            let cache = cause.downcast_ref::<CacheError>().is_none_or(CacheError::is_transient);
            let warehouse = cause.downcast_ref::<WarehouseError>().is_none_or(WarehouseError::is_transient);
            cache && warehouse && cause.downcast_ref::<HistoryError>().is_none_or(HistoryError::is_transient)
        });
        Self { retry, findings: Vec::new(), rows: None, source }
    }
}
