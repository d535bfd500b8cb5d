//! Two daemons on one Postgres while it is away: each slot still is one daemon's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use lamplighter::history::{MissedCause, Run, RunState, Trigger};
use lamplighter::jobs::{CatchUp, Overlap, WhenDbDown};
use lamplighter::runner::Tempo;
use sqlx::{Connection, PgConnection};

use super::bench::{TestJob, due, eventually, rows};
use super::outage::{House, counting, probe};

const TEMPO: Tempo =
    Tempo { lease: Duration::from_secs(2), reap_every: Duration::from_millis(20), poll: Duration::from_millis(100) };

const SLOTS: usize = 40;

/// Slots of the last minutes, oldest first.
fn slots(house: &House) -> Vec<DateTime<Utc>> {
    let now = house.clock.now();
    (0..SLOTS).rev().map(|minutes| now - TimeDelta::minutes(minutes as i64)).collect()
}

/// Until these daemons have checked in, and each once more after that, so that it has seen all that are noted.
async fn have_looked_around(house: &House, daemons: &[&str]) {
    let leases = async || -> BTreeMap<String, DateTime<Utc>> {
        let mut connection = PgConnection::connect(&house.database.url).await.expect("the database is there");
        let all = sqlx::query_as("SELECT owner, lease_until FROM replicas").fetch_all(&mut connection).await;
        all.expect("the table is there").into_iter().collect()
    };
    let first = eventually(&format!("{daemons:?} have checked in"), async || {
        let now = leases().await;
        if daemons.iter().all(|daemon| now.contains_key(*daemon)) { Ok(now) } else { Err(now) }
    })
    .await;
    eventually(&format!("{daemons:?} have checked in again"), async || {
        let now = leases().await;
        if daemons.iter().all(|daemon| now.get(*daemon) > first.get(*daemon)) { Ok(()) } else { Err(now) }
    })
    .await;
}

/// Until every slot has the row of a run that is over, or was missed.
async fn all_recorded(house: &House, job: &str) -> Vec<Run> {
    eventually(&format!("all slots of {job} are recorded"), async || {
        let rows = rows(&house.history, job).await;
        let over = rows.iter().filter(|run| run.state != RunState::Running).count();
        if over >= SLOTS { Ok(rows) } else { Err(over) }
    })
    .await
}

