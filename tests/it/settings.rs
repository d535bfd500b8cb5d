//! `jobs.toml` and the environment: what is read, what is refused, and what is never shown.

mod backends;
mod mistakes;

use std::fs;
use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, Utc};
use lamplighter::alerts::ReceiverKind;
use lamplighter::jobs::{self, CatchUp, Layout, OnCrash, Overlap, WhenDbDown};
use lamplighter::schedule::Schedule;
use lamplighter::settings::{
    Backends, CacheChoice, Env, GoogleCredentials, HistoryChoice, Problems, Settings, WarehouseChoice,
};
use proptest::prelude::*;
use secrecy::ExposeSecret;

const SHIPPED: &str = include_str!("../../jobs.toml");
const MISTAKES: &str = include_str!("../data/settings/mistakes.toml");

/// A job and a dataset without a mistake, for tests that add one.
const PLAIN: &str = r#"
[jobs.nightly-upload]
kind = "upload"
schedule = "0 2 * * *"
datasets = ["transactions"]

[datasets.transactions]
queue = "upload_queue"
keys = "tx:{id}"
table = "raw.transactions"
layout = "json"
"#;

fn env(variables: &[(&str, &str)]) -> Env {
    variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn parse(text: &str, variables: &[(&str, &str)]) -> Result<Settings, Problems> {
    Settings::parse(Path::new("jobs.toml"), text, &env(variables), &jobs::kinds())
}

fn good(text: &str, variables: &[(&str, &str)]) -> Settings {
    parse(text, variables).unwrap_or_else(|problems| panic!("these settings should be accepted:\n{problems}"))
}

fn problems(text: &str, variables: &[(&str, &str)]) -> Problems {
    parse(text, variables).err().expect("these settings should be refused")
}

fn backends(variables: &[(&str, &str)]) -> Backends {
    Backends::from_env(&env(variables)).unwrap_or_else(|problems| panic!("{problems}"))
}

fn bad_backends(variables: &[(&str, &str)]) -> String {
    Backends::from_env(&env(variables)).expect_err("this environment should be refused").to_string()
}

fn redis_url(variables: &[(&str, &str)]) -> (String, u16) {
    match backends(variables).cache {
        CacheChoice::Redis { url, database } => (url.expose_secret().to_owned(), database),
        CacheChoice::Sqlite { .. } => panic!("Redis should be chosen"),
    }
}

fn noon() -> DateTime<Utc> {
    "2026-11-20T12:00:00Z".parse().expect("it is an instant")
}

/// What schedule.rs says of a cron line is tested there; here only that it is said, and where.
fn without_cron_sentences(text: &str) -> String {
    let line = |line: &str| match line.starts_with("error: `schedule`: ") {
        true => "error: `schedule`: (why the cron line is refused)".to_owned(),
        false => line.to_owned(),
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_shipped_file_works_as_it_stands() {
    let settings = good(SHIPPED, &[]);
    insta::assert_snapshot!([settings.summary_lines(), settings.notes.clone()].concat().join("\n"));
    assert_eq!(settings.warnings(noon()), Vec::<String>::new());
    assert_eq!(settings.datasets.len(), 4);
    assert_eq!(settings.datasets["predictions"].database, 1);
    assert_eq!(settings.datasets["scoring-predictions"].cluster_by, ["customer_id", "selected_model"]);
    let job = settings.job("nightly-upload").expect("it is in the file");
    assert_eq!(job.notify, ["console"], "Slack is off without its variable");
    assert_eq!(job.timeout, Duration::from_secs(1800));
    assert_eq!((job.retry.attempts, job.retry.backoff), (3, Duration::from_secs(2)));
    assert_eq!(job.schedule.as_ref().and_then(|s| s.next_after(noon())), "2026-11-21T02:00:00Z".parse().ok());
}

#[test]
fn the_shipped_file_tells_slack_once_its_variable_is_set() {
    let settings = good(SHIPPED, &[("SLACK_WEBHOOK_URL", "https://hooks.slack.com/services/T0/B0/path")]);
    assert!(matches!(settings.receivers["slack"].kind, ReceiverKind::Slack { .. }));
    assert_eq!(settings.jobs[0].notify, ["slack"]);
    assert!(settings.notes.is_empty(), "{:?}", settings.notes);
    let shown = format!("{:?} {:?}", settings.summary_lines(), settings.receivers);
    assert!(!shown.contains("B0/path"), "{shown}");
}

#[test]
fn what_is_not_written_has_its_documented_default() {
    let settings = good(PLAIN, &[]);
    let job = &settings.jobs[0];
    assert_eq!((job.overlap, job.catch_up, job.paused), (Overlap::Skip, CatchUp::Latest, false));
    assert_eq!((job.on_crash, job.when_db_down), (OnCrash::Rerun, WhenDbDown::Run));
    assert_eq!(job.catch_up_window, Duration::from_secs(86_400));
    assert_eq!(job.retry.max_backoff, Duration::from_secs(300));
    assert_eq!(job.severity.as_str(), "warning");
    let dataset = &settings.datasets["transactions"];
    assert_eq!((dataset.database, dataset.timestamp_field.as_str()), (0, "_timestamp"));
    assert_eq!((dataset.max_record_size.0, dataset.ttl.0.as_secs()), (8_000_000, 604_800));
}

#[test]
fn a_jobs_retry_takes_what_it_leaves_out_from_the_defaults() {
    let text = format!("[defaults]\nretry = {{ attempts = 7, max_backoff = \"1m\" }}\n{PLAIN}")
        .replace("schedule =", "retry.backoff = \"5s\"\nschedule =");
    let retry = good(&text, &[]).jobs[0].retry;
    let seconds = Duration::from_secs;
    assert_eq!((retry.attempts, retry.backoff, retry.max_backoff), (7, seconds(5), seconds(60)));
}

#[test]
fn every_mistake_is_reported_at_once_with_its_line() {
    let problems = problems(MISTAKES, &[]);
    assert!(problems.iter().len() >= 25, "{problems}");
    insta::assert_snapshot!(without_cron_sentences(&problems.to_string()));
    for problem in problems.iter() {
        let line = MISTAKES.lines().nth(problem.line.expect("every mistake is in the file") - 1);
        let key = problem.path.rsplit('.').next().unwrap_or_default().split('[').next().unwrap_or_default();
        let missing = problem.message.contains("is missing");
        let key = key.trim_matches('"');
        assert!(missing || line.is_some_and(|line| line.contains(key)), "{problem} is not on its line");
    }
}

#[test]
fn problems_are_json_too() {
    let text = PLAIN.replace("kind =", "kid =");
    let json = serde_json::to_string_pretty(&problems(&text, &[])).unwrap();
    insta::assert_snapshot!(json);
}

#[test]
fn a_variable_changes_what_the_file_says() {
    let settings = good(
        &format!("{PLAIN}\n[receivers.ops]\nkind = \"console\"\n"),
        &[
            ("LAMPLIGHTER__JOBS__NIGHTLY_UPLOAD__TIMEOUT", "45m"),
            ("LAMPLIGHTER__JOBS__NIGHTLY_UPLOAD__PAUSED", "true"),
            ("LAMPLIGHTER__JOBS__NIGHTLY_UPLOAD__NOTIFY", "ops, console"),
            ("LAMPLIGHTER__DEFAULTS__RETRY__ATTEMPTS", "9"),
            ("LAMPLIGHTER__DATASETS__TRANSACTIONS__DATABASE", "5"),
            ("LAMPLIGHTER__DATASETS__TRANSACTIONS__CLUSTER_BY", "[\"_timestamp\"]"),
        ],
    );
    let job = &settings.jobs[0];
    assert_eq!((job.timeout, job.paused, job.retry.attempts), (Duration::from_secs(2700), true, 9));
    assert_eq!(job.notify, ["ops", "console"]);
    let dataset = &settings.datasets["transactions"];
    assert_eq!((dataset.database, &dataset.cluster_by[..]), (5, &["_timestamp".to_owned()][..]));
}

#[test]
fn a_mistake_in_a_variable_names_the_variable() {
    let problems = problems(
        PLAIN,
        &[
            ("LAMPLIGHTER__JOBS__NIGHTLY_UPLOAD__TIMEOUT", "ten minutes"),
            ("LAMPLIGHTER__JOBS__NIGHTLY_UPLOD__PAUSED", "true"),
            ("LAMPLIGHTER__JOBS__NIGHTLY_UPLOAD__PAUSED", "perhaps"),
            ("LAMPLIGHTER__JOBS__NIGHTLY_UPLOAD__COLOUR", "blue"),
            ("LAMPLIGHTER__JOBS__NIGHTLY_UPLOAD__NOTIFY", "console,pager"),
            ("LAMPLIGHTER__DEFAULTS__RETRY__ATTEMPTS", "many"),
            ("LAMPLIGHTER__DATASETS__TRANSACTIONS__LAYOUT__DEPTH", "1"),
            ("LAMPLIGHTER__JOBS", "x"),
            ("LAMPLIGHTER__JOB__X__Y", "x"),
        ],
    );
    insta::assert_snapshot!(problems.to_string());
}

#[test]
fn variables_are_filled_into_texts() {
    let text = PLAIN.replace("\"upload_queue\"", "\"${TEAM}_queue_${SUFFIX:-live}\"").replace("tx:{id}", "$${id}");
    let settings = good(&text, &[("TEAM", "risk"), ("SUFFIX", "")]);
    assert_eq!(settings.datasets["transactions"].queue, "risk_queue_live");
    assert_eq!(settings.datasets["transactions"].keys.as_str(), "${id}");
}

#[test]
fn a_variable_that_is_unset_or_misspelt_is_a_problem_that_names_it() {
    for (written, said) in [
        ("${NO_SUCH}", "the variable NO_SUCH is not set"),
        ("${NO_SUCH", "never closed"),
        ("${}", "not the name of a variable"),
        ("${A B}", "not the name of a variable"),
    ] {
        let text = PLAIN.replace("upload_queue", written);
        let problems = problems(&text, &[]);
        assert_eq!(problems.iter().len(), 1, "{problems}");
        assert!(problems.to_string().contains(said), "{problems}");
    }
}

#[test]
fn secrets_are_never_shown() {
    // Each hides the word in a place where somebody may put a secret, beside a mistake that is reported.
    let slack = "[receivers.slack]\nkind = \"slack\"\n";
    let webhook = "[receivers.ops]\nkind = \"webhook\"\nurl = \"https://ops.example\"\n";
    let literal = [
        format!("{slack}url = \"HIDDEN\""),
        format!("{slack}url = \"ftp://hooks.example/HIDDEN\""),
        format!("{slack}ulr = \"https://hooks.example/HIDDEN\""),
        format!("{slack}url = [\"https://hooks.example/HIDDEN\"]"),
        format!("{slack}url = {{ value = \"HIDDEN\" }}"),
        format!("{slack}url = \"\"\"\nhttps:/HIDDEN\"\"\""),
        format!("{slack}url = \"https://hooks.example/HIDDEN"),
        format!("{slack}url = https://hooks.example/HIDDEN"),
        format!("{slack}url = \"\"\"\nHIDDEN\n"),
        format!("{slack}url = \"${{UNSET:-HIDDEN}}\""),
        format!("{slack}timout = \"1s\" # was https://hooks.example/HIDDEN"),
        "receivers = { slack = { kind = \"slack\", url = \"HIDDEN\" } }".to_owned(),
        format!("{webhook}secret = \"whsec_HIDDEN\""),
        format!("{webhook}headers = {{ Authorization = \"Bearer\\nHIDDEN\" }}"),
        format!("{webhook}headers = {{ \"not a header\" = \"HIDDEN\" }}"),
        format!("{webhook}headers = \"HIDDEN\""),
        "[cache]\nurl = \"redis://:HIDDEN@localhost\"".to_owned(),
        "redis_password = \"HIDDEN\"".to_owned(),
        "[cache]\nurl = redis://:HIDDEN@localhost".to_owned(),
    ];
    for text in literal {
        let problems = problems(&text, &[]);
        let json = serde_json::to_string(&problems).unwrap();
        assert!(!format!("{problems} {json}").contains("HIDDEN"), "{text}\n---\n{problems}");
    }
    // Whatever comes from a variable is shown as it was written.
    for (key, value) in [
        ("timeout", "HIDDEN"),
        ("schedule", "0 HIDDEN * * *"),
        ("timezone", "Europe/HIDDEN"),
        ("kind", "HIDDEN"),
        ("overlap", "HIDDEN"),
        ("severity", "warnin"),
        ("notify", "HIDDEN"),
    ] {
        let bracketed = if key == "notify" { "[\"${VALUE}\"]" } else { "\"${VALUE}\"" };
        let text = format!("[jobs.a]\ndatasets = []\nkind = \"upload\"\n{key} = {bracketed}")
            .replace(if key == "kind" { "kind = \"upload\"\n" } else { "\0" }, "");
        let problems = problems(&text, &[("VALUE", value)]);
        let shown = format!("{problems} {}", serde_json::to_string(&problems).unwrap());
        assert!(!shown.contains("HIDDEN") && !shown.contains("\"warning\""), "{text}\n---\n{problems}");
        assert!(shown.contains("${VALUE}"), "{problems}");
    }
    for variables in [
        &[("LAMPLIGHTER__RECEIVERS__SLACK__URL", "HIDDEN")][..],
        &[("LAMPLIGHTER__RECEIVERS__SLACK__ULR", "https://x/HIDDEN")],
        &[("REDIS_URL", "http://:HIDDEN@x")],
        &[("REDIS_URL", "redis://:a@x"), ("REDIS_PASSWORD", "HIDDEN")],
        &[("REDIS_HOST", "x/HIDDEN"), ("REDIS_PORT", "1")],
        &[("REDIS_HOST", "x"), ("REDIS_PORT", "HIDDEN")],
        &[("DATABASE_URL", "mysql://:HIDDEN@x")],
        &[("DATABASE_URL", "HIDDEN")],
        &[("BIGQUERY_PROJECT", "p"), ("GOOGLE_CREDENTIALS_JSON", "{\"private_key\": \"HIDDEN\"")],
        &[("BIGQUERY_PROJECT", "p"), ("GOOGLE_APPLICATION_CREDENTIALS", "/tmp/HIDDEN-key")],
    ] {
        let text = "[receivers.slack]\nkind = \"slack\"\nurl = \"${S:-https://x}\"\n";
        let problems = problems(text, variables);
        let shown = format!("{problems} {}", serde_json::to_string(&problems).unwrap());
        assert!(!shown.contains("HIDDEN"), "{shown}");
    }
    let text = format!("{webhook}secret = \"${{SECRET}}\"");
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let settings = good(&text, &[("SECRET", secret), ("REDIS_URL", "redis://u:HIDDEN@r.example/2")]);
    let shown = format!("{:?} {:?} {:?}", settings.receivers, settings.backends, settings.summary_lines());
    assert!(!shown.contains("HIDDEN") && !shown.contains(secret), "{shown}");
    assert!(shown.contains("cache: Redis r.example:6379/2"), "{shown}");
}

#[test]
fn a_file_that_cannot_be_read_is_one_problem_with_its_cure() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("latin1.toml"), b"[defaults]\n# caf\xe9\n").unwrap();
    fs::write(path("utf16.toml"), b"\xff\xfe[\0").unwrap();
    fs::write(path("large.toml"), "#".repeat(10_000_000)).unwrap();
    fs::create_dir(path("folder")).unwrap();
    fs::write(path("jobs.toml"), "").unwrap();
    let mut shown = String::new();
    for name in ["missing.toml", "folder", "", "latin1.toml", "utf16.toml", "large.toml", "jobs.toml/below"] {
        let problems = Settings::load(Some(&path(name)), &Env::new(), &jobs::kinds()).err().expect("it cannot be read");
        assert_eq!(problems.iter().len(), 1, "{problems}");
        shown += &format!("{problems}\n\n");
    }
    insta::assert_snapshot!(shown.replace(folder.path().to_str().unwrap(), "FOLDER"));
}

#[test]
fn the_file_is_the_one_that_config_names_else_the_variable() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one.toml"), folder.path().join("two.toml"));
    fs::write(&one, PLAIN).unwrap();
    fs::write(&two, "").unwrap();
    let variables = env(&[("LAMPLIGHTER_CONFIG", two.to_str().unwrap())]);
    let by_flag =
        Settings::load(Some(&one), &variables, &jobs::kinds()).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!((by_flag.file, by_flag.jobs.len()), (one, 1));
    let by_variable = Settings::load(None, &variables, &jobs::kinds()).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!((by_variable.file, by_variable.jobs.len()), (two, 0));
    assert!(by_variable.notes[0].contains("has no jobs"), "{:?}", by_variable.notes);
}

