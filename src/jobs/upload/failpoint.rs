//! Places where a crash test stops the program, one for each step of the protocol (docs/upload.md has the table).
//!
//! Only with the cargo feature `failpoints`: `LAMPLIGHTER_FAILPOINT=name` or `name:3` (the third time) says on stderr that
//! the point was reached and then holds it there for ever, so that the test can kill the process at that very step.

/// Waits for ever if the test asked for this point.
#[cfg(feature = "failpoints")]
pub(super) async fn reach(name: &'static str) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static LEFT: std::sync::OnceLock<Option<(String, AtomicU32)>> = std::sync::OnceLock::new();
    let wanted = LEFT.get_or_init(|| {
        let wanted = std::env::var("LAMPLIGHTER_FAILPOINT").ok()?;
        let (name, times) = wanted.split_once(':').unwrap_or((&wanted, "1"));
        Some((name.to_owned(), AtomicU32::new(times.parse().expect("LAMPLIGHTER_FAILPOINT is name or name:times"))))
    });
    let Some((wanted, left)) = wanted else { return };
    if wanted == name && left.fetch_sub(1, Ordering::SeqCst) == 1 {
        tracing::warn!(failpoint = name, "failpoint reached");
        std::future::pending::<()>().await;
    }
}

/// Does nothing: this is not a crash test.
#[cfg(not(feature = "failpoints"))]
pub(super) async fn reach(_name: &'static str) {}
