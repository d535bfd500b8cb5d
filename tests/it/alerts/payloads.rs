//! What receivers read: snapshots, the signature, and what the rules say.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use lamplighter::alerts::{
    Delivery, Found, Http, Missed, Outage, ReceiverSettings, Settled, Subject, database_away, notifier, run_missed,
    run_settled,
};
use lamplighter::history::{AlertChange, AlertState, MissedCause, Notice, RunState, Severity};
use sha2::{Digest, Sha256};

use super::super::support::http_sink::{Got, HttpSink};
use super::{SECRET, at, minutes, signed_webhook, slack, webhook};

fn subject() -> Subject {
    let receivers = vec!["slack".to_owned(), "ops".to_owned()];
    Subject { job: "nightly-upload".to_owned(), severity: Severity::Critical, receivers }
}

fn run(state: RunState) -> Settled {
    Settled {
        state,
        slot: Some(at("2026-01-05T02:00:00Z")),
        started_at: at("2026-01-05T02:00:21Z"),
        finished_at: at("2026-01-05T02:03:00Z"),
        attempt: 3,
        attempts: 3,
        again: false,
        rows: None,
        error: None,
        findings: Vec::new(),
        next_run: Some(at("2026-01-06T02:00:00Z")),
    }
}

fn failed() -> AlertChange {
    let error = "the warehouse BigQuery flit-prod refuses: table flit_bnpl_raw.raw_bnpl_txs_json has no column <json_body> & \
                 no default.\nCheck the table's schema.";
    let run = Settled { error: Some(error.to_owned()), ..run(RunState::Failed) };
    run_settled(&subject(), &run).remove(0)
}

fn succeeded() -> AlertChange {
    let run = Settled {
        rows: Some(50_000),
        started_at: at("2026-01-05T02:08:00Z"),
        finished_at: at("2026-01-05T02:09:12Z"),
        ..run(RunState::Succeeded)
    };
    run_settled(&subject(), &run).remove(0)
}

fn notice(change: &AlertChange, starts_at: DateTime<Utc>) -> Notice {
    let ends_at = (change.state == AlertState::Resolved).then_some(change.at);
    let seq = if ends_at.is_some() { 2 } else { 1 };
    let AlertChange { fingerprint, name, labels, severity, state, summary, details, .. } = change.clone();
    Notice { fingerprint, name, labels, severity, state, summary, details, starts_at, ends_at, seq }
}

/// What a receiver gets, if the message is `late` by so many minutes.
async fn deliver(sink: &HttpSink, receiver: &ReceiverSettings, notice: &Notice, late: i64) -> Got {
    let queued_at = notice.ends_at.unwrap_or(notice.starts_at);
    let id = "01KE6Z3V8Q0000000000000000";
    let delivery = Delivery { id, receiver: &receiver.name, notice, queued_at, now: queued_at + minutes(late) };
    notifier(receiver, &Http::new()).unwrap().send(&delivery).await.unwrap();
    sink.got().pop().unwrap()
}

fn pretty(value: &serde_json::Value) -> String {
    serde_json::to_string_pretty(value).unwrap()
}

#[tokio::test]
async fn slack_messages_look_as_agreed() {
    let sink = HttpSink::start().await;
    let slack = slack("slack", &sink.url("/"));
    let firing = notice(&failed(), failed().at);
    let resolved = notice(&succeeded(), failed().at);
    insta::assert_snapshot!("slack_firing", pretty(&deliver(&sink, &slack, &firing, 0).await.json()));
    insta::assert_snapshot!("slack_firing_late", pretty(&deliver(&sink, &slack, &firing, 12).await.json()));
    insta::assert_snapshot!("slack_resolved", pretty(&deliver(&sink, &slack, &resolved, 0).await.json()));
    insta::assert_snapshot!("slack_resolved_late", pretty(&deliver(&sink, &slack, &resolved, 12).await.json()));
}

