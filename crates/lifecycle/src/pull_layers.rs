//! The layers of an image: fetched once whoever needs them, unpacked side by side, committed lowest first.
//!
//! Of several pulls that need the same layer on the same layers below, one fetches it and the others take it when it is
//! committed. The same content on other layers below is copied from the store: from a layer that was there, or from one
//! that another pull has just fetched.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use domain::digest::Digest;
use domain::encryption::is_encrypted;
use domain::id::LayerId;
use futures_util::stream;
use futures_util::{FutureExt, StreamExt};
use image_crypt::Decrypting;
use image_pull::{BlobError, BlobStream, LayerBlob, ResolvedImage};
use image_store::{
    CommitLayerError, ExpectedLayer, LayerPin, StageError, StageOptions, StagedChunked, StagedLayer, Store, layer_id,
};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::blocking;
use crate::claims::{Claimed, Claims};
use crate::encrypted::{Fetched, LayerKeys};
use crate::pull_image::PullImageError;
use crate::pull_parts::vouching_table;
use crate::pull_progress::{LayerCounter, LayerState, PullCounters};
use crate::puller::Puller;
use crate::undo::chain;

/// Layers of one pull that are fetched and unpacked at once. Source: CRI-O.
pub(crate) const LAYERS_AT_ONCE: usize = 6;
/// Layers that are ready wait this long for others to be committed with them, unless they are large: what a commit costs
/// is the same for one layer and for forty.
const COMMIT_DELAY_MAX: Duration = Duration::from_millis(500);
/// More than this waits for nothing: no more is lost with the power than a moment's work.
const COMMIT_BYTES: u64 = 32 << 20;
/// Chunks between the network and the unpacking thread of one layer: enough to keep both busy.
const CHUNKS_WAITING_MAX: usize = 16;
/// How long the same content under way elsewhere is waited for, before it is fetched after all. Somebody else's slow
/// registry must not hold up a pull for ever.
const ELSEWHERE_MAX: Duration = Duration::from_secs(300);

/// What is being fetched now, by all pulls.
#[derive(Debug, Default)]
pub(crate) struct LayersUnderWay {
    /// A content on the layers below it.
    layers: Claims<LayerId>,
    /// A content on whatever is below, by its diff id.
    contents: Claims<Digest>,
}

/// A layer that is no longer missing.
enum Arrived {
    /// In the store, with this diff id.
    Here(LayerPin, Digest),
    /// On disk, without a place yet.
    Staged(Box<OnDisk>),
}

/// A layer without a place. Others wait for it as long as the claims live.
struct OnDisk {
    staged: Staged,
    claims: Option<Claim>,
}

/// How a layer came.
enum Staged {
    Whole(StagedLayer, ExpectedLayer),
    /// Of parts, or of another layer with the same content; its diff id.
    Parts(StagedChunked, Digest),
}

/// The right to a layer, and to its content wherever else it is wanted.
type Claim = (Claimed<LayerId>, Option<Claimed<Digest>>);

/// An image whose layers are fetched.
struct Wanted<'a> {
    name: &'a str,
    image: &'a ResolvedImage,
    /// Of each layer, the identity it will have; unknown from the first on whose diff id is (schema 1).
    ids: Vec<Option<LayerId>>,
    /// Layers that were here, lowest first.
    present: usize,
    keys: &'a LayerKeys,
    counters: Arc<[LayerCounter]>,
}

impl Wanted<'_> {
    fn counter(&self, index: usize) -> &LayerCounter {
        &self.counters[index - self.present]
    }
}

/// Whether having a layer's content is all there is to it. What is encrypted is for those with a key only, who prove that
/// they have it by decrypting.
fn is_shared(layer: &LayerBlob) -> bool {
    !is_encrypted(&layer.media_type)
}

/// The identity each layer has, lowest first.
fn ids_of(image: &ResolvedImage) -> Vec<Option<LayerId>> {
    let mut ids: Vec<Option<LayerId>> = Vec::new();
    for layer in &image.layers {
        let id = match (ids.last(), &layer.diff_id) {
            (Some(Some(below)), Some(diff_id)) => Some(layer_id(Some(below), diff_id)),
            (None, Some(diff_id)) => Some(layer_id(None, diff_id)),
            _ => None,
        };
        ids.push(id);
    }
    ids
}