#[test]
fn what_is_not_toml_is_shown_where_it_begins() {
    let mut shown = String::new();
    for text in
        ["[jobs.a\nkind = 1", "a = 1\na = 2", "[defaults]\r\ntimeout = \"10m\r\n", "timeout = 10m", "\u{1}", "[[jobs]]"]
    {
        shown += &format!("{}\n\n", problems(text, &[]));
    }
    insta::assert_snapshot!(shown);
}

#[test]
fn more_loads_than_bigquery_takes_in_a_day_are_a_warning() {
    for (schedule, warned) in [
        ("every = \"30s\"", true),
        ("every = \"1m\"", false),
        ("schedule = \"* * * * *\"", false),
        ("schedule = \"*/30 * * * * *\"", true),
        ("schedule = \"*/30 * * * * 1\"", true),
        ("schedule = \"0 2 * * *\"", false),
    ] {
        let warnings = good(&PLAIN.replace("schedule = \"0 2 * * *\"", schedule), &[]).warnings(noon());
        assert_eq!(!warnings.is_empty(), warned, "{schedule}: {warnings:?}");
        assert!(warnings.iter().all(|warning| warning.contains("raw.transactions")), "{warnings:?}");
    }
    let second = "\n[jobs.other]\nkind = \"upload\"\nevery = \"1m\"\ndatasets = [\"transactions\"]\n";
    let both = PLAIN.replace("schedule = \"0 2 * * *\"", "every = \"1m\"") + second;
    assert_eq!(good(&both, &[]).warnings(noon()).len(), 1, "two jobs' loads into one table add up");
}

