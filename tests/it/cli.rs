//! The commands as people and hosts see them: the real binary, its output, its exit codes.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lamplighter::cache::{Produced, QueueRef, SqliteCache, UploadCache};
use serde_json::Value;

use crate::support::daemon::{Daemon, run};

const NOTHING: BTreeMap<&str, String> = BTreeMap::new();

fn shipped() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs.toml")).unwrap()
}

/// A folder with a jobs.toml.
fn folder(jobs_toml: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("jobs.toml"), jobs_toml).unwrap();
    folder
}

struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

async fn ask_with(folder: &Path, env: &BTreeMap<&str, String>, args: &[&str]) -> Said {
    let output = run(folder, env, args).await;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

async fn ask(folder: &Path, args: &[&str]) -> Said {
    ask_with(folder, &NOTHING, args).await
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("not JSON ({error}): {text}"))
}

#[tokio::test]
async fn the_help_names_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let said = ask(folder.path(), &["--help"]).await;
    assert_eq!(said.code, Some(0));
    insta::assert_snapshot!(said.out);
    let version = ask(folder.path(), &["--version"]).await;
    assert_eq!(version.out, concat!("lamplighter ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[tokio::test]
async fn wrong_usage_ends_with_2_and_a_hint() {
    let house = folder(&shipped());
    for (args, hint) in [
        (&["serv"][..], "'serve'"),
        (&["run"], "[OPTIONS] --due"),
        (&["run", "--due", "--dry-run"], "--dry-run"),
        (&["run", "nightly-uplod"], "did you mean \"nightly-upload\"?"),
        (&["history", "--state", "ok"], "is none of: running, succeeded"),
        (&["history", "--since", "yesterday"], "write for example 2h, 7d"),
        (&["dead-letters", "drop"], "--all"),
        (&["alerts", "test", "consol"], "did you mean \"console\"?"),
        (&["simulate", "--from", "2026-01-02", "--to", "2026-01-01"], "is before"),
    ] {
        let said = ask(house.path(), args).await;
        assert_eq!(said.code, Some(2), "{args:?}: {}", said.err);
        assert!(said.err.contains(hint), "{args:?} should say {hint:?}, but says {}", said.err);
    }
}

#[tokio::test]
async fn the_shipped_jobs_are_right_and_check_shows_five_runs_of_each() {
    let house = folder(&shipped());
    let said = ask(house.path(), &["check"]).await;
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(said.out.contains("receiver slack is off, because SLACK_WEBHOOK_URL is not set"), "{}", said.out);
    assert_eq!(said.out.matches(" 02:00:00 UTC").count(), 10, "{}", said.out);
    assert!(!house.path().join("data").exists(), "checking touches nothing");

    let said = ask(house.path(), &["check", "--json"]).await;
    let value = json(&said.out);
    assert_eq!((&value["ok"], &value["jobs"][0]["name"]), (&Value::Bool(true), &Value::from("nightly-upload")));
    assert_eq!(value["jobs"][0]["next"].as_array().map(Vec::len), Some(5));
}

#[tokio::test]
async fn wrong_settings_end_with_78_and_all_mistakes_at_once() {
    let house = folder("[jobs.a]\nkind = \"uplod\"\nschedule = \"0 2 * *\"\n[job.b]\n");
    let said = ask(house.path(), &["check"]).await;
    assert_eq!(said.code, Some(78));
    assert!(said.err.contains("did you mean \"upload\"?") && said.err.contains("jobs.toml:4"), "{}", said.err);
    let said = ask(house.path(), &["check", "--json"]).await;
    assert_eq!(said.code, Some(78));
    assert!(json(&said.out)["problems"].as_array().is_some_and(|problems| problems.len() >= 2), "{}", said.out);
    // A password must not be repeated.
    let env = BTreeMap::from([("DATABASE_URL", "mysql://me:hunter2@db/x".to_owned())]);
    let said = ask_with(house.path(), &env, &["serve"]).await;
    assert_eq!(said.code, Some(78));
    assert!(!said.err.contains("hunter2") && !said.out.contains("hunter2"), "{}{}", said.out, said.err);
}

#[tokio::test]
async fn a_jobs_file_that_cannot_be_read_is_one_clear_complaint() {
    let house = tempfile::tempdir().unwrap();
    std::fs::create_dir(house.path().join("a-folder")).unwrap();
    std::fs::write(house.path().join("latin1.toml"), b"# caf\xe9\n").unwrap();
    std::fs::write(house.path().join("large.toml"), vec![b'#'; 10_000_000]).unwrap();
    for file in ["missing.toml", "a-folder", "latin1.toml", "large.toml"] {
        let said = ask(house.path(), &["--config", file, "check"]).await;
        assert_eq!(said.code, Some(78), "{file}: {}", said.err);
        assert!(said.err.contains(file) && said.err.len() < 1_000, "{file}: {}", said.err);
        assert!(!said.err.contains("panicked") && !said.err.contains("RUST_BACKTRACE"), "{}", said.err);
    }
}

#[tokio::test]
async fn an_absent_server_ends_with_69_and_its_password_is_not_shown() {
    let house = folder(&shipped());
    for (name, address) in
        [("REDIS_URL", "redis://:hunter2@127.0.0.1:1"), ("DATABASE_URL", "postgres://me:hunter2@127.0.0.1:1/watch")]
    {
        let env = BTreeMap::from([(name, address.to_owned())]);
        for args in [&["run", "nightly-upload"][..], &["run", "--due"]] {
            let said = ask_with(house.path(), &env, args).await;
            assert_eq!(said.code, Some(69), "{name} {args:?}: {}", said.err);
            let complaint = said.err.lines().find(|line| line.starts_with("lamplighter: ")).unwrap_or_default();
            assert!(complaint.contains("127.0.0.1:1") && complaint.contains(name), "{}", said.err);
            assert!(!said.err.contains("hunter2"), "{}", said.err);
        }
    }
}

#[tokio::test]
async fn a_run_by_hand_is_in_the_history() {
    let house = folder(&shipped());
    let said = ask(house.path(), &["run", "nightly-upload"]).await;
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(said.out.starts_with("nightly-upload succeeded in "), "{}", said.out);

    let said = ask(house.path(), &["history", "nightly-upload", "--state", "succeeded,failed", "--since", "1h"]).await;
    assert_eq!(said.code, Some(0), "{}", said.err);
    for word in ["When (UTC)", "nightly-upload", "succeeded", "manual"] {
        assert!(said.out.contains(word), "{word:?} is missing in\n{}", said.out);
    }
    assert!(!said.out.contains('\u{1b}'), "no colours where no terminal listens");
    let runs = json(&ask(house.path(), &["history", "--json"]).await.out);
    assert_eq!((&runs[0]["state"], &runs[0]["host"]), (&Value::from("succeeded"), &Value::from("test-host")));
    let listed = ask(house.path(), &["list"]).await;
    assert!(listed.out.contains("0 2 * * *") && listed.out.contains("never"), "{}", listed.out);
}

#[tokio::test]
async fn run_due_runs_the_last_slot_once_and_then_nothing() {
    let house = folder(&shipped());
    let said = ask(house.path(), &["run", "--due", "--json"]).await;
    assert_eq!(said.code, Some(0), "{}", said.err);
    let runs = json(&said.out);
    let jobs: Vec<_> = runs.as_array().into_iter().flatten().map(|run| run["job"].as_str().unwrap_or("?")).collect();
    assert_eq!(jobs.len(), 2, "the newest slot of each job: {runs}");
    let again = ask(house.path(), &["run", "--due"]).await;
    assert_eq!((again.code, again.out.as_str()), (Some(0), "nothing was due\n"), "{}", again.err);
}

#[tokio::test]
async fn schedules_are_explained_or_refused() {
    let house = tempfile::tempdir().unwrap();
    let args = ["explain", "30 2 * * *", "--tz", "Europe/Berlin", "--from", "2026-03-28", "--next", "2"];
    let said = ask(house.path(), &args).await;
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(said.out.contains("02:30:00 does not exist this day"), "{}", said.out);
    let value = json(&ask(house.path(), &[&args[..], &["--json"]].concat()).await.out);
    assert_eq!(value["next"][1]["utc"], "2026-03-29T01:00:00Z");

    let said = ask(house.path(), &["explain", "61 * * * *"]).await;
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("minute"), "{}", said.err);
    let said = ask(house.path(), &["explain", "0 2 * * *", "--tz", "Europe/Berlim", "--json"]).await;
    assert_eq!(said.code, Some(1));
    assert!(json(&said.out)["refused"].as_str().is_some_and(|why| why.contains("Europe/Berlin")), "{}", said.out);
}

#[tokio::test]
async fn the_fleets_timeline_has_the_clock_changes_in_it() {
    let zoned = shipped().replace("timezone = \"UTC\"", "timezone = \"Europe/Berlin\"");
    let house = folder(&zoned);
    let said = ask(house.path(), &["simulate", "--from", "2026-03-28", "--to", "2026-03-29T12:00"]).await;
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(said.out.contains("the clocks of Europe/Berlin change from +01:00 to +02:00"), "{}", said.out);
    assert_eq!(said.out.matches("nightly-upload-scoring").count(), 2, "{}", said.out);
    let said = ask(house.path(), &["simulate", "--from", "2026-03-28", "--to", "2026-03-29T12:00", "--json"]).await;
    assert!(said.out.lines().map(json).any(|event| event["event"] == "clock_change"), "{}", said.out);
}

#[tokio::test]
async fn completions_are_printed_for_shells() {
    let house = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let said = ask(house.path(), &["completions", shell]).await;
        assert!(said.code == Some(0) && said.out.contains("dead-letters"), "{shell}: {}", said.err);
    }
}

