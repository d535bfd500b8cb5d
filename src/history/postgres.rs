//! The history in Postgres: connecting, moving values in and out, migrating, and what its errors mean.

mod errors;

use std::ops::DerefMut;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use sqlx::encode::{Encode, IsNull};
use sqlx::error::BoxDynError;
use sqlx::pool::PoolConnection;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgArguments, PgConnectOptions, PgPoolOptions, PgRow, PgTypeInfo};
use sqlx::{AssertSqlSafe, ConnectOptions, PgConnection, PgPool, Postgres, Row, Transaction, Type};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use url::Url;

use super::HistoryError;
use super::sql::{Backend, Cells, Column, Session, Value, columns};

/// Enough for a claim, a heartbeat, the outbox and two readers at once; small, because servers give out few connections.
const MAX_CONNECTIONS: u32 = 5;
/// How long to wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// What we ask of every connection. Not as start-up options: poolers such as PgBouncer refuse those.
const LIMITS: &str = "SET statement_timeout = '30s'; SET idle_in_transaction_session_timeout = '60s'";

/// The history in Postgres.
#[derive(Debug)]
pub struct PostgresHistory {
    pool: PgPool,
    name: String,
}

impl PostgresHistory {
    /// Prepares to use the database of `DATABASE_URL`, inside a Tokio runtime. The server may be away: it is asked when it
    /// is first needed. Only a URL that cannot be understood is an error here.
    pub fn connect(url: &SecretString) -> Result<Self, HistoryError> {
        let options = connect_options(url.expose_secret())?;
        let name = name(&options);
        let pool = PgPoolOptions::new()
            .max_connections(MAX_CONNECTIONS)
            .acquire_timeout(CONNECT)
            .idle_timeout(Duration::from_secs(10 * 60))
            .after_connect(|connection, _| {
                Box::pin(async move { sqlx::raw_sql(LIMITS).execute(connection).await.map(drop) })
            })
            .connect_lazy_with(options);
        Ok(Self { pool, name })
    }

    /// Closes the connections, after what is under way.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// With no connection open, asks the server's port first: the pool would hide a refused connection behind a long wait.
    async fn knock(&self) -> Result<(), sqlx::Error> {
        if self.pool.size() > 0 {
            return Ok(());
        }
        let options = self.pool.connect_options();
        let (host, port) = (options.get_host(), options.get_port());
        let knock = async {
            match options.get_socket() {
                Some(folder) => UnixStream::connect(folder.join(format!(".s.PGSQL.{port}"))).await.map(drop),
                None => TcpStream::connect((host, port)).await.map(drop),
            }
        };
        timeout(CONNECT, knock).await.map_err(|_| sqlx::Error::PoolTimedOut)?.map_err(sqlx::Error::Io)
    }
}

/// Reads the URL, strictly: sqlx takes any scheme, and logs the value of a parameter that it does not know.
fn connect_options(url: &str) -> Result<PgConnectOptions, HistoryError> {
    let refuse = |reason: String| HistoryError::Refused {
        database: "in DATABASE_URL".to_owned(),
        reason,
        cure: "Write it as postgres://user:password@host:5432/database".to_owned(),
    };
    let mut url = Url::parse(url.trim()).map_err(|e| refuse(format!("it is not a URL: {e}")))?;
    if !matches!(url.scheme(), "postgres" | "postgresql") {
        return Err(refuse(format!("its scheme is {:?}, not postgres", url.scheme())));
    }
    const KNOWN: [&str; 17] = [
        "sslmode",
        "ssl-mode",
        "sslrootcert",
        "ssl-root-cert",
        "ssl-ca",
        "sslcert",
        "ssl-cert",
        "sslkey",
        "ssl-key",
        "statement-cache-capacity",
        "host",
        "hostaddr",
        "port",
        "dbname",
        "user",
        "password",
        "application_name",
    ];
    let (known, unknown): (Vec<_>, Vec<_>) =
        url.query_pairs().into_owned().partition(|(name, _)| KNOWN.contains(&name.as_str()));
    for (name, _) in unknown {
        tracing::warn!(parameter = %name, "DATABASE_URL has a parameter that is not used");
    }
    url.set_query(None);
    if !known.is_empty() {
        url.query_pairs_mut().extend_pairs(known);
    }
    let options = PgConnectOptions::from_str(url.as_str()).map_err(|e| match e {
        sqlx::Error::Configuration(e) => refuse(format!("it cannot be used: {e}")),
        e => refuse(format!("it cannot be used: {e}")),
    })?;
    let options = match options.get_application_name() {
        Some(_) => options,
        None => options.application_name("lamplighter"),
    };
    Ok(options.disable_statement_logging())
}

