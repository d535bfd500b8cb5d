//! What the errors of Postgres mean for people.

use sqlx::migrate::MigrateError;

use crate::history::HistoryError;
use crate::history::sql::explain_migration;

/// Whether trying again can help, and what would.
pub(super) fn explain(database: &str, error: &sqlx::Error) -> HistoryError {
    use sqlx::Error::{Database, Io, Migrate, PoolClosed, PoolTimedOut, Protocol, Tls, WorkerCrashed};
    let unreachable = |reason: String| HistoryError::Unreachable {
        database: database.to_owned(),
        reason: format!("{reason}. Check that the server runs and that DATABASE_URL is right"),
    };
    let refused = |reason: String, cure: &str| HistoryError::Refused {
        database: database.to_owned(),
        reason,
        cure: cure.to_owned(),
    };
    match error {
        Database(e) => {
            let code = e.code().unwrap_or_default();
            match cure(&code) {
                Some(cure) => refused(e.message().to_owned(), cure),
                None => unreachable(e.message().to_owned()),
            }
        }
        Io(e) => unreachable(e.to_string()),
        PoolTimedOut => unreachable("no connection within 5 s: it does not answer, or is too busy".to_owned()),
        PoolClosed | WorkerCrashed => unreachable("the connections are being closed".to_owned()),
        Tls(e) => refused(format!("no encrypted connection: {e}"), "Check sslmode and sslrootcert in DATABASE_URL"),
        Protocol(e) => refused(
            format!("it does not answer as a Postgres would: {e}"),
            "Check that host and port in DATABASE_URL are those of a Postgres",
        ),
        Migrate(e) => match &**e {
            MigrateError::Execute(e) | MigrateError::ExecuteMigration(e, _) => explain(database, e),
            e => explain_migration(database, e),
        },
        e => refused(e.to_string(), "This is a fault in Lamplighter: please report it"),
    }
}

/// What would help against an SQLSTATE; `None` where trying again would.
fn cure(code: &str) -> Option<&'static str> {
    let cure = match code {
        "28P01" | "28000" => "Check user and password in DATABASE_URL, and that the server lets this host in",
        "3D000" => "Create the database, or correct its name in DATABASE_URL",
        "42501" => "Give the user of DATABASE_URL the right to create and use tables in its schema",
        "3F000" => "Create a schema that the user of DATABASE_URL finds on its search_path",
        "42P01" | "42703" | "42P10" => {
            "The tables are missing or of another version: restart Lamplighter to set them up"
        }
        "25006" => "DATABASE_URL leads to a read-only copy: use the primary's address",
        // Statements that ran into a limit or another statement, and servers that are short of something, starting or
        // stopping: https://www.postgresql.org/docs/current/errcodes-appendix.html
        "40001" | "40P01" | "55P03" | "57014" | "25P03" | "25P04" => return None,
        _ if ["08", "53", "57", "58"].iter().any(|class| code.starts_with(class)) => return None,
        _ => "This is a fault in Lamplighter: please report it",
    };
    Some(cure)
}
