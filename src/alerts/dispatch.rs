//! Takes messages out of the outbox and delivers them: each at least once, in order for each alert and receiver, no
//! receiver waiting for another, and with patience towards receivers and databases that are away.
//!
//! A message is leased, sent and settled. A process that dies in between leaves its lease to run out; then the message is
//! sent again, under the same id, so that a receiver can tell.

mod carry;
mod direct;
mod lane;
mod verdict;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use self::carry::Done;
use self::direct::Direct;
use self::lane::Lane;
use super::http::Http;
use super::notifier::notifier;
use super::settings::{ReceiverKind, ReceiverSettings};
use super::{CONSOLE, words};
use crate::clock::Clock;
use crate::history::{AlertChange, MessageOutcome, SharedHistory};

/// How long a message is ours. It outlasts the longest wait for a turn and the longest try, with time to settle.
const LEASE: Duration = Duration::from_secs(60);
/// So many messages are in hand, as many as one lane holds,
const BATCH: usize = lane::HOLD;
/// unless they have made no headway for so long: then more are leased, for the lanes that are free,
const STALLED: Duration = Duration::from_millis(500);
/// up to this many.
const IN_HAND: usize = 256;
/// The outbox is looked at so often without being asked: other replicas and retries fill it too.
const POLL: Duration = Duration::from_secs(5);
/// The longest wait between two questions to a history that does not answer.
const MAX_OUTAGE_WAIT: Duration = Duration::from_secs(60);
const HISTORY_TIMEOUT: Duration = Duration::from_secs(10);
/// What is being sent when we stop may take so long to end.
const GRACE: Duration = Duration::from_secs(4);

/// Delivers the messages of the outbox.
#[derive(Clone)]
pub struct Dispatcher {
    shared: Arc<Shared>,
}

/// What [`Dispatcher::flush`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flushed {
    /// Messages that were delivered.
    pub sent: u32,
    /// Messages that could not be delivered yet; they wait in the outbox.
    pub waiting: u32,
    /// Messages that were given up.
    pub dead: u32,
    /// Why the outbox could not be read, if it could not.
    pub error: Option<String>,
}

struct Shared {
    history: SharedHistory,
    clock: Arc<dyn Clock>,
    owner: String,
    http: Http,
    lanes: RwLock<BTreeMap<String, Arc<Lane>>>,
    wake: Notify,
    direct: Arc<Direct>,
    /// What became of messages while the history was away, so that they are not sent twice for that.
    unsettled: Mutex<BTreeMap<String, MessageOutcome>>,
    /// When the next retry that we know of is due.
    retry_at: Mutex<Option<Instant>>,
}

/// What a step of the work came to.
struct Step {
    /// Messages that were taken in hand.
    taken: usize,
    /// How long to wait for the next step, if nothing happens before.
    wait: Duration,
}

/// How it stands with the history, as one worker sees it.
#[derive(Default)]
struct Outage {
    failures: u32,
    /// Whether the history refuses, so that asking again soon cannot help.
    refused: bool,
    not_before: Option<Instant>,
    error: Option<String>,
}

/// What one worker has in hand.
struct Tasks {
    set: JoinSet<Done>,
    /// When something was last taken in hand or done.
    moved_at: Instant,
}

impl Dispatcher {
    /// Prepares the delivery to `receivers`; with none at all, everything goes to the console. `owner` names our leases and
    /// must be unique for each start of the program.
    pub fn new(
        history: SharedHistory,
        receivers: &[ReceiverSettings],
        clock: Arc<dyn Clock>,
        owner: impl Into<String>,
    ) -> Self {
        let shared = Shared {
            history,
            clock,
            owner: owner.into(),
            http: Http::new(),
            lanes: RwLock::default(),
            wake: Notify::new(),
            direct: Arc::default(),
            unsettled: Mutex::default(),
            retry_at: Mutex::default(),
        };
        let dispatcher = Self { shared: Arc::new(shared) };
        dispatcher.set_receivers(receivers);
        dispatcher
    }

