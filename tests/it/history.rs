//! One suite over both histories; then what only one of them has.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod alerts;
mod dead_letters;
mod errors;
mod migrations;
mod runs;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use lamplighter::clock::{Clock, SystemClock, TestClock};
use lamplighter::history::{
    AlertChange, AlertState, NewRun, PostgresHistory, RunEnd, RunState, Severity, SharedHistory, SqliteHistory, Trigger,
};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};

use crate::support::postgres::{Postgres, TestDatabase};

const LEASE: Duration = Duration::from_secs(30);

/// Runs each named test on a bench of either database.
macro_rules! on_both {
    ($($test:ident),+ $(,)?) => {
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(crate::history::Bench::postgres().await).await;
            })+
        }
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(crate::history::Bench::sqlite().await).await;
            })+
        }
    };
}
use on_both;

/// A fresh database, and ways to look behind the trait.
struct Bench {
    history: SharedHistory,
    place: Place,
}

enum Place {
    Postgres(TestDatabase),
    Sqlite { folder: tempfile::TempDir, clock: Arc<TestClock> },
}

impl Bench {
    async fn postgres() -> Self {
        Self::new(Place::Postgres(Postgres::database().await)).await
    }

    async fn sqlite() -> Self {
        Self::new(Place::sqlite()).await
    }

    async fn new(place: Place) -> Self {
        let history = place.open();
        history.migrate().await.unwrap();
        Self { history, place }
    }

    /// A replica's own connection to the same database.
    fn replica(&self) -> SharedHistory {
        self.place.open()
    }

    /// Time passes for leases and messages. SQLite asks our clock; for Postgres, whose own clock counts, all that waits for
    /// an instant is brought nearer.
    async fn pass(&self, span: Duration) {
        match &self.place {
            Place::Sqlite { clock, .. } => clock.advance(span),
            Place::Postgres(_) => {
                let span = format!("interval '{} milliseconds'", span.as_millis());
                self.sql(&format!(
                    "UPDATE job_runs SET lease_until = lease_until - {span}; \
                     UPDATE replicas SET lease_until = lease_until - {span}; \
                     UPDATE outbox SET lease_until = lease_until - {span}, next_at = next_at - {span}"
                ))
                .await;
            }
        }
    }

    async fn sql(&self, sql: &str) {
        self.place.sql(sql).await;
    }
}

impl Place {
    fn sqlite() -> Self {
        Self::Sqlite {
            folder: tempfile::tempdir().unwrap(),
            clock: Arc::new(TestClock::at(at("2025-11-27T02:00:00Z"))),
        }
    }

    fn open(&self) -> SharedHistory {
        match self {
            Self::Postgres(database) => Arc::new(PostgresHistory::connect(&database.url.clone().into()).unwrap()),
            Self::Sqlite { clock, .. } => {
                let clock: Arc<dyn Clock> = clock.clone();
                Arc::new(SqliteHistory::open(self.file(), clock).unwrap())
            }
        }
    }

    fn file(&self) -> PathBuf {
        match self {
            Self::Sqlite { folder, .. } => folder.path().join("state/history.db"),
            Self::Postgres(_) => unreachable!("only SQLite has a file"),
        }
    }

    async fn sql(&self, sql: &str) {
        let sql = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        match self {
            Self::Postgres(database) => {
                let mut connection = PgConnection::connect(&database.url).await.unwrap();
                sql.execute(&mut connection).await.unwrap();
                connection.close().await.unwrap();
            }
            Self::Sqlite { .. } => {
                let options = SqliteConnectOptions::new().filename(self.file()).busy_timeout(Duration::from_secs(10));
                let mut connection = options.connect().await.unwrap();
                sql.execute(&mut connection).await.unwrap();
                connection.close().await.unwrap();
            }
        }
    }
}

fn at(instant: &str) -> DateTime<Utc> {
    instant.parse().unwrap()
}

fn new_id() -> String {
    ulid::Ulid::from_datetime(SystemClock.now().into()).to_string()
}

/// A scheduled run of `job` in the slot `minute` minutes after two o'clock.
fn run(job: &str, minute: i64) -> NewRun {
    let slot = at("2025-11-27T02:00:00Z") + TimeDelta::minutes(minute);
    NewRun {
        id: new_id(),
        job: job.to_owned(),
        slot: Some(slot),
        attempt: 1,
        trigger: Trigger::Schedule,
        exclusive: false,
        owner: "replica-1".to_owned(),
        host: "host-1".to_owned(),
        version: "0.1.0".to_owned(),
        started_at: slot,
        lease: LEASE,
    }
}

fn end(state: RunState) -> RunEnd {
    RunEnd {
        state,
        started_at: at("2025-11-27T02:00:00.5Z"),
        finished_at: at("2025-11-27T02:00:02Z"),
        rows: Some(7),
        error: (state != RunState::Succeeded).then(|| "the warehouse is away".to_owned()),
        findings: serde_json::json!([{"name": "rows", "value": 7.5, "odd": "nul \u{0} here"}]),
    }
}

fn change(job: &str, state: AlertState) -> AlertChange {
    AlertChange {
        fingerprint: format!("job_failed/{job}"),
        name: "job_failed".to_owned(),
        labels: [("job".to_owned(), job.to_owned())].into(),
        severity: Severity::Critical,
        state,
        summary: format!("{job} is {state}"),
        details: vec![("Error".to_owned(), "the warehouse is away".to_owned()), ("Attempt".to_owned(), "1".to_owned())],
        receivers: vec!["slack".to_owned()],
        at: match state {
            AlertState::Firing => at("2025-11-27T02:00:02Z"),
            AlertState::Resolved => at("2025-11-27T02:09:00Z"),
        },
    }
}

/// Does the same on several replicas at the same time.
async fn at_once<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    bench: &Bench,
    replicas: usize,
    work: impl Fn(SharedHistory, usize) -> F,
) -> Vec<T> {
    let tasks: Vec<_> = (0..replicas).map(|i| tokio::spawn(work(bench.replica(), i))).collect();
    let mut done = Vec::new();
    for task in tasks {
        done.push(task.await.unwrap());
    }
    done
}
