//! `--dry-run`: reads what an upload would read and says what it would do. Takes, writes and deletes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::super::kind::{JobError, Plan};
use super::entry;
use super::patience;
use super::record::{Encoder, Rejection};
use super::run::Run;
use super::shape::Fields;
use super::timestamp;
use crate::cache::Stored;
use crate::units::Size;

/// Entries looked at in each queue; of a longer queue the rest is only counted.
const LOOKED_AT: u64 = 100_000;
const STRETCH: u32 = 1_000;
const STRETCH_BYTES: u64 = 1_000_000;

#[derive(Default, Serialize)]
struct QueuePlan {
    queue: String,
    database: u16,
    waiting: u64,
    in_flight_batches: usize,
    looked_at: u64,
    tables: Vec<TablePlan>,
    /// How many entries would become dead letters, by dataset and reason, with one example each.
    dead_letters: BTreeMap<String, (u64, String)>,
}

#[derive(Serialize)]
struct TablePlan {
    dataset: String,
    table: String,
    exists: bool,
    rows: u64,
    bytes: u64,
    new_columns: Vec<String>,
}

/// What a run over these queues would do now.
pub(super) async fn plan(runs: &[Arc<Run>]) -> Result<Plan, JobError> {
    let mut plans = Vec::with_capacity(runs.len());
    for run in runs {
        plans.push(look(run).await?);
    }
    let trouble = plans.iter().any(|plan| !plan.dead_letters.is_empty());
    Ok(Plan { lines: plans.iter().flat_map(lines).collect(), json: serde_json::to_value(&plans)?, trouble })
}

async fn look(run: &Run) -> Result<QueuePlan, JobError> {
    let cache = &run.ctx.cache;
    let mut plan = QueuePlan {
        queue: run.queue.queue.clone(),
        database: run.queue.database,
        waiting: run.depth().await?,
        in_flight_batches: patience::cache(|| cache.inflight(&run.queue)).await?.len(),
        ..QueuePlan::default()
    };
    let ingested_at = timestamp::canonical(run.ctx.clock.now().naive_utc());
    let mut shapes = Vec::with_capacity(run.tables.len());
    let mut lacking: Vec<Fields> = run.tables.iter().map(|_| Fields::default()).collect();
    for table in &run.tables {
        shapes.push(table.shape(&run.ctx.warehouse).await?);
        plan.tables.push(TablePlan {
            dataset: table.name.clone(),
            table: table.dataset.table.to_string(),
            exists: table.exists().await,
            rows: 0,
            bytes: 0,
            new_columns: Vec::new(),
        });
    }
    let max = run.tables.iter().map(|table| table.dataset.max_record_size.0).max().unwrap_or(0);
    let mut seen = std::collections::HashSet::new();
    while plan.looked_at < LOOKED_AT.min(plan.waiting) {
        let entries = patience::cache(|| cache.peek(&run.queue, plan.looked_at, STRETCH)).await?;
        if entries.is_empty() {
            break;
        }
        plan.looked_at += entries.len() as u64;
        let mut wanted: Vec<(usize, String)> = Vec::new();
        for bytes in &entries {
            match entry::key(bytes) {
                Err(detail) => plan.reject("", &Rejection::new("bad_entry", detail), &String::from_utf8_lossy(bytes)),
                Ok(key) => {
                    match run.tables.iter().position(|table| Some(table.name.as_str()) == run.dataset_of(&key)) {
                        None => plan.reject("", &Rejection::new("no_dataset", "no dataset has such keys"), &key),
                        Some(at) if seen.insert(crate::cache::Digest::of(key.as_bytes())) => {
                            wanted.push((at, key.into_owned()))
                        }
                        Some(_) => {}
                    }
                }
            }
        }
        let mut rest = &wanted[..];
        while !rest.is_empty() {
            let keys: Vec<&str> = rest.iter().map(|(_, key)| key.as_str()).collect();
            let values = patience::cache(|| cache.read(run.queue.database, &keys, max, STRETCH_BYTES)).await?;
            let (now, later) = rest.split_at(values.len());
            for ((at, key), stored) in now.iter().zip(values) {
                let encoder =
                    Encoder { dataset: &run.tables[*at].dataset, shape: &shapes[*at], ingested_at: &ingested_at };
                let mut row = Vec::new();
                let judged = match &stored {
                    Stored::Value(value) => encoder.encode(value, &mut lacking[*at], &mut row).map(|()| value.len()),
                    Stored::Missing => {
                        Err(Rejection::new("missing", "the record is gone, unless an earlier upload took it"))
                    }
                    Stored::WrongType(found) => Err(Rejection::new("wrong_type", format!("the key holds a {found}"))),
                    Stored::TooLarge(size) => Err(Rejection::new("too_large", format!("the record has {size} bytes"))),
                };
                match judged {
                    Ok(bytes) => {
                        plan.tables[*at].rows += 1;
                        plan.tables[*at].bytes += bytes as u64;
                    }
                    Err(rejection) => plan.reject(&run.tables[*at].name, &rejection, key),
                }
            }
            rest = later;
        }
    }
    for (table, lacking) in plan.tables.iter_mut().zip(&lacking) {
        table.new_columns = lacking.names();
    }
    Ok(plan)
}

impl QueuePlan {
    fn reject(&mut self, dataset: &str, rejection: &Rejection, key: &str) {
        let name = if dataset.is_empty() { "(no dataset)" } else { dataset };
        let example = || format!("{key}: {}", rejection.detail);
        let entry = self.dead_letters.entry(format!("{name}: {}", rejection.reason));
        entry.or_insert_with(|| (0, example())).0 += 1;
    }
}

fn lines(plan: &QueuePlan) -> Vec<String> {
    let mut lines = Vec::new();
    let more = if plan.looked_at < plan.waiting {
        format!(" (looked at the oldest {})", plan.looked_at)
    } else {
        String::new()
    };
    lines.push(format!("queue {} in database {}: {} entries wait{more}", plan.queue, plan.database, plan.waiting));
    if plan.in_flight_batches > 0 {
        lines.push(format!("  {} batches are in flight and would be finished first", plan.in_flight_batches));
    }
    for table in &plan.tables {
        let size = Size(table.bytes);
        let verb = if table.exists { "into" } else { "into a new table" };
        lines.push(format!("  {}: {} rows ({size}) {verb} {}", table.dataset, table.rows, table.table));
        if !table.new_columns.is_empty() && table.rows > 0 {
            lines.push(format!("    new columns: {}", table.new_columns.join(", ")));
        }
    }
    for (what, (count, example)) in &plan.dead_letters {
        let letters = if *count == 1 { "dead letter" } else { "dead letters" };
        lines.push(format!("  {count} {letters}, {what}; for example {example}"));
    }
    lines
}