#[tokio::test]
async fn a_receiver_can_be_tested_and_one_that_is_off_says_why() {
    let house = folder(&shipped());
    let said = ask(house.path(), &["alerts", "test", "console"]).await;
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(said.err.contains("This is a test message"), "{}", said.err);
    let said = ask(house.path(), &["alerts", "test", "slack"]).await;
    assert_eq!(said.code, Some(78));
    assert!(said.err.contains("SLACK_WEBHOOK_URL is not set"), "{}", said.err);
}

#[tokio::test]
async fn without_credentials_a_run_says_which_to_set_and_asks_nobody() {
    let machine = std::fs::read_to_string("/sys/class/dmi/id/product_name").unwrap_or_default();
    if machine.contains("Google") {
        // Here the metadata server has credentials.
        return;
    }
    let house = folder(&shipped());
    let home = house.path().display().to_string();
    let env = BTreeMap::from([("BIGQUERY_PROJECT", "night-watch".to_owned()), ("HOME", home)]);
    let said = ask_with(house.path(), &env, &["run", "nightly-upload"]).await;
    assert_eq!(said.code, Some(78), "{}{}", said.out, said.err);
    assert!(said.err.contains("Set GOOGLE_APPLICATION_CREDENTIALS"), "{}{}", said.out, said.err);
}

