//! What only a Redis can do: die, come back, be somebody else, run full.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use lamplighter::cache::{AfterUpload, CacheError, Inflight, Mark, Released, Stored, Uploaded};
use redis::AsyncCommands;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// A server that answers every connection with `answer`, or never if there is none.
async fn impostor(answer: Option<&'static str>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut asked = [0; 1_024];
                while socket.read(&mut asked).await.is_ok_and(|read| read > 0) {
                    if let Some(answer) = answer {
                        let _ = socket.write_all(answer.as_bytes()).await;
                        return;
                    }
                }
            });
        }
    });
    address
}

async fn keys(raw: &mut redis::aio::MultiplexedConnection) -> Vec<String> {
    let mut keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(raw).await.unwrap();
    keys.sort();
    keys
}

#[tokio::test]
async fn a_redis_that_restarts_midway_is_found_again_with_all_that_was_noted() {
    let backend = Backend::over(Redis::builder().durable().start().await);
    let (cache, redis) = (&backend.cache, backend.redis_server());
    fill(&**cache, 200).await;
    let lease = lease("a");
    cache.claim(&lease, 100).await.unwrap();
    let records = rows(200);
    cache.release(&lease, &records[..100], AfterUpload::Delete).await.unwrap();
    let reading = cache.begin_reading(&lease, "before").await.unwrap();

    redis.restart().await;
    // Connections and scripts are gone; nobody outside notices.
    cache.append_marks(&lease, reading, 0, &[Mark::Settled]).await.unwrap();
    redis.restart().await;
    let released = cache.release(&lease, &records, AfterUpload::Delete).await.unwrap();
    assert_eq!(released, Released { done: 100, rewritten: 0, gone: 100 });
    redis.restart().await;
    assert_eq!(cache.claim(&lease, 1_000).await.unwrap().len(), 100);
    assert_eq!(cache.marks(&lease, reading, 0, 9).await.unwrap(), [Mark::Settled]);
    cache.append_marks(&lease, reading, 1, &[mark("tx:0", "{}")]).await.unwrap();
    redis.restart().await;
    assert_eq!(cache.seal(&lease, reading).await.unwrap(), []);
    redis.restart().await;
    assert_eq!(cache.uploaded(&queue(), &["tx:0", "x"]).await.unwrap(), [Uploaded::Pending, Uploaded::No]);
    cache.finish(&lease, &[reading], &[]).await.unwrap();
}

#[tokio::test]
async fn a_redis_that_stays_away_is_unreachable_and_then_back() {
    let backend = Backend::over(Redis::builder().durable().start().await);
    let (redis, settings) = (backend.redis_server(), RedisSettings::new(backend.redis_server().url()));
    let cache = RedisCache::new(&RedisSettings { connect_timeout: Duration::from_millis(300), ..settings }).unwrap();
    cache.ping().await.unwrap();
    redis.stop().await;
    for _ in 0..2 {
        let error = cache.depth(&queue()).await.unwrap_err();
        assert!(
            matches!(&error, CacheError::Unreachable { server, .. } if *server == format!("127.0.0.1:{}/1", redis.port()))
        );
        assert!(error.is_transient());
    }
    redis.restart().await;
    assert_eq!(cache.depth(&queue()).await.unwrap(), 0);
}

#[tokio::test]
async fn scripts_that_redis_forgot_are_sent_again() {
    let backend = Backend::redis().await;
    let mut raw = backend.redis_server().raw(0).await;
    fill(&*backend.cache, 3).await;
    let lease = lease("a");
    for n in 1..=3 {
        redis::cmd("SCRIPT").arg("FLUSH").exec_async(&mut raw).await.unwrap();
        assert_eq!(backend.cache.claim(&lease, 1).await.unwrap().len(), 1, "claim {n}");
    }
}

