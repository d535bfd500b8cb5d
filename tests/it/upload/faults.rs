//! Servers that fail in the middle of an upload.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::sync::Arc;
use std::time::Duration;

use lamplighter::cache::{Lease, Produced, QueueRef, UploadCache};
use lamplighter::history::PostgresHistory;
use lamplighter::jobs::{JobContext, Progress};
use serde_json::json;

use crate::support::redis::Redis;
use crate::support::rig::{JOB, Rig, redis_cache, transaction};

fn queue() -> QueueRef {
    QueueRef { database: 0, queue: "upload_queue".to_owned() }
}

fn transactions(count: u32) -> Vec<Produced> {
    (0..count).map(|n| transaction(&format!("{n:05}"), f64::from(n))).collect()
}

async fn ids(rig: &Rig) -> Vec<String> {
    let bodies = rig.column("d.raw_txs", "json_body").await;
    let id = |body: &String| {
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        body["transaction_id"].as_str().unwrap().to_owned()
    };
    let mut ids: Vec<String> = bodies.iter().map(id).collect();
    ids.sort_unstable();
    ids
}

fn expected(count: u32) -> Vec<String> {
    (0..count).map(|n| format!("{n:05}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bigquery_faults_neither_lose_nor_double_a_row() {
    for (what, matching, fault) in [
        ("the upload session is refused", "POST jobs", json!({"times": 2, "status": 503})),
        ("the quota is busy", "POST jobs", json!({"times": 2, "status": 429, "reason": "rateLimitExceeded"})),
        ("a chunk gets an error", "PUT jobs", json!({"times": 1, "status": 500})),
        ("the answer to the load is lost", "PUT jobs", json!({"times": 1, "when": "after", "drop": true})),
        ("the load is accepted with an error", "PUT jobs", json!({"times": 1, "when": "after", "status": 503})),
        ("the connection breaks", "PUT jobs", json!({"times": 1, "drop": true})),
        ("nobody can say what became of it", "GET jobs", json!({"times": 3, "status": 503})),
        ("a proxy answers in HTML", "GET jobs", json!({"times": 2, "status": 502, "body": "<html>Bad Gateway</html>"})),
    ] {
        let rig = Rig::servers(JOB).await;
        rig.produce(0, "upload_queue", &transactions(50)).await;
        let project = rig.project.as_ref().unwrap();
        project.fault(matching, fault).await;
        assert_eq!(rig.upload().await, 50, "{what}");
        assert_eq!(ids(&rig).await, expected(50), "{what}");
        assert_eq!(rig.left(0, "upload_queue").await, (0, 0), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_says_what_to_do_and_leaves_everything_in_flight() {
    let rig = Rig::servers(JOB).await;
    rig.produce(0, "upload_queue", &transactions(5)).await;
    let project = rig.project.as_ref().unwrap();
    project.fault("POST jobs", json!({"times": 1, "status": 403, "reason": "accessDenied"})).await;
    let error = rig.run().await.unwrap_err();
    assert!(!error.retry, "{error}");
    assert!(error.to_string().contains("role"), "{error}");
    assert_eq!(rig.left(0, "upload_queue").await, (0, 1));
    assert_eq!(rig.upload().await, 5, "the next run takes it up");
    assert_eq!(ids(&rig).await, expected(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_killed_and_restarted_in_the_middle_costs_nothing() {
    let rig = Rig::redis(JOB, Redis::builder().durable().start().await).await;
    rig.produce(0, "upload_queue", &transactions(20_000)).await;
    let (seen, mut progress) = tokio::sync::mpsc::unbounded_channel();
    let ctx = JobContext {
        progress: Progress::to(move |report| {
            let _ = seen.send(report.done);
        }),
        ..rig.context("here")
    };
    let redis = rig.redis.as_ref().unwrap();
    let break_it = async {
        while progress.recv().await.expect("the upload reports") < 5_000 {}
        redis.kill();
        redis.restart().await;
    };
    let (result, ()) = tokio::join!(rig.job.run(&ctx), break_it);
    if let Err(error) = result {
        assert!(error.retry, "{error}");
        rig.upload().await;
    }
    assert_eq!(ids(&rig).await, expected(20_000));
    assert_eq!(rig.left(0, "upload_queue").await, (0, 0));
    assert!(rig.letters().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_a_dead_process_is_finished_by_the_next() {
    let rig = Rig::servers(JOB).await;
    rig.produce(0, "upload_queue", &transactions(30)).await;
    let ttl = Duration::from_secs(1);
    let lease = Lease { queue: queue(), batch: ulid::Ulid::new().to_string(), owner: "dead".to_owned(), ttl };
    assert_eq!(rig.cache.claim(&lease, 20).await.unwrap().len(), 20);
    assert_eq!(rig.upload().await, 30);
    assert_eq!(ids(&rig).await, expected(30));
    assert_eq!(rig.left(0, "upload_queue").await, (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_place_for_dead_letters_their_entries_stay_in_flight() {
    let mut rig = Rig::redis(JOB, Redis::start().await).await;
    let broken = Produced { entry: b"tx:cut".to_vec(), key: "tx:cut".to_owned(), value: Some(b"{".to_vec()) };
    rig.produce(0, "upload_queue", &[transaction("00000", 1.0), broken, transaction("00001", 1.0)]).await;
    let there = rig.history.clone();
    let nowhere = "postgres://nobody@127.0.0.1:9/nothing".to_owned().into();
    rig.history = Arc::new(PostgresHistory::connect(&nowhere).unwrap());

    let error = rig.run().await.unwrap_err();
    assert!(error.retry && error.to_string().contains("1 entries stay in flight"), "{error}");
    assert_eq!(ids(&rig).await, expected(2), "the good ones are in the warehouse");
    assert_eq!(rig.left(0, "upload_queue").await, (0, 1), "the bad one is in flight");

    rig.history = there;
    assert_eq!(rig.upload().await, 0);
    assert_eq!(rig.letters().await.len(), 1);
    assert_eq!(rig.left(0, "upload_queue").await, (0, 0));
    assert_eq!(ids(&rig).await, expected(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_rewritten_while_it_is_uploaded_is_uploaded_again() {
    let rig = Rig::redis(JOB, Redis::start().await).await;
    rig.produce(0, "upload_queue", &transactions(3_000)).await;
    // A producer rewrites the same keys all the time.
    let cache = Arc::new(redis_cache(rig.redis.as_ref().unwrap()));
    let stop = tokio_util::sync::CancellationToken::new();
    let producer = tokio::spawn({
        let stop = stop.clone();
        async move {
            let mut version = 0_u32;
            while !stop.is_cancelled() {
                version += 1;
                let mut record = transaction(&format!("{:05}", version % 100), f64::from(version));
                record.value = record.value.map(|value| {
                    String::from_utf8(value)
                        .unwrap()
                        .replacen('{', &format!("{{\"version\":{version},"), 1)
                        .into_bytes()
                });
                cache.produce(&queue(), &[record], Duration::from_secs(3600)).await.unwrap();
            }
            version
        }
    });
    for _ in 0..3 {
        rig.upload().await;
    }
    stop.cancel();
    let versions = producer.await.unwrap();
    rig.upload().await;

    let bodies = rig.column("d.raw_txs", "json_body").await;
    let mut distinct = bodies.clone();
    distinct.dedup();
    assert_eq!(bodies.len(), distinct.len(), "no version of a record is there twice");
    for version in versions.saturating_sub(99).max(1)..=versions {
        let wanted = format!("\"version\":{version},");
        assert!(
            bodies.iter().any(|body| body.contains(&wanted)),
            "the last version of a record ({version}) is missing"
        );
    }
    assert!(rig.letters().await.is_empty(), "{:?}", rig.letters().await);
    assert_eq!(rig.left(0, "upload_queue").await, (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_are_kept_are_uploaded_once() {
    let rig = Rig::redis(JOB, Redis::start().await).await;
    let mut kept = Rig::sqlite(JOB).await;
    (kept.cache, kept.redis) = (rig.cache.clone(), None);
    let mut datasets = (*kept.datasets).clone();
    for dataset in datasets.values_mut() {
        dataset.after_upload = lamplighter::cache::AfterUpload::Keep;
    }
    kept.datasets = Arc::new(datasets);
    kept.produce(0, "upload_queue", &transactions(10)).await;
    assert_eq!(kept.upload().await, 10);
    assert!(matches!(kept.value(0, "tx:00003").await, lamplighter::cache::Stored::Value(_)));
    let again = Produced { entry: b"tx:00003".to_vec(), key: "tx:00003".to_owned(), value: None };
    kept.produce(0, "upload_queue", &[again]).await;
    assert_eq!(kept.upload().await, 0, "it has been sent");
    kept.produce(0, "upload_queue", &[transaction("00003", 99.0)]).await;
    assert_eq!(kept.upload().await, 1, "it has changed");
}