#[tokio::test]
async fn where_there_is_no_job_it_is_said() {
    let house = folder("");
    let said = ask(house.path(), &["run", "nightly"]).await;
    assert!(said.code == Some(2) && said.err.contains("there is none at all"), "{:?} {}", said.code, said.err);
}

#[tokio::test]
async fn dead_letters_are_retried_once_their_cause_is_mended() {
    let house = tempfile::tempdir().unwrap();
    let jobs = r#"
[jobs.upload]
kind = "upload"
datasets = ["transactions"]
[datasets.transactions]
queue = "upload_queue"
keys = "tx:{id}"
table = "d.txs"
layout = "json"
max_record_size = "1KB"
"#;
    std::fs::write(house.path().join("jobs.toml"), jobs).unwrap();
    std::fs::create_dir(house.path().join("data")).unwrap();
    let clock = std::sync::Arc::new(lamplighter::clock::SystemClock);
    let cache = SqliteCache::open(&house.path().join("data/cache.db"), clock).await.unwrap();
    let queue = QueueRef { database: 0, queue: "upload_queue".to_owned() };
    let record = |key: &str, value: Option<String>| Produced {
        entry: key.into(),
        key: key.to_owned(),
        value: value.map(String::into_bytes),
    };
    let body = |length: usize| format!("{{\"_timestamp\":\"2026-11-21T02:00:00Z\",\"x\":\"{}\"}}", "x".repeat(length));
    let records = [record("tx:large", Some(body(2_000))), record("tx:late", None), record("tx:never", None)];
    cache.produce(&queue, &records, std::time::Duration::from_secs(3_600)).await.unwrap();
    let said = ask(house.path(), &["run", "upload"]).await;
    assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);

    // One limit is raised, one record comes, one does not.
    cache
        .requeue(&queue, b"tx:late", "tx:late", Some(body(10).as_bytes()), std::time::Duration::from_secs(3_600))
        .await
        .unwrap();
    let mended = BTreeMap::from([("LAMPLIGHTER__DATASETS__TRANSACTIONS__MAX_RECORD_SIZE", "1MB".to_owned())]);
    let said = ask_with(house.path(), &mended, &["dead-letters", "retry", "--all"]).await;
    assert_eq!(said.out, "retried 2 dead letters\n", "{}", said.err);
    assert!(said.err.contains("1 was left"), "{}", said.err);
    let said = ask(house.path(), &["dead-letters", "retry", "--dataset", "transaction"]).await;
    assert!(said.out.starts_with("no such dead letters; "), "{}{}", said.out, said.err);
    let said = ask(house.path(), &["dead-letters", "export", "--dataset", "transaction"]).await;
    assert!(said.out.is_empty() && said.err.contains("no such dead letters; "), "{}{}", said.out, said.err);
    let said = ask_with(house.path(), &mended, &["run", "upload", "--json"]).await;
    assert!(said.code == Some(0) && json(&said.out)["rows"] == 2, "{}{}", said.out, said.err);
}