impl Puller {
    /// Fetches what is not here yet, several layers at once, and commits them in order, lowest first. Returns the
    /// topmost and what is now known of all.
    pub(crate) async fn fetch_layers(
        &self,
        name: &str,
        image: &ResolvedImage,
        keys: &LayerKeys,
        counters: &PullCounters,
    ) -> Result<(Option<LayerPin>, Fetched), PullImageError> {
        let ids = ids_of(image);
        let (top, mut fetched) = self.present_layers(name, image).await?;
        let present = fetched.diff_ids.len();
        let missing = image.layers.iter().skip(present);
        let counters = counters.begin(missing.map(|layer| (layer.digest.to_string(), layer.size)));
        let mut pins: Vec<LayerPin> = top.into_iter().collect();
        let wanted = Wanted { name, image, ids, present, keys, counters };
        match self.fetch_missing(&wanted, &mut pins, &mut fetched).await {
            Ok(()) => Ok((pins.pop(), fetched)),
            Err(error) => {
                // What came before a line broke is whole, and the next attempt finds it.
                if !matches!(error, PullImageError::Blob { .. }) {
                    self.drop_layers(pins).await;
                }
                Err(error)
            }
        }
    }

    /// Gives back the layers of a pull that failed, topmost first; those that others use stay.
    async fn drop_layers(&self, mut pins: Vec<LayerPin>) {
        let store = Arc::clone(&self.store);
        blocking::run("remove layers", move || {
            while let Some(pin) = pins.pop() {
                let id = pin.id().clone();
                drop(pin);
                if let Err(error) = store.remove_layer_if_unused(&id) {
                    tracing::warn!(layer = %id, error = %chain(&error), "a layer of a failed pull stays for now");
                }
            }
        })
        .await;
    }

    async fn fetch_missing(
        &self,
        wanted: &Wanted<'_>,
        pins: &mut Vec<LayerPin>,
        fetched: &mut Fetched,
    ) -> Result<(), PullImageError> {
        let missing = wanted.present..wanted.image.layers.len();
        let mut arriving =
            stream::iter(missing.map(|index| {
                async move { Ok::<_, PullImageError>((index, self.arrive(wanted, index).await?)) }.boxed()
            }))
            .buffer_unordered(LAYERS_AT_ONCE);
        let (mut waiting, mut next) = (BTreeMap::new(), wanted.present);
        let (mut ready, mut due, mut committing) = (Vec::new(), None, None);
        let mut is_all_there = false;
        let failure = loop {
            while committing.is_none()
                && let Some(arrived) = waiting.remove(&next)
            {
                match arrived {
                    Arrived::Staged(on_disk) => {
                        match &on_disk.staged {
                            Staged::Whole(staged, _) => {
                                fetched.note(next, &wanted.image.layers[next], staged.contents());
                            }
                            Staged::Parts(staged, diff_id) => fetched.add(diff_id.clone(), vouching(staged)),
                        }
                        ready.push((next, on_disk));
                    }
                    Arrived::Here(pin, diff_id) if ready.is_empty() => {
                        fetched.add(diff_id, None);
                        pins.push(pin);
                        wanted.counter(next).set(LayerState::Done);
                    }
                    later @ Arrived::Here(..) => {
                        waiting.insert(next, later);
                        due = Some(Instant::now());
                        break;
                    }
                }
                next += 1;
            }
            if !ready.is_empty() {
                let due = *due.get_or_insert_with(|| Instant::now() + COMMIT_DELAY_MAX);
                let bytes: u64 = ready.iter().map(|(_, on_disk)| on_disk.staged.size()).sum();
                if next == wanted.image.layers.len() || bytes >= COMMIT_BYTES || due <= Instant::now() {
                    let parent = pins.last().map(|pin| pin.id().clone());
                    committing = Some(Box::pin(self.commit(wanted, std::mem::take(&mut ready), parent)));
                }
            }
            if ready.is_empty() {
                due = None;
            }
            tokio::select! {
                arrived = arriving.next(), if !is_all_there => match arrived {
                    Some(Ok((index, arrived))) => drop(waiting.insert(index, arrived)),
                    Some(Err(error)) => break error,
                    None => is_all_there = true,
                },
                (done, failed) = async {
                    match &mut committing {
                        Some(commit) => commit.await,
                        None => std::future::pending().await,
                    }
                }, if committing.is_some() => {
                    committing = None;
                    pins.extend(done);
                    if let Some(error) = failed {
                        break error;
                    }
                },
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
                else => return Ok(()),
            }
        };
        // A commit under way is not torn, and what comes of it is known to whoever gives layers back.
        if let Some(commit) = committing {
            pins.extend(commit.await.0);
        }
        // Whole layers are not fetched again.
        if matches!(failure, PullImageError::Blob { .. }) && !ready.is_empty() {
            let parent = pins.last().map(|pin| pin.id().clone());
            pins.extend(self.commit(wanted, ready, parent).await.0);
        }
        Err(failure)
    }

