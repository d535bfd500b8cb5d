//! Slack, through an incoming webhook: Block Kit within Slack's limits, and plain text when Slack dislikes the blocks, so
//! that a mistake in the layout never eats a message.

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use reqwest::header::HeaderMap;
use secrecy::SecretString;
use serde_json::{Value, json};

use super::http::{Answer, Http, Target, json_wait};
use super::notifier::{Delivery, Notifier, NotifyError, Pace};
use super::words;
use crate::history::AlertState;

// Slack's limits, in UTF-16 units. The last one is not documented (about 13,200 were measured); we stay below.
const HEADER: usize = 150;
const SECTION: usize = 3000;
const FIELD: usize = 2000;
const FIELDS: usize = 10;
const MESSAGE: usize = 12_000;

/// The line on top, which is also what a phone shows.
const TOP: usize = 600;
/// A detail that is longer than this gets the full width.
const SHORT: usize = 60;
/// So many details get the full width; no message of ours has more.
const WIDE: usize = 20;

/// What Slack says when the webhook will never work again as it is. (Its answers are single words.)
const BROKEN: [&str; 10] = [
    "no_service",
    "no_active_hooks",
    "no_service_id",
    "channel_not_found",
    "channel_is_archived",
    "action_prohibited",
    "posting_to_general_channel_denied",
    "no_team",
    "team_disabled",
    "invalid_token",
];

/// What Slack says when it does not like what we wrote.
const DISLIKED: [&str; 3] = ["invalid_payload", "no_text", "too_many_attachments"];

/// Posts to a Slack incoming webhook.
pub(super) struct Slack {
    target: Target,
}

/// What to do after an answer.
enum Verdict {
    Delivered,
    /// Send it once more, as plain text.
    AsText(NotifyError),
    Failed(NotifyError),
}

impl Slack {
    pub(super) fn new(url: &SecretString, timeout: Duration, http: &Http) -> Result<Self, String> {
        // Mattermost and other servers in one's own house speak the same format, so private addresses are allowed.
        Ok(Self { target: http.target(url, [], true, timeout)? })
    }

    async fn post(&self, payload: Value, now: DateTime<Utc>) -> Result<Verdict, NotifyError> {
        let answer = self.target.post(HeaderMap::new(), payload.to_string().into_bytes(), now).await?;
        Ok(self.judge(&answer))
    }

    fn judge(&self, answer: &Answer) -> Verdict {
        if answer.status == 200 && answer.body == "ok" {
            return Verdict::Delivered;
        }
        let said = format!("Slack {}", self.target.describe(answer));
        let word = answer.body.trim();
        let passing =
            |reason| NotifyError::Passing { reason, after: answer.retry_after.or_else(|| json_wait(&answer.body)) };
        let permanent = |cure: &str| NotifyError::Permanent { reason: format!("{said}; {cure}") };
        let error = match answer.status {
            429 => passing(said),
            _ if BROKEN.contains(&word) => permanent("make a new incoming webhook in Slack and put it into its url"),
            400 => return Verdict::AsText(permanent("the message was refused with blocks and as plain text")),
            _ if DISLIKED.contains(&word) => {
                return Verdict::AsText(permanent("the message was refused with blocks and as plain text"));
            }
            200..300 => passing(format!("{said}; a Slack webhook answers with exactly \"ok\"")),
            300..400 => permanent("redirects are not followed, so put the final address into its url"),
            408 | 500.. => passing(said),
            410 => NotifyError::Gone { reason: format!("{said}; that means it wants no more messages") },
            _ => permanent("check its url in jobs.toml"),
        };
        Verdict::Failed(error)
    }
}

#[async_trait]
impl Notifier for Slack {
    async fn send(&self, delivery: &Delivery<'_>) -> Result<(), NotifyError> {
        let refused = match self.post(blocks(delivery), delivery.now).await? {
            Verdict::Delivered => return Ok(()),
            Verdict::Failed(error) => return Err(error),
            Verdict::AsText(error) => error,
        };
        tracing::warn!(
            receiver.name = delivery.receiver,
            message.id = delivery.id,
            "Slack refused a message with blocks; sending it as plain text"
        );
        match self.post(text(delivery), delivery.now).await? {
            Verdict::Delivered => Ok(()),
            Verdict::Failed(error) => Err(error),
            Verdict::AsText(_) => Err(refused),
        }
    }

    /// Slack allows one message a second, and short bursts.
    fn pace(&self) -> Pace {
        Pace { burst: 3, interval: Duration::from_secs(1), at_once: 2 }
    }
}

/// What is left of the room in a message. Everything that is written takes some of it.
struct Room(usize);

impl Room {
    /// A text with `&`, `<` and `>` escaped (so that nothing in it can mention or link), within `limit` and the room left.
    fn text(&mut self, text: &str, limit: usize) -> String {
        let text = words::fit(text, limit.min(self.0), |c, out| match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            c => out.push(c),
        });
        self.take(text)
    }

    /// `*Name*` over the text.
    fn titled(&mut self, name: &str, value: &str, limit: usize) -> String {
        self.0 = self.0.saturating_sub("**\n".len());
        let title = self.text(name, 80);
        let frame = title.encode_utf16().count() + "**\n".len();
        let value = self.text(value.trim(), limit - frame);
        format!("*{title}*\n{value}")
    }

    /// Our own markup, as it is.
    fn take(&mut self, text: String) -> String {
        self.0 = self.0.saturating_sub(text.encode_utf16().count());
        text
    }
}

