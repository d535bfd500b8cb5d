//! The scheduler against the faults that schedulers have: clock changes, stalls, clocks set back and forward, crowds, pauses,
//! changes while it runs. Time is a test clock that is asked twice a second, as the metronome does; nothing sleeps. One test
//! runs the real metronome.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use lamplighter::clock::{Clock, SystemClock, TestClock};
use lamplighter::history::MissedCause;
use lamplighter::schedule::{CatchUp, MissedSlots, Schedule, SlotNote};
use lamplighter::scheduler::{Due, Entry, EventKind, LOOKAHEAD, Scheduler, simulate};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const BEAT: Duration = Duration::from_millis(500);
const DAY: Duration = Duration::from_secs(86_400);

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn cron(line: &str, tz: Tz) -> Schedule {
    Schedule::cron(line, tz).unwrap_or_else(|error| panic!("{error}"))
}

fn every(seconds: u64) -> Schedule {
    Schedule::every(Duration::from_secs(seconds)).expect("a second or more")
}

fn entry(schedule: Schedule) -> Entry {
    Entry { schedule, catch_up: CatchUp::Latest, window: DAY, paused: false }
}

/// A scheduler whose time stands still between beats.
struct House {
    clock: Arc<TestClock>,
    scheduler: Scheduler,
}

impl House {
    fn at(now: &str) -> Self {
        let clock = Arc::new(TestClock::at(at(now)));
        let scheduler = Scheduler::new(clock.clone(), LOOKAHEAD);
        Self { clock, scheduler }
    }

    fn with(self, name: &str, schedule: Schedule) -> Self {
        self.scheduler.upsert(name, entry(schedule), None);
        self
    }

    /// Lets time pass beat by beat.
    fn beats(&self, time: Duration) -> Vec<Due> {
        let beats = time.as_millis() / BEAT.as_millis();
        let mut due = Vec::new();
        for _ in 0..beats {
            self.clock.advance(BEAT);
            due.extend(self.scheduler.take_due());
        }
        due
    }

    /// Time passes without a beat: the process was stopped.
    fn stall(&self, time: Duration) -> Vec<Due> {
        self.clock.advance(time);
        self.scheduler.take_due()
    }

    fn shift_wall(&self, by: TimeDelta) -> Vec<Due> {
        self.clock.set_wall(self.clock.now() + by);
        self.scheduler.take_due()
    }
}

fn runs(due: &[Due]) -> Vec<DateTime<Utc>> {
    due.iter().flat_map(|due| due.run.clone()).collect()
}

fn missed(due: &[Due]) -> u32 {
    due.iter().flat_map(|due| &due.missed).map(|missed| missed.count).sum()
}

// ---- clock changes

#[test]
fn a_daily_job_keeps_its_local_time_across_both_clock_changes() {
    for (start, slots) in [
        ("2026-03-28T12:00:00Z", ["2026-03-29T08:00:00Z", "2026-03-30T08:00:00Z"]),
        ("2026-10-24T12:00:00Z", ["2026-10-25T09:00:00Z", "2026-10-26T09:00:00Z"]),
    ] {
        let house = House::at(start).with("morning", cron("0 9 * * *", Tz::Europe__Dublin));
        assert_eq!(runs(&house.beats(2 * DAY)), slots.map(at));
    }
}

#[test]
fn a_job_inside_a_gap_runs_once_and_one_inside_an_overlap_runs_once() {
    let spring = House::at("2026-03-08T00:00:00Z").with("night", cron("30 2 * * *", Tz::America__New_York));
    assert_eq!(runs(&spring.beats(DAY)), [at("2026-03-08T07:00:00Z")]);
    let autumn = House::at("2026-11-01T00:00:00Z").with("night", cron("30 1 * * *", Tz::America__New_York));
    assert_eq!(runs(&autumn.beats(DAY)), [at("2026-11-01T05:30:00Z")]);
}

#[test]
fn a_frequent_job_is_not_silent_in_the_repeated_hour() {
    let house = House::at("2026-11-01T04:59:00Z").with("often", cron("*/20 * * * *", Tz::America__New_York));
    assert_eq!(runs(&house.beats(Duration::from_secs(3 * 3600))).len(), 9);
}

// ---- handing over

