//! Connections: for each database one that all callers share, and a few that are lent out whole, because `WATCH` belongs to
//! a connection. Nothing ever says `SELECT` on a connection that is in use.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, Pipeline,
    RedisConnectionInfo, RedisError, Value, cmd,
};
use secrecy::ExposeSecret;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep};

use super::{RedisSettings, errors};
use crate::cache::CacheError;

/// How many connections of a database are lent out at a time.
const LANES: usize = 4;
/// How often a request is sent again when its connection turns out to be dead.
const REPEATS: u32 = 2;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// All connections to one server.
pub(super) struct Link {
    info: ConnectionInfo,
    config: AsyncConnectionConfig,
    address: String,
    patience: Duration,
    databases: Mutex<HashMap<u16, Arc<Database>>>,
}

/// All connections to one database of the server.
pub(super) struct Database {
    /// Host, port and database; what errors call it.
    pub(super) server: String,
    client: Client,
    /// What a new connection says first.
    greeting: Vec<Cmd>,
    config: AsyncConnectionConfig,
    patience: Duration,
    shared: tokio::sync::Mutex<Shared>,
    idle: Mutex<Vec<MultiplexedConnection>>,
    lanes: Semaphore,
}

#[derive(Default)]
struct Shared {
    connection: Option<MultiplexedConnection>,
    /// Counts connections, so that of many callers that see one die only the first throws it away.
    number: u64,
    /// The server was there a moment ago, so it is worth waiting for it to come back.
    met: bool,
}

/// Whether a request may be sent again when nobody knows whether the server has seen it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// A second time changes nothing.
    Harmless,
    /// Left to the caller.
    Never,
}

/// A connection that is ours alone until it is given back. Dropped instead, it is closed, and its `WATCH`es with it.
pub(super) struct Lane<'a> {
    pub(super) database: &'a Database,
    connection: MultiplexedConnection,
    _permit: SemaphorePermit<'a>,
}

impl Link {
    pub(super) fn new(settings: &RedisSettings) -> Result<Self, CacheError> {
        // The client's own message is kept out: it may quote the URL, and with it the password.
        let info = settings.url.expose_secret().into_connection_info().map_err(|_| CacheError::Refused {
            server: "REDIS_URL".to_owned(),
            reason: "the value is not the address of a Redis".to_owned(),
            cure:
                "Write redis://user:password@host:port/0, or rediss://… for TLS; special characters in a password are \
                   percent-encoded, such as %40 for @"
                    .to_owned(),
        })?;
        let address = match info.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } if host.contains(':') => {
                format!("[{host}]:{port}")
            }
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => format!("{host}:{port}"),
            ConnectionAddr::Unix(path) => path.display().to_string(),
            _ => "REDIS_URL".to_owned(),
        };
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(settings.connect_timeout))
            .set_response_timeout(Some(settings.response_timeout));
        let info = info.set_tcp_settings(tcp);
        Ok(Self { info, config, address, patience: settings.connect_timeout, databases: Mutex::default() })
    }

    /// The database that the URL names.
    pub(super) fn default_database(&self) -> u16 {
        u16::try_from(self.info.redis_settings().db()).unwrap_or_default()
    }

    /// Host and port.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn database(&self, number: u16) -> Result<Arc<Database>, CacheError> {
        let mut databases = self.databases.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(database) = databases.get(&number) {
            return Ok(Arc::clone(database));
        }
        let server = format!("{}/{number}", self.address);
        // We say AUTH and SELECT ourselves: the client keeps Redis's reasons to itself, so that "too many clients" would
        // look like a wrong password.
        let silent = RedisConnectionInfo::default().set_skip_set_lib_name();
        let client = Client::open(self.info.clone().set_redis_settings(silent))
            .map_err(|error| errors::from_client(&server, &error))?;
        let mut greeting = Vec::new();
        if let Some(password) = self.info.redis_settings().password() {
            let mut auth = cmd("AUTH");
            auth.arg(self.info.redis_settings().username()).arg(password);
            greeting.push(auth);
        }
        if number != 0 {
            let mut select = cmd("SELECT");
            select.arg(number);
            greeting.push(select);
        }
        greeting.push(cmd("PING"));
        let database = Arc::new(Database {
            server,
            client,
            greeting,
            config: self.config.clone(),
            patience: self.patience,
            shared: tokio::sync::Mutex::default(),
            idle: Mutex::default(),
            lanes: Semaphore::new(LANES),
        });
        databases.insert(number, Arc::clone(&database));
        Ok(database)
    }
}