#[tokio::test]
async fn the_demo_shows_a_whole_night_and_leaves_a_folder_to_play_with() {
    let house = tempfile::tempdir().unwrap();
    // The demo asks no server, whatever the variables say.
    let env = BTreeMap::from([("REDIS_URL", "redis://127.0.0.1:1".to_owned())]);
    let said = ask_with(house.path(), &env, &["demo", "--dir", "night", "--json"]).await;
    assert_eq!(said.code, Some(0), "{}", said.err);
    let value = json(&said.out);
    let rows: u64 = value["tables"].as_array().into_iter().flatten().filter_map(|table| table[2].as_u64()).sum();
    assert_eq!(rows, 10_001, "5,000 transactions and predictions, and one with NaN in it: {}", value["tables"]);
    let letters = value["dead_letters"].as_array().unwrap();
    let mut reasons: Vec<_> = letters.iter().filter_map(|letter| letter["reason"].as_str()).collect();
    reasons.sort_unstable();
    assert_eq!(reasons, ["bad_entry", "missing", "no_dataset", "not_an_object", "not_json", "schema", "schema"]);
    assert_eq!(value["messages"].as_array().map(Vec::len), Some(2), "{}", value["messages"]);

    let night: PathBuf = house.path().join("night");
    let played = BTreeMap::from([("LAMPLIGHTER_DATA", night.join("data").display().to_string())]);
    let said = ask_with(&night, &played, &["dead-letters", "list"]).await;
    assert!(said.code == Some(0) && said.out.contains("not_json"), "{}{}", said.out, said.err);
    let id = letters.iter().find(|letter| letter["reason"] == "not_json").unwrap()["id"].as_str().unwrap();
    let said = ask_with(&night, &played, &["dead-letters", "show", id]).await;
    assert!(said.out.contains("\"customer_age_bracket\":\"25-34\""), "{}", said.out);
    let said = ask_with(&night, &played, &["dead-letters", "export", "--reason", "schema"]).await;
    assert_eq!(said.out.lines().map(json).count(), 2);
    let said = ask_with(&night, &played, &["dead-letters", "retry", id]).await;
    assert_eq!(said.out, "retried 1 dead letter\n", "{}", said.err);
    let said = ask_with(&night, &played, &["run", "nightly-upload", "--dry-run"]).await;
    assert_eq!(said.code, Some(1), "the record is still broken: {}{}", said.out, said.err);
    assert!(said.out.contains("1 dead letter, transactions: not_json"), "{}", said.out);
    let said = ask_with(&night, &played, &["dead-letters", "drop", "--all"]).await;
    assert_eq!(said.out, "dropped 6 dead letters\n", "{}", said.err);

    let again = ask(house.path(), &["demo", "--dir", "night"]).await;
    assert_eq!(again.code, Some(0), "an earlier demo's folder starts anew: {}", again.err);
    assert!(again.out.contains("lamplighter") && again.out.contains("7 records were broken"), "{}", again.out);
}

#[tokio::test]
async fn the_daemon_runs_jobs_logs_flat_json_and_stops_in_order() {
    let house = tempfile::tempdir().unwrap();
    let often = shipped().replace("schedule = \"0 2 * * *\"", "every = \"1s\"");
    let mut daemon = Daemon::start(house.path(), &often, &NOTHING);
    daemon.wait_for("watching; the next run is due").await;
    let line = json(&daemon.wait_for("nightly-upload succeeded").await);
    assert_eq!((&line["level"], &line["job.name"]), (&Value::from("INFO"), &Value::from("nightly-upload")));
    assert!(line["message"].is_string() && line["timestamp"].is_string(), "{line}");
    daemon.signal("TERM");
    let ended = daemon.ended().await;
    assert_eq!(ended.code(), Some(0), "{:#?}", daemon.log());
    daemon.wait_for("stopped in order").await;
    let runs = json(&ask(house.path(), &["history", "--json", "--limit", "1000"]).await.out);
    let runs = runs.as_array().unwrap();
    assert!(runs.iter().all(|run| run["state"] == "succeeded"), "nothing is left running: {runs:#?}");
    assert!(runs.iter().all(|run| run["trigger"] == "schedule"), "{runs:#?}");
}

