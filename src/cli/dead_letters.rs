//! `dead-letters`: records that could not be loaded.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::args::{DeadLettersCommand, Which};
use super::failure::Failure;
use super::output::Paint;
use super::times::{instant, number, relative};
use super::{House, tables};
use crate::cache::{SharedCache, Stored};
use crate::history::{DeadLetter, DeadLetterFilter, SharedHistory};
use crate::jobs::retry_dead_letter;
use crate::units::Size;

/// How many are handled at a time, so that memory stays flat however many there are.
const AT_A_TIME: u32 = 500;

/// Said when there are none that the options fit.
const NONE_SUCH: &str = "no such dead letters; `lamplighter dead-letters list` shows all";

pub(super) async fn obey(house: &House, command: DeadLettersCommand, now: DateTime<Utc>) -> Result<(), Failure> {
    match command {
        DeadLettersCommand::List { which, limit } => list(house, which, limit, now).await,
        DeadLettersCommand::Show { id } => show(house, &id, now).await,
        DeadLettersCommand::Retry { ids, which, all } => retry(house, &ids, &which, all).await,
        DeadLettersCommand::Export { which } => export(house, &which).await,
        DeadLettersCommand::Drop { ids, which, all } => drop_some(house, &ids, &which, all).await,
    }
}

async fn list(house: &House, which: Which, limit: u32, now: DateTime<Utc>) -> Result<(), Failure> {
    let (_, history) = house.history().await?;
    let out = &house.out;
    let letters = history.dead_letters(&filter(&which, None, limit)).await?;
    if out.json {
        out.json(&letters);
        return Ok(());
    }
    let mut counts = history.count_dead_letters().await?;
    let any = !counts.is_empty();
    counts.retain(|count| which.dataset.as_ref().is_none_or(|dataset| *dataset == count.dataset));
    counts.retain(|count| which.reason.as_ref().is_none_or(|reason| *reason == count.reason));
    let total: u64 = counts.iter().map(|count| count.count).sum();
    if total == 0 {
        out.line(if any { NONE_SUCH } else { "no dead letters" });
        return Ok(());
    }
    out.line(tables::dead_letter_counts(out, &counts, now));
    out.line(tables::dead_letters(out, &letters, now));
    let shown = letters.len() as u64;
    let more = if shown < total { format!("the oldest {} of ", number(shown)) } else { String::new() };
    out.remark(format_args!("{more}{}. Next: lamplighter dead-letters show ID, retry, export, drop", in_words(total)));
    Ok(())
}

async fn show(house: &House, id: &str, now: DateTime<Utc>) -> Result<(), Failure> {
    let (_, history) = house.history().await?;
    let out = &house.out;
    let letter = history.dead_letter(id).await?.ok_or_else(|| unknown(id))?;
    if out.json {
        out.json(&letter);
        return Ok(());
    }
    let size = letter.size_bytes.map(|size| Size(size).to_string()).unwrap_or_default();
    let facts = [
        ("id", letter.id.clone()),
        ("dataset", letter.dataset.clone()),
        ("queue", format!("{} (database {})", letter.queue, letter.database)),
        ("entry", String::from_utf8_lossy(&letter.entry).into_owned()),
        ("key", letter.key.clone()),
        ("kept", format!("{} UTC ({})", instant(letter.created_at), relative(letter.created_at, now))),
        ("reason", letter.reason.clone()),
        ("detail", letter.detail.clone()),
        ("size", size),
    ];
    for (name, value) in facts {
        out.line(format_args!("{:>8}  {}", out.paint(Paint::Faint, name), tables::tame(&value)));
    }
    match letter.body {
        Some(body) => out.line(format_args!("\n{}", tables::tame(&String::from_utf8_lossy(&body)))),
        None => out.line("\nits record is not there to be shown"),
    }
    Ok(())
}

async fn retry(house: &House, ids: &[String], which: &Which, all: bool) -> Result<(), Failure> {
    chosen(ids, which, all, "retry")?;
    let (settings, history) = house.history().await?;
    let cache = crate::app::open_cache(&settings, &house.clock).await?;
    cache.ping().await?;
    let (mut done, mut without) = (0_u64, 0_u64);
    let mut pages = Pages::new(&history, ids, which);
    while let Some(page) = pages.next().await? {
        for id in page {
            let Some(letter) = history.dead_letter(&id).await? else {
                if !ids.is_empty() {
                    return Err(unknown(&id));
                }
                continue;
            };
            let unclaimed = letter.key.is_empty() || letter.dataset.is_empty();
            if unclaimed || (letter.body.is_none() && !is_there(&cache, &letter).await?) {
                // Nothing would come of it: no dataset claims it, or there is no record, neither here nor there.
                without += 1;
                if ids.is_empty() {
                    continue;
                }
            }
            retry_dead_letter(&cache, &settings.datasets, &letter).await?;
            // Only now: a crash in between tries the record twice, and the upload sends it once.
            history.drop_dead_letters(&[letter.id]).await?;
            done += 1;
        }
    }
    report(house, "retried", all, done, without)
}

