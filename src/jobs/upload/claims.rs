//! The first stage of a reading: entries are claimed (or, in a batch that exists, listed), decoded, and given to their tables,
//! in stretches of bounded size.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::Notify;

use super::entry;
use super::patience;
use super::reading::Leg;
use super::record::Rejection;
use super::run::Run;
use super::work::Rejected;
use crate::cache::{CacheError, Digest, Lease, Mark};

/// Entries asked for at a time: moving 1,000 keeps Redis busy for less than a millisecond.
const STRETCH: u32 = 1_000;

/// Entries in queue order, and what is known of them before their records are read.
pub(super) struct Stretch {
    /// Position in the batch of the first entry.
    pub(super) start: u64,
    pub(super) entries: Vec<Bytes>,
    /// One for each entry; those of `wanted` are still to be decided.
    pub(super) marks: Vec<Mark>,
    /// Entries that need no record to be judged.
    pub(super) rejected: Vec<Rejected>,
    /// Entries that need theirs.
    pub(super) wanted: Vec<Wanted>,
}

/// An entry that needs its record.
pub(super) struct Wanted {
    /// Which of the stretch's entries.
    pub(super) at: usize,
    /// Which of the reading's tables.
    pub(super) table: u8,
    pub(super) key: String,
}

/// How much of a batch has been read.
#[derive(Default)]
pub(super) struct Volume {
    entries: AtomicU64,
    bytes: AtomicU64,
    more: Notify,
}

impl Volume {
    /// Counts entries whose records had so many bytes.
    pub(super) fn add(&self, entries: u64, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.entries.fetch_add(entries, Ordering::Relaxed);
        self.more.notify_one();
    }

    /// Mean bytes of a record; `None` before the first was read.
    fn mean(&self) -> Option<u64> {
        let entries = self.entries.load(Ordering::Relaxed);
        (entries > 0).then(|| self.bytes.load(Ordering::Relaxed) / entries)
    }

    /// How many more entries fit into `max_bytes` after the first `claimed` ones, if those that were not read yet are of the mean
    /// size of those that were, or, while there are none, of `usual` bytes. Waits while only reading can tell.
    async fn room(&self, claimed: u64, max_bytes: u64, usual: u64) -> u64 {
        loop {
            let unread = claimed.saturating_sub(self.entries.load(Ordering::Relaxed));
            let left = max_bytes.saturating_sub(self.bytes.load(Ordering::Relaxed));
            let room = left.div_ceil(self.mean().unwrap_or(usual).max(1)).saturating_sub(unread);
            if room > 0 || unread == 0 {
                return room;
            }
            self.more.notified().await;
        }
    }
}

/// Gives out a batch's entries, stretch by stretch.
pub(super) struct Claims {
    run: Arc<Run>,
    lease: Lease,
    legs: Vec<Leg>,
    buried: HashSet<u32>,
    /// Positions of records that another batch sends: they are left for later.
    deferred: HashSet<u32>,
    /// Whether the batch may still take entries from the queue.
    claiming: bool,
    /// The most entries of the batch.
    rows: u64,
    position: u64,
    /// Entries handed out for each table, against its cap.
    taken: Vec<u64>,
    /// What became of those that were handed out.
    volume: Arc<Volume>,
}

impl Claims {
    pub(super) fn new(
        run: Arc<Run>,
        lease: Lease,
        legs: Vec<Leg>,
        buried: Vec<u32>,
        deferred: HashSet<u32>,
        claiming: bool,
        volume: Arc<Volume>,
    ) -> Self {
        let taken = vec![0; legs.len()];
        let buried = buried.into_iter().collect();
        let rows = run.batch_rows();
        Self { run, lease, legs, buried, deferred, claiming, rows, position: 0, taken, volume }
    }

    /// The next stretch of the batch; `None` at its end.
    pub(super) async fn next(&mut self) -> Result<Option<Stretch>, CacheError> {
        let entries = self.entries().await?;
        if entries.is_empty() { Ok(None) } else { self.sort(entries).await.map(Some) }
    }

