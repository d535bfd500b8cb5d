//! Alerts, from the wish to the receiver: real outboxes, a real HTTP server at the far end.
#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the report")]

mod delivery;
mod payloads;
mod receivers;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use lamplighter::alerts::{ReceiverKind, ReceiverSettings};
use lamplighter::clock::TestClock;
use lamplighter::history::{
    AlertChange, AlertState, History, Message, MessageState, Severity, SharedHistory, SqliteHistory,
};
use secrecy::SecretString;
use tempfile::TempDir;

use super::support::http_sink::HttpSink;

/// The secret of the test webhooks: published with the Standard Webhooks libraries.
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A history in SQLite, with time in the test's hand.
struct Outbox {
    history: SharedHistory,
    clock: Arc<TestClock>,
    _folder: TempDir,
}

impl Outbox {
    async fn new() -> Self {
        let clock = Arc::new(TestClock::at(at("2026-01-05T10:02:00Z")));
        let folder = tempfile::tempdir().unwrap();
        let history = SqliteHistory::open(folder.path().join("history.db"), clock.clone()).unwrap();
        history.migrate().await.unwrap();
        Self { history: Arc::new(history), clock, _folder: folder }
    }

    /// An alert changes, and its messages are queued.
    async fn change(&self, state: AlertState, alert: &str, receivers: &[&str]) {
        self.history.change_alerts(&[self.wish(state, alert, receivers)]).await.unwrap();
    }

    fn wish(&self, state: AlertState, alert: &str, receivers: &[&str]) -> AlertChange {
        use lamplighter::clock::Clock as _;
        AlertChange {
            fingerprint: format!("{alert:0>16}"),
            name: "job_failed".to_owned(),
            labels: BTreeMap::from([("job".to_owned(), alert.to_owned())]),
            severity: Severity::Critical,
            state,
            summary: format!("{alert} is {state}"),
            details: vec![("Look closer".to_owned(), format!("lamplighter history {alert}"))],
            receivers: receivers.iter().map(|name| (*name).to_owned()).collect(),
            at: self.clock.now(),
        }
    }

    async fn messages(&self) -> Vec<Message> {
        let mut messages = self.history.messages(10_000).await.unwrap();
        messages.reverse();
        messages
    }

    /// Waits until the messages are in these states, oldest first.
    async fn wait_for(&self, states: &[MessageState]) -> Vec<Message> {
        let mut last = Vec::new();
        let reached = tokio::time::timeout(Duration::from_secs(20), async {
            loop {
                last = self.messages().await;
                if last.iter().map(|message| message.state).eq(states.iter().copied()) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        let reached = reached.await;
        assert!(reached.is_ok(), "waited for {states:?}; the outbox holds {last:#?}");
        last
    }
}

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn minutes(minutes: i64) -> TimeDelta {
    TimeDelta::minutes(minutes)
}

fn slack(name: &str, url: &str) -> ReceiverSettings {
    let (url, timeout) = (SecretString::from(url), Duration::from_secs(5));
    ReceiverSettings { name: name.to_owned(), kind: ReceiverKind::Slack { url, timeout } }
}

fn webhook(name: &str, url: &str) -> ReceiverSettings {
    signed_webhook(name, url, &[SECRET], true)
}

fn signed_webhook(name: &str, url: &str, secrets: &[&str], allow_private: bool) -> ReceiverSettings {
    let kind = ReceiverKind::Webhook {
        url: SecretString::from(url),
        secrets: secrets.iter().map(|secret| SecretString::from(*secret)).collect(),
        headers: BTreeMap::from([("Authorization".to_owned(), SecretString::from("Bearer open-sesame"))]),
        allow_private,
        timeout: Duration::from_secs(5),
    };
    ReceiverSettings { name: name.to_owned(), kind }
}

/// Keeps what is logged on this thread, as text.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Begins to keep; ends when the guard is dropped.
    fn keep(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(move || log.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    /// The lines with this text in them.
    fn lines(&self, text: &str) -> Vec<String> {
        self.text().lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The jobs that requests are about, in the order in which they came.
fn told(sink: &HttpSink) -> Vec<String> {
    let job = |got: super::support::http_sink::Got| {
        let body = got.json();
        format!("{} {}", body["alerts"][0]["labels"]["job"].as_str().unwrap(), body["status"].as_str().unwrap())
    };
    sink.got().into_iter().map(job).collect()
}
