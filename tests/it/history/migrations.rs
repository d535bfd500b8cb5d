//! Migrations: two daemons at once, rows of every version, and databases that are ahead of us.

use std::path::Path;

use lamplighter::history::{DeadLetterFilter, HistoryError, RunFilter, SharedHistory};
use sqlx::migrate::Migrator;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};

use super::Place;
use crate::support::postgres::Postgres;

async fn migrate_at_once(place: &Place) {
    let daemons: Vec<SharedHistory> = (0..8).map(|_| place.open()).collect();
    let tasks: Vec<_> = daemons.into_iter().map(|daemon| tokio::spawn(async move { daemon.migrate().await })).collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    place.open().migrate().await.unwrap();
    assert_eq!(place.open().runs(&RunFilter { limit: 1, ..RunFilter::default() }).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_daemons_migrate_one_postgres_at_once() {
    for _ in 0..3 {
        migrate_at_once(&Place::Postgres(Postgres::empty_database().await)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_daemons_migrate_one_sqlite_at_once() {
    for _ in 0..10 {
        migrate_at_once(&Place::sqlite()).await;
    }
}

/// Applies each migration with the sample rows of its version, then looks at all of them with today's code.
async fn read_the_samples_of_every_version(place: &Place, backend: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let migrator = Migrator::new(root.join("migrations").join(backend)).await.unwrap();
    place.sql("SELECT 1").await;
    for migration in migrator.iter() {
        match place {
            Place::Postgres(database) => {
                let mut connection = PgConnection::connect(&database.url).await.unwrap();
                migrator.run_to(migration.version, &mut connection).await.unwrap();
            }
            Place::Sqlite { .. } => {
                let mut connection = SqliteConnectOptions::new().filename(place.file()).connect().await.unwrap();
                migrator.run_to(migration.version, &mut connection).await.unwrap();
            }
        }
        let sample = root.join(format!("tests/data/history/{:04}.{backend}.sql", migration.version));
        let sample = std::fs::read_to_string(&sample).unwrap_or_else(|e| panic!("each migration has a sample: {e}"));
        place.sql(&sample).await;
    }
    let history = place.open();
    history.migrate().await.unwrap();
    let everything = (
        history.runs(&RunFilter { limit: 100, ..RunFilter::default() }).await.unwrap(),
        history.last_slots().await.unwrap(),
        history.alerts(100).await.unwrap(),
        history.messages(100).await.unwrap(),
        history.dead_letters(&DeadLetterFilter { limit: 100, ..DeadLetterFilter::default() }).await.unwrap(),
        history.dead_letter("01KB20DT00SAMP1E0000000004").await.unwrap(),
    );
    let json = serde_json::to_string_pretty(&everything).unwrap() + "\n";
    let expected = std::fs::read_to_string(root.join("tests/data/history/expected.json")).unwrap_or_default();
    assert!(json == expected, "today's code reads the sample rows as: {json}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_every_version_stay_readable_in_postgres() {
    let place = Place::Postgres(Postgres::empty_database().await);
    read_the_samples_of_every_version(&place, "postgres").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_every_version_stay_readable_in_sqlite() {
    let place = Place::sqlite();
    place.open().ping().await.unwrap();
    read_the_samples_of_every_version(&place, "sqlite").await;
}

async fn refuse_a_newer_database(place: &Place, checksum: &str) {
    place.open().migrate().await.unwrap();
    place
        .sql(&format!(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
             VALUES (9999, 'from the future', true, {checksum}, 0)"
        ))
        .await;
    let error = place.open().migrate().await.unwrap_err();
    assert!(matches!(error, HistoryError::Refused { .. }), "{error:?}");
    assert!(error.to_string().contains("newer Lamplighter"), "{error}");
    place.sql("DELETE FROM _sqlx_migrations WHERE version = 9999").await;
    place.open().migrate().await.expect("the refusal left no lock behind");
    place.sql(&format!("UPDATE _sqlx_migrations SET checksum = {checksum}")).await;
    let error = place.open().migrate().await.unwrap_err();
    assert!(!error.is_transient() && error.to_string().contains("another wording"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_of_a_newer_version_is_refused() {
    refuse_a_newer_database(&Place::Postgres(Postgres::empty_database().await), r"'\x00'").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sqlite_of_a_newer_version_is_refused() {
    refuse_a_newer_database(&Place::sqlite(), "x'00'").await;
}

/// `CREATE`s of a schema, without the words for types that differ.
fn shape(backend: &str) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(backend);
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let types =
        [("TIMESTAMPTZ", "TEXT"), ("BIGINT", "INTEGER"), ("BOOLEAN", "INTEGER"), ("BYTEA", "BLOB"), ("JSON", "TEXT")];
    let read = |file: std::path::PathBuf| {
        let sql = std::fs::read_to_string(&file).unwrap();
        let words = sql.lines().filter(|line| !line.trim_start().starts_with("--")).flat_map(str::split_whitespace);
        let words = words.map(|word| types.iter().fold(word.to_owned(), |word, (from, to)| word.replace(from, to)));
        (file.file_name().unwrap().to_string_lossy().into_owned(), words.collect::<Vec<_>>().join(" "))
    };
    files.into_iter().map(read).collect()
}

#[test]
fn both_databases_have_the_same_migrations() {
    assert_eq!(shape("postgres"), shape("sqlite"));
}
