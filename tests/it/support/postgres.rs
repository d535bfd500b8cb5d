//! Real PostgreSQL servers: one that the tests of this process share, with a database for each test, and private ones that a
//! test may stop and start again. Data lives in a temporary folder. A server ends with the process that started it, however
//! that ends: its keeper, a line of shell, holds the other end of a pipe.

#![expect(clippy::unwrap_used, reason = "a test whose server fails should say where and stop")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use lamplighter::history::{History, PostgresHistory};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};
use tokio::sync::OnceCell;

const USER: &str = "lamplighter";
const PASSWORD: &str = "only-in-tests";
const TEMPLATE: &str = "migrated";
const STARTS_WITHIN: Duration = Duration::from_secs(60);

/// The server that the tests of this process share.
pub(crate) struct Postgres;

/// A database of one test.
pub(crate) struct TestDatabase {
    /// With user and password.
    pub(crate) url: String,
}

impl Postgres {
    /// A new database with all tables, on the shared server.
    pub(crate) async fn database() -> TestDatabase {
        Self::shared().await.database().await
    }

    /// A new database without tables, on the shared server.
    pub(crate) async fn empty_database() -> TestDatabase {
        Self::shared().await.empty_database().await
    }

    async fn shared() -> &'static PostgresServer {
        static SHARED: OnceCell<PostgresServer> = OnceCell::const_new();
        SHARED.get_or_init(PostgresServer::start).await
    }
}

/// A server of one's own.
pub(crate) struct PostgresServer {
    port: u16,
    keeper: Mutex<Keeper>,
    folder: PathBuf,
    template: OnceCell<()>,
    databases: AtomicU32,
}

impl PostgresServer {
    /// Starts a server on a free port.
    pub(crate) async fn start() -> Self {
        let mut last = String::new();
        // A port that was free may be taken before the server has it.
        for _ in 0..5 {
            let folder = Keeper::initialise();
            let port = free_port();
            let keeper = Mutex::new(Keeper::start(&folder, port));
            let server = Self { port, keeper, folder, template: OnceCell::new(), databases: AtomicU32::new(0) };
            match server.answers().await {
                Ok(()) => return server,
                Err(e) => last = e,
            }
        }
        panic!("PostgreSQL does not start: {last}");
    }

    /// The address of a database on this server.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://{USER}:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    /// A new database with all tables.
    pub(crate) async fn database(&self) -> TestDatabase {
        self.template.get_or_init(|| self.migrate_template()).await;
        let name = self.next_name();
        self.admin(&format!("CREATE DATABASE {name} TEMPLATE {TEMPLATE}")).await;
        TestDatabase { url: self.url(&name) }
    }

    /// A new database without tables.
    pub(crate) async fn empty_database(&self) -> TestDatabase {
        let name = self.next_name();
        self.admin(&format!("CREATE DATABASE {name}")).await;
        TestDatabase { url: self.url(&name) }
    }

