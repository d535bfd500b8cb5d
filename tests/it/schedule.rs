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
    Schedule::every(Duration::from_secs(seconds)).unwrap()
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
