//! When a job runs: cron lines by Debian cron's rules in an IANA zone, and fixed intervals. Pure functions of time.

mod catch_up;
mod cron;
mod fields;
mod words;
mod zone;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;

pub use self::catch_up::{CatchUp, MAX_CATCH_UP_RUNS, MAX_LISTED, MissedSlots, Plan, plan_catch_up};
pub use self::cron::CronSpec;
pub use self::words::{Explanation, SlotNote};
pub use self::zone::{ClockChange, transitions};
use crate::units::Span;

/// A cron line or an interval.
#[derive(Debug, Clone)]
pub enum Schedule {
    /// A cron line in a zone.
    Cron {
        /// The line.
        spec: Arc<CronSpec>,
        /// The zone.
        tz: Tz,
    },
    /// Slots at whole multiples of the period since 1970, so that all replicas agree.
    Every {
        /// At least a second.
        period: Duration,
    },
}

const LONGEST_PERIOD: Duration = Duration::from_secs(366 * 86_400);

impl Schedule {
    /// A cron line in a zone: five fields, six with the second first, seven with the year last, or a name such as `@daily`.
    ///
    /// # Errors
    /// One sentence that says what was found and what to write instead.
    pub fn cron(line: &str, tz: Tz) -> Result<Self, String> {
        Ok(Self::Cron { spec: interned(line)?, tz })
    }

    /// An interval, from a second to a year.
    ///
    /// # Errors
    /// One sentence that says what was found and what is allowed.
    pub fn every(period: Duration) -> Result<Self, String> {
        if period < Duration::from_secs(1) {
            return Err(format!("an interval of {} is too short; the shortest is 1s", Span(period)));
        }
        if period > LONGEST_PERIOD {
            return Err(format!("an interval of {} is too long; the longest is 366d", Span(period)));
        }
        Ok(Self::Every { period: Duration::from_millis(period.as_millis() as u64) })
    }

    /// The first slot strictly after `t`; `None` if there is none any more.
    pub fn next_after(&self, t: DateTime<Utc>) -> Option<DateTime<Utc>> {
        match self {
            Self::Cron { spec, tz } => spec.next_after(t, *tz),
            Self::Every { period } => {
                let period = period.as_millis() as i64;
                DateTime::from_timestamp_millis((t.timestamp_millis().div_euclid(period) + 1) * period)
            }
        }
    }

    /// The slots strictly after `t`, in order.
    pub fn after(&self, t: DateTime<Utc>) -> impl Iterator<Item = DateTime<Utc>> {
        std::iter::successors(self.next_after(t), |slot| self.next_after(*slot))
    }

    /// The cron line as it was written, or the interval.
    pub fn text(&self) -> String {
        match self {
            Self::Cron { spec, .. } => spec.text().to_owned(),
            Self::Every { period } => Span(*period).to_string(),
        }
    }

    /// The zone in which the schedule is read; UTC for an interval, which has none.
    pub fn tz(&self) -> Tz {
        match self {
            Self::Cron { tz, .. } => *tz,
            Self::Every { .. } => Tz::UTC,
        }
    }
}

impl PartialEq for Schedule {
    /// Whether both are written alike.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Cron { spec, tz }, Self::Cron { spec: other, tz: other_tz }) => {
                tz == other_tz && spec.text() == other.text()
            }
            (Self::Every { period }, Self::Every { period: other }) => period == other,
            _ => false,
        }
    }
}

impl Eq for Schedule {}

/// One `CronSpec` for each distinct line: a parsed line takes about 6 KiB, and ten thousand jobs may share one.
fn interned(line: &str) -> Result<Arc<CronSpec>, String> {
    static KNOWN: LazyLock<Mutex<HashMap<String, Weak<CronSpec>>>> = LazyLock::new(Mutex::default);
    if let Some(spec) = KNOWN.lock().unwrap_or_else(PoisonError::into_inner).get(line).and_then(Weak::upgrade) {
        return Ok(spec);
    }
    // Without the lock: it takes a while to find out that a line never comes.
    let spec = Arc::new(CronSpec::parse(line)?);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if known.len() == known.capacity() {
        known.retain(|_, spec| spec.strong_count() > 0);
    }
    known.insert(line.to_owned(), Arc::downgrade(&spec));
    Ok(spec)
}

/// A duration as chrono counts it; the longest it can count if it is longer.
pub(crate) fn delta(duration: Duration) -> TimeDelta {
    TimeDelta::from_std(duration).unwrap_or(TimeDelta::MAX)
}
