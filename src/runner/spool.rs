//! Results that wait for the database: bounded, in memory, in order.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Inner;
use super::run::end_of;
use crate::history::{AlertChange, HistoryError, Run, RunState};

/// At most this many results wait; the oldest go first.
const CAPACITY: usize = 10_000;

/// How often a result may be refused by a database that is there.
const MAX_TRIES: u32 = 5;

/// How long the history may take for one kept result.
const LIMIT: Duration = Duration::from_secs(20);

/// Results that wait for the database.
#[derive(Default)]
pub(super) struct Spool {
    kept: Mutex<VecDeque<Kept>>,
    /// Held by the one who empties it, so that order is kept.
    emptying: tokio::sync::Mutex<()>,
}

/// A result that waits.
#[derive(Clone)]
pub(super) struct Kept {
    row: Run,
    changes: Vec<AlertChange>,
    /// The history has the run as running: its end is missing. Otherwise the whole row is.
    claimed: bool,
    tries: u32,
}

impl Kept {
    /// The end of a run that was claimed.
    pub(super) fn end(row: Run, changes: Vec<AlertChange>) -> Self {
        Self { row, changes, claimed: true, tries: 0 }
    }

    /// A row that the history does not have.
    pub(super) fn row(row: Run, changes: Vec<AlertChange>) -> Self {
        Self { row, changes, claimed: false, tries: 0 }
    }
}

impl Spool {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Kept>> {
        // Every change is one call on the queue, so a panic elsewhere cannot leave it half changed.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a result. When the spool is full, the oldest one is given up.
    pub(super) fn keep(&self, result: Kept) {
        let mut kept = self.lock();
        if kept.len() >= CAPACITY
            && let Some(Kept { row, .. }) = kept.pop_front()
        {
            let (job, id, state) = (row.job, row.id, row.state.as_str());
            tracing::error!(
                job.name = job,
                run.id = id,
                "too many results wait for the database: {job} ({state}) is given up"
            );
        }
        kept.push_back(result);
    }

    /// How many results wait.
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Whether the result of the run `id` waits.
    pub(super) fn holds(&self, id: &str) -> bool {
        self.lock().iter().any(|kept| kept.row.id == id)
    }

    fn oldest(&self) -> Option<Kept> {
        self.lock().front().cloned()
    }

    /// Takes out the oldest result, if it still is the run `id`.
    fn drop_oldest(&self, id: &str) {
        let mut kept = self.lock();
        if kept.front().is_some_and(|kept| kept.row.id == id) {
            kept.pop_front();
        }
    }

    fn refused(&self, id: &str) -> u32 {
        match self.lock().front_mut() {
            Some(kept) if kept.row.id == id => {
                kept.tries += 1;
                kept.tries
            }
            _ => 0,
        }
    }
}

impl Inner {
    /// Records all kept results, in order, and stops at the first that the database does not take.
    pub(super) async fn flush_spool(&self) -> Result<(), HistoryError> {
        let _emptying = self.spool.emptying.lock().await;
        let mut recorded = 0_u32;
        while let Some(kept) = self.spool.oldest() {
            if let Err(error) = self.record_kept(&kept).await {
                let given_up = !error.is_transient() && self.spool.refused(&kept.row.id) >= MAX_TRIES;
                if !given_up {
                    return Err(error);
                }
                let (job, id, state) = (&kept.row.job, &kept.row.id, kept.row.state.as_str());
                tracing::error!(
                    job.name = job,
                    run.id = id,
                    "the result of {job} ({state}) cannot be recorded: {error}"
                );
            }
            // Only now: a program that is stopped in between has it still.
            self.spool.drop_oldest(&kept.row.id);
            recorded += 1;
        }
        if recorded > 0 {
            tracing::info!(recorded, "recorded {recorded} results that were kept while the database was away");
            self.bell.wake();
        }
        Ok(())
    }

    async fn record_kept(&self, kept: &Kept) -> Result<(), HistoryError> {
        let row = &kept.row;
        let finish = async || {
            self.limited("recording an end", LIMIT, self.history.finish(&row.id, &end_of(row), &kept.changes)).await
        };
        if kept.claimed {
            if !finish().await? {
                tracing::warn!(
                    job.name = row.job,
                    run.id = row.id,
                    "the run was marked as lost before its end was recorded"
                );
            }
            return Ok(());
        }
        let one = [(row.clone(), kept.changes.clone())];
        if self.limited("recording a run", LIMIT, self.history.record(&one)).await? > 0 || row.state == RunState::Missed
        {
            return Ok(());
        }
        // There is a row for this slot. If it is our own claim, whose answer was lost, this is its end.
        if !finish().await? {
            tracing::warn!(
                job.name = row.job,
                run.id = row.id,
                "{} may have run twice for the slot {}: here without the database, and elsewhere with it",
                row.job,
                row.slot.map(|slot| slot.to_rfc3339()).unwrap_or_default()
            );
        }
        Ok(())
    }
}
