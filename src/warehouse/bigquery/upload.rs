//! A load's rows on their way: a resumable upload whose last chunk makes BigQuery start the job.
//!
//! Nothing is known of an upload until its last chunk is there, so a broken connection before that costs only the chunk:
//! the session is asked how far it got, and the rest is sent. After the last chunk has left us, an answer that does not
//! come proves nothing, and the caller asks for the job by its name.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Buf, Bytes, BytesMut};
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderMap, LOCATION, RANGE};
use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::Value;
use url::Url;

use super::rest::{Answer, Rest, Trouble};
use crate::warehouse::{LoadWriter, WarehouseError};

/// Chunks are multiples of 256 KiB; Google asks for that. One is in memory at a time, and perhaps a second in flight.
const CHUNK_BYTES: usize = 4 * 256 * 1024;

/// The writer of one load.
pub(super) struct Upload {
    rest: Arc<Rest>,
    job: Value,
    job_id: String,
    address: Url,
    session: Session,
    buffer: BytesMut,
    /// How many bytes the session holds.
    sent: u64,
}

/// Where the upload stands.
enum Session {
    Unopened,
    Open(Url),
    /// A request failed for good, or was abandoned half-way. A new session would lack what this one has got, so the writer
    /// is of no more use.
    Broken,
}

/// What the session says to a chunk or a question.
enum Progress {
    /// It holds this many bytes and wants more.
    Holds(u64),
    /// It has everything, and the job is accepted.
    Accepted,
}

impl Upload {
    pub(super) fn new(rest: Arc<Rest>, project: &str, job_id: &str, job: Value) -> Self {
        let mut address = rest.url(true, &[project, "jobs"]);
        address.query_pairs_mut().append_pair("uploadType", "resumable");
        let (session, buffer) = (Session::Unopened, BytesMut::new());
        Self { rest, job, job_id: job_id.to_owned(), address, session, buffer, sent: 0 }
    }

    fn doing(&self) -> String {
        format!("sending load {}", self.job_id)
    }

    async fn open(&self) -> Result<Url, WarehouseError> {
        let request = |http: &Client| {
            let content = "application/octet-stream";
            http.post(self.address.clone()).header("X-Upload-Content-Type", content).json(&self.job)
        };
        let answer = self.rest.send_patiently(request).await.map_err(|trouble| self.failed(trouble))?;
        let location = answer.headers.get(LOCATION).and_then(|location| location.to_str().ok());
        location.and_then(|location| self.rest.session_url(location)).ok_or_else(|| {
            self.rest.unavailable(
                &self.doing(),
                "the upload was accepted without an address of Google's to go to",
                None,
            )
        })
    }

    /// Sends the buffer. `last` tells the session that this is the end.
    async fn send_buffer(&mut self, last: bool) -> Result<(), WarehouseError> {
        // Broken until it has worked: the caller may drop us at any await, with a part of the chunk on its way.
        let session = match std::mem::replace(&mut self.session, Session::Broken) {
            Session::Open(session) => session,
            Session::Unopened => self.open().await?,
            Session::Broken => return Err(self.rest.unavailable(&self.doing(), "an earlier part was not sent", None)),
        };
        let mut chunk = self.buffer.split().freeze();
        let end = self.sent + chunk.len() as u64;
        let mut waits = self.rest.waits();
        let mut in_doubt = false;
        loop {
            let outcome = if in_doubt {
                self.ask(&session, last.then_some(end)).await
            } else {
                self.put(&session, &chunk, last.then_some(end)).await
            };
            match outcome {
                Ok(Progress::Accepted) if last => return Ok(()),
                Ok(Progress::Holds(held)) if held == end && !last => {
                    self.sent = end;
                    self.session = Session::Open(session);
                    return Ok(());
                }
                Ok(Progress::Holds(held)) if (self.sent..=end).contains(&held) => {
                    if held > self.sent {
                        waits = self.rest.waits();
                    } else if !in_doubt {
                        // It answers, yet keeps nothing of what it is sent: that must not go on forever.
                        self.pause(&mut waits, "the session keeps nothing of what is sent").await?;
                    }
                    chunk.advance(usize::try_from(held - self.sent).expect("less than the chunk is long"));
                    self.sent = held;
                    in_doubt = false;
                }
                Ok(_) => {
                    let reason = format!("the session lost its place: {} of {end} bytes were sent", self.sent);
                    return Err(self.rest.unavailable(&self.doing(), reason, None));
                }
                // A session that is gone stays gone, whatever reason comes with it.
                Err(trouble) if trouble.is_passing() && trouble.status() != Some(StatusCode::GONE) => {
                    tracing::debug!(load = self.job_id, ?trouble, "a chunk is in doubt");
                    let Some(wait) = self.rest.wait(&trouble, waits.next()) else { return Err(self.failed(trouble)) };
                    tokio::time::sleep(wait).await;
                    in_doubt = true;
                }
                Err(trouble) => return Err(self.failed(trouble)),
            }
        }
    }

