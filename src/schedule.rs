//! When a job runs: cron lines by Debian cron's rules in an IANA zone, and fixed intervals. Pure functions of time.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
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

/// A parsed cron line. Being written.
#[derive(Debug)]
pub struct CronSpec;

impl Schedule {
    /// The first slot strictly after `t`; `None` if there is none any more.
    pub fn next_after(&self, _t: DateTime<Utc>) -> Option<DateTime<Utc>> {
        None
    }
}
