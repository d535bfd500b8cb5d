//! An upload job with its servers: a queue, a warehouse and a history, and ways to look into them that are not our code.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lamplighter::cache::{Produced, QueueRef, RedisCache, RedisSettings, SharedCache, SqliteCache};
use lamplighter::clock::{Clock, SystemClock};
use lamplighter::history::{DeadLetter, DeadLetterFilter, History, SharedHistory, SqliteHistory};
use lamplighter::jobs::{Datasets, Job, JobContext, JobError, Outcome, Progress};
use lamplighter::settings::Settings;
use lamplighter::warehouse::{SharedWarehouse, SqliteWarehouse, TableRef};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::bigquery::Project;
use super::redis::Redis;

/// Datasets as both producers fill them, in the dataset `d` of the warehouse.
pub(crate) const DATASETS: &str = r#"
[datasets.transactions]
database = 0
queue = "upload_queue"
keys = "tx:{id}"
table = "d.raw_txs"
layout = "json"

[datasets.predictions]
database = 1
queue = "upload_queue"
keys = "pred:{id}"
table = "d.prediction_logs"
layout = "columns"
timestamp_field = "prediction_timestamp"

[datasets.scored]
database = 0
queue = "ml_queue"
keys = "ml:pred:{id}"
table = "d.scored"
layout = "columns"
timestamp_field = "timestamp"

[datasets.scored_txs]
database = 0
queue = "ml_queue"
keys = "ml:tx:{id}"
table = "d.raw_txs"
layout = "json"
timestamp_field = "timestamp"
"#;

/// What the job uploads, and how: the rest of jobs.toml.
pub(crate) const JOB: &str = r#"
[jobs.upload]
kind = "upload"
datasets = ["transactions", "predictions", "scored", "scored_txs"]
lease = "3s"
"#;

/// The whole arrangement.
pub(crate) struct Rig {
    pub(crate) cache: SharedCache,
    pub(crate) warehouse: SharedWarehouse,
    pub(crate) history: SharedHistory,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) datasets: Arc<Datasets>,
    pub(crate) job: Arc<dyn Job>,
    pub(crate) redis: Option<Redis>,
    pub(crate) project: Option<Project>,
    pub(crate) stopping: CancellationToken,
    pub(crate) folder: tempfile::TempDir,
}

impl Rig {
    /// Files only.
    pub(crate) async fn sqlite(job: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let cache = Arc::new(SqliteCache::open(&folder.path().join("cache.db"), clock.clone()).await.unwrap());
        let warehouse = Arc::new(SqliteWarehouse::open(&folder.path().join("warehouse.db")).await.unwrap());
        Self::assemble(job, folder, clock, cache, warehouse, None, None).await
    }

    /// A Redis and the BigQuery emulator.
    pub(crate) async fn servers(job: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let redis = Redis::start().await;
        let cache = Arc::new(redis_cache(&redis));
        let project = Project::create().await;
        let warehouse = Arc::new(project.connect().await);
        Self::assemble(job, folder, Arc::new(SystemClock), cache, warehouse, Some(redis), Some(project)).await
    }

