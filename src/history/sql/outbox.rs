//! The outbox: messages wait here until their receiver has taken them, whatever happens to us meanwhile.

use std::time::Duration;

use super::alerts::new_id;
use super::{Columns, Session, Value, clip, later};
use crate::history::{AlertState, Message, MessageOutcome, Notice};

const MESSAGE: &str = "id, receiver, fingerprint, seq, notice, state, attempts, created_at, next_at, last_error";

fn message(row: &impl Columns) -> Result<Message, sqlx::Error> {
    Ok(Message {
        id: row.text("id")?,
        receiver: row.text("receiver")?,
        fingerprint: row.text("fingerprint")?,
        seq: row.number("seq")?,
        notice: row.json("notice")?,
        state: row.word("state")?,
        attempts: row.number("attempts")?,
        created_at: row.time("created_at")?,
        next_at: row.time("next_at")?,
        last_error: row.maybe_text("last_error")?,
    })
}

/// Queues the message of a transition. A resolved alert whose firing message is still unsent is told in one message, which
/// knows both times; a message that is being sent right now is left alone, and the new one goes after it.
pub(super) async fn queue<S: Session>(s: &mut S, receiver: &str, notice: &Notice) -> Result<(), sqlx::Error> {
    let now = s.now().await?;
    if notice.state == AlertState::Resolved {
        s.query(
            "UPDATE outbox SET state = 'superseded', settled_at = $3 WHERE receiver = $1 AND fingerprint = $2 \
             AND state = 'queued' AND event = 'firing'",
            &[receiver.into(), notice.fingerprint.as_str().into(), now.into()],
        )
        .await?;
    }
    s.query(
        "INSERT INTO outbox (id, receiver, fingerprint, seq, event, notice, state, attempts, created_at, next_at) \
         VALUES ($1, $2, $3, $4, $5, $6, 'queued', 0, $7, $7)",
        &[
            new_id(now).as_str().into(),
            receiver.into(),
            notice.fingerprint.as_str().into(),
            i64::from(notice.seq).into(),
            notice.state.as_str().into(),
            Value::json(notice),
            now.into(),
        ],
    )
    .await?;
    Ok(())
}

pub(super) async fn lease<S: Session>(
    s: &mut S,
    owner: &str,
    limit: u32,
    lease: Duration,
) -> Result<Vec<Message>, sqlx::Error> {
    let now = s.now().await?;
    // A try counts from here, so that a message that brings its sender down does not count as never tried.
    let sql = format!(
        "WITH due AS MATERIALIZED (SELECT id AS due_id FROM outbox message \
         WHERE state IN ('queued', 'leased') AND CASE state WHEN 'queued' THEN next_at ELSE lease_until END <= $1 \
         AND NOT EXISTS (SELECT 1 FROM outbox older WHERE older.state IN ('queued', 'leased') \
           AND older.receiver = message.receiver AND older.fingerprint = message.fingerprint AND older.seq < message.seq) \
         ORDER BY created_at, id LIMIT $2 {}) \
         UPDATE outbox SET state = 'leased', owner = $3, lease_until = $4, attempts = attempts + 1 \
         FROM due WHERE id = due_id RETURNING {MESSAGE}",
        S::LOCK_FREE
    );
    let rows = s.query(&sql, &[now.into(), i64::from(limit).into(), owner.into(), later(now, lease).into()]).await?;
    let mut messages = rows.iter().map(message).collect::<Result<Vec<_>, _>>()?;
    messages.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
    Ok(messages)
}

pub(super) async fn settle<S: Session>(
    s: &mut S,
    id: &str,
    owner: &str,
    outcome: &MessageOutcome,
) -> Result<bool, sqlx::Error> {
    let now = s.now().await?;
    let ours = "owner = NULL, lease_until = NULL WHERE id = $1 AND owner = $2 AND state = 'leased' RETURNING id";
    let settled = match outcome {
        MessageOutcome::Sent => {
            let sql = format!("UPDATE outbox SET state = 'sent', settled_at = $3, last_error = NULL, {ours}");
            s.query(&sql, &[id.into(), owner.into(), now.into()]).await?
        }
        MessageOutcome::Dead { error } => {
            let sql = format!("UPDATE outbox SET state = 'dead', settled_at = $3, last_error = $4, {ours}");
            s.query(&sql, &[id.into(), owner.into(), now.into(), clip(error).into()]).await?
        }
        MessageOutcome::Retry { after, error } => {
            let sql = format!("UPDATE outbox SET state = 'queued', next_at = $3, last_error = $4, {ours}");
            s.query(&sql, &[id.into(), owner.into(), later(now, *after).into(), clip(error).into()]).await?
        }
    };
    if matches!(outcome, MessageOutcome::Retry { .. }) && !settled.is_empty() {
        // It could not be sent, and the alert was resolved meanwhile: the resolved message that waits behind it says both.
        s.query(
            "UPDATE outbox SET state = 'superseded', settled_at = $2 WHERE id = $1 AND state = 'queued' \
             AND event = 'firing' AND EXISTS (SELECT 1 FROM outbox newer WHERE newer.state = 'queued' \
             AND newer.event = 'resolved' AND newer.receiver = outbox.receiver \
             AND newer.fingerprint = outbox.fingerprint AND newer.seq > outbox.seq)",
            &[id.into(), now.into()],
        )
        .await?;
    }
    Ok(!settled.is_empty())
}

pub(super) async fn list<S: Session>(s: &mut S, limit: u32) -> Result<Vec<Message>, sqlx::Error> {
    let sql = format!("SELECT {MESSAGE} FROM outbox ORDER BY created_at DESC, id DESC LIMIT $1");
    s.query(&sql, &[i64::from(limit).into()]).await?.iter().map(message).collect()
}
