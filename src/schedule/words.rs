//! A schedule in words, and what about it tends to surprise people.

mod english;

use std::fmt;

use chrono::{DateTime, MappedLocalTime, NaiveDateTime, TimeDelta, Utc};
use chrono_tz::Tz;

use super::Schedule;
use super::cron::CronSpec;
use super::fields::{Field, Fields, Item};
use super::zone::{ClockChange, next_change, transitions};
use crate::units::Span;

/// A schedule in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// When it runs: "at 02:00 every day, Europe/Dublin time".
    pub words: String,
    /// What may surprise, one sentence each.
    pub notes: Vec<String>,
}

/// What a clock change does to a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotNote {
    /// Its civil time does not exist that day; it runs at the first instant after the gap.
    Moved {
        /// The civil time that the line names.
        from: NaiveDateTime,
    },
    /// Its civil time comes twice that day; it runs the first time only.
    FirstOfTwo,
    /// Its civil time comes twice that day and the line follows the wall; this is the first time.
    FirstPass,
    /// Its civil time comes twice that day and the line follows the wall; this is the second time.
    SecondPass,
}

impl fmt::Display for SlotNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Moved { from } => write!(f, "{} does not exist this day", from.format("%H:%M:%S")),
            Self::FirstOfTwo => f.write_str("this time comes twice this day; it runs once"),
            Self::FirstPass => f.write_str("this time comes twice this day; the first time"),
            Self::SecondPass => f.write_str("this time comes twice this day; the second time"),
        }
    }
}

impl Schedule {
    /// Says the schedule in words, and what about it may surprise in the year after `from`.
    pub fn explain(&self, from: DateTime<Utc>) -> Explanation {
        match self {
            Self::Every { period } => {
                let span = Span(*period);
                let (day, ms) = (86_400_000_u128, period.as_millis());
                let uneven = !day.is_multiple_of(ms) && !ms.is_multiple_of(day);
                let note = format!(
                    "slots are whole multiples of {span} since 1970-01-01 00:00 UTC; {span} does not divide a day, so the \
                     times of day differ from one day to the next"
                );
                Explanation {
                    words: format!("every {}", english::duration(*period)),
                    notes: uneven.then_some(note).into_iter().collect(),
                }
            }
            Self::Cron { spec, tz } => {
                let zone = if *tz == Tz::UTC { ", UTC".into() } else { format!(", {tz} time") };
                let mut notes = lints(&spec.fields);
                notes.extend(rarity(self, from));
                notes.extend(clock_change_notes(spec, *tz, from));
                Explanation { words: english::line(&spec.fields) + &zone, notes }
            }
        }
    }

    /// What a clock change does to `slot`, one of this schedule's slots; `None` on all ordinary days.
    pub fn slot_note(&self, slot: DateTime<Utc>) -> Option<SlotNote> {
        let Self::Cron { spec, tz } = self else { return None };
        let fixed = spec.fields.fixed_times();
        if let Some(change) = next_change(*tz, slot - TimeDelta::seconds(1), slot).filter(ClockChange::is_forward) {
            let left_out = spec.civil_times(change.wall_before(), change.wall_after(), 1);
            return left_out.first().filter(|_| fixed).map(|from| SlotNote::Moved { from: *from });
        }
        match slot.with_timezone(tz).naive_local().and_local_timezone(*tz) {
            MappedLocalTime::Ambiguous(..) if fixed => Some(SlotNote::FirstOfTwo),
            MappedLocalTime::Ambiguous(first, _) if first == slot => Some(SlotNote::FirstPass),
            MappedLocalTime::Ambiguous(..) => Some(SlotNote::SecondPass),
            _ => None,
        }
    }
}

