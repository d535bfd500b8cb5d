//! Which servers there are, as the environment says; what is not named is embedded (SQLite in the data folder).

use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::google::{self, GoogleCredentials};
use super::problems::{Problem, Problems};
use super::variables::{Env, Variables, disagree, take};

/// The servers and folders to work with.
#[derive(Debug, Clone)]
pub struct Backends {
    /// The cache that producers fill.
    pub cache: CacheChoice,
    /// The database of the runs, alerts and dead letters.
    pub history: HistoryChoice,
    /// The warehouse.
    pub warehouse: WarehouseChoice,
    /// The folder of what is embedded.
    pub data: PathBuf,
    /// The port that the host wants us to listen on.
    pub port: Option<u16>,
    /// What is logged, in the words of tracing's filter.
    pub log: String,
    /// Whether Railway runs us.
    pub on_railway: bool,
    /// What is worth knowing about the choice.
    pub notes: Vec<String>,
}

/// Where the cache is.
#[derive(Debug, Clone)]
pub enum CacheChoice {
    /// Embedded.
    Sqlite {
        /// The file.
        path: PathBuf,
    },
    /// A Redis server.
    Redis {
        /// `redis://`, `rediss://` or `unix://`, with user and password.
        url: SecretString,
        /// The database for datasets that name none.
        database: u16,
    },
}

/// Where the history is.
#[derive(Debug, Clone)]
pub enum HistoryChoice {
    /// Embedded.
    Sqlite {
        /// The file.
        path: PathBuf,
    },
    /// A PostgreSQL server.
    Postgres {
        /// `postgres://`, with user and password.
        url: SecretString,
    },
}

/// Where the warehouse is.
#[derive(Debug, Clone)]
pub enum WarehouseChoice {
    /// Embedded.
    Sqlite {
        /// The file.
        path: PathBuf,
    },
    /// BigQuery.
    BigQuery {
        /// The project of the load jobs, and of tables that name none.
        project: String,
        /// Where new datasets are made, such as `EU`; `None` leaves it to BigQuery.
        location: Option<String>,
        /// Another address than Google's, without a slash at its end: an emulator, which wants no credentials.
        emulator: Option<String>,
        /// How we show who we are.
        credentials: GoogleCredentials,
    },
}