/// Whether the cache holds a record under the letter's key: one that was too large, or that came after all.
async fn is_there(cache: &SharedCache, letter: &DeadLetter) -> Result<bool, Failure> {
    // Its length will do.
    let stored = cache.read(letter.database, &[&letter.key], 0, 0).await?;
    Ok(matches!(stored.first(), Some(Stored::Value(_) | Stored::TooLarge(_))))
}

async fn drop_some(house: &House, ids: &[String], which: &Which, all: bool) -> Result<(), Failure> {
    chosen(ids, which, all, "drop")?;
    let (_, history) = house.history().await?;
    let mut dropped = 0;
    let mut pages = Pages::new(&history, ids, which);
    while let Some(page) = pages.next().await? {
        dropped += history.drop_dead_letters(&page).await?;
    }
    report(house, "dropped", all, dropped, 0)
}

fn in_words(letters: u64) -> String {
    format!("{} dead letter{}", number(letters), if letters == 1 { "" } else { "s" })
}

fn report(house: &House, verb: &str, all: bool, done: u64, left: u64) -> Result<(), Failure> {
    let out = &house.out;
    if out.json {
        out.json(&serde_json::json!({ verb: done, "left": left }));
    } else if done + left == 0 && !all {
        out.line(NONE_SUCH);
    } else {
        out.line(format_args!("{verb} {}", in_words(done)));
        if left > 0 {
            out.remark(format_args!(
                "{} {} left: no dataset claims the key, or the record is gone. Name them by id to retry them all the same",
                number(left),
                if left == 1 { "was" } else { "were" }
            ));
        } else if verb == "retried" && done > 0 {
            out.remark("they are back in their queues; the next upload takes them");
        }
    }
    Ok(())
}

async fn export(house: &House, which: &Which) -> Result<(), Failure> {
    let (_, history) = house.history().await?;
    let mut pages = Pages::new(&history, &[], which);
    let mut any = false;
    while let Some(page) = pages.next().await? {
        for id in page {
            if let Some(letter) = history.dead_letter(&id).await? {
                any = true;
                house.out.line(serde_json::to_string(&letter).expect("a dead letter is plain data with text keys"));
            }
        }
    }
    if !any && (which.dataset.is_some() || which.reason.is_some()) {
        house.out.remark(NONE_SUCH);
    }
    Ok(())
}

/// All dead letters would be a lot to retry or drop by accident.
fn chosen(ids: &[String], which: &Which, all: bool, verb: &str) -> Result<(), Failure> {
    let some = !ids.is_empty() || which.dataset.is_some() || which.reason.is_some();
    if some || all {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "say which: lamplighter dead-letters {verb} ID…, --dataset NAME, --reason WORD, or --all"
    )))
}

fn unknown(id: &str) -> Failure {
    Failure::trouble(format!("there is no dead letter {id}; `lamplighter dead-letters list` shows those there are"))
}

fn filter(which: &Which, after: Option<String>, limit: u32) -> DeadLetterFilter {
    DeadLetterFilter { dataset: which.dataset.clone(), reason: which.reason.clone(), after, limit }
}

/// The ids that were named, or those of the dead letters that match, page by page.
struct Pages {
    history: SharedHistory,
    named: Option<Vec<String>>,
    which: Which,
    after: Option<String>,
    ended: bool,
}

impl Pages {
    fn new(history: &SharedHistory, ids: &[String], which: &Which) -> Self {
        let named = (!ids.is_empty()).then(|| ids.to_vec());
        Self { history: Arc::clone(history), named, which: which.clone(), after: None, ended: false }
    }

    async fn next(&mut self) -> Result<Option<Vec<String>>, Failure> {
        if self.ended {
            return Ok(None);
        }
        if let Some(named) = self.named.take() {
            self.ended = true;
            return Ok(Some(named));
        }
        let page: Vec<DeadLetter> =
            self.history.dead_letters(&filter(&self.which, self.after.clone(), AT_A_TIME)).await?;
        self.after = page.last().map(|letter| letter.id.clone());
        self.ended = page.is_empty();
        Ok((!page.is_empty()).then(|| page.into_iter().map(|letter| letter.id).collect()))
    }
}
