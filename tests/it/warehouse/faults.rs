//! BigQuery at its worst: every way in which a request can come to nothing, or seem to.

use std::sync::Arc;
use std::time::Duration;

use lamplighter::warehouse::{
    BigQuery, BigQuerySettings, FailureCause, Load, LoadStatus, SharedWarehouse, TableSchema, Warehouse, WarehouseError,
};
use serde_json::json;
use tokio::time::Instant;

use super::{columns, gzip, load, noise_rows, settled, table, write_in_pieces};
use crate::support::bigquery::Project;
use crate::support::fault_proxy::{FaultProxy, Strike};

async fn project_with_table() -> (Project, SharedWarehouse) {
    let project = Project::create().await;
    let warehouse: SharedWarehouse = Arc::new(project.connect().await);
    create(&warehouse).await;
    (project, warehouse)
}

async fn create(warehouse: &SharedWarehouse) {
    let schema = TableSchema { columns: columns(), ..TableSchema::default() };
    warehouse.create(&table(), &schema).await.unwrap();
}

async fn connect(settings: BigQuerySettings) -> SharedWarehouse {
    Arc::new(BigQuery::connect(settings).await.unwrap())
}

async fn send(warehouse: &SharedWarehouse, load: &Load, rows: &str) -> Result<(), WarehouseError> {
    let mut writer = warehouse.begin(load).await?;
    write_in_pieces(&mut writer, &gzip(rows.as_bytes()), 100_000).await?;
    writer.commit().await
}

const ONE_ROW: &str = r#"{"id":"a"}"#;
const ONE_DONE: LoadStatus = LoadStatus::Done { rows: 1, reading: 1 };

#[tokio::test]
async fn questions_are_asked_again_while_the_trouble_may_pass() {
    let html = "<html><body>Service Unavailable</body></html>";
    for fault in [
        json!({"status": 429, "reason": "rateLimitExceeded"}),
        json!({"status": 403, "reason": "rateLimitExceeded"}),
        json!({"status": 500, "reason": "internalError"}),
        json!({"status": 502, "body": html, "headers": {"content-type": "text/html"}}),
        json!({"status": 503, "body": html, "headers": {"content-type": "text/html"}}),
        json!({"status": 503, "body": "{\"error\": {}}"}),
        json!({"drop": true}),
        json!({"drop": true, "when": "after"}),
    ] {
        let (project, warehouse) = project_with_table().await;
        project.fault("GET datasets/d/tables/predictions", fault.clone()).await;
        let schema = warehouse.schema(&table()).await.unwrap_or_else(|error| panic!("after {fault}: {error}"));
        assert_eq!(schema.unwrap().columns, columns());
        let asked = project.requests("GET datasets/d/tables/predictions").await;
        assert_eq!(asked.len(), 2, "after {fault}: {asked:?}");
    }
}

#[tokio::test]
async fn the_tries_are_limited() {
    let (project, warehouse) = project_with_table().await;
    project.fault("GET jobs", json!({"status": 503, "times": 1000})).await;
    let error = warehouse.status(&table(), "x").await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("503 backendError"), "{error}");
    assert_eq!(project.requests("GET jobs").await.len(), 5);
}

