//! How we show Google who we are: a key as a file, as JSON, or as base64, mended where its way here has damaged it.

use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretString};

use super::problems::Problem;
use super::variables::{Variables, disagree, take};

/// How we show Google who we are.
#[derive(Debug, Clone)]
pub enum GoogleCredentials {
    /// Not at all: an emulator does not ask.
    None,
    /// Application default credentials: gcloud's file, or the metadata server of Google's machines.
    ApplicationDefault,
    /// The file of a key.
    File(PathBuf),
    /// The key itself, as JSON.
    Json(SecretString),
}

/// The credentials; a path, the JSON itself or its base64 are all welcome under every name.
pub(super) fn credentials(variables: Variables<'_>, problems: &mut Vec<Problem>) -> GoogleCredentials {
    let names = ["GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CREDENTIALS_JSON", "GOOGLE_CREDENTIALS_BASE64"];
    let mut found: Option<(&str, GoogleCredentials)> = None;
    for name in names {
        let Some(value) = take(variables.get(name), problems) else { continue };
        let credentials = match key_of(&value) {
            Some(Ok(json)) => GoogleCredentials::Json(json.into()),
            Some(Err(reason)) => {
                let cure = "paste the whole file of the service account's key, from { to }, or its base64";
                problems.push(Problem::variables(&[name], format!("{name} holds no key of Google's: {reason}"), cure));
                continue;
            }
            None if std::path::Path::new(&value).is_file() => GoogleCredentials::File(value.into()),
            None => {
                let cure = "name the file of the service account's key as it is called here, or paste the key's JSON";
                let message = format!("{name} is neither a file that is there, nor JSON, nor base64 of JSON");
                problems.push(Problem::variables(&[name], message, cure));
                continue;
            }
        };
        match &found {
            None => found = Some((name, credentials)),
            Some((first, other)) if !same_key(other, &credentials) => problems.push(disagree(&[first, name])),
            Some(_) => {}
        }
    }
    found.map_or(GoogleCredentials::ApplicationDefault, |(_, credentials)| credentials)
}

/// The JSON in a value, mended; `None` if the value looks like neither JSON nor base64 of it.
fn key_of(value: &str) -> Option<Result<String, String>> {
    let json = if value.starts_with('{') {
        value.to_owned()
    } else {
        let packed: String = value.split_whitespace().collect();
        let bytes = STANDARD.decode(packed).ok()?;
        String::from_utf8(bytes).ok().map(|text| text.trim().to_owned()).filter(|text| text.starts_with('{'))?
    };
    // Shells and web forms turn the key's `\n` into real line breaks, which JSON does not allow, or double its backslash.
    let parsed =
        serde_json::from_str::<serde_json::Value>(&json).or_else(|_| serde_json::from_str(&with_escaped_breaks(&json)));
    let Ok(mut key) = parsed else { return Some(Err("it is not JSON".to_owned())) };
    if key.get("type").and_then(|kind| kind.as_str()).is_none() {
        return Some(Err("its \"type\" is missing".to_owned()));
    }
    if let Some(private) = key.get("private_key").and_then(|private| private.as_str()) {
        let mended = private.replace("\\n", "\n");
        key["private_key"] = mended.into();
    }
    Some(Ok(key.to_string()))
}

/// Escapes line breaks inside JSON's texts, and leaves those between them.
fn with_escaped_breaks(json: &str) -> String {
    let (mut inside, mut escaped) = (false, false);
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '\n' if inside => out.push_str("\\n"),
            '\r' if inside => {}
            c => out.push(c),
        }
        inside ^= c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
    }
    out
}

fn same_key(one: &GoogleCredentials, other: &GoogleCredentials) -> bool {
    let json = |credentials: &GoogleCredentials| match credentials {
        GoogleCredentials::Json(json) => Some(json.expose_secret().to_owned()),
        GoogleCredentials::File(path) => key_of(std::fs::read_to_string(path).ok()?.trim())?.ok(),
        _ => None,
    };
    match (one, other) {
        (GoogleCredentials::File(one), GoogleCredentials::File(other)) if one == other => true,
        _ => json(one).is_some() && json(one) == json(other),
    }
}
