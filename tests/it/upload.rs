//! The upload, over files and over real servers: what arrives, what becomes a dead letter, what stays.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod faults;

use std::collections::BTreeMap;

use lamplighter::cache::{Produced, Stored};
use serde_json::{Value, json};

use crate::support::rig::{JOB, Rig, prediction, transaction};

/// Each test twice: over files, and over Redis and the BigQuery emulator.
macro_rules! both {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(super::Rig::sqlite(super::JOB).await).await; })+
        }
        mod servers {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(super::Rig::servers(super::JOB).await).await; })+
        }
    };
}

both!(
    both_producers_records_arrive_and_leave_the_cache,
    broken_records_become_dead_letters_and_the_rest_arrives,
    a_record_named_twice_arrives_once,
    new_fields_become_columns_and_types_stay,
    a_row_that_only_the_warehouse_refuses_is_isolated,
    an_empty_queue_asks_nothing_of_the_warehouse,
    a_dry_run_touches_nothing,
    a_retried_dead_letter_arrives,
    large_records_arrive,
    a_stopped_upload_leaves_the_rest_queued,
    a_queue_of_several_batches_arrives_once,
    a_batch_takes_about_as_many_bytes_as_it_may,
    several_batches_grow_and_shrink,
);

fn entry(entry: impl Into<Vec<u8>>, key: &str, value: Option<&str>) -> Produced {
    Produced { entry: entry.into(), key: key.to_owned(), value: value.map(Into::into) }
}