    /// The lowest layers that are here already.
    async fn present_layers(
        &self,
        name: &str,
        image: &ResolvedImage,
    ) -> Result<(Option<LayerPin>, Fetched), PullImageError> {
        let store = Arc::clone(&self.store);
        let shared = image.layers.iter().take_while(|layer| is_shared(layer));
        let pull = self.config.storage.pull;
        let wanted: Vec<_> =
            shared.map(|layer| (layer.diff_id.clone(), layer.digest.clone(), vouching_table(pull, layer))).collect();
        blocking::run("find layers", move || {
            let (mut top, mut here): (Option<LayerPin>, _) = (None, Fetched::default());
            for (diff_id, blob, table) in wanted {
                let parent = top.as_ref().map(LayerPin::id);
                let mut vouching = None;
                let mut found = match &diff_id {
                    Some(diff_id) => store.find_layer(parent, diff_id)?.map(|pin| (pin, diff_id.clone())),
                    None => store.find_layer_of_blob(parent, &blob)?,
                };
                if let (None, Some(diff_id), Some(table)) = (&found, diff_id, table) {
                    found = store.find_toc_layer(parent, &table)?.map(|pin| (pin, diff_id));
                    vouching = Some(table);
                }
                let Some((pin, diff_id)) = found else { break };
                top = Some(pin);
                here.add(diff_id, vouching);
            }
            Ok((top, here))
        })
        .await
        .map_err(|source| PullImageError::Records { image: name.to_owned(), source })
    }

    /// One layer, from whoever has it first: another pull, the store, the network.
    ///
    /// Waiting for others cannot go round in circles: what others fetch was claimed before it was waited for here, and
    /// waits in turn only for what was claimed before that. After a claim that came to nothing nothing is waited for but
    /// the same layer, whose layers below are the same in both pulls.
    async fn arrive(&self, wanted: &Wanted<'_>, index: usize) -> Result<Arrived, PullImageError> {
        let layer = &wanted.image.layers[index];
        let counter = wanted.counter(index);
        let (Some(id), Some(diff_id)) = (&wanted.ids[index], &layer.diff_id) else {
            return self.fetch(wanted, index, None).await;
        };
        if !is_shared(layer) {
            return self.fetch(wanted, index, None).await;
        }
        let mut has_waited = false;
        let claim = loop {
            match self.under_way.layers.claim(id) {
                Ok(claim) => break claim,
                Err(elsewhere) => {
                    counter.set(LayerState::Shared);
                    has_waited = true;
                    elsewhere.ended().await;
                }
            }
        };
        if has_waited && let Some(pin) = self.find_layer(wanted, index, diff_id).await? {
            return Ok(Arrived::Here(pin, diff_id.clone()));
        }
        let content = match self.under_way.contents.claim(diff_id) {
            Ok(content) => Some(content),
            Err(elsewhere) if !has_waited => {
                counter.set(LayerState::Shared);
                let _ = tokio::time::timeout(ELSEWHERE_MAX, elsewhere.ended()).await;
                self.under_way.contents.claim(diff_id).ok()
            }
            Err(_) => None,
        };
        let staged = match self.copy(diff_id, counter).await {
            Some(staged) => Some(staged),
            None => self.stage_parts(wanted.image, layer, diff_id, counter).await,
        };
        let Some(staged) = staged else { return self.fetch(wanted, index, Some((claim, content))).await };
        counter.set(LayerState::Unpacked);
        let (staged, claims) = (Staged::Parts(staged, diff_id.clone()), Some((claim, content)));
        Ok(Arrived::Staged(Box::new(OnDisk { staged, claims })))
    }

