//! The reaper: runs whose process died are marked as lost, and taken over or given up.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::Inner;
use crate::history::{Run, RunFilter, RunState, Trigger};
use crate::jobs::OnCrash;

/// How long the history may take to look for them.
const REAP_LIMIT: Duration = Duration::from_secs(10);

/// A job that takes its process down with it is not run for ever: this many attempts, or what `retry` allows if that is more.
const MAX_ATTEMPTS: u32 = 3;

/// Interrupted runs that are looked through at start.
const MAX_INTERRUPTED: u32 = 1_000;

impl Inner {
    /// Takes over lost runs, again and again.
    pub(super) async fn reap_for_ever(self: Arc<Self>) {
        let mut looked_back = false;
        loop {
            if self.database.is_here() && !self.stopping.is_cancelled() {
                if looked_back {
                    self.mark_lost_runs().await;
                } else {
                    self.take_over_lost_runs().await;
                    looked_back = self.database.is_here();
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
        let filter = RunFilter { job: None, states: Vec::new(), since: Some(now - window), limit: MAX_INTERRUPTED };
        let runs = match self.limited("looking for interrupted runs", REAP_LIMIT, self.history.runs(&filter)).await {
            Ok(runs) => runs,
            Err(error) => {
                self.database_failed(&error);
                return Vec::new();
            }
        };
        let followed: HashSet<_> = runs.iter().map(|run| (&run.job, run.slot, run.attempt)).collect();
        let interrupted = runs.iter().filter(|run| {
            let recent = self.jobs.get(&run.job).is_some_and(|job| run.created_at + job.catch_up_window > now);
            matches!(run.state, RunState::Lost | RunState::Cancelled)
                && recent
                && !followed.contains(&(&run.job, run.slot, run.attempt + 1))
        });
        interrupted.filter_map(|run| self.take_over(run)).collect()
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
