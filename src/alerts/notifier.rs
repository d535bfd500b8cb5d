//! What a notifier is: it turns one message into its receiver's format and tries once to deliver it. When to try again is
//! the dispatcher's business; whether that can help, the notifier says.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::http::Http;
use super::settings::{ReceiverKind, ReceiverSettings};
use super::{console, slack, webhook, words};
use crate::history::{AlertState, Notice, Severity};

/// A message that is later than this says so.
const LATE: Duration = Duration::from_secs(60);

/// Delivers messages to one receiver.
#[async_trait]
pub trait Notifier: Send + Sync + 'static {
    /// Tries once to deliver a message, within the receiver's timeout.
    async fn send(&self, delivery: &Delivery<'_>) -> Result<(), NotifyError>;

    /// How fast the receiver may be told.
    fn pace(&self) -> Pace {
        Pace { burst: 16, interval: Duration::from_millis(50), at_once: 4 }
    }
}

/// How fast a receiver may be told.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// So many messages may go without a pause,
    pub burst: u32,
    /// and then one in each of these.
    pub interval: Duration,
    /// So many may be under way at once.
    pub at_once: usize,
}

/// One try to deliver a message.
#[derive(Debug, Clone, Copy)]
pub struct Delivery<'a> {
    /// The message's ULID, the same for every try.
    pub id: &'a str,
    /// The receiver's name.
    pub receiver: &'a str,
    /// What is told.
    pub notice: &'a Notice,
    /// When the message was queued.
    pub queued_at: DateTime<Utc>,
    /// The time now.
    pub now: DateTime<Utc>,
}

/// Why a message was not delivered. Never contains the receiver's URL, keys or headers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotifyError {
    /// Trying again can help.
    #[error("{reason}")]
    Passing {
        /// What was tried, and what came back.
        reason: String,
        /// How long the receiver asked us to wait.
        after: Option<Duration>,
    },
    /// Trying again cannot help.
    #[error("{reason}")]
    Permanent {
        /// What was tried, what came back, and what would cure it.
        reason: String,
    },
    /// The receiver wants nothing more, ever.
    #[error("{reason}")]
    Gone {
        /// What was tried, and what came back.
        reason: String,
    },
}

impl Delivery<'_> {
    /// How late the message is, if that is worth telling.
    pub fn delay(&self) -> Option<Duration> {
        (self.now - self.queued_at).to_std().ok().filter(|delay| *delay >= LATE)
    }

    /// The message in one line: `FIRING [critical] job_failed: …`.
    pub(super) fn headline(&self) -> String {
        let Notice { state, severity, name, summary, .. } = self.notice;
        let word = match state {
            AlertState::Firing => "FIRING",
            AlertState::Resolved => "RESOLVED",
        };
        format!("{word} [{severity}] {name}: {summary}")
    }

    /// What is to be said about time: `fired 10:02, resolved 10:09 UTC`, `delivery delayed 12 m`.
    ///
    /// A resolved message always says when it fired: the message that told so may have been merged into this one.
    pub(super) fn remarks(&self) -> Vec<String> {
        let ended = self.notice.ends_at.filter(|_| self.notice.state == AlertState::Resolved);
        let period = ended.map(|ends_at| words::period(self.notice.starts_at, ends_at));
        let delay = self.delay().map(|delay| format!("delivery delayed {}", words::span(delay)));
        period.into_iter().chain(delay).collect()
    }

    /// What tells people at a glance how it stands.
    pub(super) fn lamp(&self) -> (&'static str, &'static str) {
        match (self.notice.state, self.notice.severity) {
            (AlertState::Resolved, _) => ("🟢", "#2e8540"),
            (AlertState::Firing, Severity::Critical) => ("🔴", "#d0342c"),
            (AlertState::Firing, Severity::Warning) => ("🟠", "#e8912d"),
            (AlertState::Firing, Severity::Info) => ("🔵", "#3578b9"),
        }
    }
}

/// Makes the notifier of a receiver. All notifiers share the connections of `http`.
///
/// # Errors
/// A sentence about a setting that cannot be used.
pub fn notifier(settings: &ReceiverSettings, http: &Http) -> Result<Arc<dyn Notifier>, String> {
    Ok(match &settings.kind {
        ReceiverKind::Console => Arc::new(console::Console),
        ReceiverKind::Slack { url, timeout } => Arc::new(slack::Slack::new(url, *timeout, http)?),
        ReceiverKind::Webhook { url, secrets, headers, allow_private, timeout } => {
            Arc::new(webhook::Webhook::new(url, secrets, headers, *allow_private, *timeout, http)?)
        }
    })
}
