//! Time. Everything asks a [`Clock`], so that tests move time by hand and nothing reads the wall clock on its own.

use std::fmt::Debug;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::Instant;

/// Where the time comes from.
pub trait Clock: Debug + Send + Sync + 'static {
    /// The wall clock. It can jump, in both directions.
    fn now(&self) -> DateTime<Utc>;

    /// A clock that only goes forward. Comparing it with [`Clock::now`] shows jumps of the wall clock.
    fn monotonic(&self) -> Instant;

    /// Returns when the wall clock reaches `at`; at once if it already has.
    fn sleep_until(&self, at: DateTime<Utc>) -> BoxFuture<'_, ()>;
}

/// The system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> DateTime<Utc> {
        #[expect(clippy::disallowed_methods, reason = "this is the clock that everything else asks")]
        Utc::now()
    }

    fn monotonic(&self) -> Instant {
        Instant::now()
    }

    fn sleep_until(&self, at: DateTime<Utc>) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            while let Ok(left) = (at - self.now()).to_std() {
                if left.is_zero() {
                    return;
                }
                // In steps, so that a wall clock that jumps is seen within a minute.
                tokio::time::sleep(left.min(Duration::from_secs(60))).await;
            }
        })
    }
}

/// A clock for tests: it stands still until it is moved.
#[derive(Debug)]
pub struct TestClock {
    time: watch::Sender<(DateTime<Utc>, Instant)>,
}

impl TestClock {
    /// A clock that shows `now`.
    pub fn at(now: DateTime<Utc>) -> Self {
        Self { time: watch::Sender::new((now, Instant::now())) }
    }

    /// Time passes: both clocks move on.
    pub fn advance(&self, by: Duration) {
        self.time.send_modify(|(wall, mono)| {
            *wall += TimeDelta::from_std(by).expect("a test moves time by less than 292 million years");
            *mono += by;
        });
    }

    /// Somebody sets the wall clock; the monotonic clock does not move.
    pub fn set_wall(&self, now: DateTime<Utc>) {
        self.time.send_modify(|(wall, _)| *wall = now);
    }
}

impl Clock for TestClock {
    fn now(&self) -> DateTime<Utc> {
        self.time.borrow().0
    }

    fn monotonic(&self) -> Instant {
        self.time.borrow().1
    }

    fn sleep_until(&self, at: DateTime<Utc>) -> BoxFuture<'_, ()> {
        let mut time = self.time.subscribe();
        Box::pin(async move {
            let reached = time.wait_for(|(wall, _)| *wall >= at).await.map(|_| ());
            reached.expect("the sender lives in self, which outlives this future");
        })
    }
}
