//! Being written.

use serde::Deserialize;

use super::kind::{JobContext, JobError, JobKind, Outcome};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Upload {
    #[expect(dead_code, reason = "being written")]
    datasets: Vec<String>,
}

impl JobKind for Upload {
    const KIND: &'static str = "upload";

    async fn run(&self, _ctx: &JobContext) -> Result<Outcome, JobError> {
        Ok(Outcome::Skipped("being written".to_owned()))
    }
}
