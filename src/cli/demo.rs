//! `demo`: a whole night's work in a folder, without any server: a day's records, the upload, and what came of it.

mod records;

use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::args::DemoArgs;
use super::failure::Failure;
use super::output::{Output, Paint};
use super::times::{duration, number};
use super::{House, logs, tables};
use crate::app::App;
use crate::history::{DeadLetterFilter, Message, Run, RunFilter};
use crate::jobs::{Progress, ProgressReport};
use crate::settings::{Env, Settings};
use crate::units::Size;

/// The settings that are shipped: the demo shows what a stranger's first night would be.
const JOBS_TOML: &str = include_str!("../../jobs.toml");

/// Tells a demo's folder from one that has nothing to do with us.
const MARKER: &str = ".lamplighter-demo";

/// The databases of the demo, and what SQLite keeps beside them.
const FILES: [&str; 3] = ["cache.db", "history.db", "warehouse.db"];

/// Fills a folder, runs the night's jobs, and shows what happened.
pub(super) async fn demo(house: &House, args: DemoArgs) -> Result<(), Failure> {
    let out = &house.out;
    let folder = args.dir;
    prepare(&folder)?;
    let file = folder.join("jobs.toml");
    // The demo asks no server, whatever the variables say.
    let env = Env::from([("LAMPLIGHTER_DATA".to_owned(), folder.join("data").display().to_string())]);
    let settings = Settings::parse(&file, JOBS_TOML, &env, &crate::jobs::kinds());
    let settings =
        settings.map_err(|problems| Failure::configuration(format!("the built-in settings are wrong: {problems}")))?;
    logs::start(logs::form(false), "error", false);

    let began = house.clock.monotonic();
    let app = App::open(settings, house.clock.clone(), Duration::from_secs(25)).await?;
    let day = records::Day::ending(house.clock.now());
    for (queue, records, ttl) in day.by_queue() {
        app.cache().produce(&queue, records, ttl).await?;
    }
    say(out, &format!("A day's records are in {}", folder.join("data/cache.db").display()));
    if !out.json {
        for line in day.summary() {
            out.line(format_args!("  {line}"));
        }
    }

    let jobs: Vec<String> = app.settings().jobs.iter().map(|job| job.name.clone()).collect();
    for job in &jobs {
        let bar = if out.watched { bar(job) } else { ProgressBar::hidden() };
        let shown = bar.clone();
        let progress = Progress::to(move |report: &ProgressReport| {
            shown.set_length(report.total.max(report.done));
            shown.set_position(report.done);
        });
        let ran = app.run_job(job, progress, CancellationToken::new()).await;
        bar.finish_and_clear();
        ran??;
    }
    let took = (house.clock.monotonic() - began).as_millis();
    show(house, &app, &folder, u64::try_from(took).unwrap_or(u64::MAX)).await
}

/// Makes the folder, or empties an earlier demo's.
fn prepare(folder: &Path) -> Result<(), Failure> {
    let trouble = |error: std::io::Error| {
        Failure::trouble(format!(
            "the folder {} cannot be used: {error}; name another one with --dir",
            folder.display()
        ))
    };
    if folder.exists() && !folder.join(MARKER).exists() {
        let empty = std::fs::read_dir(folder).map_err(trouble)?.next().is_none();
        if !empty {
            let message = format!("{} has other things in it; name another folder with --dir", folder.display());
            return Err(Failure::usage(message));
        }
    }
    let data = folder.join("data");
    std::fs::create_dir_all(&data).map_err(trouble)?;
    std::fs::write(
        folder.join(MARKER),
        "This folder is a demo of Lamplighter. Running the demo again starts it anew.\n",
    )
    .map_err(trouble)?;
    for file in FILES {
        for ending in ["", "-wal", "-shm"] {
            match std::fs::remove_file(data.join(format!("{file}{ending}"))) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(trouble(error)),
                _ => {}
            }
        }
    }
    std::fs::write(folder.join("jobs.toml"), JOBS_TOML).map_err(trouble)
}

