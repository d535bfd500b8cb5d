//! A runner on a bench: jobs made of closures, a SQLite history, a clock that is moved by hand, and a bell that counts.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, TimeZone, Utc};
use futures_util::future::BoxFuture;
use lamplighter::cache::{RedisCache, RedisSettings, SharedCache};
use lamplighter::clock::{Clock, TestClock};
use lamplighter::history::{
    Alert, AlertChange, AlertState, History, Run, RunFilter, RunState, Severity, SharedHistory, SqliteHistory,
};
use lamplighter::jobs::{
    CatchUp, Datasets, Job, JobContext, JobError, JobSpec, OnCrash, Outcome, Overlap, Plan, Retry, WhenDbDown,
};
use lamplighter::runner::{Bell, Due, Runner, RunnerDeps, Tempo};
use lamplighter::warehouse::{SharedWarehouse, SqliteWarehouse};
use tokio::sync::Semaphore;

/// How long anything may take before a test fails.
const DEADLINE: Duration = Duration::from_secs(30);

type Body = dyn Fn(JobContext) -> BoxFuture<'static, Result<Outcome, JobError>> + Send + Sync;

struct Closure(Box<Body>);

impl Job for Closure {
    fn kind(&self) -> &'static str {
        "closure"
    }

    fn default_timeout(&self) -> Duration {
        Duration::from_secs(600)
    }

    fn validate(&self, _: &Datasets) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn run<'a>(&'a self, ctx: &'a JobContext) -> BoxFuture<'a, Result<Outcome, JobError>> {
        (self.0)(ctx.clone())
    }

    fn plan<'a>(&'a self, _: &'a JobContext) -> BoxFuture<'a, Result<Option<Plan>, JobError>> {
        Box::pin(async { Ok(None) })
    }
}

/// A job whose body is a closure.
pub(super) struct TestJob(pub(super) JobSpec);