#[test]
fn every_key_and_kind_is_explained_in_the_docs() {
    let docs = include_str!("../../docs/jobs.md");
    for kind in jobs::kinds().names() {
        assert!(docs.contains(&format!("\n### {kind}\n")), "docs/jobs.md has no heading for the kind {kind}");
    }
    // The sentences that list what is allowed know every key.
    let asked = "[defaults]\nx = 1\nretry.x = 1\n[receivers.a]\nkind = \"webhook\"\nx = 1\n[datasets.a]\nx = 1\n\
                 [jobs.a]\nkind = \"upload\"\nx = 1\n";
    let problems = problems(asked, &[]);
    let allowed: Vec<&str> = problems
        .iter()
        .filter(|problem| problem.message == "unknown key `x`")
        .filter_map(|problem| problem.allowed.as_deref()?.strip_prefix("allowed: "))
        .collect();
    assert_eq!(allowed.len(), 5, "{problems}");
    for key in allowed.iter().flat_map(|keys| keys.split(", ")).filter(|key| *key != "retry") {
        let explained = [format!("| `{key}` |"), format!("| `retry.{key}` |")].iter().any(|row| docs.contains(row));
        assert!(explained, "docs/jobs.md does not explain {key}");
    }
}

/// A settings file that is right, and what it says.
#[derive(Debug, Clone)]
struct Generated {
    name: String,
    seconds: u64,
    attempts: u32,
    database: u16,
    queue: String,
    columns: Vec<String>,
    json: bool,
    paused: bool,
}

