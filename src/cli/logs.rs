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

/// The form for this command: JSON when the daemon runs without a terminal, unless `LAMPLIGHTER_LOG_FORMAT` says otherwise.
pub(super) fn form(stays_up: bool) -> Form {
    match std::env::var("LAMPLIGHTER_LOG_FORMAT").as_deref() {
        Ok("json") => Form::Json,
        Ok("text" | "human") => Form::People,
        _ if stays_up && !io::stdout().is_terminal() => Form::Json,
        _ => Form::People,
    }
}

/// Starts logging, and makes panics part of it. `quiet`: only warnings, unless `LAMPLIGHTER_LOG` or `RUST_LOG` says otherwise.
pub(super) fn start(form: Form, quiet: bool) {
    let asked = ["LAMPLIGHTER_LOG", "RUST_LOG"].into_iter().find_map(|name| std::env::var(name).ok());
    let default = if quiet { "warn" } else { "info,sqlx=warn,hyper=warn,tokio_cron_scheduler=warn" };
    let filter = asked.as_deref().and_then(|asked| EnvFilter::try_new(asked).ok());
    let builder = tracing_subscriber::fmt().with_env_filter(filter.unwrap_or_else(|| EnvFilter::new(default)));
    let started = match form {
        Form::Json => builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init(),
        Form::People => {
            let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
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
