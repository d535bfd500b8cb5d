//! One lane for each job: who goes on here, and the slots that wait for their turn, in order.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Mutex, Notify};

/// How many slots of one job may wait; more than that are missed.
const MAX_WAITING: usize = 100;

/// The lanes of all jobs.
pub(super) struct Lanes(HashMap<String, Lane>);

/// The lane of one job.
#[derive(Default)]
pub(super) struct Lane {
    /// Held by the first of those that wait. Fair, so that slots keep their order.
    pub(super) turn: Mutex<()>,
    /// Rings when a run here ends.
    pub(super) freed: Notify,
    waiting: AtomicUsize,
    running: AtomicUsize,
}

/// A place among those that wait.
pub(super) struct Place<'a>(&'a Lane);

impl Lanes {
    /// A lane for each of `jobs`.
    pub(super) fn of<'a>(jobs: impl Iterator<Item = &'a String>) -> Self {
        Self(jobs.map(|job| (job.clone(), Lane::default())).collect())
    }

    /// The lane of a configured job.
    pub(super) fn of_job(&self, job: &str) -> &Lane {
        self.0.get(job).expect("a run is only made for a configured job, and each of these has a lane")
    }
}

impl Lane {
    pub(super) fn enter(&self) {
        self.running.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn leave(&self) {
        self.running.fetch_sub(1, Ordering::SeqCst);
        self.freed.notify_waiters();
    }

    /// Whether a run of the job goes on in this process.
    pub(super) fn is_running(&self) -> bool {
        self.running.load(Ordering::SeqCst) > 0
    }

    /// Whether slots wait for their turn.
    pub(super) fn has_queue(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// A place in the queue, unless it is full.
    pub(super) fn queue_up(&self) -> Option<Place<'_>> {
        let waiting = self.waiting.fetch_add(1, Ordering::SeqCst);
        let place = Place(self);
        (waiting < MAX_WAITING).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}