impl Generated {
    fn text(&self) -> String {
        let quote = |text: &String| toml::Value::String(text.clone()).to_string();
        let columns: Vec<String> = self.columns.iter().map(quote).collect();
        format!(
            "[jobs.{name}]\nkind = \"upload\"\nevery = \"{seconds}s\"\nretry.attempts = {attempts}\npaused = {paused}\n\
             datasets = [\"{name}\"]\n[datasets.{name}]\ndatabase = {database}\nqueue = {queue}\nkeys = \"k:{{id}}\"\n\
             table = \"a.b\"\nlayout = \"{layout}\"\ncluster_by = [{columns}]\n",
            name = self.name,
            seconds = self.seconds,
            attempts = self.attempts,
            paused = self.paused,
            database = self.database,
            queue = quote(&self.queue),
            layout = if self.json { "json" } else { "columns" },
            columns = columns.join(", "),
        )
    }
}

fn generated() -> impl Strategy<Value = Generated> {
    let columns = prop::collection::btree_set("[a-z_]{1,12}", 0..=4);
    let parts = ("[a-zA-Z0-9_-]{1,30}", 1..100_000_u64, 1..=100_u32, 0..=65_535_u16, "[^$\\p{Cc}]{1,30}", columns);
    (parts, any::<bool>(), any::<bool>()).prop_map(
        |((name, seconds, attempts, database, queue, columns), json, paused)| {
            let columns = if json { Vec::new() } else { columns.into_iter().collect() };
            Generated { name, seconds, attempts, database, queue, columns, json, paused }
        },
    )
}

