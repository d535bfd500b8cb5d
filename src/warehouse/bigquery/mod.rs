//! BigQuery as a warehouse: schemas and tables over its REST interface, rows as load jobs from resumable uploads.
//!
//! A load job's name is chosen by us, and BigQuery runs at most one job of a name: that is what makes an upload happen once.

mod auth;
mod outcome;
mod rest;
mod upload;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use gcp_bigquery_client::model::clustering::Clustering;
use gcp_bigquery_client::model::table_reference::TableReference;
use gcp_bigquery_client::model::time_partitioning::TimePartitioning;
use reqwest::StatusCode;
use serde_json::{Value, json};
use url::Url;

pub use self::auth::Credentials;

use self::auth::{NoToken, Tokens};
use self::outcome::{READING_LABEL, load_status};
use self::rest::{Rest, Trouble};
use self::upload::Upload;
use super::{Load, LoadStatus, LoadWriter, TableRef, TableSchema, Warehouse, WarehouseError, fields};

const ENDPOINT: &str = "https://bigquery.googleapis.com/";

/// What is needed to reach BigQuery.
#[derive(Debug, Clone)]
pub struct BigQuerySettings {
    /// The project that jobs run in, and that tables are in unless they say otherwise.
    pub project: String,
    /// Who we are.
    pub credentials: Credentials,
    /// The emulator's address, `http://host:port`, instead of Google's.
    pub emulator: Option<Url>,
    /// Where the datasets are (`EU`, `europe-west1`); looked up for each dataset unless it is set.
    pub location: Option<String>,
    /// How long everything may take.
    pub timeouts: Timeouts,
}

/// How long requests may take, and how often they are tried.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// For a connection to be made.
    pub connect: Duration,
    /// For a request that carries no rows.
    pub control: Duration,
    /// For a chunk of rows, about 1 MiB, and for the last of them to become a job.
    pub chunk: Duration,
    /// How many times more a request is tried that may be tried again.
    pub retries: usize,
    /// The first wait between tries, roughly; the following ones grow.
    pub retry_first: Duration,
    /// The sum of the waits, roughly.
    pub retry_total: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            control: Duration::from_secs(60),
            chunk: Duration::from_secs(180),
            retries: 4,
            retry_first: Duration::from_millis(500),
            retry_total: Duration::from_secs(30),
        }
    }
}

/// A project in BigQuery.
pub struct BigQuery {
    rest: Arc<Rest>,
    project: String,
    name: String,
    location: Option<String>,
    /// The locations of the datasets that were asked for, by project and dataset. A dataset cannot move.
    locations: Mutex<HashMap<(String, String), String>>,
}

impl BigQuery {
    /// Prepares a client. Nothing is sent yet; [`Warehouse::ping`] tells whether we are let in.
    ///
    /// # Errors
    /// If the credentials are unreadable or not credentials.
    pub async fn connect(settings: BigQuerySettings) -> Result<Self, WarehouseError> {
        // One implementation of TLS for the process. If there is one already, it will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let BigQuerySettings { project, credentials, emulator, location, timeouts } = settings;
        let name = match &emulator {
            Some(address) => {
                format!(
                    "BigQuery project {project} (BIGQUERY_EMULATOR_HOST={})",
                    address.origin().ascii_serialization()
                )
            }
            None => format!("BigQuery project {project}"),
        };
        let refused = |reason: String, cure: String| WarehouseError::Refused {
            service: name.clone(),
            doing: "preparing".to_owned(),
            reason,
            cure,
        };
        let mut http = reqwest::Client::builder()
            .connect_timeout(timeouts.connect)
            .timeout(timeouts.chunk)
            .pool_idle_timeout(Duration::from_secs(60))
            // 308 is an upload's "go on", not a redirect.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("lamplighter/", env!("CARGO_PKG_VERSION")));
        if emulator.is_some() {
            http = http.no_proxy();
        }
        let http = http.build().map_err(|error| {
            refused(format!("no HTTP client: {}", rest::in_full(&error)), "Check the HTTPS_PROXY variable".to_owned())
        })?;
        let endpoint = emulator.unwrap_or_else(|| ENDPOINT.parse().expect("a constant that is an address"));
        if !matches!(endpoint.scheme(), "http" | "https") || endpoint.host().is_none() {
            return Err(refused(
                format!("BIGQUERY_EMULATOR_HOST is {endpoint}, which is not a web address"),
                "Write it as http://host:port".to_owned(),
            ));
        }
        let tokens = Tokens::new(&credentials, timeouts.control).await.map_err(|trouble| match trouble {
            NoToken::Refused { reason, cure } => refused(reason, cure),
            NoToken::Unavailable(reason) => refused(reason, format!("Check {}", credentials.source())),
        })?;
        let rest = Arc::new(Rest::new(http, tokens, endpoint, name.clone(), timeouts));
        Ok(Self { rest, project, name, location, locations: Mutex::default() })
    }

