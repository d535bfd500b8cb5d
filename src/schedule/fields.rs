//! The seven fields of a cron line: what may stand in each, and one sentence that says what is wrong with what may not.

use std::collections::BTreeSet;
use std::fmt;

use crate::units::nearest;

/// The fields of a cron line. The second is 0 and the year any, where the line does not name them.
#[derive(Debug)]
pub(super) struct Fields {
    pub(super) second: Field,
    pub(super) minute: Field,
    pub(super) hour: Field,
    pub(super) day: Field,
    pub(super) month: Field,
    pub(super) weekday: Field,
    pub(super) year: Field,
}

/// One field of a cron line.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) unit: &'static Unit,
    pub(super) items: Vec<Item>,
    /// Whether the text begins with `*` (or is `?`). Debian's rules for clock changes and for the two day fields ask for
    /// exactly this, so `0-59` is not the same as `*`.
    pub(super) starred: bool,
}

/// One item of a field's comma-separated list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Item {
    /// `*`, `?` or `*/step`.
    Every { step: u16 },
    /// `from`, `from-to` or `from-to/step`.
    Span { from: u16, to: u16, step: u16 },
    /// `L`: the last day of the month.
    LastDay,
    /// `LW`: the last day of the month that is Monday to Friday.
    LastWorkday,
    /// `15W`: the day from Monday to Friday that is nearest, in the same month.
    NearestWorkday(u16),
    /// `5#2`, `1-5#1`, `5L`: the n-th of these weekdays in the month; 0 stands for the last.
    Nth { from: u16, to: u16, nth: u8 },
}

/// What a field counts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) name: &'static str,
    pub(super) min: u16,
    pub(super) max: u16,
    max_step: u16,
    names: &'static [&'static str],
}

