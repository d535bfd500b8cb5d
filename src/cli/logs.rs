//! Logs: for machines one flat JSON object a line on the standard output (some hosts call everything on the standard error
//! an error), for people short lines on the standard error.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

/// Which form logs take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Json,
    People,
}

/// The form for this command: JSON when the daemon runs without a terminal, or any command on Railway (its cron services run
/// `run --due`), unless `LAMPLIGHTER_LOG_FORMAT` says otherwise.
pub(super) fn form(stays_up: bool) -> Form {
    match std::env::var("LAMPLIGHTER_LOG_FORMAT").as_deref() {
        Ok("json") => Form::Json,
        Ok("text" | "human") => Form::People,
        _ if (stays_up || on_railway()) && !io::stdout().is_terminal() => Form::Json,
        _ => Form::People,
    }
}

fn on_railway() -> bool {
    std::env::var_os("RAILWAY_ENVIRONMENT_ID").is_some() || std::env::var_os("RAILWAY_ENVIRONMENT_NAME").is_some()
}

/// Starts logging by this filter, and makes panics part of it. `quiet`: unless a filter was asked for, only warnings.
pub(super) fn start(form: Form, filter: &str, quiet: bool) {
    let filter = match filter {
        // Nobody asked for anything special: leave out what only developers of these libraries care for.
        "info" if quiet => "warn",
        "info" => "info,sqlx=warn,hyper=warn,tokio_cron_scheduler=warn",
        asked => asked,
    };
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    // `serve | head` must not fill the standard error with complaints about the closed pipe.
    let builder = tracing_subscriber::fmt().with_env_filter(filter).log_internal_errors(false);
    let started = match form {
        Form::Json => builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init(),
        Form::People => {
            let colour =
                io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            builder.with_writer(io::stderr).with_ansi(colour).with_target(false).try_init()
        }
    };
    // A second start, in tests of the library, keeps the first.
    if started.is_ok() {
        std::panic::set_hook(Box::new(|panic| {
            let place = panic.location().map(ToString::to_string).unwrap_or_default();
            let message = panic.payload_as_str().unwrap_or("no message");
            tracing::error!(place, "panicked: {message}");
        }));
    }
}
