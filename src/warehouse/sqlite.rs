//! Being written.

/// Being written.
pub struct SqliteWarehouse;
