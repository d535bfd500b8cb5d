//! Starting goes before finishing: when thousands of runs are due in one instant, those that end first would otherwise take
//! the processor from those that have not begun.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::Notify;

/// The longest that an end waits for others to start.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// The runs that wait for their instant, by instant.
#[derive(Default)]
pub(super) struct Starts {
    coming: Mutex<BTreeMap<DateTime<Utc>, usize>>,
    begun: Notify,
}

/// A run that waits for its instant. Dropped when it starts.
pub(super) struct Coming<'a>(&'a Starts, DateTime<Utc>);

impl Starts {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<DateTime<Utc>, usize>> {
        // A map of counts; every change is one call, so a panic elsewhere cannot leave it half changed.
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A run will start at `slot`.
    pub(super) fn expect(&self, slot: DateTime<Utc>) -> Coming<'_> {
        *self.lock().entry(slot).or_default() += 1;
        Coming(self, slot)
    }

    /// Returns when no run is overdue to start; after a second in any case.
    pub(super) async fn have_begun(&self, now: DateTime<Utc>) {
        let wait = async {
            loop {
                let mut begun = std::pin::pin!(self.begun.notified());
                begun.as_mut().enable();
                if self.lock().first_key_value().is_none_or(|(slot, _)| *slot > now) {
                    return;
                }
                begun.await;
            }
        };
        // Given up after a while: then starting is stuck, and ends must be recorded all the same.
        let _ = tokio::time::timeout(LONGEST_WAIT, wait).await;
    }
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        let mut coming = self.0.lock();
        let Some(count) = coming.get_mut(&self.1) else { return };
        *count -= 1;
        if *count == 0 {
            coming.remove(&self.1);
            self.0.begun.notify_waiters();
        }
    }
}