/// Rows, dead letters, runs, the alert, and what to try next.
async fn show(house: &House, app: &App, folder: &Path, took_ms: u64) -> Result<(), Failure> {
    let (out, history, now) = (&house.out, app.history(), house.clock.now());
    let runs = history.runs(&RunFilter { limit: 20, ..RunFilter::default() }).await?;
    let counts = history.count_dead_letters().await?;
    let letters = history.dead_letters(&DeadLetterFilter { limit: 50, ..DeadLetterFilter::default() }).await?;
    let messages = history.messages(20).await?;
    let uploaded = uploaded(app, &runs);
    if out.json {
        out.json(&json!({
            "folder": folder, "took_ms": took_ms, "tables": uploaded, "runs": runs, "dead_letters": letters,
            "messages": messages,
        }));
        return Ok(());
    }
    say(out, &format!("The nightly upload ran through the real runner, all in all in {}", duration(took_ms)));
    let rows = uploaded.iter().map(|(table, dataset, rows, bytes)| {
        vec![table.clone(), dataset.clone(), number(*rows), Size(*bytes).to_string()]
    });
    out.line(tables::plain(out, &["Table", "Dataset", "Rows", "Sent"], rows.collect()));

    let total: u64 = counts.iter().map(|count| count.count).sum();
    say(out, &format!("{} records were broken. They are dead letters now, and held nothing else up", number(total)));
    out.line(tables::dead_letters(out, &letters, now));

    say(out, "What the history says");
    out.line(tables::runs(out, &runs, now));

    say(out, "What the console (or Slack, or a webhook) was told");
    for message in &messages {
        tell(out, message);
    }

    say(out, &format!("It is yours to play with. Go there with `cd {}`, then try", folder.display()));
    let program = program();
    let first = letters.iter().find(|letter| letter.size_bytes.is_some()).map_or("ID", |letter| letter.id.as_str());
    for (command, what) in [
        ("history".to_owned(), "what ran"),
        ("check".to_owned(), "when it runs next"),
        (format!("dead-letters show {first}"), "a broken record as it was"),
        ("dead-letters retry --all".to_owned(), "put them back, for the next upload"),
        ("run nightly-upload --dry-run".to_owned(), "what a run would do now"),
        ("serve".to_owned(), "stay up until two at night"),
    ] {
        out.line(format_args!("  {program} {command:<44} {}", out.paint(Paint::Faint, what)));
    }
    let set: Vec<&str> = ["REDIS_URL", "DATABASE_URL", "BIGQUERY_PROJECT", "LAMPLIGHTER_DATA", "LAMPLIGHTER_CONFIG"]
        .into_iter()
        .filter(|name| std::env::var_os(name).is_some())
        .collect();
    if !set.is_empty() {
        out.line(format_args!(
            "{} {} set here; unset to stay in the demo",
            out.paint(Paint::Warn, "note:"),
            set.join(", ")
        ));
    }
    Ok(())
}

fn say(out: &Output, text: &str) {
    if !out.json {
        out.line(format_args!("\n{}", out.paint(Paint::Strong, text)));
    }
}

/// A message as the console receiver writes it.
fn tell(out: &Output, message: &Message) {
    let notice = &message.notice;
    out.line(format_args!("  {} {}", out.paint(Paint::Warn, &notice.state.as_str().to_uppercase()), notice.summary));
    for (name, value) in &notice.details {
        out.line(format_args!("      {}: {}", name, tables::shorten(value, 160)));
    }
}

/// (table, dataset, rows, bytes), from what the runs found.
fn uploaded(app: &App, runs: &[Run]) -> Vec<(String, String, u64, u64)> {
    let findings = || runs.iter().filter_map(|run| run.findings.as_array()).flatten();
    let sum = |name: &str, dataset: &str| -> u64 {
        let labelled = |finding: &&serde_json::Value| {
            let labels = finding["labels"].as_array().into_iter().flatten();
            finding["name"] == name && labels.into_iter().any(|label| label[0] == "dataset" && label[1] == dataset)
        };
        findings().filter(labelled).filter_map(|finding| finding["value"].as_f64()).sum::<f64>() as u64
    };
    let row = |(name, dataset): (&String, &crate::jobs::Dataset)| {
        (dataset.table.to_string(), name.clone(), sum("uploaded_rows", name), sum("uploaded_bytes", name))
    };
    app.settings().datasets.iter().map(row).collect()
}

/// How to start this program from inside the folder.
fn program() -> String {
    let on_path = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join("lamplighter").is_file()));
    let own = || std::env::current_exe().unwrap_or_else(|_| PathBuf::from("lamplighter")).display().to_string();
    if on_path { "lamplighter".to_owned() } else { own() }
}

fn bar(job: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} {wide_bar} {human_pos}/{human_len}");
    ProgressBar::new(0).with_style(style.expect("the template is fixed")).with_prefix(job.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_other_things_in_it_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("thesis.txt"), "ten years of work").unwrap();
        let refused = prepare(folder.path()).unwrap_err();
        assert_eq!(refused.code, 2);
        assert!(!folder.path().join("jobs.toml").exists());

        let own = folder.path().join("demo");
        prepare(&own).unwrap();
        std::fs::write(own.join("data/cache.db"), "old").unwrap();
        std::fs::write(own.join("data/notes.txt"), "mine").unwrap();
        prepare(&own).unwrap();
        assert!(!own.join("data/cache.db").exists(), "an earlier demo starts anew");
        assert!(own.join("data/notes.txt").exists(), "what is not the demo's stays");
        bar("nightly-upload").finish();
    }
}