const MONTHS: &[&str] = &["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
const WEEKDAYS: &[&str] = &["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

pub(super) static SECOND: Unit = Unit { name: "second", min: 0, max: 59, max_step: 59, names: &[] };
pub(super) static MINUTE: Unit = Unit { name: "minute", min: 0, max: 59, max_step: 59, names: &[] };
// A step past the end of these fields is accepted, as Debian's cron does: it means the first value alone.
pub(super) static HOUR: Unit = Unit { name: "hour", min: 0, max: 23, max_step: 366, names: &[] };
pub(super) static DAY: Unit = Unit { name: "day-of-month", min: 1, max: 31, max_step: 366, names: &[] };
pub(super) static MONTH: Unit = Unit { name: "month", min: 1, max: 12, max_step: 366, names: MONTHS };
pub(super) static WEEKDAY: Unit = Unit { name: "weekday", min: 0, max: 7, max_step: 366, names: WEEKDAYS };
pub(super) static YEAR: Unit = Unit { name: "year", min: 1, max: 4999, max_step: 366, names: &[] };

const ALIASES: [(&str, &str); 7] = [
    ("@hourly", "0 * * * *"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@weekly", "0 0 * * 0"),
    ("@monthly", "0 0 1 * *"),
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
];

impl Fields {
    /// Reads a cron line.
    pub(super) fn parse(line: &str) -> Result<Self, String> {
        let words: Vec<&str> = without_alias(line)?.split_whitespace().collect();
        if let Some(word) = words.iter().find(|word| word.starts_with('#')) {
            return Err(format!("{line:?} carries a comment from {word:?} on; leave it out of the schedule"));
        }
        if let Some(zone) = words.first().and_then(|word| word.strip_prefix("CRON_TZ=").or(word.strip_prefix("TZ="))) {
            return Err(format!(
                "{line:?} names its zone inside the line; write timezone = {zone:?} beside the schedule"
            ));
        }
        let (second, rest, year) = match words.as_slice() {
            [] => {
                return Err("the cron line is empty; write five fields such as \"0 2 * * *\" (02:00 every day)".into());
            }
            five @ [_, _, _, _, _] => ("0", five, "*"),
            [second, five @ ..] if five.len() == 5 => (*second, five, "*"),
            [second, five @ .., year] if five.len() == 5 => (*second, five, *year),
            other => return Err(wrong_count(line, other.len())),
        };
        let field = |unit: &'static Unit, text: &str| {
            Field::parse(unit, text).map_err(|wrong| format!("the {} field {text:?} of {line:?} {wrong}", unit.name))
        };
        Ok(Self {
            second: field(&SECOND, second)?,
            minute: field(&MINUTE, rest[0])?,
            hour: field(&HOUR, rest[1])?,
            day: field(&DAY, rest[2])?,
            month: field(&MONTH, rest[3])?,
            weekday: field(&WEEKDAY, rest[4])?,
            year: field(&YEAR, year)?,
        })
    }

    /// Whether both day fields must match. Debian asks for both when either begins with `*`, else for either one.
    pub(super) fn both_days(&self) -> bool {
        self.day.starred || self.weekday.starred
    }

    /// Whether the line says single times of day rather than "every so often": neither minute nor hour begins with `*`.
    /// At a clock change such a slot runs exactly once; a slot of any other line follows the clock on the wall.
    pub(super) fn fixed_times(&self) -> bool {
        !self.minute.starred && !self.hour.starred
    }
}

impl fmt::Display for Fields {
    /// The line in numbers, all seven fields.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { second, minute, hour, day, month, weekday, year } = self;
        write!(f, "{second} {minute} {hour} {day} {month} {weekday} {year}")
    }
}

fn without_alias(line: &str) -> Result<&str, String> {
    let trimmed = line.trim();
    if !trimmed.starts_with('@') {
        return Ok(trimmed);
    }
    let word = trimmed.split_whitespace().next().unwrap_or(trimmed).to_ascii_lowercase();
    match (word.as_str(), ALIASES.iter().find(|(alias, _)| trimmed.eq_ignore_ascii_case(alias))) {
        (_, Some((_, meaning))) => Ok(meaning),
        ("@every", None) => {
            Err(format!("{line:?} is an interval, not a cron line; write every = \"5m\" in place of schedule"))
        }
        ("@reboot", None) => Err(format!(
            "{line:?} names no time of day, and a restart must not decide what runs; write a cron line or every = \"1h\""
        )),
        (word, None) => {
            let meant = nearest(word, ALIASES.map(|(alias, _)| alias));
            let meant =
                meant.map_or_else(|| "the names are".into(), |alias| format!("did you mean {alias:?}? There are"));
            Err(format!("{line:?} is no name of a schedule; {meant} {}", ALIASES.map(|(alias, _)| alias).join(" ")))
        }
    }
}

fn wrong_count(line: &str, count: usize) -> String {
    let fields = if count == 1 { "1 field".into() } else { format!("{count} fields") };
    format!(
        "{line:?} has {fields}; a schedule has 5 (minute hour day-of-month month weekday), or 6 with seconds first, or 7 with \
         a year last"
    )
}

impl Field {
    fn parse(unit: &'static Unit, text: &str) -> Result<Self, String> {
        let upper = text.to_ascii_uppercase();
        let items = upper.split(',').map(|item| parse_item(unit, item)).collect::<Result<Vec<_>, _>>()?;
        if items.len() > 1 && upper.split(',').any(|item| item == "*" || item == "?") {
            return Err("lists other values beside a \"*\" that covers them all; write only one of the two".into());
        }
        if items.contains(&Item::LastDay) && items.contains(&Item::LastWorkday) {
            return Err("lists L and LW, which are the same day in most months; write only one of the two".into());
        }
        Ok(Self { unit, items, starred: upper.starts_with(['*', '?']) })
    }

    /// Whether the field says nothing: `*`, `?` or `*/1`.
    pub(super) fn is_any(&self) -> bool {
        self.items.iter().any(|item| matches!(item, Item::Every { step: 1 }))
    }

    /// The values that match in every month and year, ascending; weekdays count from Sunday, 0.
    pub(super) fn values(&self) -> BTreeSet<u16> {
        let mut values = BTreeSet::new();
        for item in &self.items {
            match *item {
                Item::Every { step } => values.extend((self.unit.min..=self.unit.max).step_by(step.into())),
                Item::Span { from, to, step } => values.extend((from..=to).step_by(step.into())),
                Item::LastDay | Item::LastWorkday | Item::NearestWorkday(_) | Item::Nth { .. } => {}
            }
        }
        if self.unit == &WEEKDAY && values.remove(&7) {
            values.insert(0);
        }
        values
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, item) in self.items.iter().enumerate() {
            if n > 0 {
                f.write_str(",")?;
            }
            match *item {
                // In a list, croner does not take a bare `*`.
                Item::Every { step: 1 } if self.items.len() == 1 => f.write_str("*")?,
                Item::Every { step } => write!(f, "*/{step}")?,
                Item::Span { from, to, step: 1 } if from == to => write!(f, "{from}")?,
                Item::Span { from, to, step: 1 } => write!(f, "{from}-{to}")?,
                Item::Span { from, to, step } => write!(f, "{from}-{to}/{step}")?,
                Item::LastDay => f.write_str("L")?,
                Item::LastWorkday => f.write_str("LW")?,
                Item::NearestWorkday(day) => write!(f, "{day}W")?,
                Item::Nth { from, to, nth } => {
                    if from == to {
                        write!(f, "{from}#")?
                    } else {
                        write!(f, "{from}-{to}#")?
                    }
                    if nth == 0 { f.write_str("L")? } else { write!(f, "{nth}")? }
                }
            }
        }
        Ok(())
    }
}