fn jobs(ran: &Arc<AtomicU32>) -> Vec<TestJob> {
    vec![probe(), counting("upload", ran).overlap(Overlap::Allow)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_database_is_away_each_slot_runs_on_one_of_two_daemons() {
    let (ran_here, ran_there) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let house = House::new(jobs(&ran_here), TEMPO).await;
    let other = house.another_runner(jobs(&ran_there), "other");
    house.runner.watch_for_lost_runs();
    other.watch_for_lost_runs();
    have_looked_around(&house, &["owner", "other"]).await;
    house.outage().await;
    eventually(
        "the other daemon has noticed too",
        async || {
            if other.database_is_here() { Err("not yet") } else { Ok(()) }
        },
    )
    .await;

    let slots = slots(&house);
    for slot in &slots {
        house.runner.handle(vec![due("upload", *slot)]);
        other.handle(vec![due("upload", *slot)]);
    }
    eventually("every slot has run", async || {
        let ran = ran_here.load(Ordering::SeqCst) + ran_there.load(Ordering::SeqCst);
        if ran as usize >= SLOTS { Ok(()) } else { Err(ran) }
    })
    .await;
    house.server.start_again().await;
    let rows = all_recorded(&house, "upload").await;
    assert_eq!(rows.len(), SLOTS);
    assert!(rows.iter().all(|run| (run.state, run.trigger) == (RunState::Succeeded, Trigger::Schedule)), "{rows:#?}");
    let (here, there) = (ran_here.load(Ordering::SeqCst), ran_there.load(Ordering::SeqCst));
    assert_eq!((here + there) as usize, SLOTS, "no slot ran twice");
    assert!(here > 0 && there > 0, "{here} here, {there} there");

    // Daemons that have ended in good order are not counted on any more.
    for runner in [&house.runner, &other] {
        runner.shutdown(Duration::from_secs(5)).await;
    }
    let alone = house.history.check_in("newcomer", Duration::from_secs(1)).await.expect("the database is there");
    assert_eq!(alone, ["newcomer"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_of_a_daemon_that_died_are_caught_up_or_missed_once_the_database_is_back() {
    let (all, latest, none) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let rule = |name: &str, count: &Arc<AtomicU32>, rule| counting(name, count).overlap(Overlap::Queue).catch_up(rule);
    let jobs = vec![
        probe(),
        rule("all", &all, CatchUp::All),
        rule("latest", &latest, CatchUp::Latest),
        rule("none", &none, CatchUp::None),
    ];
    let house = House::new(jobs, TEMPO).await;
    house.history.migrate().await.expect("the database is there");
    house.history.check_in("dead", Duration::from_secs(3600)).await.expect("the database is there");
    house.runner.watch_for_lost_runs();
    have_looked_around(&house, &["owner"]).await;
    house.outage().await;

    let slots = slots(&house);
    for slot in &slots {
        house.runner.handle(["all", "latest", "none"].map(|job| due(job, *slot)).into());
    }
    eventually(
        "the slots of this daemon have run",
        async || if house.runner.running() == 0 { Ok(()) } else { Err(()) },
    )
    .await;
    house.server.start_again().await;

    let rows = all_recorded(&house, "all").await;
    assert!(rows.iter().all(|run| run.state == RunState::Succeeded), "{rows:#?}");
    assert_eq!((rows.len(), all.load(Ordering::SeqCst) as usize), (SLOTS, SLOTS));
    let caught_up = rows.iter().filter(|run| run.trigger == Trigger::CatchUp).count();
    assert!((1..SLOTS).contains(&caught_up), "{caught_up} of the slots were the dead daemon's");

    for (job, count) in [("latest", &latest), ("none", &none)] {
        let rows = all_recorded(&house, job).await;
        let missed: Vec<_> = rows.iter().filter(|run| run.state == RunState::Missed).collect();
        assert!(missed.iter().all(|run| run.cause == Some(MissedCause::DatabaseAway)), "{missed:#?}");
        assert_eq!(missed.len() + count.load(Ordering::SeqCst) as usize, SLOTS, "{job}");
        if job == "latest" {
            let newest = rows.iter().max_by_key(|run| run.slot).expect("there are rows");
            assert_eq!(newest.state, RunState::Succeeded);
        }
        let caught_up = rows.iter().filter(|run| run.trigger == Trigger::CatchUp).count();
        assert!(caught_up <= usize::from(job == "latest"), "{job}: {caught_up} were caught up");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_waited_for_the_database_run_or_are_missed_by_the_jobs_rule() {
    let rules = [("all", CatchUp::All), ("latest", CatchUp::Latest), ("none", CatchUp::None)];
    let ran: Vec<Arc<AtomicU32>> = rules.iter().map(|_| Arc::default()).collect();
    let mut jobs = vec![probe()];
    for ((name, rule), ran) in rules.iter().zip(&ran) {
        // Runs of one job must not overlap: that is no reason to miss a slot here.
        jobs.push(counting(name, ran).catch_up(*rule).when_db_down(WhenDbDown::Wait));
    }
    let house = House::new(jobs, TEMPO).await;
    house.outage().await;
    let slots = slots(&house);
    for slot in &slots {
        house.runner.handle(rules.map(|(job, _)| due(job, *slot)).into());
    }
    house.server.start_again().await;
    for (((job, _), ran), expected) in rules.iter().zip(&ran).zip([SLOTS, 1, 0]) {
        let rows = all_recorded(&house, job).await;
        let missed: Vec<_> = rows.iter().filter(|run| run.state == RunState::Missed).collect();
        assert!(missed.iter().all(|run| run.cause == Some(MissedCause::DatabaseAway)), "{missed:#?}");
        assert_eq!((ran.load(Ordering::SeqCst) as usize, rows.len() - missed.len()), (expected, expected), "{job}");
        let newest = rows.iter().max_by_key(|run| run.slot).expect("there are rows");
        assert_eq!(newest.state == RunState::Succeeded, expected > 0, "{newest:#?}");
    }
}
