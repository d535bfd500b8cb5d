//! What each receiver's answer means, which addresses are refused, and that no secret reaches an error.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::time::Duration;

use lamplighter::alerts::{Delivery, Http, NotifyError, ReceiverSettings, notifier};
use lamplighter::history::{AlertState, Notice, Severity};
use tokio::net::TcpListener;

use super::super::support::http_sink::{Answer, HttpSink};
use super::{SECRET, at, signed_webhook, slack, webhook};

const PATH: &str = "/services/T00000000/B00000000/s3cr3tT0k3n?key=qu3rys3cret";

/// Sends one message.
async fn send(receiver: &ReceiverSettings) -> Result<(), NotifyError> {
    let notice = Notice {
        fingerprint: "9c1e0b6d2f4a7788".to_owned(),
        name: "job_failed".to_owned(),
        labels: [("job".to_owned(), "nightly-upload".to_owned())].into(),
        severity: Severity::Critical,
        state: AlertState::Firing,
        summary: "nightly-upload failed".to_owned(),
        details: Vec::new(),
        starts_at: at("2026-01-05T10:02:00Z"),
        ends_at: None,
        seq: 1,
    };
    let (queued_at, now) = (notice.starts_at, notice.starts_at);
    let delivery = Delivery { id: "01K", receiver: &receiver.name, notice: &notice, queued_at, now };
    notifier(receiver, &Http::new()).unwrap().send(&delivery).await
}

/// `ok`, `again`, `again 7` (seconds), `never` or `gone`.
fn verdict(result: &Result<(), NotifyError>) -> String {
    match result {
        Ok(()) => "ok".to_owned(),
        Err(NotifyError::Passing { after: None, .. }) => "again".to_owned(),
        Err(NotifyError::Passing { after: Some(after), .. }) => format!("again {}", after.as_secs()),
        Err(NotifyError::Permanent { .. }) => "never".to_owned(),
        Err(NotifyError::Gone { .. }) => "gone".to_owned(),
    }
}

#[tokio::test]
async fn every_answer_of_slack_means_again_or_never() {
    let answers = [
        (200, "ok", "ok", 1),
        (200, "ok\n", "again", 1),
        (200, "<html>log in</html>", "again", 1),
        (204, "", "again", 1),
        (302, "", "never", 1),
        (400, "invalid_payload", "never", 2),
        (400, "no_text", "never", 2),
        (400, "too_many_attachments", "never", 2),
        (400, "something_new", "never", 2),
        (400, "invalid_token", "never", 1),
        (401, "", "never", 1),
        (403, "action_prohibited", "never", 1),
        (403, "invalid_token", "never", 1),
        (403, "posting_to_general_channel_denied", "never", 1),
        (404, "no_service", "never", 1),
        (404, "no_active_hooks", "never", 1),
        (404, "no_service_id", "never", 1),
        (404, "no_team", "never", 1),
        (404, "channel_not_found", "never", 1),
        (404, "team_disabled", "never", 1),
        (408, "", "again", 1),
        (410, "channel_is_archived", "never", 1),
        (410, "", "gone", 1),
        (413, "", "never", 1),
        (429, "rate_limited", "again", 1),
        (429, r#"{"ok":false,"retry_after":12}"#, "again 12", 1),
        (500, "rollup_error", "again", 1),
        (502, "", "again", 1),
        (503, "", "again", 1),
        (504, "", "again", 1),
    ];
    let sink = HttpSink::start().await;
    let receiver = slack("slack", &sink.url(PATH));
    let mut came = 0;
    for (status, body, expected, requests) in answers {
        sink.answer(Answer::new(status, body));
        let result = send(&receiver).await;
        assert_eq!(verdict(&result), expected, "{status} {body}: {result:?}");
        assert_eq!(sink.got().len() - came, requests, "requests after {status} {body}");
        came = sink.got().len();
        if let Err(error) = result {
            assert!(error.to_string().starts_with(&format!("Slack answered {status}")), "{error}");
        }
    }
    sink.answer(Answer::new(429, "rate_limited").header("Retry-After", "7"));
    assert_eq!(verdict(&send(&receiver).await), "again 7");
}

#[tokio::test]
async fn every_answer_of_a_webhook_means_again_or_never() {
    let sink = HttpSink::start().await;
    let receiver = webhook("ops", &sink.url(PATH));
    for (status, expected) in [
        (200, "ok"),
        (201, "ok"),
        (202, "ok"),
        (204, "ok"),
        (301, "never"),
        (304, "never"),
        (307, "never"),
        (400, "never"),
        (401, "never"),
        (403, "never"),
        (404, "never"),
        (405, "never"),
        (408, "again"),
        (409, "never"),
        (410, "gone"),
        (413, "never"),
        (422, "never"),
        (429, "again"),
        (500, "again"),
        (501, "again"),
        (502, "again"),
        (503, "again"),
        (504, "again"),
        (599, "again"),
    ] {
        sink.answer(Answer::new(status, "said"));
        let result = send(&receiver).await;
        assert_eq!(verdict(&result), expected, "{status}: {result:?}");
    }
    sink.answer(Answer::new(429, "").header("Retry-After", "Mon, 05 Jan 2026 10:03:30 GMT"));
    assert_eq!(verdict(&send(&receiver).await), "again 90");
    sink.answer(Answer::new(503, "").header("Retry-After", "3"));
    assert_eq!(verdict(&send(&receiver).await), "again 3");
}

#[tokio::test]
async fn no_answer_at_all_means_again() {
    let sink = HttpSink::start().await;
    sink.answer(Answer::hang_up());
    for receiver in [slack("slack", &sink.url(PATH)), webhook("ops", &sink.url(PATH))] {
        let result = send(&receiver).await;
        assert_eq!(verdict(&result), "again", "{result:?}");
        assert!(result.unwrap_err().to_string().starts_with("the connection broke before an answer came"));
    }
    // A port on which nobody listens any more.
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let result = send(&slack("slack", &format!("http://127.0.0.1:{port}{PATH}"))).await;
    assert_eq!(verdict(&result), "again", "{result:?}");
    assert!(result.unwrap_err().to_string().starts_with("could not connect"));
    // A name that nobody has.
    let result = send(&webhook("ops", &format!("http://nobody.invalid{PATH}"))).await;
    assert_eq!(verdict(&result), "again", "{result:?}");
}

#[tokio::test]
async fn a_receiver_that_does_not_answer_in_time_is_tried_again() {
    let sink = HttpSink::start().await;
    sink.answer(Answer::new(200, "ok").after(Duration::from_secs(60)));
    let mut receiver = webhook("ops", &sink.url(PATH));
    if let lamplighter::alerts::ReceiverKind::Webhook { timeout, .. } = &mut receiver.kind {
        *timeout = Duration::from_millis(300);
    }
    let result = send(&receiver).await;
    assert_eq!(verdict(&result), "again");
    assert_eq!(result.unwrap_err().to_string(), "no answer within 0 s");
}

#[tokio::test]
async fn what_slack_refuses_with_blocks_arrives_as_plain_text() {
    let sink = HttpSink::start().await;
    sink.answer_once(Answer::new(400, "invalid_payload"));
    assert_eq!(verdict(&send(&slack("slack", &sink.url(PATH))).await), "ok");
    let got = sink.got();
    assert_eq!(got.len(), 2);
    assert!(got[0].json()["attachments"].is_array());
    assert_eq!(got[1].json(), serde_json::json!({"text": "🔴 FIRING [critical] job_failed: nightly-upload failed"}));
    // The second request has its own fate.
    sink.answer_once(Answer::new(400, "invalid_payload"));
    sink.answer_once(Answer::new(503, ""));
    assert_eq!(verdict(&send(&slack("slack", &sink.url(PATH))).await), "again");
}

#[tokio::test]
async fn private_addresses_are_refused_unless_they_are_allowed() {
    let sink = HttpSink::start().await;
    let port = sink.port();
    // As an address, and as a name that resolves to one.
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433"] {
        let url = format!("http://{host}:{port}{PATH}");
        let result = send(&signed_webhook("ops", &url, &[SECRET], false)).await;
        assert_eq!(verdict(&result), "never", "{host}: {result:?}");
        assert!(result.unwrap_err().to_string().contains("set allow_private = true"));
    }
    assert_eq!(sink.got().len(), 0, "something was sent to a private address");
    assert_eq!(verdict(&send(&webhook("ops", &format!("http://localhost:{port}{PATH}"))).await), "ok");
}