impl Backends {
    /// Reads the environment.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn from_env(env: &Env) -> Result<Self, Problems> {
        let variables = Variables(env);
        let mut problems = Vec::new();
        let mut notes = Vec::new();
        let data = PathBuf::from(variables.plain("LAMPLIGHTER_DATA").unwrap_or("data"));
        let cache = redis(variables, &mut problems, &mut notes);
        let history = postgres(variables, &mut problems);
        let warehouse = bigquery(variables, &mut problems, &mut notes);
        let port = port(variables, &mut problems);
        let log = log(variables, &mut problems);
        if !problems.is_empty() {
            return Err(Problems::new(problems));
        }
        let on_railway = ["RAILWAY_ENVIRONMENT", "RAILWAY_PROJECT_ID", "RAILWAY_SERVICE_ID"]
            .iter()
            .any(|name| variables.plain(name).is_some());
        let file = |name: &str| data.join(name);
        Ok(Self {
            cache: cache.unwrap_or_else(|| CacheChoice::Sqlite { path: file("cache.db") }),
            history: history.unwrap_or_else(|| HistoryChoice::Sqlite { path: file("history.db") }),
            warehouse: warehouse.unwrap_or_else(|| WarehouseChoice::Sqlite { path: file("warehouse.db") }),
            data,
            port,
            log,
            on_railway,
            notes,
        })
    }

    /// What may go wrong with the choice later on.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.on_railway {
            return warnings;
        }
        let lost = "is in the container, whose disk goes with it at the next deploy";
        if matches!(self.cache, CacheChoice::Sqlite { .. }) {
            warnings.push(format!("the cache {lost}: add a Redis and set REDIS_URL=${{{{Redis.REDIS_URL}}}}"));
        }
        if matches!(self.history, HistoryChoice::Sqlite { .. }) {
            warnings.push(format!(
                "the history {lost}: add a Postgres and set DATABASE_URL=${{{{Postgres.DATABASE_URL}}}}"
            ));
        }
        if matches!(self.warehouse, WarehouseChoice::Sqlite { .. }) {
            warnings.push(format!("the warehouse {lost}: set BIGQUERY_PROJECT and GOOGLE_CREDENTIALS_JSON"));
        }
        let public = |url: &SecretString| host_of(url.expose_secret()).contains(".proxy.rlwy.net");
        let advice = "goes through Railway's public proxy, which is slower and billed; use the address that ends in .railway.internal";
        if matches!(&self.cache, CacheChoice::Redis { url, .. } if public(url)) {
            warnings.push(format!("REDIS_URL {advice}"));
        }
        if matches!(&self.history, HistoryChoice::Postgres { url } if public(url)) {
            warnings.push(format!("DATABASE_URL {advice}"));
        }
        warnings
    }

    /// One line for each choice, without secrets.
    pub(super) fn summary_lines(&self) -> Vec<String> {
        let cache = match &self.cache {
            CacheChoice::Sqlite { path } => format!("SQLite {}", path.display()),
            CacheChoice::Redis { url, .. } => format!("Redis {}", host_of(url.expose_secret())),
        };
        let history = match &self.history {
            HistoryChoice::Sqlite { path } => format!("SQLite {}", path.display()),
            HistoryChoice::Postgres { url } => format!("Postgres {}", host_of(url.expose_secret())),
        };
        let warehouse = match &self.warehouse {
            WarehouseChoice::Sqlite { path } => format!("SQLite {}", path.display()),
            WarehouseChoice::BigQuery { project, location, emulator, credentials } => {
                let location = location.as_ref().map(|location| format!(" in {location}")).unwrap_or_default();
                let way = match (emulator, credentials) {
                    (Some(emulator), _) => format!("emulator at {emulator}"),
                    (None, GoogleCredentials::File(path)) => format!("key in {}", path.display()),
                    (None, GoogleCredentials::Json(_)) => "key from the environment".to_owned(),
                    (None, _) => "application default credentials".to_owned(),
                };
                format!("BigQuery {project}{location}, {way}")
            }
        };
        vec![format!("cache: {cache}"), format!("history: {history}"), format!("warehouse: {warehouse}")]
    }
}

/// Host, port and path of a URL, without user, password and parameters.
fn host_of(url: &str) -> String {
    let Ok(url) = Url::parse(url) else { return String::new() };
    let port = url.port().or(match url.scheme() {
        "redis" | "rediss" => Some(6379),
        "postgres" | "postgresql" => Some(5432),
        _ => None,
    });
    let port = port.filter(|_| url.has_host()).map(|port| format!(":{port}")).unwrap_or_default();
    let path = if url.path() == "/" { "" } else { url.path() };
    format!("{}{port}{path}", url.host_str().unwrap_or_default())
}

