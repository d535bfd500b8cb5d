//! What people are told, and by whom.
//!
//! An alert is a wish ([`crate::history::AlertChange`]) that the history carries out in the transaction that caused it; the
//! messages wait in its outbox. [`Dispatcher`] takes them out, a notifier turns each into its receiver's format and sends it.

mod console;
mod dispatch;
mod rules;
mod settings;
mod slack;
mod webhook;

pub use self::dispatch::Dispatcher;
pub use self::rules::{database_away, run_missed, run_settled};
pub use self::settings::{ReceiverKind, ReceiverSettings};
