//! The HTTP that notifiers share: clients with time limits and without redirects, answers cut to what is worth reading, and
//! errors from which URLs, keys and headers have been taken out.

use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Client, redirect};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::guard::{self, PrivateAddress, PublicOnly};
use super::notifier::NotifyError;
use super::words;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest that one request may take, whatever the settings say: a lease on a message must outlast it.
pub(super) const MAX_TIMEOUT: Duration = Duration::from_secs(20);
/// So much of an answer is read,
const MAX_ANSWER_BYTES: usize = 4096;
/// and so much of it is quoted.
const MAX_QUOTE: usize = 200;
/// The longest wait that a receiver can ask for: a message lives no longer.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);

/// The connections that all notifiers share.
#[derive(Debug, Clone)]
pub struct Http {
    open: Client,
    public_only: Client,
}

/// Where to, and how.
pub(super) struct Target {
    url: Url,
    client: Client,
    timeout: Duration,
    allow_private: bool,
    veil: Veil,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// The `Retry-After` header, as a wait from now.
    pub(super) retry_after: Option<Duration>,
    /// The beginning of the body.
    pub(super) body: String,
    truncated: bool,
}

impl Http {
    /// Makes the clients; connects to nothing yet.
    pub fn new() -> Self {
        let client = || {
            Client::builder()
                .connect_timeout(CONNECT_TIMEOUT)
                .timeout(MAX_TIMEOUT)
                .redirect(redirect::Policy::none())
                .pool_idle_timeout(Duration::from_secs(30))
                .pool_max_idle_per_host(2)
                .user_agent(concat!("lamplighter/", env!("CARGO_PKG_VERSION")))
        };
        let why = "the TLS roots are built in and the settings are constants";
        Self {
            open: client().build().expect(why),
            // Behind a proxy it would be the proxy that resolves the name, out of our sight.
            public_only: client().no_proxy().dns_resolver(std::sync::Arc::new(PublicOnly)).build().expect(why),
        }
    }

    /// Prepares requests to `url`. `secrets` are further texts that no error may contain.
    pub(super) fn target<'a>(
        &self,
        url: &SecretString,
        secrets: impl IntoIterator<Item = &'a SecretString>,
        allow_private: bool,
        timeout: Duration,
    ) -> Result<Target, String> {
        // The parser's error is a plain word and does not repeat the text.
        let parsed =
            Url::parse(url.expose_secret().trim()).map_err(|error| format!("its url cannot be used: {error}"))?;
        if !matches!(parsed.scheme(), "http" | "https") || !parsed.has_host() {
            return Err("its url cannot be used: it must begin with https:// or http://".to_owned());
        }
        let client = if allow_private { &self.open } else { &self.public_only }.clone();
        let veil = Veil::new(&parsed, secrets);
        Ok(Target { url: parsed, client, timeout: timeout.min(MAX_TIMEOUT), allow_private, veil })
    }
}

impl Default for Http {
    fn default() -> Self {
        Self::new()
    }
}

impl Target {
    /// Posts a JSON body once. An answer of any status is an answer; an error means that none came.
    pub(super) async fn post(
        &self,
        headers: HeaderMap,
        body: Vec<u8>,
        now: DateTime<Utc>,
    ) -> Result<Answer, NotifyError> {
        if !self.allow_private {
            guard::check_literal(&self.url).map_err(|error| NotifyError::Permanent { reason: error.to_string() })?;
        }
        let request = self
            .client
            .post(self.url.clone())
            .timeout(self.timeout)
            .header(reqwest::header::CONTENT_TYPE, "application/json")
            .headers(headers)
            .body(body);
        let mut response = request.send().await.map_err(|error| self.no_answer(error))?;
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| wait(value.to_str().ok()?, now));
        let (mut bytes, mut truncated) = (Vec::new(), false);
        // A body that breaks off is judged by what arrived of it: the status has been said.
        while let Ok(Some(chunk)) = response.chunk().await {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_ANSWER_BYTES {
                bytes.truncate(MAX_ANSWER_BYTES);
                truncated = true;
                break;
            }
        }
        let body = String::from_utf8_lossy(&bytes).into_owned();
        Ok(Answer { status: response.status().as_u16(), retry_after, body, truncated })
    }

    /// An answer for people: `answered 503: overloaded`.
    pub(super) fn describe(&self, answer: &Answer) -> String {
        let quote = self.veil.quote(&answer.body, answer.truncated);
        let colon = if quote.is_empty() { "" } else { ": " };
        format!("answered {}{colon}{quote}", answer.status)
    }

    fn no_answer(&self, error: reqwest::Error) -> NotifyError {
        let error = error.without_url();
        let causes = || std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
        if causes().any(|cause| cause.is::<PrivateAddress>()) {
            return NotifyError::Permanent { reason: PrivateAddress.to_string() };
        }
        if error.is_builder() {
            return NotifyError::Permanent { reason: "its url or headers cannot be used in a request".to_owned() };
        }
        let cause = causes().last().map_or_else(|| error.to_string(), ToString::to_string);
        let cause = self.veil.quote(&cause, false);
        let reason = match (error.is_timeout(), error.is_connect()) {
            (true, true) => "could not connect in time".to_owned(),
            (true, false) => format!("no answer within {}", words::span(self.timeout)),
            (false, true) => format!("could not connect: {cause}"),
            (false, false) => format!("the connection broke before an answer came: {cause}"),
        };
        NotifyError::Passing { reason, after: None }
    }
}

