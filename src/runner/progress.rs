//! How far a run has come, in the log: one line a minute, for runs that nobody watches on a terminal.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Clock;
use crate::jobs::Progress;

const EVERY: Duration = Duration::from_secs(60);

/// Logs at most one line a minute, and none for runs that take less.
pub fn to_log(job: &str, clock: &Arc<dyn Clock>) -> Progress {
    let (job, clock) = (job.to_owned(), clock.clone());
    let last = Mutex::new(None);
    Progress::to(move |report| {
        let now = clock.monotonic();
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if now < *last.get_or_insert(now) + EVERY {
            return;
        }
        *last = Some(now);
        let (done, total) = (report.done, report.total);
        let percent = done.saturating_mul(100).checked_div(total).unwrap_or(0);
        tracing::info!(job.name = job, done, total, "{job}: {} ({done} of {total}, {percent} %)", report.doing);
    })
}
