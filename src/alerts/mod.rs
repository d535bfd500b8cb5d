//! What people are told, and by whom.
//!
//! An alert is a wish ([`crate::history::AlertChange`]) that the history carries out in the transaction that caused it; the
//! messages wait in its outbox. [`Dispatcher`] takes them out, a [`Notifier`] turns each into its receiver's format and
//! sends it, and the outbox learns what became of it. One message for each transition and receiver, at least once.
//!
//! The wishes come from pure functions ([`run_settled`], [`run_missed`], [`database_away`]), which are given plain facts:
//! this room knows nothing of jobs. The rule engine (thresholds, `for`, reminders, silences, inhibition) has its place
//! between them: it too will turn facts into [`crate::history::AlertChange`]s, and nothing below it changes.
//!
//! A notifier is added with one file here and one arm in [`notifier`].

mod console;
mod dispatch;
mod guard;
mod http;
mod notifier;
mod rules;
mod settings;
mod slack;
mod webhook;
mod words;

pub use self::dispatch::{Dispatcher, Flushed};
pub use self::http::Http;
pub use self::notifier::{Delivery, Notifier, NotifyError, notifier};
pub use self::rules::{Found, Missed, Outage, Settled, Subject, database_away, run_missed, run_settled};
pub use self::settings::{ReceiverKind, ReceiverSettings};

/// The receiver that is always there: the program's own log.
pub const CONSOLE: &str = "console";
