//! `alerts`: what fires, what was told, and whether a receiver can be told.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::json;

use super::args::AlertsCommand;
use super::failure::Failure;
use super::{House, logs, tables};
use crate::alerts::{Delivery, Http, notifier};
use crate::history::{AlertState, Notice, Severity};
use crate::units::nearest;

pub(super) async fn obey(house: &House, command: AlertsCommand, now: DateTime<Utc>) -> Result<(), Failure> {
    let out = &house.out;
    match command {
        AlertsCommand::List { limit } => {
            let (_, history) = house.history().await?;
            let alerts = history.alerts(limit).await?;
            match (out.json, alerts.is_empty()) {
                (true, _) => out.json(&alerts),
                (_, true) => out.line("no alerts"),
                _ => out.line(tables::alerts(out, &alerts, now)),
            }
            Ok(())
        }
        AlertsCommand::Messages { limit } => {
            let (_, history) = house.history().await?;
            let messages = history.messages(limit).await?;
            match (out.json, messages.is_empty()) {
                (true, _) => out.json(&messages),
                (_, true) => out.line("no messages"),
                _ => out.line(tables::messages(out, &messages, now)),
            }
            Ok(())
        }
        AlertsCommand::Test { receiver } => test(house, &receiver, now).await,
    }
}

/// Sends a message that says that it is a test.
async fn test(house: &House, name: &str, now: DateTime<Utc>) -> Result<(), Failure> {
    let settings = house.settings()?;
    // The console receiver is the log, so what it is told must be seen.
    logs::start(logs::form(false), &settings.backends.log, false);
    let Some(receiver) = settings.receivers.get(name) else {
        // One that is off has a note that says why.
        let off = settings.notes.iter().find(|note| note.starts_with(&format!("receiver {name} is off")));
        let hint = nearest(name, settings.receivers.keys().map(String::as_str));
        return Err(match (off, hint) {
            (Some(note), _) => Failure::configuration(note),
            (None, Some(hint)) => Failure::usage(format!("there is no receiver {name:?}; did you mean {hint:?}?")),
            (None, None) => {
                let names: Vec<&str> = settings.receivers.keys().map(String::as_str).collect();
                Failure::usage(format!("there is no receiver {name:?}; there are: {}", names.join(", ")))
            }
        });
    };
    let notice = Notice {
        fingerprint: "0000000000000000".to_owned(),
        name: "test".to_owned(),
        labels: BTreeMap::from([("job".to_owned(), "test".to_owned())]),
        severity: Severity::Info,
        state: AlertState::Firing,
        summary: "This is a test message. Somebody ran `lamplighter alerts test`; nothing is wrong.".to_owned(),
        details: vec![("Receiver".to_owned(), name.to_owned())],
        starts_at: now,
        ends_at: None,
        seq: 1,
    };
    let id = ulid::Ulid::from_parts(u64::try_from(now.timestamp_millis()).unwrap_or(0), fastrand::u128(..)).to_string();
    let delivery = Delivery { id: &id, receiver: name, notice: &notice, queued_at: now, now };
    let send = async {
        let notifier = notifier(receiver, &Http::new())?;
        notifier.send(&delivery).await.map_err(|error| error.to_string())
    };
    let sent: Result<(), String> = send.await;
    if house.out.json {
        house.out.json(&json!({ "receiver": name, "sent": sent.is_ok(), "error": sent.as_ref().err() }));
        return sent.map_err(|_| Failure::told(1));
    }
    sent.map_err(|error| Failure::trouble(format!("receiver {name} was not told: {error}")))?;
    house.out.line(format_args!("receiver {name} ({}) took the test message", receiver.describe()));
    Ok(())
}
