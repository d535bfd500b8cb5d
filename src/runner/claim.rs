//! Claiming: who may run a slot. All that is due together is claimed in one statement, a little ahead of its slot; what was
//! busy then is asked again at the slot's instant, because only then is it known whether runs overlap.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::Inner;
use super::held::Hold;
use super::run::Wanted;
use crate::history::{Claim, HistoryError, MissedCause, NewRun, Trigger};
use crate::jobs::{Overlap, WhenDbDown};

/// How long the history may take for one claim.
const CLAIM_LIMIT: Duration = Duration::from_secs(10);

/// What the history says to a claim.
pub(super) enum Answer {
    /// It is ours, until then.
    Won(Instant),
    /// Another replica has it, or had it.
    Taken,
    /// Another run of the job is going; its id.
    Busy(String),
    /// The history cannot be asked.
    Away(HistoryError),
}

/// Why there is no run.
pub(super) enum NoRun {
    /// Another replica has it.
    Elsewhere,
    /// Who runs it is looked into when the database is back.
    PutOff,
    /// It may not start.
    Missed(MissedCause),
    /// The runner is stopping. Nothing is recorded: another replica may run the slot, or the next start catches it up.
    Stopping,
    /// A person asked for it while another run, with this id, was going.
    Busy(String),
    /// A person asked for it while the database was away.
    Away(HistoryError),
}

/// The runs whose claims are under way: the database may know them before we do.
#[derive(Default)]
pub(super) struct Claiming(Mutex<HashSet<String>>);

impl Claiming {
    fn lock(&self) -> MutexGuard<'_, HashSet<String>> {
        // A set of strings cannot be left half changed by a panic elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `id` is being claimed.
    pub(super) fn contains(&self, id: &str) -> bool {
        self.lock().contains(id)
    }

    fn note(&self, id: &str) -> UnderWay<'_> {
        self.lock().insert(id.to_owned());
        UnderWay(self, id.to_owned())
    }
}

/// Forgets, on drop, that a claim is under way.
struct UnderWay<'a>(&'a Claiming, String);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.lock().remove(&self.1);
    }
}

impl Inner {
    /// Claims the first slot of each job, all in one statement. `None` where the slot must queue up behind others first.
    pub(super) async fn claim_together(&self, wanted: &[Vec<Wanted>]) -> Vec<Option<Answer>> {
        let queued = |run: &Wanted| run.job.overlap == Overlap::Queue && self.lanes.of_job(&run.job.name).has_queue();
        let firsts: Vec<&Wanted> = wanted.iter().filter_map(|slots| slots.first()).filter(|run| !queued(run)).collect();
        // Forgotten by `claim`, which every one of these runs comes to next.
        self.claiming.lock().extend(firsts.iter().map(|run| run.id.clone()));
        let asked: HashSet<&str> = firsts.iter().map(|run| run.id.as_str()).collect();
        let mut answers = self.ask(&firsts).await.into_iter();
        let mut answer = |run: &Wanted| asked.contains(run.id.as_str()).then(|| answers.next()).flatten();
        wanted.iter().map(|slots| slots.first().and_then(&mut answer)).collect()
    }

    /// Gets the right to run, or the reason why not. `first` is the answer to a claim that was made for it already;
    /// `in_a_row`: slots of one job that are caught up wait for each other.
    pub(super) async fn claim(
        self: &Arc<Self>,
        run: &Wanted,
        first: Option<Answer>,
        in_a_row: bool,
    ) -> Result<Hold, NoRun> {
        let _under_way = self.claiming.note(&run.id);
        let lane = self.lanes.of_job(&run.job.name);
        let exclusive = run.job.overlap != Overlap::Allow;
        let patient =
            in_a_row || run.job.overlap == Overlap::Queue || matches!(run.trigger, Trigger::Retry | Trigger::Takeover);
        let mut answer = match first {
            Some(answer) => answer,
            None if patient && lane.has_queue() => self.await_turn(run).await?,
            None => self.ask_one(run).await,
        };
        loop {
            answer = match answer {
                Answer::Won(until) => return Ok(Hold::take(self, run, Some(until))),
                Answer::Taken => return Err(NoRun::Elsewhere),
                Answer::Busy(_) if run.slot.is_some_and(|slot| slot > self.clock.now()) => {
                    self.until_slot(run).await?;
                    if patient { self.await_turn(run).await? } else { self.ask_one(run).await }
                }
                Answer::Busy(other) if run.trigger == Trigger::Manual => self.outlast(run, other).await?,
                Answer::Busy(_) if patient => self.await_turn(run).await?,
                Answer::Busy(_) => return Err(NoRun::Missed(MissedCause::Overlap)),
                Answer::Away(error) => match run.job.when_db_down {
                    _ if self.put_off(run) => return Err(NoRun::PutOff),
                    WhenDbDown::Run => {
                        self.until_slot(run).await?;
                        if !(exclusive && lane.is_running()) {
                            return Ok(Hold::take(self, run, None));
                        }
                        Answer::Busy("in this process".to_owned())
                    }
                    WhenDbDown::Wait if run.trigger == Trigger::Manual => return Err(NoRun::Away(error)),
                    WhenDbDown::Wait => {
                        self.await_database(run).await?;
                        self.ask_one(run).await
                    }
                },
            };
        }
    }

