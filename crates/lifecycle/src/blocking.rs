//! Crossing from asynchronous to blocking code: the one place, bounded by the runtime's thread limit, timed, traced.

use std::time::{Duration, Instant};

/// Longer than any disk should take; said once a call, so that a slow disk shows in the log.
const SLOW: Duration = Duration::from_secs(2);

/// Runs `work` on a thread where it may block.
pub(crate) async fn run<T: Send + 'static>(label: &'static str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let span = tracing::Span::current();
    let begun = Instant::now();
    let result = tokio::task::spawn_blocking(move || span.in_scope(work)).await;
    let took = begun.elapsed();
    tracing::debug!(label, micros = took.as_micros(), "blocking work");
    if took > SLOW {
        tracing::warn!(label, seconds = took.as_secs_f64(), "blocking work was slow");
    }
    match result {
        Ok(value) => value,
        // Cancelled only when the runtime shuts down, and then nobody polls this.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