#[tokio::test]
async fn webhook_bodies_look_as_agreed() {
    let sink = HttpSink::start().await;
    let ops = webhook("ops", &sink.url("/hook?x=1"));
    let firing = notice(&failed(), failed().at);
    let resolved = notice(&succeeded(), failed().at);
    let got = deliver(&sink, &ops, &firing, 0).await;
    assert_eq!((got.method.as_str(), got.path.as_str()), ("POST", "/hook?x=1"));
    assert_eq!(got.header("content-type"), "application/json");
    assert_eq!(got.header("authorization"), "Bearer open-sesame");
    assert!(got.header("user-agent").starts_with("lamplighter/"));
    insta::assert_snapshot!("webhook_firing", pretty(&got.json()));
    insta::assert_snapshot!("webhook_resolved_late", pretty(&deliver(&sink, &ops, &resolved, 12).await.json()));
}

/// HMAC-SHA256 as RFC 2104 writes it, so that the signature is not checked with the code that made it.
fn hmac_sha256(key: &[u8], message: &[u8]) -> Vec<u8> {
    assert!(key.len() <= 64);
    let pad = |byte: u8| (0..64).map(|i| key.get(i).copied().unwrap_or(0) ^ byte).collect::<Vec<u8>>();
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().to_vec()
}

