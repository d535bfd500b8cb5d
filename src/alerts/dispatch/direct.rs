//! Messages that cannot wait in the outbox, because the outbox is what is away. They live in memory, in a queue with a
//! limit, and follow the outbox's rules: one message for each transition and receiver, in order, merged if they are late.
//! A process that dies takes them along.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use tokio::time::Instant;
use ulid::Ulid;

use crate::history::{AlertChange, AlertState, MessageOutcome, Notice};

/// So many messages are kept at most, and so many alerts are remembered.
const CAPACITY: usize = 128;

#[derive(Default)]
pub(super) struct Direct {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// The alerts that fire now, with the instant at which they began and their count of transitions.
    firing: BTreeMap<String, (DateTime<Utc>, u32)>,
    queue: VecDeque<Item>,
}

struct Item {
    letter: Letter,
    next_at: Instant,
    in_hand: bool,
}

/// A message in memory.
#[derive(Debug, Clone)]
pub(super) struct Letter {
    pub(super) id: String,
    pub(super) receiver: String,
    pub(super) notice: Notice,
    pub(super) queued_at: DateTime<Utc>,
    pub(super) tries: u32,
    pub(super) last_error: Option<String>,
}

/// A message that was taken out to be sent. Dropped without [`InHand::settle`], it goes back.
pub(super) struct InHand {
    pub(super) letter: Letter,
    direct: Arc<Direct>,
}

impl Direct {
    /// Carries out changes; returns the messages that had to make room.
    pub(super) fn change(&self, changes: &[AlertChange], now: DateTime<Utc>) -> Vec<Letter> {
        let mut inner = self.lock();
        changes.iter().flat_map(|change| inner.change(change, now)).collect()
    }

    /// Takes out the messages that are due, of each (receiver, alert) only the oldest.
    pub(super) fn take_due(self: &Arc<Self>, now: Instant, limit: usize) -> Vec<InHand> {
        let mut inner = self.lock();
        let mut seen = Vec::new();
        let mut taken = Vec::new();
        for item in &mut inner.queue {
            let key = (item.letter.receiver.clone(), item.letter.notice.fingerprint.clone());
            let first = !seen.contains(&key);
            seen.push(key);
            if first && !item.in_hand && item.next_at <= now && taken.len() < limit {
                item.in_hand = true;
                taken.push(InHand { letter: item.letter.clone(), direct: Arc::clone(self) });
            }
        }
        taken
    }

    /// When the next message is due, as far as none is in hand.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.lock().queue.iter().filter(|item| !item.in_hand).map(|item| item.next_at).min()
    }

    /// The messages that wait, with those in hand.
    pub(super) fn len(&self) -> usize {
        self.lock().queue.len()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn change(&mut self, change: &AlertChange, now: DateTime<Utc>) -> Vec<Letter> {
        let known = self.firing.get(&change.fingerprint).copied();
        let (starts_at, ends_at, seq) = match (change.state, known) {
            (AlertState::Firing, Some(_)) | (AlertState::Resolved, None) => return Vec::new(),
            (AlertState::Firing, None) => {
                if self.firing.len() >= CAPACITY {
                    self.firing.pop_first();
                }
                self.firing.insert(change.fingerprint.clone(), (change.at, 1));
                (change.at, None, 1)
            }
            (AlertState::Resolved, Some((starts_at, seq))) => {
                self.firing.remove(&change.fingerprint);
                (starts_at, Some(change.at), seq + 1)
            }
        };
        let notice = Notice {
            fingerprint: change.fingerprint.clone(),
            name: change.name.clone(),
            labels: change.labels.clone(),
            severity: change.severity,
            state: change.state,
            summary: change.summary.clone(),
            details: change.details.clone(),
            starts_at,
            ends_at,
            seq,
        };
        let mut crowded_out = Vec::new();
        for receiver in &change.receivers {
            let mut queued_at = now;
            if change.state == AlertState::Resolved {
                // The firing message that nobody has had is merged into this one, which has been owed since then.
                self.queue.retain(|item| {
                    let merged = !item.in_hand
                        && item.letter.receiver == *receiver
                        && item.letter.notice.fingerprint == change.fingerprint
                        && item.letter.notice.state == AlertState::Firing;
                    if merged {
                        queued_at = queued_at.min(item.letter.queued_at);
                    }
                    !merged
                });
            }
            if self.queue.len() >= CAPACITY {
                let oldest = self.queue.iter().position(|item| !item.in_hand);
                crowded_out.extend(oldest.and_then(|oldest| self.queue.remove(oldest)).map(|item| item.letter));
            }
            let millis = u64::try_from(now.timestamp_millis()).unwrap_or_default();
            let id = Ulid::from_parts(millis, fastrand::u128(..)).to_string();
            let (receiver, notice) = (receiver.clone(), notice.clone());
            let letter = Letter { id, receiver, notice, queued_at, tries: 0, last_error: None };
            self.queue.push_back(Item { letter, next_at: Instant::now(), in_hand: false });
        }
        crowded_out
    }
}