/// A Redis that takes connections and never answers: whoever asks it something is busy for a while.
async fn silent_redis() -> (tokio::task::JoinHandle<()>, String) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let keep = tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            open.push(stream);
        }
    });
    (keep, url)
}

#[tokio::test]
async fn a_second_signal_ends_the_daemon_at_once() {
    let house = tempfile::tempdir().unwrap();
    let often = shipped().replace("schedule = \"0 2 * * *\"", "every = \"1s\"");
    let (_redis, url) = silent_redis().await;
    let env = BTreeMap::from([("REDIS_URL", url), ("LAMPLIGHTER_LOG", "lamplighter=debug".to_owned())]);
    let mut daemon = Daemon::start(house.path(), &often, &env);
    daemon.wait_for("nightly-upload starts").await;
    daemon.signal("TERM");
    daemon.wait_for("SIGTERM: stopping in order").await;
    daemon.signal("INT");
    assert_eq!(daemon.ended().await.code(), Some(130), "{:#?}", daemon.log());
}

#[tokio::test]
async fn what_does_not_end_within_the_grace_period_is_recorded_as_cancelled() {
    let house = tempfile::tempdir().unwrap();
    let often = shipped().replace("schedule = \"0 2 * * *\"", "every = \"1s\"");
    let (_redis, url) = silent_redis().await;
    let env = BTreeMap::from([
        ("REDIS_URL", url),
        ("LAMPLIGHTER_LOG", "lamplighter=debug".to_owned()),
        ("LAMPLIGHTER_GRACE", "100ms".to_owned()),
    ]);
    let mut daemon = Daemon::start(house.path(), &often, &env);
    daemon.wait_for("nightly-upload starts").await;
    daemon.signal("INT");
    assert_eq!(daemon.ended().await.code(), Some(0), "{:#?}", daemon.log());
    let runs = json(&ask(house.path(), &["history", "--json"]).await.out);
    let states: Vec<_> = runs.as_array().into_iter().flatten().map(|run| run["state"].as_str().unwrap()).collect();
    assert!(states.contains(&"cancelled") && !states.contains(&"running"), "{runs:#}");
}

#[tokio::test]
async fn a_daemon_without_its_database_starts_and_goes_on() {
    let house = tempfile::tempdir().unwrap();
    let often = shipped().replace("schedule = \"0 2 * * *\"", "every = \"1s\"");
    let env = BTreeMap::from([("DATABASE_URL", "postgres://me:hunter2@127.0.0.1:1/watch".to_owned())]);
    let mut daemon = Daemon::start(house.path(), &often, &env);
    daemon.wait_for("cannot be reached").await;
    daemon.wait_for("nightly-upload succeeded").await;
    daemon.wait_for("database_away").await;
    daemon.signal("TERM");
    assert_eq!(daemon.ended().await.code(), Some(0), "{:#?}", daemon.log());
    let log = daemon.log().join("\n");
    assert!(log.contains("the results of some runs are not recorded"), "{log}");
    assert!(!log.contains("hunter2"), "{log}");
}

/// Runs a command line of the shell, with the program as `$0`, and returns its exit code and what it complained of.
fn shell(folder: &Path, line: &str) -> (Option<i32>, String) {
    let mut command = std::process::Command::new("bash");
    command.args(["-c", line, env!("CARGO_BIN_EXE_lamplighter")]).current_dir(folder).env_clear();
    let output = command.env("PATH", std::env::var_os("PATH").unwrap()).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn an_answer_that_could_not_be_written_is_a_failure_and_a_closed_pipe_is_none() {
    let folder = folder(&shipped());
    for command in ["explain '@daily'", "check", "simulate --from 2026-01-01 --to 2026-01-03 --json"] {
        let (code, complaint) = shell(folder.path(), &format!("\"$0\" {command} > /dev/full"));
        assert_eq!(code, Some(1), "{command}: {complaint}");
        assert!(complaint.contains("the output is not complete"), "{command}: {complaint}");
    }
    // The reader takes the beginning and goes away.
    let line = r#"set -o pipefail; "$0" explain '@daily' --next 10000 --json | head -c 10 > /dev/null"#;
    assert_eq!(shell(folder.path(), line), (Some(0), String::new()));
}
