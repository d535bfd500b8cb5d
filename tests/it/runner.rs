//! The runner over real histories, with small jobs made here and a clock that is moved by hand.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod bench;
mod many;
mod outage;
mod overlap;
mod replicas;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use chrono::TimeDelta;
use lamplighter::history::{AlertState, MissedCause, NewRun, RunState, Trigger};
use lamplighter::jobs::{Finding, JobError, OnCrash, Outcome};
use lamplighter::runner::{Due, NotRun};
use lamplighter::schedule::MissedSlots;

use self::bench::{Bench, due, job, state_of};

fn done(rows: u64) -> Result<Outcome, JobError> {
    Ok(Outcome::Done { findings: vec![Finding::count("rows_moved", rows)], rows: Some(rows) })
}

fn passing(message: &str) -> JobError {
    JobError::passing(std::io::Error::other(message.to_owned()))
}

#[tokio::test]
async fn a_run_that_succeeds_is_recorded_with_its_rows_and_findings() {
    let bench = Bench::new(vec![job("upload", |_| async { done(12) })]).await;
    let slot = bench.now();
    bench.runner.handle(vec![due("upload", slot)]);
    let run = bench.run_in("upload", RunState::Succeeded).await;
    assert_eq!((run.slot, run.attempt, run.trigger, run.rows), (Some(slot), 1, Trigger::Schedule, Some(12)));
    assert_eq!((run.started_at, run.finished_at, run.error), (Some(slot), Some(slot), None));
    assert_eq!(run.findings[0]["name"], "rows_moved");
    assert_eq!((run.owner.as_str(), run.host.as_str(), run.version.as_str()), ("owner-1", "host", "1.2.3"));
}

#[tokio::test]
async fn a_claim_is_made_ahead_and_the_body_starts_at_the_slots_instant() {
    let bench = Bench::new(vec![job("upload", |_| async { done(1) })]).await;
    let slot = bench.now() + TimeDelta::milliseconds(500);
    bench.runner.handle(vec![due("upload", slot)]);
    let claimed = bench.run_in("upload", RunState::Running).await;
    assert_eq!(claimed.started_at, Some(slot), "a claimed run says when its body starts");
    bench.clock.advance(Duration::from_millis(499));
    bench.settle().await;
    assert_eq!(
        bench.states("upload").await,
        [RunState::Running],
        "a millisecond before its slot the body must not run"
    );
    bench.clock.advance(Duration::from_millis(1));
    let run = bench.run_in("upload", RunState::Succeeded).await;
    assert_eq!(run.started_at, Some(slot));
}

#[tokio::test]
async fn a_failed_run_is_retried_and_both_attempts_are_recorded() {
    let tries = AtomicU32::new(0);
    let flaky = job("flaky", move |_| {
        let first = tries.fetch_add(1, Ordering::SeqCst) == 0;
        async move { if first { Err(passing("the server hiccuped")) } else { done(3) } }
    });
    let bench = Bench::new(vec![flaky.attempts(3, Duration::from_secs(60))]).await;
    let slot = bench.now();
    bench.runner.handle(vec![due("flaky", slot)]);
    let first = bench.run_in("flaky", RunState::Failed).await;
    assert_eq!((first.attempt, first.error.as_deref()), (1, Some("the server hiccuped")));
    assert_eq!(bench.alerts().await, [], "nobody is told while another attempt follows");

    // A minute, give or take a quarter.
    bench.clock.advance(Duration::from_secs(44));
    bench.settle().await;
    assert_eq!(bench.states("flaky").await, [RunState::Failed]);
    bench.clock.advance(Duration::from_secs(32));
    let second = bench.run_in("flaky", RunState::Succeeded).await;
    assert_eq!((second.attempt, second.trigger, second.slot), (2, Trigger::Retry, Some(slot)));
    assert_eq!(bench.states("flaky").await, [RunState::Succeeded, RunState::Failed]);
}