    async fn ask_one(&self, run: &Wanted) -> Answer {
        self.ask(&[run]).await.pop().unwrap_or(Answer::Taken)
    }

    /// Asks the history, unless it is known to be away.
    async fn ask(&self, runs: &[&Wanted]) -> Vec<Answer> {
        if runs.is_empty() {
            return Vec::new();
        }
        let away = |reason: &str| {
            let database = self.history.describe();
            Answer::Away(HistoryError::Unreachable { database, reason: reason.to_owned() })
        };
        if !self.database.is_here() {
            return runs.iter().map(|_| away("it was away a moment ago")).collect();
        }
        let began = self.clock.monotonic();
        let claims: Vec<NewRun> = runs.iter().map(|run| self.new_run(run)).collect();
        match self.limited("claiming runs", CLAIM_LIMIT, self.history.claim(&claims)).await {
            Ok(answers) => answers
                .into_iter()
                .map(|answer| match answer {
                    Claim::Won => Answer::Won(began + self.tempo.lease),
                    Claim::Taken => Answer::Taken,
                    Claim::Busy(other) => Answer::Busy(other),
                })
                .collect(),
            Err(error) => {
                self.database_failed(&error);
                let (HistoryError::Unreachable { reason, .. } | HistoryError::Refused { reason, .. }) = &error;
                // Whether it took the claim is not known. If so, the next claim of this id says that it is won.
                runs.iter().map(|_| away(reason)).collect()
            }
        }
    }

    /// The claim on a run.
    pub(super) fn new_run(&self, run: &Wanted) -> NewRun {
        let now = self.clock.now();
        NewRun {
            id: run.id.clone(),
            job: run.job.name.clone(),
            slot: run.slot,
            attempt: run.attempt,
            trigger: run.trigger,
            exclusive: run.job.overlap != Overlap::Allow,
            owner: self.owner.clone(),
            host: self.host.clone(),
            version: self.version.clone(),
            started_at: run.slot.map_or(now, |slot| slot.max(now)),
            lease: self.tempo.lease,
        }
    }

    /// Waits in the job's lane, in order, until the answer is something else than "busy".
    async fn await_turn(&self, run: &Wanted) -> Result<Answer, NoRun> {
        let lane = self.lanes.of_job(&run.job.name);
        let _place = lane.queue_up().ok_or(NoRun::Missed(MissedCause::Overlap))?;
        let _turn = self.unless_stopping(lane.turn.lock()).await?;
        loop {
            // Listen first, then ask: a run that ends in between is heard.
            let mut freed = std::pin::pin!(lane.freed.notified());
            freed.as_mut().enable();
            match self.ask_one(run).await {
                Answer::Busy(_) => {}
                Answer::Away(_) if lane.is_running() => {}
                answer => return Ok(answer),
            }
            self.unless_stopping(async {
                tokio::select! { () = freed => (), () = self.pause(self.tempo.poll) => () }
            })
            .await?;
        }
    }

    /// A person's run finds another one going. Its process may have died a moment ago: then its lease ends soon.
    async fn outlast(self: &Arc<Self>, run: &Wanted, other: String) -> Result<Answer, NoRun> {
        if self.lanes.of_job(&run.job.name).is_running() {
            return Err(NoRun::Busy(other));
        }
        let limit = self.tempo.lease + self.tempo.poll;
        tracing::info!(
            job.name = run.job.name,
            "{} is running already (run {other}); waiting up to {} s in case its process has died",
            run.job.name,
            limit.as_secs()
        );
        let deadline = self.clock.monotonic() + limit;
        while self.clock.monotonic() < deadline {
            self.unless_stopping(self.pause(self.tempo.poll / 2)).await?;
            self.mark_lost_runs().await;
            match self.ask_one(run).await {
                Answer::Busy(_) => {}
                answer => return Ok(answer),
            }
        }
        Err(NoRun::Busy(other))
    }

    /// Waits for the database, within the job's catch-up window.
    async fn await_database(&self, run: &Wanted) -> Result<(), NoRun> {
        let lane = self.lanes.of_job(&run.job.name);
        let _place = lane.queue_up().ok_or(NoRun::Missed(MissedCause::DatabaseAway))?;
        let deadline = self.window_end(run);
        let back = self.unless_stopping(async {
            tokio::select! {
                () = self.database.back() => true,
                () = self.clock.sleep_until(deadline) => false,
            }
        });
        if back.await? { Ok(()) } else { Err(NoRun::Missed(MissedCause::DatabaseAway)) }
    }

    fn window_end(&self, run: &Wanted) -> DateTime<Utc> {
        run.slot.unwrap_or_else(|| self.clock.now()) + run.job.catch_up_window
    }

    /// Waits for the run's slot.
    pub(super) async fn until_slot(&self, run: &Wanted) -> Result<(), NoRun> {
        match run.slot {
            Some(slot) if slot > self.clock.now() => self.unless_stopping(self.clock.sleep_until(slot)).await,
            _ => Ok(()),
        }
    }

    /// Waits for `this`, but not past the moment in which the runner is told to stop.
    async fn unless_stopping<T>(&self, this: impl Future<Output = T>) -> Result<T, NoRun> {
        self.stopping.run_until_cancelled(this).await.ok_or(NoRun::Stopping)
    }
}
