//! Reading records: a bounded piece of each first, so that no value, however long, takes more memory than was granted.

use ::redis::{Pipeline, Value};
use futures_util::future::try_join_all;

use super::errors;
use super::link::{Database, Repeat};
use super::names::{bytes, number, text};
use super::wire::Commands;
use crate::cache::{CacheError, Stored};

/// The most keys of one request: Redis answers this many in 0.3 milliseconds, and has time for others then.
const KEYS_AT_A_TIME: usize = 250;
/// The most keys of one call.
const KEYS: usize = 1_000;
/// No piece is shorter than this, or ordinary records would need a second request.
const SHORTEST_PIECE: u64 = 4_096;
/// Nor longer.
const LONGEST_PIECE: u64 = 65_536;

/// See [`crate::cache::UploadCache::read`].
pub(super) async fn read(
    database: &Database,
    keys: &[&str],
    max_value: u64,
    max_total: u64,
) -> Result<Vec<Stored>, CacheError> {
    // As many keys as fit if every value is longer than a piece, and at least one.
    let fitting = usize::try_from(max_total / SHORTEST_PIECE).unwrap_or(usize::MAX).max(1);
    let keys = &keys[..keys.len().min(KEYS).min(fitting)];
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let piece = (max_total / keys.len() as u64).clamp(SHORTEST_PIECE, LONGEST_PIECE).min(max_value.saturating_add(1));

    // Over several connections, because Redis writes 64 KiB to each before it looks at the next.
    let parts = keys.chunks(KEYS_AT_A_TIME).map(async |keys| {
        let mut commands = Commands::default();
        heads(&mut commands, keys.iter().copied(), piece);
        database.send_many(&commands, Repeat::Harmless).await
    });
    let answers = try_join_all(parts).await?;
    let mut stored = Vec::with_capacity(keys.len());
    let (mut silent, mut long) = (Vec::new(), Vec::new());
    for (position, answer) in answers.into_iter().flatten().enumerate() {
        stored.push(match answer {
            Value::ServerError(error) if error.code() == "WRONGTYPE" => {
                silent.push(position);
                Stored::WrongType(String::new())
            }
            Value::ServerError(error) => return Err(errors::from_server(&database.server, &error)),
            answer => {
                let value = bytes(answer).unwrap_or_default();
                if value.is_empty() {
                    silent.push(position);
                } else if value.len() as u64 >= piece {
                    long.push(position);
                }
                Stored::Value(value)
            }
        });
    }
    long.extend(name_the_silent(database, keys, &silent, &mut stored).await?);
    long.sort_unstable();
    fetch_the_long(database, keys, &long, &mut stored, max_value, max_total).await?;
    Ok(stored)
}

/// Asks for the first `piece` bytes of each key's value. The answer is empty for a missing key, an error for what is no string.
pub(super) fn heads<'k>(commands: &mut Commands, keys: impl Iterator<Item = &'k str>, piece: u64) {
    let last = (piece - 1).to_string();
    for key in keys {
        commands.add(&["GETRANGE", key, "0", &last]);
    }
}

/// Finds out whether an empty answer is a missing key, something else than a string, or a value that was empty or not there a
/// moment ago. Answers with the positions of the last, which are to be read again.
async fn name_the_silent(
    database: &Database,
    keys: &[&str],
    silent: &[usize],
    stored: &mut [Stored],
) -> Result<Vec<usize>, CacheError> {
    let mut again = Vec::new();
    if silent.is_empty() {
        return Ok(again);
    }
    let mut commands = Pipeline::with_capacity(silent.len());
    for position in silent {
        commands.cmd("TYPE").arg(keys[*position]);
    }
    let answers = database.ask(&commands, Repeat::Harmless).await?;
    for (position, answer) in silent.iter().zip(answers) {
        let kind = bytes(answer).unwrap_or_default();
        match &kind[..] {
            b"none" => stored[*position] = Stored::Missing,
            b"string" => again.push(*position),
            other => stored[*position] = Stored::WrongType(text(other)),
        }
    }
    Ok(again)
}

/// Fetches values of which only a piece or nothing has come, as far as `max_total` allows; the answer ends before the first that does
/// not fit.
async fn fetch_the_long(
    database: &Database,
    keys: &[&str],
    long: &[usize],
    stored: &mut Vec<Stored>,
    max_value: u64,
    max_total: u64,
) -> Result<(), CacheError> {
    if long.is_empty() {
        return Ok(());
    }
    let mut commands = Pipeline::with_capacity(long.len());
    for position in long {
        commands.cmd("STRLEN").arg(keys[*position]);
    }
    let lengths = database.send(&commands, Repeat::Harmless).await?;
    let mut lengths = long.iter().copied().zip(lengths).peekable();
    let (mut total, mut wanted, mut end) = (0_u64, Vec::new(), stored.len());
    for (position, one) in stored.iter_mut().enumerate() {
        let mut length = match one {
            Stored::Value(value) => value.len() as u64,
            _ => 0,
        };
        if let Some((_, answer)) = lengths.next_if(|(long, _)| *long == position) {
            // An error, if the key has become a list meanwhile: then it is fetched below, comes back as nil, and is missing.
            length = number(&answer);
            if length > max_value {
                *one = Stored::TooLarge(length);
                continue;
            }
            wanted.push(position);
        }
        total = total.saturating_add(length);
        if total > max_total && position > 0 {
            end = position;
            break;
        }
    }
    stored.truncate(end);
    wanted.retain(|position| *position < end);
    if wanted.is_empty() {
        return Ok(());
    }
    let mut command = ::redis::cmd("MGET");
    for position in &wanted {
        command.arg(keys[*position]);
    }
    let answer = database.ask_one(command).await?;
    let Value::Array(values) = answer else { return Err(errors::not_a_redis(&database.server, "MGET without a list")) };
    for (position, value) in wanted.into_iter().zip(values) {
        stored[position] = match bytes(value) {
            Some(value) if value.len() as u64 > max_value => Stored::TooLarge(value.len() as u64),
            Some(value) => Stored::Value(value),
            None => Stored::Missing,
        };
    }
    Ok(())
}