    fn project<'a>(&'a self, table: &'a TableRef) -> &'a str {
        table.project.as_deref().unwrap_or(&self.project)
    }

    fn remember_location(&self, table: &TableRef, location: &str) {
        let key = (self.project(table).to_owned(), table.dataset.clone());
        self.locations.lock().expect("nothing panics while it is held").insert(key, location.to_owned());
    }

    /// Where the table's dataset is: jobs are found by name and location.
    async fn location(&self, table: &TableRef, doing: &str) -> Result<String, WarehouseError> {
        let key = (self.project(table).to_owned(), table.dataset.clone());
        let known = self.locations.lock().expect("nothing panics while it is held").get(&key).cloned();
        match known.or_else(|| self.location.clone()) {
            Some(location) => Ok(location),
            None => self.dataset(table, doing).await,
        }
    }

    /// Asks for the table's dataset, and where it is.
    async fn dataset(&self, table: &TableRef, doing: &str) -> Result<String, WarehouseError> {
        let url = self.rest.url(false, &[self.project(table), "datasets", &table.dataset]);
        match self.rest.send_patiently(|http| http.get(url.clone())).await {
            Ok(answer) => match answer.json()["location"].as_str() {
                Some(location) => {
                    self.remember_location(table, location);
                    Ok(location.to_owned())
                }
                None => Err(self.rest.unavailable(doing, "the answer is not a dataset", None)),
            },
            Err(trouble) if trouble.status() == Some(StatusCode::NOT_FOUND) => {
                let (project, dataset) = (self.project(table), &table.dataset);
                let place = self.location.as_ref().map(|place| format!(" --location={place}")).unwrap_or_default();
                let cure = format!("Create it: bq{place} mk --dataset {project}:{dataset}");
                Err(self.rest.refused(doing, format!("there is no dataset {dataset} in project {project}"), cure))
            }
            Err(trouble) => Err(self.rest.error(trouble, doing)),
        }
    }

    /// The table as BigQuery describes it; `None` if the dataset is there and the table is not.
    async fn table(&self, table: &TableRef, doing: &str) -> Result<Option<Value>, WarehouseError> {
        let url = self.rest.url(false, &[self.project(table), "datasets", &table.dataset, "tables", &table.table]);
        match self.rest.send_patiently(|http| http.get(url.clone())).await {
            Ok(answer) => {
                let resource = answer.json();
                if !resource["tableReference"].is_object() {
                    return Err(self.rest.unavailable(doing, "the answer is not a table", None));
                }
                Ok(Some(resource))
            }
            Err(trouble) if trouble.status() == Some(StatusCode::NOT_FOUND) => {
                self.dataset(table, doing).await?;
                Ok(None)
            }
            Err(trouble) => Err(self.rest.error(trouble, doing)),
        }
    }
}

#[async_trait]
impl Warehouse for BigQuery {
    fn describe(&self) -> String {
        self.name.clone()
    }

    async fn ping(&self) -> Result<(), WarehouseError> {
        let mut url = self.rest.url(false, &[&self.project, "datasets"]);
        url.query_pairs_mut().append_pair("maxResults", "1");
        let answer = self.rest.send_patiently(|http| http.get(url.clone())).await;
        answer.map(drop).map_err(|trouble| self.rest.error(trouble, "saying hello"))
    }

    async fn schema(&self, table: &TableRef) -> Result<Option<TableSchema>, WarehouseError> {
        let Some(resource) = self.table(table, &format!("reading the schema of {table}")).await? else {
            return Ok(None);
        };
        let names =
            |list: &Value| list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        Ok(Some(TableSchema {
            columns: fields::from_json(&resource["schema"]["fields"]),
            partition_by: resource["timePartitioning"]["field"].as_str().map(str::to_owned),
            cluster_by: names(&resource["clustering"]["fields"]),
            // Older tables have it inside of the partitioning.
            require_partition_filter: [&resource, &resource["timePartitioning"]]
                .iter()
                .any(|place| place["requirePartitionFilter"].as_bool() == Some(true)),
        }))
    }

