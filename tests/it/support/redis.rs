//! A private redis-server: on a free port, in a folder of its own, gone when it is dropped.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

const START_DEADLINE: Duration = Duration::from_secs(20);

/// A running redis-server.
pub(crate) struct Redis {
    port: u16,
    folder: TempDir,
    password: Option<String>,
    arguments: Vec<String>,
    child: Mutex<Option<Child>>,
}

/// How the server is to be started.
#[derive(Default)]
pub(crate) struct RedisBuilder {
    password: Option<String>,
    arguments: Vec<String>,
}

impl RedisBuilder {
    /// Clients must give this password.
    pub(crate) fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self.argument("--requirepass", password)
    }

    /// Every change is on disk before it is answered, so that [`Redis::kill`] and [`Redis::restart`] lose nothing.
    pub(crate) fn durable(self) -> Self {
        self.argument("--appendonly", "yes").argument("--appendfsync", "always")
    }

    /// Any other setting of redis.conf, such as `--maxmemory`.
    pub(crate) fn argument(mut self, name: &str, value: &str) -> Self {
        self.arguments.extend([name.to_owned(), value.to_owned()]);
        self
    }

    /// Starts the server and waits until it answers.
    pub(crate) async fn start(self) -> Redis {
        let mut redis = Redis {
            port: 0,
            folder: TempDir::new().expect("a temporary folder"),
            password: self.password,
            arguments: self.arguments,
            child: Mutex::new(None),
        };
        // Somebody else may take the port between our look and the server's.
        for _ in 0..5 {
            redis.port = free_port();
            if redis.launch().await {
                return redis;
            }
        }
        panic!("redis-server found its port taken five times");
    }
}

impl Redis {
    /// Starts a server that forgets everything when it stops.
    pub(crate) async fn start() -> Self {
        Self::builder().start().await
    }

    /// A server with settings.
    pub(crate) fn builder() -> RedisBuilder {
        RedisBuilder::default()
    }

    /// Its port on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Its address, with the password if it has one.
    pub(crate) fn url(&self) -> String {
        match &self.password {
            Some(password) => format!("redis://:{password}@127.0.0.1:{}", self.port),
            None => format!("redis://127.0.0.1:{}", self.port),
        }
    }

    /// A connection of the test's own, for preparing and asserting.
    pub(crate) async fn raw(&self, database: u16) -> MultiplexedConnection {
        self.connect(database).await.expect("redis-server runs")
    }

    /// Ends it at once, as a power cut would.
    pub(crate) fn kill(&self) {
        if let Some(mut child) = self.child.lock().unwrap().take() {
            child.kill().expect("redis-server can be killed");
            child.wait().expect("redis-server ends");
        }
    }

    /// Ends it as an administrator would: it saves what it is set to save, then exits.
    pub(crate) async fn stop(&self) {
        let mut raw = self.raw(0).await;
        // The answer is the end of the connection.
        let _ = redis::cmd("SHUTDOWN").exec_async(&mut raw).await;
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            let status = self.child.lock().unwrap().as_mut().map(|child| child.try_wait().expect("a child of ours"));
            match status {
                None | Some(Some(_)) => break,
                Some(None) => assert!(Instant::now() < deadline, "redis-server still runs after SHUTDOWN"),
            }
            sleep(Duration::from_millis(5)).await;
        }
        *self.child.lock().unwrap() = None;
    }

    /// Starts it again where it was, after [`Redis::kill`] or [`Redis::stop`].
    pub(crate) async fn restart(&self) {
        self.kill();
        assert!(self.launch().await, "redis-server does not start again on port {}", self.port);
    }

    async fn launch(&self) -> bool {
        let folder = self.folder.path();
        let child = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"])
            .arg(folder)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("redis-server cannot be started ({error}); install Debian's redis-server"));
        *self.child.lock().unwrap() = Some(child);
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            let ended =
                self.child.lock().unwrap().as_mut().and_then(|child| child.try_wait().expect("a child of ours"));
            if ended.is_some() {
                return false;
            }
            let state = match self.connect(0).await {
                // LOADING until the data is there.
                Ok(mut raw) => match redis::cmd("GET").arg("started?").query_async::<Option<String>>(&mut raw).await {
                    Ok(_) => return true,
                    Err(error) => error.to_string(),
                },
                Err(error) => error.to_string(),
            };
            assert!(Instant::now() < deadline, "redis-server does not answer after {START_DEADLINE:?}: {state}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn connect(&self, database: u16) -> redis::RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(5)))
            .set_response_timeout(Some(Duration::from_secs(10)));
        let client = Client::open(format!("{}/{database}", self.url()))?;
        client.get_multiplexed_async_connection_with_config(&config).await
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.lock().unwrap_or_else(|held| held.into_inner()).take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A port that nobody uses at this moment.
fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}