#[tokio::test]
async fn a_slow_answer_is_not_waited_for_and_asked_for_again() {
    let (project, _) = project_with_table().await;
    let mut settings = project.settings();
    settings.timeouts.control = Duration::from_secs(2);
    let warehouse = connect(settings).await;
    project.fault("GET datasets/d/tables", json!({"delay_ms": 30_000})).await;
    let started = Instant::now();
    assert!(warehouse.schema(&table()).await.unwrap().is_some());
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[tokio::test]
async fn answers_that_break_off_or_come_too_late_are_asked_for_again() {
    let (project, _) = project_with_table().await;
    let proxy = FaultProxy::start(project.port()).await;
    let mut settings = project.settings_through(proxy.port());
    settings.timeouts.control = Duration::from_secs(3);
    let warehouse = connect(settings).await;
    for strike in [Strike::CutAnswerAfter(400), Strike::CutAnswerAfter(10), Strike::Delay(Duration::from_secs(6))] {
        proxy.arm("GET ", strike);
        let schema = warehouse.schema(&table()).await.unwrap_or_else(|error| panic!("after {strike:?}: {error}"));
        assert_eq!(schema.unwrap().columns, columns());
    }
    assert_eq!(proxy.struck(), 3);
}

#[tokio::test]
async fn retry_after_is_honoured() {
    let (project, warehouse) = project_with_table().await;
    project.fault("GET datasets/d/tables", json!({"status": 429, "headers": {"Retry-After": "1"}})).await;
    let started = Instant::now();
    assert!(warehouse.schema(&table()).await.unwrap().is_some());
    assert!(started.elapsed() >= Duration::from_secs(1), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_retry_after_that_is_too_long_is_handed_to_the_caller() {
    let (project, warehouse) = project_with_table().await;
    project.fault("GET datasets/d/tables", json!({"status": 503, "headers": {"Retry-After": "3600"}})).await;
    let error = warehouse.schema(&table()).await.unwrap_err();
    let WarehouseError::Unavailable { retry_after, .. } = error else { panic!("{error}") };
    assert_eq!(retry_after, Some(Duration::from_secs(3600)));
    assert_eq!(project.requests("GET datasets/d/tables").await.len(), 1);
}

#[tokio::test]
async fn a_job_that_was_accepted_without_an_answer_is_found_by_its_name() {
    let (project, warehouse) = project_with_table().await;
    project.fault("PUT jobs", json!({"drop": true, "when": "after"})).await;
    let error = send(&warehouse, &load("doubt"), ONE_ROW).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert_eq!(settled(&warehouse, &load("doubt")).await, ONE_DONE);
    let again = send(&warehouse, &load("doubt"), ONE_ROW).await;
    assert!(matches!(again, Err(WarehouseError::Duplicate { .. })), "{again:?}");
    assert_eq!(project.count(&table()).await, 1);
}

#[tokio::test]
async fn a_last_chunk_that_did_not_arrive_is_sent_again() {
    for fault in [json!({"drop": true}), json!({"status": 503}), json!({"status": 500, "body": "<html>"})] {
        let (project, warehouse) = project_with_table().await;
        project.fault("PUT jobs", fault.clone()).await;
        send(&warehouse, &load("again"), ONE_ROW).await.unwrap_or_else(|error| panic!("after {fault}: {error}"));
        assert_eq!(settled(&warehouse, &load("again")).await, ONE_DONE);
        assert_eq!(project.count(&table()).await, 1);
    }
}

#[tokio::test]
async fn a_chunk_that_broke_off_is_resumed_where_the_session_stands() {
    let (project, warehouse) = project_with_table().await;
    let proxy = FaultProxy::start(project.port()).await;
    let through_proxy = connect(project.settings_through(proxy.port())).await;
    let rows = noise_rows(5_000_000);
    let count = rows.lines().count() as u64;
    proxy.arm("bytes 0-", Strike::CutRequestAfter(300_000));
    proxy.arm("bytes 1048576-", Strike::DropRequest);
    proxy.arm("bytes 2097152-", Strike::DropAnswer);
    send(&through_proxy, &load("resumed"), &rows).await.unwrap();
    assert_eq!(proxy.struck(), 3);
    assert_eq!(settled(&warehouse, &load("resumed")).await, LoadStatus::Done { rows: count, reading: 1 });
    assert_eq!(project.count(&table()).await, count);
}

#[tokio::test]
async fn chunks_that_were_kept_without_an_answer_are_not_sent_twice() {
    let (project, warehouse) = project_with_table().await;
    let rows = noise_rows(5_000_000);
    let sent = gzip(rows.as_bytes()).len() as u64;
    project.fault("PUT jobs", json!({"drop": true, "when": "after"})).await;
    send(&warehouse, &load("kept"), &rows).await.unwrap();
    let count = rows.lines().count() as u64;
    assert_eq!(settled(&warehouse, &load("kept")).await, LoadStatus::Done { rows: count, reading: 1 });
    let received: u64 = project.requests("PUT jobs").await.iter().map(|put| put.bytes).sum();
    assert_eq!(received, sent);
}

#[tokio::test]
async fn a_lost_session_is_a_new_start_under_the_same_name() {
    for status in [404, 410] {
        let (project, warehouse) = project_with_table().await;
        project.fault("PUT jobs", json!({"status": status, "skip": 1, "reason": "notFound"})).await;
        let rows = noise_rows(5_000_000);
        let error = send(&warehouse, &load("lost"), &rows).await.unwrap_err();
        assert!(error.is_transient() && error.to_string().contains("session is gone"), "{error}");
        assert_eq!(warehouse.status(&table(), "lost").await.unwrap(), LoadStatus::Absent);
        send(&warehouse, &load("lost"), ONE_ROW).await.unwrap();
        assert_eq!(settled(&warehouse, &load("lost")).await, ONE_DONE);
    }
}

#[tokio::test]
async fn a_writer_that_failed_does_not_commit_a_part() {
    let (project, warehouse) = project_with_table().await;
    project.fault("PUT jobs", json!({"status": 410})).await;
    let mut writer = warehouse.begin(&load("part")).await.unwrap();
    let body = gzip(noise_rows(5_000_000).as_bytes());
    write_in_pieces(&mut writer, &body, 500_000).await.unwrap_err();
    let error = writer.commit().await.unwrap_err();
    assert!(error.to_string().contains("an earlier part was not sent"), "{error}");
    assert_eq!(warehouse.status(&table(), "part").await.unwrap(), LoadStatus::Absent);
}

#[tokio::test]
async fn an_upload_gives_up_in_the_end() {
    let (project, warehouse) = project_with_table().await;
    project.fault("PUT jobs", json!({"status": 503, "times": 1000})).await;
    let error = send(&warehouse, &load("never"), ONE_ROW).await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("sending load never"), "{error}");
    assert_eq!(project.requests("PUT jobs").await.len(), 5);
    assert_eq!(warehouse.status(&table(), "never").await.unwrap(), LoadStatus::Absent);
}

#[tokio::test]
async fn a_server_that_is_down_is_unavailable_and_works_again_when_it_is_up() {
    let (project, _) = project_with_table().await;
    let proxy = FaultProxy::start(project.port()).await;
    let warehouse = connect(project.settings_through(proxy.port())).await;
    proxy.refuse(true);
    let error = warehouse.schema(&table()).await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains(&project.name), "{error}");
    proxy.refuse(false);
    assert!(warehouse.schema(&table()).await.unwrap().is_some());
}

#[tokio::test]
async fn missing_permission_names_the_roles() {
    let (project, warehouse) = project_with_table().await;
    let denied = json!({"status": 403, "reason": "accessDenied", "times": 1000});
    project.fault("(GET|POST) (datasets/d/tables|jobs)", denied).await;
    let errors = [
        warehouse.schema(&table()).await.unwrap_err(),
        warehouse.create(&table(), &TableSchema::default()).await.unwrap_err(),
        warehouse.status(&table(), "x").await.unwrap_err(),
        send(&warehouse, &load("x"), ONE_ROW).await.unwrap_err(),
    ];
    for error in errors {
        let text = error.to_string();
        let roles = text.contains("BigQuery Data Editor") && text.contains("BigQuery Job User");
        assert!(!error.is_transient() && roles, "{text}");
    }
    assert_eq!(project.requests("GET datasets/d/tables").await.len(), 2, "a refusal is not tried again");
}

#[tokio::test]
async fn a_permission_that_is_missing_for_uploads_only_is_named_too() {
    let (project, warehouse) = project_with_table().await;
    project.fault("POST jobs", json!({"status": 403, "reason": "accessDenied"})).await;
    let error = send(&warehouse, &load("x"), ONE_ROW).await.unwrap_err();
    assert!(!error.is_transient() && error.to_string().contains("BigQuery Job User"), "{error}");
}

#[tokio::test]
async fn a_missing_dataset_comes_with_the_command_that_makes_it() {
    let project = Project::without_dataset();
    let warehouse = project.connect().await;
    let command = format!("bq mk --dataset {}:d", project.name);
    for error in [
        warehouse.schema(&table()).await.unwrap_err(),
        warehouse.create(&table(), &TableSchema { columns: columns(), ..TableSchema::default() }).await.unwrap_err(),
        warehouse.status(&table(), "x").await.unwrap_err(),
    ] {
        assert!(!error.is_transient() && error.to_string().contains(&command), "{error}");
    }
}

#[tokio::test]
async fn a_page_with_404_does_not_mean_that_the_job_is_absent() {
    let (project, warehouse) = project_with_table().await;
    project.fault("GET jobs", json!({"status": 404, "body": "<html>no such page</html>"})).await;
    let error = warehouse.status(&table(), "x").await.unwrap_err();
    assert!(!error.is_transient(), "{error}");
}

#[tokio::test]
async fn the_reason_of_a_failed_job_says_what_can_be_done() {
    for (reason, cause) in [
        ("backendError", FailureCause::Passing),
        ("jobInternalError", FailureCause::Passing),
        ("rateLimitExceeded", FailureCause::Passing),
        ("accessDenied", FailureCause::Permanent),
        ("quotaExceeded", FailureCause::Permanent),
        ("notFound", FailureCause::Permanent),
        ("unheardOf", FailureCause::Permanent),
    ] {
        let (project, warehouse) = project_with_table().await;
        project.fault("POST jobs", json!({"job": {"reason": reason, "message": "injected"}})).await;
        send(&warehouse, &load("failed"), ONE_ROW).await.unwrap();
        let LoadStatus::Failed(failure) = settled(&warehouse, &load("failed")).await else { panic!("it must fail") };
        assert_eq!(failure.cause, cause, "{failure:?}");
        assert!(failure.message.starts_with(&format!("{reason}: injected")), "{failure:?}");
        assert_eq!(project.count(&table()).await, 0);
    }
}

#[tokio::test]
async fn jobs_run_where_their_dataset_is() {
    let (project, warehouse) = project_with_table().await;
    send(&warehouse, &load("located"), ONE_ROW).await.unwrap();
    assert_eq!(settled(&warehouse, &load("located")).await, ONE_DONE);
    let asked = project.requests("GET jobs/located").await;
    assert!(asked[0].line.ends_with("?location=EU"), "{asked:?}");
    assert_eq!(project.requests("GET datasets/d?").await.len(), 1, "the location is asked for once");
}
