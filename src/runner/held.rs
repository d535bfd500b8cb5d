//! The runs that this process holds, and until when: the heartbeat, and the fence around a run whose claim is gone.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Inner;
use super::run::Wanted;
use crate::history::{Claim, HistoryError, NewRun, RunEnd, RunState};
use crate::jobs::WhenDbDown;

/// How often leases are looked at.
const TICK: Duration = Duration::from_secs(1);

/// How long the history may take for one heartbeat.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(8);

/// The runs that go on in this process, by id.
#[derive(Default)]
pub(super) struct Held(Mutex<HashMap<String, Lease>>);

/// What is known of a run that goes on here.
struct Lease {
    /// When the claim ends unless it is renewed; `None` for a run that was started without the database.
    until: Option<Instant>,
    /// The claim to make once the database is back.
    unclaimed: Option<NewRun>,
    /// Whether the body may go on when the claim ends because the database is away.
    outlives_database: bool,
    /// Cancelled when somebody else may run the slot.
    fence: CancellationToken,
    /// The body is over and its end is being written.
    settling: bool,
}

/// The right to carry out a run. Dropping it lets the next run of the job have its turn.
pub(super) struct Hold {
    inner: Arc<Inner>,
    id: String,
    job: String,
    /// Cancelled when the claim is gone.
    pub(super) fence: CancellationToken,
}

impl Hold {
    /// Notes that `run` goes on here, claimed until `until` or, with `None`, without the database's knowledge.
    pub(super) fn take(inner: &Arc<Inner>, run: &Wanted, until: Option<Instant>) -> Self {
        let fence = CancellationToken::new();
        let outlives_database = run.job.when_db_down == WhenDbDown::Run;
        let unclaimed = until.is_none().then(|| inner.new_run(run));
        let lease = Lease { until, unclaimed, outlives_database, fence: fence.clone(), settling: false };
        inner.held.lock().insert(run.id.clone(), lease);
        inner.lanes.of_job(&run.job.name).enter();
        Self { inner: inner.clone(), id: run.id.clone(), job: run.job.name.clone(), fence }
    }

    /// Whether the history knows of the run. (Otherwise the database was away.)
    pub(super) fn is_claimed(&self) -> bool {
        self.inner.held.lock().get(&self.id).is_some_and(|lease| lease.until.is_some())
    }

    /// The body is over: from now on the claim is about the record only. `false`: the fence fell first.
    pub(super) fn settle(&self) -> bool {
        let mut held = self.inner.held.lock();
        if let Some(lease) = held.get_mut(&self.id) {
            lease.settling = true;
        }
        !self.fence.is_cancelled()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.inner.held.lock().remove(&self.id);
        self.inner.lanes.of_job(&self.job).leave();
    }
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Lease>> {
        // Every change to the map is one call, so a panic elsewhere cannot leave it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many runs go on here.
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    fn ids(&self) -> HashSet<String> {
        self.lock().iter().filter(|(_, lease)| lease.until.is_some()).map(|(id, _)| id.clone()).collect()
    }

    /// The claims that are still to be made.
    fn unclaimed(&self) -> Vec<NewRun> {
        self.lock().values().filter_map(|lease| lease.unclaimed.clone()).collect()
    }

    /// Notes that the claim on a run was made after all.
    fn claimed(&self, id: &str, until: Instant) {
        if let Some(lease) = self.lock().get_mut(id) {
            (lease.until, lease.unclaimed) = (Some(until), None);
        }
    }

    /// Takes in the answer to a heartbeat that was sent for `asked`: renews what is confirmed and fences what is not.
    fn heard(&self, asked: &HashSet<String>, confirmed: &HashSet<&str>, until: Instant) {
        for (id, lease) in self.lock().iter_mut() {
            if confirmed.contains(id.as_str()) {
                lease.until = Some(until);
            } else if asked.contains(id) && !lease.settling && !lease.fence.is_cancelled() {
                tracing::error!(run.id = id, "the claim on this run is gone; stopping it and writing nothing more");
                lease.fence.cancel();
            }
        }
    }

    /// Fences the runs whose claim has ended by our own clock, because no heartbeat came through.
    fn expire(&self, now: Instant) {
        for (id, lease) in self.lock().iter_mut() {
            let ended = lease.until.is_some_and(|until| until <= now);
            if ended && !lease.settling && !lease.outlives_database && !lease.fence.is_cancelled() {
                tracing::error!(run.id = id, "no heartbeat got through for the length of the lease; stopping this run");
                lease.fence.cancel();
            }
        }
    }
}

impl Inner {
    /// Renews the leases of the runs that go on here, three times per lease, and watches for those that end.
    pub(super) async fn beat_hearts(self: Arc<Self>) {
        let every = self.tempo.lease / 3;
        let mut last = self.clock.monotonic();
        while self.done.run_until_cancelled(self.pause(TICK.min(every))).await.is_some() {
            if self.clock.monotonic() >= last + every && self.held.len() > 0 && self.database.is_here() {
                last = self.clock.monotonic();
                self.beat_once().await;
            }
            self.held.expire(self.clock.monotonic());
        }
    }

    /// Renews all leases once.
    pub(super) async fn beat_once(&self) {
        let (asked, began) = (self.held.ids(), self.clock.monotonic());
        let answer =
            self.limited("renewing leases", HEARTBEAT_LIMIT, self.history.heartbeat(&self.owner, self.tempo.lease));
        let confirmed = match answer.await {
            Ok(confirmed) => confirmed,
            Err(error) => return self.database_failed(&error),
        };
        let set = confirmed.iter().map(String::as_str).collect();
        self.held.heard(&asked, &set, began + self.tempo.lease);

        // A claim whose answer never arrived is a row that runs for ever: nobody works on it, and we renew it.
        let known = self.held.ids();
        for id in confirmed.iter().filter(|id| !asked.contains(*id) && !known.contains(*id)) {
            if !self.claiming.contains(id) && !self.spool.holds(id) {
                self.give_up_orphan(id).await;
            }
        }
    }

    /// Claims the runs that were started while the database was away, so that nobody else starts them now.
    pub(super) async fn claim_what_goes_on(&self) -> Result<(), HistoryError> {
        let (began, runs) = (self.clock.monotonic(), self.held.unclaimed());
        if runs.is_empty() {
            return Ok(());
        }
        let answers = self.limited("claiming runs", HEARTBEAT_LIMIT, self.history.claim(&runs)).await?;
        for (run, answer) in runs.iter().zip(answers) {
            match answer {
                Claim::Won => self.held.claimed(&run.id, began + self.tempo.lease),
                Claim::Taken | Claim::Busy(_) => tracing::warn!(
                    job.name = run.job,
                    run.id = run.id,
                    "{} was started here without the database, and runs or ran elsewhere with it",
                    run.job
                ),
            }
        }
        Ok(())
    }

    async fn give_up_orphan(&self, id: &str) {
        let now = self.clock.now();
        let end = RunEnd {
            state: RunState::Lost,
            started_at: now,
            finished_at: now,
            rows: None,
            error: Some("nobody works on this run: the answer to its claim never arrived, or it was fenced".to_owned()),
            findings: serde_json::json!([]),
        };
        match self.limited("giving up a run", HEARTBEAT_LIMIT, self.history.finish(id, &end, &[])).await {
            Ok(true) => tracing::warn!(run.id = id, "a run that nobody works on was marked as lost"),
            Ok(false) => {}
            Err(error) => self.database_failed(&error),
        }
    }
}
