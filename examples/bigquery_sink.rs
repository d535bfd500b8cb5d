//! A sink that answers like BigQuery at once: what `scripts/bench-upload` sends to, so that no warehouse is measured.
//!
//! It knows datasets, tables, `insertAll`, load jobs by simple, multipart and resumable upload, `jobs.get`, and that a job's
//! name succeeds once. It keeps no rows. It is not an emulator: schemas are served back but nothing is checked against them.
//!
//! The number of rows in a compressed load is what costs time, and the uploader under test asks for it. So the first run
//! after a start is a rehearsal: each load is uncompressed and its lines are counted when the client asks. `POST /_settle`
//! ends the run and returns what came in. From then on the n-th load into a table is answered with what the n-th load of
//! the run before held, without looking, and `/_settle` counts the real lines off the clock and reports every difference.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use serde_json::{Value, json};

const RESUME_INCOMPLETE: StatusCode = StatusCode::PERMANENT_REDIRECT;

#[derive(Default)]
struct Run {
    uploads: HashMap<u64, Upload>,
    loads: Vec<LoadJob>,
    job_ids: HashMap<String, usize>,
    inserts: BTreeMap<String, Vec<Bytes>>,
    requests: u64,
    bytes: u64,
}

struct Upload {
    metadata: Value,
    body: Vec<Bytes>,
}

struct LoadJob {
    answer: Value,
    table: String,
    ordinal: usize,
    body: Vec<Bytes>,
    counted: Option<u64>,
    answered: Option<u64>,
}

#[derive(Default)]
struct Sink {
    /// They stay from run to run, as on every night but the first.
    tables: HashMap<String, Value>,
    run: Run,
    /// Rows of each table's loads in the run before, in order.
    rehearsed: HashMap<String, Vec<u64>>,
    last_id: u64,
}

type Shared = Arc<Mutex<Sink>>;

fn lock(sink: &Shared) -> MutexGuard<'_, Sink> {
    sink.lock().expect("no handler panics while it holds the lock")
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let project = "/bigquery/v2/projects/{project}";
    let table = format!("{project}/datasets/{{dataset}}/tables/{{table}}");
    let app = Router::new()
        .route("/_settle", post(settle))
        .route("/resume/{id}", put(resume))
        .route("/upload/bigquery/v2/projects/{project}/jobs", post(begin_upload))
        .route(&format!("{project}/jobs/{{job}}"), get(get_job))
        .route(&format!("{project}/datasets"), get(async || Json(json!({"kind": "bigquery#datasetList"}))))
        .route(&format!("{project}/datasets/{{dataset}}"), get(get_dataset))
        .route(&format!("{project}/datasets/{{dataset}}/tables"), post(create_table))
        .route(&table, get(get_table).patch(patch_table))
        .route(&format!("{table}/insertAll"), post(insert_all))
        .fallback(|uri: Uri| async move { not_found(uri) })
        .with_state(Shared::default());
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
    announce(listener.local_addr()?.port());
    axum::serve(listener, app).await
}

#[expect(clippy::print_stdout, reason = "whoever starts the sink reads its port from the first line")]
fn announce(port: u16) {
    println!("{port}");
}

/// A refusal, in the shape of the service's.
struct Problem(StatusCode, &'static str, String);

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Self(status, reason, message) = self;
        let errors = json!([{"reason": reason, "message": message}]);
        let error = json!({"code": status.as_u16(), "message": message, "status": reason, "errors": errors});
        (status, Json(json!({"error": error}))).into_response()
    }
}

fn bad_request(message: impl ToString) -> Problem {
    Problem(StatusCode::BAD_REQUEST, "badRequest", message.to_string())
}

fn not_found(what: impl std::fmt::Display) -> Problem {
    Problem(StatusCode::NOT_FOUND, "notFound", format!("Not found: {what}"))
}

fn duplicate(what: impl std::fmt::Display) -> Problem {
    Problem(StatusCode::CONFLICT, "duplicate", format!("Already Exists: {what}"))
}

/// An answer in JSON.
struct Json(Value);

impl IntoResponse for Json {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, "application/json; charset=UTF-8")], self.0.to_string()).into_response()
    }
}

