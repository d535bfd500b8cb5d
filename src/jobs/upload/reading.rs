//! One reading: a pass over a batch's records that builds and sends one load for each table that still needs one.
//!
//! Two tasks work at once: one claims, reads, judges and packs ([`Source`]), and this one, in queue order, keeps the dead letters,
//! writes the marks and sends the bytes. What a mark says is in the cache before the load it belongs to is committed.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::claims::{Claims, Volume};
use super::failpoint;
use super::patience;
use super::run::{Run, UploadError};
use super::shape::Fields;
use super::source::Source;
use super::table::Table;
use super::work::{Done, Output, Packer};
use crate::cache::{Digest, Lease, Mark};
use crate::history::DeadLetter;
use crate::warehouse::{Load, LoadWriter, TableRef, WarehouseError};

/// Stretches that may wait between two stages.
const AHEAD: usize = 1;

/// A table that still needs a load from this batch.
#[derive(Clone)]
pub(super) struct Leg {
    pub(super) table: Arc<Table>,
    /// What its loads are called after: the dataset's name when the batch was first read.
    pub(super) name: String,
    /// Number of the load: 1, 2, ….
    pub(super) attempt: u32,
    /// At most this many entries, while a bad row is being isolated.
    pub(super) cap: Option<u64>,
    /// Readings that brought rows of the batch, each with the number that their table has in it.
    pub(super) covered: Vec<(u32, u8)>,
}

/// The name of a load.
pub(super) fn job_id(dataset: &str, batch: &str, attempt: u32) -> String {
    format!("lamplighter_{dataset}_{batch}_a{attempt}")
}

/// What a reading notes about itself in the cache, for whoever has to finish the batch.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Note {
    /// The tables, in the order of the marks' numbers.
    pub(super) tables: Vec<NotedTable>,
}

/// One table of a [`Note`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct NotedTable {
    pub(super) dataset: String,
    pub(super) table: String,
    pub(super) attempt: u32,
    /// Whether all that was left for the table was meant to go into this load.
    pub(super) whole: bool,
}

impl NotedTable {
    pub(super) fn table(&self) -> Option<TableRef> {
        self.table.parse().ok()
    }
}

/// What a reading came to.
pub(super) struct Outcome {
    /// Its number.
    pub(super) number: u32,
    /// For each leg, in order.
    pub(super) legs: Vec<LegOutcome>,
}

/// What a reading came to for one table.
pub(super) enum LegOutcome {
    /// There was nothing to send.
    Empty,
    /// The data showed fields that the table lacks; they are known now, and nothing was sent.
    Grown,
    /// A load was committed, or perhaps: the warehouse knows.
    Sent(Sent),
    /// The bytes could not be sent, so there is no load of this reading.
    Broken(WarehouseError),
    /// Another batch sends some of the same records, so nothing was sent: they are to be left out.
    Contested,
}

/// A load that was committed, or perhaps.
pub(super) struct Sent {
    pub(super) rows: u64,
    pub(super) bytes: u64,
    /// Position in the batch and length in bytes of each row, in order.
    pub(super) index: Vec<(u32, u32)>,
}

/// What a process remembers of a batch from one reading to the next. If it dies, the next owner finds it out again.
#[derive(Default)]
pub(super) struct Memory {
    /// Positions whose dead letters are in the tally already.
    pub(super) counted: HashSet<u64>,
    /// Positions of records that another batch sends with the same value.
    pub(super) deferred: HashSet<u32>,
    /// Dead letters cannot be kept now: their entries stay in flight.
    pub(super) letters_failed: bool,
}

/// The sending side of one leg.
struct Sender {
    leg: Leg,
    job: Load,
    writer: Option<Box<dyn LoadWriter>>,
    index: Vec<(u32, u32)>,
    lacking: Fields,
    broken: Option<WarehouseError>,
    /// The table is not there yet, and only data can show its columns: nothing is sent.
    surveying: bool,
    /// Rows were held back because of that.
    held: bool,
}