/// What in the line itself tends to surprise.
fn lints(fields: &Fields) -> Vec<String> {
    let mut notes = Vec::new();
    let Fields { second, minute, hour, day, month, weekday, .. } = fields;
    if !day.is_any() && !weekday.is_any() {
        notes.push(if fields.both_days() {
            "day-of-month and weekday must both match, because one of them begins with * (other programs may run on either)".into()
        } else {
            "day-of-month and weekday are both set, so it runs on days that match either one, as in every classic cron; write * \
             in one of them if only the other is meant"
                .into()
        });
    }
    if minute.is_any() && !hour.is_any() {
        notes.push(
            "the * in the minute field means all 60 minutes of these hours; write 0 there for once an hour".into(),
        );
    }
    for (field, size, next) in
        [(second, 60, "minute"), (minute, 60, "hour"), (hour, 24, "day"), (day, 31, "month"), (month, 12, "year")]
    {
        notes.extend(field.items.iter().filter_map(|item| uneven_step(field, *item, size, next)));
    }
    let rare = |item: &Item| match *item {
        Item::Span { from, .. } | Item::NearestWorkday(from) => from > 28,
        _ => false,
    };
    if weekday.is_any() && day.items.iter().all(rare) {
        notes.push("months without such a day are left out; write L for the last day of every month".into());
    }
    notes
}

fn uneven_step(field: &Field, item: Item, size: u16, next: &str) -> Option<String> {
    let Item::Every { step } = item else { return None };
    let Field { unit, .. } = field;
    if step > unit.max - unit.min {
        return Some(format!("the step {step} of the {} field leaves only the value {}", unit.name, unit.min));
    }
    let last = unit.min + (unit.max - unit.min) / step * step;
    (step > 1 && !size.is_multiple_of(step)).then(|| {
        let gap = size - (last - unit.min);
        let cure = match unit.name {
            "second" | "minute" => {
                format!("; every = \"{step}{}\" keeps the distance the same", &unit.name[..1])
            }
            "hour" => format!("; every = \"{step}h\" keeps the distance the same"),
            _ => String::new(),
        };
        format!("*/{step} in the {} field starts again with each {next}: after {last} comes {}, {gap} and not {step} on{cure}", unit.name, unit.min)
    })
}

/// A note when the next slot is far off, or there is none.
fn rarity(schedule: &Schedule, from: DateTime<Utc>) -> Option<String> {
    match schedule.next_after(from) {
        None => Some("it never comes again; correct the year field".into()),
        Some(next) if next - from > TimeDelta::days(366) => Some(format!(
            "its next slot is far off: {}",
            next.with_timezone(&schedule.tz()).format("%Y-%m-%d %H:%M %Z")
        )),
        Some(_) => None,
    }
}

/// What the clock changes of the year after `from` do to a line that names its hours.
fn clock_change_notes(spec: &CronSpec, tz: Tz, from: DateTime<Utc>) -> Vec<String> {
    if spec.fields.hour.is_any() {
        return Vec::new();
    }
    let fixed = spec.fields.fixed_times();
    let describe = |change: ClockChange| {
        let (before, after) = (change.wall_before(), change.wall_after());
        let (start, end) = (before.min(after), before.max(after));
        let times = spec.civil_times(start, end, 4);
        let first = times.first()?.format("%H:%M");
        let several = times.len() > 1;
        let which = if several { format!("{first} and other times") } else { first.to_string() };
        let what = match (change.is_forward(), fixed) {
            (true, true) if several => format!("{which} do not exist and run once, at {}", after.format("%H:%M")),
            (true, true) => format!("{which} does not exist and runs at {}", after.format("%H:%M")),
            (true, false) => format!("{which} will not come, and nothing runs in their place"),
            (false, true) if several => format!("{which} come twice and run once each, the first time"),
            (false, true) => format!("{which} comes twice and runs once, the first time"),
            (false, false) => format!("{which} come twice and run twice"),
        };
        let (day, before, after) = (before.format("%Y-%m-%d"), before.format("%H:%M"), after.format("%H:%M"));
        Some(format!("on {day} clocks in {tz} go from {before} to {after}: {what}"))
    };
    transitions(tz, from, from + TimeDelta::days(366)).filter_map(describe).collect()
}