/// Takes secrets out of texts that others wrote.
struct Veil {
    secrets: Vec<String>,
}

impl Veil {
    fn new<'a>(url: &Url, more: impl IntoIterator<Item = &'a SecretString>) -> Self {
        // Also in pieces: an answer may repeat only the path, or the last part of it.
        let path = url.path_segments().into_iter().flatten().filter(|part| part.len() >= 6);
        let query = url.query_pairs().map(|(_, value)| value.into_owned()).filter(|value| value.len() >= 6);
        let long = |text: &str| text.len() >= 2;
        let whole = [Some(url.as_str()), Some(url.path()), url.query(), url.host_str(), url.password()];
        let mut secrets: Vec<String> =
            whole.into_iter().flatten().filter(|text| long(text)).map(str::to_owned).collect();
        secrets.extend(path.map(str::to_owned).chain(query));
        for secret in more {
            let parts = secret.expose_secret().split_whitespace().filter(|part| part.len() >= 6);
            secrets.extend(parts.map(str::to_owned));
        }
        // The longest first, so that no piece of a longer one is left over.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        Self { secrets }
    }

    /// A short quote on one line, without secrets.
    fn quote(&self, text: &str, truncated: bool) -> String {
        // JSON may write `/` as `\/`.
        let mut text = text.replace("\\/", "/");
        let mut found = false;
        for secret in &self.secrets {
            if text.contains(secret.as_str()) {
                found = true;
                text = text.replace(secret.as_str(), "[redacted]");
            }
        }
        if found && truncated {
            return "(its answer repeats a secret and is not shown)".to_owned();
        }
        words::cut(&text.split_whitespace().collect::<Vec<_>>().join(" "), MAX_QUOTE)
    }
}

/// `Retry-After`, in seconds or as a date.
fn wait(value: &str, now: DateTime<Utc>) -> Option<Duration> {
    let value = value.trim();
    let wait = match value.parse::<f64>() {
        Ok(seconds) => seconds_or_none(seconds)?,
        Err(_) => (DateTime::parse_from_rfc2822(value).ok()?.to_utc() - now).to_std().unwrap_or_default(),
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

/// The `retry_after` of a JSON answer, in seconds.
pub(super) fn json_wait(body: &str) -> Option<Duration> {
    let body: serde_json::Value = serde_json::from_str(body).ok()?;
    Some(seconds_or_none(body.get("retry_after")?.as_f64()?)?.min(MAX_RETRY_AFTER))
}

fn seconds_or_none(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_as_seconds_or_date_and_is_bounded() {
        let now: DateTime<Utc> = "2015-10-21T07:27:00Z".parse().unwrap();
        for (value, seconds) in [
            ("7", Some(7)),
            (" 0 ", Some(0)),
            ("Wed, 21 Oct 2015 07:28:00 GMT", Some(60)),
            ("Wed, 21 Oct 2015 07:26:00 GMT", Some(0)),
            ("99999999999", Some(86_400)),
            ("-5", None),
            ("NaN", None),
            ("soon", None),
        ] {
            assert_eq!(wait(value, now), seconds.map(Duration::from_secs), "{value:?}");
        }
        assert_eq!(json_wait(r#"{"ok":false,"retry_after":1.5}"#), Some(Duration::from_millis(1500)));
        assert_eq!(json_wait("slow down"), None);
    }

    #[test]
    fn a_quote_contains_no_piece_of_url_or_header() {
        let url = Url::parse("https://user:hunter2pw@hooks.example.com/services/T0000/B0000/s3cr3tT0k3n?key=abcdef123")
            .unwrap();
        let header = SecretString::from("Bearer zyxwvu98");
        let veil = Veil::new(&url, [&header]);
        let text = r#"Cannot POST https:\/\/user:hunter2pw@hooks.example.com\/services\/T0000\/B0000\/s3cr3tT0k3n?key=abcdef123
            s3cr3tT0k3n hooks.example.com hunter2pw zyxwvu98 key=abcdef123"#;
        let quote = veil.quote(text, false);
        for secret in ["hooks.example.com", "s3cr3tT0k3n", "services", "abcdef123", "hunter2pw", "zyxwvu98"] {
            assert!(!quote.contains(secret), "{secret} in {quote}");
        }
        assert!(quote.starts_with("Cannot POST [redacted]"), "{quote}");
        assert_eq!(veil.quote("s3cr3tT0k3n s3cr3t", true), "(its answer repeats a secret and is not shown)");
        assert_eq!(veil.quote("plain\n  words", false), "plain words");
    }
}
