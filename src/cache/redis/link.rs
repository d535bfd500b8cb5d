//! Connections: a few for each database, each lent out to one caller at a time. Nothing ever says `SELECT` on a connection that
//! is in use.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::redis::{Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, Pipeline, cmd};
use secrecy::ExposeSecret;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep};

use super::read::Pace;
use super::wire::{Answer, Commands, Keep, Wire};
use super::{RedisSettings, errors};
use crate::cache::CacheError;

/// How many connections of a database are lent out at a time. Who holds one must not ask for another.
const LANES: usize = 8;
/// How often a request is sent again when its connection turns out to be dead.
const REPEATS: u32 = 2;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// All connections to one server.
pub(super) struct Link {
    info: ConnectionInfo,
    address: String,
    connect_timeout: Duration,
    response_timeout: Duration,
    databases: Mutex<HashMap<u16, Arc<Database>>>,
}

/// All connections to one database of the server.
pub(super) struct Database {
    /// Host, port and database; what errors call it.
    pub(super) server: String,
    address: ConnectionAddr,
    /// What a new connection says first.
    greeting: Vec<Cmd>,
    connect_timeout: Duration,
    response_timeout: Duration,
    idle: Mutex<Vec<Wire>>,
    /// How many records are asked for at a time.
    pub(super) pace: Pace,
    lanes: Semaphore,
    /// The server was there a moment ago, so it is worth waiting for it to come back.
    met: AtomicBool,
    /// Held while waiting for it, so that of many callers one knocks.
    knocking: tokio::sync::Mutex<()>,
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
    database: &'a Database,
    wire: Wire,
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
        let (connect_timeout, response_timeout) = (settings.connect_timeout, settings.response_timeout);
        Ok(Self { info, address, connect_timeout, response_timeout, databases: Mutex::default() })
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
            address: self.info.addr().clone(),
            greeting,
            connect_timeout: self.connect_timeout,
            response_timeout: self.response_timeout,
            idle: Mutex::default(),
            pace: Pace::default(),
            lanes: Semaphore::new(LANES),
            met: AtomicBool::new(false),
            knocking: tokio::sync::Mutex::default(),
        });
        databases.insert(number, Arc::clone(&database));
        Ok(database)
    }
}

impl Database {
    /// Sends commands in one go. The answers may be errors of the server, each in its place.
    pub(super) async fn send(&self, commands: &Pipeline, repeat: Repeat) -> Result<Vec<Answer>, CacheError> {
        self.exchange(&commands.get_packed_pipeline(), commands.len(), &mut |_| true, repeat).await
    }

    /// Sends commands that may be repeated; of the strings in the answers, those are kept whose length `keep` agrees to.
    pub(super) async fn send_many(&self, commands: &Commands, keep: &mut Keep<'_>) -> Result<Vec<Answer>, CacheError> {
        self.exchange(commands.as_bytes(), commands.len(), keep, Repeat::Harmless).await
    }

    /// Sends commands, none of which may fail.
    pub(super) async fn ask(&self, commands: &Pipeline, repeat: Repeat) -> Result<Vec<Answer>, CacheError> {
        let answers = self.send(commands, repeat).await?;
        for answer in &answers {
            if let Answer::Error(error) = answer {
                return Err(errors::from_server(&self.server, error));
            }
        }
        Ok(answers)
    }

    /// Sends one command; the answer may be an error of the server.
    pub(super) async fn send_one(&self, command: Cmd, repeat: Repeat) -> Result<Answer, CacheError> {
        let answers = self.exchange(&command.get_packed_command(), 1, &mut |_| true, repeat).await?;
        Ok(answers.into_iter().next().unwrap_or(Answer::Nil))
    }

    /// Sends one command that must not fail and that may be repeated.
    pub(super) async fn ask_one(&self, command: Cmd) -> Result<Answer, CacheError> {
        match self.send_one(command, Repeat::Harmless).await? {
            Answer::Error(error) => Err(errors::from_server(&self.server, &error)),
            answer => Ok(answer),
        }
    }

    /// Sends commands that are in Redis's own form already.
    async fn exchange(
        &self,
        commands: &[u8],
        answers: usize,
        keep: &mut Keep<'_>,
        repeat: Repeat,
    ) -> Result<Vec<Answer>, CacheError> {
        let mut repeats = if repeat == Repeat::Harmless { REPEATS } else { 0 };
        loop {
            let mut lane = self.lane().await?;
            match lane.exchange(commands, answers, keep).await {
                Ok(answers) => {
                    lane.give_back();
                    return Ok(answers);
                }
                Err(error) => {
                    drop(lane);
                    self.forget_idle();
                    // A server that is too slow gets no second request on top of the first.
                    if repeats == 0 || error.is_timeout() || !error.is_connection_dropped() {
                        return Err(errors::from_client(&self.server, &error));
                    }
                    repeats -= 1;
                }
            }
        }
    }

    /// Lends a connection.
    pub(super) async fn lane(&self) -> Result<Lane<'_>, CacheError> {
        let permit = self.lanes.acquire().await.expect("nobody closes the semaphore");
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let alive = idle.and_then(Wire::if_alive);
        let wire = match alive {
            Some(wire) => wire,
            None => self.knock().await?,
        };
        Ok(Lane { database: self, wire, _permit: permit })
    }

    /// Connects; waits a while for a server that was there a moment ago.
    async fn knock(&self) -> Result<Wire, CacheError> {
        let _turn = self.knocking.lock().await;
        let patience = if self.met.load(Ordering::Relaxed) { self.connect_timeout } else { Duration::ZERO };
        let deadline = Instant::now() + patience;
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
        self.met.store(outcome.is_ok(), Ordering::Relaxed);
        outcome
    }

    /// Closes the connections that wait to be lent out: where one was dead, the others probably are.
    pub(super) fn forget_idle(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    async fn connect(&self) -> Result<Wire, CacheError> {
        let made = Wire::connect(&self.address, self.connect_timeout, self.response_timeout).await;
        let mut wire = made.map_err(|error| errors::from_client(&self.server, &error))?;
        // A Redis that wants another password, has no such database, still loads its data, or is no Redis at all says so here.
        for command in &self.greeting {
            match wire
                .exchange(&command.get_packed_command(), 1, &mut |_| true)
                .await
                .map(|mut answers| answers.remove(0))
            {
                Ok(Answer::Okay) => {}
                Ok(Answer::Text(pong)) if pong == "PONG" => {}
                Ok(Answer::Error(error)) => return Err(errors::from_server(&self.server, &error)),
                Ok(other) => return Err(errors::not_a_redis(&self.server, &format!("{other:?}"))),
                Err(error) => return Err(errors::from_client(&self.server, &error)),
            }
        }
        Ok(wire)
    }
}

impl Lane<'_> {
    /// Gives the connection back. Nothing may be watched on it any more.
    pub(super) fn give_back(self) {
        self.database.idle.lock().unwrap_or_else(PoisonError::into_inner).extend(self.wire.rested());
    }
}

impl Deref for Lane<'_> {
    type Target = Wire;

    fn deref(&self) -> &Wire {
        &self.wire
    }
}

impl DerefMut for Lane<'_> {
    fn deref_mut(&mut self) -> &mut Wire {
        &mut self.wire
    }
}
