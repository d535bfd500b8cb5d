//! `[receivers.NAME]`: who can be told, and how.

use std::collections::BTreeMap;
use std::time::Duration;

use secrecy::SecretString;

/// A receiver, checked and ready to use.
#[derive(Debug, Clone)]
pub struct ReceiverSettings {
    /// The name in `[receivers.NAME]`.
    pub name: String,
    /// How it is told.
    pub kind: ReceiverKind,
}

/// How a receiver is told.
#[derive(Debug, Clone)]
pub enum ReceiverKind {
    /// In the program's own log.
    Console,
    /// Through a Slack incoming webhook.
    Slack {
        /// The webhook's URL, which is its password too.
        url: SecretString,
        /// Time limit of one request.
        timeout: Duration,
    },
    /// Through an HTTP POST with an Alertmanager body.
    Webhook {
        /// Where to.
        url: SecretString,
        /// `whsec_…` keys; each signs, so that they can be changed without a gap.
        secrets: Vec<SecretString>,
        /// More headers, such as `Authorization`.
        headers: BTreeMap<String, SecretString>,
        /// Whether the address may be a private one.
        allow_private: bool,
        /// Time limit of one request.
        timeout: Duration,
    },
}
