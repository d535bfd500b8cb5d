//! Who we are to Google: credentials as people write them down, and the access tokens that they are exchanged for.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use gcp_bigquery_client::yup_oauth2::authenticator::{ApplicationDefaultCredentialsTypes, DefaultAuthenticator};
use gcp_bigquery_client::yup_oauth2::{
    ApplicationDefaultCredentialsAuthenticator, ApplicationDefaultCredentialsFlowOpts, AuthorizedUserAuthenticator,
    DefaultHyperClientBuilder, Error as OauthError, ServiceAccountAuthenticator, ServiceAccountKey,
    authorized_user::AuthorizedUserSecret,
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use super::rest::in_full;

const SCOPES: [&str; 1] = ["https://www.googleapis.com/auth/bigquery"];
const TOKEN_URI: &str = "https://oauth2.googleapis.com/token";

/// Where the permission to use BigQuery comes from.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// The JSON of a service account's key, or of a user that ran `gcloud auth application-default login`.
    Json {
        /// The variable that it was found in, for messages.
        variable: String,
        /// The JSON.
        text: SecretString,
    },
    /// A file that holds such JSON.
    File {
        /// The variable that named it, for messages.
        variable: String,
        /// Where it is.
        path: PathBuf,
    },
    /// What `gcloud` left in the home folder, else the metadata server of the machine in Google's cloud.
    ApplicationDefault,
    /// None are sent. For the emulator.
    None,
}

impl Credentials {
    /// Reads a variable's value: the path of a file, the JSON itself, or the JSON in base64.
    ///
    /// # Errors
    /// A sentence that names the variable and never shows its value.
    pub fn from_env_value(variable: &str, value: &str) -> Result<Self, String> {
        let value = value.trim();
        let json = |text: String| -> Result<Self, String> {
            let text = repaired(&text).map_err(|wrong| format!("{variable} holds JSON, but {wrong}"))?;
            Ok(Self::Json { variable: variable.to_owned(), text })
        };
        let file = || Self::File { variable: variable.to_owned(), path: PathBuf::from(value) };
        if value.starts_with('{') {
            return json(value.to_owned());
        }
        if !value.is_empty() && Path::new(value).is_file() {
            return Ok(file());
        }
        let packed: String = value.chars().filter(|c| !c.is_whitespace() && *c != '=').collect();
        let unpacked = STANDARD_NO_PAD.decode(&packed).or_else(|_| URL_SAFE_NO_PAD.decode(&packed));
        match unpacked.map(String::from_utf8) {
            Ok(Ok(text)) if text.trim_start().starts_with('{') => return json(text.trim().to_owned()),
            // `{"`, `{` and a line end, or `{` and a blank, in base64.
            _ if ["eyJ", "ewo", "ewog", "eyA", "ew0K"].iter().any(|start| packed.starts_with(start)) => {
                return Err(format!(
                    "{variable} begins like JSON in base64, but does not decode; was its end cut off?"
                ));
            }
            _ => {}
        }
        if value.len() < 4096 && (value.ends_with(".json") || value.contains(['/', '\\'])) {
            return Ok(file());
        }
        Err(format!(
            "{variable} is neither the path of a file, nor the JSON of a service account's key, nor that JSON in base64"
        ))
    }

    /// What to check when Google does not accept these credentials.
    pub(super) fn source(&self) -> String {
        match self {
            Self::Json { variable, .. } => variable.clone(),
            Self::File { variable, path } => format!("{variable} ({})", path.display()),
            Self::ApplicationDefault => "the application default credentials".to_owned(),
            Self::None => "BIGQUERY_EMULATOR_HOST".to_owned(),
        }
    }
}

/// Checks the JSON of credentials, and puts right what shells and dashboards do to the line ends of the private key.
fn repaired(text: &str) -> Result<SecretString, String> {
    let mut key: Value = serde_json::from_str(text)
        .or_else(|_| serde_json::from_str(&with_line_ends_escaped(text)))
        // The position only: the words of such an error can quote the secret.
        .map_err(|error| format!("it breaks off or is misspelt at line {} column {}", error.line(), error.column()))?;
    let needed: &[&str] = match key["type"].as_str() {
        Some("service_account") => &["client_email", "private_key"],
        Some("authorized_user") => &["client_id", "client_secret", "refresh_token"],
        _ => return Err("its \"type\" is neither \"service_account\" nor \"authorized_user\"".to_owned()),
    };
    if let Some(missing) = needed.iter().find(|name| !key[**name].is_string()) {
        return Err(format!("it has no {missing:?}"));
    }
    if let Some(private_key) = key["private_key"].as_str() {
        key["private_key"] = Value::from(private_key.replace("\\n", "\n").replace("\\r", ""));
        if !key["token_uri"].is_string() {
            key["token_uri"] = Value::from(TOKEN_URI);
        }
    }
    Ok(key.to_string().into())
}

