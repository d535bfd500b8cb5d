//! The English for a cron line's fields and for durations.

use std::collections::BTreeSet;
use std::time::Duration;

use super::super::fields::{Field, Fields, Item};

/// Up to this many times of day are listed one by one.
const MOST_TIMES: usize = 6;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 8] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// A whole cron line, without its zone.
pub(super) fn line(fields: &Fields) -> String {
    let mut words = times(fields);
    let days = days(fields);
    // "every 5 minutes" needs no "every day" behind it; "at 02:00" does.
    if days.is_some() || !fields.hour.is_any() {
        words += " ";
        words += days.as_deref().unwrap_or("every day");
    }
    if !fields.month.is_any() {
        words += &format!(" in {}", names(&fields.month, |month| MONTHS[usize::from(month) - 1].into()));
    }
    if !fields.year.is_any() {
        words += &format!(" in {}", names(&fields.year, |year| year.to_string()));
    }
    words
}

/// A duration: "30 seconds", "1 hour and 30 minutes".
pub(super) fn duration(duration: Duration) -> String {
    let mut left = duration.as_millis();
    let units = [("day", 86_400_000), ("hour", 3_600_000), ("minute", 60_000), ("second", 1_000), ("millisecond", 1)];
    let mut parts = Vec::new();
    for (name, length) in units {
        let count = left / length;
        left %= length;
        match count {
            0 => {}
            1 => parts.push(format!("1 {name}")),
            _ => parts.push(format!("{count} {name}s")),
        }
    }
    match parts.as_slice() {
        // "every minute", not "every 1 minute".
        [only] => only.strip_prefix("1 ").unwrap_or(only).to_owned(),
        _ => join(&parts),
    }
}

fn times(fields: &Fields) -> String {
    let Fields { second, minute, hour, .. } = fields;
    let (seconds, minutes, hours) = (second.values(), minute.values(), hour.values());
    if seconds.len() * minutes.len() * hours.len() <= MOST_TIMES {
        let mut list = Vec::new();
        for h in &hours {
            for m in &minutes {
                list.extend(
                    seconds
                        .iter()
                        .map(|s| if *s == 0 { format!("{h:02}:{m:02}") } else { format!("{h:02}:{m:02}:{s:02}") }),
                );
            }
        }
        return format!("at {}", join(&list));
    }
    let on_the_minute = seconds == BTreeSet::from([0]);
    let on_the_hour = on_the_minute && minutes == BTreeSet::from([0]);
    if on_the_hour {
        return match (hour.is_any(), even_step(hour, 24), stretch(&hours)) {
            (true, ..) => "every hour, on the hour".into(),
            (_, Some(step), _) => format!("every {step} hours, from 00:00 on"),
            (.., Some((first, last))) => format!("every hour from {first:02}:00 to {last:02}:00"),
            _ => format!("on the hour at {}", list(&hours, |hour| format!("{hour:02}:00"))),
        };
    }
    let mut words = String::new();
    if !on_the_minute {
        words += &often(second, "second");
        match (second.is_any() || even_step(second, 60).is_some(), minute.is_any()) {
            (true, true) => {}
            (false, true) => words += " of every minute",
            (_, false) => words += &format!(" of {}", within(minute, "minute", 60)),
        }
    } else {
        words += &often(minute, "minute");
    }
    let flowing = minute.is_any() || (on_the_minute && even_step(minute, 60).is_some());
    match (hour.is_any(), flowing, even_step(hour, 24), stretch(&hours)) {
        (true, true, ..) => {}
        (true, false, ..) => words += " of every hour",
        (_, true, None, Some((first, last))) => words += &format!(" from {first:02}:00 to {last:02}:59"),
        (_, false, None, Some((first, last))) => words += &format!(" of every hour from {first} to {last}"),
        _ => words += &format!(" of {}", within(hour, "hour", 24)),
    }
    words
}

/// "every minute", "every 5 minutes", "at minute 30", "at minutes 0, 20 and 40".
fn often(field: &Field, unit: &str) -> String {
    let values = field.values();
    match even_step(field, 60) {
        _ if field.is_any() => format!("every {unit}"),
        Some(step) => format!("every {step} {unit}s"),
        None if values.len() == 1 => format!("at {unit} {}", list(&values, |value| value.to_string())),
        None => format!("at {unit}s {}", list(&values, |value| value.to_string())),
    }
}