#[test]
fn a_slot_is_handed_over_once_and_a_little_ahead_of_its_instant() {
    let house = House::at("2026-01-15T01:59:59.2Z").with("nightly", cron("0 2 * * *", Tz::UTC));
    assert_eq!(house.scheduler.take_due(), [], "0.8 s ahead is too early");
    house.clock.advance(BEAT);
    let due = house.scheduler.take_due();
    assert_eq!(
        due,
        [Due { job: "nightly".into(), run: vec![at("2026-01-15T02:00:00Z")], missed: vec![], cause: None }]
    );
    assert_eq!(house.beats(Duration::from_secs(60)), []);
    assert_eq!(house.scheduler.next_due(), Some(at("2026-01-16T02:00:00Z")));
    assert_eq!(house.scheduler.heartbeat(), house.clock.now());
}

#[test]
fn an_every_second_job_gets_every_second_on_time() {
    let house = House::at("2026-01-15T10:00:00.3Z").with("tick", every(1));
    let mut handed = Vec::new();
    for _ in 0..120 {
        house.clock.advance(BEAT);
        for due in house.scheduler.take_due() {
            assert_eq!((due.missed.len(), due.cause), (0, None));
            assert!(due.run.iter().all(|slot| *slot >= house.clock.now() - TimeDelta::milliseconds(500)), "{due:?}");
            handed.extend(due.run);
        }
    }
    let expected: Vec<_> = every(1).after(at("2026-01-15T10:00:00.3Z")).take(handed.len()).collect();
    assert_eq!(handed, expected);
    assert_eq!(handed.len(), 60);
}

#[test]
fn ten_thousand_jobs_due_in_one_second_are_all_handed_over_once() {
    let house = House::at("2026-01-15T01:00:00Z");
    for n in 0..10_000 {
        house.scheduler.upsert(&format!("job-{n}"), entry(cron("0 2 * * *", Tz::UTC)), None);
    }
    let due = house.beats(Duration::from_secs(2 * 3600));
    let names: BTreeSet<_> = due.iter().map(|due| due.job.clone()).collect();
    assert_eq!((due.len(), names.len()), (10_000, 10_000));
    assert!(due.iter().all(|due| due.run == [at("2026-01-15T02:00:00Z")] && due.cause.is_none()));
}

#[test]
fn jobs_can_be_added_and_removed_from_many_threads_at_once() {
    let house = House::at("2026-01-15T01:00:00Z");
    std::thread::scope(|scope| {
        for thread in 0..10 {
            let scheduler = &house.scheduler;
            scope.spawn(move || {
                for n in 0..500 {
                    scheduler.upsert(&format!("job-{thread}-{n}"), entry(cron("0 2 * * *", Tz::UTC)), None);
                }
                for n in 0..250 {
                    assert!(scheduler.remove(&format!("job-{thread}-{n}")));
                }
            });
        }
    });
    let house = house.with("afterwards", cron("0 2 * * *", Tz::UTC));
    assert!(!house.scheduler.remove("unknown"));
    let due = house.beats(Duration::from_secs(2 * 3600));
    assert_eq!(due.len(), 2_501);
    assert!(due.iter().any(|due| &*due.job == "afterwards"));
}

// ---- stalls and jumps

#[test]
fn a_stall_is_coalesced_and_the_job_goes_on() {
    let house = House::at("2026-01-15T10:00:00Z").with("tick", every(1));
    house.beats(Duration::from_secs(5));
    let due = house.stall(Duration::from_secs(60));
    assert_eq!(due[0].cause, Some(MissedCause::Asleep));
    assert_eq!((runs(&due[..1]), missed(&due)), (vec![at("2026-01-15T10:01:05Z")], 59));
    assert_eq!(due[0].missed.len(), 59, "each has its own row");
    let later = house.beats(Duration::from_secs(10));
    assert_eq!((runs(&later).len(), missed(&later)), (10, 0));
}

#[test]
fn after_a_stall_the_policy_decides_what_runs() {
    for (catch_up, ran, lost) in [(CatchUp::Latest, 1, 2), (CatchUp::All, 3, 0), (CatchUp::None, 0, 3)] {
        let house = House::at("2026-01-15T10:30:00Z");
        house.scheduler.upsert("hourly", Entry { catch_up, ..entry(cron("0 * * * *", Tz::UTC)) }, None);
        house.beats(Duration::from_secs(5));
        let due = house.stall(Duration::from_secs(3 * 3600));
        assert_eq!((runs(&due).len(), missed(&due)), (ran, lost), "{catch_up:?}");
        assert!(due.iter().all(|due| due.cause == Some(MissedCause::Asleep)));
        assert_eq!(house.scheduler.next_slot("hourly"), Some(at("2026-01-15T14:00:00Z")));
    }
}