fn redis(variables: Variables<'_>, problems: &mut Vec<Problem>, notes: &mut Vec<String>) -> Option<CacheChoice> {
    let before = problems.len();
    let url = take(variables.get("REDIS_URL"), problems);
    let host = take(variables.agreed(&["REDIS_HOST", "REDISHOST"]), problems);
    let port = take(variables.agreed(&["REDIS_PORT", "REDISPORT"]), problems);
    let user = take(variables.agreed(&["REDIS_USER", "REDIS_USERNAME", "REDISUSER"]), problems);
    let password = take(variables.agreed(&["REDIS_PASSWORD", "REDISPASSWORD"]), problems);
    let database = take(variables.agreed(&["REDIS_DB"]), problems);
    let port = port.and_then(|(name, value)| number(name, &value, "6379", problems));
    let database = database.and_then(|(name, value)| number(name, &value, "0", problems));

    let mut url = match (url, &host) {
        (Some(url), _) => match redis_url(&url) {
            Ok(url) => url,
            Err(problem) => {
                problems.push(*problem);
                return None;
            }
        },
        (None, Some((name, host))) => {
            let Some((_, port)) = port else {
                let message = format!("{name} is set, but no port is");
                let cure = "set REDIS_PORT (Redis's own default is 6379), or REDIS_URL=redis://host:port";
                problems.push(Problem::variables(&[name], message, cure));
                return None;
            };
            let bracketed = if host.contains(':') { format!("[{host}]") } else { host.clone() };
            match Url::parse(&format!("redis://{bracketed}:{port}")) {
                Ok(url) => url,
                Err(_) => {
                    let cure = "write the host alone; a whole URL goes into REDIS_URL";
                    problems.push(Problem::variables(&[name], format!("{name} is not the name of a host"), cure));
                    return None;
                }
            }
        }
        (None, None) => {
            let parts = [port.map(|part| part.0), password.as_ref().map(|part| part.0), database.map(|part| part.0)];
            if let Some(name) = parts.into_iter().flatten().next() {
                notes.push(format!("{name} is set, but neither REDIS_URL nor REDIS_HOST is: the cache is embedded"));
            }
            return None;
        }
    };

    // The parts fill what the URL leaves open, and must agree with what it says.
    let mut clash = |name: &str| problems.push(disagree(&["REDIS_URL", name]));
    if let (Some((name, host)), Some(own)) = (&host, url.host_str())
        && !own.trim_matches(['[', ']']).eq_ignore_ascii_case(host.trim_matches(['[', ']']))
    {
        clash(name);
    }
    if let Some((name, port)) = port
        && url.has_host()
    {
        match url.port() {
            Some(own) if own != port => clash(name),
            _ => url.set_port(Some(port)).unwrap_or_default(),
        }
    }
    if let Some((name, user)) = &user {
        match url.username() {
            "" => url.set_username(user).unwrap_or_default(),
            own if decoded(own) != *user => clash(name),
            _ => {}
        }
    }
    if let Some((name, password)) = &password {
        match url.password() {
            None => url.set_password(Some(password)).unwrap_or_default(),
            Some(own) if decoded(own) != *password => clash(name),
            Some(_) => {}
        }
    }
    let path = url.path().trim_start_matches('/').to_owned();
    let unix = !url.scheme().starts_with("redis") || url.scheme().contains("unix");
    let own = if path.is_empty() || unix { None } else { Some(path) };
    let database = match (own, database) {
        (None, None) => 0,
        (None, Some((_, database))) => {
            if !unix {
                url.set_path(&format!("/{database}"));
            }
            database
        }
        (Some(own), database) => match (own.parse::<u16>(), database) {
            (Ok(own), Some((name, database))) if own != database => {
                clash(name);
                own
            }
            (Ok(own), _) => own,
            (Err(_), _) => {
                let message = "the path of REDIS_URL is not the number of a database";
                let cure = "write redis://host:port/0, or leave the path out";
                problems.push(Problem::variables(&["REDIS_URL"], message, cure));
                0
            }
        },
    };
    (problems.len() == before).then(|| CacheChoice::Redis { url: String::from(url).into(), database })
}

fn redis_url(text: &str) -> Result<Url, Box<Problem>> {
    let cure = "write redis://user:password@host:port, rediss:// for TLS, or unix:///path/to/socket; \
                in a password, write %40 for @, %3A for : and %2F for /";
    let wrong = |message: String| Box::new(Problem::variables(&["REDIS_URL"], message, cure));
    let url = Url::parse(text).map_err(|error| wrong(format!("REDIS_URL is not a URL: {error}")))?;
    if !["redis", "rediss", "unix", "redis+unix"].contains(&url.scheme()) {
        return Err(wrong("REDIS_URL does not begin with redis://, rediss:// or unix://".to_owned()));
    }
    if url.scheme().starts_with("redis") && !url.scheme().contains("unix") && url.host_str().is_none_or(str::is_empty) {
        return Err(wrong("REDIS_URL names no host".to_owned()));
    }
    Ok(url)
}

fn decoded(text: &str) -> String {
    // What means something in a form means nothing in a password.
    let pair = format!("x={}", text.replace('+', "%2B").replace('&', "%26"));
    url::form_urlencoded::parse(pair.as_bytes()).next().map(|(_, value)| value.into_owned()).unwrap_or_default()
}

fn number<'n>(name: &'n str, value: &str, example: &str, problems: &mut Vec<Problem>) -> Option<(&'n str, u16)> {
    let parsed = value.parse().ok();
    if parsed.is_none() {
        let cure = format!("write a number from 0 to 65535, such as {example}");
        problems.push(Problem::variables(&[name], format!("{name} is not a number"), &cure));
    }
    parsed.map(|number| (name, number))
}

