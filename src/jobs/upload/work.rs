//! The middle of a reading: a stretch of a batch's entries with their values, encoded and compressed.

use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::yield_now;
use ulid::Ulid;

use super::gzip::{Compressor, Part};
use super::record::{Encoder, Rejection};
use super::shape::{Fields, Shape};
use super::table::Table;
use super::timestamp;
use crate::cache::{Digest, Mark, QueueRef, magnitude};
use crate::history::DeadLetter;

/// Bytes of rows that are encoded and compressed in one go: a quarter of a millisecond, and then there may be answers of Redis to
/// read, and requests to send.
const AT_A_TIME: usize = 32 << 10;

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

/// What the encoding needs to know, the same for a whole reading.
pub(super) struct Plan {
    /// The tables, with the shape that each has in this reading.
    pub(super) tables: Vec<(Arc<Table>, Arc<Shape>)>,
    /// When the rows are uploaded.
    pub(super) at: DateTime<Utc>,
    /// For dead letters.
    pub(super) queue: QueueRef,
    /// For dead letters.
    pub(super) batch: String,
}

/// An encoded stretch.
pub(super) struct Done {
    pub(super) start: u64,
    pub(super) marks: Vec<Mark>,
    /// What each table gets, in the order of the plan.
    pub(super) rows: Vec<Rows>,
    /// The dead letters, each with the place of its mark.
    pub(super) letters: Vec<(usize, DeadLetter)>,
    /// Given up when the rows are sent.
    pub(super) place: Option<OwnedSemaphorePermit>,
}

/// Rows for one table.
pub(super) struct Rows {
    /// The compressed rows; `None` if there are none, or while the table lacks fields.
    pub(super) part: Option<Part>,
    /// For each row: its entry's position in the batch, its length in bytes, the newline included.
    pub(super) index: Vec<(u32, u32)>,
    /// Fields that the table lacks.
    pub(super) lacking: Fields,
}

impl Plan {
    /// Encodes and compresses, and every now and then lets others have the thread.
    pub(super) async fn encode(self: Arc<Self>, mut work: Work) -> Done {
        let ingested_at = timestamp::canonical(self.at.naive_utc());
        let mut rows = Vec::with_capacity(self.tables.len());
        for (number, (table, shape)) in self.tables.iter().enumerate() {
            let number = u8::try_from(number).expect("a job has fewer than 256 datasets");
            let encoder = Encoder { dataset: &table.dataset, shape, ingested_at: &ingested_at };
            let (mut plain, mut part) = (Vec::with_capacity(2 * AT_A_TIME), None);
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
                    part.get_or_insert_with(Compressor::new).push(&plain);
                    plain.clear();
                    yield_now().await;
                }
            }
            if !plain.is_empty() {
                part.get_or_insert_with(Compressor::new).push(&plain);
            }
            let part = part.filter(|_| lacking.is_empty()).map(Compressor::finish);
            rows.push(Rows { part, index, lacking });
        }
        let letters = work.rejected.into_iter().map(|rejected| (rejected.at, self.letter(rejected))).collect();
        Done { start: work.start, marks: work.marks, rows, letters, place: work.place }
    }

    /// The dead letter for a rejected entry.
    pub(super) fn letter(&self, rejected: Rejected) -> DeadLetter {
        let table = rejected.table.and_then(|table| self.tables.get(usize::from(table)));
        DeadLetter {
            id: Ulid::from_datetime(self.at.into()).to_string(),
            dataset: table.map(|(table, _)| table.name.clone()).unwrap_or_default(),
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
