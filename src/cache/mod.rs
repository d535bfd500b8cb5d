//! What producers filled: records under keys, and the queues that name the records still to be uploaded.
//!
//! [`UploadCache`] is all that the upload needs of a cache. Everything it must remember between two instructions lives in
//! the cache itself, beside the queue, because the machine that runs us may vanish at any of them:
//!
//! | key | type | holds |
//! |---|---|---|
//! | `{queue}` | list | the producer's queue, newest at the head |
//! | `{queue}:inflight` | set | the batches that somebody has claimed |
//! | `{queue}:inflight:{batch}` | list | the claimed entries, oldest first |
//! | `{queue}:inflight:{batch}:lease` | string with a TTL | who works on the batch; gone when the owner died. For a day after the end: `finished:{owner}`, so that a process that slept through it cannot begin the batch again |
//! | `{queue}:inflight:{batch}:state` | hash | the readings made so far, what the sequence was when each began, the batch that unsettled entries move to, and the numbers of the last calls, so that a repeated one changes nothing |
//! | `{queue}:inflight:{batch}:marks:{reading}` | string | one [`Mark`] for each entry, in the order of the list |
//! | `{queue}:inflight:{batch}:buried` | set | positions of entries that the warehouse refused |
//! | `{queue}:sequence` | number | counts sealings and finishings |
//! | `{queue}:sealed` | sorted set | `{batch}:{reading}` of sealed readings of unfinished batches, by the number of the sealing |
//! | `{queue}:finished` | sorted set with a TTL | `{batch}:{reading}:{number of the sealing}` of loaded readings of finished batches, by the number of the finishing |
//! | `{queue}:uploaded:{batch}:{reading}` | string with a TTL | the marks of such a reading |
//! | `{queue}:sent:{key}` | string with a TTL | the digest last uploaded, for records that are kept |

mod redis;
mod sqlite;

pub use self::redis::{RedisCache, RedisSettings};
pub use self::sqlite::SqliteCache;

use std::borrow::Cow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

/// The most that one [`UploadCache::claim`] moves. Redis does nothing else meanwhile; this many take it about half a
/// millisecond.
pub const CLAIM_LIMIT: u32 = 1_000;

/// How long [`UploadCache::uploaded`] remembers a reading.
const UPLOADED_FOR: Duration = Duration::from_secs(2 * 24 * 60 * 60);

/// How long a finished batch cannot be begun again.
const FINISHED_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// A queue, and the Redis database that holds it and its records.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueRef {
    /// Number of the database, 0 to 15 on an ordinary Redis.
    pub database: u16,
    /// Name of the list.
    pub queue: String,
}

impl fmt::Display for QueueRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (database {})", self.queue, self.database)
    }
}

/// The right to work on one batch of one queue, until `ttl` has passed without a renewal.
#[derive(Debug, Clone)]
pub struct Lease {
    /// The queue that the batch was taken from.
    pub queue: QueueRef,
    /// The batch: a ULID, so batches sort by age.
    pub batch: String,
    /// Who holds it: unique for each process.
    pub owner: String,
    /// How long it lasts without [`UploadCache::renew`].
    pub ttl: Duration,
}

/// A batch that somebody claimed and has not finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inflight {
    /// The batch's ULID.
    pub batch: String,
    /// How many entries it holds.
    pub entries: u64,
    /// Whether its owner is alive: the lease has not ended.
    pub leased: bool,
}

/// What a key holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// The record's bytes.
    Value(Bytes),
    /// Nothing: never written, expired, evicted, or deleted.
    Missing,
    /// A list, hash, set, …, where a string was expected; the type's name.
    WrongType(String),
    /// A string longer than the limit; its length in bytes. It was not fetched.
    TooLarge(u64),
}

/// 64 bits that stand for a value: XXH3. Two versions of one record share a digest once in 10^19 times.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Digest(pub [u8; 8]);

impl Digest {
    /// The digest of `value`.
    pub fn of(value: &[u8]) -> Self {
        Self(xxhash_rust::xxh3::xxh3_64(value).to_be_bytes())
    }
}

impl Hash for Digest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(u64::from_ne_bytes(self.0));
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

