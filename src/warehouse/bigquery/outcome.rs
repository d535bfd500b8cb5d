//! What BigQuery says about a load job, in our words.

use gcp_bigquery_client::model::job_status::JobStatus;
use serde_json::Value;

use crate::warehouse::{BadRow, FailureCause, LoadFailure, LoadStatus};

/// The job's label that says which reading of the batch its rows are.
pub(super) const READING_LABEL: &str = "lamplighter_reading";

/// Reads a job resource.
///
/// # Errors
/// What is odd about it, if this is no finished load of ours.
pub(super) fn load_status(job: &Value) -> Result<LoadStatus, String> {
    let status: JobStatus =
        serde_json::from_value(job["status"].clone()).map_err(|_| "the answer has no status of a job".to_owned())?;
    if status.state.as_deref() != Some("DONE") {
        return Ok(LoadStatus::Running);
    }
    if let Some(error) = status.error_result {
        let errors = status.errors.unwrap_or_default();
        let messages = errors.iter().filter_map(|error| error.message.as_deref());
        let reason = error.reason.unwrap_or_default();
        return Ok(LoadStatus::Failed(failure(&reason, &error.message.unwrap_or_default(), messages)));
    }
    let rows = number(&job["statistics"]["load"]["outputRows"]).ok_or("it does not say how many rows it wrote")?;
    let reading = number(&job["configuration"]["labels"][READING_LABEL])
        .and_then(|reading| u32::try_from(reading).ok())
        .ok_or_else(|| format!("it has no label {READING_LABEL}, so something else made it"))?;
    Ok(LoadStatus::Done { rows, reading })
}

/// BigQuery writes 64-bit numbers as strings.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

fn failure<'a>(reason: &str, message: &'a str, others: impl Iterator<Item = &'a str>) -> LoadFailure {
    let mut bad_rows: Vec<BadRow> = Vec::new();
    for message in others.chain([message]) {
        if let Some(row) = bad_row(message)
            && bad_rows.iter().all(|known| known.offset != row.offset)
        {
            bad_rows.push(row);
        }
    }
    let (cause, cure) = match reason {
        "invalid" if !bad_rows.is_empty() => (FailureCause::Rows, ""),
        // The table's columns changed after they were read; the next attempt reads them anew.
        "invalid" if message.contains("Provided Schema does not match") => (FailureCause::Passing, ""),
        "invalid" => (FailureCause::Rows, ""),
        "backendError"
        | "internalError"
        | "jobBackendError"
        | "jobInternalError"
        | "rateLimitExceeded"
        | "jobRateLimitExceeded"
        | "tableUnavailable" => (FailureCause::Passing, ""),
        "notFound" => (FailureCause::Permanent, "Create what is missing"),
        "accessDenied" => (
            FailureCause::Permanent,
            "Give the account the roles BigQuery Data Editor on the dataset and BigQuery Job User on the project",
        ),
        "quotaExceeded" => {
            (FailureCause::Permanent, "Wait until the quota is refilled, or ask Google for a higher one")
        }
        "billingNotEnabled" | "billingTierLimitExceeded" => {
            (FailureCause::Permanent, "Turn on billing for the project")
        }
        "resourcesExceeded" | "responseTooLarge" => {
            (FailureCause::Permanent, "Lower batch.max_rows or batch.max_bytes")
        }
        "stopped" => (FailureCause::Permanent, "Somebody cancelled the job"),
        // The list of reasons is open. Stop, and keep the data.
        _ => (
            FailureCause::Permanent,
            "Nothing was written and the records are kept; run the job again when this is understood",
        ),
    };
    let message = match cure {
        "" => format!("{reason}: {message}"),
        cure => format!("{reason}: {}. {cure}", message.trim_end_matches('.')),
    };
    LoadFailure { cause, message, bad_rows }
}

