//! What start-up and `check` say of settings that are right: which servers, which jobs, and what to look out for.

use std::collections::{BTreeMap, VecDeque};

use chrono::{DateTime, TimeDelta, Utc};

use super::Settings;
use crate::alerts::ReceiverKind;
use crate::schedule::Schedule;
use crate::warehouse::TableRef;

/// Loads that BigQuery takes for one table in one day, failed ones included. It cannot be raised.
const LOADS_A_DAY: u64 = 1_500;

/// Days that are looked at: a cron line that fires on one weekday has fired.
const DAYS_AHEAD: i64 = 8;

impl Settings {
    /// What was chosen, a line each, without secrets.
    pub fn summary_lines(&self) -> Vec<String> {
        let mut lines = vec![format!("settings: {}", self.file.display())];
        lines.extend(self.backends.summary_lines());
        let receivers: Vec<String> = self
            .receivers
            .values()
            .map(|receiver| match receiver.kind {
                ReceiverKind::Console => receiver.name.clone(),
                _ => format!("{} ({})", receiver.name, receiver.describe()),
            })
            .collect();
        lines.push(format!("receivers: {}", receivers.join(", ")));
        let scheduled = self.jobs.iter().filter(|job| job.schedule.is_some() && !job.paused).count();
        let paused = self.jobs.iter().filter(|job| job.paused).count();
        let paused = if paused > 0 { format!(", {paused} paused") } else { String::new() };
        lines.push(format!("jobs: {} ({scheduled} scheduled{paused})", self.jobs.len()));
        lines
    }

    /// What will go wrong later on, though nothing is wrong with the file. `now` is where the look ahead begins.
    pub fn warnings(&self, now: DateTime<Utc>) -> Vec<String> {
        let mut warnings = self.backends.warnings();
        for (table, (loads, jobs)) in self.loads_a_day(now) {
            if loads > LOADS_A_DAY {
                let jobs = jobs.join(", ");
                warnings.push(format!(
                    "table {table} gets {loads} loads a day or more (from {jobs}); BigQuery stops at {LOADS_A_DAY}. \
                     Run the upload less often: every 2 minutes is 720"
                ));
            }
        }
        warnings
    }

    /// For each table: the loads of its busiest day, if each run makes the one load that it must, and the jobs they come from.
    fn loads_a_day(&self, now: DateTime<Utc>) -> BTreeMap<&TableRef, (u64, Vec<&str>)> {
        let mut tables: BTreeMap<&TableRef, (u64, Vec<&str>)> = BTreeMap::new();
        for job in self.jobs.iter().filter(|job| !job.paused && job.job.kind() == "upload") {
            let (Some(schedule), Some(datasets)) = (&job.schedule, self.datasets_of.get(&job.name)) else { continue };
            let runs = runs_a_day(schedule, now);
            let mut named: Vec<&TableRef> =
                datasets.iter().filter_map(|name| Some(&self.datasets.get(name)?.table)).collect();
            named.sort();
            named.dedup();
            for table in named {
                let entry = tables.entry(table).or_default();
                entry.0 += runs;
                entry.1.push(&job.name);
            }
        }
        tables
    }
}

/// Runs in the busiest 24 hours of the days ahead; counting ends where the limit has been passed.
fn runs_a_day(schedule: &Schedule, now: DateTime<Utc>) -> u64 {
    if let Schedule::Every { period } = schedule {
        return (86_400_000 / period.as_millis().max(1)) as u64;
    }
    let (mut busiest, mut window, mut at) = (0, VecDeque::new(), now);
    while let Some(next) = schedule.next_after(at).filter(|next| *next < now + TimeDelta::days(DAYS_AHEAD)) {
        window.push_back(next);
        while window.front().is_some_and(|first| *first <= next - TimeDelta::days(1)) {
            window.pop_front();
        }
        busiest = busiest.max(window.len() as u64);
        if busiest > LOADS_A_DAY {
            break;
        }
        at = next;
    }
    busiest
}
