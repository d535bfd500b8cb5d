//! `kind = "upload"`: drains upload queues into warehouse tables, exactly once.
//!
//! The protocol, its keys and its crash table are in docs/upload.md. In short: leftovers of dead processes first
//! ([`batch`]), then batch after batch: entries are claimed and their records read, encoded and sent in one pass
//! ([`reading`]), and once the warehouse says that the load is done, the records are released ([`acknowledge`]). While one
//! batch waits for the warehouse, the next is read.

mod acknowledge;
mod batch;
mod claims;
mod entry;
mod failpoint;
mod gzip;
mod isolate;
mod members;
mod patience;
mod plan;
mod reading;
mod record;
mod run;
mod shape;
mod source;
mod table;
mod timestamp;
mod values;
mod work;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use serde::Deserialize;
use serde::de::{Deserializer, Error};
use tokio::task::{JoinError, JoinSet};

use self::batch::Batch;
use self::run::{Limits, Run, Tally, Turns, UploadError};
use super::datasets::Datasets;
use super::kind::{JobContext, JobError, JobKind, Outcome, Plan};
use crate::units::Span;

/// Drains the queues of its datasets.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Upload {
    datasets: Vec<String>,
    #[serde(default)]
    batch: Limits,
    /// How long a dead process keeps a batch from being taken over.
    #[serde(default = "usual_lease", deserialize_with = "lease")]
    lease: Span,
}

fn usual_lease() -> Span {
    Span(Duration::from_secs(30))
}

fn lease<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
    let lease = Span::deserialize(deserializer)?;
    if lease.0 < Duration::from_secs(1) {
        return Err(D::Error::custom(format!("{lease} is too short; at least 1s")));
    }
    Ok(lease)
}

impl JobKind for Upload {
    const KIND: &'static str = "upload";
    const TIMEOUT: Duration = Duration::from_secs(4 * 3600);

    fn validate(&self, datasets: &Datasets) -> Vec<(&'static str, String)> {
        let mut mistakes = Vec::new();
        let named: Vec<_> = self.datasets.iter().filter_map(|name| datasets.get(name)).collect();
        for (name, dataset) in datasets {
            let shared = named.iter().any(|other| other.queue_ref() == dataset.queue_ref());
            if shared && !self.datasets.contains(name) {
                let why = "a job that drains a queue must name every dataset of it, or their records would become dead letters";
                mistakes.push((
                    "datasets",
                    format!("leaves out {name:?}, which shares the queue {}; {why}", dataset.queue_ref()),
                ));
            }
        }
        mistakes
    }

    async fn run(&self, ctx: &JobContext) -> Result<Outcome, JobError> {
        let tally = Arc::new(Mutex::new(Tally::default()));
        let result = self.drain_all(ctx, &tally).await;
        let tally = tally.lock().expect("nobody panics while holding the tally");
        let (findings, rows) = (tally.findings(), Some(tally.rows()));
        match result {
            Err(error) if error.is_passing() => Err(JobError::passing(anyhow::Error::new(error)).after(findings, rows)),
            Err(error) => Err(JobError::permanent(anyhow::Error::new(error)).after(findings, rows)),
            Ok(()) if ctx.stopping.is_cancelled() => {
                let error = anyhow::anyhow!("stopped early, as it was told to; what is left stays queued");
                Err(JobError::passing(error).after(findings, rows))
            }
            Ok(()) => match &tally.letters_error {
                Some(reason) => {
                    let entries = tally.unsettled;
                    let error = anyhow::anyhow!(
                        "{entries} entries stay in flight, because dead letters cannot be kept: {reason}"
                    );
                    Err(JobError::passing(error).after(findings, rows))
                }
                None => Ok(Outcome::Done { findings, rows }),
            },
        }
    }

    async fn plan(&self, ctx: &JobContext) -> Result<Option<Plan>, JobError> {
        plan::plan(&self.runs(ctx, &Arc::default())).await.map(Some)
    }
}

impl Upload {
    /// One [`Run`] for each queue.
    fn runs(&self, ctx: &JobContext, tally: &Arc<Mutex<Tally>>) -> Vec<Arc<Run>> {
        let turns = Arc::new(Turns::default());
        let queues = run::queues(&self.datasets, &ctx.datasets).into_iter();
        queues
            .map(|(queue, tables)| {
                Arc::new(Run::new(
                    ctx.clone(),
                    queue,
                    tables,
                    self.batch,
                    self.lease,
                    Arc::clone(tally),
                    Arc::clone(&turns),
                ))
            })
            .collect()
    }

