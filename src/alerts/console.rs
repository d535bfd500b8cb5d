//! The receiver that is always there: the program's own log, in readable lines.
//!
//! Through `tracing`, so that a host that reads logs as JSON gets it as JSON, and a progress bar is not torn. A log filter
//! that hides `info` hides recoveries too.

use async_trait::async_trait;

use super::notifier::{Delivery, Notifier, NotifyError};
use crate::history::{AlertState, Severity};

/// Tells the log.
pub(super) struct Console;

#[async_trait]
impl Notifier for Console {
    async fn send(&self, delivery: &Delivery<'_>) -> Result<(), NotifyError> {
        let (text, name) = (text(delivery), delivery.notice.name.as_str());
        match (delivery.notice.state, delivery.notice.severity) {
            (AlertState::Firing, Severity::Critical) => tracing::error!(alert.name = name, "{text}"),
            (AlertState::Firing, Severity::Warning) => tracing::warn!(alert.name = name, "{text}"),
            _ => tracing::info!(alert.name = name, "{text}"),
        }
        Ok(())
    }
}

/// One line for the headline, one for each further fact.
fn text(delivery: &Delivery<'_>) -> String {
    let mut text = format!("{} {}", delivery.lamp().0, delivery.headline());
    for remark in delivery.remarks() {
        text.push_str(&format!(" ({remark})"));
    }
    for (name, value) in &delivery.notice.details {
        text.push_str(&format!("\n    {name}: {}", value.trim().replace('\n', "\n      ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Notice;

    #[test]
    fn a_message_is_readable_in_a_log() {
        let notice = Notice {
            fingerprint: "9c1e0b6d2f4a7788".to_owned(),
            name: "job_failed".to_owned(),
            labels: [("job".to_owned(), "nightly-upload".to_owned())].into(),
            severity: Severity::Critical,
            state: AlertState::Resolved,
            summary: "nightly-upload succeeded again.".to_owned(),
            details: vec![("Look closer".to_owned(), "lamplighter history nightly-upload".to_owned())],
            starts_at: "2026-01-05T10:02:00Z".parse().unwrap(),
            ends_at: Some("2026-01-05T10:09:00Z".parse().unwrap()),
            seq: 2,
        };
        let (queued_at, now) = ("2026-01-05T10:09:00Z".parse().unwrap(), "2026-01-05T10:21:30Z".parse().unwrap());
        let delivery = Delivery { id: "01K", receiver: "console", notice: &notice, queued_at, now };
        assert_eq!(
            text(&delivery),
            "🟢 RESOLVED [critical] job_failed: nightly-upload succeeded again. (fired 10:02, resolved 10:09 UTC) \
             (delivery delayed 12 m)\n    Look closer: lamplighter history nightly-upload"
        );
    }
}
