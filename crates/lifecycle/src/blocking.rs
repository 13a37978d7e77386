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

/// Runs `work` on a thread of its own: for what waits for other machines, which must not hold the threads of everybody
/// else. Where no thread can be had, one of those after all.
pub(crate) async fn run_apart<T: Send + 'static>(label: &'static str, work: impl FnOnce() -> T + Send + 'static) -> T {
    /// As the threads of the pool: the deepest is the unpacking of layers, with its buffers on the heap.
    const STACK_BYTES: usize = 1 << 20;
    let (give, take) = std::sync::mpsc::sync_channel::<Box<dyn FnOnce() -> T + Send>>(1);
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let span = tracing::Span::current();
    let thread = std::thread::Builder::new().name(label.to_owned()).stack_size(STACK_BYTES).spawn(move || {
        if let Ok(work) = take.recv() {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| span.in_scope(work)));
            // Nobody waits any more.
            let _ = sender.send(result);
        }
    });
    if thread.is_err() {
        return run(label, work).await;
    }
    // The thread waits for nothing else, and the channel has room.
    let _ = give.send(Box::new(work));
    match receiver.await {
        Ok(Ok(value)) => value,
        Ok(Err(panic)) => std::panic::resume_unwind(panic),
        Err(_) => unreachable!("the thread answers or panics, and a panic is an answer"),
    }
}