/// JSON in which somebody turned `\n` into real line ends, inside of strings too, where they are not allowed.
fn with_line_ends_escaped(text: &str) -> String {
    let mut repaired = String::with_capacity(text.len() + 64);
    let (mut inside, mut escaped) = (false, false);
    for c in text.chars() {
        match c {
            '\n' if inside => repaired.push_str("\\n"),
            '\r' if inside => {}
            _ => repaired.push(c),
        }
        inside ^= c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
    }
    repaired
}

/// Why there is no token.
#[derive(Debug)]
pub(super) enum NoToken {
    /// Google's token service does not answer. Trying again can help.
    Unavailable(String),
    /// It does not accept the credentials, or they are unusable.
    Refused {
        /// What came back.
        reason: String,
        /// What to do.
        cure: String,
    },
}

/// Gets access tokens, and keeps them until they expire.
pub(super) struct Tokens {
    authenticator: Option<DefaultAuthenticator>,
    source: String,
    timeout: Duration,
}

impl Tokens {
    /// Prepares the exchange; nothing is sent yet.
    pub(super) async fn new(credentials: &Credentials, timeout: Duration) -> Result<Self, NoToken> {
        let source = credentials.source();
        let unusable = |reason: String| NoToken::Refused { reason, cure: format!("Put a valid key into {source}") };
        let client = || DefaultHyperClientBuilder::default().with_timeout(timeout);
        let text = match credentials {
            Credentials::Json { text, .. } => Some(text.clone()),
            Credentials::File { path, .. } => Some(read(path).map_err(unusable)?),
            Credentials::ApplicationDefault => gcloud_file().map(|path| read(&path)).transpose().map_err(unusable)?,
            Credentials::None => return Ok(Self { authenticator: None, source, timeout }),
        };
        let built = match text {
            Some(text) => {
                let text = text.expose_secret();
                // The words of a decoding error can quote the secret, so they are left out.
                let odd = |_| unusable("the credentials have fields of an unexpected form".to_owned());
                if text.contains("\"authorized_user\"") {
                    let user: AuthorizedUserSecret = serde_json::from_str(text).map_err(odd)?;
                    AuthorizedUserAuthenticator::with_client(user, client()).build().await
                } else {
                    let key: ServiceAccountKey = serde_json::from_str(text).map_err(odd)?;
                    ServiceAccountAuthenticator::with_client(key, client()).build().await
                }
            }
            None if !in_googles_cloud() => {
                return Err(NoToken::Refused {
                    reason: "there are no credentials for BigQuery: no variable names any, there is no gcloud login in the home \
                             folder, and this machine is not in Google's cloud"
                        .to_owned(),
                    cure: "Set GOOGLE_APPLICATION_CREDENTIALS to a service account's key: a path, the JSON itself, or its \
                           base64; or run: gcloud auth application-default login"
                        .to_owned(),
                });
            }
            None => {
                let options = ApplicationDefaultCredentialsFlowOpts::default();
                match ApplicationDefaultCredentialsAuthenticator::with_client(options, client()).await {
                    ApplicationDefaultCredentialsTypes::InstanceMetadata(builder) => builder.build().await,
                    ApplicationDefaultCredentialsTypes::ServiceAccount(builder) => builder.build().await,
                }
            }
        };
        let authenticator = built.map_err(|error| unusable(format!("the credentials are unusable: {error}")))?;
        Ok(Self { authenticator: Some(authenticator), source, timeout })
    }

    /// Whether requests carry a token at all.
    pub(super) fn are_used(&self) -> bool {
        self.authenticator.is_some()
    }

    /// Where the credentials came from, for messages.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// A token that is good for another minute at least; a new one when `fresh` is asked for. `None` for the emulator.
    pub(super) async fn get(&self, fresh: bool) -> Result<Option<SecretString>, NoToken> {
        let Some(authenticator) = &self.authenticator else { return Ok(None) };
        let exchange = async {
            if fresh { authenticator.force_refreshed_token(&SCOPES).await } else { authenticator.token(&SCOPES).await }
        };
        let token = tokio::time::timeout(self.timeout, exchange)
            .await
            .map_err(|_| NoToken::Unavailable(format!("no access token within {} s", self.timeout.as_secs())))?
            .map_err(|error| self.explained(&error))?;
        let text = token.token().ok_or_else(|| NoToken::Unavailable("an empty access token came back".to_owned()))?;
        Ok(Some(text.into()))
    }

    fn explained(&self, error: &OauthError) -> NoToken {
        let refused = |reason: String, cure: String| NoToken::Refused { reason, cure };
        match error {
            OauthError::AuthError(answer) => match answer.error.as_str() {
                "server_error" | "temporarily_unavailable" | "internal_failure" => {
                    NoToken::Unavailable(format!("the token service answers {answer}"))
                }
                "invalid_grant" => refused(
                    format!("the token service answers {answer}"),
                    format!(
                        "Check {}: the key is expired, deleted or another account's, or this machine's clock is wrong; \
                         a user's login is renewed with: gcloud auth application-default login",
                        self.source
                    ),
                ),
                _ => refused(format!("the token service answers {answer}"), format!("Check {}", self.source)),
            },
            OauthError::HttpError(_) | OauthError::HttpClientError(_) if self.source.starts_with("the application") => {
                NoToken::Unavailable(format!("the metadata server of this machine does not answer: {}", in_full(error)))
            }
            OauthError::HttpError(_) | OauthError::HttpClientError(_) => {
                NoToken::Unavailable(format!("the token service cannot be reached: {}", in_full(error)))
            }
            // What came back was no token and no error of OAuth: a proxy's page, say. It is not quoted.
            OauthError::JSONError(_) | OauthError::MissingAccessToken => {
                NoToken::Unavailable("the token service answers with something that is not a token".to_owned())
            }
            _ => refused(format!("the credentials are unusable: {error}"), format!("Check {}", self.source)),
        }
    }
}

