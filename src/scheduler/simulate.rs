//! The timeline of all jobs between two instants, with the clock changes of their zones. Pure: no clock, no history.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, FixedOffset, Utc};
use chrono_tz::Tz;

use crate::schedule::{ClockChange, Schedule, SlotNote, transitions};

/// Something on the timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: DateTime<Utc>,
    /// The same in the job's zone, or in the zone whose clocks change.
    pub local: DateTime<Tz>,
    /// What.
    pub kind: EventKind,
}

/// What happens at a point of the timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// The clocks of the zone `local.timezone()` change.
    ClockChange {
        /// The offset before.
        before: FixedOffset,
        /// The offset from then on.
        after: FixedOffset,
    },
    /// A slot of a job.
    Slot {
        /// The job.
        job: Arc<str>,
        /// What a clock change does to it.
        note: Option<SlotNote>,
    },
}

/// The slots of `jobs` after `from`, up to and including `to`, in order, with the clock changes of every zone in use. Where
/// both fall on the same instant, the change comes first. Events are made one by one, so any length of time may be asked for.
pub fn simulate<'a>(
    jobs: impl IntoIterator<Item = (&'a str, Schedule)>,
    from: DateTime<Utc>,
    to: DateTime<Utc>,
) -> impl Iterator<Item = Event> {
    let jobs: BTreeMap<Arc<str>, Schedule> = jobs.into_iter().map(|(name, schedule)| (name.into(), schedule)).collect();
    let zones: BTreeMap<&'static str, Tz> = jobs.values().map(|job| (job.tz().name(), job.tz())).collect();
    let mut changes: BTreeMap<(DateTime<Utc>, &'static str), ClockChange> = BTreeMap::new();
    let note_change = move |changes: &mut BTreeMap<_, _>, tz: Tz, after: DateTime<Utc>| {
        changes.extend(transitions(tz, after, to).next().map(|change| ((change.at, tz.name()), change)));
    };
    for tz in zones.values() {
        note_change(&mut changes, *tz, from);
    }
    let mut slots: BTreeSet<(DateTime<Utc>, Arc<str>)> =
        jobs.iter().filter_map(|(name, job)| Some((job.next_after(from)?, Arc::clone(name)))).collect();
    std::iter::from_fn(move || {
        let next_slot = slots.first().map(|(slot, _)| *slot).filter(|slot| *slot <= to);
        if let Some(change) = changes.first_entry().filter(|change| next_slot.is_none_or(|slot| change.key().0 <= slot))
        {
            let ((at, zone), ClockChange { before, after, .. }) = change.remove_entry();
            let tz = zones[zone];
            note_change(&mut changes, tz, at);
            return Some(Event { at, local: at.with_timezone(&tz), kind: EventKind::ClockChange { before, after } });
        }
        next_slot?;
        let (at, job) = slots.pop_first()?;
        let schedule = &jobs[&job];
        slots.extend(schedule.next_after(at).map(|next| (next, Arc::clone(&job))));
        let note = schedule.slot_note(at);
        Some(Event { at, local: at.with_timezone(&schedule.tz()), kind: EventKind::Slot { job, note } })
    })
}
