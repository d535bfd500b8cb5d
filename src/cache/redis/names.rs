//! The names of the keys that `cache/mod.rs` lists.

use std::time::Duration;

use bytes::Bytes;

use super::wire::Answer;
use crate::cache::{Lease, QueueRef};

/// The keys of one batch.
pub(super) struct Names {
    pub(super) lease: String,
    pub(super) registry: String,
    pub(super) list: String,
    pub(super) state: String,
    pub(super) buried: String,
    pub(super) sequence: String,
    pub(super) sealed: String,
    pub(super) finished: String,
}

impl Names {
    pub(super) fn of(lease: &Lease) -> Self {
        let (queue, batch) = (&lease.queue, lease.batch.as_str());
        let list = list(queue, batch);
        Self {
            lease: format!("{list}:lease"),
            registry: registry(queue),
            state: format!("{list}:state"),
            buried: format!("{list}:buried"),
            sequence: format!("{}:sequence", queue.queue),
            sealed: sealed(queue),
            finished: finished(queue),
            list,
        }
    }

    /// What the names of the marks begin with; the number of the reading follows.
    pub(super) fn marks(&self) -> String {
        format!("{}:marks:", self.list)
    }
}

/// The names that the marks of a reading have before and after its batch is finished.
pub(super) fn marks_of(queue: &QueueRef, batch: &str, reading: u32) -> [String; 2] {
    [format!("{}:marks:{reading}", list(queue, batch)), format!("{}{batch}:{reading}", uploaded(queue))]
}

pub(super) fn registry(queue: &QueueRef) -> String {
    format!("{}:inflight", queue.queue)
}

pub(super) fn list(queue: &QueueRef, batch: &str) -> String {
    format!("{}:inflight:{batch}", queue.queue)
}

pub(super) fn sealed(queue: &QueueRef) -> String {
    format!("{}:sealed", queue.queue)
}

pub(super) fn finished(queue: &QueueRef) -> String {
    format!("{}:finished", queue.queue)
}

/// What the names of the marks of finished batches begin with; batch and reading follow.
pub(super) fn uploaded(queue: &QueueRef) -> String {
    format!("{}:uploaded:", queue.queue)
}

/// What the names of sent digests begin with; the record's key follows.
pub(super) fn sent(queue: &QueueRef) -> String {
    format!("{}:sent:", queue.queue)
}

/// Whole milliseconds, at least one: Redis refuses a TTL of none.
pub(super) fn millis(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).clamp(1, i64::MAX as u64 / 4)
}

/// The bytes of an answer; `None` for nil and everything that is no string.
pub(super) fn bytes(answer: Answer) -> Option<Bytes> {
    if let Answer::Text(bytes) = answer { Some(bytes) } else { None }
}

/// The members of an answer that is a list.
pub(super) fn members(answer: Answer) -> Vec<Bytes> {
    match answer {
        Answer::List(members) => members.into_iter().filter_map(bytes).collect(),
        _ => Vec::new(),
    }
}

/// The number that an answer is; 0 for everything else.
pub(super) fn number(answer: &Answer) -> u64 {
    match answer {
        Answer::Number(number) => u64::try_from(*number).unwrap_or_default(),
        _ => 0,
    }
}

/// Text of an answer; what is not UTF-8 is marked as such.
pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
