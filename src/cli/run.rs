//! `serve`, `run <job>` and `run --due`: the commands that run jobs.

use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::args::{RunArgs, ServeArgs};
use super::failure::Failure;
use super::output::{Output, Paint};
use super::times::{duration, number};
use super::{House, logs, signals, tables};
use crate::app::App;
use crate::history::{Run, RunState};
use crate::jobs::{Progress, ProgressReport};
use crate::units::nearest;
use crate::web;

/// Stays up until a signal comes.
pub(super) async fn serve(house: &House, args: ServeArgs) -> Result<(), Failure> {
    let settings = house.settings()?;
    logs::start(logs::form(true), &settings.backends.log, false);
    let stop = signals::stop_token()?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "lamplighter {} starts", env!("CARGO_PKG_VERSION"));
    let listener = match settings.backends.port {
        Some(port) => Some(web::bind(port).map_err(|error| {
            let cure = "free it, set PORT to another one, or unset it to listen nowhere";
            let message = format!("port {port}, which PORT names, cannot be listened on: {error}; {cure}");
            // Whoever has it now may be gone soon, so that starting again helps.
            let passing = error.kind() == std::io::ErrorKind::AddrInUse;
            if passing { Failure::trouble(message) } else { Failure::configuration(message) }
        })?),
        None => None,
    };
    let app = App::open(settings, house.clock.clone(), args.grace.0).await?;
    app.serve(listener, stop).await?;
    tracing::info!("stopped in order");
    Ok(())
}

/// Runs one job, or all that is due.
pub(super) async fn run(house: &House, args: RunArgs) -> Result<(), Failure> {
    let settings = house.settings()?;
    logs::start(logs::form(false), &settings.backends.log, false);
    if let Some(job) = &args.job
        && settings.job(job).is_none()
    {
        let known: Vec<&str> = settings.jobs.iter().map(|job| job.name.as_str()).collect();
        let hint = nearest(job, known.iter().copied());
        let hint = match hint {
            Some(hint) => format!("did you mean {hint:?}?"),
            None if known.is_empty() => "there is none at all".to_owned(),
            None => format!("there are: {}", known.join(", ")),
        };
        return Err(Failure::usage(format!("there is no job {job:?} in {}; {hint}", settings.file.display())));
    }
    let stop = signals::stop_token()?;
    let app = App::open(settings, house.clock.clone(), args.grace.0).await?;
    match &args.job {
        Some(job) if args.dry_run => plan(house, &app, job).await,
        Some(job) => {
            let bar = house.out.watched.then(|| bar(job));
            let watched = bar.clone();
            let progress = match &watched {
                Some(bar) => show_on(bar),
                None => crate::runner::progress_to_log(job, &house.clock),
            };
            let result = app.run_job(job, progress, stop).await;
            if let Some(bar) = bar {
                bar.finish_and_clear();
            }
            tell(house, &[result??])
        }
        None => {
            let runs = app.run_due(stop).await?;
            if runs.is_empty() && !house.out.json {
                house.out.line("nothing was due");
                return Ok(());
            }
            tell(house, &runs)
        }
    }
}

async fn plan(house: &House, app: &App, job: &str) -> Result<(), Failure> {
    let out = &house.out;
    let spec = app.settings().job(job).expect("the job was looked up before");
    let Some(plan) = app.plan(spec).await? else {
        let kind = spec.job.kind();
        return Err(Failure::usage(format!("jobs of kind {kind} cannot say beforehand what they would do")));
    };
    if out.json {
        out.json(&plan.json);
    } else {
        for line in &plan.lines {
            out.line(tables::tame(line));
        }
        out.remark("this was a dry run: nothing was touched");
    }
    if plan.trouble { Err(Failure::told(1)) } else { Ok(()) }
}

/// Says what became of runs, and ends with 1 if one of them did not do its work.
fn tell(house: &House, runs: &[Run]) -> Result<(), Failure> {
    let out = &house.out;
    if out.json {
        match runs {
            [run] => out.json(run),
            runs => out.json(&runs),
        }
    } else {
        for run in runs {
            out.line(sentence(out, run));
        }
    }
    let fine = |run: &Run| matches!(run.state, RunState::Succeeded | RunState::Skipped | RunState::Missed);
    if runs.iter().all(fine) { Ok(()) } else { Err(Failure::told(1)) }
}

/// `nightly-upload succeeded in 3.2 s: 5,000 rows`.
fn sentence(out: &Output, run: &Run) -> String {
    let state = out.paint(tables::run_paint(run.state), &run.state.as_str().replace('_', " "));
    let mut text = format!("{} {state}", out.paint(Paint::Strong, &run.job));
    if let Some(slot) = run.slot {
        text.push_str(&format!(" (slot {})", slot.format("%Y-%m-%d %H:%M:%S UTC")));
    }
    if let Some(ms) = run.duration_ms {
        text.push_str(&format!(" in {}", duration(ms)));
    }
    if run.attempt > 1 {
        text.push_str(&format!(", attempt {}", run.attempt));
    }
    if let Some(rows) = run.rows {
        text.push_str(&format!(", {} rows", number(rows)));
    }
    let what = tables::what_happened(run);
    if !what.is_empty() {
        text.push_str(&format!(": {what}"));
    }
    text
}

fn bar(job: &str) -> ProgressBar {
    let template = "{prefix} {wide_bar} {human_pos}/{human_len} {per_sec} {msg}";
    let style = ProgressStyle::with_template(template).expect("the template is fixed, and a test draws it");
    let bar = ProgressBar::new(0).with_style(style).with_prefix(job.to_owned());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn show_on(bar: &ProgressBar) -> Progress {
    let bar = Arc::new(bar.clone());
    Progress::to(move |report: &ProgressReport| {
        bar.set_length(report.total.max(report.done));
        bar.set_position(report.done);
        bar.set_message(report.doing.clone());
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_progress_bar_can_be_drawn() {
        let bar = bar("nightly-upload");
        let report = ProgressReport { done: 10, total: 20, doing: "loading".to_owned() };
        show_on(&bar).report(&report);
        assert_eq!((bar.position(), bar.length(), bar.message()), (10, Some(20), "loading".to_owned()));
    }
}