#[test]
fn slots_older_than_the_window_are_not_run_after_a_stall() {
    let house = House::at("2026-01-15T10:30:00Z");
    let window = Duration::from_secs(600);
    house.scheduler.upsert("hourly", Entry { window, ..entry(cron("0 * * * *", Tz::UTC)) }, None);
    let due = house.stall(Duration::from_secs(3 * 3600));
    assert_eq!((runs(&due).len(), missed(&due)), (0, 3));
}

#[test]
fn a_hiccup_of_a_moment_loses_nothing_even_without_catch_up() {
    let house = House::at("2026-01-15T09:59:58Z");
    house.scheduler.upsert("hourly", Entry { catch_up: CatchUp::None, ..entry(cron("0 * * * *", Tz::UTC)) }, None);
    let due = house.stall(Duration::from_secs(4));
    assert_eq!(due, [Due { job: "hourly".into(), run: vec![at("2026-01-15T10:00:00Z")], missed: vec![], cause: None }]);
}

#[test]
fn a_wall_clock_that_is_set_back_does_not_silence_a_job() {
    let house = House::at("2026-01-15T10:00:00Z").with("tick", every(1));
    house.beats(Duration::from_secs(5));
    for back in [TimeDelta::seconds(-8), TimeDelta::hours(-1)] {
        house.shift_wall(back);
        let due = house.beats(Duration::from_secs(10));
        assert_eq!((runs(&due).len(), missed(&due)), (10, 0), "set back by {back}");
    }
}

#[test]
fn a_wall_clock_that_slips_by_less_than_a_second_repeats_nothing() {
    let house = House::at("2026-01-15T01:59:59.5Z").with("nightly", cron("0 2 * * *", Tz::UTC));
    assert_eq!(runs(&house.scheduler.take_due()), [at("2026-01-15T02:00:00Z")]);
    house.shift_wall(TimeDelta::milliseconds(-900));
    assert_eq!(house.beats(Duration::from_secs(10)), []);
}

#[test]
fn a_wall_clock_that_jumps_forward_runs_the_newest_slot_and_names_the_cause() {
    let house = House::at("2026-01-15T10:00:00Z").with("tick", every(1));
    house.beats(Duration::from_secs(5));
    let due = house.shift_wall(TimeDelta::hours(1));
    assert_eq!(due[0].cause, Some(MissedCause::ClockJump));
    assert_eq!((runs(&due[..1]), missed(&due)), (vec![at("2026-01-15T11:00:05Z")], 3_599));
    assert_eq!(due[0].missed.len(), 101, "the newest one by one, the older ones counted");
    assert_eq!(runs(&house.beats(Duration::from_secs(10))).len(), 10);
}

// ---- downtime

#[test]
fn slots_missed_while_the_daemon_was_down_are_caught_up_at_the_start() {
    let house = House::at("2026-01-15T10:00:00Z");
    house.scheduler.upsert("nightly", entry(cron("0 2 * * *", Tz::UTC)), Some(at("2026-01-12T02:00:00Z")));
    house.scheduler.upsert("new", entry(cron("0 2 * * *", Tz::UTC)), None);
    let due = house.scheduler.take_due();
    assert_eq!(
        due,
        [Due {
            job: "nightly".into(),
            run: vec![at("2026-01-15T02:00:00Z")],
            missed: ["2026-01-13T02:00:00Z", "2026-01-14T02:00:00Z"].map(|slot| MissedSlots::one(at(slot))).into(),
            cause: Some(MissedCause::Down),
        }],
        "a job without a past has nothing to catch up"
    );
    assert_eq!(house.beats(Duration::from_secs(60)), []);
}

#[test]
fn a_slot_that_was_claimed_just_before_a_restart_does_not_come_again() {
    let slot = at("2026-01-15T02:00:00Z");
    let house = House::at("2026-01-15T01:59:59.6Z");
    house.scheduler.upsert("nightly", entry(cron("0 2 * * *", Tz::UTC)), Some(slot));
    assert_eq!(house.beats(Duration::from_secs(10)), []);
}

