//! One batch from its claim to its end.
//!
//! The same code finishes a batch that was just sent and one that a dead process left: whatever has to be known is in the
//! cache and in the warehouse. A load's name can succeed at most once, its label says which reading's rows it carried, and
//! that reading's marks say which values those were.

mod stock;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_util::task::AbortOnDropHandle;
use ulid::Ulid;

pub(super) use self::stock::name_in_batch;
use super::failpoint;
use super::patience;
use super::reading::{self, Leg, LegOutcome, Memory, Note, Outcome, Sent};
use super::run::{Run, UploadError};
use super::table::Table;
use crate::cache::{Lease, Mark, Reading};
use crate::warehouse::{FailureCause, LoadFailure, LoadStatus, TableRef};

/// Readings of one batch. Isolating a row by halves takes about 33; past this something else is wrong.
const MAX_READINGS: u32 = 120;
/// Passing failures of one table's loads in a row.
const MAX_FAILURES: u32 = 5;

/// A batch that is ours.
pub(super) struct Batch {
    pub(super) run: Arc<Run>,
    pub(super) lease: Lease,
    /// Tables that still need a load.
    legs: Vec<(Leg, Failures)>,
    readings: u32,
    /// Loads that are in the warehouse: the dataset, and the reading whose rows they are.
    loaded: Mutex<HashSet<(String, u32)>>,
    /// What one reading leaves to the next.
    pub(super) memory: Memory,
    _heartbeat: AbortOnDropHandle<()>,
}

/// Passing failures in a row, and the last one's words.
#[derive(Default)]
struct Failures {
    count: u32,
    last: String,
}

/// What the warehouse says of a leg's load.
enum Verdict {
    /// Its rows are in the table. `whole`: nothing is left for this table.
    Loaded { reading: u32, number: u8, whole: bool },
    /// There is no such load.
    Absent,
    /// It failed, and its name is used up.
    Failed(LoadFailure),
}

impl Batch {
    /// Claims a new batch and sends its loads. `None`: the queue is empty.
    pub(super) async fn claim(run: &Arc<Run>) -> Result<Option<(Self, Outcome)>, UploadError> {
        let mut batch = Self::new(run, Ulid::from_datetime(run.ctx.clock.now().into()).to_string());
        batch.legs = run.tables.iter().map(|table| (fresh(table), Failures::default())).collect();
        match batch.read(true).await {
            Ok(outcome) => Ok(outcome.map(|outcome| (batch, outcome))),
            Err(error) => Err(batch.give_up(error).await),
        }
    }

    /// Takes over a batch whose owner died. `None`: somebody else has it, or finished it.
    pub(super) async fn adopt(run: &Arc<Run>, batch: &str) -> Result<Option<Self>, UploadError> {
        let mut batch = Self::new(run, batch.to_owned());
        if !patience::cache(|| run.ctx.cache.adopt(&batch.lease)).await? {
            return Ok(None);
        }
        failpoint::reach("adopted").await;
        match batch.take_stock().await {
            Ok(()) => Ok(Some(batch)),
            Err(error) => Err(batch.give_up(error).await),
        }
    }

    fn new(run: &Arc<Run>, batch: String) -> Self {
        let ttl = run.lease.0;
        let lease =
            Lease { queue: run.queue.clone(), batch, owner: format!("{}/{}", run.ctx.owner, run.ctx.run_id), ttl };
        let heartbeat = AbortOnDropHandle::new(tokio::spawn(keep_alive(Arc::clone(run), lease.clone())));
        Self {
            run: Arc::clone(run),
            lease,
            legs: Vec::new(),
            readings: 0,
            loaded: Mutex::default(),
            memory: Memory::default(),
            _heartbeat: heartbeat,
        }
    }

