//! From the outbox to the receiver: at least once, in order, patiently, and nobody waiting for anybody else.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use lamplighter::alerts::{Dispatcher, Flushed, Outage, ReceiverSettings, database_away};
use lamplighter::clock::{Clock as _, SystemClock};
use lamplighter::history::AlertState::{Firing, Resolved};
use lamplighter::history::MessageState::{Dead, Leased, Queued, Sent, Superseded};
use lamplighter::history::{History, PostgresHistory, SharedHistory};
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::super::support::http_sink::{Answer, HttpSink};
use super::super::support::postgres::PostgresServer;
use super::{Log, Outbox, slack, told, webhook};

const SOON: Duration = Duration::from_secs(20);

/// A dispatcher at work. Dropped, it dies as a killed process does: in the middle of what it was doing.
struct Worker {
    dispatcher: Dispatcher,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Worker {
    fn start(outbox: &Outbox, owner: &str, receivers: &[ReceiverSettings]) -> Self {
        let dispatcher = Dispatcher::new(outbox.history.clone(), receivers, outbox.clock.clone(), owner);
        Self::run(dispatcher)
    }

    fn run(dispatcher: Dispatcher) -> Self {
        let (stop, runs) = (CancellationToken::new(), dispatcher.clone());
        let token = stop.clone();
        let task = tokio::spawn(async move { runs.run(token).await });
        Self { dispatcher, stop, task }
    }

    /// Asks it to stop; returns how long that took.
    async fn stop(mut self) -> Duration {
        let asked = Instant::now();
        self.stop.cancel();
        tokio::time::timeout(SOON, &mut self.task).await.expect("it stops").expect("it does not panic");
        asked.elapsed()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn flushed(sent: u32, waiting: u32, dead: u32) -> Flushed {
    Flushed { sent, waiting, dead, error: None }
}

#[tokio::test]
async fn a_failure_and_its_recovery_each_send_one_message_to_each_receiver() {
    let (outbox, ops, chat) = (Outbox::new().await, HttpSink::start().await, HttpSink::start().await);
    let worker = Worker::start(&outbox, "a", &[webhook("ops", &ops.url("/")), slack("slack", &chat.url("/"))]);
    for state in [Firing, Firing, Resolved, Resolved] {
        outbox.change(state, "nightly", &["ops", "slack"]).await;
        worker.dispatcher.wake();
        let so_far = if state == Firing { 2 } else { 4 };
        outbox.wait_for(&[Sent; 4][..so_far]).await;
    }
    assert_eq!(told(&ops), ["nightly firing", "nightly resolved"]);
    assert_eq!(chat.got().len(), 2);
    assert!(worker.stop().await < Duration::from_secs(1));
}

#[tokio::test]
async fn a_worker_that_dies_while_sending_leaves_the_message_to_the_next_one_under_the_same_id() {
    let (outbox, ops) = (Outbox::new().await, HttpSink::start().await);
    let receivers = [webhook("ops", &ops.url("/"))];
    ops.answer_once(Answer::new(200, "").after(Duration::from_secs(60)));
    outbox.change(Firing, "nightly", &["ops"]).await;
    let first = Worker::start(&outbox, "a", &receivers);
    ops.wait_for(1).await;
    drop(first);

    // Its lease still holds: nobody else may send the message yet.
    let second = Worker::start(&outbox, "b", &receivers);
    assert_eq!(second.dispatcher.flush(Duration::from_secs(5)).await, flushed(0, 0, 0));
    outbox.wait_for(&[Leased]).await;
    outbox.clock.advance(Duration::from_secs(61));
    second.dispatcher.wake();
    let messages = outbox.wait_for(&[Sent]).await;
    let got = ops.got();
    assert_eq!(got.len(), 2);
    assert_eq!(got[0].header("webhook-id"), got[1].header("webhook-id"));
    assert_eq!(got[1].header("webhook-id"), format!("msg_{}", messages[0].id));
    assert_ne!(got[0].header("webhook-timestamp"), got[1].header("webhook-timestamp"));
}

#[tokio::test]
async fn a_slow_slack_does_not_delay_the_webhook() {
    let (outbox, ops, chat) = (Outbox::new().await, HttpSink::start().await, HttpSink::start().await);
    chat.answer(Answer::new(200, "ok").after(Duration::from_secs(60)));
    // More messages than one lease takes, Slack's first.
    for i in 0..60 {
        outbox.change(Firing, &format!("job-{i}"), &["slack"]).await;
    }
    outbox.change(Firing, "nightly", &["ops"]).await;
    let started = Instant::now();
    let _worker = Worker::start(&outbox, "a", &[webhook("ops", &ops.url("/")), slack("slack", &chat.url("/"))]);
    ops.wait_for(1).await;
    assert!(started.elapsed() < Duration::from_secs(4), "the webhook waited {:?} for Slack", started.elapsed());
}

#[tokio::test]
async fn messages_about_one_alert_arrive_in_order_even_if_the_first_needs_several_tries() {
    let (outbox, ops) = (Outbox::new().await, HttpSink::start().await);
    let dispatcher =
        Dispatcher::new(outbox.history.clone(), &[webhook("ops", &ops.url("/"))], outbox.clock.clone(), "a");
    outbox.change(Firing, "nightly", &["ops"]).await;
    outbox.change(Firing, "hourly", &["ops"]).await;
    // The first one is under way when the alert is resolved, so that it cannot be merged.
    ops.answer(Answer::new(500, ""));
    ops.answer_once(Answer::new(200, "").after(Duration::from_millis(300)));
    let flush = tokio::spawn({
        let dispatcher = dispatcher.clone();
        async move { dispatcher.flush(SOON).await }
    });
    ops.wait_for(1).await;
    outbox.change(Resolved, "nightly", &["ops"]).await;
    outbox.change(Resolved, "hourly", &["ops"]).await;
    flush.await.unwrap();
    ops.answer(Answer::new(200, ""));
    for _ in 0..4 {
        outbox.clock.advance(Duration::from_secs(30));
        dispatcher.flush(SOON).await;
    }
    let of = |job: &str| told(&ops).into_iter().filter(|told| told.starts_with(job)).collect::<Vec<_>>();
    for job in ["nightly", "hourly"] {
        let told = of(job);
        assert!(
            told.is_sorted() && told[0].ends_with("firing") && told.last().unwrap().ends_with("resolved"),
            "{told:?}"
        );
    }
}

#[tokio::test]
async fn a_pair_that_could_not_be_delivered_in_time_arrives_as_one_message_that_says_both_times() {
    let (outbox, chat, ops) = (Outbox::new().await, HttpSink::start().await, HttpSink::start().await);
    let receivers = [slack("slack", &chat.url("/")), webhook("ops", &ops.url("/"))];
    let dispatcher = Dispatcher::new(outbox.history.clone(), &receivers, outbox.clock.clone(), "a");
    for sink in [&chat, &ops] {
        sink.answer_once(Answer::new(503, "down for a moment"));
    }
    outbox.change(Firing, "nightly", &["ops", "slack"]).await;
    assert_eq!(dispatcher.flush(SOON).await, flushed(0, 2, 0));
    outbox.clock.advance(Duration::from_secs(7 * 60));
    outbox.change(Resolved, "nightly", &["ops", "slack"]).await;
    outbox.wait_for(&[Superseded, Superseded, Queued, Queued]).await;
    outbox.clock.advance(Duration::from_secs(12 * 60));
    assert_eq!(dispatcher.flush(SOON).await, flushed(2, 0, 0));
    let timing = ops.got()[1].json()["alerts"][0]["annotations"]["timing"].clone();
    assert_eq!(timing, "fired 10:02, resolved 10:09 UTC, delivery delayed 12 m");
    let text = chat.got()[1].json().to_string();
    assert!(text.contains("2026-01-05 10:02 UTC") && text.contains("2026-01-05 10:09 UTC"), "{text}");
    assert!(text.contains("delivery delayed 12 m"), "{text}");
}

#[tokio::test]
async fn retry_after_is_honoured_for_the_whole_receiver() {
    let (outbox, chat) = (Outbox::new().await, HttpSink::start().await);
    let receivers = [slack("slack", &chat.url("/"))];
    let dispatcher = Dispatcher::new(outbox.history.clone(), &receivers, outbox.clock.clone(), "a");
    chat.answer_once(Answer::new(429, "rate_limited").header("Retry-After", "40"));
    outbox.change(Firing, "first", &["slack"]).await;
    assert_eq!(dispatcher.flush(SOON).await, flushed(0, 1, 0));
    let message = outbox.wait_for(&[Queued]).await.remove(0);
    let wait = (message.next_at - outbox.clock.now()).num_milliseconds();
    assert!((40_000..41_000).contains(&wait), "it will be tried again in {wait} ms");
    assert_eq!(message.last_error.as_deref(), Some("Slack answered 429: rate_limited"));
    // Another message must not knock meanwhile; it is put back for as long.
    outbox.clock.advance(Duration::from_secs(1));
    outbox.change(Firing, "second", &["slack"]).await;
    dispatcher.flush(Duration::from_millis(500)).await;
    let second = outbox.wait_for(&[Queued, Queued]).await.remove(1);
    assert!((second.next_at - outbox.clock.now()).num_seconds() >= 38, "{second:?}");
    assert_eq!(chat.got().len(), 1);
}

#[tokio::test]
async fn a_message_that_failed_is_tried_again_by_itself() {
    let (outbox, ops) = (Outbox::new().await, HttpSink::start().await);
    ops.answer_once(Answer::new(503, ""));
    ops.answer_once(Answer::hang_up());
    let worker = Worker::start(&outbox, "a", &[webhook("ops", &ops.url("/"))]);
    outbox.change(Firing, "nightly", &["ops"]).await;
    worker.dispatcher.wake();
    for tries in 1..3 {
        ops.wait_for(tries).await;
        outbox.wait_for(&[Queued]).await;
        outbox.clock.advance(Duration::from_secs(7));
        worker.dispatcher.wake();
    }
    let message = outbox.wait_for(&[Sent]).await.remove(0);
    assert_eq!((message.attempts, ops.got().len()), (3, 3));
    assert_eq!(
        ops.got()
            .iter()
            .map(|got| got.header("webhook-id").to_owned())
            .collect::<std::collections::BTreeSet<_>>()
            .len(),
        1
    );
}

#[tokio::test]
async fn what_cannot_be_delivered_is_dead_with_its_reason_and_logged_once() {
    let log = Log::default();
    let _guard = log.keep();
    let (outbox, chat, ops) = (Outbox::new().await, HttpSink::start().await, HttpSink::start().await);
    chat.answer(Answer::new(404, "no_service"));
    let receivers = [slack("slack", &chat.url("/services/T00000000/s3cr3tT0k3n")), webhook("ops", &ops.url("/"))];
    let dispatcher = Dispatcher::new(outbox.history.clone(), &receivers, outbox.clock.clone(), "a");
    outbox.change(Firing, "nightly", &["slack", "sms"]).await;
    assert_eq!(dispatcher.flush(SOON).await, flushed(0, 0, 2));
    assert_eq!(dispatcher.flush(SOON).await, flushed(0, 0, 0));
    let mut dead = outbox.wait_for(&[Dead, Dead]).await;
    dead.sort_by(|a, b| a.receiver.cmp(&b.receiver));
    let error = dead[0].last_error.clone().unwrap();
    assert_eq!(error, "Slack answered 404: no_service; make a new incoming webhook in Slack and put it into its url");
    let unknown = dead[1].last_error.clone().unwrap();
    assert_eq!(unknown, "no receiver \"sms\" is set up: it is not in jobs.toml, or its url is unset");
    for (receiver, reason) in [("slack", error), ("sms", unknown)] {
        let lines = log.lines(&reason.replace('"', "\\\""));
        let lines = if lines.is_empty() { log.lines(&reason) } else { lines };
        assert_eq!(lines.len(), 1, "{}", log.text());
        assert!(
            lines[0].contains("ERROR") && lines[0].contains(&format!("receiver {receiver} was not told")),
            "{lines:?}"
        );
    }
    assert!(!log.text().contains("s3cr3tT0k3n"), "{}", log.text());
}

#[tokio::test]
async fn a_receiver_that_is_gone_is_not_asked_again() {
    let (outbox, ops) = (Outbox::new().await, HttpSink::start().await);
    ops.answer(Answer::new(410, ""));
    let dispatcher =
        Dispatcher::new(outbox.history.clone(), &[webhook("ops", &ops.url("/"))], outbox.clock.clone(), "a");
    outbox.change(Firing, "first", &["ops"]).await;
    dispatcher.flush(SOON).await;
    outbox.clock.advance(Duration::from_secs(1));
    outbox.change(Firing, "second", &["ops"]).await;
    dispatcher.flush(SOON).await;
    let dead = outbox.wait_for(&[Dead, Dead]).await;
    assert_eq!(ops.got().len(), 1);
    assert!(dead[1].last_error.as_deref().unwrap().starts_with("the receiver is off: answered 410"));
}

#[tokio::test]
async fn without_receivers_everything_goes_to_the_console() {
    let log = Log::default();
    let _guard = log.keep();
    let outbox = Outbox::new().await;
    let dispatcher = Dispatcher::new(outbox.history.clone(), &[], outbox.clock.clone(), "a");
    outbox.change(Firing, "nightly", &["console", "slack"]).await;
    assert_eq!(dispatcher.flush(SOON).await, flushed(2, 0, 0));
    assert_eq!(log.lines("FIRING [critical] job_failed: nightly is firing").len(), 2, "{}", log.text());
}

#[tokio::test]
async fn no_log_line_contains_a_secret() {
    let log = Log::default();
    let _guard = log.keep();
    let (outbox, sink) = (Outbox::new().await, HttpSink::start().await);
    let url = sink.url("/services/T00000000/s3cr3tT0k3n");
    let receivers = [slack("slack", &url), webhook("ops", &url), webhook("away", "http://nobody.invalid/s3cr3tT0k3n")];
    let dispatcher = Dispatcher::new(outbox.history.clone(), &receivers, outbox.clock.clone(), "a");
    let echo = format!("no such hook: {url} s3cr3tT0k3n");
    for (i, answer) in [Answer::new(503, &echo), Answer::new(400, &echo), Answer::new(404, &echo), Answer::hang_up()]
        .into_iter()
        .enumerate()
    {
        sink.answer(answer);
        outbox.change(Firing, &format!("job-{i}"), &["slack", "ops", "away"]).await;
        dispatcher.flush(SOON).await;
        outbox.clock.advance(Duration::from_secs(30));
    }
    let rows = format!("{:?}", outbox.messages().await);
    assert!(log.text().contains("no such hook"), "{}", log.text());
    for secret in ["s3cr3tT0k3n", "open-sesame", "whsec_", "MfKQ9r8G", "T00000000"] {
        assert!(!rows.contains(secret), "{secret} is in a row");
        assert!(!log.text().contains(secret), "{secret} is in the log: {:#?}", log.lines(secret));
    }
}

#[tokio::test]
async fn a_worker_that_is_stopped_ends_what_it_is_sending_and_puts_the_rest_back() {
    let (outbox, chat) = (Outbox::new().await, HttpSink::start().await);
    chat.answer(Answer::new(200, "ok").after(Duration::from_secs(1)));
    for i in 0..6 {
        outbox.change(Firing, &format!("job-{i}"), &["slack"]).await;
    }
    let worker = Worker::start(&outbox, "a", &[slack("slack", &chat.url("/"))]);
    chat.wait_for(2).await;
    let took = worker.stop().await;
    assert!(took < Duration::from_secs(4), "it took {took:?} to stop");
    // Two at once: these were being sent and are done; the others can be had by another replica at once.
    let mut states: Vec<_> = outbox.messages().await.iter().map(|message| message.state).collect();
    states.sort();
    assert_eq!(states, [Queued, Queued, Queued, Queued, Sent, Sent]);
    chat.answer(Answer::new(200, "ok"));
    let next = Dispatcher::new(outbox.history.clone(), &[slack("slack", &chat.url("/"))], outbox.clock.clone(), "b");
    assert_eq!(next.flush(SOON).await, flushed(4, 0, 0));
}

#[tokio::test]
async fn a_worker_that_is_stopped_does_not_wait_for_a_receiver_that_hangs() {
    let (outbox, ops) = (Outbox::new().await, HttpSink::start().await);
    ops.answer(Answer::new(200, "").after(Duration::from_secs(60)));
    outbox.change(Firing, "nightly", &["ops"]).await;
    let worker = Worker::start(&outbox, "a", &[webhook("ops", &ops.url("/"))]);
    ops.wait_for(1).await;
    let took = worker.stop().await;
    assert!(took < Duration::from_secs(6), "it took {took:?} to stop");
}

#[tokio::test]
async fn a_flush_keeps_its_time_limit() {
    let (outbox, ops) = (Outbox::new().await, HttpSink::start().await);
    ops.answer(Answer::new(200, "").after(Duration::from_secs(60)));
    outbox.change(Firing, "nightly", &["ops"]).await;
    let dispatcher =
        Dispatcher::new(outbox.history.clone(), &[webhook("ops", &ops.url("/"))], outbox.clock.clone(), "a");
    let started = Instant::now();
    assert_eq!(dispatcher.flush(Duration::from_millis(500)).await, flushed(0, 1, 0));
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

#[tokio::test]
async fn slack_gets_three_messages_at_once_and_then_one_a_second() {
    let (outbox, chat) = (Outbox::new().await, HttpSink::start().await);
    for i in 0..5 {
        outbox.change(Firing, &format!("job-{i}"), &["slack"]).await;
    }
    let _worker = Worker::start(&outbox, "a", &[slack("slack", &chat.url("/"))]);
    outbox.wait_for(&[Sent; 5]).await;
    let since_first: Vec<Duration> = chat.got().iter().map(|got| got.at - chat.got()[0].at).collect();
    // The bucket starts to fill again with the first message, so the fourth goes after one second, the fifth after two.
    assert!(since_first[3] > Duration::from_millis(700), "{since_first:?}");
    assert!(since_first[4] > Duration::from_millis(1700), "{since_first:?}");
    assert_eq!(chat.got().len(), 5);
}

#[tokio::test]
async fn two_workers_on_one_outbox_send_each_message_once() {
    let (outbox, ops) = (Outbox::new().await, HttpSink::start().await);
    let receivers = [webhook("ops", &ops.url("/"))];
    for i in 0..100 {
        outbox.change(Firing, &format!("job-{i}"), &["ops"]).await;
    }
    let workers = [Worker::start(&outbox, "a", &receivers), Worker::start(&outbox, "b", &receivers)];
    outbox.wait_for(&[Sent; 100]).await;
    assert_eq!(ops.got().len(), 100);
    for worker in workers {
        worker.stop().await;
    }
}

/// A history database that is away: its port accepts and hangs up. Counts who knocks.
async fn absent_database() -> (SharedHistory, Arc<std::sync::atomic::AtomicUsize>, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://lamplighter@{}/lamplighter", listener.local_addr().unwrap());
    let knocks = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = knocks.clone();
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            drop(stream);
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    });
    let history = PostgresHistory::connect(&SecretString::from(url)).unwrap();
    (Arc::new(history) as Arc<dyn History>, knocks, task)
}

#[tokio::test]
async fn news_of_an_absent_history_arrives_without_it_and_is_tried_again() {
    let (outbox, ops) = (Outbox::new().await, HttpSink::start().await);
    let (history, knocks, database) = absent_database().await;
    let log = Log::default();
    let _guard = log.keep();
    let dispatcher = Dispatcher::new(history.clone(), &[webhook("ops", &ops.url("/"))], outbox.clock.clone(), "a");
    let worker = Worker::run(dispatcher);
    ops.answer_once(Answer::new(503, ""));
    let (since, told) = (outbox.clock.now(), ["ops".to_owned()]);
    let reason = history.ping().await.unwrap_err().to_string();
    let outage = Outage { database: history.describe(), since, reason, back: false, at: since };
    worker.dispatcher.send_direct(&database_away(&told, &outage));
    // Said twice, told once.
    worker.dispatcher.send_direct(&database_away(&told, &outage));
    let got = ops.wait_for(2).await;
    assert_eq!(got[0].header("webhook-id"), got[1].header("webhook-id"));
    assert_eq!(got[1].json()["groupLabels"]["alertname"], "database_away");

    outbox.clock.advance(Duration::from_secs(7 * 60));
    let back = Outage { back: true, at: outbox.clock.now(), ..outage };
    worker.dispatcher.send_direct(&database_away(&told, &back));
    let got = ops.wait_for(3).await;
    assert_eq!(got[2].json()["alerts"][0]["annotations"]["timing"], "fired 10:02, resolved 10:09 UTC");

    // Waking it does not make it knock faster.
    for _ in 0..200 {
        worker.dispatcher.wake();
        tokio::task::yield_now().await;
    }
    let knocks = knocks.load(std::sync::atomic::Ordering::Relaxed);
    assert!(knocks < 20, "{knocks} connections to a database that is away");
    assert_eq!(log.lines("messages wait in the outbox").len(), 1, "{}", log.text());
    assert!(worker.stop().await < Duration::from_secs(6));
    database.abort();
}

#[tokio::test]
async fn a_database_that_stops_while_a_message_is_sent_does_not_make_it_come_twice() {
    let server = PostgresServer::start().await;
    let database = server.database().await;
    let history: SharedHistory = Arc::new(PostgresHistory::connect(&SecretString::from(database.url.clone())).unwrap());
    let (outbox, ops) = (Outbox::new().await, HttpSink::start().await);
    let gate = watch::Sender::new(false);
    ops.answer_once(Answer::new(200, "").behind(&gate));
    history.change_alerts(&[outbox.wish(Firing, "nightly", &["ops"])]).await.unwrap();
    let worker =
        Worker::run(Dispatcher::new(history.clone(), &[webhook("ops", &ops.url("/"))], Arc::new(SystemClock), "a"));
    ops.wait_for(1).await;
    server.stop().await;
    // The answer comes while nobody can note it.
    gate.send_replace(true);
    ops.wait_for_answers(1).await;
    server.start_again().await;
    history.change_alerts(&[outbox.wish(Firing, "hourly", &["ops"])]).await.unwrap();
    worker.dispatcher.wake();
    let mut states = Vec::new();
    let noted = tokio::time::timeout(SOON, async {
        while states != [Sent, Sent] {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let messages = history.messages(10).await.unwrap();
            states = messages.iter().map(|message| message.state).collect();
        }
    });
    assert!(noted.await.is_ok(), "the messages are {states:?}");
    assert_eq!(told(&ops), ["nightly firing", "hourly firing"]);
    assert!(worker.stop().await < Duration::from_secs(6));
}

#[tokio::test]
async fn a_flush_without_a_history_says_so_and_still_tells_what_is_in_memory() {
    let (outbox, ops) = (Outbox::new().await, HttpSink::start().await);
    let (history, _, database) = absent_database().await;
    let dispatcher = Dispatcher::new(history, &[webhook("ops", &ops.url("/"))], outbox.clock.clone(), "a");
    dispatcher.send_direct(&[outbox.wish(Firing, "nightly", &["ops"])]);
    let done = dispatcher.flush(SOON).await;
    assert_eq!((done.sent, told(&ops)), (1, vec!["nightly firing".to_owned()]));
    assert!(done.error.as_deref().is_some_and(|error| error.contains("the history database Postgres")), "{done:?}");
    database.abort();
}
