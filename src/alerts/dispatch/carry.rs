//! One message's way: from the outbox, or from memory, to its receiver, and back with what became of it.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::direct::InHand;
use super::lane::{Lane, NotNow};
use super::{HISTORY_TIMEOUT, LEASE, Shared, verdict};
use crate::alerts::http::MAX_TIMEOUT;
use crate::alerts::notifier::{Delivery, NotifyError};
use crate::alerts::{CONSOLE, words};
use crate::history::{HistoryError, Message, MessageOutcome, Notice};

/// A message that has not had its turn after this is put back.
const TURN: Duration = Duration::from_secs(10);
/// The longest try: Slack may need two requests.
const TRY: Duration = MAX_TIMEOUT.saturating_mul(2).saturating_add(Duration::from_secs(1));
/// So many outcomes are remembered for a history that could not be told.
const MAX_UNSETTLED: usize = 1024;

/// What became of one message that was in hand.
pub(super) struct Done {
    pub(super) outcome: MessageOutcome,
    /// `false`: it was put back before it was tried.
    pub(super) tried: bool,
    pub(super) in_memory: bool,
}

/// A message to be tried, from the outbox or from memory.
struct Parcel<'a> {
    id: &'a str,
    receiver: &'a str,
    notice: &'a Notice,
    queued_at: DateTime<Utc>,
    /// Tries before this one.
    tries: u32,
    last_error: Option<&'a str>,
    /// It must have its turn by then.
    by: Instant,
}

impl Shared {
    /// Carries a leased message to its receiver and settles it.
    pub(super) async fn carry(self: Arc<Self>, message: Message, leased_at: Instant, stop: CancellationToken) -> Done {
        let known = self.unsettled.lock().unwrap_or_else(PoisonError::into_inner).remove(&message.id);
        let (outcome, tried) = match known {
            Some(outcome) => (outcome, true),
            None => {
                let parcel = Parcel {
                    id: &message.id,
                    receiver: &message.receiver,
                    notice: &message.notice,
                    queued_at: message.created_at,
                    // The history counts a try when it leases.
                    tries: message.attempts.saturating_sub(1),
                    last_error: message.last_error.as_deref(),
                    by: leased_at + TURN,
                };
                self.deliver(parcel, &stop).await
            }
        };
        self.settle(&message, leased_at, &outcome, tried).await;
        Done { outcome, tried, in_memory: false }
    }

    /// Carries a message from memory to its receiver.
    pub(super) async fn carry_letter(self: Arc<Self>, in_hand: InHand, stop: CancellationToken) -> Done {
        let letter = in_hand.letter.clone();
        let parcel = Parcel {
            id: &letter.id,
            receiver: &letter.receiver,
            notice: &letter.notice,
            queued_at: letter.queued_at,
            tries: letter.tries,
            last_error: letter.last_error.as_deref(),
            by: Instant::now() + TURN,
        };
        let (outcome, tried) = self.deliver(parcel, &stop).await;
        in_hand.settle(&outcome, tried);
        if let MessageOutcome::Dead { error } = &outcome {
            self.log_dead(&letter.id, &letter.receiver, &letter.notice, error);
        }
        Done { outcome, tried, in_memory: true }
    }