impl Database {
    /// Sends commands in one go. The answers may be errors of the server, each in its place.
    pub(super) async fn send(&self, commands: &Pipeline, repeat: Repeat) -> Result<Vec<Value>, CacheError> {
        let mut repeats = if repeat == Repeat::Harmless { REPEATS } else { 0 };
        loop {
            let (mut connection, number) = self.shared().await?;
            match connection.send_packed_commands(commands, 0, commands.len()).await {
                Ok(answers) => return Ok(answers),
                Err(error) => {
                    self.forget(number).await;
                    // A server that is too slow gets no second request on top of the first.
                    if repeats == 0 || error.is_timeout() || !error.is_connection_dropped() {
                        return Err(errors::from_client(&self.server, &error));
                    }
                    repeats -= 1;
                }
            }
        }
    }

    /// Sends commands, none of which may fail.
    pub(super) async fn ask(&self, commands: &Pipeline, repeat: Repeat) -> Result<Vec<Value>, CacheError> {
        let answers = self.send(commands, repeat).await?;
        for answer in &answers {
            if let Value::ServerError(error) = answer {
                return Err(errors::from_server(&self.server, error));
            }
        }
        Ok(answers)
    }

    /// Sends one command; the answer may be an error of the server.
    pub(super) async fn send_one(&self, command: Cmd, repeat: Repeat) -> Result<Value, CacheError> {
        let mut commands = Pipeline::with_capacity(1);
        commands.add_command(command);
        Ok(self.send(&commands, repeat).await?.pop().unwrap_or(Value::Nil))
    }

    /// Sends one command that must not fail and that may be repeated.
    pub(super) async fn ask_one(&self, command: Cmd) -> Result<Value, CacheError> {
        match self.send_one(command, Repeat::Harmless).await? {
            Value::ServerError(error) => Err(errors::from_server(&self.server, &error)),
            answer => Ok(answer),
        }
    }

    /// Lends a connection.
    pub(super) async fn lane(&self) -> Result<Lane<'_>, CacheError> {
        let permit = self.lanes.acquire().await.expect("nobody closes the semaphore");
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = match idle {
            Some(connection) => connection,
            None => {
                // Through the shared one, which knows whether waiting is worth it.
                self.shared().await?;
                self.connect().await?
            }
        };
        Ok(Lane { database: self, connection, _permit: permit })
    }

    async fn shared(&self) -> Result<(MultiplexedConnection, u64), CacheError> {
        // Held while connecting, so that many callers make one connection.
        let mut shared = self.shared.lock().await;
        if let Some(connection) = &shared.connection {
            return Ok((connection.clone(), shared.number));
        }
        let deadline = Instant::now() + if shared.met { self.patience } else { Duration::ZERO };
        let mut pause = FIRST_PAUSE;
        let outcome = loop {
            match self.connect().await {
                Err(CacheError::Unreachable { .. }) if Instant::now() + pause < deadline => {
                    sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                outcome => break outcome,
            }
        };
        shared.met = outcome.is_ok();
        let connection = outcome?;
        shared.number += 1;
        shared.connection = Some(connection.clone());
        Ok((connection, shared.number))
    }

    async fn forget(&self, number: u64) {
        let mut shared = self.shared.lock().await;
        if shared.number == number {
            shared.connection = None;
            self.forget_idle();
        }
    }

    /// Closes the connections that wait to be lent out: where one was dead, the others probably are.
    pub(super) fn forget_idle(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    async fn connect(&self) -> Result<MultiplexedConnection, CacheError> {
        let made = self.client.get_multiplexed_async_connection_with_config(&self.config).await;
        let mut connection = made.map_err(|error| errors::from_client(&self.server, &error))?;
        // A Redis that wants another password, has no such database, still loads its data, or is no Redis at all says so here.
        // One by one: the client tells what it could not read only where it was one command that was asked.
        for command in &self.greeting {
            match connection.send_packed_command(command).await {
                Ok(Value::Okay) => {}
                Ok(Value::SimpleString(pong)) if pong == "PONG" => {}
                Ok(Value::ServerError(error)) => return Err(errors::from_server(&self.server, &error)),
                Ok(other) => return Err(errors::not_a_redis(&self.server, &format!("{other:?}"))),
                Err(error) => return Err(errors::from_client(&self.server, &error)),
            }
        }
        Ok(connection)
    }
}

impl Lane<'_> {
    /// Sends commands in one go. The answers may be errors of the server. After an error the lane must be dropped.
    pub(super) async fn send(&mut self, commands: &Pipeline) -> Result<Vec<Value>, RedisError> {
        self.connection.send_packed_commands(commands, 0, commands.len()).await
    }

    /// Gives the connection back. Nothing may be watched on it any more.
    pub(super) fn give_back(self) {
        self.database.idle.lock().unwrap_or_else(PoisonError::into_inner).push(self.connection);
    }
}