#[tokio::test]
async fn a_run_that_fails_for_good_is_told_about_once_and_its_recovery_too() {
    let broken = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let switch = broken.clone();
    let upload = job("upload", move |_| {
        let broken = switch.load(Ordering::SeqCst);
        async move { if broken { Err(JobError::permanent(std::io::Error::other("no permission"))) } else { done(1) } }
    });
    let bench = Bench::new(vec![upload.attempts(5, Duration::from_secs(1))]).await;
    bench.runner.handle(vec![due("upload", bench.now())]);
    bench.run_in("upload", RunState::Failed).await;
    let firing = bench.eventually_alert("job_failed", AlertState::Firing).await;
    assert!(firing.summary.contains("no permission"), "{}", firing.summary);

    bench.clock.advance(Duration::from_secs(60));
    bench.settle().await;
    assert_eq!(bench.states("upload").await, [RunState::Failed], "a permanent failure is not tried again");

    broken.store(false, Ordering::SeqCst);
    bench.runner.handle(vec![due("upload", bench.now())]);
    bench.run_in("upload", RunState::Succeeded).await;
    bench.eventually_alert("job_failed", AlertState::Resolved).await;
    assert!(bench.woken() >= 2, "the dispatcher is woken for each message");
}

#[tokio::test]
async fn a_panic_is_a_failure_with_its_message() {
    let bench = Bench::new(vec![job("upload", |ctx| async move { panic!("row {} of {} is odd", 7, ctx.job) })]).await;
    bench.runner.handle(vec![due("upload", bench.now())]);
    let run = bench.run_in("upload", RunState::Failed).await;
    assert_eq!(run.error.as_deref(), Some("panicked: row 7 of upload is odd"));
    // The runner lives on.
    bench.runner.handle(vec![due("upload", bench.now() + TimeDelta::seconds(1))]);
    bench.clock.advance(Duration::from_secs(1));
    bench.until("both runs have failed", async || bench.states("upload").await == [RunState::Failed; 2]).await;
}

#[tokio::test]
async fn a_run_is_stopped_at_its_time_limit() {
    let stuck = job("stuck", |_| std::future::pending()).timeout(Duration::from_millis(50));
    let bench = Bench::new(vec![stuck]).await;
    bench.runner.handle(vec![due("stuck", bench.now())]);
    let run = bench.run_in("stuck", RunState::TimedOut).await;
    assert_eq!(run.error.as_deref(), Some("stopped after its time limit of 50ms (`timeout`)"));
}

#[tokio::test]
async fn a_job_that_finds_nothing_to_do_is_recorded_as_skipped() {
    let bench =
        Bench::new(vec![job("upload", |_| async { Ok(Outcome::Skipped("the queue is empty".to_owned())) })]).await;
    bench.runner.handle(vec![due("upload", bench.now())]);
    let run = bench.run_in("upload", RunState::Skipped).await;
    assert_eq!(run.error.as_deref(), Some("the queue is empty"));
}

#[tokio::test]
async fn slots_that_were_missed_have_rows_with_their_cause_and_ring() {
    let bench =
        Bench::new(vec![job("upload", |_| async { done(1) }), job("paused", |_| async { done(1) }).paused()]).await;
    let now = bench.now();
    let (first, last) = (now - TimeDelta::hours(30), now - TimeDelta::hours(2));
    let missed = vec![MissedSlots { first, last, count: 15 }, MissedSlots::one(now - TimeDelta::hours(1))];
    let down =
        Due { job: "upload".into(), run: vec![now - TimeDelta::minutes(5)], missed, cause: Some(MissedCause::Down) };
    let held = Due { job: "paused".into(), run: vec![now], missed: Vec::new(), cause: None };
    bench.runner.handle(vec![down, held]);

    let caught_up = bench.run_in("upload", RunState::Succeeded).await;
    assert_eq!(caught_up.trigger, Trigger::CatchUp);
    bench.until("both rows are there", async || bench.rows("upload").await.len() == 3).await;
    let mut rows: Vec<_> = bench.rows("upload").await.into_iter().filter(|run| run.state == RunState::Missed).collect();
    rows.sort_by_key(|run| run.slot);
    assert_eq!(
        rows.iter().map(|run| (run.slot, run.slots, run.cause)).collect::<Vec<_>>(),
        [(Some(last), 15, Some(MissedCause::Down)), (Some(now - TimeDelta::hours(1)), 1, Some(MissedCause::Down)),]
    );
    assert!(rows[0].error.as_deref().is_some_and(|text| text.starts_with("15 slots, from ")), "{:?}", rows[0].error);
    let paused = bench.run_in("paused", RunState::Missed).await;
    assert_eq!((paused.cause, paused.slot), (Some(MissedCause::Paused), Some(now)));
    let alert = bench.eventually_named("run_missed").await;
    assert_eq!(alert.labels["job"], "upload", "nobody is told about a job that a person paused");
}