/// "every 2nd hour (0, 2, 4, … 22)", "hour 9", "the hours 9, 12 and 15".
fn within(field: &Field, unit: &str, size: u16) -> String {
    let values = field.values();
    let listed = list(&values, |value| value.to_string());
    match even_step(field, size) {
        Some(step) => format!("every {} {unit} ({listed})", ordinal(step)),
        None if values.len() == 1 => format!("{unit} {listed}"),
        None => format!("the {unit}s {listed}"),
    }
}

fn days(fields: &Fields) -> Option<String> {
    let Fields { day, weekday, .. } = fields;
    match (day.is_any(), weekday.is_any()) {
        (true, true) => None,
        (false, true) => Some(format!("on {}", month_days(day))),
        (true, false) => Some(weekdays(weekday)),
        (false, false) if fields.both_days() => Some(format!(
            "on {}, and only if that day is {}",
            month_days(day),
            weekdays(weekday).trim_start_matches("on ")
        )),
        (false, false) => Some(format!("on {} and also {}", month_days(day), weekdays(weekday))),
    }
}

fn month_days(day: &Field) -> String {
    let values = day.values();
    let mut parts = Vec::new();
    if let [Item::Every { step }] = day.items[..] {
        parts.push(format!("every {} day of the month ({})", ordinal(step), list(&values, |value| value.to_string())));
    } else if !values.is_empty() {
        let word = if values.len() == 1 { "day" } else { "days" };
        parts.push(format!("{word} {} of the month", list(&values, |value| value.to_string())));
    }
    for item in &day.items {
        match item {
            Item::LastDay => parts.push("the last day of the month".into()),
            Item::LastWorkday => parts.push("the last day from Monday to Friday of the month".into()),
            Item::NearestWorkday(day) => {
                parts.push(format!("the day from Monday to Friday nearest to the {} of the month", ordinal(*day)));
            }
            Item::Every { .. } | Item::Span { .. } | Item::Nth { .. } => {}
        }
    }
    join(&parts)
}

fn weekdays(weekday: &Field) -> String {
    let mut parts = Vec::new();
    // People's weeks begin on Monday: Sunday goes last.
    let values = weekday.values().into_iter().map(|day| if day == 0 { 7 } else { day }).collect::<BTreeSet<u16>>();
    let name = |day: u16| WEEKDAYS[usize::from(day)].to_owned();
    if !values.is_empty() {
        parts.push(match stretch(&values) {
            Some((first, last)) => format!("from {} to {}", name(first), name(last)),
            None => format!("on {}", list(&values, name)),
        });
    }
    for item in &weekday.items {
        if let Item::Nth { from, to, nth } = *item {
            let which = ["last", "first", "second", "third", "fourth", "fifth"][usize::from(nth)];
            let days = if from == to { name(from) } else { format!("{} to {}", name(from), name(to)) };
            parts.push(format!("on the {which} {days} of the month"));
        }
    }
    join(&parts)
}

fn names(field: &Field, name: impl Fn(u16) -> String) -> String {
    let values = field.values();
    match stretch(&values) {
        Some((first, last)) => format!("{} to {}", name(first), name(last)),
        None => list(&values, name),
    }
}

/// The step of a field that is just `*/step`, if the step divides `size`.
fn even_step(field: &Field, size: u16) -> Option<u16> {
    match field.items[..] {
        [Item::Every { step }] if step > 1 && size.is_multiple_of(step) && step < size => Some(step),
        _ => None,
    }
}

/// The ends of three or more values without a hole.
fn stretch(values: &BTreeSet<u16>) -> Option<(u16, u16)> {
    let (first, last) = (*values.first()?, *values.last()?);
    (values.len() > 2 && usize::from(last - first) + 1 == values.len()).then_some((first, last))
}

/// "0, 20 and 40"; "1 to 5"; "0, 7, 14, … 56".
fn list(values: &BTreeSet<u16>, name: impl Fn(u16) -> String) -> String {
    if let Some((first, last)) = stretch(values) {
        return format!("{} to {}", name(first), name(last));
    }
    let mut words: Vec<String> = values.iter().map(|value| name(*value)).collect();
    if words.len() > 8 {
        let last = words.pop().expect("there are more than eight");
        return format!("{}, … {last}", words[..3].join(", "));
    }
    join(&words)
}

fn join(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

fn ordinal(number: u16) -> String {
    let ending = match (number % 100, number % 10) {
        (11..=13, _) => "th",
        (_, 1) => "st",
        (_, 2) => "nd",
        (_, 3) => "rd",
        _ => "th",
    };
    format!("{number}{ending}")
}
