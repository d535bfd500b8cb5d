//! One run of an upload over one queue: what its batches share, and what they came to.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde::Deserialize;
use serde::de::{Deserializer, Error};
use tokio::sync::Semaphore;

use super::super::datasets::Datasets;
use super::super::kind::{Finding, JobContext, ProgressReport};
use super::patience;
use super::table::Table;
use crate::cache::{CacheError, QueueRef, Released};
use crate::history::DeadLetter;
use crate::units::{Size, Span};
use crate::warehouse::WarehouseError;

/// How much goes into one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Limits {
    /// Entries.
    #[serde(deserialize_with = "rows")]
    pub(super) max_rows: u32,
    /// Bytes of record values, before compression. BigQuery's limit for a compressed file is 4 GB.
    #[serde(deserialize_with = "bytes")]
    pub(super) max_bytes: Size,
}

fn rows<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match i64::deserialize(deserializer)? {
        rows @ 1..=500_000 => Ok(rows as u32),
        other => Err(D::Error::custom(format!("{other} rows; write 1 to 500000"))),
    }
}

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
    match Size::deserialize(deserializer)? {
        Size(0) => Err(D::Error::custom("it must be more than 0")),
        size => Ok(size),
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_rows: 50_000, max_bytes: Size(256_000_000) }
    }
}

/// What stops a batch. Its entries stay in flight, and the next run takes them up.
#[derive(Debug, thiserror::Error)]
pub(super) enum UploadError {
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Warehouse(#[from] WarehouseError),
    /// Somebody else may have written to the table under our name, or the warehouse miscounted.
    #[error(
        "load {job_id} into {table} wrote {written} rows, and {sent} were sent: nothing was acknowledged, and the batch stays \
         in flight. Compare the table with the dead letters, then see docs/upload.md, \"A count that is off\""
    )]
    Count { job_id: String, table: String, written: u64, sent: u64 },
    /// The warehouse's last word on a load.
    #[error("load {job_id} into {table} failed: {message}. {cure}")]
    Load { job_id: String, table: String, message: String, cure: &'static str, passing: bool },
    /// Rows that the warehouse refuses could not be kept anywhere else.
    #[error("{count} records that the warehouse refuses cannot be kept as dead letters: {reason}; they stay in flight")]
    Letters { count: usize, reason: String },
}

impl UploadError {
    /// Whether another attempt of the run can help.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Cache(error) => error.is_transient(),
            Self::Warehouse(error) => error.is_transient(),
            Self::Count { .. } => false,
            Self::Load { passing, .. } => *passing,
            Self::Letters { .. } => true,
        }
    }
}

/// Batches that may be open at once: one that is read, one that releases its records, and others that wait for the warehouse.
const OPEN: usize = 5;

/// The smallest of several batches are this part of `max_rows`.
const SMALLEST: u64 = 4;

/// What keeps memory and the load on the cache bounded while queues are drained side by side.
pub(super) struct Turns {
    /// Held while a batch is read.
    pub(super) reading: tokio::sync::Mutex<()>,
    /// Held while a batch releases its records.
    pub(super) releasing: tokio::sync::Mutex<()>,
    /// One permit for each open batch.
    pub(super) open: Arc<Semaphore>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { reading: Default::default(), releasing: Default::default(), open: Arc::new(Semaphore::new(OPEN)) }
    }
}

/// What the batches of one queue share.
pub(super) struct Run {
    pub(super) ctx: JobContext,
    pub(super) queue: QueueRef,
    /// The datasets whose records this queue names.
    pub(super) tables: Vec<Arc<Table>>,
    pub(super) limits: Limits,
    /// How long a batch stays ours without a sign of life.
    pub(super) lease: Span,
    /// How many entries this run may still claim: as many as waited when it began. What comes in later is the next run's, or
    /// a queue that is filled all day would be drained in tiny loads all day.
    quota: AtomicU64,
    /// How many batches were claimed and read.
    batches: AtomicU32,
    /// Mean bytes of the records that were read last; before that, a size that is seldom surpassed.
    usual: AtomicU64,
    tally: Arc<Mutex<Tally>>,
    /// Shared with the other queues of the job.
    pub(super) turns: Arc<Turns>,
}