    async fn create(&self, table: &TableRef, schema: &TableSchema) -> Result<(), WarehouseError> {
        let doing = format!("creating {table}");
        let project = self.project(table);
        let mut resource = json!({
            "tableReference": TableReference::new(project, &table.dataset, &table.table),
            "schema": {"fields": fields::to_json(&schema.columns)},
        });
        if let Some(column) = &schema.partition_by {
            resource["timePartitioning"] = json!(TimePartitioning::per_day().field(column));
            resource["requirePartitionFilter"] = json!(schema.require_partition_filter);
        }
        if !schema.cluster_by.is_empty() {
            resource["clustering"] = json!(Clustering { fields: Some(schema.cluster_by.clone()) });
        }
        let url = self.rest.url(false, &[project, "datasets", &table.dataset, "tables"]);
        // May be tried again: if the first try has worked after all, the second one finds the table there.
        match self.rest.send_patiently(|http| http.post(url.clone()).json(&resource)).await {
            Ok(_) => Ok(()),
            Err(trouble) if trouble.status() == Some(StatusCode::CONFLICT) => Ok(()),
            Err(trouble) if trouble.status() == Some(StatusCode::NOT_FOUND) => {
                self.dataset(table, &doing).await?;
                Err(self.rest.error(trouble, &doing))
            }
            Err(trouble) => Err(self.rest.error(trouble, &doing)),
        }
    }

    async fn begin(&self, load: &Load) -> Result<Box<dyn LoadWriter>, WarehouseError> {
        let doing = format!("preparing load {}", load.job_id);
        let Some(resource) = self.table(&load.table, &doing).await? else {
            let reason = format!("there is no table {}", load.table);
            return Err(self.rest.refused(&doing, reason, "Run the job again: it creates what is missing"));
        };
        // The table's own fields go along as they are, with what we do not know of them; ours are added.
        let mut columns = resource["schema"]["fields"].as_array().cloned().unwrap_or_default();
        let new = fields::additions(&fields::from_json(&json!(columns)), &load.columns).map_err(|mismatch| {
            self.rest.refused(&doing, mismatch, "Run the job again: it reads the table's columns anew")
        })?;
        columns.extend(new.iter().map(fields::field));
        let location = self.location(&load.table, &doing).await?;
        let mut job = json!({
            "jobReference": {"projectId": self.project, "jobId": load.job_id, "location": location},
            "configuration": {
                "labels": {READING_LABEL: load.reading.to_string()},
                "load": {
                    "sourceFormat": "NEWLINE_DELIMITED_JSON",
                    "destinationTable":
                        TableReference::new(self.project(&load.table), &load.table.dataset, &load.table.table),
                    "schema": {"fields": columns},
                    "writeDisposition": "WRITE_APPEND",
                    "createDisposition": "CREATE_NEVER",
                    "maxBadRecords": 0,
                },
            },
        });
        if !new.is_empty() {
            job["configuration"]["load"]["schemaUpdateOptions"] = json!(["ALLOW_FIELD_ADDITION"]);
        }
        Ok(Box::new(Upload::new(self.rest.clone(), &self.project, &load.job_id, job)))
    }

    async fn status(&self, table: &TableRef, job_id: &str) -> Result<LoadStatus, WarehouseError> {
        let doing = format!("asking for load {job_id}");
        let location = self.location(table, &doing).await?;
        let mut url = self.rest.url(false, &[&self.project, "jobs", job_id]);
        url.query_pairs_mut().append_pair("location", &location);
        match self.rest.send_patiently(|http| http.get(url.clone())).await {
            Ok(answer) => load_status(&answer.json()).map_err(|odd| {
                self.rest.refused(&doing, odd, "Nothing was changed; look at the job in the BigQuery console")
            }),
            Err(trouble) if is_absent_job(&trouble) => Ok(LoadStatus::Absent),
            Err(trouble) => Err(self.rest.error(trouble, &doing)),
        }
    }
}

/// Whether BigQuery itself says that it has no such job. Absence allows the same rows to be sent again, so a 404 from
/// something in between (a proxy, a wrong address), or for a missing project, is not taken for it.
fn is_absent_job(trouble: &Trouble) -> bool {
    matches!(trouble, Trouble::Status { status: StatusCode::NOT_FOUND, reason, .. } if reason == "notFound")
        && !trouble.is_missing("Project")
}
