//! Who fetches what: of several who need the same thing one fetches it, the others wait for the end of that.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

type Table<K> = Arc<Mutex<HashMap<K, watch::Receiver<()>>>>;

/// What is being fetched.
#[derive(Debug)]
pub(crate) struct Claims<K>(Table<K>);

/// The right to fetch something; others learn of its end when this is dropped.
#[derive(Debug)]
pub(crate) struct Claimed<K: Eq + Hash> {
    table: Table<K>,
    key: K,
    _sender: watch::Sender<()>,
}

/// Somebody else's claim.
#[derive(Debug)]
pub(crate) struct Elsewhere(watch::Receiver<()>);

impl<K> Default for Claims<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Clone + Eq + Hash> Claims<K> {
    /// Takes the right to fetch, unless somebody has it.
    pub(crate) fn claim(&self, key: &K) -> Result<Claimed<K>, Elsewhere> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(receiver) = table.get(key) {
            return Err(Elsewhere(receiver.clone()));
        }
        let (sender, receiver) = watch::channel(());
        table.insert(key.clone(), receiver);
        Ok(Claimed { table: Arc::clone(&self.0), key: key.clone(), _sender: sender })
    }
}

impl<K: Eq + Hash> Drop for Claimed<K> {
    fn drop(&mut self) {
        // Before the sender goes: whoever it wakes finds the claim free.
        self.table.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

impl Elsewhere {
    /// Waits until whoever fetches has succeeded or given up.
    pub(crate) async fn ended(mut self) {
        while self.0.changed().await.is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_has_it_and_the_others_wait() {
        let claims = Claims::default();
        let claimed = claims.claim(&"a").expect("free");
        assert!(claims.claim(&"b").is_ok());
        let elsewhere = claims.claim(&"a").expect_err("taken");
        let waiting = tokio::spawn(elsewhere.ended());
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(claimed);
        waiting.await.expect("ends");
        assert!(claims.claim(&"a").is_ok());
    }
}
