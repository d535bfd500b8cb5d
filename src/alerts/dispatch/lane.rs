//! One receiver's lane: its own pace, its own queue, its own troubles. What is slow or broken here holds up nobody else.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::alerts::notifier::{Delivery, Notifier, NotifyError, Pace};

/// So many messages may be under way or waiting in one lane. More are put back into the outbox, so that a lane that
/// stands still cannot take up the room of the others.
pub(super) const HOLD: usize = 32;
/// Messages that were put back return at least this far apart.
const MIN_SPACING: Duration = Duration::from_millis(250);

pub(super) struct Lane {
    notifier: Arc<dyn Notifier>,
    slots: Semaphore,
    held: AtomicUsize,
    pacer: Mutex<Pacer>,
    /// Set when the receiver has said that it wants nothing more.
    off: OnceLock<String>,
}

/// A message's turn. Letting go of it makes room for the next one.
pub(super) struct Turn<'a> {
    _slot: SemaphorePermit<'a>,
    _held: Held<'a>,
}

/// Why it is not a message's turn.
#[derive(Debug)]
pub(super) enum NotNow {
    /// Try in this long.
    Later(Duration),
    /// The receiver wants nothing more; the reason.
    Off(String),
}

impl Lane {
    pub(super) fn new(notifier: Arc<dyn Notifier>) -> Self {
        let pace = notifier.pace();
        Self {
            notifier,
            slots: Semaphore::new(pace.at_once),
            held: AtomicUsize::new(0),
            pacer: Mutex::new(Pacer::new(pace, Instant::now())),
            off: OnceLock::new(),
        }
    }

    /// A lane that delivers nothing and says why.
    pub(super) fn broken(reason: String) -> Self {
        struct Never;
        #[async_trait::async_trait]
        impl Notifier for Never {
            async fn send(&self, _: &Delivery<'_>) -> Result<(), NotifyError> {
                Err(NotifyError::Permanent { reason: "its settings cannot be used".to_owned() })
            }
        }
        let lane = Self::new(Arc::new(Never));
        lane.switch_off(reason);
        lane
    }

    /// Waits for a turn, but not past `by`, and not when we are about to stop.
    pub(super) async fn turn(&self, by: Instant, stop: &CancellationToken) -> Result<Turn<'_>, NotNow> {
        let held = self.hold().ok_or_else(|| NotNow::Later(self.put_back()))?;
        let slot = tokio::select! {
            biased;
            () = stop.cancelled() => return Err(NotNow::Later(Duration::ZERO)),
            slot = self.slots.acquire() => slot.expect("the lane's semaphore is never closed"),
            () = tokio::time::sleep_until(by) => return Err(NotNow::Later(self.put_back())),
        };
        loop {
            if let Some(reason) = self.off.get() {
                return Err(NotNow::Off(reason.clone()));
            }
            let now = Instant::now();
            let go = self.pacer().try_go(now);
            match go {
                None => return Ok(Turn { _slot: slot, _held: held }),
                Some(go) if go > by => return Err(NotNow::Later(self.put_back())),
                Some(go) => tokio::select! {
                    biased;
                    () = stop.cancelled() => return Err(NotNow::Later(Duration::ZERO)),
                    () = tokio::time::sleep_until(go) => {}
                },
            }
        }
    }

    /// Tries once; what the answer means for the whole lane takes effect here.
    pub(super) async fn send(&self, _turn: &Turn<'_>, delivery: &Delivery<'_>) -> Result<(), NotifyError> {
        let result = self.notifier.send(delivery).await;
        match &result {
            Err(NotifyError::Passing { after: Some(after), .. }) => self.pacer().pause(Instant::now() + *after),
            Err(NotifyError::Gone { reason }) => self.switch_off(reason.clone()),
            _ => {}
        }
        result
    }

    fn hold(&self) -> Option<Held<'_>> {
        let held = Held(&self.held);
        (self.held.fetch_add(1, Ordering::Relaxed) < HOLD).then_some(held)
    }

    fn put_back(&self) -> Duration {
        self.pacer().put_back(Instant::now())
    }

    fn switch_off(&self, reason: String) {
        // The first reason stays.
        let _ = self.off.set(reason);
    }

    fn pacer(&self) -> std::sync::MutexGuard<'_, Pacer> {
        self.pacer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a message as held until it is dropped.
struct Held<'a>(&'a AtomicUsize);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A token bucket, kept as the one instant at which it would be full again.
struct Pacer {
    interval: Duration,
    /// How far ahead of time a burst may run.
    ahead: Duration,
    full_at: Instant,
    paused_until: Instant,
    /// When the last message that was put back returns.
    last_return: Instant,
}

impl Pacer {
    fn new(pace: Pace, now: Instant) -> Self {
        let ahead = pace.interval * pace.burst.saturating_sub(1);
        Self { interval: pace.interval, ahead, full_at: now, paused_until: now, last_return: now }
    }

    /// Takes a token; `None` means go. Otherwise nothing is taken, and it is worth asking again at the given instant.
    fn try_go(&mut self, now: Instant) -> Option<Instant> {
        if self.paused_until > now {
            return Some(self.paused_until);
        }
        if self.full_at > now + self.ahead {
            return Some(self.full_at - self.ahead);
        }
        self.full_at = self.full_at.max(now) + self.interval;
        None
    }

    fn pause(&mut self, until: Instant) {
        self.paused_until = self.paused_until.max(until);
    }

    /// When a message that finds no room should come back: one after the other, so that each finds room then.
    fn put_back(&mut self, now: Instant) -> Duration {
        let earliest = (now + Duration::from_secs(1)).max(self.paused_until);
        self.last_return = (self.last_return + self.interval.max(MIN_SPACING)).max(earliest);
        self.last_return - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn slack() -> (Pacer, Instant) {
        let now = Instant::now();
        (Pacer::new(Pace { burst: 3, interval: SECOND, at_once: 1 }, now), now)
    }

    #[test]
    fn three_messages_go_at_once_and_then_one_a_second() {
        let (mut pacer, now) = slack();
        assert_eq!([pacer.try_go(now), pacer.try_go(now), pacer.try_go(now)], [None; 3]);
        assert_eq!(pacer.try_go(now), Some(now + SECOND));
        assert_eq!(pacer.try_go(now + SECOND), None);
        assert_eq!(pacer.try_go(now + SECOND), Some(now + 2 * SECOND));
        let later = now + 60 * SECOND;
        assert_eq!([pacer.try_go(later), pacer.try_go(later), pacer.try_go(later)], [None; 3]);
        assert_eq!(pacer.try_go(later), Some(later + SECOND));
    }

    #[test]
    fn a_pause_holds_the_whole_lane() {
        let (mut pacer, now) = slack();
        pacer.pause(now + 30 * SECOND);
        pacer.pause(now + 10 * SECOND);
        assert_eq!(pacer.try_go(now + 29 * SECOND), Some(now + 30 * SECOND));
        assert_eq!(pacer.try_go(now + 30 * SECOND), None);
    }

    #[test]
    fn messages_that_are_put_back_return_one_after_the_other() {
        let (mut pacer, now) = slack();
        assert_eq!([pacer.put_back(now), pacer.put_back(now), pacer.put_back(now)], [SECOND, 2 * SECOND, 3 * SECOND]);
        pacer.pause(now + 30 * SECOND);
        assert_eq!([pacer.put_back(now), pacer.put_back(now)], [30 * SECOND, 31 * SECOND]);
    }
}