proptest! {
    #[test]
    fn every_well_formed_file_is_read_as_it_was_meant(generated in generated()) {
        let settings = parse(&generated.text(), &[]).map_err(|problems| TestCaseError::fail(problems.to_string()))?;
        let (job, dataset) = (&settings.jobs[0], &settings.datasets[&generated.name]);
        prop_assert_eq!(&job.name, &generated.name);
        let every = matches!(&job.schedule, Some(Schedule::Every { period }) if period.as_secs() == generated.seconds);
        prop_assert!(every, "{:?}", job.schedule);
        prop_assert_eq!((job.retry.attempts, job.paused), (generated.attempts, generated.paused));
        prop_assert_eq!((dataset.database, &dataset.queue), (generated.database, &generated.queue));
        prop_assert_eq!(&dataset.cluster_by, &generated.columns);
        prop_assert_eq!(dataset.layout == Layout::Json, generated.json);
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in any::<String>(), value in any::<String>()) {
        if let Err(problems) = parse(&text, &[("LAMPLIGHTER__DEFAULTS__TIMEOUT", &value), ("REDIS_URL", &value)]) {
            prop_assert!(problems.iter().len() > 0);
            prop_assert!(!problems.to_string().contains('\u{1b}'), "it plays tricks on the terminal");
        }
    }

    #[test]
    fn no_toml_makes_the_reader_panic(
        lines in prop::collection::vec(
            ("(\\[{1,2}(defaults|jobs|datasets|receivers|a)(\\.(slack|x|\"\"|\"é\")){0,2}\\]{1,2}|kind|url|timeout|retry|notify|keys|queue|\"\\\\n\")",
             "(|= (\"(upload|slack|\\$\\{A\\}|\\$\\{|https://x|é)\"|1|-9e99|true|1979-05-27|\\[1, [\"x\"]\\]|\\{ a = 1 \\}|99999999999999999999))"),
            0..12,
        )
    ) {
        let text: String = lines.iter().map(|(key, value)| format!("{key} {value}\n")).collect();
        if let Err(problems) = parse(&text, &[("A", "secret-of-a")]) {
            prop_assert!(!problems.to_string().contains("secret-of-a"), "{problems}");
        }
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jobs.toml");
        fs::write(&path, &bytes).unwrap();
        let read = Settings::load(Some(&path), &Env::new(), &jobs::kinds());
        prop_assert!(read.is_ok() || read.is_err_and(|problems| problems.iter().len() > 0));
    }
}