fn name(options: &PgConnectOptions) -> String {
    let host = match options.get_socket() {
        Some(folder) => folder.display().to_string(),
        None => options.get_host().to_owned(),
    };
    let database = options.get_database().unwrap_or(options.get_username());
    format!("Postgres {host}:{}/{database}", options.get_port())
}

impl Backend for PostgresHistory {
    type Read = PostgresSession<PoolConnection<Postgres>>;
    type Write = PostgresSession<Transaction<'static, Postgres>>;

    const SHARED: bool = true;

    fn name(&self) -> String {
        self.name.clone()
    }

    async fn read(&self) -> Result<Self::Read, sqlx::Error> {
        self.knock().await?;
        Ok(PostgresSession { connection: self.pool.acquire().await?, now: None })
    }

    async fn write(&self) -> Result<Self::Write, sqlx::Error> {
        self.knock().await?;
        Ok(PostgresSession { connection: self.pool.begin().await?, now: None })
    }

    async fn commit(transaction: Self::Write) -> Result<(), sqlx::Error> {
        transaction.connection.commit().await
    }

    /// All in one transaction that holds a lock, so that of two daemons that start at once one waits for the other, and
    /// the lock goes away with the transaction whatever happens.
    async fn migrate(&self) -> Result<(), sqlx::Error> {
        /// Any number, as long as every version of us uses the same.
        const LOCK: i64 = 0x6c61_6d70;
        let mut migrator = sqlx::migrate!("migrations/postgres");
        migrator.set_locking(false);
        self.knock().await?;
        let mut transaction = self.pool.begin().await?;
        sqlx::raw_sql("SET LOCAL statement_timeout = '20min'").execute(&mut *transaction).await?;
        sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LOCK).execute(&mut *transaction).await?;
        // Not `run`: rustc does not see that its future may be sent to another thread.
        migrator.run_direct(None, &mut *transaction, false).await.map_err(|e| sqlx::Error::Migrate(Box::new(e)))?;
        transaction.commit().await
    }

    fn explain(&self, error: sqlx::Error) -> HistoryError {
        errors::explain(&self.name, &error)
    }
}

/// A connection, or a transaction.
pub(super) struct PostgresSession<C> {
    connection: C,
    now: Option<DateTime<Utc>>,
}

impl<C: DerefMut<Target = PgConnection> + Send> Session for PostgresSession<C> {
    type Row = PgRow;

    const LOCK: &'static str = "FOR UPDATE";
    const LOCK_FREE: &'static str = "FOR UPDATE SKIP LOCKED";

    async fn now(&mut self) -> Result<DateTime<Utc>, sqlx::Error> {
        if let Some(now) = self.now {
            return Ok(now);
        }
        let now = sqlx::query("SELECT now()").fetch_one(&mut *self.connection).await?.try_get(0)?;
        self.now = Some(now);
        Ok(now)
    }

