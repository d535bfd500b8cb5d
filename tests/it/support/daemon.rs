//! The real binary: started with a jobs.toml and variables, its log kept, signals sent, and killed at the end.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

/// How long anything may take before a test fails.
const DEADLINE: Duration = Duration::from_secs(90);

/// A running `lamplighter`. Killed on drop, if it has not ended.
pub(crate) struct Daemon {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

/// The binary, in a folder, with these variables and none of the machine's own that it would heed.
fn lamplighter(folder: &Path, env: &BTreeMap<&str, String>, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lamplighter"));
    command.current_dir(folder).args(args).env_clear().stdin(Stdio::null());
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("LAMPLIGHTER_DATA", folder.join("data")).env("HOSTNAME", "test-host");
    command.envs(env.iter().map(|(name, value)| (*name, value)));
    command
}

/// Runs a command to its end.
pub(crate) async fn run(folder: &Path, env: &BTreeMap<&str, String>, args: &[&str]) -> Output {
    // Files rather than pipes: nobody has to empty them meanwhile.
    let (mut out, mut err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let mut command = lamplighter(folder, env, args);
    command.stdout(out.try_clone().unwrap()).stderr(err.try_clone().unwrap());
    let mut child = Daemon { child: command.spawn().unwrap(), log: Arc::default() };
    let status = child.ended().await;
    let read = |file: &mut std::fs::File| {
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    };
    Output { status, stdout: read(&mut out), stderr: read(&mut err) }
}

impl Daemon {
    /// Starts `lamplighter serve` in `folder`, with this jobs.toml.
    pub(crate) fn start(folder: &Path, jobs_toml: &str, env: &BTreeMap<&str, String>) -> Self {
        Self::start_with(folder, jobs_toml, env, &["serve"])
    }

    /// Starts any command.
    pub(crate) fn start_with(folder: &Path, jobs_toml: &str, env: &BTreeMap<&str, String>, args: &[&str]) -> Self {
        std::fs::write(folder.join("jobs.toml"), jobs_toml).unwrap();
        let mut command = lamplighter(folder, env, args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::default();
        keep(child.stdout.take().unwrap(), &log);
        keep(child.stderr.take().unwrap(), &log);
        Self { child, log }
    }

    /// All that it has written so far, line by line.
    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Waits for a line that contains `text`. Fails at once if the program ends before.
    pub(crate) async fn wait_for(&mut self, text: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        let mut ended_at = None;
        loop {
            if let Some(line) = self.log().into_iter().find(|line| line.contains(text)) {
                return line;
            }
            let now = Instant::now();
            if self.child.try_wait().unwrap().is_some() {
                ended_at.get_or_insert(now);
            }
            // Its last words may still be on their way.
            let gone = ended_at.is_some_and(|at| now > at + Duration::from_secs(2));
            assert!(!gone && now < deadline, "never said {text:?} (ended: {gone}):\n{}", self.log().join("\n"));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Sends a signal by its name, such as `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("sh").args(["-c", r#"kill -s "$1" "$2""#, "sh", name, &pid]).status().unwrap();
        assert!(sent.success(), "SIG{name} could not be sent:\n{}", self.log().join("\n"));
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            let late = Instant::now() > deadline;
            assert!(!late, "it did not end within {} s:\n{}", DEADLINE.as_secs(), self.log().join("\n"));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until it has said `text`, or has ended, or `limit` has passed.
    #[cfg(feature = "failpoints")]
    pub(crate) async fn said_or_ended(&mut self, text: &str, limit: Duration) {
        let deadline = Instant::now() + limit;
        while self.child.try_wait().unwrap().is_none()
            && Instant::now() < deadline
            && !self.log().iter().any(|line| line.contains(text))
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Kills it without a word (SIGKILL), as a machine that loses power would.
    #[cfg(feature = "failpoints")]
    pub(crate) async fn kill(&mut self) {
        self.child.kill().unwrap();
        self.ended().await;
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn keep(stream: impl Read + Send + 'static, log: &Arc<Mutex<Vec<String>>>) {
    let log = log.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            log.lock().unwrap().push(line);
        }
    });
}