impl InHand {
    /// Notes what became of it.
    pub(super) fn settle(self, outcome: &MessageOutcome, tried: bool) {
        let mut inner = self.direct.lock();
        let Some(at) = inner.queue.iter().position(|item| item.letter.id == self.letter.id) else { return };
        match outcome {
            MessageOutcome::Sent | MessageOutcome::Dead { .. } => drop(inner.queue.remove(at)),
            MessageOutcome::Retry { after, error } => {
                let item = &mut inner.queue[at];
                item.next_at = Instant::now() + *after;
                item.letter.tries += u32::from(tried);
                item.letter.last_error = Some(error.clone());
            }
        }
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        let mut inner = self.direct.lock();
        if let Some(item) = inner.queue.iter_mut().find(|item| item.letter.id == self.letter.id) {
            item.in_hand = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alerts::{Outage, database_away};

    fn outage(minute: u32, back: bool) -> Vec<AlertChange> {
        let at = |minute: u32| format!("2026-01-05T10:{minute:02}:00Z").parse().unwrap();
        let (database, reason) = ("Postgres db:5432/lamplighter".to_owned(), "connection refused".to_owned());
        let outage = Outage { database, since: at(2), reason, back, at: at(minute) };
        database_away(&["slack".to_owned(), "ops".to_owned()], &outage)
    }

    fn later() -> Instant {
        Instant::now() + std::time::Duration::from_secs(1)
    }

    #[test]
    fn each_transition_is_told_once_to_each_receiver_and_in_order() {
        let direct = Arc::new(Direct::default());
        for change in [outage(2, false), outage(3, false)] {
            assert!(direct.change(&change, change[0].at).is_empty());
        }
        let firing = direct.take_due(later(), 10);
        assert_eq!(firing.iter().map(|one| one.letter.receiver.as_str()).collect::<Vec<_>>(), ["slack", "ops"]);
        // It is resolved while the first messages are being sent: the next ones wait for them.
        direct.change(&outage(9, true), outage(9, true)[0].at);
        assert!(direct.take_due(later(), 10).is_empty());
        firing.into_iter().for_each(|one| one.settle(&MessageOutcome::Sent, true));
        let resolved = direct.take_due(later(), 10);
        assert_eq!(resolved.len(), 2);
        let notice = &resolved[0].letter.notice;
        assert_eq!((notice.state, notice.seq), (AlertState::Resolved, 2));
        assert_eq!((notice.starts_at, notice.ends_at), (outage(2, false)[0].at, Some(outage(9, true)[0].at)));
        // Dropped unsettled, as by a panic: it is not lost.
        drop(resolved);
        assert_eq!(direct.take_due(later(), 10).len(), 2);
    }

    #[test]
    fn a_resolution_takes_the_place_of_a_firing_message_that_is_still_waiting() {
        let direct = Arc::new(Direct::default());
        direct.change(&outage(2, false), outage(2, false)[0].at);
        direct.change(&outage(9, true), outage(9, true)[0].at);
        let due = direct.take_due(later(), 10);
        assert_eq!(due.len(), 2);
        assert_eq!(due[0].letter.notice.state, AlertState::Resolved);
        assert_eq!(due[0].letter.queued_at, outage(2, false)[0].at);
    }

    #[test]
    fn the_queue_has_a_limit_and_the_oldest_makes_room() {
        let direct = Arc::new(Direct::default());
        let mut crowded_out = Vec::new();
        for i in 0..CAPACITY {
            let mut change = outage(2, false);
            change[0].fingerprint = format!("{i:016x}");
            crowded_out.extend(direct.change(&change, change[0].at));
        }
        assert_eq!((direct.len(), crowded_out.len()), (CAPACITY, CAPACITY));
        assert_eq!(crowded_out[0].notice.fingerprint, format!("{:016x}", 0));
    }
}
