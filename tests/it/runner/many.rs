//! Many runs at once, and several replicas.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use lamplighter::clock::{Clock, SystemClock};
use lamplighter::history::{PostgresHistory, RunState, SharedHistory, SqliteHistory};
use lamplighter::jobs::Overlap;

use super::bench::{Notebook, due, eventually, job, rows, runner, warehouse};
use super::done;
use crate::support::postgres::Postgres;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn ten_thousand_runs_that_are_due_at_once_all_start_once() {
    const COUNT: usize = 10_000;
    let folder = tempfile::tempdir().unwrap();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let history: SharedHistory =
        Arc::new(SqliteHistory::open(folder.path().join("history.db"), clock.clone()).unwrap());
    history.migrate().await.unwrap();
    let starts: Arc<Mutex<HashMap<String, Vec<DateTime<Utc>>>>> = Arc::default();
    let names: Vec<String> = (0..COUNT).map(|n| format!("job-{n:05}")).collect();
    let jobs = names.iter().map(|name| {
        let starts = starts.clone();
        job(name, move |ctx| {
            starts.lock().unwrap().entry(ctx.job.clone()).or_default().push(ctx.clock.now());
            async { done(1) }
        })
    });
    let store = warehouse(folder.path()).await;
    let runner = runner(history.clone(), store, clock.clone(), Arc::new(Notebook::default()), jobs.collect(), "owner");

    // Unoptimised code on a busy machine needs more than the 600 ms ahead that the scheduler gives.
    let slot = clock.now() + TimeDelta::seconds(8);
    runner.handle(names.iter().map(|name| due(name, slot)).collect());
    eventually("all have started", async || {
        let started = starts.lock().unwrap().len();
        if started == COUNT { Ok(()) } else { Err(started) }
    })
    .await;
    let starts = starts.lock().unwrap().clone();
    assert!(starts.values().all(|times| times.len() == 1), "no run starts twice");
    let early = starts.values().filter(|times| times[0] < slot).count();
    assert_eq!(early, 0, "none starts before its slot");
    let last = starts.values().map(|times| times[0] - slot).max().unwrap();
    // How late is measured on optimised code and an idle machine; here it is only told.
    println!("the last of {COUNT} started {} ms after its slot", last.num_milliseconds());

    runner.shutdown(Duration::from_secs(60)).await;
    let filter = lamplighter::history::RunFilter { limit: 20_000, ..Default::default() };
    let rows = history.runs(&filter).await.unwrap();
    let ended = rows.iter().filter(|run| run.state == RunState::Succeeded).count();
    assert_eq!((rows.len(), ended), (COUNT, COUNT), "every end is recorded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn two_replicas_on_one_postgres_never_run_the_same_slot_twice() {
    const JOBS: usize = 12;
    const SLOTS: i32 = 15;
    let database = Postgres::database().await;
    let folder = tempfile::tempdir().unwrap();
    let store = warehouse(folder.path()).await;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let names: Vec<String> = (0..JOBS).map(|n| format!("job-{n}")).collect();
    let starts: Arc<Mutex<HashMap<String, u32>>> = Arc::default();
    let replicas: Vec<_> = ["owner-a", "owner-b"]
        .map(|owner| {
            let history: SharedHistory = Arc::new(PostgresHistory::connect(&database.url.clone().into()).unwrap());
            let jobs = names.iter().map(|name| {
                let starts = starts.clone();
                let body = move |ctx: lamplighter::jobs::JobContext| {
                    *starts.lock().unwrap().entry(ctx.job).or_default() += 1;
                    async { done(1) }
                };
                job(name, body).overlap(Overlap::Allow)
            });
            let runner = runner(
                history.clone(),
                store.clone(),
                clock.clone(),
                Arc::new(Notebook::default()),
                jobs.collect(),
                owner,
            );
            runner.watch_for_lost_runs();
            (runner, history)
        })
        .into();
    let first = clock.now() + TimeDelta::milliseconds(700);
    for beat in 0..SLOTS {
        let slot = first + TimeDelta::milliseconds(200) * beat;
        clock.sleep_until(slot - TimeDelta::milliseconds(500)).await;
        for (runner, _) in &replicas {
            runner.handle(names.iter().map(|name| due(name, slot)).collect());
        }
    }
    for name in &names {
        eventually("every slot of the job is over", async || {
            let runs = rows(&replicas[0].1, name).await;
            let over = runs.iter().filter(|run| run.state == RunState::Succeeded).count();
            if over == SLOTS as usize { Ok(()) } else { Err(runs) }
        })
        .await;
        let runs = rows(&replicas[0].1, name).await;
        assert_eq!(runs.len(), SLOTS as usize, "{name} has one row for each slot");
    }
    let starts = starts.lock().unwrap().clone();
    assert!(starts.values().all(|count| *count == SLOTS as u32), "each slot ran once: {starts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_replica_takes_over_what_another_one_left_when_it_stopped() {
    let database = Postgres::database().await;
    let folder = tempfile::tempdir().unwrap();
    let store = warehouse(folder.path()).await;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let replica = |owner: &str, ends: bool| {
        let history: SharedHistory = Arc::new(PostgresHistory::connect(&database.url.clone().into()).unwrap());
        let body = move |_| async move {
            if !ends {
                std::future::pending::<()>().await;
            }
            done(1)
        };
        let jobs = vec![job("upload", body)];
        let bell = Arc::new(Notebook::default());
        (runner(history.clone(), store.clone(), clock.clone(), bell, jobs, owner), history)
    };
    let (old, history) = replica("old", false);
    let slot = clock.now();
    old.handle(vec![due("upload", slot)]);
    eventually("the old one runs", async || if old.running() == 1 { Ok(()) } else { Err("not yet") }).await;
    old.shutdown(Duration::ZERO).await;
    let (new, _) = replica("new", true);
    new.watch_for_lost_runs();
    let taken = eventually("the new one has run it", async || {
        let runs = rows(&history, "upload").await;
        runs.iter().find(|run| run.state == RunState::Succeeded).cloned().ok_or(runs)
    })
    .await;
    // Postgres keeps microseconds.
    assert_eq!(taken.slot.map(|at| at.timestamp_micros()), Some(slot.timestamp_micros()));
    assert_eq!((taken.attempt, taken.owner.as_str()), (2, "new"));
}