fn postgres(variables: Variables<'_>, problems: &mut Vec<Problem>) -> Option<HistoryChoice> {
    let text = take(variables.get("DATABASE_URL"), problems)?;
    let cure = "write postgres://user:password@host:5432/database, or unset it to keep the history in SQLite; \
                in a password, write %40 for @, %3A for : and %2F for /";
    let message = match Url::parse(&text) {
        Err(error) => format!("DATABASE_URL is not a URL: {error}"),
        Ok(url) if !["postgres", "postgresql"].contains(&url.scheme()) => {
            "DATABASE_URL does not begin with postgres:// or postgresql://".to_owned()
        }
        Ok(_) => return Some(HistoryChoice::Postgres { url: text.into() }),
    };
    problems.push(Problem::variables(&["DATABASE_URL"], message, cure));
    None
}

fn bigquery(variables: Variables<'_>, problems: &mut Vec<Problem>, notes: &mut Vec<String>) -> Option<WarehouseChoice> {
    let before = problems.len();
    let emulator = variables.plain("BIGQUERY_EMULATOR_HOST");
    let Some(project) = variables.plain("BIGQUERY_PROJECT") else {
        if emulator.is_some() {
            let cure = "set BIGQUERY_PROJECT too; an emulator takes any name, such as local";
            let message = "BIGQUERY_EMULATOR_HOST is set, but BIGQUERY_PROJECT is not";
            problems.push(Problem::variables(&["BIGQUERY_EMULATOR_HOST"], message, cure));
        } else if let Some(name) = ["GOOGLE_CLOUD_PROJECT", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CREDENTIALS_JSON"]
            .into_iter()
            .find(|name| variables.plain(name).is_some())
        {
            notes.push(format!("{name} is set, but BIGQUERY_PROJECT is not: the warehouse is embedded"));
        }
        return None;
    };
    if !project.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.:_".contains(c)) {
        let cure = "write the project's id (not its name): lower-case letters, digits and -";
        let message = "BIGQUERY_PROJECT is not the id of a Google Cloud project";
        problems.push(Problem::variables(&["BIGQUERY_PROJECT"], message, cure));
    }
    let emulator = emulator.and_then(|host| {
        let url = if host.contains("://") { host.to_owned() } else { format!("http://{host}") };
        let fine = Url::parse(&url).is_ok_and(|url| ["http", "https"].contains(&url.scheme()) && url.has_host());
        if !fine {
            let message = "BIGQUERY_EMULATOR_HOST is not an address";
            problems.push(Problem::variables(&["BIGQUERY_EMULATOR_HOST"], message, "write http://host:port"));
        }
        fine.then(|| url.trim_end_matches('/').to_owned())
    });
    let credentials = match emulator {
        Some(_) => GoogleCredentials::None,
        None => google::credentials(variables, problems),
    };
    let (project, location) = (project.to_owned(), variables.plain("BIGQUERY_LOCATION").map(str::to_owned));
    (problems.len() == before).then_some(WarehouseChoice::BigQuery { project, location, emulator, credentials })
}

fn port(variables: Variables<'_>, problems: &mut Vec<Problem>) -> Option<u16> {
    let value = variables.plain("PORT")?;
    number("PORT", value, "8080", problems).map(|(_, port)| port)
}

fn log(variables: Variables<'_>, problems: &mut Vec<Problem>) -> String {
    // RUST_LOG is for every Rust program on the machine, ours for us alone, so ours wins without a quarrel.
    let set = ["LAMPLIGHTER_LOG", "RUST_LOG"].into_iter().find_map(|name| Some((name, variables.plain(name)?)));
    let Some((name, filter)) = set else { return "info".to_owned() };
    if let Err(error) = tracing_subscriber::EnvFilter::try_new(filter) {
        let cure = "write error, warn, info, debug or trace, or for example \"info,lamplighter=debug\"";
        problems.push(Problem::variables(&[name], format!("{name} is not a log filter: {error}"), cure));
    }
    filter.to_owned()
}
