//! Being written.

/// Being written.
pub struct BigQuery;
/// Being written.
pub struct BigQuerySettings;
