//! The real binary, killed (SIGKILL) at every numbered step of the upload protocol and at random instants, over a real Redis
//! and the BigQuery emulator. Each start has an empty disk: only Redis and the warehouse remember. Afterwards the warehouse is
//! compared with what was queued, row by row.
#![cfg(feature = "failpoints")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lamplighter::cache::{Produced, QueueRef, SharedCache};
use lamplighter::warehouse::{Column, ColumnType, TableSchema};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::daemon::{self, Daemon};
use crate::support::redis::Redis;
use crate::support::rig::{DATASETS, Rig};

/// The steps, by the names that `src/jobs/upload/` gives them.
const FAILPOINTS: [&str; 16] = [
    "adopted",
    "claimed",
    "reading-begun",
    "letters-kept",
    "marked",
    "streaming",
    "before-seal",
    "before-commit",
    "committed",
    "loaded",
    "reconciled",
    "buried",
    "acknowledging",
    "acknowledged",
    "finished",
    "random",
];

const JOB: &str = r#"
[jobs.upload]
kind = "upload"
datasets = ["transactions", "predictions", "scored", "scored_txs"]
lease = "3s"
batch = { max_rows = 40 }
retry = { attempts = 1 }
notify = []
"#;

/// What was produced: the versions of each record, and the entries that must become dead letters.
#[derive(Default)]
struct Produce {
    versions: BTreeMap<String, Vec<u64>>,
    broken: BTreeSet<String>,
    next: u64,
}

impl Produce {
    /// A new version of one of a few hundred records, in one of the forms that producers write.
    fn record(&mut self, number: u64) -> (u16, &'static str, Produced) {
        self.next += 1;
        let version = self.next;
        let (database, queue, key, body) = match number % 4 {
            0 | 1 => {
                let key = format!("tx:{number}");
                let body = json!({"transaction_id": key, "version": version, "_timestamp": "2025-09-27T14:30:00.5"});
                (0, "upload_queue", key, body)
            }
            2 => {
                let key = format!("pred:{number}");
                let hash = if number % 50 == 2 { "9".repeat(40) } else { "12.5".to_owned() };
                let body = json!({
                    "prediction_id": key, "version": version, "prediction_timestamp": "2025-09-27T14:30:00", "hash": hash,
                });
                (1, "upload_queue", key, body)
            }
            _ => {
                let key = format!("ml:pred:{number}");
                let body = json!({"prediction_id": key, "version": version, "timestamp": "2025-09-27T14:30:00"});
                (0, "ml_queue", key, body)
            }
        };
        let mut value = body.to_string();
        let broken = number.is_multiple_of(40);
        if broken {
            value.truncate(value.len() - 3);
        }
        if broken || value.contains(&"9".repeat(40)) {
            self.broken.insert(key.clone());
        } else {
            self.versions.entry(key.clone()).or_default().push(version);
        }
        let entry = match queue {
            "ml_queue" => json!({"type": "prediction", "key": key, "timestamp": "x"}).to_string(),
            _ => key.clone(),
        };
        (database, queue, Produced { entry: entry.into(), key, value: Some(value.into()) })
    }
}

async fn produce(cache: &SharedCache, produced: &Mutex<Produce>, number: u64) {
    let (database, queue, record) = produced.lock().unwrap().record(number);
    let queue = QueueRef { database, queue: queue.to_owned() };
    cache.produce(&queue, &[record], Duration::from_secs(3600)).await.unwrap();
}

struct Stage {
    rig: Rig,
    env: BTreeMap<&'static str, String>,
    folders: Vec<tempfile::TempDir>,
    settings: String,
}

impl Stage {
    async fn new() -> Self {
        let rig = Rig::servers(JOB).await;
        let project = rig.project.as_ref().unwrap();
        // A column whose limit only the warehouse knows: some rows pass our check and are refused there.
        let schema = TableSchema {
            columns: vec![
                Column::nullable("prediction_id", ColumnType::String),
                Column::nullable("version", ColumnType::Integer),
                Column::nullable("prediction_timestamp", ColumnType::Timestamp),
                Column::nullable("hash", ColumnType::Numeric),
            ],
            ..TableSchema::default()
        };
        rig.warehouse.create(&"d.prediction_logs".parse().unwrap(), &schema).await.unwrap();
        let env = BTreeMap::from([
            ("REDIS_URL", rig.redis.as_ref().map(Redis::url).unwrap()),
            ("BIGQUERY_PROJECT", project.name.clone()),
            ("BIGQUERY_EMULATOR_HOST", project.address()),
        ]);
        Self { rig, env, folders: Vec::new(), settings: format!("{DATASETS}\n{JOB}") }
    }