#[tokio::test]
async fn a_webhook_is_signed_with_every_secret_over_id_time_and_body() {
    // The published vector of the Standard Webhooks libraries, to begin with: the check itself is right.
    let key = |secret: &str| STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
    let vector = hmac_sha256(&key(SECRET), br#"msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330.{"test": 2432232314}"#);
    assert_eq!(STANDARD.encode(vector), "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");

    let sink = HttpSink::start().await;
    let second = format!("whsec_{}", STANDARD.encode([7_u8; 64]));
    let ops = signed_webhook("ops", &sink.url("/"), &[SECRET, &second], true);
    let got = deliver(&sink, &ops, &notice(&failed(), failed().at), 1).await;
    assert_eq!(got.header("webhook-id"), "msg_01KE6Z3V8Q0000000000000000");
    assert_eq!(got.header("webhook-timestamp"), (failed().at + minutes(1)).timestamp().to_string());
    let mut signed = format!("{}.{}.", got.header("webhook-id"), got.header("webhook-timestamp")).into_bytes();
    signed.extend_from_slice(&got.body);
    let expected =
        [SECRET, &second].map(|secret| format!("v1,{}", STANDARD.encode(hmac_sha256(&key(secret), &signed))));
    assert_eq!(got.header("webhook-signature"), expected.join(" "));

    let unsigned = signed_webhook("ops", &sink.url("/"), &[], true);
    let got = deliver(&sink, &unsigned, &notice(&failed(), failed().at), 1).await;
    assert_eq!((got.header("webhook-signature"), got.header("webhook-id").is_empty()), ("", false));
}

/// The changes as people would read them.
fn shown(changes: &[AlertChange]) -> String {
    let one = |change: &AlertChange| {
        let mut text = format!("{} {} [{}]: {}", change.name, change.state, change.severity, change.summary);
        for (name, value) in &change.details {
            text.push_str(&format!("\n    {name}: {value}"));
        }
        text
    };
    changes.iter().map(one).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_rules_say_what_happened_and_what_to_do() {
    let found = |dataset: &str, reason: &str, value| Found {
        name: "dead_letters".to_owned(),
        value,
        labels: vec![("dataset".to_owned(), dataset.to_owned()), ("reason".to_owned(), reason.to_owned())],
    };
    let findings = vec![
        found("transactions", "missing", 2.0),
        found("transactions", "not_json", 1200.0),
        found("predictions", "schema", 1.0),
        found("predictions", "missing", 0.0),
        Found { name: "rows".to_owned(), value: 5000.0, labels: Vec::new() },
    ];
    let early = Settled { attempt: 1, error: Some("no such dataset".to_owned()), ..run(RunState::Failed) };
    let timed_out = Settled { error: Some("stopped after 10m".to_owned()), ..run(RunState::TimedOut) };
    let lost = Settled { attempt: 1, attempts: 1, next_run: None, ..run(RunState::Lost) };
    let letters = Settled { rows: Some(4_999), findings, ..run(RunState::Succeeded) };
    let missed = Missed {
        cause: MissedCause::Down,
        first: at("2026-01-05T02:00:00Z"),
        last: at("2026-01-05T02:00:00Z"),
        slots: 1,
        at: at("2026-01-05T08:30:00Z"),
        next_run: Some(at("2026-01-06T02:00:00Z")),
    };
    let many =
        Missed { slots: 14, first: at("2025-12-23T02:00:00Z"), cause: MissedCause::DatabaseAway, ..missed.clone() };
    let outage = Outage {
        database: "Postgres db.internal:5432/lamplighter".to_owned(),
        since: at("2026-01-05T02:13:00Z"),
        reason: "connection refused".to_owned(),
        back: false,
        at: at("2026-01-05T02:14:00Z"),
    };
    let back = Outage { back: true, at: at("2026-01-05T04:20:00Z"), ..outage.clone() };
    let told = ["slack".to_owned()];
    let all = [
        vec![failed()],
        run_settled(&subject(), &early),
        run_settled(&subject(), &timed_out),
        run_settled(&subject(), &lost),
        run_settled(&subject(), &Settled { rows: Some(50_000), ..run(RunState::Succeeded) }),
        run_settled(&subject(), &letters),
        run_missed(&subject(), &missed),
        run_missed(&subject(), &many),
        database_away(&told, &outage),
        database_away(&told, &back),
    ];
    insta::assert_snapshot!("rules", all.iter().map(|changes| shown(changes)).collect::<Vec<_>>().join("\n\n"));
}

#[test]
fn what_says_nothing_about_a_job_changes_no_alert() {
    for state in [RunState::Running, RunState::Cancelled, RunState::Skipped, RunState::Missed] {
        assert!(run_settled(&subject(), &run(state)).is_empty(), "{state}");
    }
    for state in [RunState::Failed, RunState::TimedOut, RunState::Lost] {
        let again = Settled { again: true, attempt: 1, ..run(state) };
        assert!(run_settled(&subject(), &again).is_empty(), "{state} with another attempt to come");
    }
    for cause in [MissedCause::Paused, MissedCause::Overlap] {
        let (first, last) = (at("2026-01-05T02:00:00Z"), at("2026-01-05T02:00:00Z"));
        let missed = Missed { cause, first, last, slots: 1, at: last, next_run: None };
        assert!(run_missed(&subject(), &missed).is_empty(), "{cause}");
    }
}

#[test]
fn an_alert_keeps_its_identity_and_differs_from_others() {
    // Stored in histories: these digits are a promise.
    assert_eq!(failed().fingerprint, "a1bd2b077e2a182e");
    assert_eq!(failed().fingerprint, succeeded().fingerprint);
    let other = Subject { job: "nightly-upload2".to_owned(), ..subject() };
    assert_ne!(run_settled(&other, &run(RunState::Failed))[0].fingerprint, failed().fingerprint);
    let success = run_settled(&subject(), &run(RunState::Succeeded));
    let names: Vec<_> = success.iter().map(|change| (change.name.as_str(), change.state)).collect();
    assert_eq!(names, ["job_failed", "run_missed", "dead_letters"].map(|name| (name, AlertState::Resolved)));
    let fingerprints: std::collections::BTreeSet<_> = success.iter().map(|change| &change.fingerprint).collect();
    assert_eq!(fingerprints.len(), 3);
    assert!(
        success
            .iter()
            .all(|change| change.fingerprint.len() == 16 && change.at == run(RunState::Succeeded).finished_at)
    );
}

#[test]
fn nobody_to_tell_means_nobody() {
    let nobody = Subject { receivers: Vec::new(), ..subject() };
    assert_eq!(run_settled(&nobody, &run(RunState::Failed))[0].receivers, [] as [&str; 0]);
    let long = Settled { error: Some("x".repeat(1_000_000)), ..run(RunState::Failed) };
    let change = run_settled(&nobody, &long).remove(0);
    let length: usize = change.summary.len() + change.details.iter().map(|(_, value)| value.len()).sum::<usize>();
    assert!(length < 4_000, "a message of {length} bytes");
}
