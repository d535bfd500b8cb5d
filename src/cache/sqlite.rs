//! Being written.

/// Being written.
pub struct SqliteCache;