#[tokio::test]
async fn a_wrong_password_is_refused_and_stays_secret() {
    let redis = Redis::builder().password("right-and-secret").start().await;
    let port = redis.port();
    connect(&redis.url()).ping().await.unwrap();
    for url in [
        format!("redis://:wrong-but-secret@127.0.0.1:{port}"),
        format!("redis://somebody:wrong-but-secret@127.0.0.1:{port}/1"),
        format!("redis://127.0.0.1:{port}"),
    ] {
        let error = connect(&url).ping().await.unwrap_err();
        let CacheError::Refused { cure, .. } = &error else { panic!("{error:?}") };
        assert!(cure.contains("REDIS_URL") && cure.contains("REDIS_PASSWORD"), "{error}");
        assert!(!error.is_transient());
        let shown = format!("{error} {error:?}");
        assert!(shown.contains(&port.to_string()) && !shown.contains("secret"), "{shown}");
    }
}

#[tokio::test]
async fn a_user_without_rights_is_told_which() {
    let redis = Redis::start().await;
    let mut raw = redis.raw(0).await;
    let rights = ["ACL", "SETUSER", "reader", "on", ">pw", "~*", "+ping", "+select"];
    redis::cmd(rights[0]).arg(&rights[1..]).exec_async(&mut raw).await.unwrap();
    let cache = connect(&format!("redis://reader:pw@127.0.0.1:{}", redis.port()));
    cache.ping().await.unwrap();
    let error = cache.depth(&queue()).await.unwrap_err();
    assert!(matches!(&error, CacheError::Refused { cure, .. } if cure.contains("ACL SETUSER")), "{error}");
}

#[tokio::test]
async fn a_server_that_is_no_redis_is_refused() {
    let address = impostor(Some("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")).await;
    let error = connect(&format!("redis://{address}")).ping().await.unwrap_err();
    assert!(matches!(&error, CacheError::Refused { cure, .. } if cure.contains("REDIS_URL")), "{error}");
    assert!(!error.is_transient());
}