/// What one reading of a batch did with one entry. Stored as [`Mark::SIZE`] bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Not this reading's business: another table's, or refused by the warehouse before.
    Untouched,
    /// Its value went into the load of the reading's table number `table`.
    Sent {
        /// Position of the table in the reading's list of tables.
        table: u8,
        /// The digest of the record's key.
        key: Digest,
        /// The digest of what was sent.
        value: Digest,
        /// Its length in bytes is less than two to the power of this.
        magnitude: u8,
    },
    /// Needs no row: named twice in the batch, uploaded before, or kept as a dead letter.
    Settled,
    /// Could be neither sent nor settled now: it must stay in flight.
    Unsettled,
}

impl Mark {
    /// Bytes of one stored mark: a tag, a table number, two digests, a magnitude.
    pub const SIZE: usize = 19;

    /// Appends the stored form to `out`.
    pub fn write(self, out: &mut Vec<u8>) {
        let none = Digest::default();
        let (tag, table, key, value, magnitude) = match self {
            Self::Untouched => (0, 0, none, none, 0),
            Self::Sent { table, key, value, magnitude } => (1, table, key, value, magnitude),
            Self::Settled => (2, 0, none, none, 0),
            Self::Unsettled => (3, 0, none, none, 0),
        };
        out.extend_from_slice(&[tag, table]);
        out.extend_from_slice(&key.0);
        out.extend_from_slice(&value.0);
        out.push(magnitude);
    }

    /// Reads stored marks; a torn last one is left out.
    pub fn read_all(bytes: &[u8]) -> impl Iterator<Item = Self> + '_ {
        let digest = |bytes: &[u8]| Digest(bytes.try_into().expect("a chunk is SIZE bytes"));
        bytes.chunks_exact(Self::SIZE).map(move |mark| match mark[0] {
            1 => Self::Sent {
                table: mark[1],
                key: digest(&mark[2..10]),
                value: digest(&mark[10..18]),
                magnitude: mark[18].min(63),
            },
            2 => Self::Settled,
            3 => Self::Unsettled,
            _ => Self::Untouched,
        })
    }
}

/// A reading of another batch that may have sent the same records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rival {
    /// The batch.
    pub batch: String,
    /// The reading's number in it.
    pub reading: u32,
}

/// Whether a record that is not there any more was uploaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uploaded {
    /// No batch of the last two days sent it.
    No,
    /// A batch that is not finished yet has sent it, or will.
    Pending,
    /// A finished batch sent it.
    Yes,
}

/// A reading of a batch: one pass over its records that built one load for each of some tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// 1, 2, 3, … in the order in which readings began, whoever made them.
    pub number: u32,
    /// What the reader noted: the tables and attempts it was for. The cache does not look inside.
    pub note: String,
}

/// A record whose row is in the warehouse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent<'a> {
    /// Its key.
    pub key: Cow<'a, str>,
    /// The digest of the value that was sent.
    pub value: Digest,
    /// That value's length in bytes is less than two to the power of this.
    pub magnitude: u8,
}

impl<'a> Sent<'a> {
    /// The record with this value.
    pub fn of(key: &'a str, value: &[u8]) -> Self {
        Self { key: key.into(), value: Digest::of(value), magnitude: magnitude(value) }
    }
}

/// The power of two that a value's length in bytes is just less than; 63 for all that are longer still.
pub fn magnitude(value: &[u8]) -> u8 {
    u8::try_from(usize::BITS - value.len().leading_zeros()).map_or(63, |bits| bits.min(63))
}

/// What became of the records of a chunk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Released {
    /// Still held what was sent, and were deleted (or, under [`AfterUpload::Keep`], remembered as sent).
    pub done: u64,
    /// Were rewritten since they were read: left alone, their own queue entry brings them next time.
    pub rewritten: u64,
    /// Were gone already, or are no strings any more.
    pub gone: u64,
}

/// What happens to a record once its row is in the warehouse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AfterUpload {
    /// It is deleted.
    #[default]
    Delete,
    /// It stays until its TTL ends.
    Keep,
}

