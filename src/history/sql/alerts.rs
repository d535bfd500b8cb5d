//! Alerts: what a wished state changes, and the messages that a transition causes.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};

use super::{Columns, Session, Value, clip, outbox};
use crate::history::{Alert, AlertChange, AlertState, Notice};

pub(super) async fn carry_out<S: Session>(
    s: &mut S,
    changes: impl IntoIterator<Item = &AlertChange>,
) -> Result<(), sqlx::Error> {
    let mut changes: Vec<&AlertChange> = changes.into_iter().collect();
    // Stable, so changes of one alert keep their order; the alerts are taken in one order everywhere, so that replicas
    // that change the same ones at once wait for each other, not in a circle.
    changes.sort_by_key(|change| &change.fingerprint);
    for change in changes {
        if let Some(notice) = transition(s, change).await? {
            // A receiver that is named twice is told once.
            let receivers: BTreeSet<&str> = change.receivers.iter().map(String::as_str).collect();
            for receiver in receivers {
                outbox::queue(s, receiver, &notice).await?;
            }
        }
    }
    Ok(())
}

/// Brings an alert into the wished state. `None`: it is in that state already, or was never known to fire.
async fn transition<S: Session>(s: &mut S, change: &AlertChange) -> Result<Option<Notice>, sqlx::Error> {
    let sql = match change.state {
        AlertState::Firing => {
            "INSERT INTO alerts (fingerprint, name, labels, severity, state, summary, starts_at, seq) \
             VALUES ($1, $2, $3, $4, 'firing', $5, $6, 1) ON CONFLICT (fingerprint) DO UPDATE SET name = excluded.name, \
             labels = excluded.labels, severity = excluded.severity, state = 'firing', summary = excluded.summary, \
             starts_at = excluded.starts_at, ends_at = NULL, seq = alerts.seq + 1 WHERE alerts.state <> 'firing' \
             RETURNING starts_at, ends_at, seq"
        }
        AlertState::Resolved => {
            "UPDATE alerts SET name = $2, labels = $3, severity = $4, state = 'resolved', summary = $5, ends_at = $6, \
             seq = seq + 1 WHERE fingerprint = $1 AND state = 'firing' RETURNING starts_at, ends_at, seq"
        }
    };
    let summary = clip(&change.summary);
    let rows = s
        .query(
            sql,
            &[
                change.fingerprint.as_str().into(),
                change.name.as_str().into(),
                Value::json(&change.labels),
                change.severity.as_str().into(),
                summary.into(),
                change.at.into(),
            ],
        )
        .await?;
    let Some(row) = rows.first() else { return Ok(None) };
    Ok(Some(Notice {
        fingerprint: change.fingerprint.clone(),
        name: change.name.clone(),
        labels: change.labels.clone(),
        severity: change.severity,
        state: change.state,
        summary: summary.to_owned(),
        details: change.details.iter().map(|(label, fact)| (label.clone(), clip(fact).to_owned())).collect(),
        starts_at: row.time("starts_at")?,
        ends_at: row.maybe_time("ends_at")?,
        seq: row.number("seq")?,
    }))
}

pub(super) async fn list<S: Session>(s: &mut S, limit: u32) -> Result<Vec<Alert>, sqlx::Error> {
    let rows = s
        .query(
            "SELECT fingerprint, name, labels, severity, state, summary, starts_at, ends_at, seq FROM alerts \
             ORDER BY CASE state WHEN 'firing' THEN 0 ELSE 1 END, starts_at DESC, fingerprint LIMIT $1",
            &[i64::from(limit).into()],
        )
        .await?;
    let alert = |row: &S::Row| {
        Ok(Alert {
            fingerprint: row.text("fingerprint")?,
            name: row.text("name")?,
            labels: row.json("labels")?,
            severity: row.word("severity")?,
            state: row.word("state")?,
            summary: row.text("summary")?,
            starts_at: row.time("starts_at")?,
            ends_at: row.maybe_time("ends_at")?,
            seq: row.number("seq")?,
        })
    };
    rows.iter().map(alert).collect()
}

/// A new id for a row that comes about now.
pub(super) fn new_id(now: DateTime<Utc>) -> String {
    ulid::Ulid::from_datetime(now.into()).to_string()
}
