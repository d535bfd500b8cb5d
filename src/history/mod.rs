//! What happened: runs, alerts and the messages they caused, and dead letters. In Postgres, or in SQLite where no
//! `DATABASE_URL` is set; one trait, the same tables and the same test suite for both.
//!
//! There is no leader. Every replica tries to claim every slot; two partial unique indexes decide:
//! `run_slot (job, slot, attempt)` lets a slot run once, `run_exclusive (job) where running and exclusive` lets one copy of a
//! job run at a time. A claim holds a lease that its owner renews; what is not renewed is `lost` and may be run again.

mod postgres;
mod rows;
mod sql;
mod sqlite;

pub use self::postgres::PostgresHistory;
pub use self::rows::*;
pub use self::sqlite::SqliteHistory;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

/// The history database.
///
/// Leases are judged by the database's own clock (Postgres) or the injected one (SQLite), so replicas whose clocks differ
/// agree on who owns a run.
#[async_trait]
pub trait History: Send + Sync + 'static {
    /// Its name for people, without user and password: `Postgres db.internal:5432/lamplighter`, `SQLite data/history.db`.
    fn describe(&self) -> String;

    /// Brings the tables up to date, under a lock, so that two daemons may start at once.
    async fn migrate(&self) -> Result<(), HistoryError>;

    /// Asks the database whether it is there.
    async fn ping(&self) -> Result<(), HistoryError>;

    /// Whether daemons on other machines may use it too.
    fn is_shared(&self) -> bool;

    /// Notes that the daemon `owner` is up, for as long as `lease`, and returns all that are, in order.
    async fn check_in(&self, owner: &str, lease: Duration) -> Result<Vec<String>, HistoryError>;

    /// Notes that the daemon `owner` is up no longer.
    async fn check_out(&self, owner: &str) -> Result<(), HistoryError>;

    // ---- jobs and runs

    /// Notes the jobs that are configured now. Jobs that are no longer configured stay, marked as retired.
    async fn sync_jobs(&self, jobs: &[JobRow]) -> Result<(), HistoryError>;

    /// Claims runs, all in one statement; one answer for each, in order. A won claim is a run in state `running`. Claiming
    /// the same ids again, because the answer got lost, gives the same answers.
    async fn claim(&self, runs: &[NewRun]) -> Result<Vec<Claim>, HistoryError>;

    /// Renews the leases of the running runs of `owner` and returns those that it still holds.
    async fn heartbeat(&self, owner: &str, lease: Duration) -> Result<Vec<String>, HistoryError>;

    /// Marks the runs whose lease has ended as `lost` and returns them; each is returned to one caller only.
    async fn reap(&self) -> Result<Vec<Run>, HistoryError>;

    /// Ends a run and carries out the alert changes, in one transaction. `false`: the run was not ours any more (its lease
    /// ended and it was marked `lost`), and nothing was changed. Ending it the same way again, because the answer got lost,
    /// changes nothing and is `true`.
    async fn finish(&self, run_id: &str, end: &RunEnd, changes: &[AlertChange]) -> Result<bool, HistoryError>;

    /// Adds runs that are over: slots that were missed, or results kept while the database was away. Rows whose
    /// (job, slot, attempt) exists already are left out. Returns how many were added. The alert changes of a run are carried
    /// out in the same transaction as its row, and only if the row was added.
    async fn record(&self, runs: &[(Run, Vec<AlertChange>)]) -> Result<u64, HistoryError>;

    /// The newest slot of each job that has any row, whatever became of it.
    async fn last_slots(&self) -> Result<BTreeMap<String, DateTime<Utc>>, HistoryError>;

    /// Runs, newest first.
    async fn runs(&self, filter: &RunFilter) -> Result<Vec<Run>, HistoryError>;

    // ---- alerts and the outbox

    /// Carries out alert changes on their own, in one transaction.
    async fn change_alerts(&self, changes: &[AlertChange]) -> Result<(), HistoryError>;

    /// Alerts, firing ones first, then the newest.
    async fn alerts(&self, limit: u32) -> Result<Vec<Alert>, HistoryError>;

    /// Takes up to `limit` messages that are due, oldest first, for `lease`: no other replica gets them meanwhile. Only the
    /// oldest unsettled message of each (receiver, fingerprint) is given out, so that order is kept.
    async fn lease_messages(&self, owner: &str, limit: u32, lease: Duration) -> Result<Vec<Message>, HistoryError>;

    /// Settles a leased message: sent, tried again later, or given up. `false`: the lease was not ours any more.
    async fn settle_message(&self, id: &str, owner: &str, outcome: &MessageOutcome) -> Result<bool, HistoryError>;

    /// The newest messages, newest first.
    async fn messages(&self, limit: u32) -> Result<Vec<Message>, HistoryError>;

    // ---- dead letters

    /// Keeps dead letters. One whose (dataset, batch, entry, key) is kept already is left as it is.
    async fn add_dead_letters(&self, letters: &[DeadLetter]) -> Result<(), HistoryError>;

    /// Dead letters without their bodies, oldest first.
    async fn dead_letters(&self, filter: &DeadLetterFilter) -> Result<Vec<DeadLetter>, HistoryError>;

    /// How many dead letters there are for each (dataset, reason code).
    async fn count_dead_letters(&self) -> Result<Vec<DeadLetterCount>, HistoryError>;

    /// One dead letter, with its body.
    async fn dead_letter(&self, id: &str) -> Result<Option<DeadLetter>, HistoryError>;

    /// Removes dead letters and returns how many there were.
    async fn drop_dead_letters(&self, ids: &[String]) -> Result<u64, HistoryError>;
}

/// A history that is shared between the parts of the program.
pub type SharedHistory = Arc<dyn History>;

/// What can go wrong with the history database.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The database cannot be reached, is shutting down, or dropped the connection. Trying again can help.
    #[error("the history database {database} cannot be reached: {reason}")]
    Unreachable {
        /// Host, port and name, without user and password.
        database: String,
        /// What the network or the server said, and what to check.
        reason: String,
    },
    /// The database refuses us, or its tables are not what we expect. Trying again cannot help.
    #[error("the history database {database} refuses: {reason}. {cure}")]
    Refused {
        /// Host, port and name, without user and password.
        database: String,
        /// What the server said.
        reason: String,
        /// What to do about it.
        cure: String,
    },
}

impl HistoryError {
    /// Whether trying again can help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}
