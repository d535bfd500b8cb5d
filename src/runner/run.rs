//! One run, step by step: claim, start, body, settle, record, and perhaps again.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::body::{Ended, as_json};
use super::claim::{Answer, NoRun};
use super::held::Hold;
use super::spool::Kept;
use super::{Inner, NotRun};
use crate::history::{AlertChange, MissedCause, Run, RunEnd, RunState, Trigger};
use crate::jobs::{JobSpec, Outcome, Progress};
use crate::schedule::MissedSlots;

/// How long the history may take to record an end.
const RECORD_LIMIT: Duration = Duration::from_secs(20);

/// Errors longer than this are cut: they end up in rows, messages and tables.
const MAX_ERROR_CHARS: usize = 4_000;

/// A run that is wanted.
#[derive(Clone)]
pub(super) struct Wanted {
    pub(super) id: String,
    pub(super) job: Arc<JobSpec>,
    pub(super) slot: Option<DateTime<Utc>>,
    pub(super) attempt: u32,
    pub(super) trigger: Trigger,
    pub(super) progress: Progress,
}

/// What a run came to, before it is recorded.
pub(super) struct Settled {
    state: RunState,
    rows: Option<u64>,
    error: Option<String>,
    findings: serde_json::Value,
    /// Another attempt may help.
    passing: bool,
}

impl Inner {
    /// Carries out a run of a slot with its retries. The last attempt, or the row that says why there was none; nothing if
    /// the slot is another replica's.
    pub(super) async fn carry_out(self: &Arc<Self>, run: Wanted, first: Option<Answer>, in_a_row: bool) -> Option<Run> {
        let slot = run.clone();
        match self.attempts(run, first, in_a_row).await {
            Ok(row) => row,
            Err(NoRun::Missed(cause)) => {
                let at = slot.slot.unwrap_or_else(|| self.clock.now());
                let (row, changes) = self.missed_row(&slot.job, MissedSlots::one(at), cause);
                let row = Run { attempt: slot.attempt, slot: slot.slot, ..row };
                self.record_missed(vec![(row, changes)]).await.pop()
            }
            Err(NoRun::Stopping) => {
                self.leave_alone(&slot.job);
                None
            }
            Err(NoRun::Elsewhere | NoRun::PutOff | NoRun::Busy(_) | NoRun::Away(_)) => None,
        }
    }

    /// Carries out a run that a person asked for.
    pub(super) async fn carry_out_by_hand(self: Arc<Self>, run: Wanted) -> Result<Run, NotRun> {
        let job = run.job.name.clone();
        match self.attempts(run, None, false).await {
            Ok(Some(row)) => Ok(row),
            Ok(None) | Err(NoRun::Elsewhere) => Err(NotRun::Fenced(job)),
            Err(NoRun::Busy(other)) => Err(NotRun::Busy { job, other }),
            Err(NoRun::Away(error)) => Err(error.into()),
            Err(NoRun::Missed(_) | NoRun::PutOff | NoRun::Stopping) => Err(NotRun::Stopping(job)),
        }
    }

    /// A slot that came while the runner is stopping. A row would keep other replicas from running it, and the next start
    /// from catching it up.
    pub(super) fn leave_alone(&self, job: &JobSpec) {
        let name = &job.name;
        tracing::info!(job.name = name, "{name} is not started any more: another replica or the next start will");
    }

    /// The steps, once for each attempt. `None`: the claim was lost on the way, so somebody else answers for the slot.
    async fn attempts(
        self: &Arc<Self>,
        mut run: Wanted,
        mut first: Option<Answer>,
        in_a_row: bool,
    ) -> Result<Option<Run>, NoRun> {
        let mut failed: Option<Run> = None;
        loop {
            let hold = match (self.claim(&run, first.take(), in_a_row).await, &failed) {
                (Ok(hold), _) => hold,
                // Whoever has the next attempt will tell how it ends.
                (Err(NoRun::Elsewhere), _) => return Err(NoRun::Elsewhere),
                (Err(no_run), None) => return Err(no_run),
                (Err(_), Some(row)) => return Ok(Some(self.last_attempt(&run, row).await)),
            };
            let (started_at, ended) = self.start(&run, &hold).await;
            self.starts.have_begun(self.clock.now()).await;
            let Some(settled) = self.settle(&run, &hold, ended) else { return Ok(None) };
            let passing = settled.passing;
            let Some(row) = self.record(&run, hold, started_at, settled).await else { return Ok(None) };
            if !(passing && self.may_try_again(&run)) {
                return Ok(Some(row));
            }
            match self.next_attempt(&run).await {
                Some(next) => run = next,
                None => return Ok(Some(self.last_attempt(&run, &row).await)),
            }
            failed = Some(row);
        }
    }

    /// A failure was kept quiet because another attempt would follow. Now none does.
    async fn last_attempt(&self, run: &Wanted, row: &Run) -> Run {
        self.ring(&self.settled_changes(&run.job, row, false)).await;
        row.clone()
    }

