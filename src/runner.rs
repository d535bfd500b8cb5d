//! One run, from claim to alert, as named steps; and what surrounds the runs: heartbeats, the reaper, and life without a
//! database.
//!
//! The steps of a run are in `run.rs` and read aloud: claim, start, body, settle, record, perhaps again. The scheduler says
//! what is due ([`Due`]); the history decides who runs it; nothing here knows cron lines or SQL.

mod away;
mod bell;
mod body;
mod claim;
mod held;
mod lanes;
mod lost;
mod progress;
mod replicas;
mod run;
mod spool;
mod starts;

pub use self::bell::Bell;
pub use self::progress::to_log as progress_to_log;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::future::{Either, select};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use ulid::Ulid;

use self::away::Database;
use self::claim::{Answer, Claiming};
use self::held::Held;
use self::lanes::Lanes;
use self::replicas::Replicas;
use self::run::Wanted;
use self::spool::Spool;
use self::starts::Starts;
use crate::cache::SharedCache;
use crate::clock::Clock;
use crate::history::{HistoryError, MissedCause, Run, SharedHistory, Trigger};
use crate::jobs::{Datasets, JobSpec, Progress};
use crate::schedule::MissedSlots;
use crate::warehouse::SharedWarehouse;

/// How many runs may write their end to the history at the same time, so that ten thousand that end together do not keep
/// the next claims waiting for a connection.
const WRITERS: usize = 4;

/// How long a body that was told to stop may take to let go.
const LET_GO: Duration = Duration::from_secs(5);

/// What is due of one job.
#[derive(Debug, Clone)]
pub struct Due {
    /// The job's name.
    pub job: Arc<str>,
    /// Slots to run: the one that comes up, or those that are caught up, oldest first.
    pub run: Vec<DateTime<Utc>>,
    /// Slots that will not run.
    pub missed: Vec<MissedSlots>,
    /// Why slots were missed or run late; `None` if they are on time.
    pub cause: Option<MissedCause>,
}

/// How fast the runner's own clockwork turns.
#[derive(Debug, Clone, Copy)]
pub struct Tempo {
    /// How long a claim lasts without a heartbeat. Heartbeats come three times as often.
    pub lease: Duration,
    /// How often runs of dead processes are looked for.
    pub reap_every: Duration,
    /// How often a slot that waits for another run asks again, should nobody on this replica tell it.
    pub poll: Duration,
}

impl Default for Tempo {
    fn default() -> Self {
        Self { lease: Duration::from_secs(30), reap_every: Duration::from_secs(5), poll: Duration::from_secs(2) }
    }
}

/// All that a runner needs.
pub struct RunnerDeps {
    /// The configured jobs, by name.
    pub jobs: BTreeMap<String, JobSpec>,
    /// The configured datasets.
    pub datasets: Arc<Datasets>,
    /// Where runs are claimed and recorded.
    pub history: SharedHistory,
    /// Given to the jobs.
    pub cache: SharedCache,
    /// Given to the jobs.
    pub warehouse: SharedWarehouse,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Delivers what the history's outbox holds, and what must be told without it.
    pub bell: Arc<dyn Bell>,
    /// Who is told when the history database is away: every receiver that some job names.
    pub receivers: Vec<String>,
    /// Unique for each start of the program.
    pub owner: String,
    /// The machine.
    pub host: String,
    /// The program's version.
    pub version: String,
    /// How fast the clockwork turns.
    pub tempo: Tempo,
}

/// Carries out runs.
#[derive(Clone)]
pub struct Runner(Arc<Inner>);

/// What all runs share.
struct Inner {
    jobs: BTreeMap<String, Arc<JobSpec>>,
    datasets: Arc<Datasets>,
    history: SharedHistory,
    cache: SharedCache,
    warehouse: SharedWarehouse,
    clock: Arc<dyn Clock>,
    bell: Arc<dyn Bell>,
    receivers: Vec<String>,
    owner: String,
    host: String,
    version: String,
    tempo: Tempo,
    held: Held,
    claiming: Claiming,
    lanes: Lanes,
    spool: Spool,
    starts: Starts,
    replicas: Replicas,
    database: Database,
    writers: Semaphore,
    /// No new runs; those that are going should come to an end.
    stopping: CancellationToken,
    /// The grace period is over.
    abort: CancellationToken,
    /// The runner is done: the clockwork stops.
    done: CancellationToken,
    runs: TaskTracker,
}

