//! The keys that every `[jobs.NAME]` table may have, as people write them.

use std::sync::LazyLock;
use std::time::Duration;

use chrono_tz::Tz;
use serde::Deserialize;
use serde::de::{Deserializer, Error};

use super::{CatchUp, OnCrash, Overlap, Retry, WhenDbDown};
use crate::history::Severity;
use crate::schedule::Schedule;
use crate::units::Span;

/// `[defaults]`: what holds for every job that does not say otherwise.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Defaults {
    pub(super) timezone: Option<Zone>,
    pub(super) timeout: Option<Positive>,
    #[serde(default)]
    pub(super) retry: RetryKeys,
    pub(super) overlap: Option<Overlap>,
    pub(super) catch_up: Option<CatchUp>,
    pub(super) catch_up_window: Option<Positive>,
    pub(super) on_crash: Option<OnCrash>,
    pub(super) when_db_down: Option<WhenDbDown>,
    pub(super) notify: Option<Vec<String>>,
    pub(super) severity: Option<Severity>,
}

/// What a `[jobs.NAME]` table may say whatever its kind; the kind's own keys come on top.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct JobKeys {
    pub(super) schedule: Option<CronLine>,
    pub(super) every: Option<Period>,
    pub(super) timezone: Option<Zone>,
    pub(super) timeout: Option<Positive>,
    #[serde(default)]
    pub(super) retry: RetryKeys,
    pub(super) overlap: Option<Overlap>,
    pub(super) catch_up: Option<CatchUp>,
    pub(super) catch_up_window: Option<Positive>,
    pub(super) on_crash: Option<OnCrash>,
    pub(super) when_db_down: Option<WhenDbDown>,
    pub(super) notify: Option<Vec<String>>,
    pub(super) severity: Option<Severity>,
    #[serde(default)]
    pub(super) paused: bool,
}

/// `retry = { … }`; what is left out comes from `[defaults]`.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RetryKeys {
    attempts: Option<Attempts>,
    backoff: Option<Span>,
    max_backoff: Option<Span>,
}

impl RetryKeys {
    /// These keys, then those of `[defaults]`, then our own values.
    pub(super) fn over(self, defaults: Self) -> Retry {
        Retry {
            attempts: self.attempts.or(defaults.attempts).map_or(3, |attempts| attempts.0),
            backoff: self.backoff.or(defaults.backoff).map_or(Duration::from_secs(2), |span| span.0),
            max_backoff: self.max_backoff.or(defaults.max_backoff).map_or(Duration::from_secs(300), |span| span.0),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Attempts(u32);

impl<'de> Deserialize<'de> for Attempts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match i64::deserialize(deserializer)? {
            attempts @ 1..=100 => Ok(Self(attempts as u32)),
            other => Err(D::Error::custom(format!("{other} attempts; write 1 (no second one) to 100"))),
        }
    }
}

/// A duration that is longer than nothing and shorter than ten years.
#[derive(Debug, Clone, Copy)]
pub(super) struct Positive(pub(super) Duration);

impl<'de> Deserialize<'de> for Positive {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let span = Span::deserialize(deserializer)?;
        if span.0.is_zero() {
            return Err(D::Error::custom("it must be longer than nothing, for example \"10m\""));
        }
        if span.0 > Duration::from_secs(3_650 * 86_400) {
            return Err(D::Error::custom(format!("{span} is longer than ten years (3650d), the most there is")));
        }
        Ok(Self(span.0))
    }
}

/// `every = "30s"`.
#[derive(Debug, Clone)]
pub(super) struct Period(pub(super) Schedule);

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let period = Positive::deserialize(deserializer)?.0;
        Schedule::every(period).map(Self).map_err(D::Error::custom)
    }
}

/// A cron line that has been read once, in UTC, so that its mistakes are found wherever the zone's are.
#[derive(Debug, Clone)]
pub(super) struct CronLine(pub(super) String);

impl<'de> Deserialize<'de> for CronLine {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let line = String::deserialize(deserializer)?;
        match Schedule::cron(&line, Tz::UTC) {
            Ok(_) => Ok(Self(line)),
            Err(sentence) => Err(D::Error::custom(sentence)),
        }
    }
}

/// An IANA time zone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Zone(pub(super) Tz);

static ZONES: LazyLock<Vec<&'static str>> =
    LazyLock::new(|| chrono_tz::TZ_VARIANTS.iter().map(|tz| tz.name()).collect());

impl<'de> Deserialize<'de> for Zone {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        name.parse().map(Self).map_err(|_| D::Error::unknown_variant(&name, &ZONES))
    }
}

#[cfg(test)]
mod tests {
    use super::super::COMMON_KEYS;
    use super::{Defaults, JobKeys};
    use crate::document::keys_of;

    #[test]
    fn the_list_of_common_keys_is_complete() {
        let own: Vec<&str> = COMMON_KEYS.iter().copied().filter(|key| *key != "kind").collect();
        assert_eq!(own, keys_of::<JobKeys>());
        assert!(keys_of::<Defaults>().iter().all(|key| COMMON_KEYS.contains(key)));
    }
}