    async fn find_layer(
        &self,
        wanted: &Wanted<'_>,
        index: usize,
        diff_id: &Digest,
    ) -> Result<Option<LayerPin>, PullImageError> {
        let (store, diff_id) = (Arc::clone(&self.store), diff_id.clone());
        let parent = index.checked_sub(1).and_then(|below| wanted.ids[below].clone());
        blocking::run("find layer", move || store.find_layer(parent.as_ref(), &diff_id))
            .await
            .map_err(|source| PullImageError::Records { image: wanted.name.to_owned(), source })
    }

    /// A layer with the same content on other layers below, made once more; `None` if there is none that is whole.
    async fn copy(&self, diff_id: &Digest, counter: &LayerCounter) -> Option<StagedChunked> {
        counter.set(LayerState::Copying);
        let (store, content) = (Arc::clone(&self.store), diff_id.clone());
        match blocking::run_apart("copy layer", move || store.stage_twin(&content)).await {
            Ok(twin) => twin.filter(|twin| twin.contents().diff.as_ref().is_some_and(|(actual, _)| actual == diff_id)),
            Err(error) => {
                tracing::info!(%diff_id, error = %chain(&error), "a layer of the store cannot be copied and is fetched");
                None
            }
        }
    }

    /// One layer from the network onto disk, without a name yet.
    async fn fetch(&self, wanted: &Wanted<'_>, index: usize, claims: Option<Claim>) -> Result<Arrived, PullImageError> {
        let layer = &wanted.image.layers[index];
        let (staged, kept) = self.stage(wanted, index).await?;
        // What is encrypted was compared with its digest by whoever decrypted it.
        let (key, digest) = (wanted.keys.get(&index), &layer.digest);
        let is_right =
            staged.as_ref().is_ok_and(|staged| key.is_some() || staged.contents().compressed_digest == *digest);
        if !is_right {
            self.registry.forget_partial(&layer.digest).await;
        }
        // What an earlier attempt had kept may be to blame: once more, all of it from the registry.
        let staged = if is_right || kept == 0 { staged } else { self.stage(wanted, index).await?.0 };
        let staged = staged.map_err(|source| PullImageError::Stage {
            image: wanted.name.to_owned(),
            layer: layer.digest.to_string(),
            source: Box::new(source),
        })?;
        wanted.counter(index).set(LayerState::Unpacked);
        let (compressed_digest, compressed_size) = match key {
            None => (layer.digest.clone(), Some(layer.size)),
            // What it became, only its diff id tells.
            Some(_) => (staged.contents().compressed_digest.clone(), None),
        };
        let expected = ExpectedLayer { diff_id: layer.diff_id.clone(), compressed_digest, compressed_size };
        Ok(Arrived::Staged(Box::new(OnDisk { staged: Staged::Whole(staged, expected), claims })))
    }

    /// Fetches and unpacks; also how many of the bytes an earlier attempt had kept.
    async fn stage(
        &self,
        wanted: &Wanted<'_>,
        index: usize,
    ) -> Result<(Result<StagedLayer, StageError>, u64), PullImageError> {
        let (layer, counter) = (&wanted.image.layers[index], wanted.counter(index));
        let blob_failed = |source| PullImageError::Blob {
            image: wanted.name.to_owned(),
            layer: layer.digest.to_string(),
            source: Box::new(source),
        };
        let blob = self.registry.open_blob(wanted.image, layer).await.map_err(blob_failed)?;
        let kept = blob.kept();
        counter.fetches(blob.progress());
        let store = Arc::clone(&self.store);
        let (key, encrypted) = (wanted.keys.get(&index).cloned(), layer.digest.clone());
        let unpack = move |chunks| match key {
            None => store.stage_layer(chunks, StageOptions::default()),
            Some(key) => store.stage_layer(Decrypting::new(chunks, &key, encrypted), StageOptions::default()),
        };
        let (staged, fetched) = pump("unpack layer", blob, counter, unpack).await;
        fetched.map_err(blob_failed)?;
        Ok((staged, kept))
    }

