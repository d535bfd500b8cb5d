//! Jobs and runs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use lamplighter::history::{Claim, JobRow, MissedCause, NewRun, Run, RunFilter, RunState, Trigger};

use super::{Bench, LEASE, at, at_once, change, end, new_id, on_both, run};
use lamplighter::history::AlertState::Firing;

on_both![
    daemons_see_each_other_until_they_end_or_fall_silent,
    eight_replicas_claim_fifty_slots_and_each_is_won_once,
    a_second_run_of_an_exclusive_job_is_busy_until_the_first_ends,
    runs_that_are_not_exclusive_go_side_by_side,
    claims_of_one_call_may_contradict_each_other,
    a_claim_whose_answer_was_lost_is_still_won,
    a_slot_may_be_tried_again_with_the_next_attempt,
    a_won_claim_is_a_running_row,
    ten_thousand_claims_in_one_call_are_fast,
    a_heartbeat_renews_the_leases_of_its_owner_only,
    an_ended_lease_is_not_renewed_and_is_reaped_once,
    eight_reapers_share_a_hundred_lost_runs,
    a_run_is_finished_once,
    a_lost_run_cannot_be_finished,
    a_finish_whose_message_cannot_be_queued_changes_nothing,
    a_finish_whose_answer_was_lost_is_still_done,
    recorded_runs_that_exist_are_left_out_with_their_alerts,
    the_last_slots_count_whatever_became_of_them,
    runs_are_listed_newest_first_and_filtered,
    long_errors_are_cut,
    jobs_that_are_gone_are_retired_and_may_come_back,
    two_replicas_sync_their_jobs_at_once,
];

async fn all(bench: &Bench) -> Vec<Run> {
    bench.history.runs(&RunFilter { limit: 1_000, ..RunFilter::default() }).await.unwrap()
}

fn exclusive(mut run: NewRun) -> NewRun {
    run.exclusive = true;
    run
}