#[test]
fn a_last_slot_in_the_far_future_does_not_silence_the_job() {
    let house = House::at("2026-01-15T01:59:00Z");
    house.scheduler.upsert("nightly", entry(cron("0 2 * * *", Tz::UTC)), Some(at("2036-01-15T02:00:00Z")));
    assert_eq!(runs(&house.beats(Duration::from_secs(120))), [at("2026-01-15T02:00:00Z")]);
}

// ---- pausing and changing

#[test]
fn a_paused_job_leaves_a_missed_slot_each_time_and_goes_on_when_it_is_let() {
    let house = House::at("2026-01-15T10:00:30Z").with("minutely", cron("* * * * *", Tz::UTC));
    assert!(house.scheduler.set_paused("minutely", true));
    assert!(!house.scheduler.set_paused("unknown", true));
    assert_eq!(house.scheduler.next_due(), None);
    let due = house.beats(Duration::from_secs(180));
    assert_eq!((runs(&due).len(), missed(&due)), (0, 3));
    assert!(due.iter().all(|due| due.cause == Some(MissedCause::Paused)));
    house.scheduler.set_paused("minutely", false);
    assert_eq!(runs(&house.beats(Duration::from_secs(60))), [at("2026-01-15T10:04:00Z")]);
}

#[test]
fn a_pause_that_ends_just_before_the_slot_lets_it_run() {
    let house = House::at("2026-01-15T09:59:59.5Z").with("hourly", cron("0 * * * *", Tz::UTC));
    house.scheduler.set_paused("hourly", true);
    assert_eq!(house.scheduler.take_due(), []);
    house.scheduler.set_paused("hourly", false);
    assert_eq!(runs(&house.beats(Duration::from_secs(1))), [at("2026-01-15T10:00:00Z")]);
}

#[test]
fn what_a_paused_job_missed_while_the_daemon_was_down_was_missed_by_the_pause() {
    let house = House::at("2026-01-15T10:00:00Z");
    let paused = Entry { paused: true, catch_up: CatchUp::All, ..entry(cron("0 2 * * *", Tz::UTC)) };
    house.scheduler.upsert("nightly", paused, Some(at("2026-01-12T02:00:00Z")));
    let due = house.scheduler.take_due();
    assert_eq!((runs(&due).len(), missed(&due), due[0].cause), (0, 3, Some(MissedCause::Paused)));
}

#[test]
fn a_reload_neither_loses_nor_repeats_a_slot() {
    let house = House::at("2026-01-15T01:59:59.5Z").with("nightly", cron("0 2 * * *", Tz::UTC));
    let waiting = House::at("2026-01-15T01:59:58Z").with("nightly", cron("0 2 * * *", Tz::UTC));
    assert_eq!(runs(&house.scheduler.take_due()), [at("2026-01-15T02:00:00Z")]);
    for line in ["0 2 * * *", "0 2,3 * * *"] {
        for house in [&house, &waiting] {
            house.scheduler.upsert("nightly", entry(cron(line, Tz::UTC)), None);
        }
    }
    assert_eq!(house.beats(Duration::from_secs(60)), [], "it was handed over before the reload");
    assert_eq!(runs(&waiting.beats(Duration::from_secs(60))), [at("2026-01-15T02:00:00Z")]);
    assert_eq!(house.scheduler.next_due(), Some(at("2026-01-15T03:00:00Z")));
}

#[test]
fn a_draining_scheduler_hands_nothing_over() {
    let house = House::at("2026-01-15T10:00:00Z").with("tick", every(1));
    assert!(!house.beats(Duration::from_secs(2)).is_empty());
    house.scheduler.drain();
    assert_eq!(house.beats(Duration::from_secs(10)), []);
}

// ---- the real metronome

