//! The metronome: tokio-cron-scheduler, which asks its store for due jobs every half second. Ours is a store that holds no
//! jobs and takes every question as a beat. So none of its own reckoning (frozen UTC offsets, lossy channels, slots run twice)
//! comes into play, and no other file names it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::MissedTickBehavior;
use tokio_cron_scheduler::job::job_data::{JobAndNextTick, JobStoredData};
use tokio_cron_scheduler::store::{DataStore, InitStore};
use tokio_cron_scheduler::{
    Context, JobCode, JobScheduler, JobSchedulerError, JobToRunAsync, MetaDataStorage, PinnedGetFuture,
    SimpleNotificationCode, SimpleNotificationStore, ToCode,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::SchedulerError;

/// How often the beats are counted, and after how many checks without one the metronome is dead: five seconds.
const CHECK: Duration = Duration::from_millis(500);
const SILENT_CHECKS: u32 = 10;

/// Calls `beat` every half second until `shutdown`.
pub(super) async fn run(
    beat: impl Fn() + Send + Sync + 'static,
    shutdown: &CancellationToken,
) -> Result<(), SchedulerError> {
    let beats = Arc::new(AtomicU64::new(0));
    let store = BeatStore { beat: Arc::new(beat), beats: Arc::clone(&beats), shutdown: shutdown.clone() };
    let started = async {
        let metronome = JobScheduler::new_with_storage_and_code(
            Box::new(store),
            Box::new(SimpleNotificationStore::default()),
            Box::new(NoCode),
            Box::new(SimpleNotificationCode::default()),
            1,
        )
        .await?;
        metronome.start().await?;
        Ok::<_, JobSchedulerError>(metronome)
    };
    let mut metronome = started.await.map_err(|error| SchedulerError::Start(error.to_string()))?;
    let result = watch(&beats, CHECK, shutdown).await;
    // It ends at its next beat; `BeatStore` makes sure that this one is not felt.
    if let Err(error) = metronome.shutdown().await {
        tracing::warn!(error = %error, "the scheduler's metronome did not stop cleanly");
    }
    result
}

/// Counts checks without a beat rather than time: after the process was stopped for a while, this task may wake up first.
async fn watch(beats: &AtomicU64, check: Duration, shutdown: &CancellationToken) -> Result<(), SchedulerError> {
    let mut checks = tokio::time::interval(check);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut heard, mut silent) = (0, 0);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            _ = checks.tick() => {}
        }
        let now = beats.load(Ordering::Relaxed);
        silent = if now == heard { silent + 1 } else { 0 };
        heard = now;
        // The first check comes at once.
        if silent > SILENT_CHECKS {
            return Err(SchedulerError::Silent(check * SILENT_CHECKS));
        }
    }
}

struct BeatStore<F> {
    beat: Arc<F>,
    beats: Arc<AtomicU64>,
    shutdown: CancellationToken,
}

type Answer<T> = Pin<Box<dyn Future<Output = Result<T, JobSchedulerError>> + Send>>;

fn answer<T: Send + 'static>(value: T) -> Answer<T> {
    Box::pin(std::future::ready(Ok(value)))
}

impl<F: Fn() + Send + Sync> MetaDataStorage for BeatStore<F> {
    fn list_next_ticks(&mut self) -> Answer<Vec<JobAndNextTick>> {
        if !self.shutdown.is_cancelled() {
            (self.beat)();
            self.beats.fetch_add(1, Ordering::Relaxed);
        }
        // What is due has left through `beat`, where nothing can be dropped; the crate's own channels carry nothing.
        answer(Vec::new())
    }

    fn set_next_and_last_tick(&mut self, _: Uuid, _: Option<DateTime<Utc>>, _: Option<DateTime<Utc>>) -> Answer<()> {
        answer(())
    }

    fn time_till_next_job(&mut self) -> Answer<Option<Duration>> {
        answer(None)
    }
}

impl<F> DataStore<JobStoredData> for BeatStore<F> {
    fn get(&mut self, _: Uuid) -> Answer<Option<JobStoredData>> {
        answer(None)
    }

    fn add_or_update(&mut self, _: JobStoredData) -> Answer<()> {
        answer(())
    }

    fn delete(&mut self, _: Uuid) -> Answer<()> {
        answer(())
    }
}

impl<F> InitStore for BeatStore<F> {
    fn init(&mut self) -> Answer<()> {
        answer(())
    }

    fn inited(&mut self) -> Answer<bool> {
        answer(true)
    }
}

/// The crate is given no jobs, so it has no code to ask for.
struct NoCode;

impl ToCode<Box<JobToRunAsync>> for NoCode {
    fn init(&mut self, _: &Context) -> Answer<()> {
        answer(())
    }

    fn get(&mut self, _: Uuid) -> PinnedGetFuture<Box<JobToRunAsync>> {
        answer(None)
    }
}

impl JobCode for NoCode {}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_metronome_that_falls_silent_ends_the_run_with_an_error() {
        let result = watch(&AtomicU64::new(7), Duration::from_millis(5), &CancellationToken::new()).await;
        let error = result.expect_err("nothing beats");
        assert!(error.to_string().contains("has been silent for"), "{error}");
    }
}