async fn both_producers_records_arrive_and_leave_the_cache(rig: Rig) {
    rig.produce(0, "upload_queue", &[transaction("tx_1", 1.5), transaction("tx_2", 2.5)]).await;
    rig.produce(1, "upload_queue", &[prediction("pred_1", ""), prediction("p2", ",\"risk\":\"LOW\"")]).await;
    let scored =
        json!({"prediction_id": "s1", "timestamp": "2025-09-27T10:00:00", "model_predictions": {"a": 1}}).to_string();
    let tx = json!({"transaction_id": "t9", "timestamp": "2025-09-27T11:00:00", "amount": 3}).to_string();
    let envelope = |kind: &str, key: &str| json!({"type": kind, "key": key, "timestamp": "x"}).to_string();
    let records = [
        entry(envelope("prediction", "ml:pred:s1"), "ml:pred:s1", Some(&scored)),
        entry(envelope("transaction", "ml:tx:t9"), "ml:tx:t9", Some(&tx)),
    ];
    rig.produce(0, "ml_queue", &records).await;

    assert_eq!(rig.upload().await, 6);

    let bodies = rig.column("d.raw_txs", "json_body").await;
    let ids: Vec<Value> =
        bodies.iter().map(|body| serde_json::from_str::<Value>(body).unwrap()["transaction_id"].clone()).collect();
    assert_eq!(ids.len(), 3, "{bodies:?}");
    for id in ["tx_1", "tx_2", "t9"] {
        assert!(ids.contains(&json!(id)), "{id} is missing from {ids:?}");
    }
    assert_eq!(rig.column("d.prediction_logs", "prediction_id").await, ["p2", "pred_1"]);
    assert_eq!(rig.column("d.prediction_logs", "risk").await, ["LOW", "null"]);
    assert_eq!(rig.column("d.scored", "prediction_id").await, ["s1"]);
    for (database, queue) in [(0, "upload_queue"), (1, "upload_queue"), (0, "ml_queue")] {
        assert_eq!(rig.left(database, queue).await, (0, 0), "{queue} in {database}");
    }
    for (database, key) in [(0, "tx:tx_1"), (1, "pred:pred_1"), (0, "ml:pred:s1"), (0, "ml:tx:t9")] {
        assert_eq!(rig.value(database, key).await, Stored::Missing, "{key}");
    }
    let schema = rig.warehouse.schema(&"d.prediction_logs".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(schema.partition_by.as_deref(), Some("prediction_timestamp"));
    assert_eq!(rig.upload().await, 0, "a second run finds nothing");
}

async fn broken_records_become_dead_letters_and_the_rest_arrives(rig: Rig) {
    let records = [
        transaction("good", 1.0),
        entry("tx:nan", "tx:nan", Some(r#"{"_timestamp":"2025-09-27T14:30:00","amount":NaN}"#)),
        entry("tx:cut", "tx:cut", Some(r#"{"_timestamp":"2025-0"#)),
        entry("tx:list", "tx:list", Some("[1,2]")),
        entry("tx:untimed", "tx:untimed", Some(r#"{"amount":1}"#)),
        entry("tx:gone", "tx:gone", None),
        entry("other:1", "other:1", Some("{}")),
        entry("{\"type\":\"transaction\"}", "unused", None),
    ];
    rig.produce(0, "upload_queue", &records).await;

    let findings = rig.findings().await;

    assert_eq!(findings["uploaded_rows{dataset=transactions}"], 2.0);
    assert_eq!(findings["dead_letters{dataset=transactions,reason=missing}"], 1.0);
    let reasons: BTreeMap<String, String> = rig
        .letters()
        .await
        .into_iter()
        .map(|letter| (String::from_utf8(letter.entry).unwrap(), letter.reason))
        .collect();
    let expected = [
        ("tx:cut", "not_json"),
        ("tx:list", "not_an_object"),
        ("tx:untimed", "schema"),
        ("tx:gone", "missing"),
        ("other:1", "no_dataset"),
        ("{\"type\":\"transaction\"}", "bad_entry"),
    ];
    let expected: BTreeMap<String, String> =
        expected.iter().map(|(entry, reason)| ((*entry).to_owned(), (*reason).to_owned())).collect();
    assert_eq!(reasons, expected);
    let cut = rig.letters().await.into_iter().find(|letter| letter.key == "tx:cut").unwrap();
    assert_eq!(cut.body.as_deref(), Some(br#"{"_timestamp":"2025-0"#.as_slice()), "the body is kept to the byte");
    assert_eq!(rig.left(0, "upload_queue").await, (0, 0));
}

async fn a_record_named_twice_arrives_once(rig: Rig) {
    let twice = [transaction("a", 1.0), transaction("a", 2.0), transaction("b", 1.0)];
    rig.produce(0, "upload_queue", &twice).await;
    assert_eq!(rig.upload().await, 2);
    let bodies = rig.column("d.raw_txs", "json_body").await.join("\n");
    assert!(bodies.contains("2.0") || bodies.contains("2,"), "the newest value counts: {bodies}");

    // An entry whose record an earlier entry brought is no dead letter.
    rig.produce(0, "upload_queue", &[entry("tx:a", "tx:a", None)]).await;
    let findings = rig.findings().await;
    assert_eq!(findings.get("uploaded_before{}"), Some(&1.0));
    assert!(rig.letters().await.is_empty());

    // A rewritten record is a new row.
    rig.produce(0, "upload_queue", &[transaction("a", 3.0)]).await;
    assert_eq!(rig.upload().await, 1);
    assert_eq!(rig.column("d.raw_txs", "json_body").await.len(), 3);
}

async fn new_fields_become_columns_and_types_stay(rig: Rig) {
    rig.produce(1, "upload_queue", &[prediction("p1", ",\"n\":1")]).await;
    assert_eq!(rig.upload().await, 1);
    let records = [
        prediction("p2", ",\"added\":1.5,\"flag\":true"),
        prediction("p3", ",\"n\":\"many\""),
        prediction("p4", ",\"added\":2"),
    ];
    rig.produce(1, "upload_queue", &records).await;
    assert_eq!(rig.upload().await, 3 - 1);
    assert_eq!(rig.column("d.prediction_logs", "prediction_id").await, ["p1", "p2", "p4"]);
    let flags = rig.column("d.prediction_logs", "flag").await;
    assert_eq!(flags.iter().filter(|flag| *flag == "null").count(), 2, "{flags:?}");
    let letters = rig.letters().await;
    assert_eq!(letters.len(), 1);
    assert!(letters[0].detail.contains("`n` should be a whole number"), "{}", letters[0].detail);
    let schema = rig.warehouse.schema(&"d.prediction_logs".parse().unwrap()).await.unwrap().unwrap();
    let column = |name: &str| schema.columns.iter().find(|column| column.name == name).unwrap().column_type.clone();
    assert_eq!(column("added"), lamplighter::warehouse::ColumnType::Float);
    assert_eq!(column("model_predictions"), lamplighter::warehouse::ColumnType::Json);
}

async fn a_row_that_only_the_warehouse_refuses_is_isolated(rig: Rig) {
    use lamplighter::warehouse::{Column, ColumnType, TableSchema};
    let schema = TableSchema {
        columns: vec![
            Column::nullable("prediction_id", ColumnType::String),
            Column::nullable("prediction_timestamp", ColumnType::Timestamp),
            Column::nullable("features_hash", ColumnType::Numeric),
        ],
        ..TableSchema::default()
    };
    rig.warehouse.create(&"d.prediction_logs".parse().unwrap(), &schema).await.unwrap();
    let record = |id: &str, hash: &str| {
        let body = json!({"prediction_id": id, "prediction_timestamp": "2025-09-27T14:30:00Z", "features_hash": hash});
        entry(format!("pred:{id}"), &format!("pred:{id}"), Some(&body.to_string()))
    };
    // Forty digits: a number to us, more than a NUMERIC to the warehouse.
    let mut records: Vec<Produced> = (0..20).map(|n| record(&format!("p{n:02}"), "12.5")).collect();
    records[7] = record("bad", "1234567890123456789012345678901234567890");
    rig.produce(1, "upload_queue", &records).await;

    assert_eq!(rig.upload().await, 19);

    let letters = rig.letters().await;
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert_eq!((letters[0].reason.as_str(), letters[0].key.as_str()), ("refused", "pred:bad"));
    assert!(letters[0].body.is_some());
    let ids = rig.column("d.prediction_logs", "prediction_id").await;
    let expected: Vec<String> = (0..20).filter(|n| *n != 7).map(|n| format!("p{n:02}")).collect();
    assert_eq!(ids, expected);
    assert_eq!(rig.left(1, "upload_queue").await, (0, 0));
}

async fn an_empty_queue_asks_nothing_of_the_warehouse(rig: Rig) {
    assert_eq!(rig.upload().await, 0);
    if let Some(project) = &rig.project {
        assert_eq!(project.requests("GET ").await.len(), 0);
        assert_eq!(project.requests("POST jobs").await.len(), 0);
    }
    assert!(rig.warehouse.schema(&"d.raw_txs".parse().unwrap()).await.unwrap().is_none(), "no table was created");
}

async fn a_dry_run_touches_nothing(rig: Rig) {
    let records = [transaction("a", 1.0), entry("tx:cut", "tx:cut", Some("{")), entry("tx:gone", "tx:gone", None)];
    rig.produce(0, "upload_queue", &records).await;
    let plan = rig.job.plan(&rig.context("here")).await.unwrap().expect("an upload can plan");
    let text = plan.lines.join("\n");
    assert!(text.contains("3 entries wait"), "{text}");
    assert!(text.contains("transactions: 1 rows"), "{text}");
    assert!(text.contains("not_json") && text.contains("missing"), "{text}");
    assert!(plan.trouble);
    assert_eq!(rig.left(0, "upload_queue").await, (3, 0));
    assert!(rig.letters().await.is_empty());
    assert!(rig.warehouse.schema(&"d.raw_txs".parse().unwrap()).await.unwrap().is_none(), "no table was created");
}

async fn a_retried_dead_letter_arrives(rig: Rig) {
    let body = r#"{"amount":1,"when":"2025-09-27T14:30:00Z"}"#;
    rig.produce(0, "upload_queue", &[entry("tx:untimed", "tx:untimed", Some(body))]).await;
    assert_eq!(rig.upload().await, 0);
    let letter = rig.letters().await.remove(0);
    // The record is mended where it was, then the letter is tried again.
    rig.produce(0, "unrelated", &[transaction("untimed", 5.0)]).await;
    lamplighter::jobs::retry_dead_letter(&rig.cache, &rig.datasets, &letter).await.unwrap();
    rig.history.drop_dead_letters(std::slice::from_ref(&letter.id)).await.unwrap();
    assert_eq!(rig.upload().await, 1);
    assert!(rig.letters().await.is_empty());
}

async fn large_records_arrive(rig: Rig) {
    let filler = "x".repeat(1_000_000);
    let mut records: Vec<Produced> = Vec::new();
    for n in 0..12 {
        let body = json!({"_timestamp": "2025-09-27T14:30:00Z", "n": n, "filler": filler}).to_string();
        records.push(entry(format!("tx:{n}"), &format!("tx:{n}"), Some(&body)));
    }
    records.push(entry("tx:vast", "tx:vast", Some(&format!("{{\"a\":\"{}\"}}", "x".repeat(8_100_000)))));
    rig.produce(0, "upload_queue", &records).await;
    assert_eq!(rig.upload().await, 12);
    let letters = rig.letters().await;
    assert_eq!(letters.len(), 1);
    assert_eq!((letters[0].reason.as_str(), letters[0].size_bytes), ("too_large", Some(8_100_008)));
    assert!(matches!(rig.value(0, "tx:vast").await, Stored::Value(_)), "it stays where it was");
}

async fn a_stopped_upload_leaves_the_rest_queued(rig: Rig) {
    rig.produce(0, "upload_queue", &[transaction("a", 1.0)]).await;
    rig.stopping.cancel();
    let error = rig.run().await.unwrap_err();
    assert!(error.retry && error.to_string().contains("stopped early"), "{error}");
    assert_eq!(rig.left(0, "upload_queue").await, (1, 0));
}

async fn a_batch_takes_about_as_many_bytes_as_it_may(mut rig: Rig) {
    let job = JOB.replace("lease = \"3s\"", "lease = \"3s\"\nbatch = { max_bytes = \"20KB\" }");
    let other = Rig::sqlite(&job).await;
    (rig.job, rig.datasets) = (other.job.clone(), other.datasets.clone());
    let record = |n: u32| {
        let body =
            json!({"transaction_id": n, "_timestamp": "2025-09-27T14:30:00Z", "x": "x".repeat(1_900)}).to_string();
        entry(format!("tx:{n}"), &format!("tx:{n}"), Some(&body))
    };
    rig.produce(0, "upload_queue", &(0..60).map(record).collect::<Vec<_>>()).await;
    let findings = rig.findings().await;
    assert_eq!(findings.get("uploaded_rows{dataset=transactions}"), Some(&60.0), "{findings:?}");
    let batches = findings["batches{}"];
    assert!((5.0..=8.0).contains(&batches), "120 KB in {batches} batches of 20 KB");
}

async fn several_batches_grow_and_shrink(mut rig: Rig) {
    let job = JOB.replace("lease = \"3s\"", "lease = \"3s\"\nbatch = { max_rows = 8 }");
    let other = Rig::sqlite(&job).await;
    (rig.job, rig.datasets) = (other.job.clone(), other.datasets.clone());
    let records: Vec<Produced> = (0..20).map(|n| transaction(&n.to_string(), f64::from(n))).collect();
    rig.produce(0, "upload_queue", &records).await;
    let findings = rig.findings().await;
    assert_eq!(findings.get("uploaded_rows{dataset=transactions}"), Some(&20.0), "{findings:?}");
    assert_eq!(findings["batches{}"], 6.0, "of 2, 4, 7, 3, 2 and 2");
}

async fn a_queue_of_several_batches_arrives_once(mut rig: Rig) {
    let job = JOB.replace("lease = \"3s\"", "lease = \"3s\"\nbatch = { max_rows = 400 }");
    let other = Rig::sqlite(&job).await;
    (rig.job, rig.datasets) = (other.job.clone(), other.datasets.clone());
    let records: Vec<Produced> = (0..1_500).map(|n| transaction(&format!("{n:04}"), f64::from(n))).collect();
    rig.produce(0, "upload_queue", &records).await;

    // Two processes at once.
    let (here, there) = (rig.context("here"), rig.context("there"));
    let (a, b) = tokio::join!(rig.job.run(&here), rig.job.run(&there));
    a.unwrap();
    b.unwrap();

    let mut ids: Vec<String> = Vec::new();
    for body in rig.column("d.raw_txs", "json_body").await {
        ids.push(serde_json::from_str::<Value>(&body).unwrap()["transaction_id"].as_str().unwrap().to_owned());
    }
    ids.sort_unstable();
    let expected: Vec<String> = (0..1_500).map(|n| format!("{n:04}")).collect();
    assert_eq!(ids, expected);
    assert_eq!(rig.left(0, "upload_queue").await, (0, 0));
}
