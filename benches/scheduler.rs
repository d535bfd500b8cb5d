//! How late jobs start: an every-second job over some seconds, and ten thousand jobs due in the same second; beside them, in
//! the same run, tokio-cron-scheduler as shipped. `cargo bench --bench scheduler -- [SECONDS]`
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, DurationRound, TimeDelta, Timelike, Utc};
use lamplighter::clock::{Clock, SystemClock};
use lamplighter::schedule::{CatchUp, Schedule};
use lamplighter::scheduler::{Entry, LOOKAHEAD, Scheduler};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_cron_scheduler::{Job, JobScheduler};
use tokio_util::sync::CancellationToken;

const CROWD: usize = 10_000;

/// How long the crowd may take, from its second on, before it is counted.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() {
    let seconds = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(20);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime can be built").block_on(async {
        println!("start lateness of an every-second job over {seconds} s, in ms");
        let (ours, theirs) = tokio::join!(ours_every_second(seconds), theirs_every_second(seconds));
        compare(&ours, &theirs);
        println!("\n{CROWD} jobs due in the same second, lateness of their starts in ms");
        let ours = ours_crowd().await;
        let theirs = theirs_crowd().await;
        compare(&ours, &theirs);
    });
}

/// Lateness of each start, in seconds.
type Starts = Vec<f64>;

fn compare(ours: &[f64], theirs: &[f64]) {
    let row = |name: &str, starts: &[f64]| {
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| quantile(starts, share) * 1e3);
        println!("  {name:<36} {:>6} starts   p50 {p50:>8.2}   p99 {p99:>8.2}   max {max:>8.2}", starts.len());
        [p50, p99, max]
    };
    let ours = row("lamplighter", ours);
    let theirs = row("tokio-cron-scheduler 0.15 as shipped", theirs);
    let [p50, p99, max] = std::array::from_fn(|n| theirs[n] / ours[n]);
    println!("  {:<36} {:>13}   p50 {p50:>7.1}x   p99 {p99:>7.1}x   max {max:>7.1}x", "ratio", "");
}

fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = ((sorted.len() as f64 * share).ceil() as usize).saturating_sub(1);
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

fn late(slot: DateTime<Utc>) -> f64 {
    (SystemClock.now() - slot).as_seconds_f64()
}

/// Runs the scheduler and starts a task at the exact instant of every slot, as the runner does.
async fn ours(jobs: Vec<(String, Schedule)>, starts: usize, until: Instant) -> Starts {
    let scheduler = Scheduler::new(Arc::new(SystemClock), LOOKAHEAD);
    for (name, schedule) in jobs {
        let window = Duration::from_secs(3600);
        scheduler.upsert(&name, Entry { schedule, catch_up: CatchUp::All, window, paused: false }, None);
    }
    let (tx, mut rx) = mpsc::channel(16);
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(scheduler.run(tx, shutdown.clone()));
    let (started, mut bodies) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(batch) = rx.recv().await {
            for slot in batch.into_iter().flat_map(|due| due.run) {
                let started = started.clone();
                tokio::spawn(async move {
                    SystemClock.sleep_until(slot).await;
                    // Nobody listens any more once enough starts were seen.
                    let _ = started.send(late(slot));
                });
            }
        }
    });
    let found = collect(&mut bodies, starts, until).await;
    shutdown.cancel();
    running.await.expect("the scheduler does not panic").expect("the metronome goes on");
    found
}

async fn collect(rx: &mut mpsc::UnboundedReceiver<f64>, starts: usize, until: Instant) -> Starts {
    let mut found = Vec::with_capacity(starts);
    while found.len() < starts
        && let Ok(Some(late)) = timeout_at(until, rx.recv()).await
    {
        found.push(late);
    }
    found
}

async fn ours_every_second(seconds: u64) -> Starts {
    let schedule = Schedule::every(Duration::from_secs(1)).expect("a second is allowed");
    let until = Instant::now() + Duration::from_secs(seconds + 2);
    ours(vec![("tick".into(), schedule)], seconds as usize, until).await
}

/// It looks twice a second, so its lateness depends on when it was started: five of them, a tenth of a second apart.
async fn theirs_every_second(seconds: u64) -> Starts {
    let phases = (0..5).map(async |phase| {
        tokio::time::sleep(Duration::from_millis(phase * 100)).await;
        theirs_in_one_phase(seconds).await
    });
    futures_util::future::join_all(phases).await.concat()
}

async fn theirs_in_one_phase(seconds: u64) -> Starts {
    let mut scheduler = JobScheduler::new().await.expect("it can be made");
    let (tx, mut rx) = mpsc::unbounded_channel();
    let job = Job::new_async("* * * * * *", move |_, _| {
        let tx = tx.clone();
        Box::pin(async move {
            let second = SystemClock.now().duration_trunc(TimeDelta::seconds(1)).expect("a second can be cut off");
            let _ = tx.send(late(second));
        })
    });
    scheduler.add(job.expect("the line is right")).await.expect("it can be added");
    scheduler.start().await.expect("it can be started");
    let found = collect(&mut rx, seconds as usize, Instant::now() + Duration::from_secs(seconds + 2)).await;
    scheduler.shutdown().await.expect("it can be stopped");
    found
}

/// A line for one whole second, `ahead` from now.
fn line_in(ahead: TimeDelta) -> (DateTime<Utc>, String) {
    let slot = (SystemClock.now() + ahead).with_nanosecond(0).expect("a second has a nanosecond 0");
    (slot, format!("{} {} {} * * *", slot.second(), slot.minute(), slot.hour()))
}

async fn ours_crowd() -> Starts {
    let (_, line) = line_in(TimeDelta::seconds(4));
    let schedule = Schedule::cron(&line, chrono_tz::UTC).expect("the line is right");
    let jobs = (0..CROWD).map(|n| (format!("job-{n}"), schedule.clone())).collect();
    ours(jobs, CROWD, Instant::now() + Duration::from_secs(4) + PATIENCE).await
}

async fn theirs_crowd() -> Starts {
    // It takes its time to be told ten thousand jobs.
    let ahead = Duration::from_secs(30);
    let (slot, line) = line_in(TimeDelta::from_std(ahead).expect("it is short"));
    let mut scheduler = JobScheduler::new().await.expect("it can be made");
    let (tx, mut rx) = mpsc::unbounded_channel();
    let adding = async {
        for _ in 0..CROWD {
            let tx = tx.clone();
            let job = Job::new_async(line.as_str(), move |_, _| {
                let _ = tx.send(late(slot));
                Box::pin(async {})
            });
            scheduler.add(job.expect("the line is right")).await.expect("it can be added");
        }
    };
    let begun = Instant::now();
    if timeout(ahead - Duration::from_secs(2), adding).await.is_err() {
        println!("  (tokio-cron-scheduler had not taken all jobs after {:?})", begun.elapsed());
    }
    scheduler.start().await.expect("it can be started");
    let found = collect(&mut rx, CROWD, begun + ahead + PATIENCE).await;
    scheduler.shutdown().await.expect("it can be stopped");
    found
}