/// Takes a request's body as it comes, without copying it.
async fn receive(body: Body) -> Result<Vec<Bytes>, Problem> {
    let mut stream = body.into_data_stream();
    let mut pieces = Vec::new();
    while let Some(piece) = stream.next().await {
        pieces.push(piece.map_err(bad_request)?);
    }
    Ok(pieces)
}

fn join(pieces: &[Bytes]) -> Bytes {
    let mut whole = BytesMut::with_capacity(size(pieces));
    pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
    whole.freeze()
}

fn size(pieces: &[Bytes]) -> usize {
    pieces.iter().map(Bytes::len).sum()
}

fn parse(bytes: &[u8]) -> Result<Value, Problem> {
    serde_json::from_slice(bytes).map_err(bad_request)
}

async fn get_dataset(Path((project, dataset)): Path<(String, String)>) -> Json {
    let reference = json!({"projectId": project, "datasetId": dataset});
    Json(json!({"kind": "bigquery#dataset", "id": dataset, "datasetReference": reference, "location": "US"}))
}

async fn get_table(
    State(sink): State<Shared>,
    Path((_, dataset, table)): Path<(String, String, String)>,
) -> Result<Json, Problem> {
    match lock(&sink).tables.get(&format!("{dataset}.{table}")) {
        Some(table) => Ok(Json(table.clone())),
        None => Err(not_found(format_args!("Table {dataset}.{table}"))),
    }
}

async fn create_table(
    State(sink): State<Shared>,
    Path((_, dataset)): Path<(String, String)>,
    body: Body,
) -> Result<Response, Problem> {
    let mut table = parse(&join(&receive(body).await?))?;
    let name = format!("{dataset}.{}", table["tableReference"]["tableId"].as_str().unwrap_or_default());
    let tables = &mut lock(&sink).tables;
    if tables.contains_key(&name) {
        return Err(duplicate(format_args!("Table {name}")));
    }
    for (field, value) in [("kind", "bigquery#table"), ("type", "TABLE"), ("location", "US"), ("id", name.as_str())] {
        table[field] = json!(value);
    }
    tables.insert(name, table.clone());
    Ok(Json(table).into_response())
}

async fn patch_table(
    State(sink): State<Shared>,
    Path((_, dataset, table)): Path<(String, String, String)>,
    body: Body,
) -> Result<Response, Problem> {
    let change = parse(&join(&receive(body).await?))?;
    match (lock(&sink).tables.get_mut(&format!("{dataset}.{table}")), change) {
        (Some(Value::Object(known)), Value::Object(change)) => {
            known.extend(change);
            Ok(Json(Value::Object(known.clone())).into_response())
        }
        _ => Err(not_found(format_args!("Table {dataset}.{table}"))),
    }
}

async fn insert_all(
    State(sink): State<Shared>,
    Path((_, dataset, table)): Path<(String, String, String)>,
    body: Body,
) -> Result<Json, Problem> {
    let body = receive(body).await?;
    let run = &mut lock(&sink).run;
    run.requests += 1;
    run.bytes += size(&body) as u64;
    run.inserts.entry(format!("{dataset}.{table}")).or_default().push(join(&body));
    Ok(Json(json!({"kind": "bigquery#tableDataInsertAllResponse"})))
}

async fn begin_upload(
    State(sink): State<Shared>,
    Path(project): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let body = receive(body).await?;
    let body = join(&body);
    let mut sink = lock(&sink);
    sink.run.requests += 1;
    sink.run.bytes += body.len() as u64;
    if uri.query().is_some_and(|query| query.contains("uploadType=multipart")) {
        let (metadata, rows) =
            split_multipart(&headers, &body).ok_or_else(|| bad_request("not a multipart/related body of two parts"))?;
        return sink.accept(&project, parse(&metadata)?, vec![rows]);
    }
    let mut metadata = if body.is_empty() { json!({}) } else { parse(&body)? };
    metadata["project"] = json!(project);
    sink.last_id += 1;
    let id = sink.last_id;
    sink.run.uploads.insert(id, Upload { metadata, body: Vec::new() });
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("127.0.0.1");
    Ok((StatusCode::OK, [(header::LOCATION, format!("http://{host}/resume/{id}"))]).into_response())
}

