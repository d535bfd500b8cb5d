//! Clock changes of the IANA zones: when a zone's offset changes, from what to what.

use chrono::{DateTime, FixedOffset, NaiveDateTime, Offset, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;

/// A change of a zone's offset from UTC, as when summer time begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockChange {
    /// The first instant with the new offset.
    pub at: DateTime<Utc>,
    /// The offset before.
    pub before: FixedOffset,
    /// The offset from then on.
    pub after: FixedOffset,
}

impl ClockChange {
    /// Whether clocks go forward, so that civil times are left out; otherwise they go back, and civil times come twice.
    pub fn is_forward(&self) -> bool {
        self.after.local_minus_utc() > self.before.local_minus_utc()
    }

    /// What the wall would show at the change if clocks were left alone.
    pub fn wall_before(&self) -> NaiveDateTime {
        self.at.naive_utc() + self.before
    }

    /// What the wall shows at the change.
    pub fn wall_after(&self) -> NaiveDateTime {
        self.at.naive_utc() + self.after
    }
}

/// The clock changes of a zone after `from`, up to and including `to`.
pub fn transitions(tz: Tz, from: DateTime<Utc>, to: DateTime<Utc>) -> impl Iterator<Item = ClockChange> {
    std::iter::successors(next_change(tz, from, to), move |change| next_change(tz, change.at, to))
}

/// The first clock change after `from`, up to and including `to`.
pub(super) fn next_change(tz: Tz, from: DateTime<Utc>, to: DateTime<Utc>) -> Option<ClockChange> {
    if tz == Tz::UTC {
        return None;
    }
    // The zone tables are private to chrono-tz, but no zone changes twice within a day: look at every day.
    let before = offset_at(tz, from);
    let mut low = from;
    while low < to {
        let mut high = low.checked_add_signed(TimeDelta::days(1)).map_or(to, |next| next.min(to));
        if offset_at(tz, high) == before {
            low = high;
            continue;
        }
        while high - low > TimeDelta::seconds(1) {
            let middle = low + (high - low) / 2;
            if offset_at(tz, middle) == before { low = middle } else { high = middle }
        }
        // Changes happen on whole seconds; `from` may not have been one.
        let at = DateTime::from_timestamp(high.timestamp(), 0)?;
        return Some(ClockChange { at, before, after: offset_at(tz, at) });
    }
    None
}

pub(super) fn offset_at(tz: Tz, at: DateTime<Utc>) -> FixedOffset {
    tz.offset_from_utc_datetime(&at.naive_utc()).fix()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_changes_of_a_year_are_found() {
        let at = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
        let (from, to) = (at("2026-01-01T00:00:00.5Z"), at("2027-01-01T00:00:00Z"));
        let changes = |tz: Tz| transitions(tz, from, to).map(|change| change.at).collect::<Vec<_>>();
        assert_eq!(changes(Tz::Europe__Dublin), [at("2026-03-29T01:00:00Z"), at("2026-10-25T01:00:00Z")]);
        assert_eq!(changes(Tz::Australia__Lord_Howe), [at("2026-04-04T15:00:00Z"), at("2026-10-03T15:30:00Z")]);
        assert!(changes(Tz::Asia__Tokyo).is_empty());
        let spring = transitions(Tz::Europe__Dublin, from, to).next().unwrap();
        assert!(spring.is_forward());
        assert_eq!(spring.wall_before().to_string(), "2026-03-29 01:00:00");
        assert_eq!(spring.wall_after().to_string(), "2026-03-29 02:00:00");
    }

    #[test]
    fn a_change_at_either_end_of_the_range_belongs_to_the_range_that_it_ends() {
        let change = "2026-03-29T01:00:00Z".parse::<DateTime<Utc>>().unwrap();
        let hour = TimeDelta::hours(1);
        assert_eq!(transitions(Tz::Europe__London, change - hour, change).count(), 1);
        assert_eq!(transitions(Tz::Europe__London, change, change + hour).count(), 0);
    }
}
