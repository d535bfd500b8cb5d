//! `[receivers.NAME]`: who can be told, and how.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::{Deserializer, Error};

use super::http::MAX_TIMEOUT;
use crate::document::{Fault, Reading, Scope, What};
use crate::units::{Span, nearest};

/// Somebody who can be told: a `[receivers.NAME]` table.
#[derive(Debug, Clone)]
pub struct ReceiverSettings {
    /// The name in `[receivers.NAME]`.
    pub name: String,
    /// How they are told.
    pub kind: ReceiverKind,
}

/// How somebody is told.
#[derive(Debug, Clone)]
pub enum ReceiverKind {
    /// A line on the console, through the log.
    Console,
    /// A Slack incoming webhook.
    Slack {
        /// Its address, which is its password too.
        url: SecretString,
        /// How long one attempt to send may take.
        timeout: Duration,
    },
    /// A POST of JSON.
    Webhook {
        /// Where to.
        url: SecretString,
        /// `whsec_` and the base64 of 24 to 64 bytes: each signs the message, so that a secret can be replaced without a gap.
        secrets: Vec<SecretString>,
        /// Headers that go along, such as `Authorization`.
        headers: BTreeMap<String, SecretString>,
        /// Whether the address may be one of a private network.
        allow_private: bool,
        /// How long one attempt to send may take.
        timeout: Duration,
    },
}

/// The words in `kind = "…"`.
const KINDS: [&str; 3] = ["console", "slack", "webhook"];