/// The row that a message names by its first byte. Three wordings are known.
fn bad_row(message: &str) -> Option<BadRow> {
    const WORDINGS: [&str; 3] =
        ["row starting at position ", "starting at location ", "byte_offset_to_start_of_line: "];
    let (start, wording) = WORDINGS.iter().find_map(|wording| Some((message.find(wording)?, wording)))?;
    let after = &message[start + wording.len()..];
    let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
    let offset = after[..digits].parse().ok()?;
    // The position is ours to translate into a key; people want the words after or, failing these, all of them.
    let why = match after[digits..].strip_prefix(": ") {
        Some(why) if *wording == WORDINGS[0] => why,
        _ => message.trim_start_matches("Error while reading data, error message: "),
    };
    Some(BadRow { offset, message: why.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn failed(reason: &str, message: &str, errors: &[&str]) -> LoadFailure {
        let errors: Vec<Value> =
            errors.iter().map(|message| json!({"reason": "invalid", "message": message})).collect();
        let result = json!({"reason": reason, "message": message});
        let job = json!({"status": {"state": "DONE", "errorResult": result, "errors": errors}});
        match load_status(&job) {
            Ok(LoadStatus::Failed(failure)) => failure,
            other => panic!("{other:?} is no failure"),
        }
    }

    #[test]
    fn a_finished_job_tells_its_rows_and_reading() {
        let mut job = json!({
            "status": {"state": "DONE"},
            "configuration": {"labels": {"lamplighter_reading": "3"}},
            "statistics": {"load": {"outputRows": "50000"}},
        });
        assert_eq!(load_status(&job), Ok(LoadStatus::Done { rows: 50_000, reading: 3 }));
        job["status"]["state"] = json!("PENDING");
        assert_eq!(load_status(&job), Ok(LoadStatus::Running));
    }

    #[test]
    fn a_job_that_is_not_ours_is_not_taken_for_ours() {
        let job = json!({"status": {"state": "DONE"}, "statistics": {"load": {"outputRows": "1"}}});
        assert!(load_status(&job).unwrap_err().contains("lamplighter_reading"));
    }

    #[test]
    fn every_reason_has_a_cause() {
        for (reason, cause) in [
            ("invalid", FailureCause::Rows),
            ("backendError", FailureCause::Passing),
            ("internalError", FailureCause::Passing),
            ("jobBackendError", FailureCause::Passing),
            ("jobInternalError", FailureCause::Passing),
            ("jobRateLimitExceeded", FailureCause::Passing),
            ("rateLimitExceeded", FailureCause::Passing),
            ("tableUnavailable", FailureCause::Passing),
            ("accessDenied", FailureCause::Permanent),
            ("billingNotEnabled", FailureCause::Permanent),
            ("notFound", FailureCause::Permanent),
            ("quotaExceeded", FailureCause::Permanent),
            ("resourcesExceeded", FailureCause::Permanent),
            ("stopped", FailureCause::Permanent),
            ("aReasonOfNextYear", FailureCause::Permanent),
            ("", FailureCause::Permanent),
        ] {
            assert_eq!(failed(reason, "words", &[]).cause, cause, "{reason}");
        }
        let changed = "Provided Schema does not match Table p:d.t. Field x has changed type from STRING to FLOAT";
        assert_eq!(failed("invalid", changed, &[]).cause, FailureCause::Passing);
    }

    #[test]
    fn bad_rows_are_found_in_every_known_wording_and_named_once() {
        let failure = failed(
            "invalid",
            "Error while reading data, error message: JSON table encountered too many errors, giving up.",
            &[
                "Error while reading data, error message: JSON parsing error in row starting at position 0: No such field: x.",
                "Error while reading data, error message: JSON parsing error in row starting at position 0: again",
                "Error while reading data, error message: JSON processing encountered an error: Could not parse 'a' as INT64 \
                 for field n (position 2) starting at location 1207",
                "Failed to parse JSON: bad; line_number: 9 byte_offset_to_start_of_line: 88 column_index: 3",
                "no position at all",
            ],
        );
        let offsets: Vec<u64> = failure.bad_rows.iter().map(|row| row.offset).collect();
        assert_eq!((failure.cause, offsets), (FailureCause::Rows, vec![0, 1207, 88]));
        assert_eq!(failure.bad_rows[0].message, "No such field: x.");
        assert!(failure.bad_rows[1].message.starts_with("JSON processing encountered"), "{:?}", failure.bad_rows[1]);
    }
}
