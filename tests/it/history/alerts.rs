//! Alerts and the outbox.

use std::collections::HashSet;
use std::time::Duration;

use lamplighter::history::AlertState::{Firing, Resolved};
use lamplighter::history::MessageState::{Dead, Leased, Queued, Sent, Superseded};
use lamplighter::history::{Alert, AlertChange, Message, MessageOutcome, MessageState, Severity};

use super::{Bench, LEASE, at, at_once, change, on_both};

on_both![
    an_alert_that_fires_queues_one_message_for_each_receiver,
    only_a_transition_does_something,
    an_alert_that_resolves_and_fires_again_begins_anew,
    changes_of_one_call_follow_their_order,
    replicas_that_wish_the_same_queue_one_message,
    alerts_are_listed_firing_first,
    a_leased_message_is_given_to_nobody_else,
    eight_senders_share_the_messages,
    an_ended_message_lease_is_given_out_again,
    a_failed_message_waits_and_is_tried_again,
    a_dead_message_is_not_tried_again,
    messages_about_one_alert_keep_their_order,
    a_firing_message_that_never_left_is_merged_into_the_resolved_one,
    a_firing_message_that_is_being_sent_is_not_merged,
    a_firing_message_that_fails_after_its_alert_resolved_is_merged,
    a_merged_message_is_merged_for_its_receiver_only,
    text_that_a_database_might_refuse_is_kept,
];

async fn fire(bench: &Bench, job: &str) {
    bench.history.change_alerts(&[change(job, Firing)]).await.unwrap();
}

async fn resolve(bench: &Bench, job: &str) {
    bench.history.change_alerts(&[change(job, Resolved)]).await.unwrap();
}

async fn lease(bench: &Bench) -> Vec<Message> {
    bench.history.lease_messages("sender-1", 100, LEASE).await.unwrap()
}

async fn settle(bench: &Bench, message: &Message, outcome: MessageOutcome) {
    assert!(bench.history.settle_message(&message.id, "sender-1", &outcome).await.unwrap());
}

fn retry(seconds: u64) -> MessageOutcome {
    MessageOutcome::Retry { after: Duration::from_secs(seconds), error: "503".to_owned() }
}

/// Sequence number and state of every message, oldest first.
async fn states(bench: &Bench) -> Vec<(u32, MessageState)> {
    let mut messages = bench.history.messages(100).await.unwrap();
    messages.sort_by_key(|message| (message.seq, message.receiver.clone()));
    messages.into_iter().map(|message| (message.seq, message.state)).collect()
}

async fn an_alert_that_fires_queues_one_message_for_each_receiver(bench: Bench) {
    let receivers = ["slack", "ops", "slack"].map(str::to_owned).to_vec();
    let wish = AlertChange { receivers, ..change("upload", Firing) };
    bench.history.change_alerts(std::slice::from_ref(&wish)).await.unwrap();
    let alert = Alert {
        fingerprint: wish.fingerprint.clone(),
        name: wish.name.clone(),
        labels: wish.labels.clone(),
        severity: Severity::Critical,
        state: Firing,
        summary: wish.summary.clone(),
        starts_at: wish.at,
        ends_at: None,
        seq: 1,
    };
    assert_eq!(bench.history.alerts(10).await.unwrap(), [alert]);
    let mut messages = bench.history.messages(10).await.unwrap();
    messages.sort_by(|a, b| a.receiver.cmp(&b.receiver));
    let told: Vec<_> = messages.iter().map(|message| message.receiver.as_str()).collect();
    assert_eq!(told, ["ops", "slack"]);
    for message in messages {
        assert_eq!((message.state, message.attempts, message.seq), (Queued, 0, 1));
        assert_eq!((message.next_at, message.last_error), (message.created_at, None));
        assert_eq!(message.notice.details, wish.details);
        assert_eq!((message.notice.state, message.notice.starts_at, message.notice.ends_at), (Firing, wish.at, None));
        assert_eq!(message.notice.labels, wish.labels);
    }
}