/// Keys whose values may be shown. All others are secret, misspelt ones too.
const OPEN_KEYS: [&str; 3] = ["kind", "timeout", "allow_private"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConsoleKeys {
    #[serde(rename = "kind")]
    _kind: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SlackKeys {
    #[serde(rename = "kind")]
    _kind: String,
    url: WebUrl,
    timeout: Option<Timeout>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WebhookKeys {
    #[serde(rename = "kind")]
    _kind: String,
    url: WebUrl,
    secret: Option<SigningSecrets>,
    #[serde(default)]
    headers: BTreeMap<HeaderName, HeaderValue>,
    #[serde(default)]
    allow_private: bool,
    timeout: Option<Timeout>,
}

impl ReceiverKind {
    /// Reads the keys of a receiver of one of the [`KINDS`].
    fn read(kind: &str, table: &Reading<'_>) -> Result<Self, Vec<Fault>> {
        Ok(match kind {
            "slack" => {
                let keys = table.read::<SlackKeys>(Scope::All)?;
                Self::Slack { url: keys.url.0, timeout: keys.timeout.unwrap_or_default().0 }
            }
            "webhook" => {
                let keys = table.read::<WebhookKeys>(Scope::All)?;
                Self::Webhook {
                    url: keys.url.0,
                    secrets: keys.secret.map(|secrets| secrets.0).unwrap_or_default(),
                    headers: keys.headers.into_iter().map(|(name, value)| (name.0, value.0)).collect(),
                    allow_private: keys.allow_private,
                    timeout: keys.timeout.unwrap_or_default().0,
                }
            }
            _ => {
                table.read::<ConsoleKeys>(Scope::All)?;
                Self::Console
            }
        })
    }
}

impl ReceiverSettings {
    /// The receiver that is there without being configured.
    pub fn console(name: &str) -> Self {
        Self { name: name.to_owned(), kind: ReceiverKind::Console }
    }

    /// Whether a `[receivers.NAME]` table's values of this key are secret.
    pub(crate) fn is_secret(key: &str) -> bool {
        !OPEN_KEYS.contains(&key)
    }

    /// Reads a `[receivers.NAME]` table.
    pub(crate) fn read(name: &str, table: &Reading<'_>) -> Result<Self, Vec<Fault>> {
        let Some(kind) = table.table.get("kind") else {
            return Err(vec![Fault::at(table.path.clone(), What::MissingKey("kind"))]);
        };
        let word = kind.node.text().map(|text| text.value.as_str());
        if let Some(known) = word.filter(|word| KINDS.contains(word)) {
            return Ok(Self { name: name.to_owned(), kind: ReceiverKind::read(known, table)? });
        }
        let found = kind.node.text().map_or(kind.node.sort(), |text| text.shown()).to_owned();
        let choices = KINDS.map(str::to_owned).to_vec();
        let mut faults = vec![Fault::at(table.path.key("kind"), What::NotAChoice { found, choices })];
        // What else is wrong, if it is the kind that was probably meant.
        if let Some(meant) = word.and_then(|word| nearest(word, KINDS)) {
            faults.extend(ReceiverKind::read(meant, table).err().into_iter().flatten());
        }
        Err(faults)
    }

    /// Where messages go, without anything secret: the kind, and the host if there is one.
    pub fn describe(&self) -> String {
        let host = |url: &SecretString| {
            let url = url::Url::parse(url.expose_secret()).ok();
            url.and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_default()
        };
        match &self.kind {
            ReceiverKind::Console => "console".to_owned(),
            ReceiverKind::Slack { .. } => "Slack".to_owned(),
            ReceiverKind::Webhook { url, .. } => format!("webhook at {}", host(url)),
        }
    }
}

/// An address on the web. No sentence about it repeats it.
struct WebUrl(SecretString);

impl<'de> Deserialize<'de> for WebUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let url = url::Url::parse(&text).map_err(|error| D::Error::custom(format!("it is not a URL: {error}")))?;
        // `https:/host` is let through by the parser, as browsers do.
        if !["https://", "http://"].iter().any(|start| text.to_ascii_lowercase().starts_with(start)) {
            return Err(D::Error::custom("it must begin with https:// (or http://)"));
        }
        if url.host_str().is_some_and(|host| host == "webhook.office.com" || host.ends_with(".webhook.office.com")) {
            return Err(D::Error::custom(
                "Office connectors are retired; make a Workflows webhook in Teams and use its URL",
            ));
        }
        Ok(Self(text.into()))
    }
}

/// The keys that sign a webhook's messages: one, or a list while one is replaced by another.
struct SigningSecrets(Vec<SecretString>);

impl<'de> Deserialize<'de> for SigningSecrets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a secret in quotes, or a list of them")]
        enum OneOrMore {
            One(String),
            More(Vec<String>),
        }
        let texts = match OneOrMore::deserialize(deserializer)? {
            OneOrMore::One(text) => vec![text],
            OneOrMore::More(texts) => texts,
        };
        for text in &texts {
            let bytes = text.strip_prefix("whsec_").and_then(|key| STANDARD.decode(key).ok());
            if bytes.is_none_or(|bytes| !(24..=64).contains(&bytes.len())) {
                let sentence = "it must be whsec_ and the base64 of 24 to 64 bytes; \
                                make one with: echo whsec_$(openssl rand -base64 32)";
                return Err(D::Error::custom(sentence));
            }
        }
        Ok(Self(texts.into_iter().map(SecretString::from).collect()))
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct HeaderName(String);

impl<'de> Deserialize<'de> for HeaderName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match reqwest::header::HeaderName::try_from(text.as_str()) {
            Ok(_) => Ok(Self(text)),
            Err(_) => Err(D::Error::custom("the name of a header has letters, digits and -")),
        }
    }
}

struct HeaderValue(SecretString);

impl<'de> Deserialize<'de> for HeaderValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match reqwest::header::HeaderValue::try_from(text.as_str()) {
            Ok(_) => Ok(Self(text.into())),
            Err(_) => Err(D::Error::custom("a header's value cannot have line breaks or control characters")),
        }
    }
}

/// From a tenth of a second to the longest that a message may take.
struct Timeout(Duration);

impl Default for Timeout {
    fn default() -> Self {
        Self(Duration::from_secs(15))
    }
}

impl<'de> Deserialize<'de> for Timeout {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let span = Span::deserialize(deserializer)?;
        if !(Duration::from_millis(100)..=MAX_TIMEOUT).contains(&span.0) {
            return Err(D::Error::custom(format!("{span} is not a useful timeout for a message; write 100ms to 20s")));
        }
        Ok(Self(span.0))
    }
}