    /// Changes who can be told. What is being sent goes on as it was.
    pub fn set_receivers(&self, receivers: &[ReceiverSettings]) {
        let mut lanes = BTreeMap::new();
        for receiver in receivers {
            let lane = notifier(receiver, &self.shared.http).map(Lane::new).unwrap_or_else(|reason| {
                tracing::error!(receiver.name = receiver.name, "receiver {} is off: {reason}", receiver.name);
                Lane::broken(reason)
            });
            lanes.insert(receiver.name.clone(), Arc::new(lane));
        }
        if !lanes.contains_key(CONSOLE) {
            let console = ReceiverSettings { name: CONSOLE.to_owned(), kind: ReceiverKind::Console };
            let console = notifier(&console, &self.shared.http).expect("the console needs no settings");
            lanes.insert(CONSOLE.to_owned(), Arc::new(Lane::new(console)));
        }
        *self.shared.lanes.write().unwrap_or_else(PoisonError::into_inner) = lanes;
        self.wake();
    }

    /// Says that there is something new in the outbox.
    pub fn wake(&self) {
        self.shared.wake.notify_one();
    }

    /// Delivers alert changes without the history, straight from memory: for the news that the history itself is away.
    ///
    /// Returns at once; [`Dispatcher::run`] or [`Dispatcher::flush`] send.
    pub fn send_direct(&self, changes: &[AlertChange]) {
        let crowded_out = self.shared.direct.change(changes, self.shared.clock.now());
        for letter in crowded_out {
            self.shared.log_dead(&letter.id, &letter.receiver, &letter.notice, "too many messages wait in memory");
        }
        self.wake();
    }

    /// Delivers until `stop`; then ends what is being sent, within a few seconds.
    pub async fn run(&self, stop: CancellationToken) {
        let (mut tasks, mut outage) = (Tasks::new(), Outage::default());
        loop {
            let wait = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                step = self.shared.step(&mut tasks, &mut outage, &stop) => step.wait,
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = self.shared.wake.notified() => {}
                Some(_) = tasks.next() => {}
                () = sleep(wait) => {}
            }
            while tasks.try_next().is_some() {}
        }
        let ended = timeout(GRACE, async { while tasks.next().await.is_some() {} }).await;
        if ended.is_err() {
            tracing::warn!(
                "{} could not be ended in time; another start will send them",
                words::count(tasks.set.len() as u64, "message")
            );
        }
        tasks.set.shutdown().await;
        match self.shared.direct.len() as u64 {
            0 => {}
            left => {
                tracing::error!("{} about the history database could not be delivered", words::count(left, "message"))
            }
        }
    }

    /// Delivers what is due now and returns; for commands that do one thing and exit. What is not done `within` that time
    /// stays in the outbox.
    pub async fn flush(&self, within: Duration) -> Flushed {
        let end = Instant::now() + within;
        let stop = CancellationToken::new();
        let (mut tasks, mut outage, mut flushed) = (Tasks::new(), Outage::default(), Flushed::default());
        // What was put back untried is worth waiting for.
        let mut again_at = None;
        let mut count = |done: Option<Done>, again_at: &mut Option<Instant>| match done {
            Some(Done { outcome: MessageOutcome::Sent, .. }) => flushed.sent += 1,
            Some(Done { outcome: MessageOutcome::Dead { .. }, .. }) => flushed.dead += 1,
            Some(Done { outcome: MessageOutcome::Retry { after, .. }, tried: false, .. }) => {
                *again_at = (*again_at).max(Some(Instant::now() + after));
            }
            Some(Done { in_memory: false, .. }) | None => flushed.waiting += 1,
            Some(Done { in_memory: true, .. }) => {}
        };
        loop {
            let Ok(step) = timeout_at(end, self.shared.step(&mut tasks, &mut outage, &stop)).await else { break };
            let idle = tasks.set.is_empty() && step.taken == 0 && self.shared.direct.len() == 0;
            let again = again_at.is_some_and(|at| at > Instant::now());
            if idle && !again && (outage.failures == 0 || outage.failures > 2 || outage.refused) {
                break;
            }
            let pause = step.wait.min(Duration::from_secs(1));
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(end) => break,
                Some(done) = tasks.next() => count(done, &mut again_at),
                () = sleep(pause) => {}
            }
            while let Some(done) = tasks.try_next() {
                count(done, &mut again_at);
            }
        }
        // What waits for its turn is put back; what is being sent gets a moment more.
        stop.cancel();
        let rest = timeout(Duration::from_secs(1), async {
            while let Some(done) = tasks.next().await {
                count(done, &mut again_at);
            }
        });
        if rest.await.is_err() {
            let left = u32::try_from(tasks.set.len()).unwrap_or(u32::MAX);
            tasks.set.shutdown().await;
            flushed.waiting += left;
        }
        flushed.error = outage.error;
        flushed
    }
}