/// What a run came to so far, over all its queues.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) batches: u64,
    pub(super) recovered: u64,
    /// Rows and bytes for each dataset.
    pub(super) uploaded: BTreeMap<String, (u64, u64)>,
    /// Dead letters for each dataset and reason.
    pub(super) letters: BTreeMap<(String, String), u64>,
    /// Entries that named a record a second time within a batch.
    pub(super) repeated: u64,
    /// Entries whose record an earlier entry had brought.
    pub(super) uploaded_before: u64,
    /// Entries that could be neither uploaded nor kept as dead letters, and stay in flight.
    pub(super) unsettled: u64,
    /// Entries put off because another batch was sending their record.
    pub(super) deferred: u64,
    pub(super) released: Released,
    pub(super) progress: ProgressReport,
    /// Why dead letters could not be kept.
    pub(super) letters_error: Option<String>,
}

impl Tally {
    /// Rows uploaded into all tables.
    pub(super) fn rows(&self) -> u64 {
        self.uploaded.values().map(|(rows, _)| rows).sum()
    }

    /// Counts a dead letter.
    pub(super) fn count_letter(&mut self, letter: &DeadLetter) {
        *self.letters.entry((letter.dataset.clone(), letter.reason.clone())).or_default() += 1;
    }

    /// The findings of the run.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (dataset, (rows, bytes)) in &self.uploaded {
            findings.push(Finding::count("uploaded_rows", *rows).with("dataset", dataset));
            findings.push(Finding::count("uploaded_bytes", *bytes).with("dataset", dataset));
        }
        for ((dataset, reason), count) in &self.letters {
            let finding = Finding::at_most("dead_letters", *count as f64, 0.0);
            findings.push(finding.with("dataset", dataset).with("reason", reason));
        }
        for (name, value) in [
            ("batches", self.batches),
            ("recovered_batches", self.recovered),
            ("repeated_entries", self.repeated),
            ("uploaded_before", self.uploaded_before),
            ("rewritten_meanwhile", self.released.rewritten),
            ("deferred_entries", self.deferred),
        ] {
            if value > 0 {
                findings.push(Finding::count(name, value));
            }
        }
        if self.unsettled > 0 {
            findings.push(Finding::at_most("unsettled_entries", self.unsettled as f64, 0.0));
        }
        findings
    }
}

impl Run {
    pub(super) fn new(
        ctx: JobContext,
        queue: QueueRef,
        tables: Vec<Arc<Table>>,
        limits: Limits,
        lease: Span,
        tally: Arc<Mutex<Tally>>,
        turns: Arc<Turns>,
    ) -> Self {
        Self {
            ctx,
            queue,
            tables,
            limits,
            lease,
            quota: AtomicU64::new(0),
            batches: AtomicU32::new(0),
            usual: AtomicU64::new(1_000_000),
            tally,
            turns,
        }
    }

    /// Sets how many entries this run may claim.
    pub(super) fn allow(&self, entries: u64) {
        self.quota.store(entries, Ordering::Relaxed);
    }

    /// How many entries this run may still claim.
    pub(super) fn quota(&self) -> u64 {
        self.quota.load(Ordering::Relaxed)
    }

    /// Notes that entries were claimed.
    pub(super) fn claimed(&self, entries: u64) {
        self.allow(self.quota().saturating_sub(entries));
    }

    /// Notes that a batch was claimed and read.
    pub(super) fn has_read(&self) {
        self.batches.fetch_add(1, Ordering::Relaxed);
    }

    /// How many entries the next batch may take.
    pub(super) fn batch_rows(&self) -> u64 {
        rows_of_next(u64::from(self.limits.max_rows), self.batches.load(Ordering::Relaxed), self.quota())
    }

    /// How many bytes a record is expected to have.
    pub(super) fn usual(&self) -> u64 {
        self.usual.load(Ordering::Relaxed)
    }

    /// Expects records of so many bytes from here on.
    pub(super) fn learn(&self, bytes: u64) {
        self.usual.store(bytes, Ordering::Relaxed);
    }