fn read(path: &Path) -> Result<SecretString, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    repaired(&text).map_err(|wrong| format!("{} is not a key file: {wrong}", path.display()))
}

/// The file that `gcloud auth application-default login` writes.
fn gcloud_file() -> Option<PathBuf> {
    let folder = match std::env::var_os("CLOUDSDK_CONFIG") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".config/gcloud"),
    };
    Some(folder.join("application_default_credentials.json")).filter(|path| path.is_file())
}

/// Whether there is a metadata server to ask: Google's machines say what they are, and its serverless products set a variable.
/// (<https://docs.cloud.google.com/compute/docs/instances/detect-compute-engine>)
fn in_googles_cloud() -> bool {
    let told = ["GCE_METADATA_HOST", "K_SERVICE", "CLOUD_RUN_JOB", "GAE_SERVICE"];
    let product = std::fs::read_to_string("/sys/class/dmi/id/product_name").unwrap_or_default();
    product.contains("Google") || told.iter().any(|variable| std::env::var_os(variable).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};

    const KEY: &str =
        r#"{"type": "service_account", "client_email": "night@watch", "private_key": "-----BEGIN\nhush\n"}"#;

    fn private_key(value: &str) -> String {
        match Credentials::from_env_value("GOOGLE_CREDENTIALS_JSON", value).unwrap() {
            Credentials::Json { text, .. } => {
                let key: Value = serde_json::from_str(text.expose_secret()).unwrap();
                key["private_key"].as_str().unwrap().to_owned()
            }
            other => panic!("{other:?} is not JSON"),
        }
    }

    #[test]
    fn json_is_taken_as_it_is_or_in_base64() {
        let wrapped =
            STANDARD.encode(KEY).as_bytes().chunks(60).map(String::from_utf8_lossy).collect::<Vec<_>>().join("\n");
        for value in [KEY.to_owned(), format!("\n  {KEY}  "), STANDARD.encode(KEY), URL_SAFE.encode(KEY), wrapped] {
            assert_eq!(private_key(&value), "-----BEGIN\nhush\n");
        }
    }

    #[test]
    fn line_ends_of_the_private_key_are_repaired() {
        assert_eq!(private_key(&KEY.replace("\\n", "\\\\n")), "-----BEGIN\nhush\n");
        assert_eq!(private_key(&KEY.replace("\\n", "\n")), "-----BEGIN\nhush\n");
        assert_eq!(private_key(&KEY.replace("\\n", "\r\n")), "-----BEGIN\nhush\n");
    }

    #[test]
    fn paths_are_taken_for_files_even_if_they_do_not_exist_yet() {
        for value in ["/etc/lamplighter/key.json", "key.json", "secrets/key", "C:\\keys\\lamplighter"] {
            let credentials = Credentials::from_env_value("GOOGLE_APPLICATION_CREDENTIALS", value).unwrap();
            assert!(
                matches!(&credentials, Credentials::File { path, .. } if path == Path::new(value)),
                "{credentials:?}"
            );
        }
    }

    #[test]
    fn mistakes_name_the_variable_and_never_the_secret() {
        let encoded = STANDARD.encode(KEY);
        let cases = [
            ("", "is neither the path"),
            ("hush", "is neither the path"),
            (&KEY[..KEY.len() - 3], "at line"),
            (&encoded[..encoded.len() - 7], "was its end cut off?"),
            (&format!("{}!{}", &encoded[..20], &encoded[20..]), "was its end cut off?"),
            (r#"{"type": "external_account", "private_key": "hush"}"#, "\"type\" is neither"),
            (r#"{"type": "service_account", "private_key": "hush"}"#, "it has no \"client_email\""),
            (r#"{"type": "authorized_user", "client_id": "hush"}"#, "it has no \"client_secret\""),
        ];
        for (value, expected) in cases {
            let message = Credentials::from_env_value("GOOGLE_CREDENTIALS_JSON", value).unwrap_err();
            assert!(message.contains(expected) && message.contains("GOOGLE_CREDENTIALS_JSON"), "{value}: {message}");
            assert!(!message.contains("hush"), "the secret is in: {message}");
        }
    }

    #[test]
    fn debug_output_hides_the_key() {
        let credentials = Credentials::from_env_value("GOOGLE_CREDENTIALS_JSON", KEY).unwrap();
        assert!(!format!("{credentials:?}").contains("hush"));
    }
}
