//! The due-list: the next slot of every job, in order. It is told the time and answers what is due; it also notices when the
//! time it is told does not fit the time that passed.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;

use super::batch::{Batch, LATE, Taken, due};
use super::{Due, Entry};
use crate::history::MissedCause;
use crate::schedule::{CatchUp, delta, plan_catch_up};

/// The wall clock has jumped when it is off by more than this against the monotonic one.
const JUMP: TimeDelta = TimeDelta::seconds(1);

#[derive(Debug)]
pub(super) struct DueList {
    lookahead: TimeDelta,
    jobs: HashMap<Arc<str>, Job>,
    /// The next slot of every job that has one. A job is in it at most once.
    queue: BTreeSet<(DateTime<Utc>, Arc<str>)>,
    /// What jobs missed before they came here.
    backlog: Vec<Due>,
    /// Both clocks when the due slots were last taken.
    wall: DateTime<Utc>,
    monotonic: Instant,
    draining: bool,
}

#[derive(Debug)]
struct Job {
    entry: Entry,
    next: Option<DateTime<Utc>>,
    /// The newest slot that was handed over; it may lie a little ahead.
    handed: Option<DateTime<Utc>>,
}

impl DueList {
    pub(super) fn new(wall: DateTime<Utc>, monotonic: Instant, lookahead: Duration) -> Self {
        Self {
            lookahead: delta(lookahead),
            jobs: HashMap::new(),
            queue: BTreeSet::new(),
            backlog: Vec::new(),
            wall,
            monotonic,
            draining: false,
        }
    }

    pub(super) fn upsert(&mut self, name: &str, entry: Entry, last_slot: Option<DateTime<Utc>>, now: DateTime<Utc>) {
        if let Some(job) = self.jobs.get_mut(name)
            && job.entry.schedule == entry.schedule
        {
            job.entry = entry;
            return;
        }
        let name: Arc<str> = name.into();
        let known = self.jobs.remove(&name);
        let handed = match &known {
            Some(job) => {
                self.unqueue(&name, job.next);
                job.handed
            }
            None => last_slot,
        };
        if let (None, Some(last)) = (&known, last_slot) {
            self.catch_up_downtime(&name, &entry, last, now);
        }
        // A slot that was handed over ahead of its instant does not come again. Further ahead than that, the clock was wrong
        // when it was recorded, and waiting for it could be waiting for ever.
        let after = handed.filter(|slot| *slot > now && *slot <= now + self.lookahead).unwrap_or(now);
        let next = entry.schedule.next_after(after);
        self.enqueue(name, Job { entry, next, handed });
    }

    pub(super) fn remove(&mut self, name: &str) -> bool {
        self.backlog.retain(|due| *due.job != *name);
        let Some((name, job)) = self.jobs.remove_entry(name) else { return false };
        self.unqueue(&name, job.next);
        true
    }

    pub(super) fn set_paused(&mut self, name: &str, paused: bool) -> bool {
        self.jobs.get_mut(name).map(|job| job.entry.paused = paused).is_some()
    }

    pub(super) fn next_due(&self) -> Option<DateTime<Utc>> {
        self.queue
            .iter()
            .find(|(_, name)| self.jobs.get(name).is_some_and(|job| !job.entry.paused))
            .map(|(slot, _)| *slot)
    }

    pub(super) fn next_slot(&self, name: &str) -> Option<DateTime<Utc>> {
        self.jobs.get(name)?.next
    }

    pub(super) fn heartbeat(&self) -> DateTime<Utc> {
        self.wall
    }

    pub(super) fn drain(&mut self) {
        self.draining = true;
    }

    pub(super) fn take_due(&mut self, now: DateTime<Utc>, monotonic: Instant) -> Vec<Due> {
        let late_because = self.look_at_clocks(now, monotonic);
        if self.draining {
            return Vec::new();
        }
        let horizon = now + self.lookahead;
        let mut batch = Batch::new(now, horizon, late_because, std::mem::take(&mut self.backlog));
        let mut not_yet = Vec::new();
        while self.queue.first().is_some_and(|(slot, _)| *slot <= horizon) {
            let Some((slot, name)) = self.queue.pop_first() else { break };
            let (name, job) = self.jobs.remove_entry(&name).expect("what is queued is a job");
            // A pause may end before the slot comes, so it is not judged ahead of time.
            if job.entry.paused && slot > now {
                not_yet.push((name, job));
                continue;
            }
            let Taken { newest, next } = batch.take(&name, &job.entry, slot);
            self.enqueue(name, Job { next, handed: newest.or(job.handed), ..job });
        }
        for (name, job) in not_yet {
            self.enqueue(name, job);
        }
        batch.due
    }

    /// Compares the two clocks with what they showed last, and says why a slot that is late now would be.
    fn look_at_clocks(&mut self, now: DateTime<Utc>, monotonic: Instant) -> MissedCause {
        let passed = delta(monotonic.saturating_duration_since(self.monotonic));
        let drift = (now - self.wall) - passed;
        (self.wall, self.monotonic) = (now, monotonic);
        if drift < -JUMP {
            tracing::warn!(
                clock.jump_ms = drift.num_milliseconds(),
                "the wall clock was set back; next slots are computed anew"
            );
            self.recompute(now);
        } else if drift > JUMP {
            tracing::warn!(
                clock.jump_ms = drift.num_milliseconds(),
                "the wall clock jumped forward; slots that it jumped over are caught up"
            );
            return MissedCause::ClockJump;
        }
        if passed > LATE {
            tracing::warn!(
                asleep_ms = passed.num_milliseconds(),
                "the process did not run for a while; late slots are caught up"
            );
        }
        MissedCause::Asleep
    }

    /// After the wall clock went back: slots that were computed for the old future must not keep their jobs silent until
    /// then. Slots that come a second time are stopped by their claims.
    fn recompute(&mut self, now: DateTime<Utc>) {
        self.queue.clear();
        for (name, job) in &mut self.jobs {
            job.next = job.entry.schedule.next_after(now);
            self.queue.extend(job.next.map(|slot| (slot, Arc::clone(name))));
        }
    }

    fn catch_up_downtime(&mut self, name: &Arc<str>, entry: &Entry, last: DateTime<Utc>, now: DateTime<Utc>) {
        let (policy, cause) = match entry.paused {
            true => (CatchUp::None, MissedCause::Paused),
            false => (entry.catch_up, MissedCause::Down),
        };
        let plan = plan_catch_up(&entry.schedule, last, now, policy, entry.window);
        self.backlog.extend(due(name, plan, Some(cause)));
    }

    fn enqueue(&mut self, name: Arc<str>, job: Job) {
        self.queue.extend(job.next.map(|slot| (slot, Arc::clone(&name))));
        self.jobs.insert(name, job);
    }

    fn unqueue(&mut self, name: &Arc<str>, next: Option<DateTime<Utc>>) {
        if let Some(slot) = next {
            self.queue.remove(&(slot, Arc::clone(name)));
        }
    }
}
