//! [`History`] for everything that is a [`Backend`]: one transaction for each request, and an end to each wait.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tokio::time::timeout;

use super::{Backend, Session, alerts, dead_letters, outbox, replicas, runs};
use crate::history::{
    Alert, AlertChange, Claim, DeadLetter, DeadLetterCount, DeadLetterFilter, History, HistoryError, JobRow, Message,
    MessageOutcome, NewRun, Run, RunEnd, RunFilter,
};

/// Longer than the servers' own limits on connecting and on a statement, so that those speak first, with their reason.
const PATIENCE: Duration = Duration::from_secs(60);
/// A migration may rewrite a large table.
const MIGRATION_PATIENCE: Duration = Duration::from_secs(30 * 60);

/// Waits no longer than `limit`, and says what an error means.
async fn within<B: Backend, T>(
    backend: &B,
    limit: Duration,
    work: impl Future<Output = Result<T, sqlx::Error>> + Send,
) -> Result<T, HistoryError> {
    let done = match timeout(limit, work).await {
        Ok(done) => done,
        Err(_) => Err(sqlx::Error::Io(std::io::Error::other(format!("no answer within {} s", limit.as_secs())))),
    };
    done.map_err(|error| backend.explain(error))
}

/// Carries out `$call` on a transaction and commits it.
macro_rules! write {
    ($self:ident, $transaction:ident, $call:expr) => {
        within($self, PATIENCE, async {
            let mut open = $self.write().await?;
            let $transaction = &mut open;
            let answer = $call.await?;
            B::commit(open).await?;
            Ok(answer)
        })
        .await
    };
}

/// Carries out `$call` on a connection.
macro_rules! read {
    ($self:ident, $session:ident, $call:expr) => {
        within($self, PATIENCE, async {
            let $session = &mut $self.read().await?;
            $call.await
        })
        .await
    };
}

#[async_trait]
impl<B: Backend> History for B {
    fn describe(&self) -> String {
        self.name()
    }

    async fn migrate(&self) -> Result<(), HistoryError> {
        within(self, MIGRATION_PATIENCE, Backend::migrate(self)).await
    }

    async fn ping(&self) -> Result<(), HistoryError> {
        read!(self, s, s.query("SELECT 1 AS here", &[])).map(drop)
    }

    fn is_shared(&self) -> bool {
        B::SHARED
    }

    async fn check_in(&self, owner: &str, lease: Duration) -> Result<Vec<String>, HistoryError> {
        write!(self, s, replicas::check_in(s, owner, lease))
    }

    async fn check_out(&self, owner: &str) -> Result<(), HistoryError> {
        write!(self, s, replicas::check_out(s, owner))
    }

    async fn sync_jobs(&self, jobs: &[JobRow]) -> Result<(), HistoryError> {
        write!(self, s, runs::sync_jobs(s, jobs))
    }

    async fn claim(&self, runs: &[NewRun]) -> Result<Vec<Claim>, HistoryError> {
        if runs.is_empty() {
            return Ok(Vec::new());
        }
        write!(self, s, runs::claim(s, runs))
    }

    async fn heartbeat(&self, owner: &str, lease: Duration) -> Result<Vec<String>, HistoryError> {
        write!(self, s, runs::heartbeat(s, owner, lease))
    }

    async fn reap(&self) -> Result<Vec<Run>, HistoryError> {
        write!(self, s, runs::reap(s))
    }

    async fn finish(&self, run_id: &str, end: &RunEnd, changes: &[AlertChange]) -> Result<bool, HistoryError> {
        write!(self, s, runs::finish(s, run_id, end, changes))
    }

    async fn record(&self, runs: &[(Run, Vec<AlertChange>)]) -> Result<u64, HistoryError> {
        if runs.is_empty() {
            return Ok(0);
        }
        write!(self, s, runs::record(s, runs))
    }

    async fn last_slots(&self) -> Result<BTreeMap<String, DateTime<Utc>>, HistoryError> {
        read!(self, s, runs::last_slots(s))
    }

    async fn runs(&self, filter: &RunFilter) -> Result<Vec<Run>, HistoryError> {
        read!(self, s, runs::list(s, filter))
    }

    async fn change_alerts(&self, changes: &[AlertChange]) -> Result<(), HistoryError> {
        if changes.is_empty() {
            return Ok(());
        }
        write!(self, s, alerts::carry_out(s, changes))
    }

    async fn alerts(&self, limit: u32) -> Result<Vec<Alert>, HistoryError> {
        read!(self, s, alerts::list(s, limit))
    }

    async fn lease_messages(&self, owner: &str, limit: u32, lease: Duration) -> Result<Vec<Message>, HistoryError> {
        write!(self, s, outbox::lease(s, owner, limit, lease))
    }

    async fn settle_message(&self, id: &str, owner: &str, outcome: &MessageOutcome) -> Result<bool, HistoryError> {
        write!(self, s, outbox::settle(s, id, owner, outcome))
    }

    async fn messages(&self, limit: u32) -> Result<Vec<Message>, HistoryError> {
        read!(self, s, outbox::list(s, limit))
    }

    async fn add_dead_letters(&self, letters: &[DeadLetter]) -> Result<(), HistoryError> {
        if letters.is_empty() {
            return Ok(());
        }
        write!(self, s, dead_letters::add(s, letters))
    }

    async fn dead_letters(&self, filter: &DeadLetterFilter) -> Result<Vec<DeadLetter>, HistoryError> {
        read!(self, s, dead_letters::list(s, filter))
    }

    async fn count_dead_letters(&self) -> Result<Vec<DeadLetterCount>, HistoryError> {
        read!(self, s, dead_letters::count(s))
    }

    async fn dead_letter(&self, id: &str) -> Result<Option<DeadLetter>, HistoryError> {
        read!(self, s, dead_letters::get(s, id))
    }

    async fn drop_dead_letters(&self, ids: &[String]) -> Result<u64, HistoryError> {
        if ids.is_empty() {
            return Ok(0);
        }
        write!(self, s, dead_letters::drop(s, ids))
    }
}
