//! The kinds of jobs, by name: turns a `[jobs.NAME]` table into a [`Job`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::datasets::Datasets;
use super::kind::{JobContext, JobError, JobKind, Outcome, Plan};
use super::spec::COMMON_KEYS;
use crate::document::{Fault, Reading, Scope, What, keys_of};
use crate::units::nearest;

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

/// Reads the kind's own keys of a job's table.
type Read = fn(&Reading<'_>) -> (Option<Arc<dyn Job>>, Vec<Fault>);

/// The kinds that are known.
#[derive(Default)]
pub struct Registry {
    kinds: BTreeMap<&'static str, Read>,
}

impl Registry {
    /// Adds a kind.
    ///
    /// # Panics
    /// If the kind is there already, or if one of its keys belongs to every job: a mistake in the program, not in a file.
    #[must_use]
    pub fn with<K: JobKind>(mut self) -> Self {
        let taken = keys_of::<K>().iter().find(|key| COMMON_KEYS.contains(key));
        assert!(taken.is_none(), "job kind {:?} has a key {taken:?}, which every job has", K::KIND);
        let read: Read = |table| {
            let (job, faults) = table.read_around::<K>(Scope::Except(COMMON_KEYS));
            (job.map(|job| Arc::new(job) as Arc<dyn Job>), faults)
        };
        assert!(self.kinds.insert(K::KIND, read).is_none(), "job kind {:?} is registered twice", K::KIND);
        self
    }

    /// The kinds' words, sorted.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.kinds.keys().copied()
    }

    /// Reads what the kind that the table names has to say of it. With faults, the job is only good for finding more.
    pub(super) fn read(&self, table: &Reading<'_>) -> (Option<Arc<dyn Job>>, Vec<Fault>) {
        let Some(kind) = table.table.get("kind") else {
            let mut faults = misspelt(table);
            faults.push(Fault::at(table.path.clone(), What::MissingKey("kind")));
            return (None, faults);
        };
        let path = table.path.key("kind");
        let Some(word) = kind.node.text() else {
            let (found, expected) = (kind.node.sort().to_owned(), "text in quotes".to_owned());
            return (None, vec![Fault::at(path, What::WrongType { found, expected })]);
        };
        if let Some(read) = self.kinds.get(word.value.as_str()) {
            return read(table);
        }
        // What else is wrong, if it is the kind that was probably meant.
        let mut faults = match nearest(&word.value, self.names()).and_then(|meant| self.kinds.get(meant)) {
            Some(read) => read(table).1,
            None => misspelt(table),
        };
        let choices = self.names().map(str::to_owned).collect();
        faults.push(Fault::at(path, What::NotAChoice { found: word.shown().to_owned(), choices }));
        (None, faults)
    }
}

/// Keys that are nearly ones that every job has. Without a kind nobody knows what the others mean.
fn misspelt(table: &Reading<'_>) -> Vec<Fault> {
    let unknown = table.table.keys().filter(|key| !COMMON_KEYS.contains(&key.as_str()));
    let misspelt = unknown.filter(|key| nearest(key, COMMON_KEYS.iter().copied()).is_some());
    misspelt
        .map(|key| {
            let what = What::UnknownKey { key: key.clone(), choices: COMMON_KEYS.to_vec() };
            Fault::at(table.path.clone(), what)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Nothing {}

    impl JobKind for Nothing {
        const KIND: &'static str = "nothing";

        async fn run(&self, _: &JobContext) -> Result<Outcome, JobError> {
            Ok(Outcome::Skipped("there is nothing to do".to_owned()))
        }
    }

    #[derive(Deserialize)]
    struct Greedy {
        #[expect(dead_code, reason = "only its name matters")]
        timeout: u32,
    }

    impl JobKind for Greedy {
        const KIND: &'static str = "greedy";

        async fn run(&self, _: &JobContext) -> Result<Outcome, JobError> {
            Ok(Outcome::Skipped("there is nothing to do".to_owned()))
        }
    }

    #[test]
    #[should_panic(expected = "job kind \"nothing\" is registered twice")]
    fn a_kind_that_is_registered_twice_stops_the_start_with_its_name() {
        let _ = Registry::default().with::<Nothing>().with::<Nothing>();
    }

    #[test]
    #[should_panic(expected = "job kind \"greedy\" has a key Some(\"timeout\"), which every job has")]
    fn a_kind_cannot_use_a_key_that_every_job_has() {
        let _ = Registry::default().with::<Greedy>();
    }
}