/// A cache with upload queues: Redis, or SQLite where no Redis is configured.
///
/// Every method that changes something for a [`Lease`] first checks, in the same atomic step, that the lease is still held,
/// and fails with [`CacheError::LeaseLost`] otherwise; and it renews the lease. Every method may be repeated after a doubt,
/// save that `produce` and `requeue` may then have added their entries twice, which is harmless: an entry names a record.
#[async_trait]
pub trait UploadCache: Send + Sync + 'static {
    /// Asks the server whether it is there.
    async fn ping(&self) -> Result<(), CacheError>;

    /// Number of entries that wait in the queue.
    async fn depth(&self, queue: &QueueRef) -> Result<u64, CacheError>;

    /// Up to `count` waiting entries, oldest first, after leaving out the `skip` oldest. Takes nothing.
    async fn peek(&self, queue: &QueueRef, skip: u64, count: u32) -> Result<Vec<Bytes>, CacheError>;

    /// The claimed batches of a queue, oldest first.
    async fn inflight(&self, queue: &QueueRef) -> Result<Vec<Inflight>, CacheError>;

    /// Moves up to `count` (and [`CLAIM_LIMIT`]) of the oldest waiting entries to the end of the lease's batch, in one
    /// atomic step, and returns them in that order; only an empty answer says that the queue is empty. Creates the batch and
    /// its lease with the first entry; an empty queue leaves no trace.
    ///
    /// After an error the entries may have been moved all the same: whoever goes on with the batch asks
    /// [`UploadCache::entries`] what it holds.
    async fn claim(&self, lease: &Lease, count: u32) -> Result<Vec<Bytes>, CacheError>;

    /// Takes over a batch whose lease has ended. `false`: somebody holds it (be it another task of the same owner), or it is
    /// finished.
    async fn adopt(&self, lease: &Lease) -> Result<bool, CacheError>;

    /// Makes the lease last for another `ttl`.
    async fn renew(&self, lease: &Lease) -> Result<(), CacheError>;

    /// Gives the lease up, so that the next run need not wait for its end. The batch stays in flight. That the lease has
    /// ended already is no error, unless somebody else holds it.
    async fn release_lease(&self, lease: &Lease) -> Result<(), CacheError>;

    /// Claimed entries at positions `start..start + count`, oldest first.
    async fn entries(&self, lease: &Lease, start: u64, count: u32) -> Result<Vec<Bytes>, CacheError>;

    /// Reads records: one [`Stored`] for each key, in order, but perhaps only for the first few keys (at least one), so that
    /// at most `max_total` bytes come back (one value may exceed that alone). Values longer than `max_value` bytes are not
    /// fetched.
    async fn read(
        &self,
        database: u16,
        keys: &[&str],
        max_value: u64,
        max_total: u64,
    ) -> Result<Vec<Stored>, CacheError>;

    /// Starts a reading and returns its number. Must come before any record of the reading is read: what other batches
    /// finish from here on, [`UploadCache::seal`] tells.
    async fn begin_reading(&self, lease: &Lease, note: &str) -> Result<u32, CacheError>;

    /// Declares that a reading's marks are complete, before its loads are committed, and returns the readings of other
    /// batches of the queue whose records it may have read too: those that were sealed before it, unless their batch was
    /// finished before this reading began. Of two readings that read the same value of a record, the one sealed later
    /// learns of the other, and must not send that value again. Repeating it gives the same answer, less what was forgotten
    /// meanwhile.
    async fn seal(&self, lease: &Lease, reading: u32) -> Result<Vec<Rival>, CacheError>;

    /// Marks of a rival, as [`UploadCache::marks`]; none any more once it is forgotten.
    async fn rival_marks(
        &self,
        queue: &QueueRef,
        rival: &Rival,
        start: u64,
        count: u32,
    ) -> Result<Vec<Mark>, CacheError>;

    /// The readings of a batch, in order.
    async fn readings(&self, lease: &Lease) -> Result<Vec<Reading>, CacheError>;

    /// Writes the marks of the entries at `start..start + marks.len()` of a reading. The marks before `start` must be there
    /// already; marks that are written again are replaced.
    async fn append_marks(&self, lease: &Lease, reading: u32, start: u64, marks: &[Mark]) -> Result<(), CacheError>;

    /// Marks of a reading for the entries at `start..start + count`; fewer if the reading did not get that far.
    async fn marks(&self, lease: &Lease, reading: u32, start: u64, count: u32) -> Result<Vec<Mark>, CacheError>;

    /// Remembers positions of entries that the warehouse refused and that are kept as dead letters.
    async fn bury(&self, lease: &Lease, positions: &[u32]) -> Result<(), CacheError>;

    /// The positions that were buried, in order.
    async fn buried(&self, lease: &Lease) -> Result<Vec<u32>, CacheError>;

    /// For each record: if it still holds the value that was sent, deletes it or, under [`AfterUpload::Keep`], remembers
    /// (for as long as the record lives) the digest of what was sent. The comparison and the deletion are one atomic step.
    async fn release(&self, lease: &Lease, records: &[Sent<'_>], after: AfterUpload) -> Result<Released, CacheError>;

    /// For each key: whether a sealed reading of the last two days sent a record under it. Tells an entry whose record an
    /// earlier entry already brought from one whose record expired. Looks through the marks of all those readings, newest
    /// first, until every key is found: cheap for keys of the last batches, and cheaper for many keys at once than one by
    /// one.
    async fn uploaded(&self, queue: &QueueRef, keys: &[&str]) -> Result<Vec<Uploaded>, CacheError>;

    /// For each key: the digest remembered under [`AfterUpload::Keep`].
    async fn sent(&self, queue: &QueueRef, keys: &[&str]) -> Result<Vec<Option<Digest>>, CacheError>;

    /// Finishes the batch, in one atomic step: forgets it with all that belongs to it, but for the marks of the `loaded`
    /// readings, which [`UploadCache::uploaded`] and the rivals' [`UploadCache::seal`] still need for two days; and moves the
    /// `unsettled` entries to a new unleased batch, which sorts as old as this one and which the next run recovers.
    async fn finish(&self, lease: &Lease, loaded: &[u32], unsettled: &[Bytes]) -> Result<(), CacheError>;

    /// Puts a record back, unless the key holds one, and adds `entry` to the head of the queue, as a producer would. For
    /// dead letters that are tried again; `value` is `None` where only the entry is put back.
    async fn requeue(
        &self,
        queue: &QueueRef,
        entry: &[u8],
        key: &str,
        value: Option<&[u8]>,
        ttl: Duration,
    ) -> Result<(), CacheError>;

    /// Writes a record and its queue entry as a producer does: `SETEX`, then `LPUSH`. For `demo` and tests.
    async fn produce(&self, queue: &QueueRef, records: &[Produced], ttl: Duration) -> Result<(), CacheError>;
}

/// A record to be written by [`UploadCache::produce`].
#[derive(Debug, Clone)]
pub struct Produced {
    /// The queue entry.
    pub entry: Vec<u8>,
    /// The record's key.
    pub key: String,
    /// The record's value; `None` writes the entry alone.
    pub value: Option<Vec<u8>>,
}

/// The name of a batch that takes over what `batch` leaves: as old, so that it is recovered as early.
fn successor_of(batch: &str) -> String {
    let born = ulid::Ulid::from_string(batch).map(|batch| batch.timestamp_ms()).unwrap_or_default();
    ulid::Ulid::from_parts(born, fastrand::u128(..)).to_string()
}

/// A cache that is shared between the parts of the program.
pub type SharedCache = Arc<dyn UploadCache>;

/// What can go wrong with the cache.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The server cannot be reached or went away. Trying again can help.
    #[error("the cache at {server} cannot be reached: {reason}. Check that it runs and that REDIS_URL is right")]
    Unreachable {
        /// Host, port and database, without user and password.
        server: String,
        /// What the network or the server said.
        reason: String,
    },
    /// The server refuses us: wrong password, no permission, no such database, not a Redis. Trying again cannot help.
    #[error("the cache at {server} refuses: {reason}. {cure}")]
    Refused {
        /// Host, port and database, without user and password.
        server: String,
        /// What the server said.
        reason: String,
        /// What to do about it.
        cure: String,
    },
    /// Somebody else has taken the batch over.
    #[error(
        "the lease on batch {batch} has ended and somebody else may work on it; nothing is lost, the next run takes it up"
    )]
    LeaseLost {
        /// The batch.
        batch: String,
    },
    /// The server is out of memory or cannot write. Trying again later can help.
    #[error("the cache at {server} cannot take the change: {reason}")]
    Full {
        /// Host, port and database, without user and password.
        server: String,
        /// What the server said.
        reason: String,
    },
}

impl CacheError {
    /// Whether trying again can help.
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::Refused { .. })
    }
}
