//! One request to BigQuery and what came of it: the token, the time limits, the answer's status and reason, and another
//! try where trying again is harmless. The client crate's own calls lose the status of an answer that is not the JSON
//! they expect, such as a proxy's page with 503, so requests are made here.

use std::error::Error;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder, Retryable};
use bytes::{Bytes, BytesMut};
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Client, RequestBuilder, StatusCode};
use secrecy::ExposeSecret;
use serde_json::Value;
use url::Url;

use super::auth::{NoToken, Tokens};
use super::{Timeouts, WarehouseError};

/// The longest answer that is read. A table with 10,000 columns fits.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// Requests to one BigQuery endpoint.
pub(super) struct Rest {
    http: Client,
    tokens: Tokens,
    endpoint: Url,
    service: String,
    pub(super) timeouts: Timeouts,
}

/// An answer with a status of success, or 308 from an upload.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    /// The body as JSON; `Null` if it is something else.
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// Why a request came to nothing.
#[derive(Debug)]
pub(super) enum Trouble {
    /// No complete answer came. Whether the request was carried out is unknown.
    NoAnswer(String),
    /// BigQuery, or something between it and us, said no.
    Status {
        /// The HTTP status.
        status: StatusCode,
        /// BigQuery's word for it, such as `rateLimitExceeded`; empty if there is none.
        reason: String,
        /// BigQuery's sentence.
        message: String,
        /// How long we are asked to wait.
        retry_after: Option<Duration>,
    },
    /// There is no access token, so nothing was sent.
    NoToken(NoToken),
}

