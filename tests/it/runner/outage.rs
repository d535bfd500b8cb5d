//! Life while the history database is away. Each test has a Postgres of its own, to stop and start.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lamplighter::clock::{Clock, SystemClock};
use lamplighter::history::{AlertState, MissedCause, PostgresHistory, Run, RunState, SharedHistory};
use lamplighter::jobs::WhenDbDown;
use lamplighter::runner::{Runner, Tempo};
use lamplighter::warehouse::SharedWarehouse;

use super::bench::{Notebook, TestJob, due, eventually, gated, job, rows, runner_at, warehouse};
use super::done;
use crate::support::postgres::{PostgresServer, TestDatabase};

pub(super) struct House {
    pub(super) server: PostgresServer,
    pub(super) database: TestDatabase,
    pub(super) history: SharedHistory,
    bell: Arc<Notebook>,
    pub(super) runner: Runner,
    pub(super) clock: Arc<dyn Clock>,
    store: SharedWarehouse,
    tempo: Tempo,
    _folder: tempfile::TempDir,
}

impl House {
    pub(super) async fn new(jobs: Vec<TestJob>, tempo: Tempo) -> Self {
        let server = PostgresServer::start().await;
        let database = server.database().await;
        let folder = tempfile::tempdir().unwrap();
        let store = warehouse(folder.path()).await;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let history: SharedHistory = Arc::new(PostgresHistory::connect(&database.url.clone().into()).unwrap());
        let bell = Arc::new(Notebook::default());
        let runner = runner_at(tempo, history.clone(), store.clone(), clock.clone(), bell.clone(), jobs, "owner");
        Self { server, database, history, bell, runner, clock, store, tempo, _folder: folder }
    }

    /// A second daemon, with its own connections.
    pub(super) fn another_runner(&self, jobs: Vec<TestJob>, owner: &str) -> Runner {
        let history: SharedHistory = Arc::new(PostgresHistory::connect(&self.database.url.clone().into()).unwrap());
        let bell = Arc::new(Notebook::default());
        runner_at(self.tempo, history, self.store.clone(), self.clock.clone(), bell, jobs, owner)
    }

    /// Stops the server, and waits until the runner has noticed and said so.
    pub(super) async fn outage(&self) {
        self.server.stop().await;
        self.runner.handle(vec![due("probe", self.clock.now())]);
        self.rung(AlertState::Firing).await;
    }

    async fn rung(&self, state: AlertState) {
        eventually(&format!("people are told that the database is {state}"), async || {
            let rung = self.bell.rung();
            if rung.contains(&("database_away".to_owned(), state)) { Ok(()) } else { Err(rung) }
        })
        .await;
    }

    pub(super) async fn run_in(&self, job: &str, state: RunState) -> Run {
        eventually(&format!("a run of {job} is {state}"), async || {
            let runs = rows(&self.history, job).await;
            runs.iter().find(|run| run.state == state).cloned().ok_or(runs)
        })
        .await
    }
}

/// A job that makes the runner ask the database.
pub(super) fn probe() -> TestJob {
    job("probe", |_| async { done(0) })
}

