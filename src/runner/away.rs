//! Life without the history database: noticing that it is away, saying so, and taking up the thread when it is back.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::Inner;
use crate::history::HistoryError;

/// The first wait before it is asked again; it doubles up to the last.
const FIRST_WAIT: Duration = Duration::from_millis(500);
///
/// Short, because until all daemons have noticed, they may disagree on whose a slot is.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// How long it may take to answer a ping.
const PING_LIMIT: Duration = Duration::from_secs(5);

/// How long migrations may take: another replica may be at it.
const MIGRATE_LIMIT: Duration = Duration::from_secs(120);

/// Whether the history database is there.
pub(super) struct Database(watch::Sender<bool>);

impl Default for Database {
    fn default() -> Self {
        Self(watch::Sender::new(true))
    }
}

impl Database {
    /// Whether it answered when it was last asked.
    pub(super) fn is_here(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns when it is there.
    pub(super) async fn back(&self) {
        let here = self.0.subscribe().wait_for(|here| *here).await.map(|_| ());
        here.expect("the sender lives as long as self");
    }

    async fn gone(&self) {
        let gone = self.0.subscribe().wait_for(|here| !*here).await.map(|_| ());
        gone.expect("the sender lives as long as self");
    }
}

impl Inner {
    /// Notes that the database did not answer. The first one to notice says so.
    pub(super) fn database_failed(&self, error: &HistoryError) {
        let noticed = self.database.0.send_if_modified(|here| std::mem::replace(here, false));
        if noticed {
            tracing::error!("{error}");
        }
    }

    /// Waits for `answer`, but not for ever, whatever the connection does.
    pub(super) async fn limited<T>(
        &self,
        doing: &str,
        limit: Duration,
        answer: impl Future<Output = Result<T, HistoryError>>,
    ) -> Result<T, HistoryError> {
        tokio::time::timeout(limit, answer).await.unwrap_or_else(|_| {
            let reason = format!("no answer within {} s ({doing})", limit.as_secs());
            Err(HistoryError::Unreachable { database: self.history.describe(), reason })
        })
    }

    /// Asks a database that is away until it is back, then records what was kept for it.
    pub(super) async fn watch_database(self: Arc<Self>) {
        while self.done.run_until_cancelled(self.database.gone()).await.is_some() {
            let since = self.clock.now();
            let mut told = false;
            let mut wait = FIRST_WAIT;
            loop {
                let jitter = wait.mul_f64(0.75 + fastrand::f64() / 2.0);
                if self.done.run_until_cancelled(self.pause(jitter)).await.is_none() {
                    return;
                }
                match self.take_up_the_thread().await {
                    Ok(()) => break,
                    Err(error) if !told => {
                        told = true;
                        self.bell.ring(&self.away_changes(Some(&error), since));
                    }
                    Err(_) => wait = (wait * 2).min(LAST_WAIT),
                }
            }
            tracing::info!("the history database is back");
            tokio::spawn(self.clone().look_after_slots());
            if told {
                self.bell.ring(&self.away_changes(None, since));
            }
        }
    }

    /// Asks the database; if it is there, records what was kept, renews the leases, and lets everybody know.
    ///
    /// The kept results come first: a run whose lease ended while the database was away is still ours until somebody marks
    /// it as lost.
    async fn take_up_the_thread(&self) -> Result<(), HistoryError> {
        self.limited("asking whether it is there", PING_LIMIT, self.history.ping()).await?;
        // It may have been away since before we started, or come back empty.
        self.limited("migrating", MIGRATE_LIMIT, self.history.migrate()).await?;
        self.flush_spool().await?;
        self.claim_what_goes_on().await?;
        self.database.0.send_replace(true);
        // What ended in between.
        self.flush_spool().await?;
        if self.held.len() > 0 {
            self.beat_once().await;
        }
        Ok(())
    }
}
