//! The BigQuery emulator: one process for the whole test binary, one project with one dataset for each test.
//!
//! It runs in a Python environment that `bigquery/setup.sh` makes, and ends with us: it watches its standard input, which
//! closes however this process ends.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

use lamplighter::warehouse::{BigQuery, BigQuerySettings, Credentials, TableRef, Timeouts};
use serde_json::{Value, json};

const START_DEADLINE: Duration = Duration::from_secs(90);

struct Emulator {
    port: u16,
    /// Kept for its standard input.
    _process: Child,
}

fn emulator() -> &'static Emulator {
    static EMULATOR: OnceLock<Emulator> = OnceLock::new();
    EMULATOR.get_or_init(start)
}

fn start() -> Emulator {
    let home = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let scripts = home.join("tests/it/support/bigquery");
    let venv =
        std::env::var_os("LAMPLIGHTER_TEST_VENV").map_or_else(|| home.join("target/bigquery-venv"), PathBuf::from);
    assert!(
        venv.join("complete").is_file(),
        "the BigQuery emulator is not installed in {0}; run: tests/it/support/bigquery/setup.sh {0}",
        venv.display()
    );
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("bigquery-{}", std::process::id()));
    // Of an earlier process that had our number.
    let _ = std::fs::remove_dir_all(&folder);
    let complaints = folder.with_extension("log");
    let mut process = Command::new(venv.join("bin/python"))
        .arg(scripts.join("launch.py"))
        .arg(&folder)
        .env("HOME", venv.join("home"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(&complaints).expect("the folder for temporary files is cargo's"))
        .spawn()
        .expect("a complete environment has a Python");
    let output = process.stdout.take().expect("it is piped");
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let _ = BufReader::new(output).read_line(&mut line);
        let _ = sender.send(line);
    });
    let line = receiver.recv_timeout(START_DEADLINE).unwrap_or_default();
    let port = serde_json::from_str::<Value>(&line).ok().and_then(|ready| ready["port"].as_u64());
    let port = port.unwrap_or_else(|| {
        let said = std::fs::read_to_string(&complaints).unwrap_or_default();
        panic!("the BigQuery emulator did not start within {START_DEADLINE:?}; it said {line:?} and:\n{said}")
    });
    // The file stays open in the emulator; its name goes with this, so that nothing is left behind.
    let _ = std::fs::remove_file(&complaints);
    Emulator { port: u16::try_from(port).expect("a port"), _process: process }
}

/// A project of its own in the emulator, with the dataset `d`.
pub(crate) struct Project {
    /// The project's name.
    pub(crate) name: String,
    http: reqwest::Client,
}

/// A request that the emulator has seen.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// Method, path and query.
    pub(crate) line: String,
    /// The size of the body.
    pub(crate) bytes: u64,
}

impl Project {
    /// Makes a new one.
    pub(crate) async fn create() -> Self {
        let project = Self::without_dataset();
        project.create_dataset("d", "EU").await;
        project
    }

    /// Makes a new one that has no dataset.
    pub(crate) fn without_dataset() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("project-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let http = reqwest::Client::builder().timeout(Duration::from_secs(60)).no_proxy().build().unwrap();
        Self { name, http }
    }

    /// Makes a dataset in it.
    pub(crate) async fn create_dataset(&self, dataset: &str, location: &str) {
        let reference = json!({"projectId": self.name, "datasetId": dataset});
        let body = json!({"datasetReference": reference, "location": location});
        let answer = self.http.post(self.url("datasets")).json(&body).send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    }

    /// The emulator's port on the loopback interface.
    pub(crate) fn port(&self) -> u16 {
        emulator().port
    }

    /// What `BIGQUERY_EMULATOR_HOST` is set to.
    pub(crate) fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port())
    }

    fn url(&self, resource: &str) -> String {
        format!("{}/bigquery/v2/projects/{}/{resource}", self.address(), self.name)
    }

    /// Settings for this project, with short waits.
    pub(crate) fn settings(&self) -> BigQuerySettings {
        self.settings_through(self.port())
    }

    /// The same, through a proxy on another port.
    pub(crate) fn settings_through(&self, port: u16) -> BigQuerySettings {
        BigQuerySettings {
            project: self.name.clone(),
            credentials: Credentials::None,
            emulator: Some(format!("http://127.0.0.1:{port}").parse().unwrap()),
            location: None,
            timeouts: Timeouts {
                connect: Duration::from_secs(5),
                control: Duration::from_secs(20),
                chunk: Duration::from_secs(40),
                retries: 4,
                retry_first: Duration::from_millis(20),
                retry_total: Duration::from_secs(5),
            },
        }
    }

    /// A client of this project.
    pub(crate) async fn connect(&self) -> BigQuery {
        BigQuery::connect(self.settings()).await.unwrap()
    }

    /// Arms a fault (see `launch.py`) for requests of this project: `matching` is a regular expression on the method, a
    /// blank, and what follows the project in the path, such as `PUT jobs`.
    pub(crate) async fn fault(&self, matching: &str, mut fault: Value) {
        let (method, resource) = matching.split_once(' ').expect("a method and a resource");
        fault["match"] = json!(format!("^{method} .*/projects/{}/{resource}", self.name));
        let answer = self.http.post(format!("{}/_fault", self.address())).json(&fault).send().await.unwrap();
        assert!(answer.status().is_success());
    }

    /// The requests of this project so far whose method and remaining path begin so: `PUT jobs`.
    pub(crate) async fn requests(&self, beginning: &str) -> Vec<Request> {
        let (method, resource) = beginning.split_once(' ').expect("a method and a resource");
        let answer = self.http.get(format!("{}/_fault", self.address())).send().await.unwrap();
        let seen: Vec<Value> = answer.json().await.unwrap();
        let mine = format!("/projects/{}/{resource}", self.name);
        let requests = seen.iter().map(|request| Request {
            line: request["line"].as_str().unwrap_or_default().to_owned(),
            bytes: request["bytes"].as_u64().unwrap_or_default(),
        });
        requests.filter(|request| request.line.starts_with(method) && request.line.contains(&mine)).collect()
    }

    /// How many rows a table has.
    pub(crate) async fn count(&self, table: &TableRef) -> u64 {
        let data: Value = self.data(table, 0).await;
        data["totalRows"].as_str().and_then(|rows| rows.parse().ok()).expect("a number of rows")
    }

    /// The values of one column, as BigQuery writes them.
    pub(crate) async fn column(&self, table: &TableRef, column: &str) -> Vec<Value> {
        let resource = format!("datasets/{}/tables/{}", table.dataset, table.table);
        let schema: Value = self.http.get(self.url(&resource)).send().await.unwrap().json().await.unwrap();
        let columns = schema["schema"]["fields"].as_array().expect("a table has columns");
        let place = columns.iter().position(|field| field["name"] == column).expect("the column is there");
        let data = self.data(table, 1_000_000).await;
        let rows = data["rows"].as_array().cloned().unwrap_or_default();
        rows.iter().map(|row| row["f"][place]["v"].clone()).collect()
    }

    async fn data(&self, table: &TableRef, max_rows: u64) -> Value {
        let resource = format!("datasets/{}/tables/{}/data?maxResults={max_rows}", table.dataset, table.table);
        self.http.get(self.url(&resource)).send().await.unwrap().json().await.unwrap()
    }
}