async fn only_a_transition_does_something(bench: Bench) {
    resolve(&bench, "upload").await;
    assert_eq!(bench.history.alerts(10).await.unwrap(), [], "nobody hears of an alert that never fired");
    fire(&bench, "upload").await;
    let changed = AlertChange { summary: "again".to_owned(), ..change("upload", Firing) };
    bench.history.change_alerts(&[changed]).await.unwrap();
    resolve(&bench, "upload").await;
    let settled = bench.history.alerts(10).await.unwrap();
    resolve(&bench, "upload").await;
    assert_eq!(bench.history.alerts(10).await.unwrap(), settled);
    assert_eq!(states(&bench).await.len(), 2);
}

async fn an_alert_that_resolves_and_fires_again_begins_anew(bench: Bench) {
    fire(&bench, "upload").await;
    resolve(&bench, "upload").await;
    let alert = bench.history.alerts(10).await.unwrap().remove(0);
    assert_eq!((alert.state, alert.seq, alert.ends_at), (Resolved, 2, Some(at("2025-11-27T02:09:00Z"))));
    let again = AlertChange { at: at("2025-11-27T03:00:00Z"), ..change("upload", Firing) };
    bench.history.change_alerts(&[again]).await.unwrap();
    let alert = bench.history.alerts(10).await.unwrap().remove(0);
    assert_eq!((alert.state, alert.seq, alert.ends_at), (Firing, 3, None));
    assert_eq!(alert.starts_at, at("2025-11-27T03:00:00Z"));
}

async fn changes_of_one_call_follow_their_order(bench: Bench) {
    let wishes = [change("upload", Firing), change("check", Firing), change("upload", Resolved)];
    bench.history.change_alerts(&wishes).await.unwrap();
    let alerts = bench.history.alerts(10).await.unwrap();
    let found: Vec<_> = alerts.iter().map(|alert| (alert.labels["job"].as_str(), alert.state, alert.seq)).collect();
    assert_eq!(found, [("check", Firing, 1), ("upload", Resolved, 2)]);
}

async fn replicas_that_wish_the_same_queue_one_message(bench: Bench) {
    at_once(&bench, 8, |history, replica| async move {
        let mut wishes: Vec<_> = (0..20).map(|i| change(&format!("job-{i}"), Firing)).collect();
        wishes.rotate_left(replica * 2);
        history.change_alerts(&wishes).await.unwrap();
    })
    .await;
    assert_eq!(bench.history.messages(1_000).await.unwrap().len(), 20);
}

async fn alerts_are_listed_firing_first(bench: Bench) {
    for (job, hour) in [("a", 1), ("b", 2), ("c", 3), ("d", 4)] {
        let at = at(&format!("2025-11-27T0{hour}:00:00Z"));
        bench.history.change_alerts(&[AlertChange { at, ..change(job, Firing) }]).await.unwrap();
    }
    resolve(&bench, "b").await;
    resolve(&bench, "d").await;
    let jobs = async |limit| -> Vec<String> {
        let alerts = bench.history.alerts(limit).await.unwrap();
        alerts.into_iter().map(|alert| alert.labels["job"].clone()).collect()
    };
    assert_eq!(jobs(10).await, ["c", "a", "d", "b"]);
    assert_eq!(jobs(3).await, ["c", "a", "d"]);
}

async fn a_leased_message_is_given_to_nobody_else(bench: Bench) {
    fire(&bench, "upload").await;
    let mine = lease(&bench).await.remove(0);
    assert_eq!((mine.state, mine.attempts), (Leased, 1));
    assert!(bench.replica().lease_messages("sender-2", 100, LEASE).await.unwrap().is_empty());
    assert!(!bench.replica().settle_message(&mine.id, "sender-2", &MessageOutcome::Sent).await.unwrap());
    settle(&bench, &mine, MessageOutcome::Sent).await;
    assert!(!bench.history.settle_message(&mine.id, "sender-1", &retry(1)).await.unwrap(), "it is settled");
    bench.pass(LEASE * 2).await;
    assert!(lease(&bench).await.is_empty());
    assert_eq!(states(&bench).await, [(1, Sent)]);
}