/// Why a run that a person asked for did not start.
#[derive(Debug, thiserror::Error)]
pub enum NotRun {
    /// There is no such job.
    #[error("there is no job {0:?}")]
    Unknown(String),
    /// Another run of the job is going.
    #[error("{job} is running already (run {other}); wait for it to end, or see `lamplighter history {job}`")]
    Busy {
        /// The job.
        job: String,
        /// The run that is going.
        other: String,
    },
    /// The history database is away and the job is configured to wait for it.
    #[error(transparent)]
    Away(#[from] HistoryError),
    /// The runner is stopping.
    #[error("{0} was not started, because the program is stopping")]
    Stopping(String),
    /// The run's claim went to somebody else, so its end was not recorded.
    #[error("the claim on the run of {0} was lost, and with it the right to record what became of it")]
    Fenced(String),
}

impl Runner {
    /// A runner, with its heartbeat and its watch over the database. Must be called inside a tokio runtime.
    pub fn new(deps: RunnerDeps) -> Self {
        let jobs: BTreeMap<_, _> = deps.jobs.into_iter().map(|(name, spec)| (name, Arc::new(spec))).collect();
        let inner = Arc::new(Inner {
            lanes: Lanes::of(jobs.keys()),
            jobs,
            datasets: deps.datasets,
            history: deps.history,
            cache: deps.cache,
            warehouse: deps.warehouse,
            clock: deps.clock,
            bell: deps.bell,
            receivers: deps.receivers,
            owner: deps.owner,
            host: deps.host,
            version: deps.version,
            tempo: deps.tempo,
            held: Held::default(),
            claiming: Claiming::default(),
            spool: Spool::default(),
            starts: Starts::default(),
            replicas: Replicas::default(),
            database: Database::default(),
            writers: Semaphore::new(WRITERS),
            stopping: CancellationToken::new(),
            abort: CancellationToken::new(),
            done: CancellationToken::new(),
            runs: TaskTracker::new(),
        });
        tokio::spawn(inner.clone().beat_hearts());
        tokio::spawn(inner.clone().watch_database());
        Self(inner)
    }

    /// Looks for runs of dead processes from now on, and takes them over.
    pub fn watch_for_lost_runs(&self) {
        tokio::spawn(self.0.clone().reap_for_ever());
    }

    /// Takes what is due: claims its runs in one statement, starts each at its slot, records what was missed. Returns at
    /// once.
    pub fn handle(&self, due: Vec<Due>) {
        let inner = self.0.clone();
        self.0.runs.spawn(async move { inner.hand_over(due).await });
    }

    /// Takes what is due and the runs of dead processes, waits for all of it, and returns the runs that were carried out
    /// here, and the slots that were missed.
    pub async fn handle_and_wait(&self, due: Vec<Due>) -> Vec<Run> {
        let mut tasks = self.0.take_over_lost_runs().await;
        tasks.extend(self.0.hand_over(due).await);
        let mut runs = Vec::new();
        for task in tasks {
            runs.extend(task.await.expect("the steps of a run do not panic; its body is guarded"));
        }
        runs
    }

    /// Runs a job now, with its retries, and returns its last attempt.
    ///
    /// If another run is going, waits a little longer than a lease: the other process may have died a moment ago.
    pub async fn run_now(&self, job: &str, progress: Progress) -> Result<Run, NotRun> {
        let inner = &self.0;
        let spec = inner.jobs.get(job).ok_or_else(|| NotRun::Unknown(job.to_owned()))?;
        let wanted = Wanted { progress, ..inner.wanted(spec, None, 1, Trigger::Manual) };
        let task = inner.runs.spawn(inner.clone().carry_out_by_hand(wanted));
        task.await.expect("the steps of a run do not panic; its body is guarded")
    }

    /// Whether the history database answered when it was last asked.
    pub fn database_is_here(&self) -> bool {
        self.0.database.is_here()
    }

    /// Tells the runner that the history database could not be reached at start-up.
    pub fn database_was_away(&self, error: &HistoryError) {
        self.0.database_failed(error);
    }

    /// Returns when the history database answers.
    pub async fn database_back(&self) {
        self.0.database.back().await;
    }

    /// How many runs are going on here.
    pub fn running(&self) -> usize {
        self.0.held.len()
    }