    /// A Redis, and SQLite for the warehouse: where only the queue matters.
    pub(crate) async fn redis(job: &str, redis: Redis) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cache = Arc::new(redis_cache(&redis));
        let warehouse = Arc::new(SqliteWarehouse::open(&folder.path().join("warehouse.db")).await.unwrap());
        Self::assemble(job, folder, Arc::new(SystemClock), cache, warehouse, Some(redis), None).await
    }

    async fn assemble(
        job: &str,
        folder: tempfile::TempDir,
        clock: Arc<dyn Clock>,
        cache: SharedCache,
        warehouse: SharedWarehouse,
        redis: Option<Redis>,
        project: Option<Project>,
    ) -> Self {
        let text = format!("{DATASETS}\n{job}");
        let settings = Settings::parse(Path::new("jobs.toml"), &text, &BTreeMap::new(), &lamplighter::jobs::kinds());
        let settings = settings.unwrap_or_else(|problems| panic!("{problems}"));
        let history = SqliteHistory::open(folder.path().join("history.db"), clock.clone()).unwrap();
        history.migrate().await.unwrap();
        Self {
            cache,
            warehouse,
            history: Arc::new(history),
            clock,
            datasets: settings.datasets.clone(),
            job: settings.job("upload").expect("the job is called upload").job.clone(),
            redis,
            project,
            stopping: CancellationToken::new(),
            folder,
        }
    }

    /// What a run is given; `owner` stands for the process.
    pub(crate) fn context(&self, owner: &str) -> JobContext {
        JobContext {
            job: "upload".to_owned(),
            run_id: ulid::Ulid::new().to_string(),
            owner: owner.to_owned(),
            clock: self.clock.clone(),
            cache: self.cache.clone(),
            warehouse: self.warehouse.clone(),
            history: self.history.clone(),
            datasets: self.datasets.clone(),
            stopping: self.stopping.clone(),
            progress: Progress::default(),
        }
    }

    /// One run.
    pub(crate) async fn run(&self) -> Result<Outcome, JobError> {
        self.job.run(&self.context("here")).await
    }

    /// One run that must succeed; its rows.
    pub(crate) async fn upload(&self) -> u64 {
        match self.run().await {
            Ok(Outcome::Done { rows, .. }) => rows.expect("an upload counts its rows"),
            other => panic!("the upload did not succeed: {other:?}"),
        }
    }

    /// The findings of one run that must succeed, as `name{label=value}` to value.
    pub(crate) async fn findings(&self) -> BTreeMap<String, f64> {
        let Ok(Outcome::Done { findings, .. }) = self.run().await else { panic!("the upload did not succeed") };
        let name = |finding: &lamplighter::jobs::Finding| {
            let labels: Vec<String> = finding.labels.iter().map(|(label, value)| format!("{label}={value}")).collect();
            format!("{}{{{}}}", finding.name, labels.join(","))
        };
        findings.iter().map(|finding| (name(finding), finding.value)).collect()
    }

    /// Writes records and their entries, as producers do.
    pub(crate) async fn produce(&self, database: u16, queue: &str, records: &[Produced]) {
        let queue = QueueRef { database, queue: queue.to_owned() };
        self.cache.produce(&queue, records, Duration::from_secs(3600)).await.unwrap();
    }

    /// How many entries wait, and how many batches are in flight.
    pub(crate) async fn left(&self, database: u16, queue: &str) -> (u64, usize) {
        let queue = QueueRef { database, queue: queue.to_owned() };
        (self.cache.depth(&queue).await.unwrap(), self.cache.inflight(&queue).await.unwrap().len())
    }

    /// What a key holds.
    pub(crate) async fn value(&self, database: u16, key: &str) -> lamplighter::cache::Stored {
        self.cache.read(database, &[key], u64::MAX, u64::MAX).await.unwrap().remove(0)
    }

    /// The values of a column, as text, sorted; none if there is no such table.
    pub(crate) async fn column(&self, table: &str, column: &str) -> Vec<String> {
        let table: TableRef = table.parse().unwrap();
        if self.warehouse.schema(&table).await.unwrap().is_none() {
            return Vec::new();
        }
        let text = |value: Value| match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        let mut values: Vec<String> = match &self.project {
            Some(project) => project.column(&table, column).await.into_iter().map(text).collect(),
            None => {
                let path = self.folder.path().join("warehouse.db");
                let pool = sqlx::SqlitePool::connect(&format!("sqlite://{}", path.display())).await.unwrap();
                let sql = format!("SELECT CAST(\"{column}\" AS TEXT) FROM \"{table}\"");
                let values: Vec<Option<String>> =
                    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_all(&pool).await.unwrap();
                values.into_iter().map(|value| value.unwrap_or_else(|| "null".to_owned())).collect()
            }
        };
        values.sort_unstable();
        values
    }

    /// All dead letters, with their bodies.
    pub(crate) async fn letters(&self) -> Vec<DeadLetter> {
        let filter = DeadLetterFilter { limit: 10_000, ..DeadLetterFilter::default() };
        let mut letters = Vec::new();
        for letter in self.history.dead_letters(&filter).await.unwrap() {
            letters.push(self.history.dead_letter(&letter.id).await.unwrap().expect("it was listed"));
        }
        letters
    }
}

/// A client of this Redis.
pub(crate) fn redis_cache(redis: &Redis) -> RedisCache {
    RedisCache::new(&RedisSettings::new(redis.url())).unwrap()
}

/// A transaction of producer A.
pub(crate) fn transaction(id: &str, amount: f64) -> Produced {
    let body = serde_json::json!({
        "transaction_id": id, "customer_id": "cust_1", "amount": amount, "transaction_timestamp": "2025-09-27T14:30:00Z",
        "_timestamp": "2025-09-27T14:30:00.123456",
    });
    Produced { entry: format!("tx:{id}").into(), key: format!("tx:{id}"), value: Some(body.to_string().into()) }
}

/// A prediction of producer A, with more fields.
pub(crate) fn prediction(id: &str, more: &str) -> Produced {
    let body = format!(
        "{{\"prediction_id\":\"{id}\",\"customer_id\":\"cust_1\",\"model_predictions\":{{\"ridge\":0.234,\"note\":\"x\"}},\
         \"selected_prediction\":0.5,\"processing_time_ms\":23.4,\"prediction_timestamp\":\"2025-09-27T14:30:00.5\"{more}}}"
    );
    Produced { entry: format!("pred:{id}").into(), key: format!("pred:{id}"), value: Some(body.into()) }
}
