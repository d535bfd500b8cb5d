//! Which backend is used for what: the settings' choices turned into the traits that the rest of the house sees.

use std::sync::Arc;

use anyhow::{Context, anyhow};

use crate::cache::{RedisCache, RedisSettings, SharedCache, SqliteCache};
use crate::clock::Clock;
use crate::history::{PostgresHistory, SharedHistory, SqliteHistory};
use crate::settings::{CacheChoice, GoogleCredentials, HistoryChoice, Settings, WarehouseChoice};
use crate::warehouse::{BigQuery, BigQuerySettings, Credentials, SharedWarehouse, SqliteWarehouse, Timeouts};

/// The history: Postgres or SQLite. A server is asked when it is first needed.
///
/// # Errors
/// If its address cannot be read, or its folder cannot be made.
pub fn open_history(settings: &Settings, clock: &Arc<dyn Clock>) -> anyhow::Result<SharedHistory> {
    Ok(match &settings.backends.history {
        HistoryChoice::Sqlite { path } => Arc::new(SqliteHistory::open(path, clock.clone())?),
        HistoryChoice::Postgres { url } => Arc::new(PostgresHistory::connect(url)?),
    })
}

/// The cache: Redis or SQLite. A server is asked when it is first needed.
///
/// # Errors
/// If its address cannot be read, or its folder or file cannot be used.
pub async fn open_cache(settings: &Settings, clock: &Arc<dyn Clock>) -> anyhow::Result<SharedCache> {
    Ok(match &settings.backends.cache {
        CacheChoice::Sqlite { path } => {
            make_folder(settings)?;
            Arc::new(SqliteCache::open(path, clock.clone()).await?)
        }
        CacheChoice::Redis { url, .. } => Arc::new(RedisCache::new(&RedisSettings::new(url.clone()))?),
    })
}

/// The warehouse: BigQuery or SQLite. BigQuery is asked when it is first needed.
///
/// # Errors
/// If the credentials cannot be used, or the folder or file cannot.
pub async fn open_warehouse(settings: &Settings) -> anyhow::Result<SharedWarehouse> {
    let (project, location, emulator, credentials) = match &settings.backends.warehouse {
        WarehouseChoice::Sqlite { path } => {
            make_folder(settings)?;
            return Ok(Arc::new(SqliteWarehouse::open(path).await?));
        }
        WarehouseChoice::BigQuery { project, location, emulator, credentials } => {
            (project.clone(), location.clone(), emulator, credentials)
        }
    };
    let emulator = emulator
        .as_deref()
        .map(str::parse)
        .transpose()
        .map_err(|_| anyhow!("BIGQUERY_EMULATOR_HOST is not an address; write http://host:port"))?;
    let variable = "GOOGLE_APPLICATION_CREDENTIALS".to_owned();
    let credentials = match credentials {
        GoogleCredentials::None => Credentials::None,
        GoogleCredentials::ApplicationDefault => Credentials::ApplicationDefault,
        GoogleCredentials::File(path) => Credentials::File { variable, path: path.clone() },
        GoogleCredentials::Json(text) => Credentials::Json { variable, text: text.clone() },
    };
    let settings = BigQuerySettings { project, credentials, emulator, location, timeouts: Timeouts::default() };
    Ok(Arc::new(BigQuery::connect(settings).await?))
}

/// The folder of what is embedded.
fn make_folder(settings: &Settings) -> anyhow::Result<()> {
    let folder = &settings.backends.data;
    std::fs::create_dir_all(folder).with_context(|| {
        format!("the folder {} cannot be made; let LAMPLIGHTER_DATA name one that may be written to", folder.display())
    })
}