    /// Stops: no new runs from now on. Those that are going are asked to end and get `grace`; then they are stopped, and
    /// recorded as cancelled.
    pub async fn shutdown(&self, grace: Duration) {
        let inner = &self.0;
        inner.stopping.cancel();
        inner.runs.close();
        if tokio::time::timeout(grace, inner.runs.wait()).await.is_err() {
            tracing::warn!(running = inner.held.len(), "the grace period is over; stopping the runs that are left");
            inner.abort.cancel();
            if tokio::time::timeout(LET_GO * 2, inner.runs.wait()).await.is_err() {
                tracing::error!(running = inner.held.len(), "some runs do not let go; leaving them behind");
            }
        }
        self.flush(LET_GO).await;
        inner.check_out().await;
        inner.done.cancel();
    }

    /// Records the results that were kept while the database was away, as far as that succeeds within `limit`.
    pub async fn flush(&self, limit: Duration) {
        let inner = &self.0;
        if inner.spool.is_empty() {
            return;
        }
        let flushed = tokio::time::timeout(limit, inner.flush_spool()).await;
        if !matches!(flushed, Ok(Ok(()))) {
            let left = inner.spool.len();
            tracing::error!(left, "the history database is still away: the results of some runs are not recorded");
        }
    }
}

impl Inner {
    /// The run that a slot, a person or an earlier attempt asks for.
    fn wanted(&self, job: &Arc<JobSpec>, slot: Option<DateTime<Utc>>, attempt: u32, trigger: Trigger) -> Wanted {
        Wanted {
            id: self.new_id(),
            job: job.clone(),
            slot,
            attempt,
            trigger,
            progress: progress::to_log(&job.name, &self.clock),
        }
    }

    /// A ULID, with the clock's time in it.
    fn new_id(&self) -> String {
        let millis = u64::try_from(self.clock.now().timestamp_millis()).unwrap_or(0);
        Ulid::from_parts(millis, fastrand::u128(..)).to_string()
    }

    /// Waits for `span`, by the injected clock or the real one, whichever is first: so a wall clock that is set back cannot
    /// hold a retry up for an hour.
    async fn pause(&self, span: Duration) {
        let wall = self.clock.sleep_until(self.clock.now() + span);
        let real = std::pin::pin!(tokio::time::sleep(span));
        match select(wall, real).await {
            Either::Left(_) | Either::Right(_) => {}
        }
    }

    /// Records what was missed and starts a task for every run that is due, after one claim for all of them.
    async fn hand_over(self: &Arc<Self>, due: Vec<Due>) -> Vec<JoinHandle<Vec<Run>>> {
        let (mut missed, mut wanted) = (Vec::new(), Vec::new());
        for due in due {
            let Some(job) = self.jobs.get(&*due.job) else {
                tracing::error!(job.name = &*due.job, "a slot came for a job that is not configured");
                continue;
            };
            let cause = due.cause.unwrap_or(MissedCause::Down);
            missed.extend(due.missed.iter().map(|slots| self.missed_row(job, *slots, cause)));
            if job.paused {
                let row = |&slot: &DateTime<Utc>| self.missed_row(job, MissedSlots::one(slot), MissedCause::Paused);
                missed.extend(due.run.iter().map(row));
                continue;
            }
            if self.stopping.is_cancelled() {
                self.leave_alone(job);
                continue;
            }
            let trigger = if due.cause.is_some() { Trigger::CatchUp } else { Trigger::Schedule };
            // Slots that are caught up run one after the other, oldest first, whatever the overlap rule says.
            wanted.push(due.run.iter().map(|&slot| self.wanted(job, Some(slot), 1, trigger)).collect::<Vec<_>>());
        }
        wanted.retain(|slots| !slots.is_empty());

        let answers = self.claim_together(&wanted).await;
        let mut tasks = Vec::with_capacity(wanted.len() + 1);
        for (slots, answer) in wanted.into_iter().zip(answers) {
            tasks.push(self.runs.spawn(self.clone().one_after_the_other(slots, answer)));
        }
        if !missed.is_empty() {
            let inner = self.clone();
            tasks.push(self.runs.spawn(async move { inner.record_missed(missed).await }));
        }
        tasks
    }

    /// Carries out the slots of one job in order.
    async fn one_after_the_other(self: Arc<Self>, slots: Vec<Wanted>, first: Option<Answer>) -> Vec<Run> {
        let in_a_row = slots.len() > 1;
        let (mut runs, mut first) = (Vec::new(), first);
        for run in slots {
            runs.extend(self.carry_out(run, first.take(), in_a_row).await);
        }
        runs
    }
}