    async fn drain_all(&self, ctx: &JobContext, tally: &Arc<Mutex<Tally>>) -> Result<(), UploadError> {
        let runs = self.runs(ctx, tally);
        let mut total = 0;
        for run in &runs {
            let depth = run.depth().await?;
            run.allow(depth);
            total += depth;
        }
        tally.lock().expect("nobody panics while holding the tally").progress.total = total;
        // All queues at once, and their batches in turns: while one batch waits for the warehouse, or lets go of its records, the
        // next is read. A queue that fails does not keep the others from being drained.
        let results = join_all(runs.iter().map(drain)).await;
        for (run, result) in runs.iter().zip(&results) {
            if let Err(error) = result {
                tracing::error!(%error, queue = %run.queue, "the queue could not be drained");
            }
        }
        results.into_iter().collect()
    }
}

/// Drains one queue: what dead processes left, then what waits, then what other processes left meanwhile.
async fn drain(run: &Arc<Run>) -> Result<(), UploadError> {
    recover(run, false).await?;
    let mut waiting: JoinSet<Result<(), UploadError>> = JoinSet::new();
    let mut result = Ok(());
    while result.is_ok() && !run.ctx.stopping.is_cancelled() {
        let permit = Arc::clone(&run.turns.open).acquire_owned().await.expect("nobody closes the semaphore");
        let turn = run.turns.reading.lock().await;
        match Batch::claim(run).await {
            Ok(None) => break,
            Ok(Some((batch, sent))) => {
                run.has_read();
                waiting.spawn(async move {
                    let _permit = permit;
                    batch.settle(Some(sent)).await
                });
            }
            Err(error) => result = Err(error),
        }
        drop(turn);
        while let Some(finished) = waiting.try_join_next() {
            result = result.and(settled(finished));
        }
    }
    while let Some(finished) = waiting.join_next().await {
        result = result.and(settled(finished));
    }
    result?;
    if run.ctx.stopping.is_cancelled() { Ok(()) } else { recover(run, true).await }
}

fn settled(finished: Result<Result<(), UploadError>, JoinError>) -> Result<(), UploadError> {
    finished.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

/// Puts a dead letter back into its queue, so that the next upload tries it again. The letter itself is dropped by the
/// caller, afterwards: a crash between the two tries the record twice, and the upload sends it once.
///
/// # Errors
/// The cache cannot be reached or refuses.
pub async fn retry_dead_letter(
    cache: &crate::cache::SharedCache,
    datasets: &Datasets,
    letter: &crate::history::DeadLetter,
) -> Result<(), crate::cache::CacheError> {
    let queue = crate::cache::QueueRef { database: letter.database, queue: letter.queue.clone() };
    let ttl = datasets.get(&letter.dataset).map_or(Span(Duration::from_secs(7 * 86_400)), |dataset| dataset.ttl).0;
    let body = letter.body.as_deref();
    patience::cache(|| cache.requeue(&queue, &letter.entry, &letter.key, body, ttl)).await
}

/// Finishes batches that dead processes left. `patiently`: waits a little longer than a lease for those that are held, and
/// for what they made other batches put off; what is still held after that has a living owner.
async fn recover(run: &Arc<Run>, patiently: bool) -> Result<(), UploadError> {
    let cache = &run.ctx.cache;
    let mut tick = tokio::time::interval(run.lease.0 / 8);
    for _ in 0..if patiently { 10 } else { 1 } {
        tick.tick().await;
        // Entries that are in flight because dead letters cannot be kept would only go round in circles.
        if run.ctx.stopping.is_cancelled() || run.letters_error().is_some() {
            break;
        }
        let left = patience::cache(|| cache.inflight(&run.queue)).await?;
        if left.is_empty() {
            break;
        }
        for batch in left.iter().filter(|batch| !batch.leased) {
            let _turn = run.turns.reading.lock().await;
            finish_for(run, &batch.batch).await?;
        }
    }
    Ok(())
}

async fn finish_for(run: &Arc<Run>, batch: &str) -> Result<(), UploadError> {
    if let Some(batch) = Batch::adopt(run, batch).await? {
        tracing::info!(queue = %run.queue, batch = %batch.lease.batch, "finishing a batch that another process left");
        run.tally(|tally| tally.recovered += 1);
        batch.settle(None).await?;
    }
    Ok(())
}
