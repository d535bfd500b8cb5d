//! Trying again when a server is away for a moment: a restart of Redis or a failover must not cost a night.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};

use crate::cache::CacheError;
use crate::warehouse::WarehouseError;

/// About 25 seconds in all, from 0.2 s to 5 s between tries, each up to twice as long by chance.
fn backoff() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(200))
        .with_max_delay(Duration::from_secs(5))
        .with_max_times(9)
        .with_jitter()
}

/// Repeats a call to the cache while the server cannot be reached.
pub(super) async fn cache<T, F, Fut>(call: F) -> Result<T, CacheError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, CacheError>>,
{
    call.retry(backoff())
        .when(|error| matches!(error, CacheError::Unreachable { .. }))
        .notify(|error, wait| tracing::warn!(%error, wait_ms = wait.as_millis() as u64, "trying the cache again"))
        .await
}

/// Repeats a call to the warehouse while it does not answer.
pub(super) async fn warehouse<T, F, Fut>(call: F) -> Result<T, WarehouseError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, WarehouseError>>,
{
    call.retry(backoff())
        .when(WarehouseError::is_transient)
        .notify(|error, wait| tracing::warn!(%error, wait_ms = wait.as_millis() as u64, "trying the warehouse again"))
        .await
}
