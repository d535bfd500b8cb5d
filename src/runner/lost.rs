//! The reaper: runs whose process died are marked as lost, and taken over or given up.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::task::JoinHandle;

use super::Inner;
use crate::history::{Run, RunFilter, RunState, Trigger};
use crate::jobs::OnCrash;

/// How long the history may take to look for them.
const REAP_LIMIT: Duration = Duration::from_secs(10);

/// A job that takes its process down with it is not run for ever: this many attempts, or what `retry` allows if that is more.
const MAX_ATTEMPTS: u32 = 3;

/// Interrupted runs that are looked through at once.
const MAX_INTERRUPTED: u32 = 1_000;

/// Rows that are looked through for their next attempts.
const MAX_LOOKED_AT: u32 = 20_000;

/// How often runs that were interrupted elsewhere are looked for: a replica that stops cancels its runs for another to resume.
const LOOK_BACK_EVERY: Duration = Duration::from_secs(60);

impl Inner {
    /// Says that this daemon is up and takes over lost runs, again and again.
    pub(super) async fn reap_for_ever(self: Arc<Self>) {
        let mut look_back_at = self.clock.monotonic();
        loop {
            if self.database.is_here() && !self.stopping.is_cancelled() {
                self.check_in().await;
                self.mark_lost_runs().await;
                if self.clock.monotonic() >= look_back_at {
                    self.resume_interrupted_runs().await;
                    look_back_at = self.clock.monotonic() + LOOK_BACK_EVERY;
                }
            }
            if self.done.run_until_cancelled(self.pause(self.tempo.reap_every)).await.is_none() {
                return;
            }
        }
    }

    /// Takes over the runs whose process died just now, and those that were interrupted before and never resumed.
    pub(super) async fn take_over_lost_runs(self: &Arc<Self>) -> Vec<JoinHandle<Vec<Run>>> {
        let mut tasks = self.mark_lost_runs().await;
        tasks.extend(self.resume_interrupted_runs().await);
        tasks
    }

    /// Marks runs whose lease has ended as lost, takes over those that may be, and rings for the others.
    pub(super) async fn mark_lost_runs(self: &Arc<Self>) -> Vec<JoinHandle<Vec<Run>>> {
        let lost = match self.limited("looking for lost runs", REAP_LIMIT, self.history.reap()).await {
            Ok(lost) => lost,
            Err(error) => {
                self.database_failed(&error);
                return Vec::new();
            }
        };
        let mut tasks = Vec::new();
        for run in lost {
            let (job, id) = (&run.job, &run.id);
            tracing::warn!(job.name = job, run.id = id, run.owner = run.owner, "the process that ran {job} is gone");
            match self.take_over(&run) {
                Some(task) => tasks.push(task),
                None => self.ring_lost(&run).await,
            }
        }
        tasks
    }

    /// Runs that were lost, or cancelled because the program was stopped, and whose next attempt nobody claimed: the process
    /// that meant to died too, or there was none. Claiming an attempt that exists changes nothing.
    async fn resume_interrupted_runs(self: &Arc<Self>) -> Vec<JoinHandle<Vec<Run>>> {
        let Some(window) = self.jobs.values().map(|job| job.catch_up_window).max() else { return Vec::new() };
        let now = self.clock.now();
        let states = vec![RunState::Lost, RunState::Cancelled];
        let mut interrupted = self.look_for(states, now - window, MAX_INTERRUPTED).await;
        interrupted.retain(|run| {
            let recent = self.jobs.get(&run.job).is_some_and(|job| run.created_at + job.catch_up_window > now);
            recent && run.slot.is_some()
        });
        let Some(oldest) = interrupted.iter().map(|run| run.created_at).min() else { return Vec::new() };
        let rows = self.look_for(Vec::new(), oldest, MAX_LOOKED_AT).await;
        let followed: HashSet<_> = rows.iter().map(|run| (&run.job, run.slot, run.attempt)).collect();
        interrupted.retain(|run| !followed.contains(&(&run.job, run.slot, run.attempt + 1)));
        interrupted.iter().filter_map(|run| self.take_over(run)).collect()
    }

    async fn look_for(&self, states: Vec<RunState>, since: DateTime<Utc>, limit: u32) -> Vec<Run> {
        let filter = RunFilter { job: None, states, since: Some(since), limit };
        let runs = self.limited("looking for interrupted runs", REAP_LIMIT, self.history.runs(&filter)).await;
        runs.unwrap_or_else(|error| {
            self.database_failed(&error);
            Vec::new()
        })
    }

    /// Starts the next attempt of a run whose process is gone, if the job wants that. A run that a person started is that
    /// person's to start again.
    fn take_over(self: &Arc<Self>, run: &Run) -> Option<JoinHandle<Vec<Run>>> {
        let job = self.jobs.get(&run.job)?;
        let attempts = job.retry.attempts.max(MAX_ATTEMPTS);
        let wanted = job.on_crash == OnCrash::Rerun && !job.paused && run.attempt < attempts && run.slot.is_some();
        if !wanted || self.stopping.is_cancelled() {
            return None;
        }
        let next = self.wanted(job, run.slot, run.attempt + 1, Trigger::Takeover);
        let inner = self.clone();
        Some(self.runs.spawn(async move { inner.carry_out(next, None, false).await.into_iter().collect() }))
    }

    /// A lost run that nobody takes over has failed for good.
    async fn ring_lost(&self, run: &Run) {
        let Some(job) = self.jobs.get(&run.job) else { return };
        let said = run.error.clone().unwrap_or_else(|| "its process died".to_owned());
        let row = Run { error: Some(said), ..run.clone() };
        self.ring(&self.settled_changes(job, &row, false)).await;
    }
}
