//! What a run means for the alerts: the runner's facts in the words of the alert rules.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::Inner;
use crate::history::{AlertChange, HistoryError, Run};
use crate::jobs::JobSpec;

/// Delivers alerts: the dispatcher, or a test's notebook.
#[async_trait]
pub trait Bell: Send + Sync + 'static {
    /// There may be new messages in the history's outbox.
    fn wake(&self);

    /// Tells people at once, without the history: it is what is broken.
    async fn ring(&self, changes: &[AlertChange]);
}

impl Inner {
    pub(super) fn settled_changes(&self, _job: &Arc<JobSpec>, _row: &Run, _is_final: bool) -> Vec<AlertChange> {
        Vec::new()
    }

    pub(super) fn missed_changes(&self, _job: &Arc<JobSpec>, _row: &Run) -> Vec<AlertChange> {
        Vec::new()
    }

    pub(super) fn away_changes(&self, _error: Option<&HistoryError>, _since: DateTime<Utc>) -> Vec<AlertChange> {
        Vec::new()
    }

    /// Carries out alert changes that belong to no run's end.
    pub(super) async fn ring(&self, changes: &[AlertChange]) {
        if changes.is_empty() {
            return;
        }
        let limit = std::time::Duration::from_secs(10);
        match self.limited("changing alerts", limit, self.history.change_alerts(changes)).await {
            Ok(()) => self.bell.wake(),
            Err(error) => {
                self.database_failed(&error);
                self.bell.ring(changes).await;
            }
        }
    }
}
