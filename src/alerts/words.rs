//! The phrases that rules and notifiers share: instants, lengths of time, and texts cut to a limit.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

/// A length of time in its two largest units, rounded down: `45 s`, `12 m`, `3 h 5 m`, `2 d 4 h`.
pub(super) fn span(length: Duration) -> String {
    let seconds = length.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |large: u64, word: &str, small: u64, small_word: &str| match small {
        0 => format!("{large} {word}"),
        small => format!("{large} {word} {small} {small_word}"),
    };
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} m"),
        3600..86_400 => two(hours, "h", minutes % 60, "m"),
        _ => two(days, "d", hours % 24, "h"),
    }
}

/// An instant in full: `2026-01-05 02:00 UTC`, with seconds only where it has them.
pub(super) fn instant(at: DateTime<Utc>) -> String {
    let format = if at.timestamp() % 60 == 0 { "%Y-%m-%d %H:%M UTC" } else { "%Y-%m-%d %H:%M:%S UTC" };
    at.format(format).to_string()
}

/// An instant as somebody would say it at `now`: `02:00 UTC today`, `02:00 UTC tomorrow`, else in full.
pub(super) fn near(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let time = at.format("%H:%M UTC");
    match at.date_naive() - now.date_naive() {
        days if days == TimeDelta::zero() => format!("{time} today"),
        days if days == TimeDelta::days(1) => format!("{time} tomorrow"),
        days if days == TimeDelta::days(-1) => format!("{time} yesterday"),
        _ => instant(at),
    }
}

/// Two instants, with the day where it is needed: `fired 10:02, resolved 10:09 UTC`.
pub(super) fn period(starts_at: DateTime<Utc>, ends_at: DateTime<Utc>) -> String {
    let format = if starts_at.date_naive() == ends_at.date_naive() { "%H:%M" } else { "%Y-%m-%d %H:%M" };
    format!("fired {}, resolved {} UTC", starts_at.format(format), ends_at.format(format))
}

/// The first line that says something, cut to `limit`.
pub(super) fn first_line(text: &str, limit: usize) -> String {
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    cut(line, limit)
}

/// A text of at most `limit` UTF-16 units (as Slack and most JavaScript count), with `…` where something was cut off.
pub(super) fn cut(text: &str, limit: usize) -> String {
    fit(text, limit, |c, out| out.push(c))
}

/// Writes `text` through `put` until what was written would pass `limit`; a cut never falls inside what one `put` wrote.
pub(super) fn fit(text: &str, limit: usize, put: impl Fn(char, &mut String)) -> String {
    let length = |text: &str| text.encode_utf16().count();
    let (mut out, mut used, mut one) = (String::new(), 0, String::new());
    // Where to cut so that the `…` still fits.
    let mut cut_at = 0;
    for c in text.chars() {
        one.clear();
        put(c, &mut one);
        used += length(&one);
        if used > limit {
            out.truncate(cut_at);
            if limit > 0 {
                out.push('…');
            }
            return out;
        }
        out.push_str(&one);
        if used < limit {
            cut_at = out.len();
        }
    }
    out
}

/// A whole number with its thousands apart: `50,000`.
pub(super) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 run`, `2 runs`.
pub(super) fn count(number: u64, word: &str) -> String {
    format!("{} {word}{}", thousands(number), if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn lengths_of_time_are_said_in_their_two_largest_units() {
        for (seconds, text) in
            [(0, "0 s"), (59, "59 s"), (720, "12 m"), (3600, "1 h"), (11_100, "3 h 5 m"), (187_200, "2 d 4 h")]
        {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn an_instant_is_said_as_near_as_it_is() {
        let now = at("2026-01-31T03:00:00Z");
        for (then, text) in [
            ("2026-01-31T02:00:00Z", "02:00 UTC today"),
            ("2026-02-01T02:00:00Z", "02:00 UTC tomorrow"),
            ("2026-01-30T23:59:00Z", "23:59 UTC yesterday"),
            ("2026-02-02T02:00:30Z", "2026-02-02 02:00:30 UTC"),
        ] {
            assert_eq!(near(at(then), now), text);
        }
    }

    #[test]
    fn a_period_over_midnight_names_its_days() {
        assert_eq!(period(at("2026-01-05T10:02:00Z"), at("2026-01-05T10:09:00Z")), "fired 10:02, resolved 10:09 UTC");
        let over = period(at("2026-01-05T23:58:00Z"), at("2026-01-06T00:04:00Z"));
        assert_eq!(over, "fired 2026-01-05 23:58, resolved 2026-01-06 00:04 UTC");
    }

    #[test]
    fn a_cut_text_keeps_its_limit_and_says_that_it_was_cut() {
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdefg", 6), "abcde…");
        assert_eq!(cut("🔴🔴🔴", 5), "🔴🔴…");
        assert_eq!(cut("abc", 0), "");
        assert_eq!(
            fit("a&b", 6, |c, out| if c == '&' { out.push_str("&amp;") } else { out.push(c) }),
            "a&amp;".replace("&amp;", "…")
        );
    }

    #[test]
    fn numbers_have_their_thousands_apart() {
        assert_eq!([0, 999, 1000, 1_234_567].map(thousands).join(" "), "0 999 1,000 1,234,567");
        assert_eq!((count(1, "run"), count(12, "run")), ("1 run".to_owned(), "12 runs".to_owned()));
    }
}