pub(super) fn counting(name: &str, count: &Arc<AtomicU32>) -> TestJob {
    let count = count.clone();
    job(name, move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        async { done(1) }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_database_some_jobs_run_and_others_wait_and_all_is_recorded_later() {
    let (ran, waited) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let jobs = vec![probe(), counting("runs", &ran), counting("waits", &waited).when_db_down(WhenDbDown::Wait)];
    let house = House::new(jobs, Tempo::default()).await;
    house.outage().await;

    let slot = house.clock.now();
    house.runner.handle(vec![due("runs", slot), due("waits", slot)]);
    eventually("the job that need not wait has run", async || {
        let count = ran.load(Ordering::SeqCst);
        if count == 1 { Ok(()) } else { Err(count) }
    })
    .await;
    assert_eq!(waited.load(Ordering::SeqCst), 0, "the other one waits");
    assert!(!house.runner.database_is_here());

    house.server.start_again().await;
    let run = house.run_in("runs", RunState::Succeeded).await;
    assert_eq!((run.slot.map(|at| at.timestamp_micros()), run.rows), (Some(slot.timestamp_micros()), Some(1)));
    let run = house.run_in("waits", RunState::Succeeded).await;
    assert_eq!(run.slot.map(|at| at.timestamp_micros()), Some(slot.timestamp_micros()));
    house.rung(AlertState::Resolved).await;
    assert_eq!((ran.load(Ordering::SeqCst), waited.load(Ordering::SeqCst)), (1, 1));
    house.run_in("probe", RunState::Succeeded).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_waits_for_the_database_no_longer_than_its_window() {
    let waited = Arc::new(AtomicU32::new(0));
    let waits = counting("waits", &waited).when_db_down(WhenDbDown::Wait).window(Duration::from_millis(300));
    let house = House::new(vec![probe(), waits], Tempo::default()).await;
    house.outage().await;
    let slot = house.clock.now();
    house.runner.handle(vec![due("waits", slot)]);
    // Once the window is over, the slot is given up, whether or not the database is back.
    house.clock.sleep_until(slot + chrono::TimeDelta::milliseconds(400)).await;
    house.server.start_again().await;
    let run = house.run_in("waits", RunState::Missed).await;
    assert_eq!(run.cause, Some(MissedCause::DatabaseAway));
    assert_eq!(waited.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_run_is_recorded_when_the_database_is_back() {
    let (long, gate) = gated("long");
    let house = House::new(vec![probe(), long], Tempo::default()).await;
    house.runner.handle(vec![due("long", house.clock.now())]);
    house.run_in("long", RunState::Running).await;
    house.outage().await;
    gate.add_permits(1);
    eventually("the body is over", async || if house.runner.running() == 0 { Ok(()) } else { Err("not yet") }).await;
    house.server.start_again().await;
    let run = house.run_in("long", RunState::Succeeded).await;
    assert_eq!((run.attempt, run.rows), (1, Some(1)));
    assert_eq!(rows(&house.history, "long").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_began_without_the_database_is_claimed_and_recorded_once_it_is_back() {
    let (long, gate) = gated("long");
    let house = House::new(vec![probe(), long], Tempo::default()).await;
    house.outage().await;
    let slot = house.clock.now();
    house.runner.handle(vec![due("long", slot)]);
    eventually("the body runs", async || if house.runner.running() == 1 { Ok(()) } else { Err("not yet") }).await;
    house.server.start_again().await;
    // Now everybody can see it, so nobody else starts it.
    let run = house.run_in("long", RunState::Running).await;
    assert_eq!((run.owner.as_str(), run.attempt), ("owner", 1));
    gate.add_permits(1);
    let ended = house.run_in("long", RunState::Succeeded).await;
    assert_eq!((ended.id, ended.rows), (run.id, Some(1)));
    assert_eq!(rows(&house.history, "long").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_no_heartbeat_gets_through_for_a_lease_only_runs_that_may_outlive_the_database_go_on() {
    let forever = |name: &str| job(name, |_| std::future::pending());
    let jobs = vec![probe(), forever("goes-on"), forever("must-stop").when_db_down(WhenDbDown::Wait)];
    let tempo = Tempo { lease: Duration::from_secs(2), ..Tempo::default() };
    let house = House::new(jobs, tempo).await;
    let now = house.clock.now();
    house.runner.handle(vec![due("goes-on", now), due("must-stop", now)]);
    eventually("both run", async || if house.runner.running() == 2 { Ok(()) } else { Err("not yet") }).await;
    house.outage().await;
    eventually("one is stopped", async || {
        let running = house.runner.running();
        if running == 1 { Ok(()) } else { Err(running) }
    })
    .await;
    house.server.start_again().await;
    // Its lease has ended too: whoever looks for lost runs may have it, so it must stop now.
    eventually("the other one is stopped", async || {
        let running = house.runner.running();
        if running == 0 { Ok(()) } else { Err(running) }
    })
    .await;
    house.history.reap().await.unwrap();
    for job in ["goes-on", "must-stop"] {
        let runs = rows(&house.history, job).await;
        assert_eq!(runs.iter().map(|run| run.state).collect::<Vec<_>>(), [RunState::Lost], "{job} wrote nothing more");
    }
}
