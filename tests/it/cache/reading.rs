//! Reading from a Redis whose records change meanwhile.

use lamplighter::cache::{AfterUpload, Released, Stored};
use redis::AsyncCommands;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};

use super::*;

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