    /// A start on a new machine, held at a failpoint, or at none.
    fn start(&mut self, failpoint: Option<String>) -> Daemon {
        let folder = tempfile::tempdir().unwrap();
        let mut env = self.env.clone();
        env.extend(failpoint.map(|failpoint| ("LAMPLIGHTER_FAILPOINT", failpoint)));
        let daemon = Daemon::start_with(folder.path(), &self.settings, &env, &["run", "upload"]);
        self.folders.push(folder);
        daemon
    }

    /// Runs until nothing is left to do.
    async fn finish(&mut self) {
        for _ in 0..20 {
            let mut daemon = self.start(None);
            // Many kills leave many small batches, and each is a load or two.
            daemon.said_or_ended("(never said)", Duration::from_secs(900)).await;
            let status = daemon.ended().await;
            let mut left = 0;
            for (database, queue) in [(0, "upload_queue"), (1, "upload_queue"), (0, "ml_queue")] {
                let (waiting, inflight) = self.rig.left(database, queue).await;
                left += waiting + inflight as u64;
            }
            if left == 0 {
                assert!(status.code().is_some_and(|code| code <= 1), "{status}:\n{}", daemon.log().join("\n"));
                return;
            }
        }
        panic!("twenty runs did not empty the queues");
    }

    /// Compares the warehouse and the dead letters with what was produced.
    async fn compare(&self, produced: &Produce) {
        let mut rows: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for body in self.rig.column("d.raw_txs", "json_body").await {
            let body: Value = serde_json::from_str(&body).unwrap();
            let key = body["transaction_id"].as_str().unwrap().to_owned();
            rows.entry(key).or_default().push(body["version"].as_u64().unwrap());
        }
        let project = self.rig.project.as_ref().unwrap();
        for table in ["d.prediction_logs", "d.scored"] {
            let table = table.parse().unwrap();
            if self.rig.warehouse.schema(&table).await.unwrap().is_none() {
                continue;
            }
            let ids = project.column(&table, "prediction_id").await;
            let versions = project.column(&table, "version").await;
            for (id, version) in ids.iter().zip(versions) {
                let version = version.as_str().unwrap().parse().unwrap();
                rows.entry(id.as_str().unwrap().to_owned()).or_default().push(version);
            }
        }
        let mut wrong = Vec::new();
        for (key, versions) in &produced.versions {
            let mut there = rows.remove(key).unwrap_or_default();
            there.sort_unstable();
            let last = versions.last().unwrap();
            if !there.contains(last) {
                wrong.push(format!("{key}: the last version {last} is missing; there are {there:?}"));
            }
            if there.windows(2).any(|pair| pair[0] == pair[1]) {
                wrong.push(format!("{key}: a version is there twice: {there:?}"));
            }
            if let Some(unknown) = there.iter().find(|version| !versions.contains(version)) {
                wrong.push(format!("{key}: version {unknown} was never produced"));
            }
        }
        wrong.extend(rows.keys().map(|key| format!("{key} is in the warehouse, and was never produced")));
        // A letter is kept on the machine that found it; those machines are gone, but their disks are here to look at.
        let mut letters = BTreeSet::new();
        for folder in &self.folders {
            let env = BTreeMap::from([("LAMPLIGHTER_DATA", folder.path().join("data").display().to_string())]);
            let args = ["dead-letters", "list", "--json", "--limit", "10000"];
            let output = daemon::run(folder.path(), &env, &args).await;
            let listed: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
            let listed = listed.as_array().cloned().or_else(|| listed["dead_letters"].as_array().cloned());
            for letter in listed.unwrap_or_default() {
                letters.insert(letter["key"].as_str().unwrap().to_owned());
                let reason = letter["reason"].as_str().unwrap();
                if !["not_json", "refused"].contains(&reason) {
                    wrong.push(format!("an unexpected dead letter: {letter}"));
                }
            }
        }
        for key in produced.broken.symmetric_difference(&letters) {
            wrong.push(format!("{key} should be a dead letter: {}", produced.broken.contains(key)));
        }
        assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_every_step_nothing_is_lost_or_doubled() {
    for failpoint in FAILPOINTS.into_iter().filter(|name| *name != "random") {
        let mut stage = Stage::new().await;
        let produced = Mutex::new(Produce::default());
        for number in 0..60 {
            produce(&stage.rig.cache, &produced, number).await;
        }
        if failpoint == "adopted" {
            let mut dead = stage.start(Some("claimed".to_owned()));
            dead.wait_for("failpoint reached").await;
            dead.kill().await;
        }
        let mut daemon = stage.start(Some(failpoint.to_owned()));
        daemon.wait_for("failpoint reached").await;
        daemon.kill().await;
        // Some records are written anew while nobody is there.
        for number in (0..60).step_by(7) {
            produce(&stage.rig.cache, &produced, number).await;
        }
        stage.finish().await;
        stage.compare(&produced.into_inner().unwrap()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_its_datasets_renamed_nothing_is_lost_or_doubled() {
    for failpoint in ["before-commit", "committed", "loaded", "acknowledging"] {
        let mut stage = Stage::new().await;
        let produced = Mutex::new(Produce::default());
        for number in 0..60 {
            produce(&stage.rig.cache, &produced, number).await;
        }
        let mut daemon = stage.start(Some(failpoint.to_owned()));
        daemon.wait_for("failpoint reached").await;
        daemon.kill().await;
        for name in ["transactions", "predictions", "scored"] {
            stage.settings = stage.settings.replace(&format!("datasets.{name}]"), &format!("datasets.new_{name}]"));
            stage.settings = stage.settings.replace(&format!("\"{name}\""), &format!("\"new_{name}\""));
        }
        stage.finish().await;
        stage.compare(&produced.into_inner().unwrap()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_two_datasets_of_one_queue_swapped_nothing_is_lost_or_doubled() {
    for failpoint in ["committed", "loaded"] {
        let mut stage = Stage::new().await;
        let produced = Mutex::new(Produce::default());
        for number in (3..60).step_by(4) {
            produce(&stage.rig.cache, &produced, number).await;
        }
        let mut daemon = stage.start(Some(failpoint.to_owned()));
        daemon.wait_for("failpoint reached").await;
        daemon.kill().await;
        for (from, to) in [
            ("datasets.scored]", "datasets.x]"),
            ("datasets.scored_txs]", "datasets.scored]"),
            ("datasets.x]", "datasets.scored_txs]"),
        ] {
            stage.settings = stage.settings.replace(from, to);
        }
        stage.finish().await;
        stage.compare(&produced.into_inner().unwrap()).await;
    }
}

/// `LAMPLIGHTER_TEST_KILLS` sets how many; 20 where it is not set.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_while_producers_write_and_rewrite_nothing_is_lost_or_doubled() {
    let kills: u32 = std::env::var("LAMPLIGHTER_TEST_KILLS").map_or(20, |kills| kills.parse().unwrap());
    let seed: u64 =
        std::env::var("LAMPLIGHTER_TEST_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    eprintln!("{kills} kills with LAMPLIGHTER_TEST_SEED={seed}");
    let mut dice = fastrand::Rng::with_seed(seed);
    let mut stage = Stage::new().await;
    let produced = Arc::new(Mutex::new(Produce::default()));
    let stop = CancellationToken::new();
    let producer = tokio::spawn({
        let (cache, produced, stop, mut dice) = (stage.rig.cache.clone(), produced.clone(), stop.clone(), dice.fork());
        async move {
            let mut pace = tokio::time::interval(Duration::from_millis(40));
            while !stop.is_cancelled() {
                pace.tick().await;
                produce(&cache, &produced, dice.u64(..300)).await;
            }
        }
    });
    let mut reached: BTreeMap<&str, u32> = BTreeMap::new();
    for _ in 0..kills {
        let failpoint = FAILPOINTS[dice.usize(..FAILPOINTS.len())];
        let mut daemon = match failpoint {
            "random" => {
                let daemon = stage.start(None);
                tokio::time::sleep(Duration::from_millis(dice.u64(..1_500))).await;
                daemon
            }
            name => {
                let mut daemon = stage.start(Some(format!("{name}:{}", dice.u32(1..5))));
                daemon.said_or_ended("failpoint reached", Duration::from_secs(8)).await;
                daemon
            }
        };
        *reached.entry(failpoint).or_default() += 1;
        daemon.kill().await;
    }
    stop.cancel();
    producer.await.unwrap();
    stage.finish().await;
    let produced = std::mem::take(&mut *produced.lock().unwrap());
    let versions: usize = produced.versions.values().map(Vec::len).sum();
    eprintln!("killed at {reached:?}; {versions} versions of {} records", produced.versions.len());
    stage.compare(&produced).await;
}
