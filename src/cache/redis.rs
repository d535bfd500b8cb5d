//! The cache in Redis. What is in which key is written in `cache/mod.rs`; what happens in one atomic step is a Lua script in
//! `redis/lua`; reading and releasing records are in `redis/read.rs` and `redis/release.rs`; connections are in `redis/link.rs` and
//! `redis/wire.rs`.

mod errors;
mod link;
mod names;
mod read;
mod release;
mod script;
mod sealed;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use ::redis::{Cmd, Pipeline, cmd};
use async_trait::async_trait;
use bytes::Bytes;
use secrecy::SecretString;

use self::link::{Database, Link, Repeat};
use self::names::{Names, bytes, members, millis, number, text};
use self::wire::Answer;
use super::{
    AfterUpload, CLAIM_LIMIT, CacheError, Digest, FINISHED_FOR, Inflight, Lease, Mark, Produced, QueueRef, Reading,
    Released, Rival, Sent, Stored, UPLOADED_FOR, UploadCache, Uploaded,
};

/// Entries, positions or records in one command, where there may be many: small enough for Lua's stack and Redis's clients.
const AT_A_TIME: usize = 1_000;

/// Where the Redis is, and how long to wait for it.
#[derive(Debug, Clone)]
pub struct RedisSettings {
    /// `redis://user:password@host:port/database`, or `rediss://` for TLS. The database is where [`UploadCache::ping`] asks;
    /// queues name their own.
    pub url: SecretString,
    /// The longest wait for a connection, and for a server that was there a moment ago to come back.
    pub connect_timeout: Duration,
    /// The longest wait for an answer.
    pub response_timeout: Duration,
}

impl RedisSettings {
    /// The usual patience: 5 s for a connection, 10 s for an answer.
    pub fn new(url: impl Into<SecretString>) -> Self {
        Self { url: url.into(), connect_timeout: Duration::from_secs(5), response_timeout: Duration::from_secs(10) }
    }
}

/// The cache in Redis. Connects when it is first asked, and again whenever a connection is lost.
pub struct RedisCache {
    link: Link,
}

impl RedisCache {
    /// A cache at an address; nothing is sent yet.
    ///
    /// # Errors
    /// [`CacheError::Refused`] if the URL cannot be read.
    pub fn new(settings: &RedisSettings) -> Result<Self, CacheError> {
        Ok(Self { link: Link::new(settings)? })
    }

    /// Host and port, without user and password.
    pub fn address(&self) -> &str {
        self.link.address()
    }

    fn of(&self, lease: &Lease) -> Result<(Arc<Database>, Names), CacheError> {
        Ok((self.link.database(lease.queue.database)?, Names::of(lease)))
    }
}

#[async_trait]
impl UploadCache for RedisCache {
    async fn ping(&self) -> Result<(), CacheError> {
        self.link.database(self.link.default_database())?.ask_one(cmd("PING")).await.map(drop)
    }

    async fn depth(&self, queue: &QueueRef) -> Result<u64, CacheError> {
        let answer = self.link.database(queue.database)?.ask_one(with("LLEN", &queue.queue)).await?;
        Ok(number(&answer))
    }

