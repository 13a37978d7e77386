//! Operations under way, keyed by what they change: asking for one that runs joins it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tracing::Instrument;

type Joined<T, E> = Shared<BoxFuture<'static, Result<T, Arc<E>>>>;

/// The operations of one kind.
pub(crate) struct InFlight<K, T, E> {
    running: Arc<Mutex<HashMap<K, Joined<T, E>>>>,
}

impl<K, T, E> Default for InFlight<K, T, E> {
    fn default() -> Self {
        Self { running: Arc::default() }
    }
}

impl<K, T, E> InFlight<K, T, E>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// Waits for the operation on `key`, which `start` begins unless it already runs.
    ///
    /// The operation is a task of its own: dropping this future leaves it running.
    pub(crate) async fn join<F>(&self, key: K, start: impl FnOnce() -> F) -> Result<T, Arc<E>>
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        let joined = {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(joined) = running.get(&key) {
                joined.clone()
            } else {
                let joined = self.begin(key.clone(), start());
                running.insert(key, joined.clone());
                joined
            }
        };
        joined.await
    }

    /// Whether the operation on `key` runs now.
    pub(crate) fn is_under_way(&self, key: &K) -> bool {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).contains_key(key)
    }

    fn begin(&self, key: K, operation: impl Future<Output = Result<T, E>> + Send + 'static) -> Joined<T, E> {
        let registry = Arc::clone(&self.running);
        let task = async move {
            let result = operation.await.map_err(Arc::new);
            // Whoever asks from now on begins anew and finds the operation's effect.
            registry.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            result
        };
        let handle = tokio::spawn(task.in_current_span());
        async move {
            match handle.await {
                Ok(result) => result,
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
        .boxed()
        .shared()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn equal_requests_join_and_a_dropped_one_tears_nothing() {
        let operations: Arc<InFlight<&str, u32, ()>> = Arc::default();
        let count = Arc::new(AtomicU32::new(0));
        let operation = || {
            let count = Arc::clone(&count);
            async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                Ok(count.fetch_add(1, Ordering::SeqCst) + 1)
            }
        };
        let (one, two, other) = tokio::join!(
            operations.join("a", operation),
            operations.join("a", operation),
            operations.join("b", operation),
        );
        assert_eq!(one, two);
        assert_ne!(one, other);
        assert_eq!(count.load(Ordering::SeqCst), 2);

        let abandoned = tokio::time::timeout(Duration::from_millis(5), operations.join("c", operation)).await;
        assert!(abandoned.is_err());
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(count.load(Ordering::SeqCst), 3);
        assert_eq!(operations.join("c", operation).await, Ok(4));
    }
}
