//! The statements, written once for both databases. What differs between Postgres and SQLite is behind [`Session`]: how
//! lists of rows are passed, whose clock is asked, and how rows that another replica works on are stepped over.

mod alerts;
mod dead_letters;
mod history;
mod outbox;
mod replicas;
mod runs;
mod values;

use std::future::Future;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::de::DeserializeOwned;
use sqlx::migrate::MigrateError;

pub(super) use self::values::{Cells, Column, Value};
use super::HistoryError;

/// One of the two databases.
pub(super) trait Backend: Send + Sync + 'static {
    /// For single questions.
    type Read: Session;
    /// A transaction.
    type Write: Session;

    /// Whether other machines can reach it.
    const SHARED: bool;

    fn name(&self) -> String;
    fn read(&self) -> impl Future<Output = Result<Self::Read, sqlx::Error>> + Send;
    fn write(&self) -> impl Future<Output = Result<Self::Write, sqlx::Error>> + Send;
    fn commit(transaction: Self::Write) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
    fn migrate(&self) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
    /// Says what an error means for people, and whether trying again can help.
    fn explain(&self, error: sqlx::Error) -> HistoryError;
}

/// A connection to one of the two databases.
pub(super) trait Session: Send {
    type Row: Columns;

    /// Ends a SELECT whose rows shall be ours alone until the transaction ends.
    const LOCK: &'static str;
    /// The same, stepping over the rows that are another's at the moment.
    const LOCK_FREE: &'static str;

    /// The time by which leases are judged, the same throughout a transaction.
    fn now(&mut self) -> impl Future<Output = Result<DateTime<Utc>, sqlx::Error>> + Send;

    /// Carries out one statement with its values as `$1`, `$2` …
    fn query(
        &mut self,
        sql: &str,
        values: &[Value<'_>],
    ) -> impl Future<Output = Result<Vec<Self::Row>, sqlx::Error>> + Send;

    /// Carries out one statement that reads the columns as the rows of a table called `given`. SQLite may need several
    /// statements for many rows; then the answers follow each other.
    fn given(
        &mut self,
        columns: &[Column<'_>],
        sql: &str,
    ) -> impl Future<Output = Result<Vec<Self::Row>, sqlx::Error>> + Send;
}

/// A row that was read.
pub(super) trait Columns: Send {
    fn maybe_text(&self, name: &str) -> Result<Option<String>, sqlx::Error>;
    fn maybe_int(&self, name: &str) -> Result<Option<i64>, sqlx::Error>;
    fn maybe_time(&self, name: &str) -> Result<Option<DateTime<Utc>>, sqlx::Error>;
    fn maybe_bytes(&self, name: &str) -> Result<Option<Vec<u8>>, sqlx::Error>;
    fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T, sqlx::Error>;

    fn text(&self, name: &str) -> Result<String, sqlx::Error> {
        self.maybe_text(name)?.ok_or_else(|| unexpected(name, "nothing is there"))
    }

    fn time(&self, name: &str) -> Result<DateTime<Utc>, sqlx::Error> {
        self.maybe_time(name)?.ok_or_else(|| unexpected(name, "nothing is there"))
    }

    fn bytes(&self, name: &str) -> Result<Vec<u8>, sqlx::Error> {
        self.maybe_bytes(name)?.ok_or_else(|| unexpected(name, "nothing is there"))
    }

    fn maybe_number<T: TryFrom<i64>>(&self, name: &str) -> Result<Option<T>, sqlx::Error> {
        let number = self.maybe_int(name)?;
        number
            .map(|number| T::try_from(number).map_err(|_| unexpected(name, format!("{number} is out of range"))))
            .transpose()
    }

    fn number<T: TryFrom<i64>>(&self, name: &str) -> Result<T, sqlx::Error> {
        self.maybe_number(name)?.ok_or_else(|| unexpected(name, "nothing is there"))
    }

    fn maybe_word<T: FromStr<Err = String>>(&self, name: &str) -> Result<Option<T>, sqlx::Error> {
        self.maybe_text(name)?.map(|word| word.parse().map_err(|e: String| unexpected(name, e))).transpose()
    }

    fn word<T: FromStr<Err = String>>(&self, name: &str) -> Result<T, sqlx::Error> {
        self.maybe_word(name)?.ok_or_else(|| unexpected(name, "nothing is there"))
    }
}

/// [`Columns`] for a row type of sqlx; the two differ in nothing but their name.
macro_rules! columns {
    ($row:ty) => {
        impl $crate::history::sql::Columns for $row {
            fn maybe_text(&self, name: &str) -> Result<Option<String>, sqlx::Error> {
                sqlx::Row::try_get(self, name)
            }
            fn maybe_int(&self, name: &str) -> Result<Option<i64>, sqlx::Error> {
                sqlx::Row::try_get(self, name)
            }
            fn maybe_time(&self, name: &str) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
                sqlx::Row::try_get(self, name)
            }
            fn maybe_bytes(&self, name: &str) -> Result<Option<Vec<u8>>, sqlx::Error> {
                sqlx::Row::try_get(self, name)
            }
            fn json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T, sqlx::Error> {
                // Through a `Value`, because sqlx asks more of `T` than serde does.
                let sqlx::types::Json(value) =
                    sqlx::Row::try_get::<sqlx::types::Json<serde_json::Value>, _>(self, name)?;
                serde_json::from_value(value).map_err(|e| $crate::history::sql::unexpected(name, e))
            }
        }
    };
}
pub(super) use columns;

/// A value that is not what our own statements write.
pub(super) fn unexpected(column: &str, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> sqlx::Error {
    sqlx::Error::ColumnDecode { index: column.to_owned(), source: why.into() }
}

/// `now` and `span` later. A span that nobody lives to see the end of is cut, so that every database can hold the result.
fn later(now: DateTime<Utc>, span: Duration) -> DateTime<Utc> {
    const LONGEST: TimeDelta = TimeDelta::days(36_500);
    now + TimeDelta::from_std(span).unwrap_or(LONGEST).min(LONGEST)
}

/// Cuts texts that other programs wrote, so that no row grows without bound.
fn clip(text: &str) -> &str {
    const MAX_BYTES: usize = 16 * 1024;
    &text[..text.floor_char_boundary(MAX_BYTES)]
}

/// Says what a failed migration means; errors of the database itself are not for here.
pub(super) fn explain_migration(database: &str, error: &MigrateError) -> HistoryError {
    let (reason, cure) = match error {
        MigrateError::VersionMissing(version) => (
            format!("its tables were set up by a newer Lamplighter (migration {version} is not known here)"),
            "Start that version or a newer one",
        ),
        MigrateError::VersionMismatch(version) => (
            format!("migration {version} was applied to it in another wording"),
            "Start the version that set it up, or use another database",
        ),
        error => (error.to_string(), "This is a fault in Lamplighter: please report it"),
    };
    HistoryError::Refused { database: database.to_owned(), reason, cure: cure.to_owned() }
}
