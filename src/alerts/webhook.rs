//! Any HTTP endpoint: the body that Alertmanager sends (version 4, which every bridge reads), signed as the Standard
//! Webhooks specification says (HMAC-SHA256 over `id.timestamp.body`).

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, SecondsFormat, Utc};
use hmac::{Hmac, KeyInit, Mac};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use sha2::Sha256;

use super::http::{Answer, Http, Target};
use super::notifier::{Delivery, Notifier, NotifyError};
use super::words;
use crate::history::AlertState;

/// Alertmanager's way to say "not yet".
const NEVER: &str = "0001-01-01T00:00:00Z";

/// Posts to a webhook.
pub(super) struct Webhook {
    target: Target,
    keys: Vec<Key>,
    headers: HeaderMap,
}

impl Webhook {
    pub(super) fn new(
        url: &SecretString,
        secrets: &[SecretString],
        headers: &BTreeMap<String, SecretString>,
        allow_private: bool,
        timeout: Duration,
        http: &Http,
    ) -> Result<Self, String> {
        let keys = secrets.iter().map(Key::new).collect::<Result<_, _>>()?;
        let mut given = HeaderMap::new();
        for (name, value) in headers {
            let wrong = || format!("its header {name:?} cannot be used in a request");
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
            let mut value = HeaderValue::from_str(value.expose_secret()).map_err(|_| wrong())?;
            value.set_sensitive(true);
            given.insert(name, value);
        }
        let target = http.target(url, headers.values().chain(secrets), allow_private, timeout)?;
        Ok(Self { target, keys, headers: given })
    }

    fn headers(&self, delivery: &Delivery<'_>, body: &[u8]) -> HeaderMap {
        let mut headers = self.headers.clone();
        let (id, timestamp) = (format!("msg_{}", delivery.id), delivery.now.timestamp());
        let signatures: Vec<String> = self.keys.iter().map(|key| key.sign(&id, timestamp, body)).collect();
        let mut put = |name: &'static str, value: String| {
            headers.insert(name, HeaderValue::from_str(&value).expect("letters, digits and base64 fit into a header"));
        };
        put("webhook-timestamp", timestamp.to_string());
        if !signatures.is_empty() {
            put("webhook-signature", signatures.join(" "));
        }
        put("webhook-id", id);
        headers
    }

    fn judge(&self, answer: &Answer) -> Result<(), NotifyError> {
        let said = self.target.describe(answer);
        match answer.status {
            200..300 => Ok(()),
            300..400 => Err(NotifyError::Permanent {
                reason: format!("{said}; redirects are not followed, so put the final address into its url"),
            }),
            410 => Err(NotifyError::Gone { reason: format!("{said}; that means it wants no more messages") }),
            408 | 429 | 500.. => Err(NotifyError::Passing { reason: said, after: answer.retry_after }),
            _ => Err(NotifyError::Permanent { reason: format!("{said}; check its url and headers in jobs.toml") }),
        }
    }
}

#[async_trait]
impl Notifier for Webhook {
    async fn send(&self, delivery: &Delivery<'_>) -> Result<(), NotifyError> {
        let body = body(delivery).to_string().into_bytes();
        let answer = self.target.post(self.headers(delivery, &body), body, delivery.now).await?;
        self.judge(&answer)
    }
}

/// A key that signs.
struct Key(Hmac<Sha256>);

impl Key {
    /// Reads `whsec_` and base64.
    fn new(secret: &SecretString) -> Result<Self, String> {
        let wrong =
            || "one of its secrets cannot be used: write whsec_ and the base64 of 24 to 64 random bytes".to_owned();
        let text = secret.expose_secret().trim();
        let bytes = STANDARD.decode(text.strip_prefix("whsec_").unwrap_or(text)).map_err(|_| wrong())?;
        if !(24..=64).contains(&bytes.len()) {
            return Err(wrong());
        }
        Ok(Self(Hmac::new_from_slice(&bytes).expect("HMAC takes keys of any length")))
    }

    fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let mut mac = self.0.clone();
        mac.update(format!("{id}.{timestamp}.").as_bytes());
        mac.update(body);
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    }
}

/// One group with one alert in it.
fn body(delivery: &Delivery<'_>) -> Value {
    let notice = delivery.notice;
    let mut group: BTreeMap<&str, &str> =
        notice.labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    group.insert("alertname", &notice.name);
    let mut labels = group.clone();
    labels.insert("severity", notice.severity.as_str());
    let key: Vec<String> = group.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
    let ends_at = notice.ends_at.filter(|_| notice.state == AlertState::Resolved);
    let annotations = annotations(delivery);
    json!({
        "version": "4",
        "groupKey": format!("{{}}:{{{}}}", key.join(", ")),
        "truncatedAlerts": 0,
        "status": notice.state,
        "receiver": delivery.receiver,
        "groupLabels": group,
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "externalURL": "",
        "alerts": [{
            "status": notice.state,
            "labels": labels,
            "annotations": annotations,
            "startsAt": instant(notice.starts_at),
            "endsAt": ends_at.map_or_else(|| NEVER.to_owned(), instant),
            "generatorURL": "",
            "fingerprint": notice.fingerprint,
        }],
    })
}

/// The summary, what is to be said about time, and the details under names that labels may have.
fn annotations(delivery: &Delivery<'_>) -> BTreeMap<String, String> {
    let mut annotations = BTreeMap::from([("summary".to_owned(), delivery.notice.summary.clone())]);
    let remarks = delivery.remarks().join(", ");
    if !remarks.is_empty() {
        annotations.insert("timing".to_owned(), remarks);
    }
    if let Some(delay) = delivery.delay() {
        annotations.insert("delivery_delay_seconds".to_owned(), delay.as_secs().to_string());
    }
    for (name, value) in &delivery.notice.details {
        let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
        let name: String = words::cut(name, 60).chars().map(letter).collect();
        // Two details that share a name are both told.
        let together = annotations.get(&name).map(|first| format!("{first}\n{value}"));
        annotations.insert(name, together.unwrap_or_else(|| value.clone()));
    }
    annotations
}

fn instant(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_test_vector_of_standard_webhooks_is_met() {
        let key = Key::new(&SecretString::from("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")).unwrap();
        assert_eq!(
            key.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
    }

    #[test]
    fn a_key_of_the_wrong_form_is_refused_and_not_repeated() {
        for wrong in ["", "whsec_", "whsec_not base64!", "whsec_c2hvcnQ=", "hunter2hunter2"] {
            let message = Key::new(&SecretString::from(wrong)).err().expect(wrong);
            assert!(message.contains("whsec_ and the base64") && !message.contains("hunter2"), "{message}");
        }
    }
}