pub(super) fn job<F>(name: &str, body: impl Fn(JobContext) -> F + Send + Sync + 'static) -> TestJob
where
    F: Future<Output = Result<Outcome, JobError>> + Send + 'static,
{
    TestJob(JobSpec {
        name: name.to_owned(),
        schedule: None,
        timeout: Duration::from_secs(600),
        retry: Retry { attempts: 1, backoff: Duration::from_secs(1), max_backoff: Duration::from_secs(300) },
        overlap: Overlap::Skip,
        catch_up: CatchUp::Latest,
        catch_up_window: Duration::from_secs(86_400),
        on_crash: OnCrash::Rerun,
        when_db_down: WhenDbDown::Run,
        notify: vec!["console".to_owned()],
        severity: Severity::Warning,
        paused: false,
        job: Arc::new(Closure(Box::new(move |ctx| Box::pin(body(ctx))))),
    })
}

impl TestJob {
    pub(super) fn attempts(mut self, attempts: u32, backoff: Duration) -> Self {
        (self.0.retry.attempts, self.0.retry.backoff) = (attempts, backoff);
        self
    }

    pub(super) fn timeout(mut self, timeout: Duration) -> Self {
        self.0.timeout = timeout;
        self
    }

    pub(super) fn overlap(mut self, overlap: Overlap) -> Self {
        self.0.overlap = overlap;
        self
    }

    pub(super) fn on_crash(mut self, on_crash: OnCrash) -> Self {
        self.0.on_crash = on_crash;
        self
    }

    pub(super) fn catch_up(mut self, catch_up: CatchUp) -> Self {
        self.0.catch_up = catch_up;
        self
    }

    pub(super) fn when_db_down(mut self, when_db_down: WhenDbDown) -> Self {
        self.0.when_db_down = when_db_down;
        self
    }

    pub(super) fn window(mut self, window: Duration) -> Self {
        self.0.catch_up_window = window;
        self
    }

    pub(super) fn paused(mut self) -> Self {
        self.0.paused = true;
        self
    }
}

/// A job whose bodies each wait for a permit, and move one row.
pub(super) fn gated(name: &str) -> (TestJob, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let inside = gate.clone();
    let gated = job(name, move |_| {
        let gate = inside.clone();
        async move {
            gate.acquire().await.unwrap().forget();
            super::done(1)
        }
    });
    (gated, gate)
}

/// One slot that is due on time.
pub(super) fn due(job: &str, slot: DateTime<Utc>) -> Due {
    Due { job: job.into(), run: vec![slot], missed: Vec::new(), cause: None }
}

pub(super) fn state_of(runs: &[Run]) -> Vec<RunState> {
    runs.iter().map(|run| run.state).collect()
}

/// A bell that notes what it was told.
#[derive(Default)]
pub(super) struct Notebook {
    woken: AtomicUsize,
    rung: Mutex<Vec<AlertChange>>,
}

impl Bell for Notebook {
    fn wake(&self) {
        self.woken.fetch_add(1, Ordering::SeqCst);
    }

    fn ring(&self, changes: &[AlertChange]) {
        self.rung.lock().unwrap().extend_from_slice(changes);
    }
}

impl Notebook {
    pub(super) fn rung(&self) -> Vec<(String, AlertState)> {
        self.rung.lock().unwrap().iter().map(|change| (change.name.clone(), change.state)).collect()
    }
}

pub(super) struct Bench {
    pub(super) clock: Arc<TestClock>,
    pub(super) history: SharedHistory,
    pub(super) bell: Arc<Notebook>,
    pub(super) runner: Runner,
    _folder: tempfile::TempDir,
    warehouse: SharedWarehouse,
}

impl Bench {
    /// A bench with a SQLite history.
    pub(super) async fn new(jobs: Vec<TestJob>) -> Self {
        let clock = Arc::new(TestClock::at(Utc.with_ymd_and_hms(2026, 11, 20, 2, 0, 0).unwrap()));
        let folder = tempfile::tempdir().unwrap();
        let history = Arc::new(SqliteHistory::open(folder.path().join("history.db"), clock.clone()).unwrap());
        history.migrate().await.unwrap();
        let history: SharedHistory = history;
        let bell = Arc::new(Notebook::default());
        let warehouse = warehouse(folder.path()).await;
        let runner = runner(history.clone(), warehouse.clone(), clock.clone(), bell.clone(), jobs, "owner-1");
        Self { clock, history, bell, runner, _folder: folder, warehouse }
    }

    /// A second runner on the same history and clock.
    pub(super) fn another_runner(&self, jobs: Vec<TestJob>, owner: &str) -> Runner {
        let (history, warehouse) = (self.history.clone(), self.warehouse.clone());
        runner(history, warehouse, self.clock.clone(), self.bell.clone(), jobs, owner)
    }

    pub(super) fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    /// A job's rows, newest first.
    pub(super) async fn rows(&self, job: &str) -> Vec<Run> {
        rows(&self.history, job).await
    }

    pub(super) async fn states(&self, job: &str) -> Vec<RunState> {
        state_of(&self.rows(job).await)
    }

    /// The newest run of the job in this state, as soon as there is one.
    pub(super) async fn run_in(&self, job: &str, state: RunState) -> Run {
        let find = async || {
            let rows = self.rows(job).await;
            rows.iter().find(|run| run.state == state).cloned().ok_or(rows)
        };
        eventually(&format!("a run of {job} is {state}"), find).await
    }

    pub(super) async fn until_running(&self, count: usize) {
        self.until(&format!("{count} runs go on"), async || self.runner.running() == count).await;
    }

    pub(super) async fn until(&self, what: &str, is_so: impl AsyncFn() -> bool) {
        eventually(what, async || if is_so().await { Ok(()) } else { Err("not so yet") }).await;
    }

    pub(super) async fn until_some<T>(&self, what: &str, find: impl AsyncFn() -> Option<T>) -> T {
        eventually(what, async || find().await.ok_or("nothing yet")).await
    }

    /// Gives everything that could happen now the time to happen: the history answers a few questions meanwhile.
    pub(super) async fn settle(&self) {
        for _ in 0..10 {
            tokio::task::yield_now().await;
            self.history.ping().await.unwrap();
        }
    }

    /// The wall and monotonic clocks jump while nothing of this process runs, and a reaper elsewhere sees the leases end.
    pub(super) async fn sleep_through(&self, span: Duration) {
        let reap = async || {
            let lost = self.history.reap().await.unwrap();
            if lost.is_empty() { Err("no run is lost yet") } else { Ok(lost) }
        };
        self.clock.advance(span);
        eventually("a run is lost", reap).await;
    }

    /// Moves the clock once somebody sleeps on it.
    pub(super) async fn clock_moves_when_a_body_waits(&self, span: Duration) {
        self.settle().await;
        self.clock.advance(span);
    }

    pub(super) async fn alerts(&self) -> Vec<Alert> {
        self.history.alerts(100).await.unwrap()
    }

    pub(super) async fn eventually_named(&self, name: &str) -> Alert {
        let find = async || self.alerts().await.into_iter().find(|alert| alert.name == name);
        self.until_some(&format!("there is an alert {name}"), find).await
    }

    pub(super) async fn eventually_alert(&self, name: &str, state: AlertState) -> Alert {
        let find = async || {
            let alerts = self.alerts().await;
            alerts.iter().find(|alert| alert.name == name && alert.state == state).cloned().ok_or(alerts)
        };
        eventually(&format!("alert {name} is {state}"), find).await
    }

    pub(super) fn woken(&self) -> usize {
        self.bell.woken.load(Ordering::SeqCst)
    }
}

/// Rows of a job, newest first.
pub(super) async fn rows(history: &SharedHistory, job: &str) -> Vec<Run> {
    let filter = RunFilter { job: Some(job.to_owned()), limit: 100_000, ..RunFilter::default() };
    history.runs(&filter).await.unwrap()
}

/// Asks until the answer is `Ok`; fails with the last other answer at the deadline.
pub(super) async fn eventually<T, E: Debug>(what: &str, ask: impl AsyncFn() -> Result<T, E>) -> T {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(last) if tokio::time::Instant::now() > deadline => {
                panic!("waited {} s for this: {what}; last seen: {last:#?}", DEADLINE.as_secs())
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

pub(super) async fn warehouse(folder: &Path) -> SharedWarehouse {
    Arc::new(SqliteWarehouse::open(&folder.join("warehouse.db")).await.unwrap())
}

/// A runner at the usual tempo.
pub(super) fn runner(
    history: SharedHistory,
    warehouse: SharedWarehouse,
    clock: Arc<dyn Clock>,
    bell: Arc<dyn Bell>,
    jobs: Vec<TestJob>,
    owner: &str,
) -> Runner {
    runner_at(Tempo::default(), history, warehouse, clock, bell, jobs, owner)
}

/// A runner; its jobs touch neither cache nor warehouse, so the cache's address leads nowhere.
pub(super) fn runner_at(
    tempo: Tempo,
    history: SharedHistory,
    warehouse: SharedWarehouse,
    clock: Arc<dyn Clock>,
    bell: Arc<dyn Bell>,
    jobs: Vec<TestJob>,
    owner: &str,
) -> Runner {
    let cache: SharedCache = Arc::new(RedisCache::new(&RedisSettings::new("redis://127.0.0.1:1")).unwrap());
    Runner::new(RunnerDeps {
        jobs: jobs.into_iter().map(|TestJob(spec)| (spec.name.clone(), spec)).collect::<BTreeMap<_, _>>(),
        datasets: Arc::default(),
        history,
        cache,
        warehouse,
        clock,
        bell,
        receivers: vec!["console".to_owned()],
        owner: owner.to_owned(),
        host: "host".to_owned(),
        version: "1.2.3".to_owned(),
        tempo,
    })
}
