//! What becomes of a message after a try: pure, so that the whole policy can be read and tested in one place.

use std::time::Duration;

use crate::alerts::notifier::NotifyError;
use crate::alerts::words;
use crate::history::MessageOutcome;

/// The waits after the first tries; after them every ten minutes. Short at first: an alert is for now.
const WAITS: [u64; 8] = [1, 5, 15, 30, 60, 120, 300, 600];
/// A message that could not be delivered for so long is given up,
const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// but not before so many tries: it may have lain in the outbox while no daemon was running.
const MIN_TRIES: u32 = WAITS.len() as u32;

/// Judges a try; `tries` counts it, `age` is the message's.
pub(super) fn judge(result: Result<(), NotifyError>, tries: u32, age: Duration) -> MessageOutcome {
    let (reason, asked) = match result {
        Ok(()) => return MessageOutcome::Sent,
        Err(NotifyError::Permanent { reason } | NotifyError::Gone { reason }) => {
            return MessageOutcome::Dead { error: reason };
        }
        Err(NotifyError::Passing { reason, after }) => (reason, after),
    };
    let after = asked.map_or_else(|| backoff(tries), asked_for);
    if tries >= MIN_TRIES && age.saturating_add(after) > LIFETIME {
        let error = format!("given up after {} tries in {}; the last one: {reason}", tries, words::span(age));
        return MessageOutcome::Dead { error };
    }
    MessageOutcome::Retry { after, error: reason }
}

/// The wait after so many tries, give or take a fifth, so that what failed together does not come back together.
fn backoff(tries: u32) -> Duration {
    let step = (tries.max(1) as usize - 1).min(WAITS.len() - 1);
    Duration::from_secs(WAITS[step]).mul_f64(0.8 + 0.4 * fastrand::f64())
}

/// The receiver's own wish, at least a second and a little more: never less than it asked for.
fn asked_for(after: Duration) -> Duration {
    after.max(Duration::from_secs(1)) + Duration::from_secs_f64(0.5 * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passing(after: Option<u64>) -> Result<(), NotifyError> {
        Err(NotifyError::Passing { reason: "answered 503".to_owned(), after: after.map(Duration::from_secs) })
    }

    fn wait(result: Result<(), NotifyError>, tries: u32, age: u64) -> f64 {
        match judge(result, tries, Duration::from_secs(age)) {
            MessageOutcome::Retry { after, error } => {
                assert_eq!(error, "answered 503");
                after.as_secs_f64()
            }
            other => panic!("{other:?} is not a retry"),
        }
    }

    #[test]
    fn the_waits_grow_to_ten_minutes_and_jitter() {
        for (tries, seconds) in
            [(1, 1.0), (2, 5.0), (3, 15.0), (4, 30.0), (5, 60.0), (6, 120.0), (7, 300.0), (8, 600.0), (99, 600.0)]
        {
            let waits: Vec<f64> = (0..200).map(|_| wait(passing(None), tries, 60)).collect();
            assert!(waits.iter().all(|wait| (seconds * 0.8..=seconds * 1.2).contains(wait)), "{tries}: {waits:?}");
            assert!(waits.iter().any(|wait| *wait != waits[0]), "the waits do not jitter");
        }
    }

    #[test]
    fn what_the_receiver_asks_for_wins_over_the_backoff() {
        assert!((7.0..=7.5).contains(&wait(passing(Some(7)), 8, 60)));
        assert!((3600.0..=3600.5).contains(&wait(passing(Some(3600)), 1, 60)));
        assert!((1.0..=1.5).contains(&wait(passing(Some(0)), 5, 60)));
    }

    #[test]
    fn a_message_is_given_up_after_a_day_but_not_untried() {
        let day = 24 * 3600;
        assert!(wait(passing(None), 3, 3 * day) > 0.0);
        let dead = judge(passing(None), 150, Duration::from_secs(day));
        let error = "given up after 150 tries in 1 d; the last one: answered 503".to_owned();
        assert_eq!(dead, MessageOutcome::Dead { error });
    }

    #[test]
    fn a_permanent_refusal_is_final() {
        for error in [
            NotifyError::Permanent { reason: "answered 404".to_owned() },
            NotifyError::Gone { reason: "answered 404".to_owned() },
        ] {
            let dead = judge(Err(error), 1, Duration::ZERO);
            assert_eq!(dead, MessageOutcome::Dead { error: "answered 404".to_owned() });
        }
        assert_eq!(judge(Ok(()), 1, Duration::ZERO), MessageOutcome::Sent);
    }
}
