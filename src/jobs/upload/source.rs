//! The beginning of a reading: entries are claimed (or, in a batch that exists, listed), decoded, sent to their tables, and
//! their records read, in stretches of bounded size.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use super::entry;
use super::patience;
use super::reading::Leg;
use super::record::Rejection;
use super::run::Run;
use super::work::{Item, Rejected, Work};
use crate::cache::{AfterUpload, CacheError, Digest, Lease, Mark, Stored, Uploaded};

/// Entries asked for at a time: moving 1,000 keeps Redis busy for less than a millisecond.
const STRETCH: u32 = 1_000;
/// Bytes of values asked for at a time; a few stretches are in memory at once.
const STRETCH_BYTES: u64 = 2_000_000;

/// Gives out a batch's entries, stretch by stretch.
pub(super) struct Source {
    run: Arc<Run>,
    lease: Lease,
    legs: Vec<Leg>,
    buried: HashSet<u32>,
    /// Positions of records that another batch sends: they are left for later.
    deferred: HashSet<u32>,
    /// Whether the batch may still take entries from the queue.
    claiming: bool,
    position: u64,
    bytes: u64,
    /// Entries handed out for each table, against its cap.
    taken: Vec<u64>,
    /// Digests of the keys and values that were handed out: a batch has tens of thousands.
    seen: HashSet<(Digest, Digest)>,
}

/// An entry of the current stretch that needs its record.
struct Wanted {
    at: usize,
    table: u8,
    key: String,
}

impl Source {
    pub(super) fn new(
        run: Arc<Run>,
        lease: Lease,
        legs: Vec<Leg>,
        buried: Vec<u32>,
        deferred: HashSet<u32>,
        claiming: bool,
    ) -> Self {
        let taken = vec![0; legs.len()];
        let buried = buried.into_iter().collect();
        Self { run, lease, legs, buried, deferred, claiming, position: 0, bytes: 0, taken, seen: HashSet::new() }
    }

