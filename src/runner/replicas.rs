//! The other daemons on the same history, and the slots that come while it is away. Then nobody can be asked who runs a slot. Of a
//! job that waits for the database, it is put off. Of another, it belongs to one of the daemons that were up when they were last
//! seen; the others put it off, and look afterwards whether it was run.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use xxhash_rust::xxh3::xxh3_64;

use super::run::Wanted;
use super::{Due, Inner};
use crate::history::{MissedCause, Run, RunFilter, Trigger};
use crate::jobs::{CatchUp, WhenDbDown};
use crate::schedule::MissedSlots;

/// At most this many slots that were put off are remembered; the oldest go first.
const CAPACITY: usize = 10_000;

/// Rows in which they are looked for.
const MAX_LOOKED_AT: u32 = 20_000;

/// How long the history may take to answer.
const LIMIT: Duration = Duration::from_secs(10);

/// A claim is made a little before its slot, so its row is that much older.
const AHEAD: TimeDelta = TimeDelta::minutes(1);

/// What is known of the other daemons.
#[derive(Default)]
pub(super) struct Replicas {
    /// Those that were up when they were last seen, this one among them; none if nobody looked.
    up: Mutex<Vec<String>>,
    /// Slots that were put off, with their jobs.
    put_off: Mutex<BTreeSet<(DateTime<Utc>, String)>>,
    /// Held while the history is told, so that nothing overtakes the last word.
    telling: tokio::sync::Mutex<()>,
}

impl Replicas {
    fn up(&self) -> MutexGuard<'_, Vec<String>> {
        // Every change of either is one call, so a panic elsewhere cannot leave it half changed.
        self.up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put_off(&self) -> MutexGuard<'_, BTreeSet<(DateTime<Utc>, String)>> {
        self.put_off.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The daemon that a slot belongs to: the one with the highest hash (rendezvous hashing), so that all who know the same
/// daemons agree, and the slots of one that is gone spread over the others.
fn home<'a>(up: &'a [String], job: &str, slot: DateTime<Utc>) -> Option<&'a str> {
    let hash = |owner: &&String| xxh3_64(format!("{owner}\0{job}\0{}", slot.timestamp_micros()).as_bytes());
    up.iter().max_by_key(hash).map(String::as_str)
}

impl Inner {
    /// Says that this daemon is up, and notes who else is.
    pub(super) async fn check_in(&self) {
        let _turn = self.replicas.telling.lock().await;
        if !self.history.is_shared() || self.stopping.is_cancelled() {
            return;
        }
        match self.limited("checking in", LIMIT, self.history.check_in(&self.owner, self.tempo.lease)).await {
            Ok(up) => *self.replicas.up() = up,
            Err(error) => self.database_failed(&error),
        }
    }

    /// Says that this daemon is up no longer, if it ever said that it was.
    pub(super) async fn check_out(&self) {
        let _turn = self.replicas.telling.lock().await;
        if self.replicas.up().is_empty() || !self.database.is_here() {
            return;
        }
        if let Err(error) = self.limited("checking out", LIMIT, self.history.check_out(&self.owner)).await {
            tracing::debug!(%error, "the others will notice by themselves that this daemon has ended");
        }
    }

    /// Puts a slot off that this daemon should not run while the database is away. `false`: it should.
    pub(super) fn put_off(&self, run: &Wanted) -> bool {
        let (Some(slot), Trigger::Schedule | Trigger::CatchUp) = (run.slot, run.trigger) else { return false };
        let job = &run.job.name;
        match run.job.when_db_down {
            WhenDbDown::Wait => tracing::info!(job.name = job, "{job} waits for the history database"),
            WhenDbDown::Run => {
                let up = self.replicas.up();
                let Some(other) = home(&up, job, slot).filter(|home| *home != self.owner) else { return false };
                tracing::info!(job.name = job, "{job} is left to {other}, because the history database is away");
            }
        }
        let mut put_off = self.replicas.put_off();
        put_off.insert((slot, job.clone()));
        if put_off.len() > CAPACITY
            && let Some((slot, job)) = put_off.pop_first()
        {
            tracing::error!(job.name = job, %slot, "too many slots wait for the history database: this one is given up");
        }
        true
    }

