//! Schedules: every cron vector, the laws that hold for any line, refusals, words, and what is done about missed slots.

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use lamplighter::schedule::{
    CatchUp, MAX_CATCH_UP_RUNS, MAX_LISTED, MissedSlots, Plan, Schedule, SlotNote, plan_catch_up,
};
use proptest::prelude::*;
use serde::Deserialize;

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn cron(line: &str, tz: Tz) -> Schedule {
    Schedule::cron(line, tz).unwrap_or_else(|error| panic!("{error}"))
}

fn every(seconds: u64) -> Schedule {
    Schedule::every(Duration::from_secs(seconds)).expect("a second or more")
}

#[test]
fn all_cron_vectors_pass() {
    #[derive(Deserialize)]
    struct Vector {
        id: String,
        expr: String,
        tz: Zone,
        from: DateTime<Utc>,
        expect: Expect,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Expect {
        Slots(Vec<DateTime<Utc>>),
        Refusal(String),
    }
    #[derive(Deserialize)]
    #[serde(try_from = "String")]
    struct Zone(Tz);
    impl TryFrom<String> for Zone {
        type Error = String;
        fn try_from(name: String) -> Result<Self, String> {
            name.parse().map(Self).map_err(|error| format!("{name}: {error}"))
        }
    }

    let vectors: Vec<Vector> = serde_json::from_str(include_str!("../data/cron/vectors.json")).unwrap();
    assert_eq!(vectors.len(), 316);
    let mut wrong = Vec::new();
    for Vector { id, expr, tz, from, expect } in vectors {
        let schedule = Schedule::cron(&expr, tz.0);
        match (schedule, expect) {
            (Err(_), Expect::Refusal(word)) => assert_eq!(word, "reject"),
            (Ok(schedule), Expect::Slots(slots)) => {
                let found: Vec<_> = schedule.after(from).take(slots.len()).collect();
                if found != slots {
                    wrong.push(format!("{id} {expr:?} {} from {from}: {found:?}, not {slots:?}", tz.0));
                }
            }
            (Ok(_), Expect::Refusal(_)) => wrong.push(format!("{id} {expr:?} was accepted")),
            (Err(error), Expect::Slots(_)) => wrong.push(format!("{id} {expr:?} was refused: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{} vectors fail:\n{}", wrong.len(), wrong.join("\n"));
}

// ---- laws

/// Any line of fields that mostly fit, in a zone with every kind of clock change.
fn any_schedule() -> impl Strategy<Value = Schedule> {
    let value = |min: u32, max: u32| {
        prop_oneof![
            3 => Just("*".to_owned()),
            2 => (min..=max).prop_map(|value| value.to_string()),
            1 => (1..=max).prop_map(|step| format!("*/{step}")),
            1 => (min..=max, min..=max).prop_map(|(a, b)| format!("{}-{}", a.min(b), a.max(b))),
            1 => (min..=max, min..=max, 1..=max).prop_map(|(a, b, step)| format!("{}-{}/{step}", a.min(b), a.max(b))),
            1 => (min..=max, min..=max).prop_map(|(a, b)| format!("{a},{b}")),
        ]
    };
    let day = prop_oneof![6 => value(1, 28), 1 => Just("L".to_owned()), 1 => Just("15W".to_owned()), 1 => Just("LW".to_owned())];
    let weekday = prop_oneof![
        6 => value(0, 7),
        1 => Just("MON#1".to_owned()),
        1 => Just("5L".to_owned()),
        1 => Just("FRI-SUN".to_owned())
    ];
    let second = prop_oneof![3 => Just(String::new()), 1 => value(0, 59).prop_map(|second| second + " ")];
    let zone = prop::sample::select(vec![
        Tz::UTC,
        Tz::Europe__Dublin,
        Tz::America__New_York,
        Tz::Australia__Lord_Howe,
        Tz::Antarctica__Troll,
        Tz::Asia__Beirut,
        Tz::America__Havana,
        Tz::Africa__Casablanca,
    ]);
    (second, value(0, 59), value(0, 23), day, value(1, 12), weekday, zone).prop_filter_map(
        "no day matches",
        |(second, minute, hour, day, month, weekday, zone)| {
            Schedule::cron(&format!("{second}{minute} {hour} {day} {month} {weekday}"), zone)
                .inspect_err(|error| assert!(error.contains("never comes"), "{error}"))
                .ok()
        },
    )
}

/// Mostly near a clock change of 2026.
fn any_instant() -> impl Strategy<Value = DateTime<Utc>> {
    let changes = [
        "2026-03-08T07:00:00Z",
        "2026-03-29T01:00:00Z",
        "2026-04-04T15:00:00Z",
        "2026-10-25T01:00:00Z",
        "2026-11-01T06:00:00Z",
    ];
    let near = (prop::sample::select(changes.to_vec()), -100_000_i64..100_000);
    prop_oneof![
        4 => near.prop_map(|(change, seconds)| at(change) + TimeDelta::seconds(seconds)),
        1 => (0_i64..4_000_000_000_000).prop_map(|millis| DateTime::from_timestamp_millis(millis).expect("it is near")),
    ]
}

proptest! {
    #[test]
    fn the_next_slot_is_later_and_never_skips_one(schedule in any_schedule(), t in any_instant(), ahead in 0_i64..200_000) {
        let next = schedule.next_after(t).expect("these lines come every year");
        prop_assert!(next > t);
        // From anywhere before it, the next slot is the same; from a later instant it is not an earlier one.
        let between = t + (next - t) / 2;
        prop_assert_eq!(schedule.next_after(between), Some(next));
        let later = t + TimeDelta::seconds(ahead);
        prop_assert!(schedule.next_after(later).expect("these lines come every year") >= next);
    }

    #[test]
    fn a_slot_shows_its_own_civil_time_unless_a_note_says_that_it_moved(schedule in any_schedule(), t in any_instant()) {
        let slot = schedule.next_after(t).expect("these lines come every year");
        let utc = cron(&schedule.text(), Tz::UTC);
        let civil = slot.with_timezone(&schedule.tz()).naive_local().and_utc();
        let on_the_wall = utc.next_after(civil - TimeDelta::seconds(1)) == Some(civil);
        prop_assert!(on_the_wall || matches!(schedule.slot_note(slot), Some(SlotNote::Moved { .. })), "{}", slot);
    }

    #[test]
    fn a_plan_accounts_for_every_slot_once(
        schedule in any_schedule(),
        t in any_instant(),
        outage in 0_i64..300_000,
        window in 0_u64..300_000,
        policy in prop::sample::select(vec![CatchUp::Latest, CatchUp::All, CatchUp::None]),
    ) {
        let now = t + TimeDelta::seconds(outage);
        let window = Duration::from_secs(window);
        let Plan { run, missed } = plan_catch_up(&schedule, t, now, policy, window);
        let slots: Vec<_> = schedule.after(t).take_while(|slot| *slot <= now).collect();
        prop_assert_eq!(missed.iter().map(|missed| missed.count as usize).sum::<usize>() + run.len(), slots.len());
        prop_assert!(slots.ends_with(&run));
        let may_run = slots.iter().filter(|slot| **slot >= now - window).count();
        let most = match policy { CatchUp::Latest => 1, CatchUp::All => MAX_CATCH_UP_RUNS, CatchUp::None => 0 };
        prop_assert_eq!(run.len(), may_run.min(most));
        let mut at = 0;
        for missed in &missed {
            let count = missed.count as usize;
            prop_assert_eq!((missed.first, missed.last), (slots[at], slots[at + count - 1]));
            at += count;
        }
        prop_assert!(missed.len() <= MAX_LISTED + 1);
        prop_assert!(missed.iter().skip(1).all(|missed| missed.count == 1));
    }

    #[test]
    fn any_text_is_either_a_schedule_or_refused_in_one_line(line in r"[0-9*/,@ LW#?A-Za-zäٳ.-]{0,24}") {
        match Schedule::cron(&line, Tz::UTC) {
            Ok(schedule) => prop_assert!(!schedule.explain(at("2026-01-01T00:00:00Z")).words.is_empty()),
            Err(sentence) => prop_assert!(sentence.len() > 20 && !sentence.contains('\n'), "{}", sentence),
        }
    }
}

#[test]
fn an_interval_has_the_same_slots_on_every_replica() {
    let slots: Vec<_> = every(420).after(at("2026-01-15T10:20:30.5Z")).take(2).collect();
    assert_eq!(slots, [at("2026-01-15T10:23:00Z"), at("2026-01-15T10:30:00Z")]);
    assert_eq!(every(30).next_after(at("2026-01-15T10:20:30Z")), Some(at("2026-01-15T10:21:00Z")));
    assert_eq!(every(5400).text(), "1h30m");
    assert!(Schedule::every(Duration::from_millis(999)).unwrap_err().contains("the shortest is 1s"));
    assert!(Schedule::every(Duration::MAX).unwrap_err().contains("the longest is 366d"));
}

#[test]
fn jobs_with_the_same_line_share_it() {
    let (Schedule::Cron { spec: one, .. }, Schedule::Cron { spec: other, .. }) =
        (cron("41 4 * * *", Tz::UTC), cron("41 4 * * *", Tz::Europe__Dublin))
    else {
        panic!("both are cron lines");
    };
    assert!(std::sync::Arc::ptr_eq(&one, &other));
}

// ---- what people read

#[test]
fn a_refusal_says_what_was_found_and_what_cures_it() {
    let refusals = [
        ("", "the cron line is empty; write five fields such as \"0 2 * * *\" (02:00 every day)"),
        ("0 2 * *", "has 4 fields; a schedule has 5 (minute hour day-of-month month weekday)"),
        ("61 * * * *", "the minute field \"61\" of \"61 * * * *\" says 61, which is outside 0-59"),
        (
            "0 0 * * FRY",
            "the weekday field \"FRY\" of \"0 0 * * FRY\" says \"FRY\"; write 0-7 or SUN-SAT, did you mean FRI?",
        ),
        ("0 22-2 * * *", "has the range \"22-2\", which runs backwards; write 22-23,0-2 to go past the end"),
        ("0 0 * * SAT-MON", "write 6-6,0-1 to go past the end"),
        ("*/90 * * * *", "write every = \"90m\" for a true interval"),
        ("5/20 * * * *", "has a step after a single value; write 5-59/20 or */20"),
        ("*/0 * * * *", "has a step of 0"),
        ("1,,2 * * * *", "has an empty item in its list; remove the spare comma"),
        ("0 2 * * * # nightly", "carries a comment from \"#\" on; leave it out"),
        ("0 2 * * * /usr/bin/backup", "the weekday field \"/usr/bin/backup\""),
        ("CRON_TZ=Europe/Dublin 0 2 * * *", "write timezone = \"Europe/Dublin\" beside the schedule"),
        ("H 2 * * *", "asks for a random value; write the value itself"),
        ("0 0 L-3 * *", "counts back from the end of the month"),
        ("0 0 W * *", "has a W without a day; write 15W"),
        ("0 0 * * L", "has an L without a weekday; write 5L"),
        ("0 0 30 2 *", "never comes: no day of any year matches"),
        ("0 0 0 1 1 * */2", "has a step with no agreed first year; list the years"),
        ("@every 5m", "is an interval, not a cron line; write every = \"5m\""),
        ("@reboot", "names no time of day"),
        ("@dayly", "did you mean \"@daily\"?"),
    ];
    for (line, part) in refusals {
        let sentence = Schedule::cron(line, Tz::UTC).unwrap_err();
        assert!(sentence.contains(part), "{line:?}: {sentence}");
    }
}

#[test]
fn a_schedule_is_said_in_words() {
    let lines = [
        ("0 2 * * *", "at 02:00 every day"),
        ("30 1,13 * * *", "at 01:30 and 13:30 every day"),
        ("* * * * *", "every minute"),
        ("*/5 * * * *", "every 5 minutes"),
        ("*/7 * * * *", "at minutes 0, 7, 14, … 56 of every hour"),
        ("@hourly", "every hour, on the hour"),
        ("30 * * * *", "at minute 30 of every hour"),
        ("0 */2 * * *", "every 2 hours, from 00:00 on every day"),
        ("0 9-17 * * MON-FRI", "every hour from 09:00 to 17:00 from Monday to Friday"),
        ("*/15 9-17 * * 1-5", "every 15 minutes from 09:00 to 17:59 from Monday to Friday"),
        ("0,30 9-17 * * *", "at minutes 0 and 30 of every hour from 9 to 17 every day"),
        ("*/20 1,3,5 * * *", "every 20 minutes of the hours 1, 3 and 5 every day"),
        ("0 0 1,15 * *", "at 00:00 on days 1 and 15 of the month"),
        ("0 0 L * *", "at 00:00 on the last day of the month"),
        ("0 0 LW * *", "at 00:00 on the last day from Monday to Friday of the month"),
        ("0 12 15W * ?", "at 12:00 on the day from Monday to Friday nearest to the 15th of the month"),
        ("0 0 13 * 5", "at 00:00 on day 13 of the month and also on Friday"),
        ("0 0 */2 * 1", "at 00:00 on every 2nd day of the month (1, 3, 5, … 31), and only if that day is Monday"),
        ("0 0 * * SAT,SUN", "at 00:00 on Saturday and Sunday"),
        ("0 0 * * MON#2", "at 00:00 on the second Monday of the month"),
        ("0 0 * * 5L", "at 00:00 on the last Friday of the month"),
        ("0 0 1 1,7 *", "at 00:00 on day 1 of the month in January and July"),
        ("0 6 * 3-5 *", "at 06:00 every day in March to May"),
        ("*/10 * * * * *", "every 10 seconds"),
        ("15 * * * * *", "at second 15 of every minute"),
        ("*/20 30 * * * *", "every 20 seconds of minute 30 of every hour"),
        ("0 0 12 * * * 2027", "at 12:00 every day in 2027"),
    ];
    for (line, words) in lines {
        assert_eq!(cron(line, Tz::UTC).explain(at("2026-01-01T00:00:00Z")).words, format!("{words}, UTC"), "{line:?}");
    }
    assert_eq!(
        cron("@daily", Tz::Europe__Dublin).explain(at("2026-01-01T00:00:00Z")).words,
        "at 00:00 every day, Europe/Dublin time"
    );
    for (seconds, words) in [(1, "every second"), (30, "every 30 seconds"), (5400, "every 1 hour and 30 minutes")] {
        assert_eq!(every(seconds).explain(at("2026-01-01T00:00:00Z")).words, words);
    }
}

#[test]
fn a_surprise_is_noted() {
    let notes = |schedule: &Schedule| schedule.explain(at("2026-01-01T00:00:00Z")).notes;
    let noted = [
        ("0 0 13 * 5", "it runs on days that match either one"),
        ("0 0 */2 * 1", "must both match, because one of them begins with *"),
        ("* 2 * * *", "all 60 minutes of these hours"),
        ("*/7 * * * *", "after 56 comes 0, 4 and not 7 on; every = \"7m\" keeps the distance the same"),
        ("0 0 */2 * *", "starts again with each month: after 31 comes 1, 1 and not 2 on"),
        ("0 */24 * * *", "the step 24 of the hour field leaves only the value 0"),
        ("0 0 31 * *", "months without such a day are left out"),
        ("0 0 29 2 *", "its next slot is far off: 2028-02-29 00:00"),
        ("0 0 0 1 1 * 2020", "it never comes again"),
    ];
    for (line, part) in noted {
        let notes = notes(&cron(line, Tz::UTC));
        assert!(notes.iter().any(|note| note.contains(part)), "{line:?}: {notes:?}");
    }
    for quiet in ["0 2 * * *", "*/5 * * * *", "0 9-17 * * MON-FRI", "@monthly"] {
        assert_eq!(notes(&cron(quiet, Tz::UTC)), Vec::<String>::new(), "{quiet:?}");
    }
    assert!(notes(&every(420))[0].contains("7m does not divide a day"));
    assert!(notes(&every(36 * 3600))[0].contains("does not divide a day"));
    assert_eq!(notes(&every(7 * 86_400)), Vec::<String>::new(), "always at midnight");
    assert_eq!(
        notes(&cron("30 1 * * *", Tz::Europe__Dublin)),
        [
            "on 2026-03-29 clocks in Europe/Dublin go from 01:00 to 02:00: 01:30 does not exist and runs at 02:00",
            "on 2026-10-25 clocks in Europe/Dublin go from 02:00 to 01:00: 01:30 comes twice and runs once, the first time",
        ]
    );
    assert_eq!(
        notes(&cron("*/30 1 * * *", Tz::Europe__Dublin)),
        [
            "on 2026-03-29 clocks in Europe/Dublin go from 01:00 to 02:00: 01:00 and other times will not come, and nothing runs \
             in their place",
            "on 2026-10-25 clocks in Europe/Dublin go from 02:00 to 01:00: 01:00 and other times come twice and run twice",
        ]
    );
    assert!(notes(&cron("0 9 * * *", Tz::Europe__Dublin)).is_empty(), "09:00 is far from any clock change");
}

// ---- missed slots

#[test]
fn after_a_month_an_every_second_job_is_planned_at_once_and_exactly() {
    let last = at("2026-03-01T00:00:00Z");
    let now = last + TimeDelta::days(30);
    let month = 30 * 86_400;
    for schedule in [every(1), cron("* * * * * *", Tz::Europe__Dublin), cron("0-59 0-59 0-23 * * *", Tz::UTC)] {
        let started = Instant::now();
        let Plan { run, missed } = plan_catch_up(&schedule, last, now, CatchUp::Latest, Duration::from_secs(86_400));
        assert!(started.elapsed() < Duration::from_secs(2), "{schedule:?} took {:?}", started.elapsed());
        assert_eq!(run, [now]);
        assert_eq!(missed.len(), MAX_LISTED + 1);
        assert_eq!(missed[0].first, last + TimeDelta::seconds(1));
        assert_eq!(missed[0].count as usize, month - 1 - MAX_LISTED);
        assert_eq!(missed[MAX_LISTED], MissedSlots::one(now - TimeDelta::seconds(1)));
    }
}

#[test]
fn slots_older_than_the_window_are_never_run() {
    let nightly = cron("0 2 * * *", Tz::UTC);
    let (last, now) = (at("2026-01-10T02:00:00Z"), at("2026-01-15T10:00:00Z"));
    let plan = |policy, hours: u64| plan_catch_up(&nightly, last, now, policy, Duration::from_secs(hours * 3600));
    assert_eq!(plan(CatchUp::Latest, 24).run, [at("2026-01-15T02:00:00Z")]);
    assert_eq!(plan(CatchUp::Latest, 24).missed.len(), 4);
    assert_eq!(plan(CatchUp::Latest, 7), Plan { run: vec![], missed: plan(CatchUp::None, 24).missed });
    assert_eq!(plan(CatchUp::All, 48).run, [at("2026-01-14T02:00:00Z"), at("2026-01-15T02:00:00Z")]);
    assert_eq!(plan(CatchUp::All, u64::MAX / 3600).run.len(), 5);
    assert_eq!(
        plan_catch_up(&nightly, now, last, CatchUp::All, Duration::MAX),
        Plan::default(),
        "a last slot ahead of now"
    );
}

#[test]
fn an_outage_of_a_lifetime_is_cut_short() {
    let started = Instant::now();
    let all = plan_catch_up(&every(1), DateTime::UNIX_EPOCH, at("2026-01-01T00:00:00Z"), CatchUp::All, Duration::MAX);
    assert_eq!(all.run.len(), MAX_CATCH_UP_RUNS);
    let lines = plan_catch_up(
        &cron("*/5 * * * *", Tz::Europe__Dublin),
        DateTime::<Utc>::MIN_UTC,
        at("2026-01-01T00:00:00Z"),
        CatchUp::All,
        Duration::MAX,
    );
    assert_eq!(lines.missed[0].count as usize + MAX_LISTED + MAX_CATCH_UP_RUNS, 3_660 * 288);
    assert!(started.elapsed() < Duration::from_secs(10), "took {:?}", started.elapsed());
}