/// The message with blocks.
fn blocks(delivery: &Delivery<'_>) -> Value {
    let notice = delivery.notice;
    let (lamp, color) = delivery.lamp();
    let mut room = Room(MESSAGE);
    // What must be there takes its room first; the details share what is left.
    let top = room.text(&format!("{lamp} {}", delivery.headline()), TOP);
    let fallback = room.text(&format!("{} {}", notice.name, notice.summary), TOP);
    let about: Vec<&str> = notice.labels.values().map(String::as_str).collect();
    let header = [&[notice.name.as_str()], about.as_slice()].concat().join(" · ");
    let header = room.text(&header, HEADER);
    let summary = room.text(&notice.summary, SECTION);
    let since = match notice.ends_at.filter(|_| notice.state == AlertState::Resolved) {
        None => format!("*Since*\n{}", date(notice.starts_at)),
        Some(ends_at) => format!("*Time*\nfired {}, resolved {}", date(notice.starts_at), date(ends_at)),
    };
    let since = room.take(since);
    let mut context = vec![format!("fp {}", notice.fingerprint), format!("seq {}", notice.seq)];
    context.extend(delivery.delay().map(|delay| format!("delivery delayed {}", words::span(delay))));
    let context = room.text(&context.join(" · "), 300);
    let more = room.text("… and more", SHORT);

    let mrkdwn = |text: String| json!({"type": "mrkdwn", "text": text, "verbatim": true});
    let mut fields = vec![mrkdwn(since)];
    let mut wide = Vec::new();
    for (name, value) in &notice.details {
        // Less than this would be a title with nothing under it.
        if room.0 < 120 || wide.len() == WIDE {
            wide.push(json!({"type": "section", "text": mrkdwn(more)}));
            break;
        }
        if value.trim().chars().count() <= SHORT && fields.len() < FIELDS {
            fields.push(mrkdwn(room.titled(name, value, FIELD)));
        } else {
            wide.push(json!({"type": "section", "text": mrkdwn(room.titled(name, value, SECTION))}));
        }
    }
    let mut blocks = vec![
        json!({"type": "header", "text": {"type": "plain_text", "text": header}}),
        json!({"type": "section", "text": mrkdwn(summary)}),
        json!({"type": "section", "fields": fields}),
    ];
    blocks.extend(wide);
    blocks.push(json!({"type": "context", "elements": [mrkdwn(context)]}));
    json!({
        "text": top,
        "unfurl_links": false,
        "unfurl_media": false,
        "attachments": [{"color": color, "fallback": fallback, "blocks": blocks}],
    })
}

/// The message as plain text: everything that the blocks say.
fn text(delivery: &Delivery<'_>) -> Value {
    let mut lines = vec![format!("{} {}", delivery.lamp().0, delivery.headline())];
    lines.extend(delivery.remarks());
    lines.extend(delivery.notice.details.iter().map(|(name, value)| format!("{name}: {}", value.trim())));
    json!({"text": Room(MESSAGE).text(&lines.join("\n"), MESSAGE)})
}

/// An instant that Slack shows in the reader's own zone.
fn date(at: DateTime<Utc>) -> String {
    format!("<!date^{}^{{date_short}} {{time}}|{}>", at.timestamp(), words::instant(at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Notice, Severity};

    fn notice(summary: String, details: Vec<(String, String)>) -> Notice {
        Notice {
            fingerprint: "9c1e0b6d2f4a7788".to_owned(),
            name: "job_failed".to_owned(),
            labels: [("job".to_owned(), "x".repeat(500))].into(),
            severity: Severity::Critical,
            state: AlertState::Firing,
            summary,
            details,
            starts_at: "2026-01-05T02:00:00Z".parse().unwrap(),
            ends_at: None,
            seq: 1,
        }
    }

    fn length(value: &Value) -> usize {
        match value {
            Value::String(text) => text.encode_utf16().count(),
            Value::Array(values) => values.iter().map(length).sum(),
            Value::Object(map) => map
                .iter()
                .filter(|(name, _)| !matches!(name.as_str(), "type" | "color"))
                .map(|(_, value)| length(value))
                .sum(),
            _ => 0,
        }
    }

    #[test]
    fn the_largest_message_keeps_every_limit_of_slack() {
        let details = (0..60).map(|i| (format!("Detail {i} <&>"), "&<🔴".repeat(1 + i * 40))).collect();
        let notice = notice("<!channel> & more 🔴 ".repeat(1000), details);
        let at = "2026-01-05T03:00:00Z".parse().unwrap();
        let delivery = Delivery { id: "01K", receiver: "slack", notice: &notice, queued_at: notice.starts_at, now: at };
        let payload = blocks(&delivery);
        assert!(length(&payload) <= MESSAGE, "{} units", length(&payload));
        let blocks = payload["attachments"][0]["blocks"].as_array().unwrap();
        assert!(blocks.len() <= 50);
        assert!(length(&blocks[0]["text"]["text"]) <= HEADER);
        for block in blocks {
            assert!(length(&block["text"]["text"]) <= SECTION);
            let fields = block["fields"].as_array().cloned().unwrap_or_default();
            assert!(fields.len() <= FIELDS && fields.iter().all(|field| length(&field["text"]) <= FIELD));
        }
        let summary = blocks[1]["text"]["text"].as_str().unwrap();
        assert!(summary.starts_with("&lt;!channel&gt; &amp; more") && summary.ends_with('…'));
        // No escape is cut in half.
        assert!(
            summary.split('&').skip(1).all(|rest| ["lt;", "gt;", "amp;"].iter().any(|word| rest.starts_with(word)))
        );
        assert!(payload.to_string().contains("… and more"));
        assert!(length(&text(&delivery)) <= MESSAGE);
    }
}