async fn daemons_see_each_other_until_they_end_or_fall_silent(bench: Bench) {
    let (a, b) = (&bench.history, bench.replica());
    assert_eq!(a.check_in("a", LEASE).await.unwrap(), ["a"]);
    assert_eq!(b.check_in("b", LEASE).await.unwrap(), ["a", "b"]);
    bench.pass(LEASE / 2).await;
    assert_eq!(a.check_in("a", LEASE).await.unwrap(), ["a", "b"]);
    bench.pass(LEASE / 2).await;
    assert_eq!(a.check_in("a", LEASE).await.unwrap(), ["a"], "b has fallen silent");
    assert_eq!(b.check_in("b", LEASE).await.unwrap(), ["a", "b"], "and is back");
    a.check_out("a").await.unwrap();
    a.check_out("nobody").await.unwrap();
    assert_eq!(b.check_in("b", LEASE).await.unwrap(), ["b"]);

    // Many at once, over rows that have ended, do not stand in each other's way.
    bench.pass(LEASE).await;
    let daemons: Vec<_> = (0..8).map(|number| (bench.replica(), format!("daemon-{number}"))).collect();
    let tasks = daemons.into_iter().map(|(history, owner)| {
        tokio::spawn(async move {
            for _ in 0..10 {
                history.check_in(&owner, Duration::ZERO).await.unwrap();
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
}

async fn eight_replicas_claim_fifty_slots_and_each_is_won_once(bench: Bench) {
    let answers = at_once(&bench, 8, |history, replica| async move {
        let mut runs: Vec<NewRun> = (0..50).map(|minute| run(&format!("job-{}", minute % 5), minute)).collect();
        // Each in another order, as replicas do.
        runs.rotate_left(replica * 6);
        let answers = history.claim(&runs).await.unwrap();
        runs.into_iter().zip(answers).map(|(run, answer)| (run.slot.unwrap(), answer)).collect::<Vec<_>>()
    })
    .await;
    let mut won = BTreeMap::new();
    for (slot, answer) in answers.into_iter().flatten() {
        match answer {
            Claim::Won => *won.entry(slot).or_insert(0) += 1,
            Claim::Taken => {}
            Claim::Busy(_) => panic!("nothing here is exclusive"),
        }
    }
    assert_eq!(won.len(), 50);
    assert!(won.values().all(|times| *times == 1), "{won:?}");
    assert_eq!(all(&bench).await.len(), 50);
}

async fn a_second_run_of_an_exclusive_job_is_busy_until_the_first_ends(bench: Bench) {
    let (first, second) = (exclusive(run("upload", 0)), exclusive(run("upload", 1)));
    let other = exclusive(run("check", 0));
    assert_eq!(bench.history.claim(&[first.clone(), other]).await.unwrap(), [Claim::Won, Claim::Won]);
    let replica = bench.replica();
    assert_eq!(replica.claim(std::slice::from_ref(&second)).await.unwrap(), [Claim::Busy(first.id.clone())]);
    assert!(bench.history.finish(&first.id, &end(RunState::Failed), &[]).await.unwrap());
    assert_eq!(replica.claim(&[second]).await.unwrap(), [Claim::Won]);
}

async fn runs_that_are_not_exclusive_go_side_by_side(bench: Bench) {
    let by_hand = |mut run: NewRun| {
        run.slot = None;
        run.trigger = Trigger::Manual;
        run
    };
    let runs = [run("check", 0), run("check", 1), by_hand(run("check", 0)), by_hand(run("check", 0))];
    assert_eq!(bench.history.claim(&runs).await.unwrap(), vec![Claim::Won; 4]);
}

async fn claims_of_one_call_may_contradict_each_other(bench: Bench) {
    let runs = [exclusive(run("a", 0)), exclusive(run("a", 1)), run("b", 0), run("b", 0), exclusive(run("a", 0))];
    let answers = bench.history.claim(&runs).await.unwrap();
    assert_eq!(
        answers,
        [Claim::Won, Claim::Busy(runs[0].id.clone()), Claim::Won, Claim::Taken, Claim::Taken],
        "the earlier slot goes first, and whoever has the slot matters more than who keeps the job busy"
    );
}

async fn a_claim_whose_answer_was_lost_is_still_won(bench: Bench) {
    let mine = exclusive(run("upload", 0));
    for _ in 0..2 {
        assert_eq!(bench.history.claim(std::slice::from_ref(&mine)).await.unwrap(), [Claim::Won]);
    }
    assert!(bench.history.finish(&mine.id, &end(RunState::Succeeded), &[]).await.unwrap());
    assert_eq!(bench.history.claim(&[mine]).await.unwrap(), [Claim::Taken], "it is over now");
}

async fn a_slot_may_be_tried_again_with_the_next_attempt(bench: Bench) {
    let first = exclusive(run("upload", 0));
    bench.history.claim(std::slice::from_ref(&first)).await.unwrap();
    bench.history.finish(&first.id, &end(RunState::Failed), &[]).await.unwrap();
    let again = NewRun { id: new_id(), attempt: 2, trigger: Trigger::Retry, ..first.clone() };
    let twice = NewRun { id: new_id(), ..again.clone() };
    assert_eq!(bench.history.claim(&[NewRun { id: new_id(), ..first }]).await.unwrap(), [Claim::Taken]);
    assert_eq!(bench.history.claim(&[again]).await.unwrap(), [Claim::Won]);
    assert_eq!(bench.replica().claim(&[twice]).await.unwrap(), [Claim::Taken]);
}

async fn a_won_claim_is_a_running_row(bench: Bench) {
    let mine = NewRun { trigger: Trigger::CatchUp, ..run("upload", 0) };
    bench.history.claim(std::slice::from_ref(&mine)).await.unwrap();
    let row = all(&bench).await.remove(0);
    let expected = Run {
        id: mine.id,
        job: "upload".to_owned(),
        slot: mine.slot,
        attempt: 1,
        trigger: Trigger::CatchUp,
        state: RunState::Running,
        cause: None,
        slots: 1,
        owner: "replica-1".to_owned(),
        host: "host-1".to_owned(),
        version: "0.1.0".to_owned(),
        created_at: row.created_at,
        started_at: Some(mine.started_at),
        finished_at: None,
        duration_ms: None,
        rows: None,
        error: None,
        findings: serde_json::json!([]),
    };
    assert_eq!(row, expected);
}

#[expect(clippy::print_stdout, reason = "the figures are what one wants to see with --nocapture")]
async fn ten_thousand_claims_in_one_call_are_fast(bench: Bench) {
    let name = bench.history.describe();
    let runs: Vec<NewRun> = (0..10_000).map(|i| exclusive(run(&format!("job-{i}"), 0))).collect();
    bench.history.ping().await.unwrap();
    let start = Instant::now();
    let answers = bench.history.claim(&runs).await.unwrap();
    let won = start.elapsed();
    assert!(answers.iter().all(|answer| *answer == Claim::Won));

    let late: Vec<NewRun> = runs.iter().map(|run| NewRun { id: new_id(), ..run.clone() }).collect();
    let start = Instant::now();
    let answers = bench.history.claim(&late).await.unwrap();
    let taken = start.elapsed();
    assert!(answers.iter().all(|answer| *answer == Claim::Taken));

    let start = Instant::now();
    assert_eq!(bench.history.heartbeat("replica-1", LEASE).await.unwrap().len(), 10_000);
    let renewed = start.elapsed();
    println!("{name}: 10,000 claims won in {won:?}, taken in {taken:?}, renewed in {renewed:?}");
    // Many times what it takes without optimisation on a busy machine, and far below one round trip per claim.
    assert!(won.as_secs() < 10 && taken.as_secs() < 10, "won in {won:?}, taken in {taken:?}");
}

async fn a_heartbeat_renews_the_leases_of_its_owner_only(bench: Bench) {
    let mine = run("mine", 0);
    let theirs = NewRun { owner: "replica-2".to_owned(), ..run("theirs", 0) };
    bench.history.claim(&[mine.clone(), theirs.clone()]).await.unwrap();
    for _ in 0..3 {
        bench.pass(LEASE / 2).await;
        assert_eq!(bench.history.heartbeat("replica-1", LEASE).await.unwrap(), std::slice::from_ref(&mine.id));
    }
    let lost = bench.history.reap().await.unwrap();
    assert_eq!(lost.iter().map(|run| &run.id).collect::<Vec<_>>(), [&theirs.id]);
    assert!(bench.history.finish(&mine.id, &end(RunState::Succeeded), &[]).await.unwrap());
    assert!(bench.history.heartbeat("replica-1", LEASE).await.unwrap().is_empty(), "a run that is over holds nothing");
}

async fn an_ended_lease_is_not_renewed_and_is_reaped_once(bench: Bench) {
    let mine = exclusive(run("upload", 0));
    bench.history.claim(std::slice::from_ref(&mine)).await.unwrap();
    assert!(bench.history.reap().await.unwrap().is_empty(), "the lease still holds");
    bench.pass(LEASE * 2).await;
    assert!(bench.history.heartbeat("replica-1", LEASE).await.unwrap().is_empty());
    let lost = bench.history.reap().await.unwrap();
    assert_eq!(lost.len(), 1);
    assert_eq!((&lost[0].id, lost[0].state), (&mine.id, RunState::Lost));
    assert!(lost[0].finished_at.is_some() && lost[0].error.is_some(), "{:?}", lost[0]);
    assert!(bench.history.reap().await.unwrap().is_empty());
    let next = NewRun { id: new_id(), attempt: 2, trigger: Trigger::Takeover, ..mine };
    assert_eq!(bench.history.claim(&[next]).await.unwrap(), [Claim::Won], "a lost run keeps nobody busy");
}

async fn eight_reapers_share_a_hundred_lost_runs(bench: Bench) {
    let runs: Vec<NewRun> = (0..100).map(|minute| run("upload", minute)).collect();
    bench.history.claim(&runs).await.unwrap();
    bench.pass(LEASE * 2).await;
    let reaped = at_once(&bench, 8, |history, _| async move { history.reap().await.unwrap() }).await;
    let mut ids: Vec<String> = reaped.into_iter().flatten().map(|run| run.id).collect();
    ids.sort();
    let mut expected: Vec<String> = runs.into_iter().map(|run| run.id).collect();
    expected.sort();
    assert_eq!(ids, expected);
}

async fn a_run_is_finished_once(bench: Bench) {
    let mine = run("upload", 0);
    bench.history.claim(std::slice::from_ref(&mine)).await.unwrap();
    assert!(bench.history.finish(&mine.id, &end(RunState::Failed), &[]).await.unwrap());
    assert!(!bench.history.finish(&mine.id, &end(RunState::Succeeded), &[]).await.unwrap());
    assert!(!bench.history.finish("01NOBODYHASTHISID000000000", &end(RunState::Succeeded), &[]).await.unwrap());
    let row = all(&bench).await.remove(0);
    assert_eq!((row.state, row.rows, row.duration_ms), (RunState::Failed, Some(7), Some(1_500)));
    assert_eq!(row.started_at, Some(at("2025-11-27T02:00:00.5Z")));
    assert_eq!(row.finished_at, Some(at("2025-11-27T02:00:02Z")));
    assert_eq!(row.error.as_deref(), Some("the warehouse is away"));
    assert_eq!(row.findings, end(RunState::Failed).findings);
}

async fn a_lost_run_cannot_be_finished(bench: Bench) {
    let mine = run("upload", 0);
    bench.history.claim(std::slice::from_ref(&mine)).await.unwrap();
    bench.pass(LEASE * 2).await;
    bench.replica().reap().await.unwrap();
    assert!(!bench.history.finish(&mine.id, &end(RunState::Failed), &[change("upload", Firing)]).await.unwrap());
    assert_eq!(all(&bench).await[0].state, RunState::Lost);
    assert_eq!(bench.history.alerts(10).await.unwrap(), []);
    assert_eq!(bench.history.messages(10).await.unwrap(), []);
}

async fn a_finish_whose_message_cannot_be_queued_changes_nothing(bench: Bench) {
    let mine = run("upload", 0);
    bench.history.claim(std::slice::from_ref(&mine)).await.unwrap();
    bench.sql("ALTER TABLE outbox RENAME TO elsewhere").await;
    let error = bench.history.finish(&mine.id, &end(RunState::Failed), &[change("upload", Firing)]).await.unwrap_err();
    assert!(!error.is_transient() && error.to_string().contains("outbox"), "{error}");
    bench.sql("ALTER TABLE elsewhere RENAME TO outbox").await;
    assert_eq!(all(&bench).await[0].state, RunState::Running);
    assert_eq!(bench.history.alerts(10).await.unwrap(), []);
    assert!(bench.history.finish(&mine.id, &end(RunState::Failed), &[change("upload", Firing)]).await.unwrap());
    assert_eq!(bench.history.messages(10).await.unwrap().len(), 1);
}

async fn a_finish_whose_answer_was_lost_is_still_done(bench: Bench) {
    let mine = run("upload", 0);
    bench.history.claim(std::slice::from_ref(&mine)).await.unwrap();
    for _ in 0..2 {
        assert!(bench.history.finish(&mine.id, &end(RunState::Failed), &[change("upload", Firing)]).await.unwrap());
    }
    assert_eq!(bench.history.messages(10).await.unwrap().len(), 1);
}

fn missed(job: &str, minute: i64) -> Run {
    let NewRun { id, job, slot, owner, host, version, .. } = run(job, minute);
    Run {
        id,
        job,
        slot,
        attempt: 1,
        trigger: Trigger::Schedule,
        state: RunState::Missed,
        cause: Some(MissedCause::Down),
        slots: 4,
        owner,
        host,
        version,
        created_at: at("2025-11-27T03:00:00.123456Z"),
        started_at: None,
        finished_at: None,
        duration_ms: None,
        rows: None,
        error: Some("nul \u{0} here".to_owned()),
        findings: serde_json::json!([]),
    }
}

async fn recorded_runs_that_exist_are_left_out_with_their_alerts(bench: Bench) {
    bench.history.claim(&[run("upload", 0)]).await.unwrap();
    let (known, new, other) = (missed("upload", 0), missed("upload", 1), missed("check", 0));
    let batch = [
        (known, vec![change("known", Firing)]),
        (new.clone(), vec![change("new", Firing)]),
        (other.clone(), vec![]),
        (missed("upload", 1), vec![change("twice", Firing)]),
    ];
    assert_eq!(bench.history.record(&batch).await.unwrap(), 2);
    assert_eq!(bench.history.record(&batch).await.unwrap(), 0);
    let names: Vec<_> = bench.history.alerts(10).await.unwrap().into_iter().map(|alert| alert.fingerprint).collect();
    assert_eq!(names, ["job_failed/new"]);
    assert_eq!(bench.history.messages(10).await.unwrap().len(), 1);
    let missed = RunFilter { states: vec![RunState::Missed], limit: 10, ..RunFilter::default() };
    let mut rows = bench.history.runs(&missed).await.unwrap();
    rows.sort_by(|a, b| a.job.cmp(&b.job));
    let clean = |run: Run| Run { error: Some("nul \u{fffd} here".to_owned()), ..run };
    assert_eq!(rows, [clean(other), clean(new)]);
}

async fn the_last_slots_count_whatever_became_of_them(bench: Bench) {
    assert_eq!(bench.history.last_slots().await.unwrap(), BTreeMap::new());
    let by_hand = NewRun { slot: None, ..run("by-hand", 0) };
    bench.history.claim(&[run("a", 0), run("a", 30), run("a", 10), by_hand, run("c", 5)]).await.unwrap();
    bench.history.record(&[(missed("b", 7), vec![]), (missed("c", 9), vec![])]).await.unwrap();
    let slot = |minute| at("2025-11-27T02:00:00Z") + TimeDelta::minutes(minute);
    let expected = [("a", 30), ("b", 7), ("c", 9)].map(|(job, minute)| (job.to_owned(), slot(minute)));
    assert_eq!(bench.history.last_slots().await.unwrap(), expected.into());
}

async fn runs_are_listed_newest_first_and_filtered(bench: Bench) {
    let mut rows = Vec::new();
    for minute in 0..10 {
        let job = if minute % 2 == 0 { "even" } else { "odd" };
        let created_at = at("2025-11-27T03:00:00Z") + TimeDelta::minutes(minute);
        rows.push((Run { created_at, ..missed(job, minute) }, vec![]));
    }
    rows[9].0.state = RunState::TimedOut;
    bench.history.record(&rows).await.unwrap();
    let minutes = async |filter: RunFilter| -> Vec<i64> {
        let runs = bench.history.runs(&filter).await.unwrap();
        runs.iter().map(|run| (run.slot.unwrap() - at("2025-11-27T02:00:00Z")).num_minutes()).collect()
    };
    let all = RunFilter { limit: 100, ..RunFilter::default() };
    assert_eq!(minutes(all.clone()).await, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]);
    assert_eq!(minutes(RunFilter { limit: 3, ..all.clone() }).await, [9, 8, 7]);
    assert_eq!(minutes(RunFilter { job: Some("even".to_owned()), ..all.clone() }).await, [8, 6, 4, 2, 0]);
    assert_eq!(minutes(RunFilter { since: Some(rows[7].0.created_at), ..all.clone() }).await, [9, 8, 7]);
    let states = vec![RunState::TimedOut, RunState::Failed];
    assert_eq!(minutes(RunFilter { states, ..all.clone() }).await, [9]);
    let filter = RunFilter {
        job: Some("odd".to_owned()),
        states: vec![RunState::Missed],
        since: Some(rows[2].0.created_at),
        limit: 2,
    };
    assert_eq!(minutes(filter).await, [7, 5]);
    assert_eq!(minutes(RunFilter { job: Some("' OR true --".to_owned()), ..all }).await, [] as [i64; 0]);
}

async fn long_errors_are_cut(bench: Bench) {
    let mine = run("upload", 0);
    bench.history.claim(std::slice::from_ref(&mine)).await.unwrap();
    let mut end = end(RunState::Failed);
    end.error = Some("ä".repeat(1_000_000));
    bench.history.finish(&mine.id, &end, &[]).await.unwrap();
    let error = all(&bench).await.remove(0).error.unwrap();
    assert!(error.len() <= 16 * 1024 && error.starts_with("ää"), "{} bytes", error.len());
}

fn job(name: &str) -> JobRow {
    JobRow {
        name: name.to_owned(),
        kind: "upload".to_owned(),
        schedule: Some("0 2 * * *".to_owned()),
        timezone: "Europe/Berlin".to_owned(),
    }
}

async fn jobs_that_are_gone_are_retired_and_may_come_back(bench: Bench) {
    bench.history.sync_jobs(&[job("a"), job("b")]).await.unwrap();
    bench.history.sync_jobs(&[JobRow { schedule: None, ..job("b") }, job("c")]).await.unwrap();
    // The trait has no way to list jobs, so the database itself says whether they are as expected.
    let expect = async |retired: &str, scheduled: &str| {
        bench
            .sql(&format!(
                "CREATE TABLE proof (fine INTEGER NOT NULL CHECK (fine = 1)); \
                 INSERT INTO proof SELECT CASE WHEN (retired_at IS NOT NULL) = (name IN ({retired})) \
                   AND (schedule IS NOT NULL) = (name IN ({scheduled})) THEN 1 ELSE 0 END FROM jobs; \
                 INSERT INTO proof SELECT count(*) - 2 FROM jobs; DROP TABLE proof"
            ))
            .await;
    };
    expect("'a'", "'a', 'c'").await;
    bench.history.sync_jobs(&[job("a"), job("b"), job("c")]).await.unwrap();
    expect("''", "'a', 'b', 'c'").await;
    bench.history.sync_jobs(&[]).await.unwrap();
    expect("'a', 'b', 'c'", "'a', 'b', 'c'").await;
}

async fn two_replicas_sync_their_jobs_at_once(bench: Bench) {
    at_once(&bench, 2, |history, replica| async move {
        for round in 0..20 {
            let mut jobs: Vec<JobRow> = (0..50).map(|i| job(&format!("job-{}", (i * 7 + round) % 60))).collect();
            jobs.rotate_left(replica * 20);
            history.sync_jobs(&jobs).await.unwrap();
        }
    })
    .await;
}
