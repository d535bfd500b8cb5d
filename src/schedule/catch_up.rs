//! What to do about slots that passed while nothing could run them. The work is bounded however long that was: slots are
//! counted by the day where a whole day is alike, and only the newest ones are listed.

use std::collections::VecDeque;
use std::time::Duration;

use chrono::{DateTime, MappedLocalTime, NaiveDateTime, TimeDelta, TimeZone, Timelike, Utc};
use chrono_tz::Tz;
use serde::Deserialize;

use super::cron::CronSpec;
use super::{Schedule, delta};

/// At most this many missed slots are listed one by one; older ones are counted together.
pub const MAX_LISTED: usize = 100;

/// At most this many slots are run to catch up, the newest ones.
pub const MAX_CATCH_UP_RUNS: usize = 1_000;

/// Slots that passed longer ago than this are forgotten.
const MAX_LOOK_BACK: TimeDelta = TimeDelta::days(3_660);

/// What happens to slots that were missed while nothing ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CatchUp {
    /// The newest one runs, the others are recorded as missed.
    #[default]
    Latest,
    /// All run, oldest first; of more than [`MAX_CATCH_UP_RUNS`], the newest.
    All,
    /// None runs.
    None,
}

/// What to do about the slots that passed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Slots to run, oldest first.
    pub run: Vec<DateTime<Utc>>,
    /// Slots that are not run, oldest first. All are older than those in `run`.
    pub missed: Vec<MissedSlots>,
}

/// Neighbouring slots that did not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MissedSlots {
    /// The oldest.
    pub first: DateTime<Utc>,
    /// The newest.
    pub last: DateTime<Utc>,
    /// How many.
    pub count: u32,
}

impl MissedSlots {
    /// One slot.
    pub fn one(slot: DateTime<Utc>) -> Self {
        Self { first: slot, last: slot, count: 1 }
    }
}

/// Decides about the slots of `schedule` after `last`, up to and including `now`. Slots older than `window` are never run.
pub fn plan_catch_up(
    schedule: &Schedule,
    last: DateTime<Utc>,
    now: DateTime<Utc>,
    policy: CatchUp,
    window: Duration,
) -> Plan {
    let last = last.max(now - MAX_LOOK_BACK);
    let most_runs = match policy {
        CatchUp::Latest => 1,
        CatchUp::All => MAX_CATCH_UP_RUNS,
        CatchUp::None => 0,
    };
    let mut older = newest(schedule, last, now, most_runs + MAX_LISTED + 1);
    let oldest_to_run = now.checked_sub_signed(delta(window)).unwrap_or(DateTime::<Utc>::MIN_UTC);
    let too_old = older.partition_point(|slot| *slot < oldest_to_run);
    let run = older.split_off(too_old.max(older.len().saturating_sub(most_runs)));
    let listed = older.split_off(older.len().saturating_sub(MAX_LISTED));
    let counted = older.last().and_then(|newest| {
        let count = u32::try_from(count_between(schedule, last, *newest)).unwrap_or(u32::MAX);
        Some(MissedSlots { first: schedule.next_after(last)?, last: *newest, count })
    });
    Plan { run, missed: counted.into_iter().chain(listed.into_iter().map(MissedSlots::one)).collect() }
}

/// The newest `most` slots in `(last, now]`, oldest first.
fn newest(schedule: &Schedule, last: DateTime<Utc>, now: DateTime<Utc>, most: usize) -> Vec<DateTime<Utc>> {
    // Look back twice as far each time, until there are enough.
    let mut span = TimeDelta::seconds(most as i64);
    let from = loop {
        let from = (now - span).max(last);
        if from == last || count_between(schedule, from, now) >= most as u64 {
            break from;
        }
        span = span * 2;
    };
    let mut slots = VecDeque::with_capacity(most);
    for slot in schedule.after(from).take_while(|slot| *slot <= now) {
        if slots.len() == most {
            slots.pop_front();
        }
        slots.push_back(slot);
    }
    slots.into()
}

/// How many slots there are in `(after, up_to]`.
fn count_between(schedule: &Schedule, after: DateTime<Utc>, up_to: DateTime<Utc>) -> u64 {
    if after >= up_to {
        return 0;
    }
    match schedule {
        Schedule::Every { period } => {
            let period = period.as_millis() as i64;
            let number = |t: DateTime<Utc>| t.timestamp_millis().div_euclid(period);
            (number(up_to) - number(after)) as u64
        }
        Schedule::Cron { spec, tz } => count_cron(spec, *tz, after, up_to),
    }
}

fn count_cron(spec: &CronSpec, tz: Tz, after: DateTime<Utc>, up_to: DateTime<Utc>) -> u64 {
    let [second, minute, hour] =
        [&spec.fields.second, &spec.fields.minute, &spec.fields.hour].map(|field| field.values().len() as u64);
    let units = [
        (TimeDelta::days(1), hour * minute * second),
        (TimeDelta::hours(1), minute * second),
        (TimeDelta::minutes(1), second),
    ];
    let (mut cursor, mut count) = (after, 0);
    while let Some(slot) = spec.next_after(cursor, tz).filter(|slot| *slot <= up_to) {
        // If one time of an undisturbed day, hour or minute matches, all its times that match in the smaller fields do.
        // A time that a gap has moved here says nothing about its neighbours.
        let whole = units.iter().filter(|_| spec.matches_wall(slot, tz)).find_map(|(unit, slots)| {
            let (start, end) = undisturbed(tz, slot, *unit)?;
            (start > cursor && end <= up_to).then_some((end, slots))
        });
        (cursor, count) = match whole {
            Some((end, slots)) => (end, count + slots),
            None => (slot, count + 1),
        };
    }
    count
}

/// The first and last second of the civil day, hour or minute around `slot`, unless a clock change touches it.
fn undisturbed(tz: Tz, slot: DateTime<Utc>, unit: TimeDelta) -> Option<(DateTime<Utc>, DateTime<Utc>)> {
    let civil = slot.with_timezone(&tz).naive_local();
    let into_unit = i64::from(civil.num_seconds_from_midnight()) % unit.num_seconds();
    let start = civil - TimeDelta::seconds(into_unit);
    let single = |civil: NaiveDateTime| match tz.from_local_datetime(&civil) {
        MappedLocalTime::Single(at) => Some(at.with_timezone(&Utc)),
        _ => None,
    };
    let (first, next) = (single(start)?, single(start + unit)?);
    (next - first == unit).then(|| (first, next - TimeDelta::seconds(1)))
}
