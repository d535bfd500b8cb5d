//! SIGTERM and Ctrl-C: the first one asks for an orderly end, the second one ends the program at once.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::failure::Failure;
use super::output::complain;

/// What shells report for a program that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// A token that is cancelled by the first signal. From then on the second signal exits with 130.
pub(super) fn stop_token() -> Result<CancellationToken, Failure> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move {
        let first = either(&mut interrupt, &mut terminate).await;
        tracing::info!(signal = first, "{first}: stopping in order; a second signal stops at once");
        stop.cancel();
        let second = either(&mut interrupt, &mut terminate).await;
        complain(&format!("{second} again: stopped at once; what was running will be found and taken over"));
        std::process::exit(INTERRUPTED);
    });
    Ok(token)
}

async fn either(interrupt: &mut Signal, terminate: &mut Signal) -> &'static str {
    tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
    }
}
