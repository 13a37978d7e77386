//! How far pulls have come, for those who ask meanwhile.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use image_pull::BlobProgress;
use serde::{Deserialize, Serialize};

/// The least time over which a rate is measured: shorter ones jump about with the pieces that arrive.
const WINDOW: Duration = Duration::from_secs(1);

/// How far a pull has come; layers that were here before it do not count.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullProgress {
    /// Compressed bytes that have arrived.
    pub bytes: u64,
    /// All of them, or 0 before the manifest has been read.
    pub bytes_total: u64,
    /// Layers unpacked and committed.
    pub layers: u32,
    /// All of them, or 0 before the manifest has been read.
    pub layers_total: u32,
    /// Bytes a second, over the last second or since somebody asked last.
    pub rate: u64,
    /// How long ago the pull began.
    pub seconds: u64,
    /// Each of the layers, lowest first.
    pub each: Vec<LayerProgress>,
}

/// How far a layer of a pull has come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerProgress {
    /// Digest of its bytes as served.
    pub digest: String,
    /// Compressed bytes that have arrived.
    pub bytes: u64,
    /// All of them.
    pub bytes_total: u64,
    /// What is done with it.
    pub state: LayerState,
    /// The mirror or registry it comes from; empty while it comes from nowhere.
    pub place: String,
}

/// What is done with a layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum LayerState {
    /// Nothing yet.
    #[default]
    Waiting,
    /// Another pull fetches it, and this one waits for that.
    Shared,
    /// It is fetched and unpacked.
    Fetching,
    /// It is copied from a layer that is here.
    Copying,
    /// It is unpacked, and waits for those below.
    Unpacked,
    /// It has its place.
    Done,
}

impl LayerState {
    const ALL: [Self; 6] = [Self::Waiting, Self::Shared, Self::Fetching, Self::Copying, Self::Unpacked, Self::Done];

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Shared => "shared",
            Self::Fetching => "fetching",
            Self::Copying => "copying",
            Self::Unpacked => "unpacked",
            Self::Done => "done",
        }
    }
}

/// The counters of one layer or blob, written by whoever does the work.
#[derive(Debug, Default)]
pub(crate) struct LayerCounter {
    digest: String,
    size: u64,
    bytes: AtomicU64,
    state: AtomicU8,
    blob: Mutex<Option<BlobProgress>>,
}

impl LayerCounter {
    pub(crate) fn arrived(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Begins from nothing, from wherever the blob's bytes come.
    pub(crate) fn fetches(&self, blob: BlobProgress) {
        self.bytes.store(0, Ordering::Relaxed);
        *self.blob.lock().unwrap_or_else(PoisonError::into_inner) = Some(blob);
        self.set(LayerState::Fetching);
    }

    pub(crate) fn set(&self, state: LayerState) {
        if matches!(state, LayerState::Unpacked | LayerState::Done) {
            // However it came here: nothing of it is missing any more.
            self.bytes.store(self.size, Ordering::Relaxed);
        }
        self.state.store(state as u8, Ordering::Relaxed);
    }

    fn read(&self) -> LayerProgress {
        let blob = self.blob.lock().unwrap_or_else(PoisonError::into_inner);
        let state = LayerState::ALL.get(usize::from(self.state.load(Ordering::Relaxed))).copied().unwrap_or_default();
        LayerProgress {
            digest: self.digest.clone(),
            bytes: self.bytes.load(Ordering::Relaxed).min(self.size),
            bytes_total: self.size,
            state,
            place: blob.as_ref().map(BlobProgress::place).unwrap_or_default(),
        }
    }
}

/// The counters of one pull.
#[derive(Debug)]
pub(crate) struct PullCounters {
    begun: Instant,
    layers: Mutex<Arc<[LayerCounter]>>,
    window: Mutex<Window>,
    /// What a process that pulls on our behalf said last.
    told: Mutex<Option<PullProgress>>,
}

/// Two looks at the bytes, at least a second apart once there were two.
#[derive(Debug)]
struct Window {
    earlier: (Instant, u64),
    later: (Instant, u64),
}

impl Window {
    fn rate(&mut self, now: Instant, bytes: u64) -> u64 {
        if bytes < self.later.1 {
            // Another source was begun.
            (self.earlier, self.later) = ((now, bytes), (now, bytes));
        }
        if now.duration_since(self.later.0) >= WINDOW {
            self.earlier = self.later;
            self.later = (now, bytes);
        }
        let millis = now.duration_since(self.earlier.0).as_millis().max(1);
        let rate = u128::from(bytes - self.earlier.1) * 1000 / millis;
        u64::try_from(rate).unwrap_or(u64::MAX)
    }
}

impl Default for PullCounters {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            begun: now,
            layers: Mutex::new(Arc::new([])),
            window: Mutex::new(Window { earlier: (now, 0), later: (now, 0) }),
            told: Mutex::default(),
        }
    }
}