    /// Stops the server as its own stop script would: connected clients are told so and sent away.
    pub(crate) async fn stop(&self) {
        self.keeper.lock().unwrap().tell("stop");
        let deadline = Instant::now() + STARTS_WITHIN;
        while tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_ok() {
            assert!(Instant::now() < deadline, "PostgreSQL still answers after a stop: {}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Starts the server again, on the same port and data.
    pub(crate) async fn start_again(&self) {
        self.keeper.lock().unwrap().tell("start");
        self.answers().await.expect("a server that ran before starts again");
    }

    async fn migrate_template(&self) {
        self.admin(&format!("CREATE DATABASE {TEMPLATE}")).await;
        let history = PostgresHistory::connect(&self.url(TEMPLATE).into()).unwrap();
        history.migrate().await.unwrap();
        // A template can only be copied while nobody is connected to it.
        history.close().await;
    }

    fn next_name(&self) -> String {
        format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed))
    }

    async fn admin(&self, sql: &str) {
        let mut connection = PgConnection::connect(&self.url("postgres")).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }

    async fn answers(&self) -> Result<(), String> {
        let deadline = Instant::now() + STARTS_WITHIN;
        loop {
            let error = match PgConnection::connect(&self.url("postgres")).await {
                Ok(connection) => return connection.close().await.map_err(|e| e.to_string()),
                Err(e) => e,
            };
            let log = self.log();
            if Instant::now() > deadline || log.contains("could not create any TCP/IP sockets") {
                return Err(format!("{error}; its log: {log}"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_else(|e| format!("no log: {e}"))
    }
}

/// Starts, stops and cleans up one server.
struct Keeper {
    shell: Child,
    pipe: Option<ChildStdin>,
}

/// Reads orders until the pipe is closed, then ends the server and removes its folder (`$1`; the rest is the server).
const KEEPER: &str = r#"
folder=$1; shift
server=
begin() { "$@" >>"$folder/log" 2>&1 </dev/null & server=$!; }
finish() { [ -z "$server" ] || { kill "-$1" "$server" 2>/dev/null; wait "$server" 2>/dev/null; server=; }; }
begin "$@"
while read -r order; do
    case $order in
        stop) finish INT ;;
        start) begin "$@" ;;
    esac
done
finish QUIT
rm -rf "$folder"
"#;

impl Keeper {
    /// Creates the data of a new server.
    fn initialise() -> PathBuf {
        let folder = tempfile::Builder::new().prefix("lamplighter-pg-").tempdir().unwrap().keep();
        let secret = folder.join("password");
        fs::write(&secret, PASSWORD).unwrap();
        if let Some((uid, gid)) = unprivileged() {
            chown(&folder, Some(uid), Some(gid)).unwrap();
            chown(&secret, Some(uid), Some(gid)).unwrap();
        }
        let mut initdb = as_unprivileged(&binary("initdb"));
        initdb.args(["--no-sync", "--encoding=UTF8", "--locale=C", "--auth=password", "--username", USER]);
        initdb.arg("--pwfile").arg(&secret).arg("--pgdata").arg(folder.join("data"));
        let Output { status, stderr, .. } = initdb.current_dir(&folder).output().expect("initdb can be started");
        assert!(status.success(), "initdb fails: {}", String::from_utf8_lossy(&stderr));
        folder
    }

    fn start(folder: &Path, port: u16) -> Self {
        let mut server = as_unprivileged(&binary("postgres"));
        server.arg("-D").arg(folder.join("data")).arg("-k").arg(folder).arg("-p").arg(port.to_string());
        for setting in [
            "listen_addresses=127.0.0.1",
            "max_connections=200",
            "shared_buffers=16MB",
            // What a crash of the machine would lose, a test does not need.
            "fsync=off",
            "synchronous_commit=off",
            "full_page_writes=off",
            "autovacuum=off",
        ] {
            server.arg("-c").arg(setting);
        }
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(KEEPER).arg("keeper").arg(folder).arg(server.get_program()).args(server.get_args());
        shell.current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // In a group of its own, so that Ctrl-C ends the tests and not the keeper, which then tidies up.
        shell.process_group(0);
        let mut shell = shell.spawn().expect("there is a shell");
        let pipe = shell.stdin.take();
        Self { shell, pipe }
    }

    fn tell(&mut self, order: &str) {
        let pipe = self.pipe.as_mut().expect("the pipe is open until drop");
        writeln!(pipe, "{order}").expect("the keeper reads its orders");
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.pipe.take());
        // Otherwise init waits for it.
        let _ = self.shell.wait();
    }
}

/// The newest installed version's binary of this name.
fn binary(name: &str) -> PathBuf {
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|version| Some((version.as_ref().ok()?.file_name().to_str()?.parse().ok()?, version.ok()?.path())))
        .map(|(version, folder)| (version, folder.join("bin").join(name)))
        .filter(|(_, binary)| binary.exists())
        .collect();
    versions.sort();
    let on_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|folder| folder.join(name)).find(|binary| binary.exists())
    };
    versions
        .pop()
        .map(|(_, binary)| binary)
        .or_else(on_path)
        .unwrap_or_else(|| panic!("{name} is missing: install the Debian package `postgresql`"))
}

/// PostgreSQL refuses to run as root, so root steps down to `postgres` or, where that user is missing, `nobody`.
fn unprivileged() -> Option<(u32, u32)> {
    if fs::metadata("/proc/self").expect("there is /proc").uid() != 0 {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").expect("there is /etc/passwd");
    let ids = |user: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(user))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    Some(ids("postgres").or_else(|| ids("nobody")).expect("every Debian has the user `nobody`"))
}

fn as_unprivileged(program: &Path) -> Command {
    match unprivileged() {
        None => Command::new(program),
        Some((uid, gid)) => {
            // Replaces itself with the program, so the keeper's signals arrive; comes with every Debian.
            let mut command = Command::new("setpriv");
            command.arg(format!("--reuid={uid}")).arg(format!("--regid={gid}")).arg("--clear-groups").arg(program);
            command
        }
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}