    async fn query(&mut self, sql: &str, values: &[Value<'_>]) -> Result<Vec<PgRow>, sqlx::Error> {
        // Safe: the text is put together from our own words only; what others wrote is always bound.
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for value in values {
            query = bind(query, value);
        }
        query.fetch_all(&mut *self.connection).await
    }

    async fn given(&mut self, columns: &[Column<'_>], sql: &str) -> Result<Vec<PgRow>, sqlx::Error> {
        if columns.iter().all(|column| column.cells.len() == 0) {
            return Ok(Vec::new());
        }
        let names: Vec<&str> = columns.iter().map(|column| column.name).collect();
        let (mut reads, mut arrays) = (Vec::new(), Vec::new());
        for (i, column) in columns.iter().enumerate() {
            let (read, array) = match column.cells {
                Cells::Text(_) => (column.name.to_owned(), "text"),
                Cells::Json(_) => (format!("{}::json", column.name), "text"),
                Cells::Int(_) => (column.name.to_owned(), "bigint"),
                Cells::Flag(_) => (column.name.to_owned(), "boolean"),
                Cells::Time(_) => (column.name.to_owned(), "timestamptz"),
                Cells::Bytes(_) => (column.name.to_owned(), "bytea"),
            };
            reads.push(read);
            arrays.push(format!("${}::{array}[]", i + 1));
        }
        let sql = format!(
            "WITH given({names}) AS (SELECT {reads} FROM unnest({arrays}) AS list({names})) {sql}",
            names = names.join(", "),
            reads = reads.join(", "),
            arrays = arrays.join(", "),
        );
        // Safe: names and types are our own words; the cells are bound.
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for column in columns {
            query = match &column.cells {
                Cells::Text(cells) => query.bind(cells.as_slice()),
                Cells::Json(cells) => query.bind(cells.as_slice()),
                Cells::Int(cells) => query.bind(cells.as_slice()),
                Cells::Flag(cells) => query.bind(cells.as_slice()),
                Cells::Time(cells) => query.bind(cells.as_slice()),
                Cells::Bytes(cells) => query.bind(cells.as_slice()),
            };
        }
        query.fetch_all(&mut *self.connection).await
    }
}

type Query<'q> = sqlx::query::Query<'q, Postgres, PgArguments>;

fn bind<'q>(query: Query<'q>, value: &Value<'_>) -> Query<'q> {
    match value {
        Value::Text(text) => query.bind(text.as_deref()),
        Value::Json(text) => query.bind(JsonText(text)),
        Value::Int(number) => query.bind(number),
        Value::Flag(flag) => query.bind(flag),
        Value::Time(instant) => query.bind(instant),
        Value::Bytes(bytes) => query.bind(bytes),
    }
}

/// JSON that is written already, for a column of type `json`. (sqlx would send `jsonb`, which refuses `\u0000`.)
struct JsonText<'a>(&'a str);

impl Type<Postgres> for JsonText<'_> {
    fn type_info() -> PgTypeInfo {
        /// The number of type `json` in every Postgres.
        const JSON: Oid = Oid(114);
        PgTypeInfo::with_oid(JSON)
    }
}

impl Encode<'_, Postgres> for JsonText<'_> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        buffer.extend_from_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }
}

columns!(PgRow);

#[cfg(test)]
mod tests {
    use super::*;

    fn named(url: &str) -> String {
        name(&connect_options(url).unwrap())
    }

    #[test]
    fn the_name_shows_neither_user_nor_password() {
        assert_eq!(
            named("postgres://me:hunter2@db.internal:5433/watch?sslmode=require"),
            "Postgres db.internal:5433/watch"
        );
        assert_eq!(named("postgresql://me:hunter2@db.internal/watch"), "Postgres db.internal:5432/watch");
        assert_eq!(named("postgres://me@%2Frun%2Fpostgresql/watch"), "Postgres /run/postgresql:5432/watch");
    }

    #[test]
    fn a_url_that_cannot_be_understood_is_refused_without_showing_the_password() {
        for url in [
            "me:hunter2@db/watch",
            "mysql://me:hunter2@db/watch",
            "postgres://me:hunter2@db:port/watch",
            "postgres://me:hunter2@db/watch?sslmode=hunter",
            "postgres://me:hunter2@db/watch?port=hunter",
            "",
        ] {
            let error = connect_options(url).unwrap_err();
            assert!(!error.is_transient(), "{url}: {error:?}");
            let shown = error.to_string();
            assert!(shown.contains("DATABASE_URL") && shown.contains("postgres://user:password@host"), "{shown}");
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }

    #[test]
    fn an_unknown_parameter_is_left_out_and_the_others_stay() {
        let options = connect_options("postgres://me@db/watch?pasword=hunter2&application_name=night").unwrap();
        assert_eq!(options.get_application_name(), Some("night"));
        assert_eq!(connect_options("postgres://me@db/watch").unwrap().get_application_name(), Some("lamplighter"));
    }
}