#[tokio::test]
async fn a_redirect_leads_nowhere() {
    let (sink, inside) = (HttpSink::start().await, HttpSink::start().await);
    for status in [301, 302, 303, 307, 308] {
        sink.answer(Answer::new(status, "").header("Location", &inside.url("/admin")));
        for receiver in [slack("slack", &sink.url(PATH)), webhook("ops", &sink.url(PATH))] {
            let result = send(&receiver).await;
            assert_eq!(verdict(&result), "never");
            assert!(result.unwrap_err().to_string().contains("redirects are not followed"));
        }
    }
    assert_eq!(inside.got().len(), 0, "a redirect was followed");
}

#[tokio::test]
async fn no_error_contains_the_url_or_a_header_even_if_the_receiver_repeats_them() {
    let sink = HttpSink::start().await;
    let url = sink.url(PATH);
    let echo = format!("Cannot POST {PATH} at {url}, token s3cr3tT0k3n, key qu3rys3cret");
    let mut errors = Vec::new();
    for (receiver, echo) in
        [(slack("slack", &url), echo.clone()), (webhook("ops", &url), format!("Bearer open-sesame, {echo}"))]
    {
        for answer in [
            Answer::new(404, &echo),
            Answer::new(500, &echo.replace('/', "\\/")),
            Answer::new(429, &echo.repeat(100)),
            Answer::new(302, &echo).header("Location", &url),
            Answer::hang_up(),
        ] {
            sink.answer(answer);
            errors.push(send(&receiver).await.unwrap_err());
        }
    }
    errors.push(send(&webhook("ops", &format!("http://nobody.invalid{PATH}"))).await.unwrap_err());
    errors.push(send(&slack("slack", &format!("https://127.0.0.1:{}{PATH}", sink.port()))).await.unwrap_err());
    for error in errors {
        let shown = format!("{error} {error:?}");
        for secret in ["T00000000", "s3cr3tT0k3n", "qu3rys3cret", "open-sesame", "http://", "nobody.invalid"] {
            assert!(!shown.contains(secret), "{secret:?} is in {shown}");
        }
    }
}

#[tokio::test]
async fn settings_that_cannot_be_used_are_refused_without_being_repeated() {
    let http = Http::new();
    for (receiver, about) in [
        (slack("slack", "hooks.example.com/hunter2"), "url cannot be used"),
        (slack("slack", "ftp://hooks.example.com/hunter2"), "must begin with https://"),
        (signed_webhook("ops", "https://example.com/hunter2", &["whsec_hunter2"], true), "whsec_ and the base64"),
    ] {
        let message = notifier(&receiver, &http).err().expect("refused");
        assert!(message.contains(about) && !message.contains("hunter2"), "{message}");
    }
}