    /// The next entries of the batch; none at its end.
    pub(super) async fn next_entries(&mut self) -> Result<Vec<Bytes>, CacheError> {
        let cache = &self.run.ctx.cache;
        let limits = &self.run.limits;
        let left = u64::from(limits.max_rows).saturating_sub(self.position).min(self.run.quota());
        if !self.claiming {
            return patience::cache(|| cache.entries(&self.lease, self.position, STRETCH)).await;
        }
        if left == 0 || self.bytes >= limits.max_bytes.0 {
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

    /// Stretches of these entries, which came from [`Source::next_entries`], ready to be encoded.
    pub(super) async fn stretches(&mut self, entries: Vec<Bytes>) -> Result<Vec<Work>, CacheError> {
        // Of entries that were claimed together, and before any of their records is read, one stands for all that name the
        // same record: the value that is read is at least as new as each of them.
        let mut keys = HashSet::new();
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
        let works = self.read(&entries, marks, rejected, &wanted).await?;
        self.position += entries.len() as u64;
        Ok(works)
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

    /// Reads the wanted records; one work for each answer, which ends where the next begins.
    async fn read(
        &mut self,
        entries: &[Bytes],
        mut marks: Vec<Mark>,
        mut rejected: Vec<Rejected>,
        wanted: &[Wanted],
    ) -> Result<Vec<Work>, CacheError> {
        let cache = Arc::clone(&self.run.ctx.cache);
        let max_value = self.legs.iter().map(|leg| leg.table.dataset.max_record_size.0).max().unwrap_or(0);
        let mut works = Vec::new();
        let (mut start, mut rest) = (0, wanted);
        while start < entries.len() {
            let keys: Vec<&str> = rest.iter().map(|wanted| wanted.key.as_str()).collect();
            let values = if keys.is_empty() {
                Vec::new()
            } else {
                patience::cache(|| cache.read(self.run.queue.database, &keys, max_value, STRETCH_BYTES)).await?
            };
            let (now, later) = rest.split_at(values.len());
            let end = later.first().map_or(entries.len(), |next| next.at);
            let mut work = Work {
                start: self.position + start as u64,
                marks: marks.drain(..end - start).collect(),
                items: Vec::with_capacity(now.len()),
                rejected: rejected.extract_if(.., |rejected| rejected.at < end).collect(),
            };
            for rejected in &mut work.rejected {
                rejected.at -= start;
            }
            self.judge(entries, start, now, values, &mut work).await?;
            works.push(work);
            (start, rest) = (end, later);
        }
        Ok(works)
    }

    /// Sorts what was read into items and rejections.
    async fn judge(
        &mut self,
        entries: &[Bytes],
        start: usize,
        wanted: &[Wanted],
        values: Vec<Stored>,
        work: &mut Work,
    ) -> Result<(), CacheError> {
        let sent_before = self.sent_before(wanted, &values).await?;
        let uploaded = self.uploaded(wanted, &values).await?;
        for (number, (wanted, value)) in wanted.iter().zip(values).enumerate() {
            let at = wanted.at - start;
            let limit = self.legs[usize::from(wanted.table)].table.dataset.max_record_size;
            let (reason, detail, size_bytes) = match value {
                Stored::Value(value) if value.len() as u64 <= limit.0 => {
                    self.bytes += value.len() as u64;
                    let digests = (Digest::of(wanted.key.as_bytes()), Digest::of(&value));
                    let before = sent_before.as_ref().is_some_and(|sent| sent[number] == Some(digests.1));
                    if before || !self.seen.insert(digests) {
                        work.marks[at] = Mark::Settled;
                        self.run.tally(|tally| {
                            let counter = if before { &mut tally.uploaded_before } else { &mut tally.repeated };
                            *counter += 1;
                        });
                        continue;
                    }
                    let (key, entry) = (wanted.key.clone(), entries[wanted.at].clone());
                    work.items.push(Item { at, table: wanted.table, key, entry, value, digests });
                    continue;
                }
                Stored::Missing if uploaded.get(&wanted.key) == Some(&Uploaded::Yes) => {
                    work.marks[at] = Mark::Settled;
                    self.run.tally(|tally| tally.uploaded_before += 1);
                    continue;
                }
                Stored::Missing if uploaded.get(&wanted.key) == Some(&Uploaded::Pending) => {
                    // Whether the batch that has it will bring it, nobody can say yet.
                    work.marks[at] = Mark::Unsettled;
                    continue;
                }
                Stored::Missing => (
                    "missing",
                    "the record is gone: it expired, was evicted or deleted before its upload".to_owned(),
                    None,
                ),
                Stored::WrongType(found) => ("wrong_type", format!("the key holds a {found}, not a string"), None),
                Stored::Value(_) | Stored::TooLarge(_) => {
                    let size = match &value {
                        Stored::TooLarge(size) => *size,
                        Stored::Value(value) => value.len() as u64,
                        _ => 0,
                    };
                    let cure = "the record stays in the cache until its TTL ends: raise max_record_size, then retry this letter";
                    (
                        "too_large",
                        format!("the record has {size} bytes, more than max_record_size = {limit}; {cure}"),
                        Some(size),
                    )
                }
            };
            work.rejected.push(Rejected {
                at,
                table: Some(wanted.table),
                key: wanted.key.clone(),
                entry: entries[wanted.at].clone(),
                body: None,
                size_bytes,
                rejection: Rejection::new(reason, detail),
            });
        }
        Ok(())
    }

    /// What was sent of these records before, where a dataset keeps its records.
    async fn sent_before(
        &self,
        wanted: &[Wanted],
        values: &[Stored],
    ) -> Result<Option<Vec<Option<Digest>>>, CacheError> {
        if values.is_empty() || self.legs.iter().all(|leg| leg.table.dataset.after_upload != AfterUpload::Keep) {
            return Ok(None);
        }
        let keys: Vec<&str> = wanted.iter().map(|wanted| wanted.key.as_str()).collect();
        patience::cache(|| self.run.ctx.cache.sent(&self.run.queue, &keys)).await.map(Some)
    }

    /// What other batches did with the missing ones of these records.
    async fn uploaded(&self, wanted: &[Wanted], values: &[Stored]) -> Result<HashMap<String, Uploaded>, CacheError> {
        let missing = wanted.iter().zip(values).filter(|(_, value)| matches!(value, Stored::Missing));
        let keys: Vec<&str> = missing.map(|(wanted, _)| wanted.key.as_str()).collect();
        if keys.is_empty() {
            return Ok(HashMap::new());
        }
        let known = patience::cache(|| self.run.ctx.cache.uploaded(&self.run.queue, &keys)).await?;
        Ok(keys.iter().map(|key| (*key).to_owned()).zip(known).collect())
    }
}
