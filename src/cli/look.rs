//! `check`, `list` and `history`: what is configured, and what happened.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::json;

use super::args::HistoryArgs;
use super::failure::Failure;
use super::output::Paint;
use super::schedules::slot_line;
use super::times::{instant, relative};
use super::{House, tables};
use crate::history::{Run, RunFilter, RunState};
use crate::jobs::JobSpec;
use crate::units::nearest;

/// How many of its next runs `check` shows of each job.
const NEXT_RUNS: usize = 5;

/// Everything that is wrong, or the next five runs of every job in its zone and in UTC.
pub(super) fn check(house: &House, now: DateTime<Utc>) -> Result<(), Failure> {
    let (settings, out) = (house.settings()?, &house.out);
    let next = |job: &JobSpec| -> Vec<DateTime<Utc>> {
        job.schedule.iter().flat_map(|schedule| schedule.after(now).take(NEXT_RUNS).collect::<Vec<_>>()).collect()
    };
    let (notes, warnings) = (&settings.notes, settings.warnings(now));
    if out.json {
        let jobs: Vec<_> = settings.jobs.iter().map(|job| job_json(job, &next(job))).collect();
        let summary = settings.summary_lines();
        out.json(&json!({ "ok": true, "summary": summary, "notes": notes, "warnings": warnings, "jobs": jobs }));
        return Ok(());
    }
    for line in settings.summary_lines() {
        out.line(line);
    }
    for line in notes.iter().chain(&warnings) {
        out.line(format_args!("{} {line}", out.paint(Paint::Warn, "note:")));
    }
    for job in &settings.jobs {
        out.line("");
        let (name, kind) = (out.paint(Paint::Strong, &job.name), job.job.kind());
        match &job.schedule {
            None => out.line(format_args!("{name} ({kind}): runs only by hand")),
            Some(schedule) => {
                let words = schedule.explain(now);
                let paused = if job.paused { out.paint(Paint::Warn, " PAUSED") } else { String::new() };
                out.line(format_args!("{name} ({kind}): {}{paused}", words.words));
                for note in &words.notes {
                    out.line(format_args!("  {} {note}", out.paint(Paint::Warn, "!")));
                }
                for slot in next(job) {
                    out.line(format_args!("  {}", slot_line(schedule, slot, now, out)));
                }
            }
        }
    }
    out.line("");
    out.line(out.paint(Paint::Good, &format!("{} is right", settings.file.display())));
    out.remark("The servers were not asked; `lamplighter run JOB --dry-run` asks them, and touches nothing.");
    Ok(())
}

fn job_json(job: &JobSpec, next: &[DateTime<Utc>]) -> serde_json::Value {
    let tz = job.schedule.as_ref().map(|schedule| schedule.tz());
    let next: Vec<_> = next
        .iter()
        .map(|slot| json!({ "utc": slot, "local": tz.map(|tz| slot.with_timezone(&tz).to_rfc3339()) }))
        .collect();
    json!({
        "name": job.name,
        "kind": job.job.kind(),
        "schedule": job.schedule.as_ref().map(|schedule| schedule.text()),
        "timezone": tz.map(|tz| tz.name()),
        "paused": job.paused,
        "notify": job.notify,
        "next": next,
    })
}

/// The jobs, with their last and next runs.
pub(super) async fn list(house: &House, now: DateTime<Utc>) -> Result<(), Failure> {
    let (settings, history) = house.history().await?;
    let out = &house.out;
    let mut last: BTreeMap<&str, Run> = BTreeMap::new();
    for job in &settings.jobs {
        let filter = RunFilter { job: Some(job.name.clone()), limit: 1, ..RunFilter::default() };
        if let Some(run) = history.runs(&filter).await?.pop() {
            last.insert(&job.name, run);
        }
    }
    let next =
        |job: &JobSpec| job.schedule.as_ref().filter(|_| !job.paused).and_then(|schedule| schedule.next_after(now));
    if out.json {
        let jobs = settings.jobs.iter().map(|job| {
            let mut value = job_json(job, next(job).as_slice());
            value["last_run"] = json!(last.get(job.name.as_str()));
            value
        });
        out.json(&jobs.collect::<Vec<_>>());
        return Ok(());
    }
    let rows = settings.jobs.iter().map(|job| {
        let schedule = job.schedule.as_ref();
        let last = last.get(job.name.as_str()).map(|run| {
            let when = run.started_at.or(run.slot).unwrap_or(run.created_at);
            format!("{} {}", run.state.as_str().replace('_', " "), relative(when, now))
        });
        let coming = match next(job) {
            Some(next) => format!("{} ({})", instant(next), relative(next, now)),
            None if job.paused => "paused".to_owned(),
            None => String::new(),
        };
        vec![
            job.name.clone(),
            job.job.kind().to_owned(),
            schedule.map_or("by hand".to_owned(), |schedule| schedule.text()),
            schedule.map_or(String::new(), |schedule| schedule.tz().name().to_owned()),
            last.unwrap_or_else(|| "never".to_owned()),
            coming,
        ]
    });
    out.line(tables::plain(out, &["Job", "Kind", "Schedule", "Zone", "Last run", "Next run (UTC)"], rows.collect()));
    Ok(())
}

/// What ran, newest first.
pub(super) async fn history(house: &House, args: HistoryArgs, now: DateTime<Utc>) -> Result<(), Failure> {
    let (settings, history) = house.history().await?;
    let out = &house.out;
    let since = args.since.map(|since| since.before(now));
    let filter = RunFilter { job: args.job.clone(), states: args.state, since, limit: args.limit };
    let runs = history.runs(&filter).await?;
    if let Some(job) = args.job.as_deref().filter(|job| runs.is_empty() && settings.job(job).is_none()) {
        let hint = nearest(job, settings.jobs.iter().map(|job| job.name.as_str()));
        let hint = hint.map(|hint| format!("; did you mean {hint:?}?")).unwrap_or_default();
        return Err(Failure::usage(format!("there is no job {job:?}, and none of that name ever ran{hint}")));
    }
    if out.json {
        out.json(&runs);
    } else if runs.is_empty() {
        out.line("no runs yet");
    } else {
        out.line(tables::runs(out, &runs, now));
        let trouble = runs.iter().filter(|run| tables::run_paint(run.state) == Paint::Bad).count();
        let missed: u64 = runs.iter().filter(|run| run.state == RunState::Missed).map(|run| u64::from(run.slots)).sum();
        out.remark(format_args!(
            "{} runs, {trouble} of them in trouble, {missed} slots missed · {}",
            runs.len(),
            history.describe()
        ));
    }
    Ok(())
}
