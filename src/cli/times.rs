//! Instants, ages and durations as people read them.

use chrono::{DateTime, TimeDelta, Utc};

/// `2026-11-21 02:00:00`, in UTC; the table's heading says so.
pub(super) fn instant(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S").to_string()
}

/// `3 h ago`, `in 20 min`, `now`.
pub(super) fn relative(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let distance = now - at;
    let words = rough(distance.abs());
    if distance.abs() < TimeDelta::seconds(1) {
        "now".to_owned()
    } else if distance > TimeDelta::zero() {
        format!("{words} ago")
    } else {
        format!("in {words}")
    }
}

fn rough(distance: TimeDelta) -> String {
    let seconds = distance.num_seconds();
    match seconds {
        ..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// `412 ms`, `3.2 s`, `4 min 10 s`, `2 h 03 min`.
pub(super) fn duration(ms: u64) -> String {
    let seconds = ms / 1_000;
    match ms {
        ..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", seconds, ms % 1_000 / 100),
        60_000..3_600_000 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3_600, seconds % 3_600 / 60),
    }
}

/// `5,000,000`.
pub(super) fn number(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_numbers_read_well() {
        let spans = [0, 999, 1_000, 3_250, 59_999, 60_000, 250_000, 7_380_000].map(duration);
        let expected = ["0 ms", "999 ms", "1.0 s", "3.2 s", "59.9 s", "1 min 00 s", "4 min 10 s", "2 h 03 min"];
        assert_eq!(spans, expected);
        assert_eq!([0, 999, 1_000, 12_345_678].map(number), ["0", "999", "1,000", "12,345,678"]);
    }

    #[test]
    fn ages_read_well() {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let at = |seconds: i64| relative(now - TimeDelta::seconds(seconds), now);
        let said = [0, 5, 90, 7_200, 172_800, -1_200].map(at);
        assert_eq!(said, ["now", "5 s ago", "1 min ago", "2 h ago", "2 days ago", "in 20 min"]);
    }
}
