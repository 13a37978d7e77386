//! The way back of an operation: what has been done, and how to undo it, newest first.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

/// What undoing one step answers.
pub(crate) type Undone = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// A step that cannot be undone at once is usually busy for a moment; a restart is the last resort.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(100);

type Step = Box<dyn Fn() -> BoxFuture<'static, Undone> + Send + Sync>;

/// Steps done so far. Must be kept or run: dropping it with steps in it undoes nothing.
#[derive(Default)]
pub(crate) struct Undo {
    steps: Vec<(&'static str, Step)>,
}

impl Undo {
    /// Remembers how to undo what was just done. The way back may be walked more than once.
    pub(crate) fn push<F, R>(&mut self, label: &'static str, step: F)
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Undone> + Send + 'static,
    {
        self.steps.push((label, Box::new(move || step().boxed())));
    }

    /// Everything succeeded; there is no way back.
    pub(crate) fn forget(mut self) {
        self.steps.clear();
    }

    /// Undoes everything, newest first. A step that keeps failing is reported and passed over.
    pub(crate) async fn run(mut self) {
        while let Some((label, step)) = self.steps.pop() {
            for attempt in 1.. {
                match step().await {
                    Ok(()) => break,
                    Err(error) if attempt >= ATTEMPTS => {
                        tracing::error!(step = label, error = %chain(&*error), "undoing a failed operation left something");
                        break;
                    }
                    Err(_) => tokio::time::sleep(PAUSE).await,
                }
            }
        }
    }
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test]
    async fn steps_are_undone_newest_first_and_retried() {
        let log = Arc::new(Mutex::new(Vec::new()));
        let mut undo = Undo::default();
        for name in ["first", "second", "third"] {
            let log = Arc::clone(&log);
            undo.push(name, move || {
                let log = Arc::clone(&log);
                async move {
                    let mut log = log.lock().expect("unpoisoned");
                    log.push(name);
                    // The second step succeeds only when it is tried again.
                    if name == "second" && log.iter().filter(|entry| **entry == name).count() < 2 {
                        return Err("busy".into());
                    }
                    Ok(())
                }
            });
        }
        undo.run().await;
        assert_eq!(*log.lock().expect("unpoisoned"), ["third", "second", "second", "first"]);
    }
}