    async fn pause(
        &self,
        waits: &mut (impl Iterator<Item = std::time::Duration> + Send),
        reason: &str,
    ) -> Result<(), WarehouseError> {
        let Some(wait) = waits.next() else { return Err(self.rest.unavailable(&self.doing(), reason, None)) };
        tokio::time::sleep(wait).await;
        Ok(())
    }

    async fn put(&self, session: &Url, chunk: &Bytes, total: Option<u64>) -> Result<Progress, Trouble> {
        let range = match chunk.len() as u64 {
            0 => "*".to_owned(),
            length => format!("{}-{}", self.sent, self.sent + length - 1),
        };
        self.tell(session, |request| request.body(chunk.clone()), &range, total).await
    }

    /// Asks how much the session holds.
    async fn ask(&self, session: &Url, total: Option<u64>) -> Result<Progress, Trouble> {
        self.tell(session, |request| request.body(Bytes::new()), "*", total).await
    }

    async fn tell(
        &self,
        session: &Url,
        body: impl Fn(RequestBuilder) -> RequestBuilder,
        range: &str,
        total: Option<u64>,
    ) -> Result<Progress, Trouble> {
        let total = total.map_or_else(|| "*".to_owned(), |total| total.to_string());
        let range = format!("bytes {range}/{total}");
        let request = |http: &Client| {
            let request = http.put(session.clone()).header(CONTENT_TYPE, "application/octet-stream");
            body(request.header(CONTENT_RANGE, &range))
        };
        let answer = self.rest.send(self.rest.timeouts.chunk, request).await?;
        Ok(progress(&answer))
    }

    fn failed(&self, trouble: Trouble) -> WarehouseError {
        match trouble.status() {
            Some(StatusCode::CONFLICT) => WarehouseError::Duplicate { job_id: self.job_id.clone() },
            // An expired session. It also looks like this when the last chunk was taken and its answer lost.
            Some(StatusCode::NOT_FOUND | StatusCode::GONE)
                if !["Project", "Dataset", "Table"].iter().any(|kind| trouble.is_missing(kind)) =>
            {
                self.rest.unavailable(&self.doing(), "the upload's session is gone", None)
            }
            _ => self.rest.error(trouble, &self.doing()),
        }
    }
}

fn progress(answer: &Answer) -> Progress {
    if answer.status == StatusCode::PERMANENT_REDIRECT {
        Progress::Holds(held(&answer.headers))
    } else {
        Progress::Accepted
    }
}

/// How many bytes a session holds, by its `Range: bytes=0-N`. It sends none while it holds nothing.
fn held(headers: &HeaderMap) -> u64 {
    let range = headers.get(RANGE).and_then(|range| range.to_str().ok());
    let last = range.and_then(|range| range.rsplit_once('-')).and_then(|(_, last)| last.trim().parse::<u64>().ok());
    last.map_or(0, |last| last + 1)
}

#[async_trait]
impl LoadWriter for Upload {
    async fn write(&mut self, mut body: Bytes) -> Result<(), WarehouseError> {
        while !body.is_empty() {
            // A full chunk waits for the next byte, so that the last one is never empty.
            if self.buffer.len() == CHUNK_BYTES {
                self.send_buffer(false).await?;
            }
            if self.buffer.is_empty() {
                self.buffer.reserve(CHUNK_BYTES);
            }
            let part = body.split_to(body.len().min(CHUNK_BYTES - self.buffer.len()));
            self.buffer.extend_from_slice(&part);
        }
        Ok(())
    }

    async fn commit(mut self: Box<Self>) -> Result<(), WarehouseError> {
        self.send_buffer(true).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderValue;

    #[test]
    fn a_session_says_how_much_it_holds() {
        for (range, bytes) in [(None, 0), (Some("bytes=0-0"), 1), (Some("bytes=0-262143"), 262_144), (Some("odd"), 0)] {
            let mut headers = HeaderMap::new();
            if let Some(range) = range {
                headers.insert(RANGE, HeaderValue::from_static(range));
            }
            assert_eq!(held(&headers), bytes, "{range:?}");
        }
    }
}
