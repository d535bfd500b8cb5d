//! The kinds of jobs, by name: turns a `[jobs.NAME]` table into a [`Job`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::datasets::Datasets;
use super::kind::{JobContext, JobError, JobKind, Outcome, Plan};

/// A [`JobKind`] with its type forgotten.
pub trait Job: Send + Sync {
    /// The kind's word.
    fn kind(&self) -> &'static str;

    /// The time limit where jobs.toml sets none.
    fn default_timeout(&self) -> Duration;

    /// See [`JobKind::validate`].
    fn validate(&self, datasets: &Datasets) -> Vec<(&'static str, String)>;

    /// Does the work once.
    fn run<'a>(&'a self, ctx: &'a JobContext) -> BoxFuture<'a, Result<Outcome, JobError>>;

    /// See [`JobKind::plan`].
    fn plan<'a>(&'a self, ctx: &'a JobContext) -> BoxFuture<'a, Result<Option<Plan>, JobError>>;
}

impl<K: JobKind> Job for K {
    fn kind(&self) -> &'static str {
        K::KIND
    }

    fn default_timeout(&self) -> Duration {
        K::TIMEOUT
    }

    fn validate(&self, datasets: &Datasets) -> Vec<(&'static str, String)> {
        JobKind::validate(self, datasets)
    }

    fn run<'a>(&'a self, ctx: &'a JobContext) -> BoxFuture<'a, Result<Outcome, JobError>> {
        Box::pin(JobKind::run(self, ctx))
    }

    fn plan<'a>(&'a self, ctx: &'a JobContext) -> BoxFuture<'a, Result<Option<Plan>, JobError>> {
        Box::pin(JobKind::plan(self, ctx))
    }
}

/// The kinds that are known. Being written.
#[derive(Default)]
pub struct Registry {
    kinds: BTreeMap<&'static str, Arc<dyn Fn(toml::Value) -> Result<Arc<dyn Job>, String> + Send + Sync>>,
}

impl Registry {
    /// Adds a kind.
    pub fn with<K: JobKind>(mut self) -> Self {
        self.kinds.insert(K::KIND, Arc::new(|value| Ok(Arc::new(value.try_into::<K>().map_err(|e| e.to_string())?))));
        self
    }
}
