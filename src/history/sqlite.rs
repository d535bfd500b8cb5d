//! Being written.

/// Being written.
pub struct SqliteHistory;
