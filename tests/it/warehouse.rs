//! One suite over every warehouse, then what only BigQuery can do to us: answers that lie, connections that break, and
//! credentials that are not accepted.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod faults;
mod logins;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use lamplighter::warehouse::{
    Column, ColumnType, FailureCause, Load, LoadStatus, LoadWriter, Mode, SharedWarehouse, SqliteWarehouse, TableRef,
    TableSchema, WarehouseError,
};
use serde_json::Value;
use tokio::time::Instant;

use crate::support::bigquery::Project;

/// A warehouse and a way to look into it that is not our own code.
struct Stage {
    warehouse: SharedWarehouse,
    eye: Eye,
}

enum Eye {
    Sqlite { path: PathBuf, _folder: tempfile::TempDir },
    Emulator(Project),
}

impl Stage {
    async fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("warehouse.db");
        let warehouse = std::sync::Arc::new(SqliteWarehouse::open(&path).await.unwrap());
        Self { warehouse, eye: Eye::Sqlite { path, _folder: folder } }
    }

    async fn emulator() -> Self {
        let project = Project::create().await;
        Self { warehouse: std::sync::Arc::new(project.connect().await), eye: Eye::Emulator(project) }
    }

    /// The values of a column, as text.
    async fn column(&self, table: &TableRef, column: &str) -> Vec<Option<String>> {
        let text = |value: Value| match value {
            Value::Null => None,
            Value::String(text) => Some(text),
            other => Some(other.to_string()),
        };
        match &self.eye {
            Eye::Emulator(project) => project.column(table, column).await.into_iter().map(text).collect(),
            Eye::Sqlite { path, .. } => {
                let pool = sqlx::SqlitePool::connect(&format!("sqlite://{}", path.display())).await.unwrap();
                let sql = format!("SELECT CAST(\"{column}\" AS TEXT) FROM \"{}.{}\"", table.dataset, table.table);
                sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_all(&pool).await.unwrap()
            }
        }
    }

    /// Sends rows under a name and waits until they have come to something.
    async fn load(&self, load: &Load, rows: &str) -> LoadStatus {
        self.send(load, rows).await.unwrap();
        settled(&self.warehouse, load).await
    }

    async fn send(&self, load: &Load, rows: &str) -> Result<(), WarehouseError> {
        let mut writer = self.warehouse.begin(load).await?;
        write_in_pieces(&mut writer, &gzip(rows.as_bytes()), 1000).await?;
        writer.commit().await
    }
}

async fn settled(warehouse: &SharedWarehouse, load: &Load) -> LoadStatus {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let status = warehouse.status(&load.table, &load.job_id).await.unwrap();
        if status != LoadStatus::Running {
            return status;
        }
        assert!(Instant::now() < deadline, "load {} is still {status:?}", load.job_id);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn gzip(bytes: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap().into()
}

async fn write_in_pieces(writer: &mut Box<dyn LoadWriter>, body: &Bytes, size: usize) -> Result<(), WarehouseError> {
    for start in (0..body.len()).step_by(size) {
        writer.write(body.slice(start..body.len().min(start + size))).await?;
    }
    Ok(())
}

fn table() -> TableRef {
    "d.predictions".parse().unwrap()
}

fn columns() -> Vec<Column> {
    vec![
        Column::required("id", ColumnType::String),
        Column::nullable("score", ColumnType::Float),
        Column::nullable("seen_at", ColumnType::Timestamp),
    ]
}

fn load(job_id: &str) -> Load {
    Load { table: table(), job_id: job_id.to_owned(), columns: columns(), reading: 1 }
}

async fn with_table(stage: &Stage) {
    let schema = TableSchema { columns: columns(), ..TableSchema::default() };
    stage.warehouse.create(&table(), &schema).await.unwrap();
}

macro_rules! on_every_warehouse {
    ($($test:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(super::Stage::sqlite().await).await;
            })*
        }
        mod bigquery {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(super::Stage::emulator().await).await;
            })*
        }
    };
}

on_every_warehouse!(
    it_answers_a_ping,
    a_created_table_reads_back_as_it_was_asked_for,
    creating_a_table_twice_is_no_error,
    a_table_that_does_not_exist_has_no_schema,
    a_load_appends_its_rows,
    a_name_succeeds_only_once,
    the_reading_comes_back_with_the_status,
    new_columns_are_added_with_the_load,
    a_load_never_changes_a_columns_type,
    bad_rows_are_named_by_their_offsets_and_nothing_is_written,
    a_failed_load_adds_no_column,
    a_load_nobody_sent_is_absent,
    a_writer_that_is_dropped_leaves_no_trace,
    a_load_into_a_missing_table_is_refused,
    a_load_without_rows_is_done,
    nan_and_infinity_are_numbers,
    two_loads_at_once_both_arrive,
    twenty_megabytes_arrive_whole,
);

