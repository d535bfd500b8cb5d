//! What a run means for the alerts: the runner's facts in the words of the alert rules, which know nothing of jobs.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::Inner;
use crate::alerts::{Dispatcher, Found, Missed, Outage, Settled, Subject, database_away, run_missed, run_settled};
use crate::history::{AlertChange, HistoryError, MissedCause, Run};
use crate::jobs::JobSpec;
use crate::schedule::MissedSlots;

/// How long the history may take to change alerts.
const CHANGE_LIMIT: Duration = Duration::from_secs(10);

/// Delivers alerts: the dispatcher, or a test's notebook. Neither call waits.
pub trait Bell: Send + Sync + 'static {
    /// There may be new messages in the history's outbox.
    fn wake(&self);

    /// Tells people without the history: it is what is broken.
    fn ring(&self, changes: &[AlertChange]);
}

impl Bell for Dispatcher {
    fn wake(&self) {
        Dispatcher::wake(self);
    }

    fn ring(&self, changes: &[AlertChange]) {
        self.send_direct(changes);
    }
}

impl Inner {
    /// What a run that is over means. `again`: another attempt follows, so nobody is told yet.
    pub(super) fn settled_changes(&self, job: &Arc<JobSpec>, row: &Run, again: bool) -> Vec<AlertChange> {
        let now = self.clock.now();
        let settled = Settled {
            state: row.state,
            slot: row.slot,
            started_at: row.started_at.unwrap_or(row.created_at),
            finished_at: row.finished_at.unwrap_or(now),
            attempt: row.attempt,
            attempts: job.retry.attempts,
            again,
            rows: row.rows,
            error: row.error.clone(),
            findings: row.findings.as_array().into_iter().flatten().filter_map(found).collect(),
            next_run: next_run(job, now),
        };
        run_settled(&subject(job), &settled)
    }

    /// What slots that did not run mean.
    pub(super) fn missed_changes(
        &self,
        job: &Arc<JobSpec>,
        slots: MissedSlots,
        cause: MissedCause,
    ) -> Vec<AlertChange> {
        let at = self.clock.now();
        let MissedSlots { first, last, count } = slots;
        let missed = Missed { cause, first, last, slots: count, at, next_run: next_run(job, at) };
        run_missed(&subject(job), &missed)
    }

    /// What it means that the database is away since `since`, with this error, or back.
    pub(super) fn away_changes(&self, error: Option<&HistoryError>, since: DateTime<Utc>) -> Vec<AlertChange> {
        let reason = match error {
            Some(HistoryError::Unreachable { reason, .. } | HistoryError::Refused { reason, .. }) => reason.clone(),
            None => String::new(),
        };
        let (database, at) = (self.history.describe(), self.clock.now());
        database_away(&self.receivers, &Outage { database, since, reason, back: error.is_none(), at })
    }

    /// Carries out alert changes that belong to no run's end; if the history cannot, tells people directly.
    pub(super) async fn ring(&self, changes: &[AlertChange]) {
        if changes.is_empty() {
            return;
        }
        match self.limited("changing alerts", CHANGE_LIMIT, self.history.change_alerts(changes)).await {
            Ok(()) => self.bell.wake(),
            Err(error) => {
                self.database_failed(&error);
                self.bell.ring(changes);
            }
        }
    }
}

fn subject(job: &JobSpec) -> Subject {
    Subject { job: job.name.clone(), severity: job.severity, receivers: job.notify.clone() }
}

fn next_run(job: &JobSpec, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    job.schedule.as_ref().filter(|_| !job.paused)?.next_after(now)
}

/// A finding, from the form in which the history keeps it.
fn found(finding: &serde_json::Value) -> Option<Found> {
    let labels = finding["labels"].as_array().into_iter().flatten();
    let label = |pair: &serde_json::Value| Some((pair[0].as_str()?.to_owned(), pair[1].as_str()?.to_owned()));
    Some(Found {
        name: finding["name"].as_str()?.to_owned(),
        value: finding["value"].as_f64()?,
        labels: labels.filter_map(label).collect(),
    })
}
