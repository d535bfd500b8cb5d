//! What is due when: the due-list, and the metronome that asks it twice a second. What a slot does is not known here; slots
//! are handed over in batches, a little ahead of their instant, and whoever takes them starts the work at the exact instant.

mod batch;
mod due_list;
mod metronome;
mod simulate;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::due_list::DueList;
pub use self::simulate::{Event, EventKind, simulate};
use crate::clock::Clock;
use crate::history::MissedCause;
use crate::schedule::{CatchUp, MissedSlots, Schedule};

/// How far ahead of their instant slots are handed over: a beat of the metronome (500 ms) and some slack.
pub const LOOKAHEAD: Duration = Duration::from_millis(600);

/// Slots of one job that are due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// The job.
    pub job: Arc<str>,
    /// Slots to run, oldest first. Without a cause, they may lie up to the look-ahead in the future.
    pub run: Vec<DateTime<Utc>>,
    /// Slots that do not run, oldest first, older than those in `run`.
    pub missed: Vec<MissedSlots>,
    /// Why slots were missed or run late; `None` if they are on time.
    pub cause: Option<MissedCause>,
}

/// A job as the scheduler knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When it runs.
    pub schedule: Schedule,
    /// What happens to slots that were missed.
    pub catch_up: CatchUp,
    /// Slots older than this are not caught up.
    pub window: Duration,
    /// Its slots are handed over as missed.
    pub paused: bool,
}

/// The scheduler. Clones share one due-list, so jobs can be changed while it runs.
#[derive(Debug, Clone)]
pub struct Scheduler {
    clock: Arc<dyn Clock>,
    list: Arc<Mutex<DueList>>,
}

/// What ends a scheduler that should go on.
#[derive(Debug, thiserror::Error)]
pub enum SchedulerError {
    /// The metronome could not be started.
    #[error("the scheduler's metronome did not start: {0}")]
    Start(String),
    /// The metronome fell silent.
    #[error(
        "the scheduler's metronome has been silent for {} s, so no job would start any more; restart the daemon, and report \
         this with its log", .0.as_secs()
    )]
    Silent(Duration),
}

impl Scheduler {
    /// A scheduler without jobs, which hands slots over up to `lookahead` before their instant.
    pub fn new(clock: Arc<dyn Clock>, lookahead: Duration) -> Self {
        let list = DueList::new(clock.now(), clock.monotonic(), lookahead);
        Self { clock, list: Arc::new(Mutex::new(list)) }
    }

    /// Adds a job, or changes it. For a job that is new here, `last_slot` is its newest slot in history, and the slots after
    /// it are caught up; `None` means that it has no past. A job whose schedule stays the same keeps its place.
    pub fn upsert(&self, name: &str, entry: Entry, last_slot: Option<DateTime<Utc>>) {
        self.list().upsert(name, entry, last_slot, self.clock.now());
    }

    /// Removes a job; slots that were not handed over yet are forgotten. `false`: there is none of this name.
    pub fn remove(&self, name: &str) -> bool {
        self.list().remove(name)
    }

    /// Pauses a job or lets it go on. `false`: there is none of this name.
    pub fn set_paused(&self, name: &str, paused: bool) -> bool {
        self.list().set_paused(name, paused)
    }

    /// The slots that are due, each once. Somebody has to ask at least every half second; [`Scheduler::run`] does.
    pub fn take_due(&self) -> Vec<Due> {
        self.list().take_due(self.clock.now(), self.clock.monotonic())
    }

    /// The next slot of any job that is not paused.
    pub fn next_due(&self) -> Option<DateTime<Utc>> {
        self.list().next_due()
    }

    /// The next slot of a job.
    pub fn next_slot(&self, name: &str) -> Option<DateTime<Utc>> {
        self.list().next_slot(name)
    }

    /// When the due slots were last taken. More than a few seconds ago means that no job starts any more.
    pub fn heartbeat(&self) -> DateTime<Utc> {
        self.list().heartbeat()
    }

    /// From now on nothing is due: the daemon is stopping.
    pub fn drain(&self) {
        self.list().drain();
    }

    /// Hands over what is due until `shutdown`, then drains. While the receiver does not keep up, slots stay in the due-list.
    ///
    /// # Errors
    /// If the metronome cannot be started, or falls silent.
    pub async fn run(self, tx: mpsc::Sender<Vec<Due>>, shutdown: CancellationToken) -> Result<(), SchedulerError> {
        let beat = {
            let scheduler = self.clone();
            move || scheduler.hand_over(&tx)
        };
        let result = metronome::run(beat, &shutdown).await;
        self.drain();
        result
    }

    fn hand_over(&self, tx: &mpsc::Sender<Vec<Due>>) {
        // The place first: slots that were taken must not be lost because the channel is full or closed.
        match tx.try_reserve() {
            Ok(place) => {
                let batch = self.take_due();
                if !batch.is_empty() {
                    place.send(batch);
                }
            }
            Err(mpsc::error::TrySendError::Full(())) => {
                tracing::warn!("the runner has not taken the last slots yet; due slots wait");
            }
            Err(mpsc::error::TrySendError::Closed(())) => {}
        }
    }

    fn list(&self) -> MutexGuard<'_, DueList> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