async fn it_answers_a_ping(stage: Stage) {
    stage.warehouse.ping().await.unwrap();
    assert!(!stage.warehouse.describe().is_empty());
}

async fn a_created_table_reads_back_as_it_was_asked_for(stage: Stage) {
    let schema = TableSchema {
        columns: vec![
            Column::required("_timestamp", ColumnType::Timestamp),
            Column::required("json_body", ColumnType::Json),
            Column::nullable("name", ColumnType::String),
            Column::nullable("count", ColumnType::Integer),
            Column::nullable("score", ColumnType::Float),
            Column::nullable("price", ColumnType::Numeric),
            Column::nullable("approved", ColumnType::Boolean),
            Column::nullable("day", ColumnType::Date),
            Column::nullable("blob", ColumnType::Bytes),
            Column { name: "tags".into(), column_type: ColumnType::String, mode: Mode::Repeated },
            Column::nullable("model", ColumnType::Record(vec![Column::nullable("ridge", ColumnType::Float)])),
        ],
        partition_by: Some("_timestamp".into()),
        cluster_by: vec!["name".into(), "approved".into()],
        require_partition_filter: true,
    };
    stage.warehouse.create(&table(), &schema).await.unwrap();
    assert_eq!(stage.warehouse.schema(&table()).await.unwrap(), Some(schema));
}

async fn creating_a_table_twice_is_no_error(stage: Stage) {
    with_table(&stage).await;
    let other = TableSchema { columns: vec![Column::nullable("x", ColumnType::String)], ..TableSchema::default() };
    stage.warehouse.create(&table(), &other).await.unwrap();
    assert_eq!(stage.warehouse.schema(&table()).await.unwrap().unwrap().columns, columns());
}

async fn a_table_that_does_not_exist_has_no_schema(stage: Stage) {
    assert_eq!(stage.warehouse.schema(&table()).await.unwrap(), None);
}

async fn a_load_appends_its_rows(stage: Stage) {
    with_table(&stage).await;
    let first = r#"{"id":"a","score":0.5,"seen_at":"2025-09-27T14:30:00.123456Z"}"#;
    let done = LoadStatus::Done { rows: 1, reading: 1 };
    assert_eq!(stage.load(&load("first"), first).await, done);
    assert_eq!(stage.load(&load("second"), "{\"id\":\"b\"}\n").await, done);
    let mut ids = stage.column(&table(), "id").await;
    ids.sort();
    assert_eq!(ids, [Some("a".to_owned()), Some("b".to_owned())]);
    let mut scores = stage.column(&table(), "score").await;
    scores.sort();
    assert_eq!(scores, [None, Some("0.5".to_owned())]);
}