#[tokio::test]
async fn slots_that_are_caught_up_run_one_after_the_other_oldest_first() {
    let bench = Bench::new(vec![job("upload", |ctx| async move {
        ctx.clock.sleep_until(ctx.clock.now() + TimeDelta::seconds(5)).await;
        done(1)
    })])
    .await;
    let slots: Vec<_> = [3, 2, 1].map(|hours| bench.now() - TimeDelta::hours(hours)).into();
    let caught = Due { job: "upload".into(), run: slots.clone(), missed: vec![], cause: Some(MissedCause::Down) };
    bench.runner.handle(vec![caught]);
    for ended in 0..3 {
        bench
            .until("the next slot runs, alone", async || {
                let states = bench.states("upload").await;
                states.len() == ended + 1 && states[0] == RunState::Running
            })
            .await;
        bench.clock_moves_when_a_body_waits(Duration::from_secs(5)).await;
    }
    bench.until("all have run", async || bench.states("upload").await == [RunState::Succeeded; 3]).await;
    let mut rows = bench.rows("upload").await;
    rows.sort_by_key(|run| run.started_at);
    assert_eq!(rows.iter().filter_map(|run| run.slot).collect::<Vec<_>>(), slots);
}

#[tokio::test]
async fn a_stopping_runner_lets_bodies_end_and_starts_nothing_new() {
    let bench = Bench::new(vec![job("polite", |ctx| async move {
        ctx.stopping.cancelled().await;
        done(40)
    })])
    .await;
    bench.runner.handle(vec![due("polite", bench.now())]);
    bench.until_running(1).await;
    bench.runner.shutdown(Duration::from_secs(20)).await;
    assert_eq!(bench.states("polite").await, [RunState::Succeeded], "it used the grace period to end");

    let late = bench.now() + TimeDelta::hours(1);
    bench.runner.handle(vec![due("polite", late)]);
    bench.settle().await;
    // A row would keep another replica from running the slot, and the next start from catching it up.
    assert_eq!(bench.states("polite").await, [RunState::Succeeded]);
}

#[tokio::test]
async fn what_does_not_end_within_the_grace_period_is_cancelled_and_resumed_at_the_next_start() {
    let bench = Bench::new(vec![job("deaf", |_| std::future::pending())]).await;
    let slot = bench.now();
    bench.runner.handle(vec![due("deaf", slot)]);
    bench.until_running(1).await;
    bench.runner.shutdown(Duration::from_millis(50)).await;
    let run = bench.run_in("deaf", RunState::Cancelled).await;
    assert!(run.error.as_deref().is_some_and(|text| text.contains("grace period")), "{:?}", run.error);

    let next = bench.another_runner(vec![job("deaf", |_| async { done(1) })], "owner-2");
    next.watch_for_lost_runs();
    let resumed = bench.run_in("deaf", RunState::Succeeded).await;
    assert_eq!((resumed.slot, resumed.attempt, resumed.trigger), (Some(slot), 2, Trigger::Takeover));
}

