//! Credentials against a token service of our own: what it is sent, and what its answers become.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::any;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lamplighter::warehouse::{BigQuery, BigQuerySettings, Credentials, Warehouse, WarehouseError};
use serde_json::{Value, json};

use crate::support::bigquery::Project;

const VARIABLE: &str = "GOOGLE_APPLICATION_CREDENTIALS";

/// Google, as far as logging in goes: `/token` gives a new token for each request, anything else wants the newest one.
#[derive(Default)]
struct Google {
    tokens: Mutex<u32>,
    /// Answers that are given first, instead of a token.
    refusals: Mutex<Vec<(u16, String)>>,
    /// The `Authorization` of the other requests.
    seen: Mutex<Vec<String>>,
    /// Whether the present token has been withdrawn.
    withdrawn: Mutex<bool>,
}

async fn start(google: Arc<Google>) -> u16 {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = move |request: Request| {
        let google = google.clone();
        async move { google.answer(&request) }
    };
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(any(answer))).await });
    port
}

impl Google {
    fn answer(&self, request: &Request) -> impl IntoResponse + use<> {
        if request.uri().path() == "/token" {
            if let Some((status, body)) = self.refusals.lock().unwrap().pop() {
                return (StatusCode::from_u16(status).unwrap(), body);
            }
            *self.withdrawn.lock().unwrap() = false;
            *self.tokens.lock().unwrap() += 1;
            let token = format!("token-{}", self.tokens.lock().unwrap());
            let body = json!({"access_token": token, "expires_in": 3600, "token_type": "Bearer"});
            return (StatusCode::OK, body.to_string());
        }
        let login = request.headers().get("authorization").and_then(|login| login.to_str().ok()).unwrap_or_default();
        self.seen.lock().unwrap().push(login.to_owned());
        if *self.withdrawn.lock().unwrap() || login != format!("Bearer token-{}", self.tokens.lock().unwrap()) {
            let body = json!({"error": {"message": "Request had invalid authentication credentials", "errors": []}});
            return (StatusCode::UNAUTHORIZED, body.to_string());
        }
        (StatusCode::OK, json!({"datasets": []}).to_string())
    }
}

/// The key of the tests, with the token service on this port.
fn key(port: u16) -> String {
    let mut key: Value = serde_json::from_str(include_str!("../../data/bigquery/service-account.json")).unwrap();
    key["token_uri"] = json!(format!("http://127.0.0.1:{port}/token"));
    key.to_string()
}

fn settings(port: u16, credentials: Credentials) -> BigQuerySettings {
    BigQuerySettings { credentials, ..Project::without_dataset().settings_through(port) }
}

async fn client(port: u16) -> BigQuery {
    let credentials = Credentials::from_env_value(VARIABLE, &key(port)).unwrap();
    BigQuery::connect(settings(port, credentials)).await.unwrap()
}

#[tokio::test]
async fn a_key_is_exchanged_once_for_a_token_that_every_request_carries() {
    let google = Arc::new(Google::default());
    let port = start(google.clone()).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    std::fs::write(&file, key(port)).unwrap();
    for value in [key(port), STANDARD.encode(key(port)), file.display().to_string(), key(port).replace("\\n", "\n")] {
        google.seen.lock().unwrap().clear();
        let credentials = Credentials::from_env_value(VARIABLE, &value).unwrap();
        let warehouse = BigQuery::connect(settings(port, credentials)).await.unwrap();
        warehouse.ping().await.unwrap();
        warehouse.ping().await.unwrap();
        let newest = format!("Bearer token-{}", google.tokens.lock().unwrap());
        assert_eq!(*google.seen.lock().unwrap(), [newest.clone(), newest]);
    }
    assert_eq!(*google.tokens.lock().unwrap(), 4);
}

#[tokio::test]
async fn a_token_that_is_withdrawn_is_replaced() {
    let google = Arc::new(Google::default());
    let port = start(google.clone()).await;
    let warehouse = client(port).await;
    warehouse.ping().await.unwrap();
    *google.withdrawn.lock().unwrap() = true;
    warehouse.ping().await.unwrap();
    assert_eq!(*google.seen.lock().unwrap(), ["Bearer token-1", "Bearer token-1", "Bearer token-2"]);
}

#[tokio::test]
async fn credentials_that_are_not_accepted_name_their_variable() {
    let google = Arc::new(Google::default());
    let port = start(google.clone()).await;
    let body = json!({"error": "invalid_grant", "error_description": "Invalid JWT Signature."}).to_string();
    google.refusals.lock().unwrap().push((400, body));
    let error = client(port).await.ping().await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, WarehouseError::Refused { .. }), "{text}");
    for word in ["invalid_grant", VARIABLE, "expired", "clock"] {
        assert!(text.contains(word), "{word} is not in: {text}");
    }
    assert!(!text.contains("PRIVATE KEY"), "{text}");
}

#[tokio::test]
async fn a_token_service_in_trouble_is_asked_again() {
    let google = Arc::new(Google::default());
    let port = start(google.clone()).await;
    google.refusals.lock().unwrap().push((503, "<html>Service Unavailable</html>".to_owned()));
    google.refusals.lock().unwrap().push((503, json!({"error": "temporarily_unavailable"}).to_string()));
    client(port).await.ping().await.unwrap();
    assert_eq!(*google.tokens.lock().unwrap(), 1);
}

#[tokio::test]
async fn a_login_that_bigquery_does_not_know_names_its_variable() {
    // The emulator's credentials are none, and this server wants some.
    let port = start(Arc::new(Google::default())).await;
    let warehouse = BigQuery::connect(settings(port, Credentials::None)).await.unwrap();
    let error = warehouse.ping().await.unwrap_err();
    assert!(!error.is_transient() && error.to_string().contains("is not accepted as a login"), "{error}");
}

#[tokio::test]
async fn unusable_key_files_are_refused_before_anything_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken.json");
    let mut key: Value = serde_json::from_str(&key(1)).unwrap();
    key["private_key"] = json!("-----BEGIN PRIVATE KEY-----\nhush\n-----END PRIVATE KEY-----\n");
    let text = folder.path().join("text.json");
    std::fs::write(&broken, key.to_string()).unwrap();
    std::fs::write(&text, "hush").unwrap();
    for (path, complaint) in [
        (broken, "the credentials are unusable"),
        (text, "is not a key file"),
        (folder.path().join("missing.json"), "cannot read"),
        (folder.path().to_owned(), "cannot read"),
    ] {
        let credentials = Credentials::from_env_value(VARIABLE, path.to_str().unwrap()).unwrap();
        let Err(error) = BigQuery::connect(settings(1, credentials)).await else { panic!("{complaint}") };
        let text = error.to_string();
        assert!(!error.is_transient() && text.contains(complaint) && text.contains(VARIABLE), "{text}");
        assert!(!text.contains("hush"), "{text}");
    }
}