async fn a_name_succeeds_only_once(stage: Stage) {
    with_table(&stage).await;
    stage.load(&load("once"), r#"{"id":"a"}"#).await;
    let again = stage.send(&load("once"), r#"{"id":"b"}"#).await;
    assert!(matches!(&again, Err(WarehouseError::Duplicate { job_id }) if job_id == "once"), "{again:?}");
    assert_eq!(stage.column(&table(), "id").await, [Some("a".to_owned())]);
}

async fn the_reading_comes_back_with_the_status(stage: Stage) {
    with_table(&stage).await;
    let status = stage.load(&Load { reading: 4_000_000_000, ..load("read") }, r#"{"id":"a"}"#).await;
    assert_eq!(status, LoadStatus::Done { rows: 1, reading: 4_000_000_000 });
}

async fn new_columns_are_added_with_the_load(stage: Stage) {
    with_table(&stage).await;
    stage.load(&load("before"), r#"{"id":"old"}"#).await;
    let mut with_new = load("after");
    with_new.columns.push(Column::required("segment", ColumnType::String));
    let status = stage.load(&with_new, r#"{"id":"new","segment":"champion"}"#).await;
    assert_eq!(status, LoadStatus::Done { rows: 1, reading: 1 });
    let expected = [columns(), vec![Column::nullable("segment", ColumnType::String)]].concat();
    assert_eq!(stage.warehouse.schema(&table()).await.unwrap().unwrap().columns, expected);
    let mut segments = stage.column(&table(), "segment").await;
    segments.sort();
    assert_eq!(segments, [None, Some("champion".to_owned())]);
}

async fn a_load_never_changes_a_columns_type(stage: Stage) {
    with_table(&stage).await;
    let mut changed = load("changed");
    changed.columns[1].column_type = ColumnType::String;
    let Err(refusal) = stage.warehouse.begin(&changed).await else { panic!("a changed type must be refused") };
    assert!(refusal.to_string().contains("score is FLOAT in the table and STRING in the load"), "{refusal}");
}

async fn bad_rows_are_named_by_their_offsets_and_nothing_is_written(stage: Stage) {
    with_table(&stage).await;
    let rows = "{\"id\":\"good\"}\n{\"id\":\"bad\",\"extra\":1}\n{\"score\":1}\nnot json\n{\"id\":\"good too\"}\n";
    let LoadStatus::Failed(failure) = stage.load(&load("bad"), rows).await else { panic!("the load must fail") };
    assert_eq!(failure.cause, FailureCause::Rows, "{failure:?}");
    let offsets: Vec<u64> = failure.bad_rows.iter().map(|row| row.offset).collect();
    let places = ["{\"id\":\"bad\"", "{\"score\":1}", "not json"].map(|start| rows.find(start).unwrap() as u64);
    assert_eq!(offsets, places);
    assert!(failure.bad_rows[0].message.contains("extra"), "{failure:?}");
    assert!(failure.bad_rows[1].message.contains("Missing required field: id"), "{failure:?}");
    assert_eq!(stage.column(&table(), "id").await, [] as [Option<String>; 0]);

    let again = stage.send(&load("bad"), r#"{"id":"good"}"#).await;
    assert!(matches!(again, Err(WarehouseError::Duplicate { .. })), "a failed load's name is used up: {again:?}");
}

async fn a_failed_load_adds_no_column(stage: Stage) {
    with_table(&stage).await;
    let mut with_new = load("bad");
    with_new.columns.push(Column::nullable("segment", ColumnType::String));
    let status = stage.load(&with_new, "{\"id\":\"a\",\"segment\":\"x\"}\n{}\n").await;
    assert!(matches!(status, LoadStatus::Failed(_)), "{status:?}");
    assert_eq!(stage.warehouse.schema(&table()).await.unwrap().unwrap().columns, columns());
}

async fn a_load_nobody_sent_is_absent(stage: Stage) {
    with_table(&stage).await;
    assert_eq!(stage.warehouse.status(&table(), "never").await.unwrap(), LoadStatus::Absent);
}

async fn a_writer_that_is_dropped_leaves_no_trace(stage: Stage) {
    with_table(&stage).await;
    let mut writer = stage.warehouse.begin(&load("dropped")).await.unwrap();
    // More than a chunk, so that a part of it has been sent.
    write_in_pieces(&mut writer, &gzip(noise_rows(1_500_000).as_bytes()), 50_000).await.unwrap();
    drop(writer);
    assert_eq!(stage.warehouse.status(&table(), "dropped").await.unwrap(), LoadStatus::Absent);
    assert_eq!(stage.load(&load("dropped"), r#"{"id":"a"}"#).await, LoadStatus::Done { rows: 1, reading: 1 });
}

async fn a_load_into_a_missing_table_is_refused(stage: Stage) {
    let Err(refusal) = stage.warehouse.begin(&load("nowhere")).await else { panic!("there is no table") };
    assert!(!refusal.is_transient() && refusal.to_string().contains("there is no table d.predictions"), "{refusal}");
}

async fn a_load_without_rows_is_done(stage: Stage) {
    with_table(&stage).await;
    assert_eq!(stage.load(&load("empty"), "").await, LoadStatus::Done { rows: 0, reading: 1 });
}

async fn nan_and_infinity_are_numbers(stage: Stage) {
    with_table(&stage).await;
    let rows = "{\"id\":\"a\",\"score\":\"NaN\"}\n{\"id\":\"b\",\"score\":\"Infinity\"}\n{\"id\":\"c\",\"score\":\"-Infinity\"}\n";
    assert_eq!(stage.load(&load("odd"), rows).await, LoadStatus::Done { rows: 3, reading: 1 });
    let scores = stage.column(&table(), "score").await;
    assert_eq!(scores.iter().filter(|score| score.is_some()).count(), 3, "{scores:?}");
}

async fn two_loads_at_once_both_arrive(stage: Stage) {
    with_table(&stage).await;
    let mut writers = Vec::new();
    for name in ["left", "right"] {
        writers.push(stage.warehouse.begin(&load(name)).await.unwrap());
    }
    for writer in &mut writers {
        writer.write(gzip(br#"{"id":"a"}"#)).await.unwrap();
    }
    let (right, left) = (writers.pop().unwrap(), writers.pop().unwrap());
    let (left, right) = tokio::join!(left.commit(), right.commit());
    left.unwrap();
    right.unwrap();
    for name in ["left", "right"] {
        assert_eq!(settled(&stage.warehouse, &load(name)).await, LoadStatus::Done { rows: 1, reading: 1 });
    }
    assert_eq!(stage.column(&table(), "id").await.len(), 2);
}

/// Rows that do not compress well, of this size in all or a little more.
fn noise_rows(bytes: usize) -> String {
    let mut random = fastrand::Rng::with_seed(7);
    let mut rows = String::with_capacity(bytes + 5_000);
    let mut noise = [0; 3_000];
    for number in 0.. {
        if rows.len() >= bytes {
            break;
        }
        random.fill(&mut noise);
        rows.push_str(&format!("{{\"id\":\"{number}-{}\"}}\n", STANDARD.encode(noise)));
    }
    rows
}

async fn twenty_megabytes_arrive_whole(stage: Stage) {
    with_table(&stage).await;
    let rows = noise_rows(20_000_000);
    let mut sent: Vec<&str> =
        rows.lines().filter_map(|row| row.strip_prefix("{\"id\":\"")?.strip_suffix("\"}")).collect();
    // Not compressed at all, so that the body is as long as can be.
    let mut encoder = GzEncoder::new(Vec::new(), Compression::none());
    encoder.write_all(rows.as_bytes()).unwrap();
    let body = encoder.finish().unwrap().into();
    let mut writer = stage.warehouse.begin(&load("big")).await.unwrap();
    write_in_pieces(&mut writer, &body, 3_000_000).await.unwrap();
    writer.commit().await.unwrap();
    let done = LoadStatus::Done { rows: sent.len() as u64, reading: 1 };
    assert_eq!(settled(&stage.warehouse, &load("big")).await, done);
    let mut found: Vec<String> = stage.column(&table(), "id").await.into_iter().flatten().collect();
    sent.sort_unstable();
    found.sort_unstable();
    assert!(sent == found, "{} rows were sent, and {} found are not the same", sent.len(), found.len());
    if let Eye::Emulator(project) = &stage.eye {
        let puts = project.requests("PUT jobs").await;
        let largest = puts.iter().map(|put| put.bytes).max().unwrap();
        assert!(
            largest <= 1 << 20 && puts.len() >= 19,
            "no more than a chunk is held: {} of up to {largest}",
            puts.len()
        );
    }
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.txt");
    std::fs::write(&path, "these are notes, and long enough to be looked at, by no means a database ".repeat(20))
        .unwrap();
    for path in [path.as_path(), folder.path(), &folder.path().join("missing/warehouse.db")] {
        let Err(error) = SqliteWarehouse::open(path).await else { panic!("{} is no database", path.display()) };
        assert!(!error.is_transient() && error.to_string().contains(&*path.to_string_lossy()), "{error}");
    }
}

#[tokio::test]
async fn loads_outlive_the_process_that_sent_them() {
    let stage = Stage::sqlite().await;
    with_table(&stage).await;
    stage.load(&load("kept"), r#"{"id":"a"}"#).await;
    stage.load(&load("failed"), "{}").await;
    let Eye::Sqlite { path, .. } = &stage.eye else { unreachable!("asked for above") };
    let reopened = SqliteWarehouse::open(path).await.unwrap();
    let reopened: SharedWarehouse = std::sync::Arc::new(reopened);
    assert_eq!(settled(&reopened, &load("kept")).await, LoadStatus::Done { rows: 1, reading: 1 });
    assert!(matches!(settled(&reopened, &load("failed")).await, LoadStatus::Failed(_)));
}

#[tokio::test]
async fn a_file_takes_rows_of_forty_megabytes() {
    let stage = Stage::sqlite().await;
    with_table(&stage).await;
    // Escaped, as a record that is sent as text may be: twice as long on the way.
    let vast = format!("{{\"id\":\"{}\"}}", "\\\\".repeat(20_000_000));
    let status = stage.load(&load("vast"), &vast).await;
    assert_eq!(status, LoadStatus::Done { rows: 1, reading: 1 });
}
