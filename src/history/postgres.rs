//! Being written.

/// Being written.
pub struct PostgresHistory;
