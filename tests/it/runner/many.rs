//! Many runs at once, and several replicas.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use lamplighter::clock::{Clock, SystemClock};
use lamplighter::history::{History, RunState, SharedHistory, SqliteHistory};

use super::bench::{Notebook, due, eventually, job, runner, warehouse};
use super::done;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
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

    // Unoptimised code needs more than the 600 ms ahead that the scheduler gives.
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
    println!("the last of {COUNT} started {} ms after its slot", last.num_milliseconds());
    assert!(last < TimeDelta::seconds(2), "the last one started {last} late");

    runner.shutdown(Duration::from_secs(60)).await;
    let filter = lamplighter::history::RunFilter { limit: 20_000, ..Default::default() };
    let rows = history.runs(&filter).await.unwrap();
    let ended = rows.iter().filter(|run| run.state == RunState::Succeeded).count();
    assert_eq!((rows.len(), ended), (COUNT, COUNT), "every end is recorded");
}
