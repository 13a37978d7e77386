//! The one way from async code to blocking code.

use std::io;

/// Runs blocking code on tokio's blocking threads and waits for it.
///
/// Callers hold at most one such call per blob or resolution, which bounds the threads in use.
pub(crate) async fn run<T, F>(label: &'static str, work: F) -> Result<T, io::Error>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    // A panic of the closure, or a runtime that is shutting down, is reported and not spread.
    tokio::task::spawn_blocking(work).await.map_err(|source| io::Error::other(format!("{label}: {source}")))
}
