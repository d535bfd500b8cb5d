//! Commands that do one thing and exit: a job now, or everything that is due.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{App, MIGRATE_LIMIT, job_rows};
use crate::alerts::Flushed;
use crate::history::{HistoryError, Run};
use crate::jobs::Progress;
use crate::runner::NotRun;

/// How long messages may be sent before the program exits. What is left waits in the outbox.
const SEND_LIMIT: Duration = Duration::from_secs(20);

impl App {
    /// Runs one job now, sends the alerts that it caused, and returns its last attempt. `stop` ends it early.
    pub async fn run_job(&self, job: &str, progress: Progress, stop: CancellationToken) -> anyhow::Result<Result<Run, NotRun>> {
        self.ready().await?;
        let result = self.until(stop, self.runner.run_now(job, progress)).await;
        self.end().await;
        Ok(result)
    }

    /// Runs everything that is due since the last slot in history, takes over runs of dead processes, sends the alerts, and
    /// returns what was done. A job that has no past begins it here: it is due at its next slot.
    pub async fn run_due(&self, stop: CancellationToken) -> anyhow::Result<Vec<Run>> {
        self.ready().await?;
        let last = self.limited(MIGRATE_LIMIT, self.history.last_slots()).await?;
        let mut last = last;
        for (job, at) in self.begin_pasts(&last).await? {
            last.insert(job, at);
        }
        let due = self.due_since(&last, self.clock.now());
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
            () = stop.cancelled() => tracing::warn!("stopping: the run gets {} s to end", self.settings.grace.as_secs()),
        }
        tokio::join!(work, self.runner.shutdown(self.settings.grace)).0
    }

    /// Records and sends what is left.
    async fn end(&self) -> Flushed {
        self.runner.flush(SEND_LIMIT).await;
        let flushed = self.dispatcher.flush(SEND_LIMIT).await;
        if let Some(error) = &flushed.error {
            tracing::error!("alerts were not sent: {error}; they wait in the outbox");
        } else if flushed.waiting > 0 {
            tracing::warn!("{} messages could not be sent yet; they wait in the outbox", flushed.waiting);
        }
        flushed
    }
}
