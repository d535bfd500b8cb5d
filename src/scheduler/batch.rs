//! One batch of due slots: for each job whose slot has come, which of its slots run and which were missed.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;

use super::{Due, Entry};
use crate::history::MissedCause;
use crate::schedule::{CatchUp, MissedSlots, Plan, Schedule, plan_catch_up};

/// A slot that is taken later than this is caught up by the job's policy instead of just being run; and if nobody asked for
/// so long, the process was asleep.
pub(super) const LATE: TimeDelta = TimeDelta::seconds(5);

pub(super) struct Batch {
    now: DateTime<Utc>,
    horizon: DateTime<Utc>,
    /// Why a slot that is late now is late.
    late_because: MissedCause,
    pub(super) due: Vec<Due>,
    /// Next slots by line, zone and instant: of ten thousand jobs due at once, most share their lines.
    nexts: HashMap<(usize, Tz, DateTime<Utc>), Option<DateTime<Utc>>>,
}

/// What was taken of one job.
pub(super) struct Taken {
    /// The newest slot that runs.
    pub(super) newest: Option<DateTime<Utc>>,
    /// The first slot that was not taken.
    pub(super) next: Option<DateTime<Utc>>,
}

impl Batch {
    /// A batch that begins with `due` and takes slots up to `horizon`.
    pub(super) fn new(now: DateTime<Utc>, horizon: DateTime<Utc>, late_because: MissedCause, due: Vec<Due>) -> Self {
        Self { now, horizon, late_because, due, nexts: HashMap::new() }
    }

    /// Takes the slots of a job from `first` on.
    pub(super) fn take(&mut self, name: &Arc<str>, entry: &Entry, first: DateTime<Utc>) -> Taken {
        let mut taken = Taken { newest: None, next: Some(first) };
        if first <= self.now {
            let (plan, cause) = self.late(entry, first);
            taken = Taken { newest: plan.run.last().copied(), next: self.next_after(&entry.schedule, self.now) };
            self.due.extend(due(name, plan, cause));
        }
        let mut ahead = Plan::default();
        while !entry.paused
            && let Some(slot) = taken.next.filter(|slot| *slot <= self.horizon)
        {
            ahead.run.push(slot);
            taken = Taken { newest: Some(slot), next: self.next_after(&entry.schedule, slot) };
        }
        self.due.extend(due(name, ahead, None));
        taken
    }

    /// What to do about the slots from `first` until now.
    fn late(&self, entry: &Entry, first: DateTime<Utc>) -> (Plan, Option<MissedCause>) {
        let plan = |policy| plan_catch_up(&entry.schedule, before(first), self.now, policy, entry.window);
        if entry.paused {
            return (plan(CatchUp::None), Some(MissedCause::Paused));
        }
        if self.now - first > LATE {
            return (plan(entry.catch_up), Some(self.late_because));
        }
        // At most a few seconds late: all slots where the job asks for all, else the newest. Without this, a job that never
        // catches up would lose a slot to every hiccup of the machine.
        let mut run: Vec<_> = entry.schedule.after(before(first)).take_while(|slot| *slot <= self.now).collect();
        let missed: Vec<_> = match entry.catch_up {
            CatchUp::All => Vec::new(),
            CatchUp::Latest | CatchUp::None => run.drain(..run.len().saturating_sub(1)).map(MissedSlots::one).collect(),
        };
        // One slot that is a moment late is on time: the beat comes only twice a second.
        let cause = (!missed.is_empty()).then_some(self.late_because);
        (Plan { run, missed }, cause)
    }

    fn next_after(&mut self, schedule: &Schedule, t: DateTime<Utc>) -> Option<DateTime<Utc>> {
        match schedule {
            // The address tells lines apart: while the batch is made, its jobs keep their lines alive.
            Schedule::Cron { spec, tz } => {
                let key = (Arc::as_ptr(spec) as usize, *tz, t);
                *self.nexts.entry(key).or_insert_with(|| schedule.next_after(t))
            }
            Schedule::Every { .. } => schedule.next_after(t),
        }
    }
}

/// A plan as it is handed over, unless it is empty.
pub(super) fn due(job: &Arc<str>, Plan { run, missed }: Plan, cause: Option<MissedCause>) -> Option<Due> {
    (!run.is_empty() || !missed.is_empty()).then(|| Due { job: Arc::clone(job), run, missed, cause })
}

/// Just before a slot, so that "after" includes it. Slots have whole milliseconds.
fn before(slot: DateTime<Utc>) -> DateTime<Utc> {
    slot - TimeDelta::milliseconds(1)
}
