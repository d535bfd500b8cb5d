//! What happens when a slot comes while the run before it is going.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use lamplighter::history::{MissedCause, RunState};
use lamplighter::jobs::Overlap;
use tokio::sync::Semaphore;

use super::bench::{self, Bench, TestJob, due};

fn gated(overlap: Overlap) -> (TestJob, Arc<Semaphore>) {
    let (job, gate) = bench::gated("upload");
    (job.overlap(overlap), gate)
}

/// Hands over a slot half a second ahead, as the scheduler does, and lets its instant come.
async fn come(bench: &Bench) -> DateTime<Utc> {
    let slot = bench.now() + TimeDelta::milliseconds(500);
    bench.runner.handle(vec![due("upload", slot)]);
    bench.settle().await;
    bench.clock.advance(Duration::from_millis(500));
    slot
}

#[tokio::test]
async fn with_skip_the_slot_is_missed_and_the_running_one_goes_on() {
    let (upload, gate) = gated(Overlap::Skip);
    let bench = Bench::new(vec![upload]).await;
    come(&bench).await;
    bench.until_running(1).await;
    let second = come(&bench).await;
    let missed = bench.run_in("upload", RunState::Missed).await;
    assert_eq!((missed.slot, missed.cause), (Some(second), Some(MissedCause::Overlap)));
    gate.add_permits(1);
    bench.run_in("upload", RunState::Succeeded).await;
    assert_eq!(bench.states("upload").await.len(), 2);
}

#[tokio::test]
async fn overlap_is_decided_at_the_slots_instant_and_not_when_it_is_claimed() {
    let (upload, gate) = gated(Overlap::Skip);
    let bench = Bench::new(vec![upload]).await;
    come(&bench).await;
    bench.until_running(1).await;
    // The next slot is handed over while the first still runs, but the first ends before the slot's instant.
    let slot = bench.now() + TimeDelta::milliseconds(500);
    bench.runner.handle(vec![due("upload", slot)]);
    bench.settle().await;
    gate.add_permits(2);
    bench.run_in("upload", RunState::Succeeded).await;
    bench.clock.advance(Duration::from_millis(500));
    bench.until("both ran", async || bench.states("upload").await == [RunState::Succeeded; 2]).await;
}

#[tokio::test]
async fn with_queue_all_that_wait_run_in_order_and_one_at_a_time() {
    let (upload, gate) = gated(Overlap::Queue);
    let bench = Bench::new(vec![upload]).await;
    let mut slots = vec![come(&bench).await];
    bench.until_running(1).await;
    for _ in 0..4 {
        slots.push(come(&bench).await);
        bench.settle().await;
    }
    for ended in 1..=5 {
        bench.clock.advance(Duration::from_millis(10));
        gate.add_permits(1);
        bench
            .until("one more has run, and at most one runs", async || {
                let states = bench.states("upload").await;
                let count = |state| states.iter().filter(|seen| **seen == state).count();
                assert!(count(RunState::Running) <= 1, "{states:?}");
                count(RunState::Succeeded) == ended
            })
            .await;
    }
    let mut rows = bench.rows("upload").await;
    rows.sort_by_key(|run| run.finished_at);
    assert_eq!(rows.iter().filter_map(|run| run.slot).collect::<Vec<_>>(), slots);
}

#[tokio::test]
async fn the_queue_is_bounded_and_what_does_not_fit_is_missed() {
    let (upload, gate) = gated(Overlap::Queue);
    let bench = Bench::new(vec![upload]).await;
    come(&bench).await;
    bench.until_running(1).await;
    for _ in 0..102 {
        come(&bench).await;
    }
    bench
        .until("two slots did not fit", async || {
            let states = bench.states("upload").await;
            states.iter().filter(|state| **state == RunState::Missed).count() == 2
        })
        .await;
    gate.add_permits(101);
    bench
        .until("all others ran", async || {
            let states = bench.states("upload").await;
            states.iter().filter(|state| **state == RunState::Succeeded).count() == 101
        })
        .await;
}

#[tokio::test]
async fn with_allow_both_run_at_once() {
    let (upload, gate) = gated(Overlap::Allow);
    let bench = Bench::new(vec![upload]).await;
    come(&bench).await;
    come(&bench).await;
    bench.until_running(2).await;
    gate.add_permits(2);
    bench.until("both ran", async || bench.states("upload").await == [RunState::Succeeded; 2]).await;
}
