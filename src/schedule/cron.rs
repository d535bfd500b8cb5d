//! A cron line and its slots. croner finds the next civil time that matches; which instant that is, at a clock change, and
//! what a line may say is decided here, as Debian's cron does it:
//!
//! * a line of fixed times (neither minute nor hour begins with `*`) runs each of them once: a time inside a gap at the first
//!   instant after it, a time that comes twice at the first;
//! * any other line follows the clock on the wall: what a gap leaves out does not run, what comes twice runs twice.

use std::fmt;

use chrono::{DateTime, MappedLocalTime, NaiveDateTime, TimeDelta, TimeZone, Timelike, Utc};
use chrono_tz::{GapInfo, Tz};
use croner::Cron;
use croner::parser::CronParser;

use super::fields::Fields;
use super::zone;

/// A parsed cron line.
pub struct CronSpec {
    text: String,
    pub(super) fields: Fields,
    cron: Cron,
}

impl fmt::Debug for CronSpec {
    /// The line alone: croner's form of it has thousands of bits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CronSpec").field(&self.text).finish()
    }
}

impl CronSpec {
    /// Reads a cron line of five fields, six with the second first, seven with the year last, or a name such as `@daily`.
    ///
    /// # Errors
    /// One sentence that says what was found and what to write instead.
    pub fn parse(line: &str) -> Result<Self, String> {
        let fields = Fields::parse(line)?;
        let cron = CronParser::builder()
            .dom_and_dow(fields.both_days())
            .build()
            // The line in numbers: names and `?` are read here, and croner reads some of them differently.
            .parse(&fields.to_string())
            .map_err(|error| format!("{line:?} is not a schedule: {error}; write for example \"0 2 * * *\""))?;
        let spec = Self { text: line.to_owned(), fields, cron };
        match spec.next_civil(DateTime::UNIX_EPOCH.naive_utc()) {
            Some(_) => Ok(spec),
            None => Err(format!(
                "{line:?} never comes: no day of any year matches its day, month, weekday and year fields; correct them"
            )),
        }
    }

    /// The line as it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The first slot strictly after `t`; `None` if there is none any more.
    pub fn next_after(&self, t: DateTime<Utc>, tz: Tz) -> Option<DateTime<Utc>> {
        // Slots are whole seconds, so the fraction cannot matter, and croner is given none.
        let t = t.with_nanosecond(0)?;
        let next = if self.fields.fixed_times() { self.next_fixed(t, tz) } else { self.next_on_the_wall(t, tz) }?;
        debug_assert!(next > t, "{:?} after {t} gave {next}", self.text);
        Some(next)
    }

    /// Whether the wall shows a time of this line at `t`.
    pub(super) fn matches_wall(&self, t: DateTime<Utc>, tz: Tz) -> bool {
        self.cron.is_time_matching(&t.with_timezone(&tz).naive_local()).unwrap_or(false)
    }

    /// The civil times of this line in `[from, to)`, at most `limit` of them.
    pub(super) fn civil_times(&self, from: NaiveDateTime, to: NaiveDateTime, limit: usize) -> Vec<NaiveDateTime> {
        let first = self.next_civil(from - TimeDelta::seconds(1));
        std::iter::successors(first, |civil| self.next_civil(*civil))
            .take_while(|civil| *civil < to)
            .take(limit)
            .collect()
    }

    fn next_civil(&self, civil: NaiveDateTime) -> Option<NaiveDateTime> {
        self.cron.find_next_occurrence(&civil, false).ok()
    }

    fn next_fixed(&self, t: DateTime<Utc>, tz: Tz) -> Option<DateTime<Utc>> {
        let mut civil = t.with_timezone(&tz).naive_local();
        loop {
            civil = self.next_civil(civil)?;
            let at = match tz.from_local_datetime(&civil) {
                MappedLocalTime::Single(at) | MappedLocalTime::Ambiguous(at, _) => at.with_timezone(&Utc),
                MappedLocalTime::None => GapInfo::new(&civil, &tz)?.end?.with_timezone(&Utc),
            };
            // Inside the second pass of a repeated hour the first pass lies behind us.
            if at > t {
                return Some(at);
            }
        }
    }

    /// Looks through the stretches between clock changes one by one: within each, civil time is just an offset away.
    fn next_on_the_wall(&self, t: DateTime<Utc>, tz: Tz) -> Option<DateTime<Utc>> {
        let mut offset = zone::offset_at(tz, t);
        let (mut start, mut civil) = (t, t.naive_utc() + offset);
        loop {
            let at = (self.next_civil(civil)? - offset).and_utc();
            let Some(change) = zone::next_change(tz, start, at) else { return Some(at) };
            offset = change.after;
            // A second early, because a slot may fall on the very instant of the change.
            (start, civil) = (change.at, change.at.naive_utc() + offset - TimeDelta::seconds(1));
        }
    }
}
