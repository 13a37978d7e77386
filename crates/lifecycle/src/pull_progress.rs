//! How far pulls have come, for those who ask meanwhile.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// How far a pull has come; layers that were here before it do not count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PullProgress {
    /// Compressed bytes that have arrived.
    pub bytes: u64,
    /// All of them, or 0 before the manifest has been read.
    pub bytes_total: u64,
    /// Layers unpacked and committed.
    pub layers: u32,
    /// All of them, or 0 before the manifest has been read.
    pub layers_total: u32,
}

/// The counters of one pull, written by whoever does the work.
#[derive(Debug, Default)]
pub(crate) struct PullCounters {
    bytes: AtomicU64,
    bytes_total: AtomicU64,
    layers: AtomicU32,
    layers_total: AtomicU32,
}

impl PullCounters {
    /// Begins to fetch these layers, sizes in bytes; what an earlier source has brought is forgotten.
    pub(crate) fn begin(&self, sizes: impl Iterator<Item = u64>) {
        let (bytes, layers) =
            sizes.fold((0_u64, 0_u32), |(bytes, layers), size| (bytes.saturating_add(size), layers + 1));
        self.bytes.store(0, Ordering::Relaxed);
        self.layers.store(0, Ordering::Relaxed);
        self.bytes_total.store(bytes, Ordering::Relaxed);
        self.layers_total.store(layers, Ordering::Relaxed);
    }

    pub(crate) fn arrived(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn committed(&self) {
        self.layers.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> PullProgress {
        PullProgress {
            bytes: self.bytes.load(Ordering::Relaxed),
            bytes_total: self.bytes_total.load(Ordering::Relaxed),
            layers: self.layers.load(Ordering::Relaxed),
            layers_total: self.layers_total.load(Ordering::Relaxed),
        }
    }
}

/// The pulls under way, by the image as it was asked for.
#[derive(Debug, Default)]
pub(crate) struct PullsUnderWay(Arc<Mutex<HashMap<String, Arc<PullCounters>>>>);

impl PullsUnderWay {
    /// Counters that can be asked for until the guard is dropped. Of two pulls of one image, with different
    /// credentials, the later is told of.
    pub(crate) fn begin(&self, image: &str) -> UnderWay {
        let counters = Arc::new(PullCounters::default());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(image.to_owned(), Arc::clone(&counters));
        UnderWay { pulls: Arc::clone(&self.0), image: image.to_owned(), counters }
    }

    pub(crate) fn of(&self, image: &str) -> Option<PullProgress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(image).map(|counters| counters.read())
    }
}

/// A pull that can be asked about while this exists.
#[derive(Debug)]
pub(crate) struct UnderWay {
    pulls: Arc<Mutex<HashMap<String, Arc<PullCounters>>>>,
    image: String,
    counters: Arc<PullCounters>,
}

impl UnderWay {
    pub(crate) fn counters(&self) -> &PullCounters {
        &self.counters
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut pulls = self.pulls.lock().unwrap_or_else(PoisonError::into_inner);
        if pulls.get(&self.image).is_some_and(|counters| Arc::ptr_eq(counters, &self.counters)) {
            pulls.remove(&self.image);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_is_told_of_from_its_beginning_to_its_end() {
        let pulls = PullsUnderWay::default();
        assert_eq!(pulls.of("a"), None);
        let one = pulls.begin("a");
        assert_eq!(pulls.of("a"), Some(PullProgress::default()));
        one.counters().begin([10, 20].into_iter());
        one.counters().arrived(12);
        one.counters().committed();
        assert_eq!(pulls.of("a"), Some(PullProgress { bytes: 12, bytes_total: 30, layers: 1, layers_total: 2 }));
        // A second source starts from nothing.
        one.counters().begin([5].into_iter());
        assert_eq!(pulls.of("a"), Some(PullProgress { bytes: 0, bytes_total: 5, layers: 0, layers_total: 1 }));
        assert_eq!(pulls.of("b"), None);
        drop(one);
        assert_eq!(pulls.of("a"), None);
    }

    #[test]
    fn the_end_of_one_pull_does_not_hide_another_of_the_same_image() {
        let pulls = PullsUnderWay::default();
        let (one, two) = (pulls.begin("a"), pulls.begin("a"));
        two.counters().arrived(1);
        drop(one);
        assert_eq!(pulls.of("a").map(|progress| progress.bytes), Some(1));
        drop(two);
        assert_eq!(pulls.of("a"), None);
    }
}
