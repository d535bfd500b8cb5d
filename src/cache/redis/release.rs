//! Releasing records whose rows are in the warehouse: each only if it still holds what was sent.
//!
//! Redis compares for us by `WATCH`: the keys are watched, their values fetched and compared here, and `EXEC` deletes the
//! equal ones only if none of the watched keys was touched meanwhile. The lease is watched with them. To save round trips,
//! the deletion of one chunk and the fetching of the next travel together.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use ::redis::RedisError;
use futures_util::future::try_join_all;

use super::link::{Database, Lane};
use super::names::{self, Names, bytes, number};
use super::wire::{Answer, Commands};
use super::{errors, read, script};
use crate::cache::{AfterUpload, CacheError, Digest, Lease, Released, Sent, Stored};

/// `WATCH` compares each key with all that the connection watches already, so its cost grows with the square of this, and that
/// of a round trip shrinks. Measured with whole uploads: on four lanes 170,000 records a second with 48, 167,000 with 40; on three
/// 164,000 with 48, and others wait as long for their answers.
const CHUNK: usize = 48;
/// How many connections work side by side. The lease is renewed over another.
const LANES: usize = 4;
/// Bytes of values in a chunk, unless one has more alone.
const CHUNK_BYTES: u64 = 512 << 10;
/// How often a single key is tried that somebody touches again and again.
const TRIES: u32 = 8;
/// How often a lane that turns out to be dead is replaced.
const LANES_LOST: u32 = 2;
/// Strings of so many bytes are taken whatever they are: the name of the lease's owner is one.
const SHORT: usize = 4_096;
/// Bytes of values that travel back at a time when Redis is full.
const BACK_AT_A_TIME: u64 = 1 << 20;

/// See [`crate::cache::UploadCache::release`].
pub(super) async fn release(
    database: &Database,
    lease: &Lease,
    records: &[Sent<'_>],
    after: AfterUpload,
) -> Result<Released, CacheError> {
    let chunks = chunks(records);
    let lanes = chunks.len().min(LANES);
    let work = Work { database, lease, records, after, names: Names::of(lease), chunks: Mutex::new(chunks) };
    // While one lane waits for Redis, another compares.
    let tallies = try_join_all((0..lanes).map(|_| work.drain())).await?;
    let mut all = Released::default();
    for Released { done, rewritten, gone } in tallies {
        all.done += done;
        all.rewritten += rewritten;
        all.gone += gone;
    }
    Ok(all)
}

/// Neighbours that are looked at together: their values come in one answer, so their lengths count.
fn chunks(records: &[Sent<'_>]) -> VecDeque<Chunk> {
    let mut chunks = VecDeque::with_capacity(records.len() / CHUNK + 1);
    let (mut start, mut bytes) = (0, 0_u64);
    for (position, record) in records.iter().enumerate() {
        bytes = bytes.saturating_add(1 << record.magnitude);
        if position - start == CHUNK || (position > start && bytes > CHUNK_BYTES) {
            chunks.push_back(Chunk { range: start..position, tries: 0 });
            (start, bytes) = (position, 1 << record.magnitude);
        }
    }
    if start < records.len() {
        chunks.push_back(Chunk { range: start..records.len(), tries: 0 });
    }
    chunks
}

struct Work<'a> {
    database: &'a Database,
    lease: &'a Lease,
    records: &'a [Sent<'a>],
    after: AfterUpload,
    names: Names,
    chunks: Mutex<VecDeque<Chunk>>,
}

/// Records that are looked at together.
struct Chunk {
    range: Range<usize>,
    tries: u32,
}

/// A chunk that was compared and is still watched.
struct Compared {
    chunk: Chunk,
    /// Records that hold what was sent, with their remaining time to live in ms under [`AfterUpload::Keep`].
    equal: Vec<(usize, i64)>,
    rewritten: u64,
    gone: u64,
}

enum Verdict {
    Settled,
    Touched,
    TooFull,
}

