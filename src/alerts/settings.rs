//! `[receivers.NAME]`: who can be told, and how.

use serde::Deserialize;

/// Being written.
#[derive(Debug, Clone, Deserialize)]
pub struct ReceiverSettings;
/// Being written.
#[derive(Debug, Clone, Deserialize)]
pub struct ReceiverKind;
