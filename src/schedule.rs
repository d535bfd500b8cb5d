//! When a job runs: cron lines by Debian cron's rules in an IANA zone, and fixed intervals. Pure functions of time.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;

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

/// A parsed cron line.
#[derive(Debug)]
pub struct CronSpec(croner::Cron);

impl Schedule {
    /// A cron line in a zone.
    ///
    /// # Errors
    /// A sentence that says why the line is refused.
    pub fn cron(line: &str, tz: Tz) -> Result<Self, String> {
        use croner::parser::{CronParser, Seconds};
        let fields = line.split_whitespace().count();
        if !line.trim_start().starts_with('@') && !(5..=6).contains(&fields) {
            return Err(format!(
                "{line:?} has {fields} fields; a cron line has 5 (minute hour day month weekday), or 6 with seconds first"
            ));
        }
        let cron = CronParser::builder().seconds(Seconds::Optional).build().parse(line);
        let cron = cron.map_err(|error| format!("{line:?} is not a cron line: {error}"))?;
        Ok(Self::Cron { spec: Arc::new(CronSpec(cron)), tz })
    }

    /// Slots at whole multiples of `period`.
    ///
    /// # Errors
    /// A sentence that says what a period is like.
    pub fn every(period: Duration) -> Result<Self, String> {
        if period < Duration::from_secs(1) {
            return Err("a job runs at most every second".to_owned());
        }
        Ok(Self::Every { period })
    }

    /// The first slot strictly after `t`; `None` if there is none any more.
    pub fn next_after(&self, t: DateTime<Utc>) -> Option<DateTime<Utc>> {
        match self {
            Self::Cron { spec, tz } => {
                spec.0.find_next_occurrence(&t.with_timezone(tz), false).ok().map(|at| at.with_timezone(&Utc))
            }
            Self::Every { period } => {
                let period = i64::try_from(period.as_millis()).ok()?;
                Some(t + TimeDelta::milliseconds(period - t.timestamp_millis().rem_euclid(period)))
            }
        }
    }
}