impl Work<'_> {
    /// Works off chunks on one lane until none is left.
    async fn drain(&self) -> Result<Released, CacheError> {
        let mut tally = Released::default();
        let mut lane = self.database.lane().await?;
        let mut lanes_lost = 0;
        let mut compared: Option<Compared> = None;
        let mut refused = Vec::new();
        loop {
            let next = self.chunks().pop_front();
            if compared.is_none() && next.is_none() {
                break;
            }
            match self.step(&mut lane, compared.as_ref(), next.as_ref()).await {
                Ok((verdict, now_compared)) => {
                    if let Some(compared) = compared.take() {
                        refused.extend(self.settle(compared, verdict, &mut tally));
                    }
                    compared = next.zip(now_compared).map(|(chunk, found)| Compared { chunk, ..found });
                }
                Err(Trouble::Cache(error)) => return Err(error),
                Err(Trouble::Lane(error)) => {
                    let gone = error.is_connection_dropped() && !error.is_timeout();
                    lanes_lost += 1;
                    if !gone || lanes_lost > LANES_LOST {
                        return Err(errors::from_client(&self.database.server, &error));
                    }
                    // Whether the deletion took place is unknown; doing it again changes nothing.
                    self.chunks().extend(compared.take().map(|compared| compared.chunk).into_iter().chain(next));
                    drop(lane);
                    self.database.forget_idle();
                    lane = self.database.lane().await?;
                }
            }
        }
        lane.give_back();
        for range in refused {
            self.send_back(range, &mut tally).await?;
        }
        Ok(tally)
    }

    /// One round trip: deletes what `compared` found equal, and compares `next`.
    async fn step(
        &self,
        lane: &mut Lane<'_>,
        compared: Option<&Compared>,
        next: Option<&Chunk>,
    ) -> Result<(Verdict, Option<Compared>), Trouble> {
        let mut commands = Commands::default();
        if let Some(compared) = compared {
            self.commit(compared, &mut commands);
        }
        let committed = commands.len();
        if let Some(next) = next {
            self.look(next, &mut commands);
        }
        // What has become longer than anything that was sent is another value; nobody need hold it.
        let records = next.map(|next| &self.records[next.range.clone()]).unwrap_or_default();
        let longest = records.iter().map(|record| 1 << record.magnitude).fold(SHORT, usize::max);
        let mut answers = lane.exchange(commands.as_bytes(), commands.len(), &mut |length| length <= longest).await?;
        let looked = answers.split_off(committed.min(answers.len()));
        let verdict = self.verdict(&answers)?;
        let found = match next {
            Some(next) => Some(self.compare(next, looked)?),
            None => None,
        };
        Ok((verdict, found))
    }

    fn look(&self, chunk: &Chunk, commands: &mut Commands) {
        let records = &self.records[chunk.range.clone()];
        commands.begin(records.len() + 2);
        commands.word("WATCH");
        commands.word(&self.names.lease);
        records.iter().for_each(|record| commands.word(&*record.key));
        commands.add(&["GET", &self.names.lease]);
        let keys: Vec<&str> = records.iter().map(|record| &*record.key).collect();
        commands.list("MGET", &keys);
        if self.after == AfterUpload::Keep {
            records.iter().for_each(|record| commands.add(&["PTTL", &record.key]));
        }
    }

    fn compare(&self, chunk: &Chunk, answers: Vec<Answer>) -> Result<Compared, CacheError> {
        let mut answers = answers.into_iter();
        let (watched, owner, values) = (answers.next(), answers.next(), answers.next());
        for answer in [&watched, &owner, &values] {
            if let Some(Answer::Error(error)) = answer {
                return Err(errors::from_server(&self.database.server, error));
            }
        }
        // Whoever holds the lease now is not us; the lane closes with all that it watches.
        if owner.and_then(bytes).as_deref() != Some(self.lease.owner.as_bytes()) {
            return Err(CacheError::LeaseLost { batch: self.lease.batch.clone() });
        }
        let mut compared =
            Compared { chunk: Chunk { range: 0..0, tries: 0 }, equal: Vec::new(), rewritten: 0, gone: 0 };
        let Some(Answer::List(values)) = values else {
            return Err(errors::not_a_redis(&self.database.server, "MGET without a list"));
        };
        for (position, value) in chunk.range.clone().zip(values) {
            match value {
                Answer::Text(value) if Digest::of(&value) == self.records[position].value => {
                    compared.equal.push((position, -1));
                }
                Answer::Text(_) | Answer::Skipped(_) => compared.rewritten += 1,
                _ => compared.gone += 1,
            }
        }
        let lives: Vec<i64> = answers.map(|life| if let Answer::Number(life) = life { life } else { -1 }).collect();
        for (position, life) in &mut compared.equal {
            *life = lives.get(*position - chunk.range.start).copied().unwrap_or(-1);
        }
        Ok(compared)
    }

    fn commit(&self, compared: &Compared, commands: &mut Commands) {
        if compared.equal.is_empty() {
            commands.add(&["UNWATCH"]);
            return;
        }
        commands.add(&["MULTI"]);
        match self.after {
            AfterUpload::Delete => {
                let keys: Vec<&str> =
                    compared.equal.iter().map(|(position, _)| &*self.records[*position].key).collect();
                commands.list("UNLINK", &keys);
            }
            AfterUpload::Keep => {
                let prefix = names::sent(&self.lease.queue);
                for (position, life) in &compared.equal {
                    let Sent { key, value, .. } = &self.records[*position];
                    commands.begin(if *life > 0 { 5 } else { 3 });
                    commands.word("SET");
                    commands.word(format!("{prefix}{key}"));
                    commands.word(value.0);
                    if *life > 0 {
                        commands.word("PX");
                        commands.word(life.to_string());
                    }
                }
            }
        }
        commands.add(&["EXEC"]);
    }

    fn verdict(&self, answers: &[Answer]) -> Result<Verdict, CacheError> {
        let refused = answers.iter().find_map(|answer| match answer {
            Answer::Error(error) => Some(errors::from_server(&self.database.server, error)),
            _ => None,
        });
        match (refused, answers.last()) {
            // MULTI queues nothing above maxmemory.
            (Some(CacheError::Full { reason, .. }), _) if reason.contains("OOM") => Ok(Verdict::TooFull),
            (Some(error), _) => Err(error),
            (None, Some(Answer::Nil)) => Ok(Verdict::Touched),
            (None, Some(Answer::List(done))) => {
                match done.iter().find_map(|one| if let Answer::Error(error) = one { Some(error) } else { None }) {
                    Some(error) => Err(errors::from_server(&self.database.server, error)),
                    None => Ok(Verdict::Settled),
                }
            }
            (None, _) => Ok(Verdict::Settled),
        }
    }

    /// Counts a chunk, or puts it back. Answers with what a full Redis would not let go that way.
    fn settle(&self, compared: Compared, verdict: Verdict, tally: &mut Released) -> Option<Range<usize>> {
        let Chunk { range, tries } = compared.chunk;
        match verdict {
            Verdict::Settled => {
                tally.done += compared.equal.len() as u64;
                tally.rewritten += compared.rewritten;
                tally.gone += compared.gone;
            }
            Verdict::Touched if range.len() > 1 => {
                let middle = range.start + range.len() / 2;
                let mut chunks = self.chunks();
                chunks.push_front(Chunk { range: middle..range.end, tries: 0 });
                chunks.push_front(Chunk { range: range.start..middle, tries: 0 });
            }
            Verdict::Touched if tries < TRIES => self.chunks().push_front(Chunk { range, tries: tries + 1 }),
            // Somebody writes it all the time: it stays, and so does the entry that says so.
            Verdict::Touched => tally.rewritten += 1,
            Verdict::TooFull => return Some(range),
        }
        None
    }

    /// The way for a full Redis: a script may delete where `MULTI` is refused, and compares with the values themselves.
    async fn send_back(&self, range: Range<usize>, tally: &mut Released) -> Result<(), CacheError> {
        let records = &self.records[range];
        let keep = if self.after == AfterUpload::Keep { names::sent(&self.lease.queue) } else { String::new() };
        let mut start = 0;
        while start < records.len() {
            let keys: Vec<&str> = records[start..].iter().map(|record| &*record.key).collect();
            let stored = read::read(self.database, &keys, u64::MAX, BACK_AT_A_TIME).await?;
            let seen = &records[start..start + stored.len()];
            start += stored.len();
            let mut equal = Vec::with_capacity(stored.len());
            for (value, record) in stored.into_iter().zip(seen) {
                match value {
                    Stored::Value(value) if Digest::of(&value) == record.value => equal.push((record, value)),
                    Stored::Missing | Stored::WrongType(_) => tally.gone += 1,
                    _ => tally.rewritten += 1,
                }
            }
            if equal.is_empty() {
                continue;
            }
            let mut keys = vec![&self.names.lease[..]];
            keys.extend(equal.iter().map(|(record, _)| &*record.key));
            let answer = script::RELEASE
                .run(self.database, self.lease, &keys, |command| {
                    command.arg(&keep);
                    for (record, value) in &equal {
                        command.arg(&value[..]).arg(&record.value.0[..]);
                    }
                })
                .await?;
            let done = number(&answer);
            tally.done += done;
            tally.rewritten += (equal.len() as u64).saturating_sub(done);
        }
        Ok(())
    }

    fn chunks(&self) -> std::sync::MutexGuard<'_, VecDeque<Chunk>> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a step failed: the connection did, or Redis said something that ends the release.
enum Trouble {
    Lane(RedisError),
    Cache(CacheError),
}

impl From<RedisError> for Trouble {
    fn from(error: RedisError) -> Self {
        Self::Lane(error)
    }
}

impl From<CacheError> for Trouble {
    fn from(error: CacheError) -> Self {
        Self::Cache(error)
    }
}