async fn eight_senders_share_the_messages(bench: Bench) {
    let wishes: Vec<_> = (0..100).map(|i| change(&format!("job-{i}"), Firing)).collect();
    bench.history.change_alerts(&wishes).await.unwrap();
    let taken = at_once(&bench, 8, |history, sender| async move {
        let mut taken = Vec::new();
        loop {
            let messages = history.lease_messages(&format!("sender-{sender}"), 5, LEASE).await.unwrap();
            assert!(messages.len() <= 5);
            if messages.is_empty() {
                return taken;
            }
            taken.extend(messages.into_iter().map(|message| message.id));
        }
    })
    .await;
    let ids: Vec<String> = taken.into_iter().flatten().collect();
    assert_eq!(ids.len(), ids.iter().collect::<HashSet<_>>().len(), "no message went to two senders");
    // A sender may step over what another is just taking; nothing is left behind for the next round.
    let rest = bench.history.lease_messages("sender-9", 1_000, LEASE).await.unwrap();
    assert_eq!(ids.len() + rest.len(), 100);
}

async fn an_ended_message_lease_is_given_out_again(bench: Bench) {
    fire(&bench, "upload").await;
    let first = lease(&bench).await.remove(0);
    bench.pass(LEASE / 2).await;
    assert!(lease(&bench).await.is_empty());
    bench.pass(LEASE).await;
    let again = bench.history.lease_messages("sender-2", 100, LEASE).await.unwrap().remove(0);
    assert_eq!((&again.id, again.attempts), (&first.id, 2), "the same id, so that a receiver can tell");
    assert!(!bench.history.settle_message(&first.id, "sender-1", &MessageOutcome::Sent).await.unwrap());
    assert!(bench.history.settle_message(&again.id, "sender-2", &MessageOutcome::Sent).await.unwrap());
}

async fn a_failed_message_waits_and_is_tried_again(bench: Bench) {
    fire(&bench, "upload").await;
    let message = lease(&bench).await.remove(0);
    settle(&bench, &message, retry(60)).await;
    bench.pass(Duration::from_secs(59)).await;
    assert!(lease(&bench).await.is_empty());
    bench.pass(Duration::from_secs(2)).await;
    let again = lease(&bench).await.remove(0);
    assert_eq!((again.id.as_str(), again.attempts, again.last_error.as_deref()), (&*message.id, 2, Some("503")));
    settle(&bench, &again, MessageOutcome::Sent).await;
    let sent = bench.history.messages(10).await.unwrap().remove(0);
    assert_eq!((sent.state, sent.attempts, sent.last_error), (Sent, 2, None));
    let forever = MessageOutcome::Retry { after: Duration::MAX, error: String::new() };
    fire(&bench, "other").await;
    let other = lease(&bench).await.remove(0);
    settle(&bench, &other, forever).await;
}

async fn a_dead_message_is_not_tried_again(bench: Bench) {
    fire(&bench, "upload").await;
    let message = lease(&bench).await.remove(0);
    settle(&bench, &message, MessageOutcome::Dead { error: "404 no_service".to_owned() }).await;
    bench.pass(LEASE * 100).await;
    assert!(lease(&bench).await.is_empty());
    let dead = bench.history.messages(10).await.unwrap().remove(0);
    assert_eq!((dead.state, dead.last_error.as_deref()), (Dead, Some("404 no_service")));
    resolve(&bench, "upload").await;
    assert_eq!(lease(&bench).await.len(), 1, "what comes after it is not held up");
}

