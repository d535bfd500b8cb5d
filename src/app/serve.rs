//! `serve`: the daemon, from its start to its orderly end.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use chrono::{DateTime, Utc};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{App, MIGRATE_LIMIT, due_of, due_since, entry, job_rows};
use crate::scheduler::{LOOKAHEAD, Scheduler};
use crate::web;

/// Batches of slots that may wait for the runner; each is what came due in half a second.
const BATCHES: usize = 64;

/// How long messages may still be sent while the daemon stops.
const LAST_MESSAGES: Duration = Duration::from_secs(5);

impl App {
    /// Stays up until `stop`: runs every job on its schedule and delivers alerts. Then lets running jobs end within the
    /// grace period.
    ///
    /// Answers HTTP on `listener`, if there is one.
    ///
    /// # Errors
    /// If the history refuses us, or if the scheduler stops on its own.
    pub async fn serve(&self, listener: Option<TcpListener>, stop: CancellationToken) -> anyhow::Result<()> {
        let started_at = self.clock.now();
        for line in self.settings.summary_lines() {
            tracing::info!("{line}");
        }
        for line in self.settings.notes.iter().chain(&self.settings.warnings(started_at)) {
            tracing::warn!("{line}");
        }
        let mut tasks = JoinSet::new();
        let messages = CancellationToken::new();
        if let Some(listener) = listener {
            let last = messages.clone();
            let port = listener.local_addr().context("the port that is listened on")?.port();
            tracing::info!(port, "answering GET /livez on port {port}");
            tasks.spawn(async move {
                web::serve(listener, web::REQUEST_LIMIT, last).await;
                Ok(())
            });
        }
        let past = self.begin().await?;
        // Nobody should learn at two in the morning that a password is wrong. What is away now may be back by then: a warning.
        let app = self.clone();
        tokio::spawn(async move {
            if let Err(error) = app.cache.ping().await {
                tracing::warn!("the cache does not answer now: {error}");
            }
            if let Err(error) = app.warehouse.ping().await {
                tracing::warn!("the warehouse does not answer now: {error}");
            }
        });

        let scheduler = Scheduler::new(self.clock.clone(), LOOKAHEAD);
        for job in self.settings.jobs.iter() {
            let Some(entry) = entry(job) else { continue };
            let last = past.as_ref().and_then(|past| past.get(&job.name)).copied();
            scheduler.upsert(&job.name, entry, last);
        }
        let (send, mut receive) = mpsc::channel(BATCHES);
        let ended = CancellationToken::new();
        {
            let (scheduler, ended) = (scheduler.clone(), ended.clone());
            tasks.spawn(async move { scheduler.run(send, ended).await.context("the scheduler stopped") });
        }
        {
            let (runner, ended) = (self.runner.clone(), ended.clone());
            tasks.spawn(async move {
                // The metronome keeps its end of the channel for good, so its end cannot be heard there.
                while let Some(Some(batch)) = ended.run_until_cancelled(receive.recv()).await {
                    runner.handle(batch.into_iter().map(due_of).collect());
                }
                Ok(())
            });
        }
        {
            let (dispatcher, messages) = (self.dispatcher.clone(), messages.clone());
            tasks.spawn(async move {
                dispatcher.run(messages).await;
                Ok(())
            });
        }
        self.runner.watch_for_lost_runs();
        if past.is_none() {
            let app = self.clone();
            tokio::spawn(async move { app.catch_up_when_the_history_is_back(started_at).await });
        }
        match scheduler.next_due() {
            Some(next) => tracing::info!(jobs = self.settings.jobs.len(), "watching; the next run is due at {next}"),
            None => tracing::warn!(jobs = self.settings.jobs.len(), "watching, but no job has a schedule"),
        }

        let outcome = tokio::select! {
            () = stop.cancelled() => {
                tracing::info!(running = self.runner.running(), "stopping: no new runs; running ones get {} s", self.grace.as_secs());
                Ok(())
            }
            // A part that ends on its own takes the daemon with it: better restarted than half alive.
            Some(part) = tasks.join_next() => part.context("a part of the daemon broke").flatten(),
        };
        ended.cancel();
        self.runner.shutdown(self.grace).await;
        messages.cancel();
        let rest = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(LAST_MESSAGES, rest).await.is_err() {
            tracing::warn!("some messages are not sent yet; they wait in the outbox");
        }
        outcome
    }

    /// Brings the history up to date and asks it where the jobs were left. `None`: it is away, and the daemon goes on
    /// without it.
    async fn begin(&self) -> anyhow::Result<Option<BTreeMap<String, DateTime<Utc>>>> {
        let work = async {
            self.history.migrate().await?;
            self.history.sync_jobs(&job_rows(&self.settings)).await?;
            self.history.last_slots().await
        };
        match self.limited(MIGRATE_LIMIT, work).await {
            Ok(last) => Ok(Some(last)),
            Err(error) if error.is_transient() => {
                self.runner.database_was_away(&error);
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The history was away when the daemon started. When it is back, what was missed before the start is caught up.
    async fn catch_up_when_the_history_is_back(self, started_at: DateTime<Utc>) {
        loop {
            self.runner.database_back().await;
            let work = async {
                self.history.sync_jobs(&job_rows(&self.settings)).await?;
                self.history.last_slots().await
            };
            match self.limited(MIGRATE_LIMIT, work).await {
                Ok(last) => {
                    let jobs = self.settings.jobs.iter();
                    let due = jobs.filter_map(|job| due_since(job, *last.get(&job.name)?, started_at));
                    return self.runner.handle(due.collect());
                }
                Err(error) => self.runner.database_was_away(&error),
            }
        }
    }
}