    /// Starts the body at the slot's very instant. Nothing returned: the runner was told to stop before that.
    async fn start(self: &Arc<Self>, run: &Wanted, hold: &Hold) -> (DateTime<Utc>, Option<Ended>) {
        let coming = run.slot.map(|slot| self.starts.expect(slot));
        let in_time = self.until_slot(run).await.is_ok() && !self.stopping.is_cancelled();
        drop(coming);
        let started_at = self.clock.now();
        if !in_time {
            return (started_at, None);
        }
        tracing::debug!(job.name = run.job.name, run.id = run.id, run.attempt = run.attempt, "{} starts", run.job.name);
        (started_at, Some(self.body(run, hold).await))
    }

    /// Says what the way in which the body ended means. `None`: the claim is gone, so nothing may be written.
    fn settle(&self, run: &Wanted, hold: &Hold, ended: Option<Ended>) -> Option<Settled> {
        if !hold.settle() {
            return None;
        }
        let failed = |state, error: String, passing| Settled {
            state,
            rows: None,
            error: Some(readable(&error)),
            findings: serde_json::json!([]),
            passing,
        };
        Some(match ended {
            None => failed(RunState::Cancelled, "the program was told to stop before the run began".to_owned(), false),
            Some(Ended::Fenced) => return None,
            Some(Ended::Returned(Ok(Outcome::Done { findings, rows }))) => {
                Settled { state: RunState::Succeeded, rows, error: None, findings: as_json(&findings), passing: false }
            }
            Some(Ended::Returned(Ok(Outcome::Skipped(reason)))) => failed(RunState::Skipped, reason, false),
            Some(Ended::Returned(Err(error))) => {
                // A body that gives up because it was asked to stop was cancelled; it did not fail.
                let asked_to_stop = error.retry && self.stopping.is_cancelled();
                let state = if asked_to_stop { RunState::Cancelled } else { RunState::Failed };
                Settled {
                    rows: error.rows,
                    findings: as_json(&error.findings),
                    ..failed(state, error.to_string(), error.retry && !asked_to_stop)
                }
            }
            Some(Ended::Panicked(message)) => failed(RunState::Failed, format!("panicked: {message}"), true),
            Some(Ended::TimedOut) => {
                let limit = crate::units::Span(run.job.timeout);
                failed(RunState::TimedOut, format!("stopped after its time limit of {limit} (`timeout`)"), true)
            }
            Some(Ended::Aborted) => {
                let message = "the program was told to stop, and the run did not end within the grace period";
                failed(RunState::Cancelled, message.to_owned(), false)
            }
        })
    }

    /// Writes the end and what it means for the alerts in one transaction, or keeps both until the database is back.
    async fn record(&self, run: &Wanted, hold: Hold, started_at: DateTime<Utc>, settled: Settled) -> Option<Run> {
        let again = settled.passing && self.may_try_again(run);
        let row = self.row(run, started_at, settled);
        log_end(&row, again);
        let changes = self.settled_changes(&run.job, &row, again);
        if !hold.is_claimed() {
            self.spool.keep(Kept::row(row.clone(), changes));
            if self.database.is_here()
                && let Err(error) = self.flush_spool().await
            {
                self.database_failed(&error);
            }
            return Some(row);
        }
        let end = end_of(&row);
        let _turn = self.writers.acquire().await.expect("the semaphore is never closed");
        match self.limited("recording an end", RECORD_LIMIT, self.history.finish(&run.id, &end, &changes)).await {
            Ok(true) => {
                if !changes.is_empty() {
                    self.bell.wake();
                }
                Some(row)
            }
            Ok(false) => {
                tracing::error!(job.name = row.job, run.id = row.id, "the run was taken over; its end is not recorded");
                None
            }
            Err(error) => {
                self.spool.keep(Kept::end(row.clone(), changes));
                self.database_failed(&error);
                Some(row)
            }
        }
    }

    fn may_try_again(&self, run: &Wanted) -> bool {
        run.attempt < run.job.retry.attempts && !self.stopping.is_cancelled()
    }

    /// Waits before the next attempt: twice as long each time, give or take a quarter. `None`: the runner is stopping.
    async fn next_attempt(&self, run: &Wanted) -> Option<Wanted> {
        let retry = run.job.retry;
        let doubled = retry.backoff.saturating_mul(1_u32.checked_shl(run.attempt - 1).unwrap_or(u32::MAX));
        let wait = doubled.min(retry.max_backoff).mul_f64(0.75 + fastrand::f64() / 2.0);
        self.stopping.run_until_cancelled(self.pause(wait)).await?;
        let next = self.wanted(&run.job, run.slot, run.attempt + 1, Trigger::Retry);
        Some(Wanted { progress: run.progress.clone(), ..next })
    }