/// What a process leaves that dies during a run.
async fn dead_replica(bench: &Bench, job: &str, slot: Option<chrono::DateTime<chrono::Utc>>) {
    let claim = NewRun {
        id: format!("DEAD-{job}"),
        job: job.to_owned(),
        slot,
        attempt: 1,
        trigger: if slot.is_some() { Trigger::Schedule } else { Trigger::Manual },
        exclusive: true,
        owner: "dead".to_owned(),
        host: "elsewhere".to_owned(),
        version: "1.2.3".to_owned(),
        started_at: bench.now(),
        lease: Duration::from_secs(30),
    };
    bench.history.claim(&[claim]).await.unwrap();
}

#[tokio::test]
async fn the_run_of_a_dead_process_is_taken_over_when_its_lease_ends() {
    let bench = Bench::new(vec![
        job("rerun", |_| async { done(1) }),
        job("fail", |_| async { done(1) }).on_crash(OnCrash::Fail),
        job("by_hand", |_| async { done(1) }),
    ])
    .await;
    let slot = bench.now();
    dead_replica(&bench, "rerun", Some(slot)).await;
    dead_replica(&bench, "fail", Some(slot)).await;
    dead_replica(&bench, "by_hand", None).await;
    bench.runner.watch_for_lost_runs();
    bench.clock.advance(Duration::from_secs(29));
    bench.settle().await;
    assert_eq!(bench.states("rerun").await, [RunState::Running], "its lease still lasts");

    bench.clock.advance(Duration::from_secs(7));
    let taken = bench.run_in("rerun", RunState::Succeeded).await;
    assert_eq!((taken.slot, taken.attempt, taken.trigger), (Some(slot), 2, Trigger::Takeover));
    assert_eq!(bench.states("rerun").await, [RunState::Succeeded, RunState::Lost]);
    let alert = bench.until_some("the job that must not be rerun rings", async || {
        bench.alerts().await.into_iter().find(|alert| alert.labels["job"] == "fail")
    });
    assert_eq!(alert.await.name, "job_failed");
    assert_eq!(bench.states("fail").await, [RunState::Lost]);
    assert_eq!(bench.states("by_hand").await, [RunState::Lost], "a person's run is that person's to start again");
}

#[tokio::test]
async fn a_job_that_kills_its_process_is_not_run_for_ever() {
    let bench = Bench::new(vec![job("deadly", |_| async { done(1) })]).await;
    let slot = bench.now();
    bench.runner.shutdown(Duration::ZERO).await;
    for attempt in 1..=3 {
        let mut claim = NewRun {
            id: format!("DEAD-{attempt}"),
            job: "deadly".to_owned(),
            slot: Some(slot),
            attempt,
            trigger: Trigger::Takeover,
            exclusive: true,
            owner: "dead".to_owned(),
            host: String::new(),
            version: String::new(),
            started_at: slot,
            lease: Duration::from_secs(30),
        };
        claim.owner.push_str(&attempt.to_string());
        bench.history.claim(&[claim]).await.unwrap();
        bench.clock.advance(Duration::from_secs(31));
        bench.history.reap().await.unwrap();
    }
    let runner = bench.another_runner(vec![job("deadly", |_| async { done(1) })], "owner-2");
    assert_eq!(runner.handle_and_wait(Vec::new()).await, []);
    assert_eq!(bench.states("deadly").await, [RunState::Lost; 3]);
}

#[tokio::test]
async fn a_run_whose_claim_is_gone_is_stopped_and_writes_nothing_more() {
    let alive = std::sync::Arc::new(());
    let in_job = alive.clone();
    let upload = job("upload", move |_| {
        let in_body = in_job.clone();
        async move {
            std::future::pending::<()>().await;
            drop(in_body);
            done(1)
        }
    });
    let bench = Bench::new(vec![upload]).await;
    bench.runner.handle(vec![due("upload", bench.now())]);
    bench.until("the body runs", async || std::sync::Arc::strong_count(&alive) == 3).await;
    // The process sleeps for longer than its lease. Meanwhile another replica looks for lost runs.
    bench.sleep_through(Duration::from_secs(31)).await;
    bench.until_running(0).await;
    assert_eq!(std::sync::Arc::strong_count(&alive), 2, "the body is gone: only the test and the job are left");
    let run = bench.run_in("upload", RunState::Lost).await;
    assert_eq!((run.rows, run.duration_ms), (None, None), "only the reaper wrote");
    assert_eq!(bench.states("upload").await.len(), 1);
}

