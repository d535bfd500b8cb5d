//! A small HTTP server that keeps every request and answers as told: the far end of a webhook.
//!
//! Written on a bare socket, because it must be able to misbehave: hang, answer late, or hang up without an answer.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The server. It ends on drop.
pub(crate) struct HttpSink {
    address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

struct State {
    got: watch::Sender<Vec<Got>>,
    answered: watch::Sender<usize>,
    script: Mutex<(VecDeque<Answer>, Answer)>,
}

impl State {
    fn script(&self) -> MutexGuard<'_, (VecDeque<Answer>, Answer)> {
        self.script.lock().expect("nobody panics while holding the script")
    }
}

/// A request that came.
#[derive(Debug, Clone)]
pub(crate) struct Got {
    pub(crate) method: String,
    pub(crate) path: String,
    /// By lower-case name.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
    pub(crate) at: Instant,
}

impl Got {
    /// The body as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e} in {}", String::from_utf8_lossy(&self.body)))
    }

    /// A header, or nothing.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// What to answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
    delay: Duration,
    gate: Option<watch::Receiver<bool>>,
    hang_up: bool,
}

impl Answer {
    /// A status and a body.
    pub(crate) fn new(status: u16, body: &str) -> Self {
        Self { status, headers: Vec::new(), body: body.to_owned(), delay: Duration::ZERO, gate: None, hang_up: false }
    }

    /// The connection is closed without an answer.
    pub(crate) fn hang_up() -> Self {
        Self { hang_up: true, ..Self::new(200, "") }
    }

    /// With one more header.
    #[must_use]
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// So much later.
    #[must_use]
    pub(crate) fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Not before the gate is open.
    #[must_use]
    pub(crate) fn behind(mut self, gate: &watch::Sender<bool>) -> Self {
        self.gate = Some(gate.subscribe());
        self
    }
}

impl HttpSink {
    /// Starts on a free port of 127.0.0.1; answers 200 `ok` until told otherwise.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let script = Mutex::new((VecDeque::new(), Answer::new(200, "ok")));
        let state = Arc::new(State { got: watch::Sender::new(Vec::new()), answered: watch::Sender::new(0), script });
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            // Dropped with the task, and every connection with it.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&shared)));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, state, task }
    }

    /// The server's URL with a path.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The port.
    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// The answer from now on.
    pub(crate) fn answer(&self, answer: Answer) {
        self.state.script().1 = answer;
    }

    /// The answer to one request; called several times, to several in order.
    pub(crate) fn answer_once(&self, answer: Answer) {
        self.state.script().0.push_back(answer);
    }

    /// What came up to now.
    pub(crate) fn got(&self) -> Vec<Got> {
        self.state.got.borrow().clone()
    }

    /// Waits until `count` requests have come, and returns all.
    pub(crate) async fn wait_for(&self, count: usize) -> Vec<Got> {
        let mut got = self.state.got.subscribe();
        let arrived = tokio::time::timeout(Duration::from_secs(15), got.wait_for(|got| got.len() >= count)).await;
        match arrived {
            Ok(got) => got.expect("the sink lives").clone(),
            Err(_) => panic!("waited for {count} requests; these came: {:#?}", self.got()),
        }
    }

    /// Waits until `count` requests have been answered.
    pub(crate) async fn wait_for_answers(&self, count: usize) {
        let mut answered = self.state.answered.subscribe();
        let done =
            tokio::time::timeout(Duration::from_secs(15), answered.wait_for(|answered| *answered >= count)).await;
        assert!(done.is_ok(), "waited for {count} answers; these requests came: {:#?}", self.got());
    }
}

impl Drop for HttpSink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One request for each connection.
async fn serve(mut stream: TcpStream, state: Arc<State>) {
    let Some(got) = read(&mut stream).await else { return };
    let answer = {
        let mut script = state.script();
        script.0.pop_front().unwrap_or_else(|| script.1.clone())
    };
    state.got.send_modify(|all| all.push(got));
    tokio::time::sleep(answer.delay).await;
    if let Some(mut gate) = answer.gate {
        // A gate that is gone is open.
        let _ = gate.wait_for(|open| *open).await;
    }
    if answer.hang_up {
        return;
    }
    let mut head = format!("HTTP/1.1 {} Scripted\r\nconnection: close\r\n", answer.status);
    for (name, value) in answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", answer.body.len()));
    // The client may have lost patience; that is its business.
    let _ = stream.write_all(head.as_bytes()).await;
    let _ = stream.write_all(answer.body.as_bytes()).await;
    let _ = stream.shutdown().await;
    state.answered.send_modify(|answered| *answered += 1);
}

async fn read(stream: &mut TcpStream) -> Option<Got> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = bytes.split_off(end + 4);
    while body.len() < length {
        if stream.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    Some(Got { method, path, headers, body, at: Instant::now() })
}
