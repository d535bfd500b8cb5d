//! Many mistakes at once: none hides another, and none costs much.

use super::*;

#[test]
fn one_mistake_does_not_hide_another() {
    let text = r#"
        [defaults]
        timezone = "UTC"

        [datasets.transactions]
        queue = "upload_queue"
        keys = "tx:{id}"
        table = "raw.transactions"
        layout = "json"
        cluster_by = ["amount"]
        colour = "blue"

        [datasets.predictions]
        queue = "upload_queue"
        keys = "pred:{id}"
        table = "raw.predictions"
        layout = "columns"
        max_record_size = "0B"

        [jobs.nightly-upload]
        kind = "upload"
        schedule = "0 2 30 2 *"
        datasets = ["transactions"]
        retry = { backoff = "1h", max_backoff = "1m" }
        batch = { max_row = 7, max_rows = 0, max_bytes = "0B" }
        lease = "10ms"
        timeout = "soon"

        [jobs.hourly-upload]
        kind = "upload"
        schedule = "0 * * * *"
        retry = { backoff = "1x", max_backoff = "1s" }
        batch = { max_rows = "many" }

        [jobs.weekly-upload]
        kind = "uplod"
        datasets = ["transactions", 3, "predictoins"]
        batch = { max_rows = 0 }

        [receivers.ops]
        kind = "webhok"
        url = "ftp://ops.example/secret"
        timeout = "1h"
        colour = "blue"
    "#;
    let problems = problems(text, &[]);
    let found: Vec<(&str, Option<usize>)> = problems.iter().map(|problem| (&*problem.path, problem.line)).collect();
    assert_eq!(
        found,
        [
            ("datasets.transactions.cluster_by", Some(10)),
            ("datasets.transactions.colour", Some(11)),
            ("datasets.predictions.max_record_size", Some(18)),
            ("jobs.nightly-upload.schedule", Some(22)),
            ("jobs.nightly-upload.datasets", Some(23)),
            ("jobs.nightly-upload.retry.backoff", Some(24)),
            ("jobs.nightly-upload.batch.max_row", Some(25)),
            ("jobs.nightly-upload.batch.max_rows", Some(25)),
            ("jobs.nightly-upload.batch.max_bytes", Some(25)),
            ("jobs.nightly-upload.lease", Some(26)),
            ("jobs.nightly-upload.timeout", Some(27)),
            ("jobs.hourly-upload.datasets", Some(29)),
            ("jobs.hourly-upload.retry.backoff", Some(32)),
            ("jobs.hourly-upload.batch.max_rows", Some(33)),
            ("jobs.weekly-upload.kind", Some(36)),
            ("jobs.weekly-upload.datasets[1]", Some(37)),
            ("jobs.weekly-upload.datasets[2]", Some(37)),
            ("jobs.weekly-upload.batch.max_rows", Some(38)),
            ("receivers.ops.kind", Some(41)),
            ("receivers.ops.url", Some(42)),
            ("receivers.ops.timeout", Some(43)),
            ("receivers.ops.colour", Some(44)),
        ],
        "{problems}"
    );
    // Of a secret, what is wrong with it is told without it.
    let said = problems.to_string();
    assert!(said.contains("`url`: it must begin with https://") && !said.contains("ops.example"), "{said}");
}

#[test]
fn the_largest_and_worst_file_is_refused_in_little_time_and_few_words() {
    let many_keys: String = (0..60_000).map(|n| format!("key{n} = 1\n")).collect();
    let many_names = format!("{PLAIN}[defaults]\nnotify = [{}]", "\"nobody\",".repeat(50_000));
    let many_values = format!("[defaults]\nnotify = [{}]", "1,".repeat(100_000));
    let many_jobs: String = (0..20_000).map(|n| format!("[jobs.j{n}]\nkind = \"uplod\"\n")).collect();
    let long_word = format!("{} = \"{}\"", "k".repeat(400_000), "v".repeat(400_000));
    for text in [many_keys, many_names, many_values, many_jobs, long_word] {
        let begin = std::time::Instant::now();
        let shown = problems(&text, &[]).to_string();
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?} for {:.40}", begin.elapsed(), text);
        assert!(shown.len() < 100_000, "{} bytes for {:.40}", shown.len(), text);
    }
}