/// Reads the batch once for `legs`. `None`: the queue was empty, so there is no batch.
///
/// # Errors
/// What stops the batch; its entries stay in flight.
pub(super) async fn read(
    run: &Arc<Run>,
    lease: &Lease,
    legs: &[Leg],
    claiming: bool,
    memory: &mut Memory,
) -> Result<Option<Outcome>, UploadError> {
    let cache = &run.ctx.cache;
    let buried = if claiming { Vec::new() } else { patience::cache(|| cache.buried(lease)).await? };
    let deferred = memory.deferred.clone();
    let volume = Arc::new(Volume::default());
    let mut claims =
        Claims::new(Arc::clone(run), lease.clone(), legs.to_vec(), buried, deferred, claiming, Arc::clone(&volume));
    // The first entries come before all else: of an empty queue the warehouse need not know.
    let Some(first) = claims.next().await? else {
        return Ok(None);
    };
    failpoint::reach("claimed").await;
    let mut tables = Vec::with_capacity(legs.len());
    for leg in legs {
        if !leg.table.learns_from_data() {
            leg.table.ensure(&run.ctx.warehouse).await?;
        }
        tables.push((Arc::clone(&leg.table), leg.table.shape(&run.ctx.warehouse).await?));
    }
    let noted = legs.iter().map(|leg| NotedTable {
        dataset: leg.name.clone(),
        table: leg.table.dataset.table.to_string(),
        attempt: leg.attempt,
        whole: leg.cap.is_none(),
    });
    let note = serde_json::to_string(&Note { tables: noted.collect() }).expect("plain data is JSON");
    let number = patience::cache(|| cache.begin_reading(lease, &note)).await?;
    failpoint::reach("reading-begun").await;

    let mut senders = Vec::with_capacity(legs.len());
    for (leg, (table, shape)) in legs.iter().zip(&tables) {
        senders.push(Sender {
            leg: leg.clone(),
            job: Load {
                table: table.dataset.table.clone(),
                job_id: job_id(&leg.name, &lease.batch, leg.attempt),
                columns: shape.columns.clone(),
                reading: number,
            },
            writer: None,
            index: Vec::new(),
            lacking: Fields::default(),
            broken: None,
            surveying: !table.exists().await,
            held: false,
        });
    }
    let outputs = tables.into_iter().zip(&senders);
    let outputs = outputs.map(|((table, shape), sender)| Output::new(table, shape, !sender.surveying)).collect();
    let packer = Packer { outputs, at: run.ctx.clock.now(), queue: run.queue.clone(), batch: lease.batch.clone() };

    let (to_here, mut stretches) = mpsc::channel(AHEAD);
    let source = Source::new(Arc::clone(run), legs.to_vec(), volume);
    let reader = AbortOnDropHandle::new(tokio::spawn(source.feed(claims, first, packer, to_here)));
    let mut collector = Collector { run, lease, number, sent: Default::default(), memory };
    while let Some(done) = stretches.recv().await {
        collector.take(done, &mut senders).await?;
    }
    let ends = reader.await.expect("reading does not panic")?;

    failpoint::reach("before-seal").await;
    let contested = collector.seal().await?;
    failpoint::reach("before-commit").await;
    let mut outcomes = Vec::with_capacity(senders.len());
    for ((sender, end), contested) in senders.into_iter().zip(ends).zip(contested) {
        outcomes.push(if contested { LegOutcome::Contested } else { sender.commit(run, end).await? });
    }
    failpoint::reach("committed").await;
    Ok(Some(Outcome { number, legs: outcomes }))
}

/// The last stage: one stretch after the other, in queue order.
struct Collector<'a> {
    run: &'a Arc<Run>,
    lease: &'a Lease,
    number: u32,
    /// What was sent: the digests of key and value as one number, with the entry's position and the table's number.
    sent: foldhash::HashMap<u64, (u32, u8)>,
    memory: &'a mut Memory,
}

impl Collector<'_> {
    async fn take(&mut self, mut done: Done, senders: &mut [Sender]) -> Result<(), UploadError> {
        self.keep_letters(&mut done).await;
        let cache = &self.run.ctx.cache;
        patience::cache(|| cache.append_marks(self.lease, self.number, done.start, &done.marks)).await?;
        failpoint::reach("marked").await;
        for (position, mark) in (done.start..).zip(&done.marks) {
            if let Mark::Sent { table, key, value, .. } = mark {
                let position = u32::try_from(position).expect("a batch has fewer than 2^32 entries");
                self.sent.insert(identity(*key, *value), (position, *table));
            }
        }
        for (sender, rows) in senders.iter_mut().zip(done.rows) {
            sender.lacking.merge(&rows.lacking);
            if !sender.lacking.is_empty() {
                // This load cannot be: what was sent of it is forgotten with the writer.
                sender.writer = None;
                sender.surveying = true;
            }
            sender.held |= sender.surveying && !rows.index.is_empty();
            if !sender.surveying && sender.broken.is_none() {
                sender.index.extend_from_slice(&rows.index);
                if let Err(error) = sender.send(self.run, rows.bytes).await {
                    if !error.is_transient() {
                        return Err(error.into());
                    }
                    (sender.writer, sender.broken) = (None, Some(error));
                }
            }
        }
        drop(done.place);
        failpoint::reach("streaming").await;
        self.run.progress(done.marks.len() as u64);
        Ok(())
    }

    /// Keeps dead letters before their entries count as settled; an entry whose letter cannot be kept stays in flight.
    async fn keep_letters(&mut self, done: &mut Done) {
        if done.letters.is_empty() {
            return;
        }
        let letters: Vec<DeadLetter> = done.letters.iter().map(|(_, letter)| letter.clone()).collect();
        let kept = !self.memory.letters_failed && self.run.keep(&letters).await;
        self.memory.letters_failed = !kept;
        for (at, letter) in &done.letters {
            done.marks[*at] = if kept { Mark::Settled } else { Mark::Unsettled };
            if kept && self.memory.counted.insert(done.start + *at as u64) {
                self.run.tally(|tally| tally.count_letter(letter));
            }
        }
        failpoint::reach("letters-kept").await;
    }
}