    async fn entries(&mut self) -> Result<Vec<Bytes>, CacheError> {
        let cache = &self.run.ctx.cache;
        if !self.claiming {
            return patience::cache(|| cache.entries(&self.lease, self.position, STRETCH)).await;
        }
        let room = self.volume.room(self.position, self.run.limits.max_bytes.0, self.run.usual()).await;
        self.volume.mean().into_iter().for_each(|mean| self.run.learn(mean));
        let left = self.rows.saturating_sub(self.position).min(self.run.quota()).min(room);
        if left == 0 {
            return Ok(Vec::new());
        }
        let count = STRETCH.min(u32::try_from(left).unwrap_or(STRETCH));
        // A claim whose answer was lost has moved its entries all the same: look before claiming again.
        let doubt = AtomicBool::new(false);
        let entries = patience::cache(|| async {
            if doubt.swap(true, Ordering::Relaxed) {
                let moved = cache.entries(&self.lease, self.position, STRETCH).await?;
                if !moved.is_empty() {
                    return Ok(moved);
                }
            }
            cache.claim(&self.lease, count).await
        })
        .await?;
        self.run.claimed(entries.len() as u64);
        Ok(entries)
    }

    /// Finds the table of each entry.
    async fn sort(&mut self, entries: Vec<Bytes>) -> Result<Stretch, CacheError> {
        // Of entries that were claimed together, and before any of their records is read, one stands for all that name the
        // same record: the value that is read is at least as new as each of them.
        let mut keys = foldhash::HashSet::with_capacity_and_hasher(entries.len(), Default::default());
        let mut marks = vec![Mark::Untouched; entries.len()];
        let mut rejected = Vec::new();
        let mut wanted = Vec::new();
        let covered = self.covered(entries.len()).await?;
        for (at, bytes) in entries.iter().enumerate() {
            let position = self.position + at as u64;
            let position = u32::try_from(position).expect("a batch has fewer than 2^32 entries");
            if covered[at] || self.buried.contains(&position) {
                continue;
            }
            if self.deferred.contains(&position) {
                marks[at] = Mark::Unsettled;
                continue;
            }
            let reject = |key: &str, reason, detail: String| Rejected {
                at,
                table: None,
                key: key.to_owned(),
                entry: bytes.clone(),
                body: None,
                size_bytes: None,
                rejection: Rejection::new(reason, detail),
            };
            let key = match entry::key(bytes) {
                Ok(key) => key,
                Err(detail) => {
                    rejected.push(reject("", "bad_entry", detail));
                    continue;
                }
            };
            let Some(name) = self.run.dataset_of(&key) else {
                let patterns = self.run.patterns();
                rejected.push(reject(
                    &key,
                    "no_dataset",
                    format!("no dataset of this queue has keys like {key:?}; there are {patterns}"),
                ));
                continue;
            };
            // The table is not part of this reading: it is done, or another attempt has it.
            let Some(table) = self.legs.iter().position(|leg| leg.table.name == name) else { continue };
            if !keys.insert(Digest::of(key.as_bytes())) {
                marks[at] = Mark::Settled;
                self.run.tally(|tally| tally.repeated += 1);
                continue;
            }
            if self.legs[table].cap.is_some_and(|cap| self.taken[table] >= cap) {
                continue;
            }
            self.taken[table] += 1;
            let table = u8::try_from(table).expect("a job has fewer than 256 datasets");
            wanted.push(Wanted { at, table, key: key.into_owned() });
        }
        let start = self.position;
        self.position += entries.len() as u64;
        Ok(Stretch { start, entries, marks, rejected, wanted })
    }

    /// For each of the next `count` entries: whether a load that succeeded has brought it, or its reading settled it.
    async fn covered(&self, count: usize) -> Result<Vec<bool>, CacheError> {
        let mut covered = vec![false; count];
        for leg in &self.legs {
            for (reading, number) in &leg.covered {
                let count = u32::try_from(count).expect("a stretch is short");
                let marks =
                    patience::cache(|| self.run.ctx.cache.marks(&self.lease, *reading, self.position, count)).await?;
                for (covered, mark) in covered.iter_mut().zip(marks) {
                    *covered |= match mark {
                        Mark::Sent { table, .. } => table == *number,
                        Mark::Settled => true,
                        Mark::Untouched | Mark::Unsettled => false,
                    };
                }
            }
        }
        Ok(covered)
    }
}