#[tokio::test]
async fn a_server_without_tls_is_refused_under_rediss() {
    let redis = Redis::start().await;
    let address = impostor(Some("-ERR unknown command\r\n")).await;
    for address in [address.to_string(), format!("127.0.0.1:{}", redis.port())] {
        let error = connect(&format!("rediss://{address}")).ping().await.unwrap_err();
        // Some servers close the connection instead of answering.
        assert!(matches!(&error, CacheError::Refused { .. } | CacheError::Unreachable { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_never_answers_is_unreachable_within_the_timeout() {
    let address = impostor(None).await;
    let short = Duration::from_millis(200);
    let settings = RedisSettings {
        connect_timeout: short,
        response_timeout: short,
        ..RedisSettings::new(format!("redis://{address}"))
    };
    let began = Instant::now();
    let error = RedisCache::new(&settings).unwrap().depth(&queue()).await.unwrap_err();
    assert!(matches!(&error, CacheError::Unreachable { .. }), "{error}");
    assert!(began.elapsed() < Duration::from_secs(5), "it took {:?}", began.elapsed());
}

#[tokio::test]
async fn a_database_that_is_not_there_is_refused_by_its_number() {
    let redis = Redis::builder().argument("--databases", "1").start().await;
    let cache = connect(&redis.url());
    cache.ping().await.unwrap();
    let error = cache.depth(&queue()).await.unwrap_err();
    assert!(error.to_string().contains("this Redis has no database 1"), "{error}");
    assert!(!error.is_transient());
}

#[test]
fn an_address_that_is_none_is_refused_without_being_repeated() {
    for url in ["not a url secret", "http://secret@host", "redis://:secret@host:99999999", "redis://h/secret"] {
        let error = RedisCache::new(&RedisSettings::new(url)).err().expect("no address of a Redis");
        let shown = format!("{error} {error:?}");
        assert!(shown.contains("REDIS_URL") && !shown.contains("secret"), "{shown}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_written_between_comparing_and_deleting_is_never_deleted() {
    const KEYS: usize = 64;
    let backend = Backend::redis().await;
    let cache = Arc::clone(&backend.cache);
    fill(&*cache, 1).await;
    let lease = lease("a");
    cache.claim(&lease, 1).await.unwrap();
    let version = |n: usize, round: u64| format!("{n}:{round}");

    // Each key has one writer, which learns from every write whether the version before it was still there.
    let stop = Arc::new(AtomicBool::new(false));
    let mut producers = Vec::new();
    for half in [0..KEYS / 2, KEYS / 2..KEYS] {
        let (mut raw, stop) = (backend.redis_server().raw(1).await, Arc::clone(&stop));
        producers.push(tokio::spawn(async move {
            let (mut deleted, mut round) = (Vec::new(), 0);
            while !stop.load(Ordering::Relaxed) {
                let mut commands = redis::pipe();
                for n in half.clone() {
                    commands.cmd("SET").arg(format!("hot:{n}")).arg(version(n, round + 1)).arg("GET");
                }
                let before: Vec<Option<String>> = commands.query_async(&mut raw).await.unwrap();
                for (n, before) in half.clone().zip(before) {
                    match before {
                        Some(before) => assert_eq!(before, version(n, round)),
                        None => deleted.push(version(n, round)),
                    }
                }
                round += 1;
            }
            deleted
        }));
    }
    let keys: Vec<String> = (0..KEYS).map(|n| format!("hot:{n}")).collect();
    let refs: Vec<&str> = keys.iter().map(String::as_str).collect();
    let mut sent: HashSet<String> = (0..KEYS).map(|n| version(n, 0)).collect();
    let (deadline, mut total, mut round) = (Instant::now() + Duration::from_secs(60), Released::default(), 0);
    while round < 1_000 || total.done < 500 || total.rewritten < 500 {
        let mut records = Vec::new();
        for (key, one) in refs.iter().zip(cache.read(1, &refs, 1_000, 8 << 20).await.unwrap()) {
            if let Stored::Value(value) = one {
                records.push(Sent::of(key, &value));
                sent.insert(String::from_utf8(value.to_vec()).unwrap());
            }
        }
        let released = cache.release(&lease, &records, AfterUpload::Delete).await.unwrap();
        total.done += released.done;
        total.rewritten += released.rewritten;
        round += 1;
        assert!(Instant::now() < deadline, "after {round} rounds there were only {total:?}");
    }
    stop.store(true, Ordering::Relaxed);
    let (mut deleted, mut unsent) = (0, Vec::new());
    for producer in producers {
        let some = producer.await.unwrap();
        deleted += some.len();
        unsent.extend(some.into_iter().filter(|version| !sent.contains(version)));
    }
    assert!(unsent.is_empty(), "of {deleted} values that were deleted, {} were never sent", unsent.len());
}

#[tokio::test]
async fn other_types_than_strings_and_lists_are_named() {
    let backend = Backend::redis().await;
    let cache = &backend.cache;
    let mut raw = backend.redis_server().raw(1).await;
    let _: () = raw.lpush("a list", "x").await.unwrap();
    let _: () = raw.hset("a hash", "x", "y").await.unwrap();
    cache.produce(&queue(), &[record("tx:0", "{}")], LONG).await.unwrap();
    let stored = cache.read(1, &["a list", "tx:0", "a hash", "nothing"], 1_000, 1 << 20).await.unwrap();
    let types = |name: &str| Stored::WrongType(name.to_owned());
    assert_eq!(stored, [types("list"), Stored::Value("{}".into()), types("hash"), Stored::Missing]);

    let lease = lease("a");
    cache.claim(&lease, 1).await.unwrap();
    let records = [row("a list", "x"), row("tx:0", "{}")];
    let released = cache.release(&lease, &records, AfterUpload::Delete).await.unwrap();
    assert_eq!(released, Released { done: 1, rewritten: 0, gone: 1 });

    let wrong = QueueRef { database: 1, queue: "a hash".to_owned() };
    let error = cache.claim(&Lease { queue: wrong, ..lease }, 1).await.unwrap_err();
    assert!(matches!(&error, CacheError::Refused { cure, .. } if cure.contains("`queue`")), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_redis_takes_no_record_but_lets_the_upload_empty_it() {
    let backend = Backend::redis().await;
    let cache = &backend.cache;
    let mut raw = backend.redis_server().raw(1).await;
    fill(&**cache, 500).await;
    let big = "b".repeat(100_000);
    cache.produce(&queue(), &[record("big", &big)], LONG).await.unwrap();
    redis::cmd("CONFIG").arg(&["SET", "maxmemory", "1"]).exec_async(&mut raw).await.unwrap();

    let full = cache.produce(&queue(), &[record("tx:new", "{}")], LONG).await.unwrap_err();
    assert!(matches!(full, CacheError::Full { .. }) && full.is_transient(), "{full}");
    let full = cache.requeue(&queue(), b"tx:new", "tx:new", Some(b"{}"), LONG).await.unwrap_err();
    assert!(matches!(full, CacheError::Full { .. }), "{full}");

    let lease = lease("a");
    assert_eq!(cache.claim(&lease, 1_000).await.unwrap().len(), 501);
    cache.release_lease(&lease).await.unwrap();
    assert!(cache.adopt(&lease).await.unwrap());
    let reading = cache.begin_reading(&lease, "note").await.unwrap();
    cache.append_marks(&lease, reading, 0, &[Mark::Settled; 501]).await.unwrap();
    cache.append_marks(&lease, reading, 7, &[mark("tx:7", "{}")]).await.unwrap();
    assert_eq!(cache.seal(&lease, reading).await.unwrap(), []);
    cache.bury(&lease, &[3]).await.unwrap();
    let mut records = rows(500);
    records[7].value = sent("something else");
    records.push(row("big", &big));
    records.push(row("nowhere", "x"));
    let kept = cache.release(&lease, &records[..10], AfterUpload::Keep).await.unwrap();
    assert_eq!(kept, Released { done: 9, rewritten: 1, gone: 0 });
    assert_eq!(cache.sent(&queue(), &["tx:0", "tx:7"]).await.unwrap(), [Some(records[0].value), None]);
    let released = cache.release(&lease, &records, AfterUpload::Delete).await.unwrap();
    assert_eq!(released, Released { done: 500, rewritten: 1, gone: 1 });
    cache.finish(&lease, &[reading], &[Bytes::from_static(b"tx:7")]).await.unwrap();
    assert_eq!(cache.uploaded(&queue(), &["tx:7", "big"]).await.unwrap(), [Uploaded::Yes, Uploaded::No]);
    assert_eq!(cache.inflight(&queue()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_finish_that_died_half_way_is_finished_by_the_next_without_leftovers() {
    let backend = Backend::redis().await;
    let cache = &backend.cache;
    let mut raw = backend.redis_server().raw(1).await;
    for unsettled in [&[][..], &[Bytes::from_static(b"tx:1")][..]] {
        redis::cmd("FLUSHDB").exec_async(&mut raw).await.unwrap();
        fill(&**cache, 3).await;
        let lease = lease("a");
        cache.claim(&lease, 3).await.unwrap();
        // What a finish leaves that dies after it copied two of its entries and before the last step.
        let half = format!("upload_queue:inflight:{}", ulid::Ulid::new());
        let (_, successor) = half.rsplit_once(':').unwrap();
        let _: () =
            raw.hset(format!("upload_queue:inflight:{}:state", lease.batch), "successor", successor).await.unwrap();
        let _: () = raw.rpush(&half, &["tx:2", "tx:0"]).await.unwrap();
        assert_eq!(cache.inflight(&queue()).await.unwrap().len(), 1, "nobody sees the half copied batch");

        cache.finish(&lease, &[], unsettled).await.unwrap();
        let inflight = cache.inflight(&queue()).await.unwrap();
        if unsettled.is_empty() {
            assert!(inflight.is_empty());
        } else {
            assert_eq!(inflight, [Inflight { batch: successor.to_owned(), entries: 1, leased: false }]);
            let heir = Lease { batch: successor.to_owned(), ..lease.clone() };
            assert_eq!(cache.entries(&heir, 0, 9).await.unwrap(), unsettled);
            assert!(cache.adopt(&heir).await.unwrap());
            cache.finish(&heir, &[], &[]).await.unwrap();
        }
        let leftovers: Vec<_> = keys(&mut raw)
            .await
            .into_iter()
            .filter(|key| !key.starts_with("tx:") && !key.ends_with(":lease"))
            .collect();
        assert!(leftovers.is_empty(), "{leftovers:?} are left");
    }
}

#[tokio::test]
async fn everything_that_is_left_of_a_finished_batch_ends_by_itself() {
    let backend = Backend::redis().await;
    let cache = &backend.cache;
    let mut raw = backend.redis_server().raw(1).await;
    fill(&**cache, 2).await;
    let lease = lease("a");
    cache.claim(&lease, 2).await.unwrap();
    let mut readings = Vec::new();
    for _ in 0..3 {
        let reading = reading_of(&**cache, &lease, &["tx:0", "tx:1"]).await;
        cache.seal(&lease, reading).await.unwrap();
        readings.push(reading);
    }
    cache.bury(&lease, &[0]).await.unwrap();
    cache.release(&lease, &[row("tx:0", "{\"n\":0}")], AfterUpload::Delete).await.unwrap();
    cache.release(&lease, &[row("tx:1", "{\"n\":1}")], AfterUpload::Keep).await.unwrap();
    cache.finish(&lease, &readings[1..2], &[]).await.unwrap();
    let left = keys(&mut raw).await;
    let uploaded = format!("upload_queue:uploaded:{}:2", lease.batch);
    let tombstone = format!("upload_queue:inflight:{}:lease", lease.batch);
    let (finished, sequence) = ("upload_queue:finished", "upload_queue:sequence");
    assert_eq!(left, ["tx:1", finished, &tombstone, "upload_queue:sent:tx:1", sequence, &uploaded]);
    for key in left.iter().filter(|key| *key != sequence) {
        let left: i64 = redis::cmd("TTL").arg(key).query_async(&mut raw).await.unwrap();
        assert!((1..=2 * 86_400).contains(&left), "{key} lives for {left} s");
    }

    // The index forgets a reading when its marks are gone and another batch is finished.
    let _: () = raw.del(&uploaded).await.unwrap();
    fill(&**cache, 1).await;
    let next = claim_one(&**cache, "a").await;
    let reading = reading_of(&**cache, &next, &["tx:0"]).await;
    cache.seal(&next, reading).await.unwrap();
    cache.finish(&next, &[reading], &[]).await.unwrap();
    let indexed: Vec<String> = redis::cmd("ZRANGE").arg(&[finished, "0", "-1"]).query_async(&mut raw).await.unwrap();
    assert_eq!(indexed, [format!("{}:1:5", next.batch)]);
}

#[tokio::test]
async fn evicted_bookkeeping_is_noticed() {
    let backend = Backend::redis().await;
    let cache = &backend.cache;
    let mut raw = backend.redis_server().raw(1).await;
    fill(&**cache, 2).await;
    let lease = lease("a");
    cache.claim(&lease, 2).await.unwrap();
    let reading = cache.begin_reading(&lease, "").await.unwrap();
    cache.append_marks(&lease, reading, 0, &[Mark::Settled]).await.unwrap();
    let _: () = raw.del(format!("upload_queue:inflight:{}:marks:{reading}", lease.batch)).await.unwrap();
    let error = cache.append_marks(&lease, reading, 1, &[Mark::Settled]).await.unwrap_err();
    assert!(error.to_string().contains("noeviction"), "{error}");
}
