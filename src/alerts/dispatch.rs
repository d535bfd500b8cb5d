//! Being written.

/// Being written.
pub struct Dispatcher;