    async fn peek(&self, queue: &QueueRef, skip: u64, count: u32) -> Result<Vec<Bytes>, CacheError> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let skip = i64::try_from(skip).unwrap_or(i64::MAX / 2);
        let mut command = with("LRANGE", &queue.queue);
        command.arg(-skip - i64::from(count)).arg(-skip - 1);
        let mut entries = members(self.link.database(queue.database)?.ask_one(command).await?);
        entries.reverse();
        Ok(entries)
    }

    async fn inflight(&self, queue: &QueueRef) -> Result<Vec<Inflight>, CacheError> {
        let database = self.link.database(queue.database)?;
        let mut batches = members(database.ask_one(with("SMEMBERS", &names::registry(queue))).await?);
        batches.sort_unstable();
        let mut found = Vec::with_capacity(batches.len());
        for some in batches.chunks(AT_A_TIME) {
            let mut commands = Pipeline::with_capacity(2 * some.len());
            for batch in some {
                let list = names::list(queue, &text(batch));
                commands.cmd("LLEN").arg(&list).cmd("EXISTS").arg(format!("{list}:lease"));
            }
            let answers = database.ask(&commands, Repeat::Harmless).await?;
            found.extend(some.iter().zip(answers.chunks_exact(2)).map(|(batch, answers)| Inflight {
                batch: text(batch),
                entries: number(&answers[0]),
                leased: number(&answers[1]) > 0,
            }));
        }
        Ok(found)
    }

    async fn claim(&self, lease: &Lease, count: u32) -> Result<Vec<Bytes>, CacheError> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let (database, names) = self.of(lease)?;
        let keys = [&names.lease[..], &lease.queue.queue, &names.registry, &names.list, &names.state];
        let call = call_number();
        let more = |command: &mut Cmd| {
            command.arg(&lease.batch).arg(count.min(CLAIM_LIMIT)).arg(&call);
        };
        Ok(members(script::CLAIM.run(&database, lease, &keys, more).await?))
    }

    async fn adopt(&self, lease: &Lease) -> Result<bool, CacheError> {
        let (database, names) = self.of(lease)?;
        let call = call_number();
        let more = |command: &mut Cmd| {
            command.arg(&lease.batch).arg(&call);
        };
        let keys = [&names.lease[..], &names.registry, &names.state];
        Ok(number(&script::ADOPT.run(&database, lease, &keys, more).await?) == 1)
    }

    async fn renew(&self, lease: &Lease) -> Result<(), CacheError> {
        let (database, names) = self.of(lease)?;
        script::RENEW.run(&database, lease, &[&names.lease], |_| {}).await.map(drop)
    }

    async fn release_lease(&self, lease: &Lease) -> Result<(), CacheError> {
        let (database, names) = self.of(lease)?;
        script::LET_GO.run(&database, lease, &[&names.lease], |_| {}).await.map(drop)
    }

    async fn entries(&self, lease: &Lease, start: u64, count: u32) -> Result<Vec<Bytes>, CacheError> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let (database, names) = self.of(lease)?;
        let mut command = with("LRANGE", &names.list);
        command.arg(start).arg(start.saturating_add(u64::from(count)) - 1);
        Ok(members(database.ask_one(command).await?))
    }

    async fn read(
        &self,
        database: u16,
        keys: &[&str],
        max_value: u64,
        max_total: u64,
    ) -> Result<Vec<Stored>, CacheError> {
        let database = self.link.database(database)?;
        read::read(&database, keys, max_value, max_total).await
    }

    async fn begin_reading(&self, lease: &Lease, note: &str) -> Result<u32, CacheError> {
        let (database, names) = self.of(lease)?;
        let call = call_number();
        let more = |command: &mut Cmd| {
            command.arg(&call).arg(note);
        };
        let answer = script::BEGIN.run(&database, lease, &[&names.lease, &names.state, &names.sequence], more).await?;
        Ok(u32::try_from(number(&answer)).unwrap_or(u32::MAX))
    }

    async fn seal(&self, lease: &Lease, reading: u32) -> Result<Vec<Rival>, CacheError> {
        sealed::seal(&*self.link.database(lease.queue.database)?, lease, reading).await
    }

    async fn rival_marks(
        &self,
        queue: &QueueRef,
        rival: &Rival,
        start: u64,
        count: u32,
    ) -> Result<Vec<Mark>, CacheError> {
        sealed::rival_marks(&*self.link.database(queue.database)?, queue, rival, start, count).await
    }

    async fn readings(&self, lease: &Lease) -> Result<Vec<Reading>, CacheError> {
        let (database, names) = self.of(lease)?;
        let fields = members(database.ask_one(with("HGETALL", &names.state)).await?);
        let mut readings: Vec<Reading> = fields
            .chunks_exact(2)
            .filter_map(|field| {
                let number = std::str::from_utf8(&field[0]).ok()?.strip_prefix("reading:")?.parse().ok()?;
                Some(Reading { number, note: text(&field[1]) })
            })
            .collect();
        readings.sort_unstable_by_key(|reading| reading.number);
        Ok(readings)
    }

    async fn append_marks(&self, lease: &Lease, reading: u32, start: u64, marks: &[Mark]) -> Result<(), CacheError> {
        let (database, names) = self.of(lease)?;
        let mut stored = Vec::with_capacity(marks.len() * Mark::SIZE);
        for mark in marks {
            mark.write(&mut stored);
        }
        let more = |command: &mut Cmd| {
            command.arg(start.saturating_mul(Mark::SIZE as u64)).arg(&stored[..]);
        };
        let key = format!("{}{reading}", names.marks());
        script::MARK.run(&database, lease, &[&names.lease, &key], more).await.map(drop)
    }

    async fn marks(&self, lease: &Lease, reading: u32, start: u64, count: u32) -> Result<Vec<Mark>, CacheError> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let (database, names) = self.of(lease)?;
        let size = Mark::SIZE as u64;
        let mut command = with("GETRANGE", &format!("{}{reading}", names.marks()));
        command.arg(start.saturating_mul(size)).arg(start.saturating_add(u64::from(count)).saturating_mul(size) - 1);
        let stored = bytes(database.ask_one(command).await?).unwrap_or_default();
        Ok(Mark::read_all(&stored).collect())
    }

    async fn bury(&self, lease: &Lease, positions: &[u32]) -> Result<(), CacheError> {
        let (database, names) = self.of(lease)?;
        for some in positions.chunks(AT_A_TIME) {
            let more = |command: &mut Cmd| {
                command.arg(some);
            };
            script::BURY.run(&database, lease, &[&names.lease, &names.buried], more).await?;
        }
        Ok(())
    }

    async fn buried(&self, lease: &Lease) -> Result<Vec<u32>, CacheError> {
        let (database, names) = self.of(lease)?;
        let positions = members(database.ask_one(with("SMEMBERS", &names.buried)).await?);
        let mut positions: Vec<u32> = positions.iter().filter_map(|position| text(position).parse().ok()).collect();
        positions.sort_unstable();
        Ok(positions)
    }

    async fn release(&self, lease: &Lease, records: &[Sent<'_>], after: AfterUpload) -> Result<Released, CacheError> {
        release::release(&*self.link.database(lease.queue.database)?, lease, records, after).await
    }

    async fn uploaded(&self, queue: &QueueRef, keys: &[&str]) -> Result<Vec<Uploaded>, CacheError> {
        sealed::uploaded(&*self.link.database(queue.database)?, queue, keys).await
    }

    async fn sent(&self, queue: &QueueRef, keys: &[&str]) -> Result<Vec<Option<Digest>>, CacheError> {
        let database = self.link.database(queue.database)?;
        let prefix = names::sent(queue);
        let mut digests = Vec::with_capacity(keys.len());
        for some in keys.chunks(AT_A_TIME) {
            let mut command = cmd("MGET");
            for key in some {
                command.arg(format!("{prefix}{key}"));
            }
            let Answer::List(values) = database.ask_one(command).await? else {
                return Err(errors::not_a_redis(&database.server, "MGET without a list"));
            };
            digests.extend(values.into_iter().map(|value| bytes(value)?[..].try_into().ok().map(Digest)));
        }
        Ok(digests)
    }

    async fn finish(&self, lease: &Lease, loaded: &[u32], unsettled: &[Bytes]) -> Result<(), CacheError> {
        let (database, names) = self.of(lease)?;
        let mut successor = String::new();
        if !unsettled.is_empty() {
            let fresh = super::successor_of(&lease.batch);
            let noted = script::CARRY
                .run(&database, lease, &[&names.lease, &names.state], |command| {
                    command.arg(&fresh);
                })
                .await?;
            successor = bytes(noted).map(|name| text(&name)).unwrap_or_default();
            if successor == "FINISHED" {
                return Ok(());
            }
            // Not registered yet: until the last step nobody sees it, and the state names it to whoever starts over.
            let list = names::list(&lease.queue, &successor);
            for (chunk, some) in unsettled.chunks(AT_A_TIME).enumerate() {
                let more = |command: &mut Cmd| {
                    command.arg(chunk * AT_A_TIME);
                    for entry in some {
                        command.arg(&entry[..]);
                    }
                };
                script::PUSH.run(&database, lease, &[&names.lease, &list], more).await?;
            }
        }
        let (marks, uploaded) = (names.marks(), names::uploaded(&lease.queue));
        let Names { lease: held, registry, list, state, buried, sequence, sealed, finished } = &names;
        let keys = [&held[..], registry, list, state, buried, sequence, sealed, finished];
        let more = |command: &mut Cmd| {
            command.arg(&lease.batch).arg(millis(FINISHED_FOR)).arg(millis(UPLOADED_FOR));
            command.arg(&successor).arg(unsettled.len());
            command.arg(names::list(&lease.queue, "")).arg(&marks).arg(&uploaded).arg(loaded);
        };
        script::FINISH.run(&database, lease, &keys, more).await.map(drop)
    }

    async fn requeue(
        &self,
        queue: &QueueRef,
        entry: &[u8],
        key: &str,
        value: Option<&[u8]>,
        ttl: Duration,
    ) -> Result<(), CacheError> {
        let mut commands = Pipeline::with_capacity(4);
        commands.cmd("MULTI");
        if let Some(value) = value {
            commands.cmd("SET").arg(key).arg(value).arg("PX").arg(millis(ttl)).arg("NX");
        }
        commands.cmd("LPUSH").arg(&queue.queue).arg(entry).cmd("EXEC");
        let database = self.link.database(queue.database)?;
        let answers = database.ask(&commands, Repeat::Never).await?;
        match answers.last() {
            Some(Answer::List(done)) => match done.iter().find_map(as_error) {
                Some(error) => Err(errors::from_server(&database.server, error)),
                None => Ok(()),
            },
            _ => Err(errors::not_a_redis(&database.server, "EXEC without a list")),
        }
    }

    async fn produce(&self, queue: &QueueRef, records: &[Produced], ttl: Duration) -> Result<(), CacheError> {
        let database = self.link.database(queue.database)?;
        for some in records.chunks(AT_A_TIME) {
            let mut commands = Pipeline::with_capacity(2 * some.len());
            for record in some {
                if let Some(value) = &record.value {
                    commands.cmd("SETEX").arg(&record.key).arg(ttl.as_secs().max(1)).arg(&value[..]);
                }
                commands.cmd("LPUSH").arg(&queue.queue).arg(&record.entry[..]);
            }
            database.ask(&commands, Repeat::Never).await?;
        }
        Ok(())
    }
}

fn with(name: &str, key: &str) -> Cmd {
    let mut command = cmd(name);
    command.arg(key);
    command
}

fn as_error(answer: &Answer) -> Option<&::redis::ServerError> {
    if let Answer::Error(error) = answer { Some(error) } else { None }
}

/// Tells a call from every other, so that a script knows one that is sent again because its answer got lost.
fn call_number() -> String {
    format!("{:016x}", fastrand::u64(..))
}
