//! Operations that go on as long as somebody waits for them: asking for one that runs joins it.
//!
//! Unlike those of `in_flight`, which nobody's hanging up tears: what these leave half done costs nothing to anybody.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::task::AbortHandle;
use tracing::Instrument;

type Joined<T, E> = Shared<BoxFuture<'static, Result<T, Arc<E>>>>;
type Running<K, T, E> = Arc<Mutex<HashMap<K, Operation<T, E>>>>;

/// The operations of one kind.
pub(crate) struct WhileWanted<K, T, E> {
    running: Running<K, T, E>,
}

struct Operation<T, E> {
    number: u64,
    joined: Joined<T, E>,
    interest: Weak<Interest>,
}

/// Held by everybody who waits; the last one to let go ends the operation.
struct Interest(AbortHandle);

impl Drop for Interest {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Takes an operation out of the table, however it ends.
struct Forget<K: Eq + Hash, T, E> {
    running: Running<K, T, E>,
    key: K,
    number: u64,
}

impl<K: Eq + Hash, T, E> Drop for Forget<K, T, E> {
    fn drop(&mut self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        // One that was given up may have been begun anew before this.
        if running.get(&self.key).is_some_and(|operation| operation.number == self.number) {
            running.remove(&self.key);
        }
    }
}

impl<K, T, E> Default for WhileWanted<K, T, E> {
    fn default() -> Self {
        Self { running: Arc::default() }
    }
}

impl<K, T, E> WhileWanted<K, T, E>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// Waits for the operation on `key`, which `start` begins unless it already runs.
    ///
    /// The operation is a task of its own; it is ended once all futures that wait for it are dropped.
    pub(crate) async fn join<F>(&self, key: K, start: impl FnOnce() -> F) -> Result<T, Arc<E>>
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        let (joined, _interest) = {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            let known = running.get(&key).and_then(|known| Some((known.joined.clone(), known.interest.upgrade()?)));
            match known {
                Some(known) => known,
                None => {
                    let number = running.get(&key).map_or(0, |given_up| given_up.number + 1);
                    let forget = Forget { running: Arc::clone(&self.running), key: key.clone(), number };
                    let (joined, interest) = begin(start(), forget);
                    let operation = Operation { number, joined: joined.clone(), interest: Arc::downgrade(&interest) };
                    running.insert(key, operation);
                    (joined, interest)
                }
            }
        };
        joined.await
    }
}

fn begin<K, T, E>(
    operation: impl Future<Output = Result<T, E>> + Send + 'static,
    forget: Forget<K, T, E>,
) -> (Joined<T, E>, Arc<Interest>)
where
    K: Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    let task = async move {
        // Whoever asks once this is gone begins anew and finds the operation's effect.
        let _forget = forget;
        operation.await.map_err(Arc::new)
    };
    let handle = tokio::spawn(task.in_current_span());
    let interest = Arc::new(Interest(handle.abort_handle()));
    let joined = async move {
        match handle.await.map_err(tokio::task::JoinError::try_into_panic) {
            Ok(result) => result,
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            // Ended because nobody waits: this is polled no more.
            Err(Err(_)) => std::future::pending().await,
        }
    };
    (joined.boxed().shared(), interest)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    const LONG: Duration = Duration::from_millis(100);
    const SHORT: Duration = Duration::from_millis(10);

    #[tokio::test]
    async fn equal_requests_join_and_the_last_to_leave_ends_it() {
        let operations: WhileWanted<&str, u32, ()> = WhileWanted::default();
        let (begun, ended) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let operation = || {
            let (begun, ended) = (Arc::clone(&begun), Arc::clone(&ended));
            async move {
                begun.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(LONG).await;
                Ok(ended.fetch_add(1, Ordering::SeqCst) + 1)
            }
        };
        // One of two leaves: the other has its result.
        let (stays, leaves) =
            tokio::join!(operations.join("a", operation), tokio::time::timeout(SHORT, operations.join("a", operation)));
        assert!(stays == Ok(1) && leaves.is_err());
        assert_eq!(begun.load(Ordering::SeqCst), 1);
        // All leave: it ends, and can be begun anew at once.
        assert!(tokio::time::timeout(SHORT, operations.join("b", operation)).await.is_err());
        let again = operations.join("b", operation).await;
        assert_eq!(again, Ok(2), "the one that was given up has not gone on");
        assert_eq!(begun.load(Ordering::SeqCst), 3);
        assert!(operations.running.lock().expect("a table").is_empty());
    }
}