    /// The dataset that a key belongs to: of several that match, the one whose pattern says most.
    pub(super) fn dataset_of(&self, key: &str) -> Option<&str> {
        let matching = self.tables.iter().filter(|table| table.dataset.keys.id(key).is_some());
        matching.max_by_key(|table| table.dataset.keys.fixed_len()).map(|table| table.name.as_str())
    }

    /// The key patterns of this queue, for messages.
    pub(super) fn patterns(&self) -> String {
        let patterns: Vec<&str> = self.tables.iter().map(|table| table.dataset.keys.as_str()).collect();
        patterns.join(", ")
    }

    /// Changes the tally.
    pub(super) fn tally(&self, change: impl FnOnce(&mut Tally)) {
        change(&mut self.tally.lock().expect("nobody panics while holding the tally"));
    }

    /// Notes that so many more entries went by.
    pub(super) fn progress(&self, entries: u64) {
        self.tally(|tally| {
            tally.progress.done += entries;
            self.ctx.progress.report(&tally.progress);
        });
    }

    /// Keeps dead letters; `false` if they cannot be kept now.
    pub(super) async fn keep(&self, letters: &[DeadLetter]) -> bool {
        match self.ctx.history.add_dead_letters(letters).await {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%error, letters = letters.len(), "dead letters cannot be kept; their entries stay in flight");
                self.tally(|tally| tally.letters_error = Some(error.to_string()));
                false
            }
        }
    }

    /// Why dead letters cannot be kept.
    pub(super) fn letters_error(&self) -> Option<String> {
        self.tally.lock().expect("nobody panics while holding the tally").letters_error.clone()
    }

    /// How many entries wait.
    pub(super) async fn depth(&self) -> Result<u64, CacheError> {
        patience::cache(|| self.ctx.cache.depth(&self.queue)).await
    }
}

/// How many entries the next batch may take, after so many batches, with so many entries left. Of several batches the first ones
/// grow and the last ones shrink: while the first is read there is nothing to release, and while the last is released nothing to
/// read.
fn rows_of_next(most: u64, batches: u32, left: u64) -> u64 {
    if batches == 0 && left <= most {
        return most;
    }
    let least = most.div_ceil(SMALLEST);
    let growing = least << batches.min(SMALLEST.ilog2());
    let shrinking = if left < 2 * least { left } else { left / 2 };
    most.min(growing).min(shrinking)
}

/// The queues of these datasets, each with its tables, in the order of the datasets.
pub(super) fn queues(names: &[String], datasets: &Datasets) -> Vec<(QueueRef, Vec<Arc<Table>>)> {
    let mut queues: Vec<(QueueRef, Vec<Arc<Table>>)> = Vec::new();
    for name in names {
        let dataset = datasets.get(name).expect("settings check that every dataset exists");
        let (queue, table) = (dataset.queue_ref(), Arc::new(Table::new(name, dataset)));
        match queues.iter_mut().find(|(known, _)| *known == queue) {
            Some((_, tables)) => tables.push(table),
            None => queues.push((queue, vec![table])),
        }
    }
    queues
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batches(most: u64, entries: u64) -> Vec<u64> {
        let (mut sizes, mut left) = (Vec::new(), entries);
        while left > 0 {
            sizes.push(rows_of_next(most, sizes.len() as u32, left).min(left));
            left -= sizes.last().expect("one was pushed");
        }
        sizes
    }

    #[test]
    fn batches_grow_and_shrink_and_are_few() {
        assert_eq!(batches(50_000, 50_000), [50_000]);
        assert_eq!(batches(50_000, 100_000), [12_500, 25_000, 31_250, 15_625, 15_625]);
        assert_eq!(batches(50_000, 250_000), [12_500, 25_000, 50_000, 50_000, 50_000, 31_250, 15_625, 15_625]);
        assert_eq!(batches(1, 3), [1, 1, 1]);
        for most in [1, 2, 3, 7, 50_000] {
            for entries in (1..20).chain([most, most + 1, 10 * most + 3]) {
                let sizes = batches(most, entries);
                assert!(sizes.iter().all(|size| (1..=most).contains(size)), "{most} of {entries}: {sizes:?}");
                assert!(sizes.len() as u64 <= entries.div_ceil(most) + 3, "{most} of {entries}: {sizes:?}");
            }
        }
    }
}
