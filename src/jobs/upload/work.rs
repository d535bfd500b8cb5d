//! The middle of a reading: a stretch of a batch's entries with their values, encoded and compressed.

use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::yield_now;
use ulid::Ulid;

use super::gzip::Gzip;
use super::record::{Encoder, Rejection};
use super::shape::{Fields, Shape};
use super::table::Table;
use super::timestamp;
use crate::cache::{Digest, Mark, QueueRef, magnitude};
use crate::history::DeadLetter;

/// Bytes of rows that are encoded and compressed in one go, the last row whole: less than a tenth of a millisecond, and then there
/// may be answers of Redis to read, and requests to send.
const AT_A_TIME: usize = 16 << 10;

/// A stretch of entries, in queue order, with the values that are to become rows.
pub(super) struct Work {
    /// Position in the batch of the first entry.
    pub(super) start: u64,
    /// One for each entry; those of `items` are still to be decided.
    pub(super) marks: Vec<Mark>,
    /// The values to encode.
    pub(super) items: Vec<Item>,
    /// Entries that need no value to be judged.
    pub(super) rejected: Vec<Rejected>,
    /// The place of its values among those under way.
    pub(super) place: Option<OwnedSemaphorePermit>,
}

/// A value to encode.
pub(super) struct Item {
    /// Which of the work's entries.
    pub(super) at: usize,
    /// Which of the reading's tables.
    pub(super) table: u8,
    pub(super) key: String,
    pub(super) entry: Bytes,
    pub(super) value: Bytes,
    /// The digests of the key and of the value.
    pub(super) digests: (Digest, Digest),
}

/// An entry that becomes a dead letter.
pub(super) struct Rejected {
    /// Which of the work's entries.
    pub(super) at: usize,
    /// Which of the reading's tables; `None` if no dataset claims the key.
    pub(super) table: Option<u8>,
    pub(super) key: String,
    pub(super) entry: Bytes,
    pub(super) body: Option<Bytes>,
    pub(super) size_bytes: Option<u64>,
    pub(super) rejection: Rejection,
}

/// Turns what was judged into rows, and compresses them: one gzip stream for each table of a reading.
pub(super) struct Packer {
    pub(super) outputs: Vec<Output>,
    /// When the rows are uploaded.
    pub(super) at: DateTime<Utc>,
    /// For dead letters.
    pub(super) queue: QueueRef,
    /// For dead letters.
    pub(super) batch: String,
}

/// What goes into one table.
pub(super) struct Output {
    pub(super) table: Arc<Table>,
    /// The shape that the table has in this reading.
    pub(super) shape: Arc<Shape>,
    /// `None` if nothing is sent, because the table lacks fields.
    stream: Option<Gzip>,
}

/// An encoded stretch.
pub(super) struct Done {
    pub(super) start: u64,
    pub(super) marks: Vec<Mark>,
    /// What each table gets, in the order of the outputs.
    pub(super) rows: Vec<Rows>,
    /// The dead letters, each with the place of its mark.
    pub(super) letters: Vec<(usize, DeadLetter)>,
    /// Given up when the rows are sent.
    pub(super) place: Option<OwnedSemaphorePermit>,
}

/// Rows for one table.
pub(super) struct Rows {
    /// What the stream has given out since the last stretch; rows may be on their way through it.
    pub(super) bytes: Vec<u8>,
    /// For each row: its entry's position in the batch, its length in bytes, the newline included.
    pub(super) index: Vec<(u32, u32)>,
    /// Fields that the table lacks.
    pub(super) lacking: Fields,
}

impl Output {
    /// `send`: the table has all fields, as far as is known.
    pub(super) fn new(table: Arc<Table>, shape: Arc<Shape>, send: bool) -> Self {
        Self { table, shape, stream: send.then(Gzip::new) }
    }

    /// Compresses rows.
    fn push(&mut self, plain: &[u8]) {
        if let Some(stream) = &mut self.stream {
            stream.write(plain);
        }
    }

    /// What the stream has given out since the last time.
    fn take(&mut self) -> Vec<u8> {
        self.stream.as_mut().map(Gzip::take).unwrap_or_default()
    }
}

impl Packer {
    /// Encodes and compresses, and every now and then lets others have the thread.
    pub(super) async fn pack(&mut self, mut work: Work) -> Done {
        let ingested_at = timestamp::canonical(self.at.naive_utc());
        let mut rows = Vec::with_capacity(self.outputs.len());
        let mut plain = Vec::with_capacity(2 * AT_A_TIME);
        for (number, output) in self.outputs.iter_mut().enumerate() {
            let number = u8::try_from(number).expect("a job has fewer than 256 datasets");
            let (table, shape) = (Arc::clone(&output.table), Arc::clone(&output.shape));
            let encoder = Encoder { dataset: &table.dataset, shape: &shape, ingested_at: &ingested_at };
            let (mut index, mut lacking) = (Vec::new(), Fields::default());
            for item in work.items.iter().filter(|item| item.table == number) {
                let before = plain.len();
                match encoder.encode(&item.value, &mut lacking, &mut plain) {
                    Ok(()) if plain.len() > before => {
                        let position =
                            u32::try_from(work.start).expect("a batch has fewer than 2^32 entries") + item.at as u32;
                        index.push((position, u32::try_from(plain.len() - before).expect("a row is at most a few MB")));
                        let (key, value) = item.digests;
                        let magnitude = magnitude(&item.value);
                        work.marks[item.at] = Mark::Sent { table: number, key, value, magnitude };
                    }
                    // It waits for new columns: this reading does not send it.
                    Ok(()) => {}
                    Err(rejection) => work.rejected.push(Rejected {
                        at: item.at,
                        table: Some(number),
                        key: item.key.clone(),
                        entry: item.entry.clone(),
                        size_bytes: Some(item.value.len() as u64),
                        body: Some(item.value.clone()),
                        rejection,
                    }),
                }
                if plain.len() >= AT_A_TIME {
                    output.push(&plain);
                    plain.clear();
                    yield_now().await;
                }
            }
            output.push(&plain);
            plain.clear();
            if !lacking.is_empty() {
                output.stream = None;
            }
            rows.push(Rows { bytes: output.take(), index, lacking });
        }
        let letters = work.rejected.into_iter().map(|rejected| (rejected.at, self.letter(rejected))).collect();
        Done { start: work.start, marks: work.marks, rows, letters, place: work.place }
    }

    /// Ends the streams: the last bytes for each table.
    pub(super) fn finish(self) -> Vec<Vec<u8>> {
        self.outputs.into_iter().map(|output| output.stream.map(Gzip::finish).unwrap_or_default()).collect()
    }

    /// The dead letter for a rejected entry.
    fn letter(&self, rejected: Rejected) -> DeadLetter {
        let output = rejected.table.and_then(|table| self.outputs.get(usize::from(table)));
        DeadLetter {
            id: Ulid::from_datetime(self.at.into()).to_string(),
            dataset: output.map(|output| output.table.name.clone()).unwrap_or_default(),
            database: self.queue.database,
            queue: self.queue.queue.clone(),
            batch: self.batch.clone(),
            entry: rejected.entry.to_vec(),
            key: rejected.key,
            reason: rejected.rejection.reason.to_owned(),
            detail: rejected.rejection.detail,
            body: rejected.body.map(|body| body.to_vec()),
            size_bytes: rejected.size_bytes,
            created_at: self.at,
        }
    }
}
