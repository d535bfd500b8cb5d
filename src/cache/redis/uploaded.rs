//! Which keys were uploaded and deleted lately: packed hashes, one string for each batch, read piece by piece.

use std::collections::HashMap;

use ::redis::cmd;

use super::link::Database;
use super::names::{self, bytes, members, text};
use super::release::hash;
use crate::cache::{CacheError, QueueRef};

/// Bytes of hashes at a time: a multiple of a hash's eight.
const PIECE: usize = 1 << 20;

/// See [`crate::cache::UploadCache::uploaded`].
pub(super) async fn uploaded(database: &Database, queue: &QueueRef, keys: &[&str]) -> Result<Vec<bool>, CacheError> {
    let mut found = vec![false; keys.len()];
    let mut wanted: HashMap<u64, Vec<usize>> = HashMap::with_capacity(keys.len());
    for (position, key) in keys.iter().enumerate() {
        wanted.entry(hash(key)).or_default().push(position);
    }
    if wanted.is_empty() {
        return Ok(found);
    }
    let mut command = cmd("ZRANGE");
    command.arg(names::index(queue)).arg(0).arg(-1);
    // Newest first: a key that is named twice in a queue is mostly named twice within minutes.
    for batch in members(database.ask_one(command).await?).into_iter().rev() {
        let key = names::uploaded(queue, &text(&batch));
        let mut start = 0;
        loop {
            let mut command = cmd("GETRANGE");
            command.arg(&key).arg(start).arg(start + PIECE - 1);
            let piece = bytes(database.ask_one(command).await?).unwrap_or_default();
            for hash in piece.chunks_exact(8) {
                let hash = u64::from_be_bytes(hash.try_into().expect("a chunk is eight bytes"));
                for position in wanted.remove(&hash).unwrap_or_default() {
                    found[position] = true;
                }
            }
            if wanted.is_empty() {
                return Ok(found);
            }
            start += piece.len();
            if piece.len() < PIECE {
                break;
            }
        }
    }
    Ok(found)
}