    /// The row of a run that is over.
    fn row(&self, run: &Wanted, started_at: DateTime<Utc>, settled: Settled) -> Run {
        let finished_at = self.clock.now().max(started_at);
        Run {
            id: run.id.clone(),
            job: run.job.name.clone(),
            slot: run.slot,
            attempt: run.attempt,
            trigger: run.trigger,
            state: settled.state,
            cause: None,
            slots: 1,
            owner: self.owner.clone(),
            host: self.host.clone(),
            version: self.version.clone(),
            created_at: started_at,
            started_at: Some(started_at),
            finished_at: Some(finished_at),
            duration_ms: u64::try_from((finished_at - started_at).num_milliseconds()).ok(),
            rows: settled.rows,
            error: settled.error,
            findings: settled.findings,
        }
    }

    /// The row of slots that did not run, and what it means for the alerts.
    pub(super) fn missed_row(
        &self,
        job: &Arc<JobSpec>,
        slots: MissedSlots,
        cause: MissedCause,
    ) -> (Run, Vec<AlertChange>) {
        let now = self.clock.now();
        let row = Run {
            id: self.new_id(),
            job: job.name.clone(),
            slot: Some(slots.last),
            attempt: 1,
            trigger: Trigger::Schedule,
            state: RunState::Missed,
            cause: Some(cause),
            slots: slots.count,
            owner: self.owner.clone(),
            host: self.host.clone(),
            version: self.version.clone(),
            created_at: now,
            started_at: None,
            finished_at: Some(now),
            duration_ms: None,
            rows: None,
            error: (slots.count > 1).then(|| {
                format!("{} slots, from {} to {}", slots.count, slots.first.to_rfc3339(), slots.last.to_rfc3339())
            }),
            findings: serde_json::json!([]),
        };
        let changes = self.missed_changes(job, slots, cause);
        (row, changes)
    }

    /// Records slots that did not run, or keeps their rows until the database is back.
    pub(super) async fn record_missed(&self, rows: Vec<(Run, Vec<AlertChange>)>) -> Vec<Run> {
        for (row, _) in &rows {
            let cause = row.cause.map_or("", MissedCause::as_str);
            tracing::warn!(job.name = row.job, run.slots = row.slots, cause, "{} did not run: {cause}", row.job);
        }
        let written = if self.database.is_here() {
            self.limited("recording missed slots", RECORD_LIMIT, self.history.record(&rows)).await.map(|_| true)
        } else {
            Ok(false)
        };
        match written {
            Ok(true) => self.bell.wake(),
            Ok(false) => self.keep_all(&rows),
            Err(error) => {
                self.keep_all(&rows);
                self.database_failed(&error);
            }
        }
        rows.into_iter().map(|(row, _)| row).collect()
    }

    fn keep_all(&self, rows: &[(Run, Vec<AlertChange>)]) {
        for (row, changes) in rows {
            self.spool.keep(Kept::row(row.clone(), changes.clone()));
        }
    }
}

/// The end of a run, as the history takes it.
pub(super) fn end_of(row: &Run) -> RunEnd {
    RunEnd {
        state: row.state,
        started_at: row.started_at.unwrap_or(row.created_at),
        finished_at: row.finished_at.unwrap_or(row.created_at),
        rows: row.rows,
        error: row.error.clone(),
        findings: row.findings.clone(),
    }
}

fn log_end(row: &Run, again: bool) {
    let (job, error) = (&row.job, row.error.as_deref().unwrap_or_default());
    let (id, state, attempt) = (&row.id, row.state.as_str(), row.attempt);
    let ms = row.duration_ms.unwrap_or(0);
    match row.state {
        RunState::Succeeded | RunState::Skipped => {
            let rows = row.rows;
            tracing::info!(
                job.name = job,
                run.id = id,
                run.state = state,
                run.rows = rows,
                ms,
                "{job} {state} in {ms} ms"
            );
        }
        _ if again => {
            tracing::warn!(
                job.name = job,
                run.id = id,
                run.attempt = attempt,
                "{job} {state}, will be tried again: {error}"
            );
        }
        _ => tracing::error!(job.name = job, run.id = id, run.attempt = attempt, "{job} {state}: {error}"),
    }
}

/// An error fit for a row: not endless, and without the NUL that Postgres refuses in text.
fn readable(error: &str) -> String {
    let mut text: String =
        error.chars().map(|c| if c == '\0' { '\u{fffd}' } else { c }).take(MAX_ERROR_CHARS).collect();
    if text.len() < error.len() && error.chars().nth(MAX_ERROR_CHARS).is_some() {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_errors_are_cut_and_nul_is_replaced() {
        assert_eq!(readable("a\0b"), "a\u{fffd}b");
        let long = readable(&"ü".repeat(5_000));
        assert_eq!((long.chars().count(), long.ends_with('…')), (4_001, true));
        assert_eq!(readable(&"ü".repeat(4_000)), "ü".repeat(4_000));
    }
}
