//! The end of a batch whose loads are all in the warehouse: records are released, entries that could not be settled are
//! carried over, and the batch is forgotten. Every step may be repeated.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use futures_util::future::try_join;

use super::batch::{Batch, name_in_batch};
use super::entry;
use super::failpoint;
use super::patience;
use super::run::UploadError;
use crate::cache::{AfterUpload, Mark, Sent};

/// Entries acknowledged at a time.
const STRETCH: u32 = 4_000;

/// Acknowledges the batch.
///
/// # Errors
/// The cache cannot be reached or the lease is lost; what was done is done, the next owner repeats it harmlessly.
pub(super) async fn acknowledge(batch: &Batch) -> Result<(), UploadError> {
    let (run, lease) = (&batch.run, &batch.lease);
    let cache = &run.ctx.cache;
    let buried = patience::cache(|| cache.buried(lease)).await?;
    let readings = batch.noted().await?;
    let policy = |table| (name_in_batch(table, &run.tables, &readings), table.dataset.after_upload);
    let policy: HashMap<String, AfterUpload> = run.tables.iter().map(|table| policy(table)).collect();
    // A dataset that is no longer configured keeps its records: nobody can say that they may go.
    let policies: Vec<Vec<AfterUpload>> = readings
        .iter()
        .map(|(_, note)| {
            let of = |dataset: &str| policy.get(dataset).copied().unwrap_or(AfterUpload::Keep);
            note.tables.iter().map(|table| of(&table.dataset)).collect()
        })
        .collect();
    let loaded = batch.loaded();
    let mut unsettled: Vec<Bytes> = Vec::new();
    let mut start = 0;
    // The next stretch is fetched while this one is released.
    let fetch = async |start| {
        let entries = patience::cache(|| cache.entries(lease, start, STRETCH)).await?;
        let mut marks = Vec::with_capacity(readings.len());
        for (reading, _) in readings.iter().filter(|_| !entries.is_empty()) {
            marks.push(patience::cache(|| cache.marks(lease, *reading, start, STRETCH)).await?);
        }
        Ok::<_, UploadError>((entries, marks))
    };
    let mut stretch = fetch(start).await?;
    while !stretch.0.is_empty() {
        let (entries, marks) = &stretch;
        let mut sent: [Vec<Sent<'_>>; 2] = Default::default();
        for (at, bytes) in entries.iter().enumerate() {
            let position = start + at as u64;
            let mut settled = u32::try_from(position).is_ok_and(|position| buried.binary_search(&position).is_ok());
            for (number, (reading, note)) in readings.iter().enumerate() {
                match marks[number].get(at) {
                    Some(Mark::Settled) => settled = true,
                    Some(Mark::Sent { table, value, magnitude, .. }) => {
                        let Some(noted) = note.tables.get(usize::from(*table)) else { continue };
                        if loaded.contains(&(noted.dataset.clone(), *reading)) {
                            settled = true;
                            let keep = policies[number][usize::from(*table)] == AfterUpload::Keep;
                            let key = entry::key(bytes).expect("only an entry with a key is sent");
                            sent[usize::from(keep)].push(Sent { key, value: *value, magnitude: *magnitude });
                        }
                    }
                    _ => {}
                }
            }
            if !settled {
                unsettled.push(bytes.clone());
            }
        }
        let release = async {
            for (records, after) in sent.iter().zip([AfterUpload::Delete, AfterUpload::Keep]) {
                if records.is_empty() {
                    continue;
                }
                let released = patience::cache(|| cache.release(lease, records, after)).await?;
                run.tally(|tally| {
                    tally.released.done += released.done;
                    tally.released.rewritten += released.rewritten;
                    tally.released.gone += released.gone;
                });
                failpoint::reach("acknowledging").await;
            }
            Ok(())
        };
        start += entries.len() as u64;
        ((), stretch) = try_join(release, fetch(start)).await?;
    }
    failpoint::reach("acknowledged").await;
    let kept: Vec<u32> =
        readings.iter().map(|(reading, _)| *reading).filter(|reading| is_loaded(&loaded, *reading)).collect();
    patience::cache(|| cache.finish(lease, &kept, &unsettled)).await?;
    failpoint::reach("finished").await;
    run.tally(|tally| {
        let counter = if batch.memory.letters_failed { &mut tally.unsettled } else { &mut tally.deferred };
        *counter += unsettled.len() as u64;
    });
    Ok(())
}

fn is_loaded(loaded: &HashSet<(String, u32)>, reading: u32) -> bool {
    loaded.iter().any(|(_, number)| *number == reading)
}