async fn messages_about_one_alert_keep_their_order(bench: Bench) {
    fire(&bench, "upload").await;
    let first = lease(&bench).await.remove(0);
    resolve(&bench, "upload").await;
    fire(&bench, "upload").await;
    fire(&bench, "check").await;
    let others: Vec<_> = lease(&bench).await.into_iter().map(|message| message.fingerprint).collect();
    assert_eq!(others, ["job_failed/check"], "the alert's next messages wait for the first");
    settle(&bench, &first, MessageOutcome::Sent).await;
    for seq in [2, 3] {
        let next = lease(&bench).await;
        assert_eq!(next.iter().map(|message| message.seq).collect::<Vec<_>>(), [seq]);
        settle(&bench, &next[0], MessageOutcome::Sent).await;
    }
    assert!(lease(&bench).await.is_empty());
}

async fn a_firing_message_that_never_left_is_merged_into_the_resolved_one(bench: Bench) {
    fire(&bench, "upload").await;
    let failing = lease(&bench).await.remove(0);
    settle(&bench, &failing, retry(600)).await;
    resolve(&bench, "upload").await;
    assert_eq!(states(&bench).await, [(1, Superseded), (2, Queued)]);
    let message = lease(&bench).await.remove(0);
    assert_eq!((message.notice.state, message.notice.seq), (Resolved, 2));
    assert_eq!(message.notice.starts_at, at("2025-11-27T02:00:02Z"), "it still says when it began");
    assert_eq!(message.notice.ends_at, Some(at("2025-11-27T02:09:00Z")));
}

async fn a_firing_message_that_is_being_sent_is_not_merged(bench: Bench) {
    fire(&bench, "upload").await;
    let firing = lease(&bench).await.remove(0);
    resolve(&bench, "upload").await;
    assert_eq!(states(&bench).await, [(1, Leased), (2, Queued)]);
    settle(&bench, &firing, MessageOutcome::Sent).await;
    assert_eq!(states(&bench).await, [(1, Sent), (2, Queued)]);
}

async fn a_firing_message_that_fails_after_its_alert_resolved_is_merged(bench: Bench) {
    fire(&bench, "upload").await;
    let firing = lease(&bench).await.remove(0);
    resolve(&bench, "upload").await;
    settle(&bench, &firing, retry(600)).await;
    assert_eq!(states(&bench).await, [(1, Superseded), (2, Queued)]);
    assert_eq!(lease(&bench).await.len(), 1, "the resolved message need not wait any more");
}

async fn a_merged_message_is_merged_for_its_receiver_only(bench: Bench) {
    let both = |state| {
        let receivers = ["ops", "slack"].map(str::to_owned).to_vec();
        [AlertChange { receivers, ..change("upload", state) }]
    };
    bench.history.change_alerts(&both(Firing)).await.unwrap();
    let ops = lease(&bench).await.into_iter().find(|message| message.receiver == "ops").unwrap();
    settle(&bench, &ops, MessageOutcome::Sent).await;
    bench.pass(LEASE * 2).await;
    let slack = lease(&bench).await.remove(0);
    settle(&bench, &slack, retry(600)).await;
    bench.history.change_alerts(&both(Resolved)).await.unwrap();
    assert_eq!(states(&bench).await, [(1, Sent), (1, Superseded), (2, Queued), (2, Queued)]);
}

async fn text_that_a_database_might_refuse_is_kept(bench: Bench) {
    let odd = "nul \u{0} quote ' \" backslash \\ emoji \u{1f526} line\nbreak".to_owned();
    let wish = AlertChange {
        labels: [("job".to_owned(), odd.clone())].into(),
        details: vec![(odd.clone(), odd.clone())],
        summary: odd.clone(),
        ..change("upload", Firing)
    };
    bench.history.change_alerts(std::slice::from_ref(&wish)).await.unwrap();
    let alert = bench.history.alerts(10).await.unwrap().remove(0);
    assert_eq!((alert.labels, alert.summary), (wish.labels, odd.replace('\0', "\u{fffd}")));
    let message = lease(&bench).await.remove(0);
    assert_eq!((&message.notice.details, &message.notice.summary), (&wish.details, &odd));
    settle(&bench, &message, MessageOutcome::Dead { error: odd }).await;
}