    /// Brings the batch to its end: every table loaded, every record acknowledged.
    pub(super) async fn settle(mut self, sent: Option<Outcome>) -> Result<(), UploadError> {
        match self.work(sent).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.give_up(error).await),
        }
    }

    async fn work(&mut self, mut outcome: Option<Outcome>) -> Result<(), UploadError> {
        loop {
            if let Some(outcome) = outcome.take() {
                self.judge(outcome).await?;
            }
            if self.legs.is_empty() {
                break;
            }
            if self.readings >= MAX_READINGS {
                let (leg, failures) = &self.legs[0];
                return Err(self.failed(leg, &failures.last, "Too many of its rows are refused", true));
            }
            let failures = self.legs.iter().map(|(_, failures)| failures.count).max().unwrap_or(0);
            if failures > 0 {
                self.pause(Duration::from_millis(500) * 2_u32.pow(failures.min(6))).await;
            }
            outcome = self.read(false).await?;
            if outcome.is_none() {
                // The list is gone: somebody finished the batch while we were away.
                return Ok(());
            }
        }
        let turn = self.run.turns.releasing.lock().await;
        super::acknowledge::acknowledge(self).await?;
        drop(turn);
        self.run.tally(|tally| tally.batches += 1);
        Ok(())
    }

    async fn read(&mut self, claiming: bool) -> Result<Option<Outcome>, UploadError> {
        self.readings += 1;
        let legs: Vec<Leg> = self.legs.iter().map(|(leg, _)| leg.clone()).collect();
        reading::read(&self.run, &self.lease, &legs, claiming, &mut self.memory).await
    }

    /// Takes each leg one step further, according to what a reading came to for it.
    async fn judge(&mut self, outcome: Outcome) -> Result<(), UploadError> {
        let legs = std::mem::take(&mut self.legs);
        for ((mut leg, mut failures), result) in legs.into_iter().zip(outcome.legs) {
            let sent = match result {
                LegOutcome::Empty => continue,
                LegOutcome::Grown | LegOutcome::Contested => {
                    self.legs.push((leg, failures));
                    continue;
                }
                LegOutcome::Sent(sent) => Some(sent),
                LegOutcome::Broken(error) => {
                    failures.last = error.to_string();
                    None
                }
            };
            let table = leg.table.dataset.table.clone();
            let ours = sent.as_ref().map(|sent| (outcome.number, sent));
            match self.ask(&leg.name, leg.attempt, &table, ours).await? {
                Verdict::Loaded { whole: true, .. } => continue,
                Verdict::Loaded { reading, number, .. } => {
                    leg.covered.push((reading, number));
                    leg.attempt += 1;
                    leg.cap = leg.cap.map(|cap| cap.saturating_mul(2));
                    failures = Failures::default();
                }
                Verdict::Absent => failures.count += 1,
                Verdict::Failed(failure) => {
                    self.take_failure(&mut leg, &mut failures, failure, sent.as_ref()).await?;
                    leg.attempt += 1;
                }
            }
            if failures.count > MAX_FAILURES {
                return Err(self.failed(&leg, &failures.last, "The batch stays in flight for the next attempt", true));
            }
            self.legs.push((leg, failures));
        }
        Ok(())
    }

    /// Draws the consequence of a load that failed.
    async fn take_failure(
        &self,
        leg: &mut Leg,
        failures: &mut Failures,
        failure: LoadFailure,
        sent: Option<&Sent>,
    ) -> Result<(), UploadError> {
        tracing::warn!(
            job = %reading::job_id(&leg.name, &self.lease.batch, leg.attempt), cause = ?failure.cause, message = %failure.message,
            "the load failed"
        );
        failures.last.clone_from(&failure.message);
        match (failure.cause, sent) {
            (FailureCause::Permanent, _) => {
                let cure = "Nothing was acknowledged; once that is mended, the next run takes the batch up";
                return Err(self.failed(leg, &failure.message, cure, false));
            }
            (FailureCause::Passing, _) | (FailureCause::Rows, None) => failures.count += 1,
            (FailureCause::Rows, Some(sent)) => {
                let bad = super::isolate::bad_rows(&failure, &sent.index);
                if bad.is_empty() {
                    // It does not say which: try half of them.
                    leg.cap = Some((sent.rows / 2).max(1));
                } else {
                    super::isolate::bury(self, &leg.table, &bad).await?;
                }
            }
        }
        Ok(())
    }

    /// Asks until the load is over. `ours`: the reading that we have just sent, with its rows.
    async fn ask(
        &self,
        name: &str,
        attempt: u32,
        table: &TableRef,
        ours: Option<(u32, &Sent)>,
    ) -> Result<Verdict, UploadError> {
        let job_id = reading::job_id(name, &self.lease.batch, attempt);
        let warehouse = &self.run.ctx.warehouse;
        let mut wait = Duration::from_millis(200);
        loop {
            match patience::warehouse(|| warehouse.status(table, &job_id)).await? {
                LoadStatus::Running => {
                    self.pause(wait).await;
                    wait = (wait * 3 / 2).min(Duration::from_secs(5));
                }
                LoadStatus::Absent => return Ok(Verdict::Absent),
                LoadStatus::Failed(failure) => return Ok(Verdict::Failed(failure)),
                LoadStatus::Done { rows, reading } => {
                    failpoint::reach("loaded").await;
                    let (number, whole) = self.noted_table(reading, name).await?;
                    let sent = match ours {
                        Some((ours, sent)) if ours == reading => sent.rows,
                        _ => self.count_sent(reading, number).await?,
                    };
                    if rows != sent {
                        return Err(UploadError::Count { job_id, table: table.to_string(), written: rows, sent });
                    }
                    let bytes = ours.filter(|(ours, _)| *ours == reading).map_or(0, |(_, sent)| sent.bytes);
                    self.run.tally(|tally| {
                        let uploaded = tally.uploaded.entry(name.to_owned()).or_default();
                        *uploaded = (uploaded.0 + rows, uploaded.1 + bytes);
                    });
                    tracing::info!(job = %job_id, table = %table, rows, "loaded");
                    self.note_loaded(name, reading);
                    failpoint::reach("reconciled").await;
                    return Ok(Verdict::Loaded { reading, number, whole });
                }
            }
        }
    }

    fn note_loaded(&self, dataset: &str, reading: u32) {
        let mut loaded = self.loaded.lock().expect("nobody panics while holding it");
        loaded.insert((dataset.to_owned(), reading));
    }

    /// Loads that are in the warehouse: the dataset, and the reading whose rows they are.
    pub(super) fn loaded(&self) -> HashSet<(String, u32)> {
        self.loaded.lock().expect("nobody panics while holding it").clone()
    }

    /// The readings with their notes.
    pub(super) async fn noted(&self) -> Result<Vec<(u32, Note)>, UploadError> {
        let readings: Vec<Reading> = patience::cache(|| self.run.ctx.cache.readings(&self.lease)).await?;
        let understood = |reading: Reading| Some((reading.number, serde_json::from_str(&reading.note).ok()?));
        Ok(readings.into_iter().filter_map(understood).collect())
    }

    /// A dataset's number in a reading, and whether the reading meant to send all that was left for it.
    async fn noted_table(&self, reading: u32, dataset: &str) -> Result<(u8, bool), UploadError> {
        let notes = self.noted().await?;
        let note = notes.iter().find(|(number, _)| *number == reading).map(|(_, note)| note);
        let at = note.and_then(|note| note.tables.iter().position(|table| table.dataset == dataset));
        let Some((note, at)) = note.zip(at) else {
            return Err(crate::cache::CacheError::LeaseLost { batch: self.lease.batch.clone() }.into());
        };
        Ok((u8::try_from(at).expect("a job has fewer than 256 datasets"), note.tables[at].whole))
    }

    /// How many rows a reading sent to its table `number`.
    async fn count_sent(&self, reading: u32, number: u8) -> Result<u64, UploadError> {
        const COUNT: u32 = 10_000;
        let (mut start, mut sent) = (0, 0);
        loop {
            let marks = patience::cache(|| self.run.ctx.cache.marks(&self.lease, reading, start, COUNT)).await?;
            if marks.is_empty() {
                return Ok(sent);
            }
            let ours = |mark: &&Mark| matches!(mark, Mark::Sent { table, .. } if *table == number);
            sent += marks.iter().filter(ours).count() as u64;
            start += marks.len() as u64;
        }
    }

    /// Waits, a little longer or shorter by chance.
    async fn pause(&self, about: Duration) {
        let wait = about.mul_f64(0.75 + fastrand::f64() / 2.0);
        tokio::time::sleep(wait).await;
    }

    fn failed(&self, leg: &Leg, message: &str, cure: &'static str, passing: bool) -> UploadError {
        UploadError::Load {
            job_id: reading::job_id(&leg.name, &self.lease.batch, leg.attempt),
            table: leg.table.dataset.table.to_string(),
            message: message.to_owned(),
            cure,
            passing,
        }
    }

    /// Lets go of the batch, so that the next attempt need not wait for the lease to end.
    async fn give_up(&self, error: UploadError) -> UploadError {
        if let Err(release) = self.run.ctx.cache.release_lease(&self.lease).await {
            tracing::debug!(%release, batch = %self.lease.batch, "the lease will end by itself");
        }
        error
    }
}

fn fresh(table: &Arc<Table>) -> Leg {
    Leg { table: Arc::clone(table), name: table.name.clone(), attempt: 1, cap: None, covered: Vec::new() }
}

/// Renews the lease until the batch is dropped. Whether it still holds, every change of the batch checks for itself.
async fn keep_alive(run: Arc<Run>, lease: Lease) {
    let mut beat = tokio::time::interval(lease.ttl / 3);
    loop {
        beat.tick().await;
        if let Err(error) = run.ctx.cache.renew(&lease).await {
            tracing::debug!(%error, batch = %lease.batch, "the lease was not renewed");
        }
    }
}