/// A key and a value as one number. Two different pairs that share it cost a detour, not a row.
fn identity(key: Digest, value: Digest) -> u64 {
    u64::from_be_bytes(key.0) ^ u64::from_be_bytes(value.0).rotate_left(32)
}

impl Collector<'_> {
    /// Seals the reading and looks for records that a reading sealed before it has sent with the same value. Says for each
    /// table whether there are any; their positions are remembered, for the next reading to leave out.
    async fn seal(&mut self) -> Result<Vec<bool>, UploadError> {
        // Just under a megabyte of marks.
        const COUNT: u32 = 50_000;
        let cache = &self.run.ctx.cache;
        let mut contested = vec![false; usize::from(u8::MAX) + 1];
        let mut positions = BTreeSet::new();
        let rivals = patience::cache(|| cache.seal(self.lease, self.number)).await?;
        for rival in &rivals {
            let mut start = 0;
            loop {
                let marks = patience::cache(|| cache.rival_marks(&self.run.queue, rival, start, COUNT)).await?;
                if marks.is_empty() {
                    break;
                }
                for mark in &marks {
                    if let Mark::Sent { key, value, .. } = mark
                        && let Some((position, table)) = self.sent.get(&identity(*key, *value))
                    {
                        contested[usize::from(*table)] = true;
                        positions.insert(*position);
                    }
                }
                start += marks.len() as u64;
            }
        }
        // Taken back, so that the other batch, should it have to read again, does not put the same records off because of us.
        let mut rest: Vec<u32> = positions.iter().copied().collect();
        while let Some(first) = rest.first().copied() {
            let run = rest.iter().zip(first..).take_while(|(position, expected)| *position == expected).count();
            let marks = vec![Mark::Unsettled; run];
            patience::cache(|| cache.append_marks(self.lease, self.number, u64::from(first), &marks)).await?;
            rest.drain(..run);
        }
        self.memory.deferred.extend(positions);
        Ok(contested)
    }
}

impl Sender {
    async fn send(&mut self, run: &Run, bytes: Vec<u8>) -> Result<(), WarehouseError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => none.insert(patience::warehouse(|| run.ctx.warehouse.begin(&self.job)).await?),
        };
        writer.write(bytes.into()).await
    }

    /// Ends the load with its last bytes, or says why there is none.
    async fn commit(mut self, run: &Run, end: Vec<u8>) -> Result<LegOutcome, UploadError> {
        if !self.lacking.is_empty() || self.held {
            self.leg.table.grow(&self.lacking).await;
            self.leg.table.ensure(&run.ctx.warehouse).await?;
            return Ok(LegOutcome::Grown);
        }
        if let Some(error) = self.broken {
            return Ok(LegOutcome::Broken(error));
        }
        if self.index.is_empty() {
            return Ok(LegOutcome::Empty);
        }
        let sent = self.send(run, end).await;
        let writer = match (sent, self.writer) {
            (Ok(()), Some(writer)) => writer,
            (Ok(()), None) => unreachable!("a stream with rows has an end"),
            (Err(error), _) if error.is_transient() => return Ok(LegOutcome::Broken(error)),
            (Err(error), _) => return Err(error.into()),
        };
        let bytes = self.index.iter().map(|(_, length)| u64::from(*length)).sum();
        let sent = Sent { rows: self.index.len() as u64, bytes, index: self.index };
        let result = writer.commit().await;
        match result {
            Ok(()) | Err(WarehouseError::Duplicate { .. }) => Ok(LegOutcome::Sent(sent)),
            Err(error) if error.is_transient() => {
                tracing::warn!(%error, job = %self.job.job_id, "the load may or may not have been accepted; asking");
                Ok(LegOutcome::Sent(sent))
            }
            Err(error) => Err(error.into()),
        }
    }
}