    /// The database is back: looks after the slots that were put off.
    pub(super) async fn look_after_slots(self: Arc<Self>) {
        self.look_after(WhenDbDown::Wait).await;
        // The others are given the time to say what they ran.
        let others = !self.replicas.put_off().is_empty();
        if others && self.stopping.run_until_cancelled(self.pause(self.tempo.lease)).await.is_some() {
            self.look_after(WhenDbDown::Run).await;
        }
    }

    /// Of the slots that were put off, those that nobody ran are caught up, or recorded as missed, as after a time in which no
    /// daemon was up.
    async fn look_after(self: &Arc<Self>, kind: WhenDbDown) {
        let of_kind = |(_, job): &(_, String)| self.jobs.get(job).is_some_and(|job| job.when_db_down == kind);
        let slots: BTreeSet<_> = self.replicas.put_off().extract_if(.., of_kind).collect();
        let Some((oldest, _)) = slots.first() else { return };
        let filter = RunFilter { since: Some(*oldest - AHEAD), limit: MAX_LOOKED_AT, ..RunFilter::default() };
        match self.limited("looking for slots that nobody ran", LIMIT, self.history.runs(&filter)).await {
            Ok(rows) => {
                let due = self.nobody_ran(slots, &rows);
                self.hand_over(due).await;
            }
            Err(error) => {
                self.replicas.put_off().extend(slots);
                self.database_failed(&error);
            }
        }
    }

    /// What is to be done about the slots that have no row, by each job's catch-up rule.
    fn nobody_ran(&self, put_off: BTreeSet<(DateTime<Utc>, String)>, rows: &[Run]) -> Vec<Due> {
        let known: HashSet<(i64, &str)> =
            rows.iter().filter_map(|row| Some((row.slot?.timestamp_micros(), row.job.as_str()))).collect();
        let mut slots: BTreeMap<String, Vec<DateTime<Utc>>> = BTreeMap::new();
        for (slot, job) in put_off {
            if !known.contains(&(slot.timestamp_micros(), job.as_str())) {
                slots.entry(job).or_default().push(slot);
            }
        }
        let due = slots.into_iter().filter_map(|(job, mut missed)| {
            let spec = self.jobs.get(&job)?;
            let newest = rows.iter().filter(|row| row.job == job).filter_map(|row| row.slot).max();
            let most = match spec.catch_up {
                CatchUp::All => missed.len(),
                CatchUp::Latest => usize::from(missed.last().copied() > newest),
                CatchUp::None => 0,
            };
            let too_old = missed.partition_point(|slot| *slot < self.clock.now() - spec.catch_up_window);
            let run = missed.split_off(too_old.max(missed.len() - most));
            let missed = missed.into_iter().map(MissedSlots::one).collect();
            Some(Due { job: job.into(), run, missed, cause: Some(MissedCause::DatabaseAway) })
        });
        due.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_spread_and_stay_where_they_are_when_another_daemon_is_gone() {
        let up = ["a", "b", "c"].map(str::to_owned);
        let slots: Vec<_> = (0..300).map(|minute| DateTime::<Utc>::UNIX_EPOCH + TimeDelta::minutes(minute)).collect();
        let homes: Vec<_> = slots.iter().map(|slot| home(&up, "upload", *slot).unwrap()).collect();
        for owner in &up {
            let share = homes.iter().filter(|home| *home == owner).count();
            assert!((60..140).contains(&share), "{owner} has {share} of 300 slots");
        }
        for (slot, before) in slots.iter().zip(homes) {
            let after = home(&up[..2], "upload", *slot).unwrap();
            assert!(before == "c" || before == after, "{before} was up all the time, and {after} has its slot {slot}");
        }
        assert_eq!(home(&[], "upload", slots[0]), None);
    }
}