/// Every second with the system's clock: what comes is complete, unrepeated and early enough to start at its instant.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_metronome_hands_over_every_slot_once_before_its_instant() {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let scheduler = Scheduler::new(clock.clone(), LOOKAHEAD);
    let first = clock.now();
    for n in 0..100 {
        scheduler.upsert(&format!("job-{n}"), entry(every(1)), None);
    }
    let (tx, mut rx) = mpsc::channel(16);
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(scheduler.clone().run(tx, shutdown.clone()));
    let mut handed: BTreeMap<Arc<str>, Vec<DateTime<Utc>>> = BTreeMap::new();
    while handed.len() < 100 || handed.values().any(|slots| slots.len() < 3) {
        let batch = tokio::time::timeout(Duration::from_secs(20), rx.recv()).await;
        let batch = batch.unwrap_or_else(|_| panic!("nothing came for 20 s; so far: {handed:?}")).expect("it runs");
        for due in batch {
            // On a machine that is stopped for seconds, slots may come late, but then they say so.
            assert!(due.cause.is_some() || due.run.iter().all(|slot| *slot > clock.now() - TimeDelta::seconds(5)));
            let slots = handed.entry(due.job).or_default();
            slots.extend(due.missed.iter().map(|missed| missed.first));
            slots.extend(due.run);
        }
    }
    shutdown.cancel();
    running.await.unwrap().expect("it ends when it is told to");
    for (job, slots) in &handed {
        let expected: Vec<_> = every(1).after(first).take(slots.len()).collect();
        assert!(slots == &expected || slots == &expected[1..], "{job} got {slots:?} after {first}");
    }
    while let Ok(batch) = rx.try_recv() {
        assert!(!batch.is_empty(), "an empty batch is not sent");
    }
    assert_eq!(scheduler.take_due(), [], "after the end nothing is due");
}

#[tokio::test]
async fn slots_wait_in_the_due_list_while_nobody_takes_them() {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let scheduler = Scheduler::new(clock.clone(), LOOKAHEAD);
    scheduler.upsert("down", entry(every(1)), Some(clock.now() - TimeDelta::hours(1)));
    let (tx, mut rx) = mpsc::channel(1);
    tx.try_send(vec![]).unwrap();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(scheduler.clone().run(tx, shutdown.clone()));
    let before = scheduler.heartbeat();
    assert_eq!(rx.recv().await, Some(vec![]), "the batch that nobody took");
    let due =
        tokio::time::timeout(Duration::from_secs(20), rx.recv()).await.expect("a beat within 20 s").expect("it runs");
    assert_eq!(due[0].cause, Some(MissedCause::Down));
    assert!(scheduler.heartbeat() > before);
    shutdown.cancel();
    running.await.unwrap().expect("it ends when it is told to");
}

// ---- the timeline

#[test]
fn a_simulation_shows_slots_in_order_with_the_clock_changes_of_every_zone() {
    let jobs = [
        ("dublin", cron("30 1 * * *", Tz::Europe__Dublin)),
        ("often", cron("*/30 0-1 * * *", Tz::Europe__Dublin)),
        ("tokyo", cron("0 10 * * *", Tz::Asia__Tokyo)),
        ("beat", every(86_400)),
    ];
    let line = |event: lamplighter::scheduler::Event| {
        let local = event.local.format("%m-%d %H:%M");
        match event.kind {
            EventKind::ClockChange { before, after } => {
                format!("{local} {} {before} to {after}", event.local.timezone())
            }
            EventKind::Slot { job, note: None } => format!("{local} {job}"),
            EventKind::Slot { job, note: Some(note) } => format!("{local} {job} ({note})"),
        }
    };
    let simulated = |from, to| simulate(jobs.clone(), at(from), at(to)).map(line).collect::<Vec<_>>();
    assert_eq!(
        simulated("2026-03-28T23:30:00Z", "2026-03-29T02:00:00Z"),
        [
            "03-29 00:00 beat",
            "03-29 00:00 often",
            "03-29 00:30 often",
            "03-29 02:00 Europe/Dublin +00:00 to +01:00",
            "03-29 02:00 dublin (01:30:00 does not exist this day)",
            "03-29 10:00 tokyo",
        ]
    );
    assert_eq!(
        simulated("2026-10-24T23:45:00Z", "2026-10-25T02:00:00Z"),
        [
            "10-25 00:00 beat",
            "10-25 01:00 often (this time comes twice this day; the first time)",
            "10-25 01:30 dublin (this time comes twice this day; it runs once)",
            "10-25 01:30 often (this time comes twice this day; the first time)",
            "10-25 01:00 Europe/Dublin +01:00 to +00:00",
            "10-25 01:00 often (this time comes twice this day; the second time)",
            "10-25 10:00 tokyo",
            "10-25 01:30 often (this time comes twice this day; the second time)",
        ]
    );
}

#[test]
fn a_simulation_of_a_thousand_years_can_be_begun() {
    let mut events = simulate([("tick", every(1))], at("2026-01-01T00:00:00Z"), at("3026-01-01T00:00:00Z"));
    let second = events.nth(1).unwrap();
    assert_eq!(second.at, at("2026-01-01T00:00:02Z"));
    assert_eq!(second.kind, EventKind::Slot { job: "tick".into(), note: None::<SlotNote> });
}
