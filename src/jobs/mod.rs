//! Jobs: what a `[jobs.NAME]` table says, the kinds there are, and the kinds themselves.
//!
//! A job kind is one file here, its `mod` line and its `.with` line below. A key `datasets` of any kind names `[datasets]`
//! tables: settings checks that they exist.

mod datasets;
mod kind;
mod registry;
mod spec;
mod upload;

pub(crate) use self::datasets::Place;
pub use self::datasets::{Dataset, Datasets, KeyPattern, Layout, NonFinite};
pub use self::kind::{Finding, JobContext, JobError, JobKind, Outcome, Plan, Progress, ProgressReport};
pub use self::registry::{Job, Registry};
pub(crate) use self::spec::Defaults;
pub use self::spec::{CatchUp, JobSpec, OnCrash, Overlap, Retry, WhenDbDown};
pub use self::upload::retry_dead_letter;

/// The kinds that jobs.toml can name.
pub fn kinds() -> Registry {
    Registry::default().with::<upload::Upload>()
}
