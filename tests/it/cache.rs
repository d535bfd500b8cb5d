//! The cache: one suite over Redis and SQLite, then what only a Redis can do.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

/// Runs each test over both backends.
macro_rules! suite {
    ($($name:ident),+ $(,)?) => {
        mod redis_keeps_the_promise {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::Backend::redis().await).await;
            })+
        }
        mod sqlite_keeps_the_promise {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::Backend::sqlite().await).await;
            })+
        }
    };
}

mod on_redis;
mod reading;
mod sealing;
mod suite;

use std::sync::Arc;
use std::time::Duration;

use lamplighter::cache::{
    Digest, Lease, Mark, Produced, QueueRef, RedisCache, RedisSettings, Sent, SharedCache, SqliteCache, UploadCache,
};
use lamplighter::clock::TestClock;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::support::redis::Redis;

/// A day, so that no lease and no record ends by itself during a test.
const LONG: Duration = Duration::from_secs(24 * 60 * 60);

/// A cache, and the means to let time pass in it.
struct Backend {
    cache: SharedCache,
    server: Server,
}

enum Server {
    Redis(Redis),
    Sqlite { clock: Arc<TestClock>, _folder: TempDir },
}

impl Backend {
    async fn redis() -> Self {
        Self::over(Redis::start().await)
    }

    fn over(redis: Redis) -> Self {
        Self { cache: connect(&redis.url()), server: Server::Redis(redis) }
    }

    async fn sqlite() -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let clock = Arc::new(TestClock::at("2026-03-01T02:00:00Z".parse().expect("an instant")));
        let path = folder.path().join("cache.db");
        let cache = SqliteCache::open(&path, Arc::clone(&clock) as _).await.expect("the folder may be written");
        Self { cache: Arc::new(cache), server: Server::Sqlite { clock, _folder: folder } }
    }

    fn redis_server(&self) -> &Redis {
        match &self.server {
            Server::Redis(redis) => redis,
            Server::Sqlite { .. } => panic!("this backend has no Redis"),
        }
    }

    /// The lease's owner dies and its time runs out.
    async fn let_the_lease_end(&self, lease: &Lease) {
        if let Server::Sqlite { clock, .. } = &self.server {
            clock.advance(lease.ttl);
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let inflight = self.cache.inflight(&lease.queue).await.unwrap();
            if inflight.iter().all(|batch| batch.batch != lease.batch || !batch.leased) {
                return;
            }
            assert!(Instant::now() < deadline, "the lease of {} s does not end: {inflight:?}", lease.ttl.as_secs_f32());
            sleep(Duration::from_millis(5)).await;
        }
    }
}

fn connect(url: &str) -> Arc<RedisCache> {
    Arc::new(RedisCache::new(&RedisSettings::new(url)).expect("the URL is right"))
}

fn queue() -> QueueRef {
    QueueRef { database: 1, queue: "upload_queue".to_owned() }
}

fn lease(owner: &str) -> Lease {
    lease_for(owner, LONG)
}

fn lease_for(owner: &str, ttl: Duration) -> Lease {
    Lease { queue: queue(), batch: ulid::Ulid::new().to_string(), owner: owner.to_owned(), ttl }
}

/// A record with a bare key as its entry.
fn record(key: &str, value: &str) -> Produced {
    Produced { entry: key.as_bytes().to_vec(), key: key.to_owned(), value: Some(value.as_bytes().to_vec()) }
}

/// Puts `count` records `tx:0`, `tx:1`, … with values `{"n":0}`, … into the queue.
async fn fill(cache: &dyn UploadCache, count: usize) {
    let records: Vec<_> = (0..count).map(|n| record(&format!("tx:{n}"), &format!("{{\"n\":{n}}}"))).collect();
    cache.produce(&queue(), &records, LONG).await.unwrap();
}

fn sent(value: &str) -> Digest {
    Digest::of(value.as_bytes())
}

/// A record that a load brought with this value.
fn row<'k>(key: &'k str, value: &str) -> Sent<'k> {
    Sent::of(key, value.as_bytes())
}

/// What [`fill`] put in, as a load that brought it.
fn rows(count: usize) -> Vec<Sent<'static>> {
    let row = |n| Sent { key: format!("tx:{n}").into(), ..row("", &format!("{{\"n\":{n}}}")) };
    (0..count).map(row).collect()
}

/// Claims one entry into a batch of its own; the queue must hold one.
async fn claim_one(cache: &dyn UploadCache, owner: &str) -> Lease {
    let lease = lease(owner);
    assert_eq!(cache.claim(&lease, 1).await.unwrap().len(), 1, "the queue is empty");
    lease
}

/// The mark of a record that was sent.
fn mark(key: &str, value: &str) -> Mark {
    Mark::Sent { table: 0, key: sent(key), value: sent(value), magnitude: 5 }
}

/// Makes a reading of a batch that sends the records under these keys; it is not sealed yet.
async fn reading_of(cache: &dyn UploadCache, lease: &Lease, keys: &[&str]) -> u32 {
    let reading = cache.begin_reading(lease, "").await.unwrap();
    let marks: Vec<Mark> = keys.iter().map(|key| mark(key, "{}")).collect();
    cache.append_marks(lease, reading, 0, &marks).await.unwrap();
    reading
}

fn texts(entries: &[bytes::Bytes]) -> Vec<String> {
    entries.iter().map(|entry| String::from_utf8(entry.to_vec()).expect("entries of tests are text")).collect()
}