/// The two parts of a `multipart/related` body: the job as JSON, and the rows.
fn split_multipart(headers: &HeaderMap, body: &Bytes) -> Option<(Bytes, Bytes)> {
    let kind = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let boundary = kind.split_once("boundary=")?.1.split(';').next()?.trim_matches(['"', '\'']);
    let boundary = format!("--{boundary}");
    let find = |text: &[u8], from: usize| Some(body.get(from..)?.windows(text.len()).position(|w| w == text)? + from);
    let part = |from: usize| find(b"\r\n\r\n", from).map(|at| at + 4);
    let metadata = part(0)?;
    let second = find(boundary.as_bytes(), metadata)?;
    let rows = part(second)?;
    let end =
        body.len() - body.iter().rev().take_while(|byte| matches!(byte, b'\r' | b'\n')).count() - boundary.len() - 4;
    (end >= rows).then(|| (body.slice(metadata..second - 2), body.slice(rows..end)))
}

/// One piece of a resumable upload, or a question how far it has come.
async fn resume(
    State(sink): State<Shared>,
    Path(id): Path<u64>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let piece = receive(body).await?;
    let mut sink = lock(&sink);
    sink.run.requests += 1;
    sink.run.bytes += size(&piece) as u64;
    let range = headers.get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok()).unwrap_or("bytes */0");
    let total: Option<usize> = range.rsplit_once('/').and_then(|(_, total)| total.parse().ok());
    let start: Option<usize> = range.strip_prefix("bytes ").and_then(|range| range.split_once('-')?.0.parse().ok());
    let upload = sink.run.uploads.get_mut(&id);
    let upload = upload.ok_or_else(|| not_found(format_args!("upload {id}")))?;
    let have = size(&upload.body);
    if start.is_some_and(|start| start != have) {
        return Err(bad_request(format!("{range}, but {have} bytes are here")));
    }
    upload.body.extend(piece);
    let have = size(&upload.body);
    if headers.contains_key(header::CONTENT_RANGE) && total != Some(have) {
        let range = have.checked_sub(1).map(|last| (header::RANGE, format!("bytes=0-{last}")));
        return Ok((RESUME_INCOMPLETE, axum::response::AppendHeaders(range)).into_response());
    }
    let upload = sink.run.uploads.remove(&id).expect("it was there a few lines above");
    let project = upload.metadata["project"].as_str().unwrap_or_default().to_owned();
    sink.accept(&project, upload.metadata, upload.body)
}

async fn get_job(State(sink): State<Shared>, Path((_, job)): Path<(String, String)>) -> Result<Json, Problem> {
    let (mut answer, rows) = {
        let mut sink = lock(&sink);
        sink.run.requests += 1;
        let Some(&index) = sink.run.job_ids.get(&job) else {
            return Err(not_found(format_args!("Job {job}")));
        };
        let load = &sink.run.loads[index];
        let rehearsed = sink.rehearsed.get(&load.table).and_then(|loads| loads.get(load.ordinal)).copied();
        let known = load.counted.or(rehearsed);
        let rows = known.unwrap_or_else(|| count_lines(&load.body));
        let load = &mut sink.run.loads[index];
        load.answered = Some(rows);
        if known.is_none() {
            // Counted, so no longer needed: a rehearsal may be far longer than this machine's memory.
            load.counted = Some(rows);
            load.body = Vec::new();
        }
        (load.answer.clone(), rows)
    };
    answer["statistics"]["load"]["outputRows"] = json!(rows.to_string());
    Ok(Json(answer))
}

impl Sink {
    /// Accepts a load job: it is done the moment it arrives.
    fn accept(&mut self, project: &str, metadata: Value, body: Vec<Bytes>) -> Result<Response, Problem> {
        let load = &metadata["configuration"]["load"];
        let place = &load["destinationTable"];
        let word = |field: &str| place[field].as_str().unwrap_or_default().to_owned();
        let table = format!("{}.{}", word("datasetId"), word("tableId"));
        let job_id = match metadata["jobReference"]["jobId"].as_str() {
            Some(id) => id.to_owned(),
            None => format!("job_{}", self.run.loads.len()),
        };
        if self.run.job_ids.contains_key(&job_id) {
            return Err(duplicate(format_args!("Job {job_id}")));
        }
        if let Some(Value::Object(schema)) = load.get("schema") {
            let known = self.tables.entry(table.clone()).or_insert_with(|| json!({"tableReference": place}));
            known["schema"] = Value::Object(schema.clone());
        }
        let answer = json!({
            "kind": "bigquery#job",
            "id": format!("{project}:US.{job_id}"),
            "jobReference": {"projectId": project, "jobId": job_id, "location": "US"},
            "configuration": metadata["configuration"],
            "status": {"state": "DONE"},
            "statistics": {
                "creationTime": "1764201600000", "startTime": "1764201600000", "endTime": "1764201600001",
                "load": {"inputFiles": "1", "inputFileBytes": size(&body).to_string(), "badRecords": "0"},
            },
        });
        let ordinal = self.run.loads.iter().filter(|load| load.table == table).count();
        self.run.job_ids.insert(job_id, self.run.loads.len());
        self.run.loads.push(LoadJob { answer: answer.clone(), table, ordinal, body, counted: None, answered: None });
        Ok(Json(answer).into_response())
    }
}

