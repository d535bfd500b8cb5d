//! Why a command did not do what was asked, and the exit code that says so.

use std::fmt;

use crate::cache::CacheError;
use crate::history::HistoryError;
use crate::runner::NotRun;
use crate::warehouse::WarehouseError;

/// It ran and found trouble.
const TROUBLE: u8 = 1;
/// Wrong usage.
const USAGE: u8 = 2;
/// `EX_UNAVAILABLE` of sysexits.h: a server cannot be reached.
const UNREACHABLE: u8 = 69;
/// `EX_CONFIG` of sysexits.h: the configuration is wrong.
pub(super) const CONFIGURATION: u8 = 78;

/// Why a command failed.
#[derive(Debug)]
pub(super) struct Failure {
    /// The exit code.
    pub(super) code: u8,
    /// What to say; `None` if all has been said.
    pub(super) message: Option<String>,
}

impl Failure {
    /// Everything was said already.
    pub(super) fn told(code: u8) -> Self {
        Self { code, message: None }
    }

    /// It ran and found trouble.
    pub(super) fn trouble(message: impl fmt::Display) -> Self {
        Self { code: TROUBLE, message: Some(message.to_string()) }
    }

    /// Wrong usage.
    pub(super) fn usage(message: impl fmt::Display) -> Self {
        Self { code: USAGE, message: Some(message.to_string()) }
    }

    /// The configuration is wrong.
    pub(super) fn configuration(message: impl fmt::Display) -> Self {
        Self { code: CONFIGURATION, message: Some(message.to_string()) }
    }
}

/// The exit code tells an absent server from wrong settings by the lower rooms' errors, wherever they are in the chain.
impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        let code = error.chain().find_map(|cause| {
            let history = cause.downcast_ref::<HistoryError>().map(HistoryError::is_transient);
            let cache = cause.downcast_ref::<CacheError>().map(CacheError::is_transient);
            let warehouse = cause.downcast_ref::<WarehouseError>().map(WarehouseError::is_transient);
            let transient = history.or(cache).or(warehouse)?;
            Some(if transient { UNREACHABLE } else { CONFIGURATION })
        });
        let message = format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ");
        Self { code: code.unwrap_or(TROUBLE), message: Some(message) }
    }
}

macro_rules! through_anyhow {
    ($($error:ty),+) => { $(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                anyhow::Error::new(error).into()
            }
        }
    )+ };
}

through_anyhow!(HistoryError, CacheError, WarehouseError, std::io::Error);

impl From<NotRun> for Failure {
    fn from(error: NotRun) -> Self {
        match error {
            NotRun::Unknown(_) => Self::usage(error),
            NotRun::Away(error) => error.into(),
            NotRun::Busy { .. } | NotRun::Stopping(_) | NotRun::Fenced(_) => Self::trouble(error),
        }
    }
}
