//! Commands that do one thing and exit: a job now, or everything that is due.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio_util::sync::CancellationToken;

use super::{App, MIGRATE_LIMIT, due_since, job_rows};
use crate::history::Run;
use crate::jobs::{JobSpec, Progress};
use crate::runner::{Due, NotRun};
use crate::schedule::{CatchUp, delta, plan_catch_up};

/// How long messages may be sent before the program exits. What is left waits in the outbox.
const SEND_LIMIT: Duration = Duration::from_secs(20);

/// A slot that passed so recently is not caught up but on time: whoever starts us on a timer is often minutes late.
const ON_TIME: Duration = Duration::from_secs(15 * 60);

impl App {
    /// Runs one job now, sends the alerts that it caused, and returns its last attempt. `stop` ends it early.
    pub async fn run_job(
        &self,
        job: &str,
        progress: Progress,
        stop: CancellationToken,
    ) -> anyhow::Result<Result<Run, NotRun>> {
        self.ready().await?;
        let result = self.until(stop, self.runner.run_now(job, progress)).await;
        self.end().await;
        Ok(result)
    }

    /// Runs everything that is due since the last slot in history, takes over runs of dead processes, sends the alerts, and
    /// returns what was done.
    pub async fn run_due(&self, stop: CancellationToken) -> anyhow::Result<Vec<Run>> {
        self.ready().await?;
        let last = self.limited(MIGRATE_LIMIT, self.history.last_slots()).await?;
        let now = self.clock.now();
        let due = self.settings.jobs.iter().filter_map(|job| due_by_timer(job, last.get(&job.name).copied(), now));
        let due = due.collect();
        let runs = self.until(stop, self.runner.handle_and_wait(due)).await;
        self.end().await;
        Ok(runs)
    }

    /// Sees to it that the history answers and has its tables, and that the servers that jobs need are there, so that an
    /// absent one is said in one line before anything begins.
    pub(super) async fn ready(&self) -> anyhow::Result<()> {
        self.limited(MIGRATE_LIMIT, async {
            self.history.migrate().await?;
            self.history.sync_jobs(&job_rows(&self.settings)).await
        })
        .await?;
        self.cache.ping().await?;
        self.warehouse.ping().await?;
        Ok(())
    }

    /// Waits for `work`; at `stop`, tells the runner to stop within the grace period and waits for what comes of that.
    async fn until<T>(&self, stop: CancellationToken, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        tokio::select! {
            done = &mut work => return done,
            () = stop.cancelled() => tracing::warn!("stopping: the run gets {} s to end", self.grace.as_secs()),
        }
        tokio::join!(work, self.runner.shutdown(self.grace)).0
    }

    /// Records and sends what is left.
    async fn end(&self) {
        self.runner.flush(SEND_LIMIT).await;
        let flushed = self.dispatcher.flush(SEND_LIMIT).await;
        if let Some(error) = &flushed.error {
            tracing::error!("alerts were not sent: {error}; they wait in the outbox");
        } else if flushed.waiting > 0 {
            tracing::warn!("{} messages could not be sent yet; they wait in the outbox", flushed.waiting);
        }
    }
}

/// What of a job is due for a program that is started now and then.
fn due_by_timer(job: &JobSpec, last: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Option<Due> {
    let mut due = match last {
        Some(last) => due_since(job, last, now)?,
        None => {
            // A job without a past: its newest slot begins one, and there is nothing that it could have missed.
            let began = now - delta(job.catch_up_window);
            let plan = plan_catch_up(job.schedule.as_ref()?, began, now, CatchUp::Latest, job.catch_up_window);
            Due { job: job.name.as_str().into(), run: plan.run, missed: Vec::new(), cause: None }
        }
    };
    let recent = |slot: DateTime<Utc>| slot + delta(ON_TIME) > now;
    if !job.paused
        && due.run.is_empty()
        && let Some(newest) = due.missed.pop_if(|slots| recent(slots.last))
    {
        // `catch_up = "none"` is about slots that are long past.
        due.run.push(newest.last);
    }
    if due.missed.is_empty() && due.run.len() == 1 && recent(due.run[0]) {
        due.cause = None;
    }
    (!due.run.is_empty() || !due.missed.is_empty()).then_some(due)
}