impl Tasks {
    fn new() -> Self {
        Self { set: JoinSet::new(), moved_at: Instant::now() }
    }

    fn spawn(&mut self, task: impl Future<Output = Done> + Send + 'static) {
        self.set.spawn(task);
        self.moved_at = Instant::now();
    }

    /// Waits for the next one to end; `None` if there is none. The inner `None` is one that broke off.
    async fn next(&mut self) -> Option<Option<Done>> {
        let done = self.set.join_next().await?;
        Some(self.ended(done))
    }

    fn try_next(&mut self) -> Option<Option<Done>> {
        let done = self.set.try_join_next()?;
        Some(self.ended(done))
    }

    fn ended(&mut self, done: Result<Done, JoinError>) -> Option<Done> {
        self.moved_at = Instant::now();
        done.inspect_err(|error| tracing::error!("a delivery broke off and will be tried again: {error}")).ok()
    }

    /// How many more to take in hand now.
    fn room(&self) -> usize {
        match self.set.len() {
            few if few < BATCH => BATCH - few,
            many if many < IN_HAND && self.moved_at.elapsed() >= STALLED => BATCH,
            _ => 0,
        }
    }
}

impl Shared {
    /// Takes in hand what is due.
    async fn step(self: &Arc<Self>, tasks: &mut Tasks, outage: &mut Outage, stop: &CancellationToken) -> Step {
        let mut taken = 0;
        for letter in self.direct.take_due(Instant::now(), IN_HAND) {
            tasks.spawn(Arc::clone(self).carry_letter(letter, stop.clone()));
            taken += 1;
        }
        let mut wait = POLL.mul_f64(0.8 + 0.4 * fastrand::f64());
        while let room @ 1.. = tasks.room()
            && outage.left().is_none()
        {
            self.retry_at.lock().unwrap_or_else(PoisonError::into_inner).take_if(|at| *at <= Instant::now());
            let leased_at = Instant::now();
            let leased = timeout(HISTORY_TIMEOUT, self.history.lease_messages(&self.owner, room as u32, LEASE)).await;
            let messages = match leased {
                Ok(Ok(messages)) => messages,
                Ok(Err(error)) => {
                    outage.note(&error.to_string(), error.is_transient());
                    break;
                }
                Err(_) => {
                    let silence = format!("no answer within {}", words::span(HISTORY_TIMEOUT));
                    outage.note(&format!("{}: {silence}", self.history.describe()), true);
                    break;
                }
            };
            outage.over();
            taken += messages.len();
            let full = messages.len() >= room;
            for message in messages {
                tasks.spawn(Arc::clone(self).carry(message, leased_at, stop.clone()));
            }
            if !full {
                break;
            }
        }
        if tasks.set.len() >= BATCH {
            wait = STALLED;
        }
        let now = Instant::now();
        let retry_at = *self.retry_at.lock().unwrap_or_else(PoisonError::into_inner);
        // A moment more, so that the database's clock has certainly got there.
        let retry = retry_at.map(|at| at.saturating_duration_since(now) + Duration::from_millis(50));
        let outbox = outage.left().unwrap_or_else(|| retry.map_or(wait, |retry| retry.min(wait)));
        let memory = self.direct.next_due().map(|at| at.saturating_duration_since(now));
        Step { taken, wait: memory.map_or(outbox, |memory| memory.min(outbox)) }
    }
}

impl Outage {
    /// How long to leave the history alone, if at all.
    fn left(&self) -> Option<Duration> {
        self.not_before.map(|at| at.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero())
    }

    fn note(&mut self, error: &str, transient: bool) {
        self.failures = self.failures.saturating_add(1);
        self.refused = !transient;
        let wait = match transient {
            true => Duration::from_secs(1 << (self.failures - 1).min(6)).min(MAX_OUTAGE_WAIT),
            false => MAX_OUTAGE_WAIT,
        };
        self.not_before = Some(Instant::now() + wait.mul_f64(0.8 + 0.2 * fastrand::f64()));
        if self.failures == 1 {
            tracing::warn!("messages wait in the outbox, which cannot be read: {error}");
        }
        self.error = Some(error.to_owned());
    }

    fn over(&mut self) {
        if self.failures > 0 {
            tracing::info!("the outbox can be read again");
        }
        *self = Self::default();
    }
}