impl PullCounters {
    /// Begins to fetch these layers, each a digest and bytes; what an earlier source has brought is forgotten.
    pub(crate) fn begin(&self, layers: impl Iterator<Item = (String, u64)>) -> Arc<[LayerCounter]> {
        let counter = |(digest, size)| LayerCounter { digest, size, ..LayerCounter::default() };
        let layers: Arc<[LayerCounter]> = layers.map(counter).collect();
        *self.layers.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&layers);
        layers
    }

    /// Takes over what another process says of itself.
    pub(crate) fn tell(&self, progress: PullProgress) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = Some(progress);
    }

    pub(crate) fn read(&self) -> PullProgress {
        if let Some(told) = &*self.told.lock().unwrap_or_else(PoisonError::into_inner) {
            return told.clone();
        }
        let layers = Arc::clone(&*self.layers.lock().unwrap_or_else(PoisonError::into_inner));
        let each: Vec<LayerProgress> = layers.iter().map(LayerCounter::read).collect();
        let sum = |of: fn(&LayerProgress) -> u64| each.iter().fold(0_u64, |sum, layer| sum.saturating_add(of(layer)));
        let bytes = sum(|layer| layer.bytes);
        let done = each.iter().filter(|layer| layer.state == LayerState::Done).count();
        PullProgress {
            bytes,
            bytes_total: sum(|layer| layer.bytes_total),
            layers: u32::try_from(done).unwrap_or(u32::MAX),
            layers_total: u32::try_from(each.len()).unwrap_or(u32::MAX),
            rate: self.window.lock().unwrap_or_else(PoisonError::into_inner).rate(Instant::now(), bytes),
            seconds: self.begun.elapsed().as_secs(),
            each,
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

    /// All of them, in the order of names.
    pub(crate) fn all(&self) -> Vec<(String, PullProgress)> {
        let pulls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = pulls.iter().map(|(image, counters)| (image.clone(), counters.read())).collect();
        all.sort_by(|one, other| one.0.cmp(&other.0));
        all
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

    fn figures(progress: Option<PullProgress>) -> Option<(u64, u64, u32, u32)> {
        progress.map(|it| (it.bytes, it.bytes_total, it.layers, it.layers_total))
    }

    fn layers(sizes: &[u64]) -> impl Iterator<Item = (String, u64)> {
        sizes.iter().map(|size| (format!("sha256:{size}"), *size))
    }

    #[test]
    fn a_pull_is_told_of_from_its_beginning_to_its_end() {
        let pulls = PullsUnderWay::default();
        assert_eq!(pulls.of("a"), None);
        let one = pulls.begin("a");
        assert_eq!(figures(pulls.of("a")), Some((0, 0, 0, 0)));
        let each = one.counters().begin(layers(&[10, 20]));
        each[0].arrived(4);
        each[1].arrived(8);
        assert_eq!(figures(pulls.of("a")), Some((12, 30, 0, 2)));
        each[0].set(LayerState::Done);
        assert_eq!(figures(pulls.of("a")), Some((18, 30, 1, 2)), "what is done is all here");
        let told = pulls.all();
        assert_eq!((told.len(), told[0].1.each[0].state, told[0].1.each[1].bytes), (1, LayerState::Done, 8));
        // A second source starts from nothing.
        one.counters().begin(layers(&[5]));
        assert_eq!(figures(pulls.of("a")), Some((0, 5, 0, 1)));
        assert_eq!(pulls.of("b"), None);
        drop(one);
        assert_eq!(pulls.of("a"), None);
    }

    #[test]
    fn the_end_of_one_pull_does_not_hide_another_of_the_same_image() {
        let pulls = PullsUnderWay::default();
        let (one, two) = (pulls.begin("a"), pulls.begin("a"));
        two.counters().begin(layers(&[5]))[0].arrived(1);
        drop(one);
        assert_eq!(pulls.of("a").map(|progress| progress.bytes), Some(1));
        drop(two);
        assert_eq!(pulls.of("a"), None);
    }

    #[test]
    fn rates_are_those_of_the_last_second() {
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let mut window = Window { earlier: (begin, 0), later: (begin, 0) };
        for (millis, bytes, rate) in [
            (500, 500, 1000),
            (1000, 1000, 1000),
            (1500, 1000, 666),
            (2000, 1000, 0),
            (3000, 9000, 8000),
            (3100, 10, 0),
        ] {
            let found = window.rate(at(millis), bytes);
            // From the second look on, the time before the window no longer counts.
            assert_eq!(found, rate, "{millis} ms");
        }
    }

    #[test]
    fn states_are_what_they_were() {
        for state in LayerState::ALL {
            let counter = LayerCounter::default();
            counter.set(state);
            assert_eq!(counter.read().state, state);
        }
    }
}
