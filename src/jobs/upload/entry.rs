//! Queue entries: a bare key, or a JSON envelope that names one.

use std::borrow::Cow;

use serde::Deserialize;

/// An envelope as the scoring service writes it. Only the key matters: what the record is, the key itself says.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
}

/// The key that a queue entry names.
///
/// # Errors
/// Why no key can be read, as a sentence.
pub(super) fn key(entry: &[u8]) -> Result<Cow<'_, str>, String> {
    let text = std::str::from_utf8(entry).map_err(|_| "the queue entry is not UTF-8".to_owned())?;
    let trimmed = text.trim();
    if trimmed.starts_with('{') {
        let envelope: Envelope<'_> = serde_json::from_str(trimmed).map_err(|error| {
            format!("the queue entry looks like a JSON envelope but has no readable \"key\": {error}")
        })?;
        if envelope.key.trim().is_empty() {
            return Err("the queue entry's \"key\" is empty".to_owned());
        }
        return Ok(envelope.key);
    }
    if trimmed.is_empty() {
        return Err("the queue entry is empty".to_owned());
    }
    // A bare key is taken to the letter, spaces and all: it is what the producer stored the record under.
    Ok(Cow::Borrowed(text))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bare_keys_and_envelopes_both_name_their_record() {
        assert_eq!(key(b"tx:tx_123456").unwrap(), "tx:tx_123456");
        let envelope = br#"{"type":"prediction","key":"ml:bnpl:pred:p1","prediction_id":"p1","experiment_id":null}"#;
        assert_eq!(key(envelope).unwrap(), "ml:bnpl:pred:p1");
        assert_eq!(key(br#"{"key":"a\u0041\"b"}"#).unwrap(), "aA\"b");
    }

    #[test]
    fn an_entry_without_a_key_says_why() {
        for (entry, why) in [
            (&b""[..], "is empty"),
            (b"  ", "is empty"),
            (b"\xff\xfe", "not UTF-8"),
            (b"{\"type\":\"prediction\"}", "missing field `key`"),
            (b"{\"key\":17}", "no readable \"key\""),
            (b"{\"key\":\"\"}", "is empty"),
            (b"{broken", "no readable \"key\""),
        ] {
            let message = key(entry).unwrap_err();
            assert!(message.contains(why), "{entry:?}: {message}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(entry in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = key(&entry);
        }

        #[test]
        fn every_key_survives_an_envelope(wanted in "\\PC{0,40}[a-z]", id in any::<u64>()) {
            let entry = serde_json::json!({ "type": "transaction", "key": wanted, "transaction_id": id }).to_string();
            prop_assert_eq!(key(entry.as_bytes()).unwrap(), wanted);
        }

        #[test]
        fn every_bare_key_is_taken_to_the_letter(wanted in "[^{\\s]\\PC{0,40}") {
            prop_assert_eq!(key(wanted.as_bytes()).unwrap(), wanted.as_str());
        }
    }
}
