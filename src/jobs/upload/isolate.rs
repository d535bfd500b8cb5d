//! Rows that the warehouse refuses: which entries they are, and their burial.

use bytes::Bytes;

use super::batch::Batch;
use super::entry;
use super::patience;
use super::run::UploadError;
use super::table::Table;
use crate::cache::Stored;
use crate::history::DeadLetter;
use crate::warehouse::LoadFailure;

/// An entry whose row was refused, and why.
pub(super) struct Refused {
    /// The entry's position in the batch.
    pub(super) position: u32,
    pub(super) why: String,
}

/// The rows that a failed load names, by `index`: position and length in bytes of each row. A load of a single row needs no
/// name.
pub(super) fn bad_rows(failure: &LoadFailure, index: &[(u32, u32)]) -> Vec<Refused> {
    if let [(position, _)] = index {
        return vec![Refused { position: *position, why: failure.message.clone() }];
    }
    let mut starts = Vec::with_capacity(index.len());
    let mut offset = 0_u64;
    for (_, len) in index {
        starts.push(offset);
        offset += u64::from(*len);
    }
    let mut bad: Vec<Refused> = failure
        .bad_rows
        .iter()
        .filter_map(|row| {
            // Only the first byte of a row counts: anything else was not counted as we count, and would blame a neighbour.
            let at = starts.binary_search(&row.offset).ok()?;
            Some(Refused { position: index[at].0, why: row.message.clone() })
        })
        .collect();
    bad.sort_by_key(|refused| refused.position);
    bad.dedup_by_key(|refused| refused.position);
    bad
}

/// Keeps refused rows as dead letters, then leaves them out of all further loads of the batch.
pub(super) async fn bury(batch: &Batch, table: &Table, bad: &[Refused]) -> Result<(), UploadError> {
    let (run, lease) = (&batch.run, &batch.lease);
    let cache = &run.ctx.cache;
    for group in bad.chunks(100) {
        let mut letters = Vec::with_capacity(group.len());
        for refused in group {
            let entry = patience::cache(|| cache.entries(lease, u64::from(refused.position), 1)).await?;
            let Some(entry) = entry.into_iter().next() else { continue };
            letters.push(letter(batch, table, &entry, refused).await?);
        }
        if !run.keep(&letters).await {
            let reason = run.letters_error().unwrap_or_default();
            return Err(UploadError::Letters { count: letters.len(), reason });
        }
        run.tally(|tally| letters.iter().for_each(|letter| tally.count_letter(letter)));
        let positions: Vec<u32> = group.iter().map(|refused| refused.position).collect();
        patience::cache(|| cache.bury(lease, &positions)).await?;
    }
    super::failpoint::reach("buried").await;
    Ok(())
}

async fn letter(batch: &Batch, table: &Table, entry: &Bytes, refused: &Refused) -> Result<DeadLetter, UploadError> {
    let run = &batch.run;
    let key = entry::key(entry).expect("only an entry with a key is sent").into_owned();
    let max = table.dataset.max_record_size.0;
    let keys = [key.as_str()];
    let read = patience::cache(|| run.ctx.cache.read(run.queue.database, &keys, max, max)).await?;
    let body = read.into_iter().next().and_then(|stored| match stored {
        Stored::Value(value) => Some(value.to_vec()),
        _ => None,
    });
    Ok(DeadLetter {
        id: ulid::Ulid::from_datetime(run.ctx.clock.now().into()).to_string(),
        dataset: table.name.clone(),
        database: run.queue.database,
        queue: run.queue.queue.clone(),
        batch: batch.lease.batch.clone(),
        entry: entry.to_vec(),
        key,
        reason: "refused".to_owned(),
        detail: format!("the warehouse refuses the row: {}", refused.why),
        size_bytes: body.as_ref().map(|body| body.len() as u64),
        body,
        created_at: run.ctx.clock.now(),
    })
}
