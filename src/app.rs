//! The one place that picks backends and wires everything. The rest of the house sees traits.

mod backends;
mod once;
mod serve;

use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use chrono::{DateTime, Utc};
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

pub use self::backends::{open_cache, open_history, open_warehouse};

use crate::alerts::{Dispatcher, ReceiverSettings};
use crate::cache::SharedCache;
use crate::clock::Clock;
use crate::history::{HistoryError, JobRow, MissedCause, SharedHistory};
use crate::jobs::{JobContext, JobSpec, Plan, Progress};
use crate::runner::{Due, Runner, RunnerDeps, Tempo};
use crate::schedule::{MissedSlots, plan_catch_up};
use crate::scheduler;
use crate::settings::Settings;
use crate::warehouse::SharedWarehouse;

/// How long migrations and the first questions to the history may take: another daemon may be migrating.
const MIGRATE_LIMIT: Duration = Duration::from_secs(120);

/// The whole program, wired. Clones are the same program.
#[derive(Clone)]
pub struct App {
    settings: Arc<Settings>,
    clock: Arc<dyn Clock>,
    history: SharedHistory,
    cache: SharedCache,
    warehouse: SharedWarehouse,
    dispatcher: Arc<Dispatcher>,
    runner: Runner,
    /// How long running jobs may take to end when the program is told to stop.
    grace: Duration,
    owner: String,
}

impl App {
    /// Picks the backends and wires them. Servers are not asked yet, so one that is away is no error here.
    ///
    /// # Errors
    /// If an address or a credential cannot be read, or the data folder cannot be used.
    pub async fn open(settings: Settings, clock: Arc<dyn Clock>, grace: Duration) -> anyhow::Result<Self> {
        let history = open_history(&settings, &clock)?;
        let cache = open_cache(&settings, &clock).await?;
        let warehouse = open_warehouse(&settings).await?;
        Ok(Self::wire(settings, clock, history, cache, warehouse, grace))
    }

    fn wire(
        settings: Settings,
        clock: Arc<dyn Clock>,
        history: SharedHistory,
        cache: SharedCache,
        warehouse: SharedWarehouse,
        grace: Duration,
    ) -> Self {
        // Another one for each start: a restart must not renew what its predecessor held.
        let owner = Ulid::from_parts(u64::try_from(clock.now().timestamp_millis()).unwrap_or(0), fastrand::u128(..));
        let owner = format!("{}-{}", host(), owner);
        let told: Vec<ReceiverSettings> = settings.receivers.values().cloned().collect();
        let dispatcher = Arc::new(Dispatcher::new(history.clone(), &told, clock.clone(), owner.clone()));
        let mut receivers: Vec<String> = settings.jobs.iter().flat_map(|job| job.notify.iter().cloned()).collect();
        receivers.sort();
        receivers.dedup();
        let runner = Runner::new(RunnerDeps {
            jobs: settings.jobs.iter().map(|job| (job.name.clone(), job.clone())).collect(),
            datasets: settings.datasets.clone(),
            history: history.clone(),
            cache: cache.clone(),
            warehouse: warehouse.clone(),
            clock: clock.clone(),
            bell: dispatcher.clone(),
            receivers,
            owner: owner.clone(),
            host: host(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            tempo: Tempo::default(),
        });
        Self { settings: Arc::new(settings), clock, history, cache, warehouse, dispatcher, runner, grace, owner }
    }

    /// What a run of this job would do now, without touching anything. `None`: its kind cannot tell.
    ///
    /// # Errors
    /// If a server cannot be asked.
    pub async fn plan(&self, job: &JobSpec) -> anyhow::Result<Option<Plan>> {
        self.cache.ping().await?;
        self.warehouse.ping().await?;
        let context = JobContext {
            job: job.name.clone(),
            run_id: "plan".to_owned(),
            owner: self.owner.clone(),
            clock: self.clock.clone(),
            cache: self.cache.clone(),
            warehouse: self.warehouse.clone(),
            history: self.history.clone(),
            datasets: self.settings.datasets.clone(),
            stopping: CancellationToken::new(),
            progress: Progress::default(),
        };
        let plan = tokio::time::timeout(job.timeout, job.job.plan(&context)).await;
        let plan = plan.map_err(|_| anyhow!("the plan of {} took longer than its `timeout`", job.name))?;
        plan.map_err(|error| anyhow!("{error}"))
    }

    /// The history.
    pub fn history(&self) -> &SharedHistory {
        &self.history
    }

    /// The cache.
    pub fn cache(&self) -> &SharedCache {
        &self.cache
    }

    /// The warehouse.
    pub fn warehouse(&self) -> &SharedWarehouse {
        &self.warehouse
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Waits for the history's answer, but not for ever.
    async fn limited<T>(
        &self,
        limit: Duration,
        answer: impl Future<Output = Result<T, HistoryError>>,
    ) -> Result<T, HistoryError> {
        tokio::time::timeout(limit, answer).await.unwrap_or_else(|_| {
            let reason = format!("no answer within {} s", limit.as_secs());
            Err(HistoryError::Unreachable { database: self.history.describe(), reason })
        })
    }
}

/// The machine's name, as containers and shells tell it.
fn host() -> String {
    let variable = ["RAILWAY_REPLICA_ID", "HOSTNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    let file = || std::fs::read_to_string("/etc/hostname").ok().map(|name| name.trim().to_owned());
    variable.or_else(file).filter(|name| !name.is_empty()).unwrap_or_else(|| "localhost".to_owned())
}

/// The jobs as the history notes them.
fn job_rows(settings: &Settings) -> Vec<JobRow> {
    let row = |job: &JobSpec| JobRow {
        name: job.name.clone(),
        kind: job.job.kind().to_owned(),
        schedule: job.schedule.as_ref().map(|schedule| schedule.text()),
        timezone: job.schedule.as_ref().map_or("UTC", |schedule| schedule.tz().name()).to_owned(),
    };
    settings.jobs.iter().map(row).collect()
}

/// A job as the scheduler knows it; `None` if it has no schedule.
fn entry(job: &JobSpec) -> Option<scheduler::Entry> {
    let schedule = job.schedule.clone()?;
    Some(scheduler::Entry { schedule, catch_up: job.catch_up, window: job.catch_up_window, paused: job.paused })
}

/// The scheduler's word for what is due in the runner's: neither knows the other.
fn due_of(due: scheduler::Due) -> Due {
    let scheduler::Due { job, run, missed, cause } = due;
    Due { job, run, missed, cause }
}

/// What of a job passed between its last slot in history and `until`, by its catch-up rule.
fn due_since(job: &JobSpec, last: DateTime<Utc>, until: DateTime<Utc>) -> Option<Due> {
    let plan = plan_catch_up(job.schedule.as_ref()?, last, until, job.catch_up, job.catch_up_window);
    let (mut run, mut missed) = (plan.run, plan.missed);
    if job.paused {
        missed.extend(run.drain(..).map(MissedSlots::one));
    }
    let cause = if job.paused { MissedCause::Paused } else { MissedCause::Down };
    let nothing = run.is_empty() && missed.is_empty();
    (!nothing).then(|| Due { job: job.name.as_str().into(), run, missed, cause: Some(cause) })
}