    /// Commits layers that follow one another: those that are in the store afterwards, and why the next one is not.
    async fn commit(
        &self,
        wanted: &Wanted<'_>,
        ready: Vec<(usize, Box<OnDisk>)>,
        parent: Option<LayerId>,
    ) -> (Vec<LayerPin>, Option<PullImageError>) {
        let (mut indices, mut claims, mut layers) = (Vec::new(), Vec::new(), Vec::new());
        for (index, on_disk) in ready {
            let OnDisk { staged, claims: claim } = *on_disk;
            indices.push(index);
            claims.push(claim);
            layers.push(staged);
        }
        let store = Arc::clone(&self.store);
        let (pins, failed) = blocking::run("commit layers", move || commit_all(&store, layers, parent)).await;
        drop(claims);
        for index in indices.iter().take(pins.len()) {
            self.registry.forget_partial(&wanted.image.layers[*index].digest).await;
            wanted.counter(*index).set(LayerState::Done);
        }
        let failed = failed.zip(indices.get(pins.len())).map(|(source, index)| PullImageError::Commit {
            image: wanted.name.to_owned(),
            layer: wanted.image.layers[*index].digest.to_string(),
            source: Box::new(source),
        });
        (pins, failed)
    }
}

/// Commits layers on top of each other, those that came whole together as far as they follow one another. Returns those
/// committed before the first failure.
fn commit_all(
    store: &Store,
    layers: Vec<Staged>,
    parent: Option<LayerId>,
) -> (Vec<LayerPin>, Option<CommitLayerError>) {
    let mut pins: Vec<LayerPin> = Vec::new();
    let mut layers = layers.into_iter().peekable();
    while let Some(layer) = layers.next() {
        let below = pins.last().map(|pin| pin.id().clone()).or_else(|| parent.clone());
        let (done, failed) = match layer {
            Staged::Parts(staged, diff_id) => match store.commit_chunked(staged, below.as_ref(), &diff_id) {
                Ok(pin) => (vec![pin], None),
                Err(error) => (Vec::new(), Some(error)),
            },
            Staged::Whole(staged, expected) => {
                let mut run = vec![(staged, expected)];
                while let Some(Staged::Whole(staged, expected)) =
                    layers.next_if(|layer| matches!(layer, Staged::Whole(..)))
                {
                    run.push((staged, expected));
                }
                store.commit_layers(run, below.as_ref())
            }
        };
        pins.extend(done);
        if failed.is_some() {
            return (pins, failed);
        }
    }
    (pins, None)
}

impl Staged {
    /// Bytes of its archive, where they are known.
    fn size(&self) -> u64 {
        match self {
            Self::Whole(staged, _) => staged.contents().diff_size,
            Self::Parts(staged, _) => staged.contents().diff.as_ref().map_or(0, |(_, size)| *size),
        }
    }
}

/// The table of a layer that nothing else vouches for.
fn vouching(staged: &StagedChunked) -> Option<Digest> {
    let contents = staged.contents();
    if contents.diff.is_some() { None } else { contents.toc_digest.clone() }
}

/// Reads a blob from the network into `work`, which may block; what each of the two ends had to say.
pub(crate) async fn pump<T: Send + 'static>(
    label: &'static str,
    mut blob: BlobStream,
    counter: &LayerCounter,
    work: impl FnOnce(Chunks) -> T + Send + 'static,
) -> (T, Result<(), BlobError>) {
    let (sender, receiver) = mpsc::channel::<Bytes>(CHUNKS_WAITING_MAX);
    let working = blocking::run_apart(label, move || work(Chunks { receiver, current: Bytes::new() }));
    let fetching = async move {
        while let Some(chunk) = blob.next_chunk().await {
            let chunk = chunk?;
            counter.arrived(chunk.len());
            // A receiver that has gone has its own, better reason.
            if sender.send(chunk).await.is_err() {
                break;
            }
        }
        Ok::<_, BlobError>(())
    };
    tokio::join!(working, fetching)
}

/// Chunks from the network as a reader for the thread that unpacks.
///
/// A sender that goes away looks like the end of the bytes; the digest then tells a whole layer from a torn one.
pub(crate) struct Chunks {
    receiver: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.current = chunk,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn chunks_read_as_one_stream() {
        let (sender, receiver) = mpsc::channel(4);
        for chunk in [&b"ab"[..], b"", b"cde"] {
            sender.send(Bytes::copy_from_slice(chunk)).await.expect("is received");
        }
        drop(sender);
        let text = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            Chunks { receiver, current: Bytes::new() }.read_to_string(&mut text).expect("reads");
            text
        });
        assert_eq!(text.await.expect("runs"), "abcde");
    }
}
