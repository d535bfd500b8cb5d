//! Reading records, in requests that are as large as the records of a queue allow, and keeping no more of them than was granted.

use std::sync::atomic::{AtomicUsize, Ordering};

use ::redis::Pipeline;
use futures_util::future::try_join_all;

use super::errors;
use super::link::{Database, Repeat};
use super::names::{bytes, text};
use super::wire::{Answer, Commands};
use crate::cache::{CacheError, Stored};

/// The most keys of one request: Redis answers this many in a fifth of a millisecond, and has time for others then. An upload is as
/// fast with 250, but others wait a fifth longer.
const KEYS_AT_A_TIME: usize = 125;
/// The most requests that are under way at a time.
const REQUESTS: usize = 4;
/// Bytes of values that a request should bring.
const REQUEST_BYTES: usize = 512 << 10;

/// How often a key is looked at that is written between the looks.
const TRIES: u32 = 8;

/// How many keys to ask for at a time, by the lengths of the values that came last. Redis has to hold the whole of an answer,
/// so the first requests are small, and after long values they are small again.
#[derive(Debug)]
pub(super) struct Pace {
    keys: AtomicUsize,
    /// Bytes of a value.
    mean: AtomicUsize,
}

impl Default for Pace {
    fn default() -> Self {
        Self { keys: AtomicUsize::new(8), mean: AtomicUsize::new(0) }
    }
}

impl Pace {
    fn keys(&self) -> usize {
        self.keys.load(Ordering::Relaxed)
    }

    /// How many requests to send at once for `max_total` bytes: each has room for a value, or it would be read in vain.
    fn requests(&self, max_total: u64) -> usize {
        let one = REQUEST_BYTES.max(self.mean.load(Ordering::Relaxed)) as u64;
        usize::try_from(max_total / one).map_or(REQUESTS, |fitting| fitting.clamp(1, REQUESTS))
    }

    /// Requests brought so many values, of so many bytes together.
    fn learn(&self, values: usize, bytes: usize) {
        let mean = bytes / values.max(1);
        self.mean.store(mean, Ordering::Relaxed);
        let fitting = REQUEST_BYTES / mean.max(1);
        self.keys.store(fitting.clamp(1, KEYS_AT_A_TIME.min(2 * self.keys())), Ordering::Relaxed);
    }
}

/// See [`crate::cache::UploadCache::read`].
pub(super) async fn read(
    database: &Database,
    keys: &[&str],
    max_value: u64,
    max_total: u64,
) -> Result<Vec<Stored>, CacheError> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    for _ in 0..TRIES {
        let stored = attempt(database, keys, max_value, max_total).await?;
        // Empty if the first key was written between two looks at it.
        if !stored.is_empty() {
            return Ok(stored);
        }
    }
    let reason = format!("{:?} comes and goes faster than it can be read", keys[0]);
    Err(CacheError::Unreachable { server: database.server.clone(), reason })
}

async fn attempt(
    database: &Database,
    keys: &[&str],
    max_value: u64,
    max_total: u64,
) -> Result<Vec<Stored>, CacheError> {
    let at_a_time = database.pace.keys();
    let requests = database.pace.requests(max_total);
    // Over several connections, because Redis writes 64 KiB to each before it looks at the next.
    let parts = keys.chunks(at_a_time).take(requests).enumerate().map(async |(number, keys)| {
        let mut left = max_total / requests as u64;
        // The very first may be as long as it likes, or a long one would never come.
        let mut first = number == 0;
        let keep = |length: usize| {
            let length = length as u64;
            let fits = length <= max_value && (length <= left || first);
            if fits {
                (left, first) = (left.saturating_sub(length), false);
            }
            fits
        };
        values(database, keys, keep).await
    });
    let mut stored = Vec::with_capacity(requests * at_a_time);
    let (mut silent, mut long, mut total) = (Vec::new(), None, 0);
    for (position, answer) in try_join_all(parts).await?.into_iter().flatten().enumerate() {
        stored.push(match answer {
            Answer::Text(value) => {
                total += value.len();
                Stored::Value(value)
            }
            Answer::Skipped(length) => {
                total += length;
                if length as u64 <= max_value {
                    long = long.or(Some(position));
                }
                Stored::TooLarge(length as u64)
            }
            _ => {
                silent.push(position);
                Stored::Missing
            }
        });
    }
    database.pace.learn(stored.len(), total);
    // The answer ends before the first value that does not fit any more.
    stored.truncate(long.unwrap_or(stored.len()));
    silent.retain(|position| *position < stored.len());
    name_the_silent(database, keys, &silent, &mut stored).await?;
    Ok(stored)
}

/// The values of some keys; those that `keep` does not want by their length are skipped.
async fn values(
    database: &Database,
    keys: &[&str],
    mut keep: impl FnMut(usize) -> bool + Send,
) -> Result<Vec<Answer>, CacheError> {
    let mut commands = Commands::default();
    commands.list("MGET", keys);
    match database.send_many(&commands, &mut keep).await?.pop() {
        Some(Answer::List(values)) if values.len() == keys.len() => Ok(values),
        Some(Answer::Error(error)) => Err(errors::from_server(&database.server, &error)),
        _ => Err(errors::not_a_redis(&database.server, "MGET without a list")),
    }
}

/// Finds out whether nil is a missing key or something else than a string. If a string is there now, the answer ends before it.
async fn name_the_silent(
    database: &Database,
    keys: &[&str],
    silent: &[usize],
    stored: &mut Vec<Stored>,
) -> Result<(), CacheError> {
    if silent.is_empty() {
        return Ok(());
    }
    let mut commands = Pipeline::with_capacity(silent.len());
    for position in silent {
        commands.cmd("TYPE").arg(keys[*position]);
    }
    let answers = database.ask(&commands, Repeat::Harmless).await?;
    for (position, answer) in silent.iter().zip(answers) {
        let kind = bytes(answer).unwrap_or_default();
        match &kind[..] {
            b"none" => {}
            b"string" => {
                stored.truncate(*position);
                break;
            }
            other => stored[*position] = Stored::WrongType(text(other)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_grow_by_doubling_and_shrink_at_once() {
        let pace = Pace::default();
        let mut grown = vec![pace.keys()];
        while grown.len() < 6 {
            pace.learn(pace.keys(), 1_000 * pace.keys());
            grown.push(pace.keys());
        }
        assert_eq!(grown, [8, 16, 32, 64, 125, 125]);
        pace.learn(125, 125 * 50_000);
        assert_eq!(pace.keys(), 10, "half a megabyte of such values");
        assert_eq!(pace.requests(2 << 20), 4);
        pace.learn(10, 10 * 1_000_000);
        assert_eq!((pace.keys(), pace.requests(2 << 20)), (1, 2), "one value each, of two that fit");
        pace.learn(10, 10 * 5_000_000);
        assert_eq!((pace.keys(), pace.requests(2 << 20)), (1, 1));
        pace.learn(1, 0);
        assert_eq!(pace.keys(), 2);
    }
}