#[tokio::test]
async fn heartbeats_keep_a_long_run_ours() {
    let bench = Bench::new(vec![job("long", |ctx| async move {
        ctx.clock.sleep_until(ctx.clock.now() + TimeDelta::minutes(5)).await;
        done(1)
    })])
    .await;
    bench.runner.handle(vec![due("long", bench.now())]);
    bench.until_running(1).await;
    for _ in 0..30 {
        bench.clock.advance(Duration::from_secs(10));
        bench.settle().await;
        assert_eq!(bench.history.reap().await.unwrap(), [], "the lease is renewed three times per lease");
    }
    bench.run_in("long", RunState::Succeeded).await;
}

#[tokio::test]
async fn a_job_can_be_run_by_hand_and_answers_with_its_last_attempt() {
    let tries = AtomicU32::new(0);
    let flaky = job("flaky", move |_| {
        let first = tries.fetch_add(1, Ordering::SeqCst) == 0;
        async move { if first { Err(passing("not yet")) } else { done(9) } }
    });
    let bench = Bench::new(vec![flaky.attempts(2, Duration::from_millis(1))]).await;
    let run = bench.runner.run_now("flaky", Default::default()).await.unwrap();
    assert_eq!((run.state, run.attempt, run.slot, run.rows), (RunState::Succeeded, 2, None, Some(9)));
    // Both were claimed in the same instant of a clock that stands still, so their order says nothing.
    let mut tries: Vec<_> = bench.rows("flaky").await.iter().map(|run| (run.attempt, run.trigger)).collect();
    tries.sort();
    assert_eq!(tries, [(1, Trigger::Manual), (2, Trigger::Retry)]);
    assert!(matches!(bench.runner.run_now("flacky", Default::default()).await, Err(NotRun::Unknown(_))));
}

#[tokio::test]
async fn a_run_by_hand_waits_for_a_dead_process_but_not_for_a_living_one() {
    let bench = Bench::new(vec![job("upload", |_| async { done(1) }), job("busy", |_| std::future::pending())]).await;
    dead_replica(&bench, "upload", None).await;
    let runner = bench.runner.clone();
    let by_hand = tokio::spawn(async move { runner.run_now("upload", Default::default()).await });
    for _ in 0..32 {
        bench.clock.advance(Duration::from_secs(1));
        bench.settle().await;
    }
    assert_eq!(by_hand.await.unwrap().unwrap().state, RunState::Succeeded);
    assert_eq!(bench.states("upload").await, [RunState::Succeeded, RunState::Lost]);

    bench.runner.handle(vec![due("busy", bench.now())]);
    bench.until_running(1).await;
    let refused = bench.runner.run_now("busy", Default::default()).await.unwrap_err();
    assert!(matches!(&refused, NotRun::Busy { other, .. } if !other.is_empty()), "{refused}");
    assert_eq!(state_of(&bench.rows("busy").await), [RunState::Running]);
}

#[tokio::test]
async fn a_failure_whose_next_attempt_is_cut_off_by_the_end_of_the_program_is_told_after_all() {
    let flaky = job("flaky", |_| async { Err(passing("the server hiccuped")) });
    let bench = Bench::new(vec![flaky.attempts(3, Duration::from_secs(3_600))]).await;
    bench.runner.handle(vec![due("flaky", bench.now())]);
    bench.run_in("flaky", RunState::Failed).await;
    assert_eq!(bench.alerts().await, []);
    bench.runner.shutdown(Duration::from_secs(5)).await;
    let alert = bench.eventually_alert("job_failed", AlertState::Firing).await;
    assert!(alert.summary.contains("the server hiccuped"), "{}", alert.summary);
}