impl Trouble {
    /// Whether the same request can succeed a little later.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::NoAnswer(_) => true,
            Self::NoToken(trouble) => matches!(trouble, NoToken::Unavailable(_)),
            Self::Status { status, reason, .. } => {
                status.is_server_error()
                    || matches!(*status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
                    || matches!(
                        reason.as_str(),
                        "backendError"
                            | "internalError"
                            | "rateLimitExceeded"
                            | "userRateLimitExceeded"
                            | "tableUnavailable"
                    )
            }
        }
    }

    /// The HTTP status, if there was an answer.
    pub(super) fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether the thing that is not there is of this kind: `Dataset`, `Table`, `Job`, `Project`.
    pub(super) fn is_missing(&self, kind: &str) -> bool {
        matches!(self, Self::Status { status, message, .. }
            if *status == StatusCode::NOT_FOUND && message.starts_with(&format!("Not found: {kind}")))
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl Rest {
    /// A client of `endpoint`, which is the service's root, such as `https://bigquery.googleapis.com/`.
    pub(super) fn new(http: Client, tokens: Tokens, endpoint: Url, service: String, timeouts: Timeouts) -> Self {
        Self { http, tokens, endpoint, service, timeouts }
    }

    /// The address of a resource below `/bigquery/v2/projects/` or `/upload/bigquery/v2/projects/`.
    pub(super) fn url(&self, upload: bool, segments: &[&str]) -> Url {
        let mut url = self.endpoint.clone();
        let mut path = url.path_segments_mut().expect("connect() only takes http and https addresses");
        path.pop_if_empty();
        if upload {
            path.push("upload");
        }
        path.extend(["bigquery", "v2", "projects"]).extend(segments);
        drop(path);
        url
    }

    /// The address of an upload session as the server named it, if our token may be sent there.
    pub(super) fn session_url(&self, location: &str) -> Option<Url> {
        let url = self.endpoint.join(location).ok()?;
        let home = url.origin() == self.endpoint.origin();
        let google = url.scheme() == "https" && url.host_str().is_some_and(|host| host.ends_with(".googleapis.com"));
        (home || google).then_some(url)
    }

    /// Sends a request once; a second time, with a new token, if the token is not accepted.
    pub(super) async fn send(
        &self,
        timeout: Duration,
        request: impl Fn(&Client) -> RequestBuilder,
    ) -> Result<Answer, Trouble> {
        let first = self.send_with_token(timeout, false, &request).await;
        match first {
            Err(trouble) if trouble.status() == Some(StatusCode::UNAUTHORIZED) && self.tokens.are_used() => {
                self.send_with_token(timeout, true, &request).await
            }
            answer => answer,
        }
    }

    /// Sends a request that may safely arrive more than once, until it is answered or the tries are used up.
    pub(super) async fn send_patiently(&self, request: impl Fn(&Client) -> RequestBuilder) -> Result<Answer, Trouble> {
        (|| self.send(self.timeouts.control, &request))
            .retry(self.backoff())
            .when(Trouble::is_passing)
            .adjust(|trouble, planned| self.wait(trouble, planned))
            .notify(|trouble, wait| tracing::debug!(?wait, ?trouble, "BigQuery is asked again"))
            .await
    }

    /// The waits between tries: growing, with jitter, limited in number and in sum.
    pub(super) fn backoff(&self) -> ExponentialBuilder {
        ExponentialBuilder::default()
            .with_jitter()
            .with_min_delay(self.timeouts.retry_first)
            .with_max_delay(Duration::from_secs(8))
            .with_max_times(self.timeouts.retries)
            .with_total_delay(Some(self.timeouts.retry_total))
    }

    /// The same, for loops that drive it themselves.
    pub(super) fn waits(&self) -> impl Iterator<Item = Duration> + Send + use<> {
        self.backoff().build()
    }

    /// The wait before the next try: what was planned, or longer if the service asked for that. `None`: there is none. Who
    /// asks for more time than we have to give is reported instead, with what was asked for.
    pub(super) fn wait(&self, trouble: &Trouble, planned: Option<Duration>) -> Option<Duration> {
        let asked = trouble.retry_after().unwrap_or_default();
        planned.map(|planned| planned.max(asked)).filter(|wait| *wait <= self.timeouts.retry_total)
    }

    async fn send_with_token(
        &self,
        timeout: Duration,
        fresh: bool,
        request: impl Fn(&Client) -> RequestBuilder,
    ) -> Result<Answer, Trouble> {
        let token = self.tokens.get(fresh).await.map_err(Trouble::NoToken)?;
        let mut request = request(&self.http).timeout(timeout);
        if let Some(token) = token {
            request = request.bearer_auth(token.expose_secret());
        }
        // An upload's address is a key to it, so no address gets into a message.
        let broken = |error: reqwest::Error| Trouble::NoAnswer(in_full(&error.without_url()));
        let mut response = request.send().await.map_err(broken)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let mut body = BytesMut::new();
        while let Some(part) = response.chunk().await.map_err(broken)? {
            if body.len() + part.len() > MAX_ANSWER_BYTES {
                return Err(Trouble::NoAnswer(format!("an answer of more than {MAX_ANSWER_BYTES} bytes")));
            }
            body.extend_from_slice(&part);
        }
        let answer = Answer { status, headers, body: body.freeze() };
        if status.is_success() || status == StatusCode::PERMANENT_REDIRECT {
            return Ok(answer);
        }
        Err(refusal(&answer))
    }

    /// The trouble as the error that callers see; `doing` says what was tried.
    pub(super) fn error(&self, trouble: Trouble, doing: &str) -> WarehouseError {
        let passing = trouble.is_passing();
        let retry_after = trouble.retry_after();
        let (reason, cure) = match trouble {
            Trouble::NoAnswer(reason) | Trouble::NoToken(NoToken::Unavailable(reason)) => (reason, String::new()),
            Trouble::NoToken(NoToken::Refused { reason, cure }) => (reason, cure),
            Trouble::Status { status, reason, message, .. } => {
                let cure = self.cure(status, &reason);
                let word = if reason.is_empty() { String::new() } else { format!(" {reason}") };
                (format!("{}{word}: {message}", status.as_u16()), cure)
            }
        };
        if passing { self.unavailable(doing, reason, retry_after) } else { self.refused(doing, reason, cure) }
    }

    /// A [`WarehouseError::Unavailable`] of this service.
    pub(super) fn unavailable(
        &self,
        doing: &str,
        reason: impl Into<String>,
        retry_after: Option<Duration>,
    ) -> WarehouseError {
        WarehouseError::Unavailable {
            service: self.service.clone(),
            doing: doing.to_owned(),
            reason: reason.into(),
            retry_after,
        }
    }

    /// A [`WarehouseError::Refused`] of this service.
    pub(super) fn refused(&self, doing: &str, reason: impl Into<String>, cure: impl Into<String>) -> WarehouseError {
        // The error's own text sets the full stops.
        let reason = reason.into().trim_end_matches('.').to_owned();
        WarehouseError::Refused { service: self.service.clone(), doing: doing.to_owned(), reason, cure: cure.into() }
    }

    fn cure(&self, status: StatusCode, reason: &str) -> String {
        match (status.as_u16(), reason) {
            (401, _) => format!("Check {}: it is not accepted as a login", self.tokens.source()),
            (_, "quotaExceeded") => "Wait until the quota is refilled, or ask Google for a higher one".to_owned(),
            (_, "billingNotEnabled") => "Turn on billing for the project".to_owned(),
            (403, _) => format!(
                "Give the account of {} the roles BigQuery Data Editor on the dataset and BigQuery Job User on the project",
                self.tokens.source()
            ),
            (404, _) => "Check BIGQUERY_PROJECT and the table's name in jobs.toml".to_owned(),
            _ => "Nothing was written; see what BigQuery says above".to_owned(),
        }
    }
}

/// Reads an answer that is not a success. BigQuery's errors are JSON, those of Google's login are other JSON, and those of
/// anything in between are pages.
fn refusal(answer: &Answer) -> Trouble {
    let body = answer.json();
    let error = &body["error"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (reason, mut message) = match error {
        Value::String(word) => (word.clone(), text(&body["error_description"])),
        _ => (text(&error["errors"][0]["reason"]), text(&error["message"])),
    };
    if message.is_empty() {
        message = format!("an answer of {} bytes that is not one of BigQuery's", answer.body.len());
    }
    Trouble::Status { status: answer.status, reason, message, retry_after: retry_after(&answer.headers) }
}

/// `Retry-After` in seconds. Its other form, a date, is not one that Google sends.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// An error with its causes, which libraries leave out of their own text.
pub(super) fn in_full(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Trouble {
        let body = Bytes::copy_from_slice(body.as_bytes());
        refusal(&Answer { status: StatusCode::from_u16(status).unwrap(), headers: HeaderMap::new(), body })
    }

    /// Every status and reason that the field reports, and whether trying again can help.
    #[test]
    fn passing_troubles_are_told_from_lasting_ones() {
        let json = |reason: &str| format!(r#"{{"error":{{"message":"m","errors":[{{"reason":"{reason}"}}]}}}}"#);
        for (status, reason, passing) in [
            (400, "invalid", false),
            (400, "invalidQuery", false),
            (400, "tableUnavailable", true),
            (401, "authError", false),
            (403, "accessDenied", false),
            (403, "billingNotEnabled", false),
            (403, "quotaExceeded", false),
            (403, "rateLimitExceeded", true),
            (404, "notFound", false),
            (408, "", true),
            (409, "duplicate", false),
            (410, "", false),
            (413, "", false),
            (418, "somethingNew", false),
            (429, "", true),
            (500, "internalError", true),
            (502, "", true),
            (503, "backendError", true),
            (504, "", true),
        ] {
            assert_eq!(answer(status, &json(reason)).is_passing(), passing, "{status} {reason}");
        }
    }

    #[test]
    fn answers_of_every_form_are_read() {
        let oauth = r#"{"error":"invalid_grant","error_description":"Token has been expired"}"#;
        for (body, wanted_reason, wanted_message) in [
            (
                r#"{"error":{"message":"Not found: Job p:j","errors":[{"reason":"notFound"}]}}"#,
                "notFound",
                "Not found: Job p:j",
            ),
            (r#"{"error":{"message":"no errors list"}}"#, "", "no errors list"),
            (oauth, "invalid_grant", "Token has been expired"),
            ("<html>Service Unavailable</html>", "", "an answer of 32 bytes that is not one of BigQuery's"),
            ("", "", "an answer of 0 bytes that is not one of BigQuery's"),
        ] {
            let Trouble::Status { reason, message, .. } = answer(503, body) else { panic!("an answer has a status") };
            assert_eq!((reason.as_str(), message.as_str()), (wanted_reason, wanted_message));
        }
    }
}
