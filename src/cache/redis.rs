//! Being written.

/// Being written.
pub struct RedisCache;
