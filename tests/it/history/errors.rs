//! Databases that are away, or refuse us.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lamplighter::clock::SystemClock;
use lamplighter::history::{Claim, DeadLetterFilter, History, HistoryError, PostgresHistory, SqliteHistory};
use tokio::net::TcpListener;

use super::{Bench, Place, change, end, run};
use crate::support::postgres::{Postgres, PostgresServer};
use lamplighter::history::AlertState::Firing;
use lamplighter::history::RunState;

fn postgres(url: &str) -> PostgresHistory {
    PostgresHistory::connect(&url.to_owned().into()).unwrap()
}

fn is_refused(error: &HistoryError, words: &[&str]) {
    let shown = format!("{error} {error:?}");
    assert!(matches!(error, HistoryError::Refused { .. }), "{shown}");
    assert!(words.iter().all(|word| shown.contains(word)), "{words:?} are missing in: {shown}");
    assert!(!shown.contains("only-in-tests") && !shown.contains("hunter2"), "{shown}");
}

fn is_unreachable(error: &HistoryError) {
    let shown = format!("{error} {error:?}");
    assert!(matches!(error, HistoryError::Unreachable { .. }) && error.is_transient(), "{shown}");
    assert!(shown.contains("Check that") && !shown.contains("only-in-tests"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_goes_away_and_comes_back_is_unreachable_meanwhile() {
    let server = PostgresServer::start().await;
    let database = server.database().await;
    let history = postgres(&database.url);
    let mine = run("upload", 0);
    assert_eq!(history.claim(std::slice::from_ref(&mine)).await.unwrap(), [Claim::Won]);
    server.stop().await;
    is_unreachable(&history.ping().await.unwrap_err());
    is_unreachable(&history.claim(&[run("upload", 1)]).await.unwrap_err());
    is_unreachable(&history.finish(&mine.id, &end(RunState::Failed), &[]).await.unwrap_err());
    is_unreachable(&history.migrate().await.unwrap_err());
    let start = Instant::now();
    let error = history.ping().await.unwrap_err();
    assert!(error.to_string().contains("refused"), "it says what the network said: {error}");
    assert!(start.elapsed() < Duration::from_secs(2), "a refused connection is told at once: {:?}", start.elapsed());
    server.start_again().await;
    assert!(history.finish(&mine.id, &end(RunState::Failed), &[change("upload", Firing)]).await.unwrap());
    assert_eq!(history.messages(10).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_is_away_at_the_start_is_no_error_until_it_is_needed() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let history = postgres(&format!("postgres://me:hunter2@127.0.0.1:{port}/watch"));
    assert_eq!(history.describe(), format!("Postgres 127.0.0.1:{port}/watch"));
    let start = Instant::now();
    is_unreachable(&history.ping().await.unwrap_err());
    assert!(start.elapsed() < Duration::from_secs(20), "a silent server holds nobody up: {:?}", start.elapsed());
    drop(silent);
    is_unreachable(&history.ping().await.unwrap_err());
    let nowhere = postgres("postgres://me:hunter2@history.invalid/watch");
    is_unreachable(&nowhere.ping().await.unwrap_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_a_missing_database_and_missing_tables_are_refused() {
    let url = Postgres::empty_database().await.url;
    let wrong = postgres(&url.replace("only-in-tests", "hunter2"));
    is_refused(&wrong.ping().await.unwrap_err(), &["password authentication failed", "Check user and password"]);
    let (server, _) = url.rsplit_once('/').unwrap();
    let missing = postgres(&format!("{server}/no_such_database"));
    is_refused(&missing.ping().await.unwrap_err(), &["no_such_database", "Create the database"]);
    let empty = postgres(&url);
    empty.ping().await.unwrap();
    is_refused(&empty.reap().await.unwrap_err(), &["job_runs", "restart Lamplighter"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_rights_is_refused() {
    let bench = Bench::postgres().await;
    let Place::Postgres(database) = &bench.place else { unreachable!("it was made as one") };
    // Users belong to the whole server, which other tests use too.
    bench.sql("CREATE ROLE guest LOGIN PASSWORD 'hunter2'").await;
    let guest = postgres(&database.url.replace("lamplighter:only-in-tests", "guest:hunter2"));
    guest.ping().await.unwrap();
    is_refused(&guest.reap().await.unwrap_err(), &["permission denied", "right to create and use tables"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_no_postgres_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answering = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            // What a web server would say.
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let history = postgres(&format!("postgres://me:hunter2@127.0.0.1:{port}/watch"));
    is_refused(&history.ping().await.unwrap_err(), &["Postgres"]);
    answering.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_says_what_is_wrong_with_its_file() {
    let clock = Arc::new(SystemClock);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("history.db");
    std::fs::write(&file, "this is not a database, whatever its name says".repeat(100)).unwrap();
    let history = SqliteHistory::open(&file, clock.clone()).unwrap();
    is_refused(&history.migrate().await.unwrap_err(), &["history.db", "not a database", "Move the file away"]);
    let history = SqliteHistory::open(folder.path(), clock.clone()).unwrap();
    is_refused(&history.migrate().await.unwrap_err(), &["LAMPLIGHTER_DATA"]);
    let error = SqliteHistory::open(file.join("under/a/file.db"), clock.clone()).unwrap_err();
    is_refused(&error, &["cannot be created", "LAMPLIGHTER_DATA"]);
    let history = SqliteHistory::open(folder.path().join("new.db"), clock).unwrap();
    let all = DeadLetterFilter { limit: 1, ..DeadLetterFilter::default() };
    is_refused(&history.dead_letters(&all).await.unwrap_err(), &["dead_letters", "restart Lamplighter"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_keeps_its_rows_over_a_restart_and_writes_times_that_people_can_read() {
    let bench = Bench::sqlite().await;
    bench.history.claim(&[run("upload", 0)]).await.unwrap();
    let again = bench.replica();
    assert_eq!(again.last_slots().await.unwrap().len(), 1);
    bench
        .sql(
            "CREATE TABLE proof (fine INTEGER NOT NULL CHECK (fine)); \
             INSERT INTO proof SELECT count(*) FROM job_runs WHERE slot = '2025-11-27T02:00:00.000000Z'",
        )
        .await;
}
