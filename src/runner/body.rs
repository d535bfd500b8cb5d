//! The body of a run, in a task of its own: what it returns, its time limit, its panics, and the ways to stop it.

use std::any::Any;
use std::sync::Arc;

use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;

use super::held::Hold;
use super::run::Wanted;
use super::{Inner, LET_GO};
use crate::jobs::{Finding, JobContext, JobError, Outcome};

/// How a body ended.
pub(super) enum Ended {
    /// It returned.
    Returned(Result<Outcome, JobError>),
    /// It panicked, with this message.
    Panicked(String),
    /// Its time was up.
    TimedOut,
    /// The daemon stops and the grace period is over.
    Aborted,
    /// The claim is gone: somebody else may be running the slot.
    Fenced,
}

impl Inner {
    /// Runs the body until it returns or must be stopped.
    pub(super) async fn body(self: &Arc<Self>, run: &Wanted, hold: &Hold) -> Ended {
        let context = JobContext {
            job: run.job.name.clone(),
            run_id: run.id.clone(),
            owner: self.owner.clone(),
            clock: self.clock.clone(),
            cache: self.cache.clone(),
            warehouse: self.warehouse.clone(),
            history: self.history.clone(),
            datasets: self.datasets.clone(),
            stopping: self.stopping.child_token(),
            progress: run.progress.clone(),
        };
        let job = run.job.clone();
        let mut task = AbortOnDropHandle::new(tokio::spawn(async move { job.job.run(&context).await }));
        let ended = tokio::select! {
            biased;
            joined = &mut task => return returned(joined),
            () = hold.fence.cancelled() => Ended::Fenced,
            () = self.abort.cancelled() => Ended::Aborted,
            () = tokio::time::sleep(run.job.timeout) => Ended::TimedOut,
        };
        // The end is recorded only when the body has let go: the next run of the job may start the moment it is.
        task.abort();
        match tokio::time::timeout(LET_GO, &mut task).await {
            // It came to its end in the very moment in which it was told to stop: that end counts.
            Ok(Ok(result)) if !matches!(ended, Ended::Fenced) => Ended::Returned(result),
            Ok(_) => ended,
            Err(_) => {
                tracing::error!(
                    job.name = run.job.name,
                    run.id = run.id,
                    "the body does not stop: it blocks its thread; it is left behind"
                );
                ended
            }
        }
    }
}

fn returned(joined: Result<Result<Outcome, JobError>, JoinError>) -> Ended {
    match joined {
        Ok(result) => Ended::Returned(result),
        Err(error) if error.is_panic() => Ended::Panicked(message(&*error.into_panic())),
        // Nobody but this file aborts the task, and the runtime only when the program ends.
        Err(_) => Ended::Aborted,
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("with something that is not text").to_owned()
}

/// The findings as the history keeps them.
pub(super) fn as_json(findings: &[Finding]) -> serde_json::Value {
    serde_json::to_value(findings).unwrap_or_else(|_| serde_json::json!([]))
}
