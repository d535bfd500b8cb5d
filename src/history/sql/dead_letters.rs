//! Dead letters: records that could not be loaded, kept until a person has dealt with them.

use sha2::{Digest, Sha256};

use super::values::{int, maybe_text, text, time};
use super::{Cells, Column, Columns, Session, Value, clip};
use crate::history::{DeadLetter, DeadLetterCount, DeadLetterFilter};

const LETTER: &str = "id, dataset, database, queue, batch, entry, key, reason, detail, size_bytes, created_at";

fn letter(row: &impl Columns, body: Option<Vec<u8>>) -> Result<DeadLetter, sqlx::Error> {
    Ok(DeadLetter {
        id: row.text("id")?,
        dataset: row.text("dataset")?,
        database: row.number("database")?,
        queue: row.text("queue")?,
        batch: row.text("batch")?,
        entry: row.bytes("entry")?,
        key: row.text("key")?,
        reason: row.text("reason")?,
        detail: row.text("detail")?,
        body,
        size_bytes: row.maybe_number("size_bytes")?,
        created_at: row.time("created_at")?,
    })
}

/// Tells letters apart. The length before each part keeps `ab, c` and `a, bc` from looking the same.
fn identity(letter: &DeadLetter) -> String {
    let mut hash = Sha256::new();
    for part in [letter.dataset.as_bytes(), letter.batch.as_bytes(), &letter.entry, letter.key.as_bytes()] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) async fn add<S: Session>(s: &mut S, letters: &[DeadLetter]) -> Result<(), sqlx::Error> {
    let mut rest = letters;
    while !rest.is_empty() {
        let (rows, after) = rest.split_at(fitting(rest));
        let identities: Vec<String> = rows.iter().map(identity).collect();
        s.given(
            &[
                text("id", rows, |letter| &letter.id),
                text("identity", &identities, |identity| identity),
                text("dataset", rows, |letter| &letter.dataset),
                int("database", rows, |letter| Some(letter.database.into())),
                text("queue", rows, |letter| &letter.queue),
                text("batch", rows, |letter| &letter.batch),
                bytes("entry", rows, |letter| Some(&letter.entry)),
                text("key", rows, |letter| &letter.key),
                text("reason", rows, |letter| &letter.reason),
                text("detail", rows, |letter| clip(&letter.detail)),
                bytes("body", rows, |letter| letter.body.as_deref()),
                int("size_bytes", rows, size),
                time("created_at", rows, |letter| Some(letter.created_at)),
            ],
            "INSERT INTO dead_letters (id, identity, dataset, database, queue, batch, entry, key, reason, detail, body, \
             size_bytes, created_at) SELECT id, identity, dataset, database, queue, batch, entry, key, reason, detail, body, \
             size_bytes, created_at FROM given WHERE true ON CONFLICT (identity) DO NOTHING",
        )
        .await?;
        rest = after;
    }
    Ok(())
}

/// How many of the letters go into one statement: the statement holds copies of them, and those shall stay small.
fn fitting(letters: &[DeadLetter]) -> usize {
    const MAX_ROWS: usize = 1_000;
    const MAX_BYTES: usize = 4 * 1024 * 1024;
    let mut bytes = 0;
    let fit = letters.iter().take(MAX_ROWS).take_while(|letter| {
        bytes += letter.entry.len() + letter.body.as_ref().map_or(0, Vec::len);
        bytes <= MAX_BYTES
    });
    fit.count().max(1)
}

fn bytes<'a>(
    name: &'static str,
    letters: &'a [DeadLetter],
    cell: impl Fn(&'a DeadLetter) -> Option<&'a [u8]>,
) -> Column<'a> {
    Column { name, cells: Cells::Bytes(letters.iter().map(cell).collect()) }
}

fn size(letter: &DeadLetter) -> Option<i64> {
    let bytes = letter.size_bytes.or(letter.body.as_ref().map(|body| body.len() as u64));
    bytes.and_then(|bytes| i64::try_from(bytes).ok())
}

pub(super) async fn list<S: Session>(s: &mut S, filter: &DeadLetterFilter) -> Result<Vec<DeadLetter>, sqlx::Error> {
    let mut values: Vec<Value<'_>> = vec![i64::from(filter.limit).into()];
    let mut conditions = String::from("true");
    let wanted = [("dataset =", &filter.dataset), ("reason =", &filter.reason), ("id >", &filter.after)];
    for (condition, value) in wanted {
        if let Some(value) = value {
            values.push(value.as_str().into());
            conditions += &format!(" AND {condition} ${}", values.len());
        }
    }
    let sql = format!("SELECT {LETTER} FROM dead_letters WHERE {conditions} ORDER BY id LIMIT $1");
    s.query(&sql, &values).await?.iter().map(|row| letter(row, None)).collect()
}

pub(super) async fn count<S: Session>(s: &mut S) -> Result<Vec<DeadLetterCount>, sqlx::Error> {
    let rows = s
        .query(
            "SELECT dataset, reason, count(*) AS letters, min(created_at) AS oldest FROM dead_letters \
             GROUP BY dataset, reason ORDER BY dataset, reason",
            &[],
        )
        .await?;
    let count = |row: &S::Row| {
        Ok(DeadLetterCount {
            dataset: row.text("dataset")?,
            reason: row.text("reason")?,
            count: row.number("letters")?,
            oldest: row.time("oldest")?,
        })
    };
    rows.iter().map(count).collect()
}

pub(super) async fn get<S: Session>(s: &mut S, id: &str) -> Result<Option<DeadLetter>, sqlx::Error> {
    let sql = format!("SELECT {LETTER}, body FROM dead_letters WHERE id = $1");
    let rows = s.query(&sql, &[id.into()]).await?;
    rows.first().map(|row| letter(row, row.maybe_bytes("body")?)).transpose()
}

pub(super) async fn drop<S: Session>(s: &mut S, ids: &[String]) -> Result<u64, sqlx::Error> {
    let gone = s
        .given(
            &[maybe_text("id", ids, |id| Some(id))],
            "DELETE FROM dead_letters WHERE id IN (SELECT given.id FROM given) RETURNING id",
        )
        .await?;
    Ok(gone.len() as u64)
}
