//! Sealed readings: which of them may have sent a record, and the marks in which they say so.

use std::collections::HashMap;

use ::redis::Pipeline;
use bytes::Bytes;

use super::link::{Database, Repeat};
use super::names::{self, Names, bytes, members};
use super::script;
use super::wire::Answer;
use crate::cache::{CacheError, Digest, Lease, Mark, QueueRef, Rival, Uploaded};

/// Bytes of marks at a time: whole marks, and as many as fit in a MiB.
const PIECE: usize = (1 << 20) / Mark::SIZE * Mark::SIZE;

/// See [`crate::cache::UploadCache::seal`].
pub(super) async fn seal(database: &Database, lease: &Lease, reading: u32) -> Result<Vec<Rival>, CacheError> {
    let names = Names::of(lease);
    let keys = [&names.lease[..], &names.state, &names.sequence, &names.sealed, &names.finished];
    let answer = script::SEAL
        .run(database, lease, &keys, |command| {
            command.arg(&lease.batch).arg(reading);
        })
        .await?;
    Ok(rivals(answer))
}

/// See [`crate::cache::UploadCache::rival_marks`].
pub(super) async fn rival_marks(
    database: &Database,
    queue: &QueueRef,
    rival: &Rival,
    start: u64,
    count: u32,
) -> Result<Vec<Mark>, CacheError> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let size = Mark::SIZE as u64;
    let (stored, _) = piece(database, queue, rival, start.saturating_mul(size), u64::from(count) * size).await?;
    Ok(Mark::read_all(&stored).collect())
}

/// See [`crate::cache::UploadCache::uploaded`].
pub(super) async fn uploaded(
    database: &Database,
    queue: &QueueRef,
    keys: &[&str],
) -> Result<Vec<Uploaded>, CacheError> {
    let mut found = vec![Uploaded::No; keys.len()];
    let mut wanted: HashMap<Digest, Vec<usize>> = HashMap::with_capacity(keys.len());
    for (position, key) in keys.iter().enumerate() {
        wanted.entry(Digest::of(key.as_bytes())).or_default().push(position);
    }
    if wanted.is_empty() {
        return Ok(found);
    }
    // In this order: a reading that is finished between the two is seen twice rather than never.
    let mut commands = Pipeline::with_capacity(2);
    for set in [names::sealed(queue), names::finished(queue)] {
        commands.cmd("ZREVRANGE").arg(set).arg(0).arg(-1);
    }
    // Newest first, because a key that is named twice in a queue is mostly named twice within minutes; but the finished
    // ones before the others, so that the first find of a key decides.
    for readings in database.ask(&commands, Repeat::Harmless).await?.into_iter().rev() {
        for reading in rivals(readings) {
            let mut start = 0;
            loop {
                let (stored, finished) = piece(database, queue, &reading, start, PIECE as u64).await?;
                for mark in Mark::read_all(&stored) {
                    let Mark::Sent { key, .. } = mark else { continue };
                    for position in wanted.remove(&key).unwrap_or_default() {
                        found[position] = if finished { Uploaded::Yes } else { Uploaded::Pending };
                    }
                }
                if wanted.is_empty() {
                    return Ok(found);
                }
                start += stored.len() as u64;
                if stored.len() < PIECE {
                    break;
                }
            }
        }
    }
    Ok(found)
}

/// A range of the marks of a reading, and whether its batch is finished. Nothing if the reading is forgotten.
async fn piece(
    database: &Database,
    queue: &QueueRef,
    reading: &Rival,
    start: u64,
    length: u64,
) -> Result<(Bytes, bool), CacheError> {
    let [before, after] = names::marks_of(queue, &reading.batch, reading.reading);
    // In this order: whoever finishes the batch between the two gives the marks their second name.
    let mut commands = Pipeline::with_capacity(2);
    for name in [before, after] {
        commands.cmd("GETRANGE").arg(name).arg(start).arg(start.saturating_add(length) - 1);
    }
    let mut stored = database.ask(&commands, Repeat::Harmless).await?.into_iter().filter_map(bytes);
    let (before, after) = (stored.next().unwrap_or_default(), stored.next().unwrap_or_default());
    Ok(if before.is_empty() { (after, true) } else { (before, false) })
}

/// Members of `sealed`, `{batch}:{reading}`, or of `finished`, which have a number behind that.
fn rivals(answer: Answer) -> Vec<Rival> {
    let read = |member: Bytes| {
        let mut parts = std::str::from_utf8(&member).ok()?.split(':');
        Some(Rival { batch: parts.next()?.to_owned(), reading: parts.next()?.parse().ok()? })
    };
    members(answer).into_iter().filter_map(read).collect()
}