    /// Waits for the message's turn and tries once; also says whether it came to a try.
    async fn deliver(&self, parcel: Parcel<'_>, stop: &CancellationToken) -> (MessageOutcome, bool) {
        let Parcel { id, receiver, notice, queued_at, .. } = parcel;
        let Some(lane) = self.lane(receiver) else {
            let error = format!("no receiver {receiver:?} is set up: it is not in jobs.toml, or its url is unset");
            return (MessageOutcome::Dead { error }, false);
        };
        let turn = match lane.turn(parcel.by, stop).await {
            Ok(turn) => turn,
            Err(NotNow::Off(reason)) => {
                return (MessageOutcome::Dead { error: format!("the receiver is off: {reason}") }, false);
            }
            Err(NotNow::Later(after)) => {
                let error = parcel.last_error.unwrap_or("not tried yet: it waits for its turn").to_owned();
                return (MessageOutcome::Retry { after, error }, false);
            }
        };
        let now = self.clock.now();
        let delivery = Delivery { id, receiver, notice, queued_at, now };
        let result = timeout(TRY, lane.send(&turn, &delivery)).await.unwrap_or_else(|_| {
            let reason = format!("no end within {}", words::span(TRY));
            Err(NotifyError::Passing { reason, after: None })
        });
        let age = (self.clock.now() - queued_at).to_std().unwrap_or_default();
        let outcome = verdict::judge(result, parcel.tries.saturating_add(1), age);
        match &outcome {
            MessageOutcome::Retry { after, error } => tracing::warn!(
                receiver.name = receiver,
                message.id = id,
                alert.name = notice.name,
                "receiver {receiver} could not be told about {} and will be tried again in {}: {error}",
                notice.name,
                words::span(*after)
            ),
            MessageOutcome::Sent => {
                tracing::debug!(receiver.name = receiver, message.id = id, alert.name = notice.name, "delivered");
            }
            MessageOutcome::Dead { .. } => {}
        }
        (outcome, true)
    }

    /// Tells the history what became of a message, for as long as the message is ours.
    async fn settle(&self, message: &Message, leased_at: Instant, outcome: &MessageOutcome, tried: bool) {
        let mut pause = Duration::from_millis(200);
        loop {
            let settled = self.history.settle_message(&message.id, &self.owner, outcome);
            let error = match timeout(HISTORY_TIMEOUT, settled).await {
                Ok(Ok(true)) => break,
                Ok(Ok(false)) => {
                    tracing::debug!(message.id = message.id, "the lease had ended: another replica has the message");
                    return;
                }
                Ok(Err(error)) => error,
                Err(_) => HistoryError::Unreachable {
                    database: self.history.describe(),
                    reason: format!("no answer within {}", words::span(HISTORY_TIMEOUT)),
                },
            };
            if !error.is_transient() || Instant::now() + pause > leased_at + LEASE {
                tracing::warn!(message.id = message.id, "what became of a message could not be noted: {error}");
                self.remember(message, outcome);
                return;
            }
            sleep(pause.mul_f64(0.8 + 0.4 * fastrand::f64())).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
        match outcome {
            MessageOutcome::Dead { error } => self.log_dead(&message.id, &message.receiver, &message.notice, error),
            MessageOutcome::Retry { after, .. } if tried || !after.is_zero() => {
                let at = Instant::now() + *after;
                let mut retry_at = self.retry_at.lock().unwrap_or_else(PoisonError::into_inner);
                *retry_at = Some(retry_at.map_or(at, |earlier| earlier.min(at)));
            }
            _ => {}
        }
    }

    /// Keeps an outcome that could not be noted, for when the message comes back.
    fn remember(&self, message: &Message, outcome: &MessageOutcome) {
        if matches!(outcome, MessageOutcome::Retry { .. }) {
            return;
        }
        let mut unsettled = self.unsettled.lock().unwrap_or_else(PoisonError::into_inner);
        if unsettled.len() >= MAX_UNSETTLED {
            // The oldest: ids sort by age.
            unsettled.pop_first();
        }
        unsettled.insert(message.id.clone(), outcome.clone());
    }

    /// The lane of a receiver. Where only the console is left, everything goes there.
    fn lane(&self, receiver: &str) -> Option<Arc<Lane>> {
        let lanes = self.lanes.read().unwrap_or_else(PoisonError::into_inner);
        let only = if lanes.len() == 1 { lanes.get(CONSOLE) } else { None };
        lanes.get(receiver).or(only).cloned()
    }

    pub(super) fn log_dead(&self, id: &str, receiver: &str, notice: &Notice, reason: &str) {
        tracing::error!(
            receiver.name = receiver,
            message.id = id,
            alert.name = notice.name,
            "receiver {receiver} was not told about {} ({}), and will not be: {reason}",
            notice.name,
            notice.summary
        );
    }
}
