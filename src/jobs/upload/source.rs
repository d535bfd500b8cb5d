//! The way from a queue to compressed rows: entries are claimed ([`Claims`]), their records read, it is decided which of them are
//! to be rows, and these are packed ([`Packer`]), each stage one step ahead of the next.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::try_join4;
use tokio::sync::{Semaphore, mpsc};

use super::claims::{Claims, Stretch, Volume, Wanted};
use super::patience;
use super::reading::Leg;
use super::record::Rejection;
use super::run::Run;
use super::work::{Done, Item, Packer, Rejected, Work};
use crate::cache::{AfterUpload, CacheError, Digest, Mark, Stored, Uploaded};

/// Bytes of values asked for at a time; a few answers are in memory at once.
const AT_A_TIME: u64 = 2 << 20;

/// KiB of values that may be between their reading and their sending, unless one piece has more alone.
const UNDER_WAY: u32 = 8 << 10;

/// A piece of a stretch with its records: as many as came in one answer.
struct Piece {
    stretch: Stretch,
    /// One for each wanted entry.
    records: Vec<Stored>,
}

impl Piece {
    fn bytes(&self) -> usize {
        self.records.iter().map(|record| if let Stored::Value(value) = record { value.len() } else { 0 }).sum()
    }
}

/// Gives out a batch's records, piece by piece, in queue order.
pub(super) struct Source {
    run: Arc<Run>,
    legs: Vec<Leg>,
    volume: Arc<Volume>,
    /// One permit for each KiB of values under way.
    under_way: Arc<Semaphore>,
    /// Digests of the keys and values that were handed out: a batch has tens of thousands.
    seen: foldhash::HashSet<(Digest, Digest)>,
}

impl Source {
    pub(super) fn new(run: Arc<Run>, legs: Vec<Leg>, volume: Arc<Volume>) -> Self {
        let under_way = Arc::new(Semaphore::new(UNDER_WAY as usize));
        Self { run, legs, volume, under_way, seen: Default::default() }
    }

    /// Has all of the batch's rows packed, a few pieces ahead of whoever takes them. Answers with the last bytes for each table.
    pub(super) async fn feed(
        mut self,
        mut claims: Claims,
        first: Stretch,
        mut packer: Packer,
        out: mpsc::Sender<Done>,
    ) -> Result<Vec<Vec<u8>>, CacheError> {
        let (to_fetch, stretches) = mpsc::channel(1);
        let (to_judge, mut pieces) = mpsc::channel::<Piece>(1);
        let (to_pack, mut works) = mpsc::channel::<Work>(1);
        let claim = async move {
            let mut next = Some(first);
            while let Some(stretch) = next {
                if to_fetch.send(stretch).await.is_err() {
                    break;
                }
                next = claims.next().await?;
            }
            Ok(())
        };
        let (run, max_value) = (Arc::clone(&self.run), self.max_value());
        let judge = async move {
            while let Some(piece) = pieces.recv().await {
                let kib = u32::try_from(piece.bytes() >> 10).unwrap_or(UNDER_WAY).min(UNDER_WAY);
                let place = Arc::clone(&self.under_way).acquire_many_owned(kib).await;
                let mut work = self.judge(piece).await?;
                work.place = place.ok();
                if to_pack.send(work).await.is_err() {
                    break;
                }
            }
            Ok(())
        };
        let pack = async move {
            while let Some(work) = works.recv().await {
                if out.send(packer.pack(work).await).await.is_err() {
                    break;
                }
            }
            Ok(packer.finish())
        };
        try_join4(claim, fetch(&run, max_value, stretches, to_judge), judge, pack).await.map(|(.., ends)| ends)
    }

    fn max_value(&self) -> u64 {
        self.legs.iter().map(|leg| leg.table.dataset.max_record_size.0).max().unwrap_or(0)
    }

    /// Sorts what was read into items and rejections.
    async fn judge(&mut self, piece: Piece) -> Result<Work, CacheError> {
        let Piece { stretch: Stretch { start, entries, marks, rejected, wanted }, records } = piece;
        let sent_before = self.sent_before(&wanted, &records).await?;
        let uploaded = self.uploaded(&wanted, &records).await?;
        let mut work = Work { start, marks, items: Vec::with_capacity(records.len()), rejected, place: None };
        let mut bytes = 0;
        for (number, (wanted, value)) in wanted.into_iter().zip(records).enumerate() {
            let at = wanted.at;
            let limit = self.legs[usize::from(wanted.table)].table.dataset.max_record_size;
            let (reason, detail, size_bytes) = match value {
                Stored::Value(value) if value.len() as u64 <= limit.0 => {
                    bytes += value.len() as u64;
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
                    let (key, entry) = (wanted.key, entries[at].clone());
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
                key: wanted.key,
                entry: entries[at].clone(),
                body: None,
                size_bytes,
                rejection: Rejection::new(reason, detail),
            });
        }
        self.volume.add(entries.len() as u64, bytes);
        Ok(work)
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

/// Reads the records of stretches; an answer is asked for only when there is place for it.
async fn fetch(
    run: &Run,
    max_value: u64,
    mut stretches: mpsc::Receiver<Stretch>,
    out: mpsc::Sender<Piece>,
) -> Result<(), CacheError> {
    while let Some(mut rest) = stretches.recv().await {
        while !rest.entries.is_empty() {
            let Ok(place) = out.reserve().await else { return Ok(()) };
            let keys: Vec<&str> = rest.wanted.iter().map(|wanted| wanted.key.as_str()).collect();
            let records = if keys.is_empty() {
                Vec::new()
            } else {
                patience::cache(|| run.ctx.cache.read(run.queue.database, &keys, max_value, AT_A_TIME)).await?
            };
            let stretch = rest.split_off(records.len());
            place.send(Piece { stretch, records });
        }
    }
    Ok(())
}

impl Stretch {
    /// Takes the front, with so many of the wanted entries; it ends where the next of them begins.
    fn split_off(&mut self, wanted: usize) -> Self {
        let end = self.wanted.get(wanted).map_or(self.entries.len(), |next| next.at);
        let front = Self {
            start: self.start,
            entries: self.entries.drain(..end).collect(),
            marks: self.marks.drain(..end).collect(),
            rejected: self.rejected.extract_if(.., |rejected| rejected.at < end).collect(),
            wanted: self.wanted.drain(..wanted).collect(),
        };
        self.start += end as u64;
        self.rejected.iter_mut().for_each(|rejected| rejected.at -= end);
        self.wanted.iter_mut().for_each(|wanted| wanted.at -= end);
        front
    }
}
