//! Reading records: within a budget, and from a Redis whose records change meanwhile.

use bytes::Bytes;
use lamplighter::cache::{AfterUpload, Released, Stored};
use redis::AsyncCommands;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};

use super::*;

suite!(
    reading_tells_values_missing_ones_and_long_ones_apart,
    reading_stops_where_the_budget_ends,
    megabytes_are_read_within_the_budget_and_released,
);

async fn reading_tells_values_missing_ones_and_long_ones_apart(backend: Backend) {
    let cache = &backend.cache;
    let exact = "x".repeat(5_000);
    let records = [
        record("plain", "{}"),
        record("empty", ""),
        record("exact", &exact),
        record("over", &format!("{exact}y")),
        record("last", "z"),
    ];
    cache.produce(&queue(), &records, LONG).await.unwrap();
    let keys = ["plain", "nowhere", "empty", "exact", "over", "last"];
    let stored = cache.read(1, &keys, 5_000, 1 << 20).await.unwrap();
    let expected = [
        Stored::Value("{}".into()),
        Stored::Missing,
        Stored::Value(Bytes::new()),
        Stored::Value(exact.clone().into()),
        Stored::TooLarge(5_001),
        Stored::Value("z".into()),
    ];
    assert_eq!(stored, expected);
    assert_eq!(cache.read(0, &["plain"], 5_000, 1 << 20).await.unwrap(), [Stored::Missing], "another database");
    assert_eq!(cache.read(1, &[], 5_000, 1 << 20).await.unwrap(), []);
}

async fn reading_stops_where_the_budget_ends(backend: Backend) {
    let cache = &backend.cache;
    let value = "v".repeat(100_000);
    let records: Vec<_> = (0..30).map(|n| record(&format!("tx:{n}"), &value)).collect();
    cache.produce(&queue(), &records, LONG).await.unwrap();
    let keys: Vec<String> = (0..30).map(|n| format!("tx:{n}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    for (budget, at_most) in [(1_u64, 1), (100_000, 1), (250_000, 2), (1_000_000, 10), (10_000_000, 30)] {
        let (mut at, mut reads) = (0, 0);
        while at < keys.len() {
            let stored = cache.read(1, &keys[at..], 1_000_000, budget).await.unwrap();
            assert!((1..=at_most).contains(&stored.len()), "{} values for {budget} bytes", stored.len());
            assert!(stored.iter().all(|one| matches!(one, Stored::Value(bytes) if bytes == value.as_bytes())));
            at += stored.len();
            reads += 1;
        }
        // However large the budget, Redis is not asked for more than half a megabyte at a time.
        assert!(reads <= 30_usize.div_ceil(at_most.min(5)) + 1, "{reads} reads for {budget} bytes each");
    }
}

async fn megabytes_are_read_within_the_budget_and_released(backend: Backend) {
    let cache = &backend.cache;
    let values: Vec<String> = (0..12).map(|n| format!("{n}").repeat(1_000_000)).collect();
    let records: Vec<_> = (0..12).map(|n| record(&format!("tx:{n}"), &values[n])).collect();
    cache.produce(&queue(), &records, LONG).await.unwrap();
    let lease = lease("a");
    cache.claim(&lease, 12).await.unwrap();
    let keys: Vec<String> = (0..12).map(|n| format!("tx:{n}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let mut at = 0;
    while at < keys.len() {
        let stored = cache.read(1, &keys[at..], 4 << 20, 4 << 20).await.unwrap();
        let bytes: usize = stored.iter().map(|one| if let Stored::Value(value) = one { value.len() } else { 0 }).sum();
        assert!(bytes <= 4 << 20 && !stored.is_empty(), "{bytes} bytes came in {} values", stored.len());
        for (n, one) in (at..).zip(&stored) {
            assert!(matches!(one, Stored::Value(value) if *value == values[n].as_bytes()), "value {n} is another");
        }
        at += stored.len();
    }
    // The last digit differs, far behind the piece that is looked at first.
    let mut near = values[11].clone().into_bytes();
    *near.last_mut().unwrap() = b'x';
    let mut sent: Vec<Sent<'_>> = keys.iter().zip(&values).map(|(key, value)| row(key, value)).collect();
    sent[11].value = Digest::of(&near);
    let released = cache.release(&lease, &sent, AfterUpload::Delete).await.unwrap();
    assert_eq!(released, Released { done: 11, rewritten: 1, gone: 0 });
    assert!(matches!(
        cache.read(1, &keys[10..], 4 << 20, 4 << 20).await.unwrap()[..],
        [Stored::Missing, Stored::Value(_)]
    ));
}

/// A way to the server on which `key` is written just before the server is asked for its type.
async fn way_with_a_late_writer(redis: &Redis, key: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (port, mut raw) = (redis.port(), redis.raw(1).await);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = TcpStream::connect(("127.0.0.1", port)).await.unwrap().into_split();
            tokio::spawn(async move { copy(&mut from_server, &mut to_client).await });
            let mut request = vec![0; 1 << 16];
            while let Ok(length @ 1..) = from_client.read(&mut request).await {
                if request[..length].windows(4).any(|word| word == b"TYPE") {
                    let _: () = raw.set(key, "late").await.unwrap();
                }
                to_server.write_all(&request[..length]).await.unwrap();
            }
        }
    });
    format!("redis://{address}")
}

#[tokio::test]
async fn a_record_that_is_written_between_two_looks_is_not_taken_for_missing() {
    for late in ["tx:first", "tx:second"] {
        let redis = Redis::start().await;
        let cache = connect(&way_with_a_late_writer(&redis, late).await);
        let mut raw = redis.raw(1).await;
        for key in ["tx:first", "tx:second", "tx:third"].into_iter().filter(|key| *key != late) {
            let _: () = raw.set(key, "early").await.unwrap();
        }
        let keys = ["tx:first", "tx:second", "tx:third"];
        let mut stored = Vec::new();
        while stored.len() < keys.len() {
            stored.extend(cache.read(1, &keys[stored.len()..], 1_000, 1 << 20).await.unwrap());
        }
        let expected = keys.map(|key| Stored::Value(if key == late { "late" } else { "early" }.into()));
        assert_eq!(stored, expected, "{late} came late");
    }
}

#[tokio::test]
async fn a_record_that_has_grown_is_another_and_stays() {
    let backend = Backend::redis().await;
    let cache = &backend.cache;
    fill(&**cache, 3).await;
    let lease = lease("a");
    cache.claim(&lease, 3).await.unwrap();
    let long = "x".repeat(2_000_000);
    cache.produce(&queue(), &[record("tx:1", &long)], LONG).await.unwrap();
    let released = cache.release(&lease, &rows(3), AfterUpload::Delete).await.unwrap();
    assert_eq!(released, Released { done: 2, rewritten: 1, gone: 0 });
    let stored = cache.read(1, &["tx:1"], 4 << 20, 4 << 20).await.unwrap();
    assert_eq!(stored, [Stored::Value(long.into())]);
}
