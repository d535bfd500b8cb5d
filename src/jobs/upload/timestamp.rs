//! Points in time as producers write them: ISO 8601 with or without a zone (none means UTC), or Unix seconds.

use chrono::{DateTime, Datelike, NaiveDate, NaiveDateTime, TimeDelta, Timelike};

/// Reads a date and time; without a zone it is UTC. Digits past the microsecond are cut off: the warehouse keeps no more, and no
/// year but 1 to 9999.
pub(super) fn parse(text: &str) -> Option<NaiveDateTime> {
    parse_any_year(text).filter(|at| (1..=9999).contains(&at.year()))
}

fn parse_any_year(text: &str) -> Option<NaiveDateTime> {
    let b = text.trim().as_bytes();
    let number = |from: usize, len: usize| -> Option<u32> {
        b.get(from..from + len)?.iter().try_fold(0_u32, |n, c| c.is_ascii_digit().then(|| n * 10 + u32::from(c - b'0')))
    };
    let sign = |at: usize, allowed: &[u8]| b.get(at).is_some_and(|c| allowed.contains(c));
    if !(sign(4, b"-") && sign(7, b"-") && sign(10, b"Tt ") && sign(13, b":") && sign(16, b":")) {
        return None;
    }
    let date = NaiveDate::from_ymd_opt(number(0, 4)? as i32, number(5, 2)?, number(8, 2)?)?;
    let mut at = 19;
    let mut micros = 0;
    if sign(at, b".,") {
        let digits = b[at + 1..].iter().take_while(|c| c.is_ascii_digit()).count();
        if digits == 0 || digits > 9 {
            return None;
        }
        micros = number(at + 1, digits.min(6))? * 10_u32.pow(6 - digits.min(6) as u32);
        at += 1 + digits;
    }
    let local = date.and_hms_micro_opt(number(11, 2)?, number(14, 2)?, number(17, 2)?, micros)?;
    let zone = std::str::from_utf8(&b[at..]).ok()?.trim_start();
    if matches!(zone, "" | "Z" | "z" | "UTC") {
        return Some(local);
    }
    let east = match zone.as_bytes()[0] {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    at = b.len() - zone.len() + 1;
    let (hours, minutes) = match (zone.len(), sign(at + 2, b":")) {
        (3, _) => (number(at, 2)?, 0),
        (5, false) => (number(at, 2)?, number(at + 2, 2)?),
        (6, true) => (number(at, 2)?, number(at + 3, 2)?),
        _ => return None,
    };
    if hours > 14 || minutes > 59 {
        return None;
    }
    local.checked_sub_signed(TimeDelta::minutes(east * i64::from(hours * 60 + minutes)))
}

/// Reads Unix seconds, as the warehouse does where a timestamp is a number.
pub(super) fn from_unix_seconds(seconds: f64) -> Option<NaiveDateTime> {
    // Years 1 to 9999, the warehouse's range.
    if !(-62_135_596_800.0..253_402_300_800.0).contains(&seconds) {
        return None;
    }
    DateTime::from_timestamp_micros((seconds * 1e6).round() as i64).map(|at| at.naive_utc())
}

/// Whether a time that [`parse`] reads may be sent as it is: `T` between date and time, at most six digits of a second, and
/// no zone (the warehouse reads UTC, as we do) or `Z`.
pub(super) fn is_plain(text: &str) -> bool {
    let body = text.strip_suffix('Z').unwrap_or(text);
    body.len() <= 26
        && body.as_bytes().get(10) == Some(&b'T')
        && body.bytes().skip(19).all(|c| c == b'.' || c.is_ascii_digit())
}

/// The form that is sent: UTC, microseconds, `Z`.
pub(super) fn canonical(at: NaiveDateTime) -> String {
    let mut out = Vec::with_capacity(28);
    write(at, &mut out);
    String::from_utf8(out).expect("digits and signs")
}

/// Writes the form that is sent. Every row has one, and the years that [`parse`] reads have four digits: no formatter needed.
pub(super) fn write(at: NaiveDateTime, out: &mut Vec<u8>) {
    let mut number = |value: u32, digits: u32, then: u8| {
        out.extend((0..digits).rev().map(|digit| b'0' + (value / 10_u32.pow(digit) % 10) as u8));
        out.push(then);
    };
    number(at.year().unsigned_abs(), 4, b'-');
    number(at.month(), 2, b'-');
    number(at.day(), 2, b'T');
    number(at.hour(), 2, b':');
    number(at.minute(), 2, b':');
    number(at.second(), 2, b'.');
    // A leap second is more than a million microseconds long; the warehouse has none.
    number((at.nanosecond() / 1000).min(999_999), 6, b'Z');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_producers_write_them() {
        for (text, instant) in [
            ("2025-09-27T14:30:00.123456", "2025-09-27T14:30:00.123456Z"),
            ("2025-09-27T14:30:00Z", "2025-09-27T14:30:00.000000Z"),
            ("2025-09-27 14:30:00 UTC", "2025-09-27T14:30:00.000000Z"),
            ("2025-09-27T14:30:00.1+02:00", "2025-09-27T12:30:00.100000Z"),
            ("2025-09-27T14:30:00-0530", "2025-09-27T20:00:00.000000Z"),
            ("2025-09-27T14:30:00.123456789Z", "2025-09-27T14:30:00.123456Z"),
            ("2025-12-31T23:30:00-01", "2026-01-01T00:30:00.000000Z"),
        ] {
            assert_eq!(parse(text).map(canonical).as_deref(), Some(instant), "{text}");
        }
        for wrong in [
            "",
            "2025-09-27",
            "2025-13-01T00:00:00",
            "2025-09-27T25:00:00",
            "yesterday",
            "2025-09-27T14:30:00.",
            "2025-09-27T14:30:00+25:00",
            "2025-09-27T14:30:00 CET",
            "2025-09-27T14:30",
            "0000-12-31T00:00:00Z",
            "9999-12-31T23:30:00-01:00",
            "२०२५-०९-२७T14:30:00",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn numbers_are_unix_seconds() {
        assert_eq!(from_unix_seconds(1_759_000_000.5).map(canonical).as_deref(), Some("2025-09-27T19:06:40.500000Z"));
        assert_eq!(from_unix_seconds(1_759_000_000_000.0), None, "milliseconds are no seconds");
        assert_eq!(from_unix_seconds(f64::NAN), None);
    }
}
