//! `explain` and `simulate`: schedules in words and on a timeline.

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use serde_json::json;

use super::args::{ExplainArgs, SimulateArgs};
use super::failure::Failure;
use super::output::{Output, Paint};
use super::times::relative;
use crate::jobs::JobSpec;
use crate::schedule::Schedule;
use crate::scheduler::{EventKind, simulate};
use crate::units::{Span, nearest};

/// Says a schedule in words, or why it is refused.
pub(super) fn explain(args: &ExplainArgs, out: &Output, now: DateTime<Utc>) -> Result<(), Failure> {
    let refused = |why: String| {
        if out.json {
            out.json(&json!({ "schedule": args.schedule, "timezone": args.tz, "accepted": false, "refused": why }));
            return Failure::told(1);
        }
        Failure::trouble(why)
    };
    let schedule = zone(&args.tz).and_then(|tz| read(&args.schedule, tz)).map_err(refused)?;
    let from = args.from.unwrap_or(now);
    let said = schedule.explain(from);
    let next: Vec<DateTime<Utc>> = schedule.after(from).take(args.next as usize).collect();
    let tz = schedule.tz();
    if out.json {
        let next: Vec<_> = next
            .iter()
            .map(|slot| {
                let note = schedule.slot_note(*slot).map(|note| note.to_string());
                json!({ "utc": slot, "local": slot.with_timezone(&tz).to_rfc3339(), "note": note })
            })
            .collect();
        out.json(&json!({
            "schedule": args.schedule, "timezone": tz.name(), "accepted": true, "words": said.words, "notes": said.notes,
            "from": from, "next": next,
        }));
        return Ok(());
    }
    out.line(format_args!("{}  {}", out.paint(Paint::Strong, &args.schedule), said.words));
    for note in &said.notes {
        out.line(format_args!("  {} {note}", out.paint(Paint::Warn, "!")));
    }
    for slot in &next {
        out.line(format_args!("  {}", slot_line(&schedule, *slot, now, out)));
    }
    if next.is_empty() && args.next > 0 {
        out.line("  there is no further instant");
    }
    Ok(())
}

/// `Sun 2026-03-29 02:30 +01:00 Europe/Dublin · 2026-03-29 01:30 UTC · in 3 days`.
pub(super) fn slot_line(schedule: &Schedule, slot: DateTime<Utc>, now: DateTime<Utc>, out: &Output) -> String {
    let tz = schedule.tz();
    let utc = slot.format("%Y-%m-%d %H:%M:%S UTC");
    let mut line = if tz == Tz::UTC {
        format!("{}", slot.format("%a %Y-%m-%d %H:%M:%S UTC"))
    } else {
        format!("{} {tz} · {utc}", slot.with_timezone(&tz).format("%a %Y-%m-%d %H:%M:%S %:z"))
    };
    line.push_str(&out.paint(Paint::Faint, &format!(" · {}", relative(slot, now))));
    if let Some(note) = schedule.slot_note(slot) {
        line.push_str(&format!(" · {}", out.paint(Paint::Warn, &note.to_string())));
    }
    line
}

/// Prints the timeline of all jobs, an event a line, so that any length of it can be piped.
pub(super) fn timeline<'a>(
    args: &SimulateArgs,
    jobs: impl Iterator<Item = &'a JobSpec>,
    out: &Output,
    now: DateTime<Utc>,
) -> Result<(), Failure> {
    let from = args.from.unwrap_or(now);
    let to = args.to.unwrap_or(from + TimeDelta::days(1));
    if to < from {
        return Err(Failure::usage(format!("--to {} is before --from {}", to.to_rfc3339(), from.to_rfc3339())));
    }
    let mut runs = 0_u64;
    let jobs = jobs.filter(|job| !job.paused).filter_map(|job| Some((job.name.as_str(), job.schedule.clone()?)));
    for event in simulate(jobs, from, to) {
        let tz = event.local.timezone();
        let (what, value) = match &event.kind {
            EventKind::ClockChange { before, after } => {
                let what = format!("the clocks of {tz} change from {before} to {after}");
                let value = json!({ "event": "clock_change", "timezone": tz.name(), "before": before.to_string(), "after": after.to_string() });
                (out.paint(Paint::Warn, &what), value)
            }
            EventKind::Slot { job, note } => {
                runs += 1;
                let note = note.map(|note| note.to_string());
                let what = match &note {
                    Some(note) => format!("{job}  {}", out.paint(Paint::Warn, note)),
                    None => job.to_string(),
                };
                (what, json!({ "event": "slot", "job": &**job, "timezone": tz.name(), "note": note }))
            }
        };
        if out.json {
            // One object a line: the list may be longer than memory.
            let mut value = value;
            value["utc"] = json!(event.at);
            value["local"] = json!(event.local.to_rfc3339());
            out.line(value);
        } else {
            let (utc, local) = (event.at.format("%Y-%m-%d %H:%M:%S"), event.local.format("%a %H:%M:%S %:z"));
            out.line(format_args!("{utc} UTC  {local}  {what}"));
        }
    }
    if !out.json {
        let length = Span((to - from).to_std().unwrap_or_default());
        out.remark(format_args!("{runs} runs in {length}, from {} to {}", from.to_rfc3339(), to.to_rfc3339()));
    }
    Ok(())
}

fn read(text: &str, tz: Tz) -> Result<Schedule, String> {
    match Span::parse(text) {
        Ok(Span(period)) => Schedule::every(period),
        Err(_) => Schedule::cron(text, tz),
    }
}

fn zone(name: &str) -> Result<Tz, String> {
    name.parse().map_err(|_| {
        let hint = nearest(name, chrono_tz::TZ_VARIANTS.iter().map(|tz| tz.name()));
        let hint = hint.map(|zone| format!("; did you mean {zone:?}?")).unwrap_or_default();
        format!("{name:?} is not an IANA time zone{hint}")
    })
}