fn parse_item(unit: &Unit, item: &str) -> Result<Item, String> {
    if item.is_empty() {
        return Err("has an empty item in its list; remove the spare comma".into());
    }
    let days = unit == &DAY;
    let weekdays = unit == &WEEKDAY;
    if item == "*" || (item == "?" && (days || weekdays)) {
        return Ok(Item::Every { step: 1 });
    }
    if let Some(cure) = foreign_sign(unit, item) {
        return Err(cure);
    }
    if let Some((range, step)) = item.split_once('/') {
        return parse_stepped(unit, range, step);
    }
    if days && item == "L" {
        return Ok(Item::LastDay);
    }
    if days && (item == "LW" || item == "WL") {
        return Ok(Item::LastWorkday);
    }
    if let (true, Some(day)) = (days, item.strip_suffix('W')) {
        if day.is_empty() {
            return Err("has a W without a day; write 15W for the working day nearest to the 15th".into());
        }
        return Ok(Item::NearestWorkday(parse_value(unit, day)?));
    }
    if weekdays {
        if let Some((days, nth)) = item.split_once('#') {
            let (from, to) = parse_range(unit, days)?;
            let nth = match nth {
                "L" => 0,
                "1" | "2" | "3" | "4" | "5" => nth.as_bytes()[0] - b'0',
                _ => {
                    return Err(format!(
                        "asks for number {nth:?} of a weekday in the month; write #1 to #5, or #L for the last"
                    ));
                }
            };
            return Ok(Item::Nth { from, to, nth });
        }
        if item == "L" {
            return Err("has an L without a weekday; write 5L for the last Friday of the month".into());
        }
        // No weekday's name ends in L, so this L means "last".
        if let Some(day) = item.strip_suffix('L') {
            let day = parse_value(unit, day)?;
            return Ok(Item::Nth { from: day, to: day, nth: 0 });
        }
    }
    let (from, to) = parse_range(unit, item)?;
    Ok(Item::Span { from, to, step: 1 })
}

/// Signs that other schedulers know and this one does not.
fn foreign_sign(unit: &Unit, item: &str) -> Option<String> {
    let item_without_names = unit.names.iter().fold(item.to_owned(), |text, name| text.replace(name, ""));
    let sign = |sign: char| item_without_names.contains(sign);
    if sign('?') {
        return Some("has a ?, which stands alone and only for \"any\" in a day field; write *".into());
    }
    if item == "H" || item.starts_with("H(") || item.starts_with("H/") || sign('~') {
        return Some("asks for a random value; write the value itself, so that every replica agrees".into());
    }
    if sign('L') && unit == &DAY && item.starts_with("L-") {
        return Some("counts back from the end of the month, which cannot be said; write L, or days such as 28".into());
    }
    (sign('%') || sign('\\')).then(|| "belongs to a crontab's command; leave only the fields of the schedule".into())
}

fn parse_stepped(unit: &Unit, range: &str, step: &str) -> Result<Item, String> {
    let step = match parse_number(step) {
        Some(0) => return Err("has a step of 0; the smallest is 1".into()),
        Some(step) if step <= unit.max_step => step,
        Some(step) if unit.max_step == 59 => {
            return Err(format!(
                "has the step {step}, longer than the field's 60; write every = \"{step}{}\" for a true interval, or a \
                 single value",
                &unit.name[..1]
            ));
        }
        _ => return Err(format!("has the step {step:?}; write a whole number from 1 to {}", unit.max_step)),
    };
    match range {
        "*" if unit == &YEAR && step > 1 => {
            Err("has a step with no agreed first year; list the years, such as 2026,2028".into())
        }
        "*" => Ok(Item::Every { step }),
        "" => Err(format!("has a step without a range; write */{step}")),
        _ if !range.contains('-') => {
            let from = parse_value(unit, range)?;
            Err(format!("has a step after a single value; write {from}-{}/{step} or */{step}", unit.max))
        }
        _ => {
            let (from, to) = parse_range(unit, range)?;
            Ok(Item::Span { from, to, step })
        }
    }
}

fn parse_range(unit: &Unit, text: &str) -> Result<(u16, u16), String> {
    let Some((from_text, to_text)) = text.split_once('-') else {
        let value = parse_value(unit, text)?;
        return Ok((value, value));
    };
    let (from, mut to) = (parse_value(unit, from_text)?, parse_value(unit, to_text)?);
    if unit == &WEEKDAY && to_text == "SUN" && from > 0 {
        to = 7;
    }
    if from > to {
        let wrapped = if unit == &WEEKDAY {
            format!("{from}-6,0-{to}")
        } else {
            format!("{from}-{},{}-{to}", unit.max, unit.min)
        };
        return Err(format!("has the range {text:?}, which runs backwards; write {wrapped} to go past the end"));
    }
    Ok((from, to))
}

fn parse_value(unit: &Unit, text: &str) -> Result<u16, String> {
    if let Some(index) = unit.names.iter().position(|name| *name == text) {
        return Ok(unit.min + index as u16);
    }
    let allowed = || match unit.names {
        [first, .., last] => format!("{}-{} or {first}-{last}", unit.min, unit.max),
        _ => format!("{}-{}", unit.min, unit.max),
    };
    if text.is_empty() {
        return Err(format!("has a number missing; write {}", allowed()));
    }
    match parse_number(text) {
        Some(value) if (unit.min..=unit.max).contains(&value) => Ok(value),
        Some(_) => Err(format!("says {text}, which is outside {}", allowed())),
        None => {
            let meant = nearest(text, unit.names.iter().copied()).map(|name| format!(", did you mean {name}?"));
            Err(format!("says {text:?}; write {}{}", allowed(), meant.unwrap_or_default()))
        }
    }
}

/// Plain digits only: `parse` alone would also take a sign.
fn parse_number(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}