/// Ends a run: counts what is not counted yet, says what came in, and forgets it; with `?forget` it was no rehearsal either.
async fn settle(State(sink): State<Shared>, uri: Uri) -> Json {
    let mut sink = lock(&sink);
    let run = std::mem::take(&mut sink.run);
    let mut rows: BTreeMap<String, u64> = BTreeMap::new();
    let mut rehearsed: HashMap<String, Vec<u64>> = HashMap::new();
    let mut wrong = Vec::new();
    for load in &run.loads {
        let counted = load.counted.unwrap_or_else(|| count_lines(&load.body));
        if let Some(answered) = load.answered.filter(|answered| *answered != counted) {
            wrong.push(json!({"table": load.table, "load": load.ordinal, "answered": answered, "held": counted}));
        }
        *rows.entry(load.table.clone()).or_default() += counted;
        rehearsed.entry(load.table.clone()).or_default().push(counted);
    }
    for (table, requests) in &run.inserts {
        let inserted: u64 = requests.iter().map(|body| count_inserted(body)).sum();
        *rows.entry(table.clone()).or_default() += inserted;
    }
    sink.rehearsed = if uri.query() == Some("forget") { HashMap::new() } else { rehearsed };
    Json(json!({
        "rows": rows, "loads": run.loads.len(), "requests": run.requests, "bytes": run.bytes,
        "wrong_answers": wrong,
    }))
}

/// Counts the rows of an `insertAll` request: it is JSON, perhaps gzipped.
fn count_inserted(body: &[u8]) -> u64 {
    let mut text = Vec::new();
    let body = match flate2::read::MultiGzDecoder::new(body).read_to_end(&mut text) {
        Ok(_) => &text,
        Err(_) => body,
    };
    let request: Value = serde_json::from_slice(body).unwrap_or_default();
    request["rows"].as_array().map_or(0, |rows| rows.len() as u64)
}

/// Counts the rows of a load: its lines, uncompressed if need be. Text after the last line break is a row too.
fn count_lines(pieces: &[Bytes]) -> u64 {
    let gzip = pieces.iter().find(|piece| !piece.is_empty()).is_some_and(|piece| piece[0] == 0x1f);
    let raw = Pieces { pieces, at: 0, offset: 0 };
    if gzip {
        count_lines_of(flate2::bufread::MultiGzDecoder::new(std::io::BufReader::new(raw)))
    } else {
        count_lines_of(raw)
    }
}

fn count_lines_of(mut text: impl Read) -> u64 {
    let mut buffer = vec![0; 1 << 18];
    let (mut rows, mut last) = (0, b'\n');
    while let Ok(read @ 1..) = text.read(&mut buffer) {
        rows += buffer[..read].iter().filter(|byte| **byte == b'\n').count() as u64;
        last = buffer[read - 1];
    }
    rows + u64::from(last != b'\n')
}

/// Reads pieces one after the other.
struct Pieces<'a> {
    pieces: &'a [Bytes],
    at: usize,
    offset: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while let Some(piece) = self.pieces.get(self.at) {
            let left = &piece[self.offset..];
            if !left.is_empty() {
                let taken = left.len().min(buffer.len());
                buffer[..taken].copy_from_slice(&left[..taken]);
                self.offset += taken;
                return Ok(taken);
            }
            (self.at, self.offset) = (self.at + 1, 0);
        }
        Ok(0)
    }
}
