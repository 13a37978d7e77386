//! PullImage: from a reference to an image of the store.
//!
//! Steps, and what a restart finds in each gap: layers being unpacked lie in the store's staging area, which is emptied
//! when it is opened; committed layers are whole and are found again by the next pull; the image is recorded last.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use domain::digest::Digest;
use domain::id::{ImageId, LayerId};
use domain::image::ImageConfig;
use futures_util::StreamExt;
use futures_util::stream;
use image_pull::auth::{AuthError, AuthFiles, EnvironmentPaths, RequestAuth};
use image_pull::{
    BlobError, BlobStream, Credentials, ErrorKind, LayerBlob, Platform, Reference, ResolveError, Resolved,
    ResolvedImage, Source,
};
use image_store::{ExpectedLayer, LayerPin, NewImage, StageOptions, StagedLayer};
use thiserror::Error;
use tokio::sync::mpsc;

use crate::blocking;
use crate::node::Node;
use crate::pull_progress::{PullCounters, PullProgress};
use crate::undo::chain;

/// Layers fetched and unpacked at once. Inflating is the bottleneck and a pull must not take every core of a node.
pub(crate) const LAYERS_AT_ONCE: usize = 3;
/// Chunks between the network and the unpacking thread of one layer: enough to keep both busy.
const CHUNKS_WAITING_MAX: usize = 16;

/// Which pulls are the same: image, credentials. Kept as a digest, so that no secret lies in a table.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct PullKey {
    image: String,
    credentials: u64,
}

/// Why an image or artifact was not pulled. No image and no unfinished layer is left of the attempt.
#[derive(Debug, Error)]
pub enum PullImageError {
    /// No image was named.
    #[error("no image specified")]
    Unnamed,
    /// The text names no image.
    #[error("image reference {image:?}")]
    Reference {
        /// As asked.
        image: String,
        #[source]
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The credentials of the request are damaged.
    #[error("credentials of the request")]
    Credentials(#[source] AuthError),
    /// Manifest or configuration could not be had.
    #[error("pull image {image}")]
    Resolve {
        /// The source tried.
        image: String,
        #[source]
        /// What failed.
        source: Box<ResolveError>,
    },
    /// None of several candidates could be had.
    #[error("pull image {image}: {}", tried.iter().map(|error| chain(error)).collect::<Vec<_>>().join("; "))]
    Candidates {
        /// As asked.
        image: String,
        /// What each one said.
        tried: Vec<PullImageError>,
    },
    /// A layer's bytes stopped.
    #[error("fetch layer {layer} of image {image}")]
    Blob {
        /// The source.
        image: String,
        /// The layer's digest.
        layer: String,
        #[source]
        /// What failed.
        source: Box<BlobError>,
    },
    /// A layer could not be unpacked.
    #[error("unpack layer {layer} of image {image}")]
    Stage {
        /// The source.
        image: String,
        /// The layer's digest.
        layer: String,
        #[source]
        /// What failed.
        source: Box<image_store::StageError>,
    },
    /// A layer is not what manifest and configuration say, or could not be kept.
    #[error("commit layer {layer} of image {image}")]
    Commit {
        /// The source.
        image: String,
        /// The layer's digest.
        layer: String,
        #[source]
        /// What failed.
        source: Box<image_store::CommitLayerError>,
    },
    /// A blob of an artifact is not what its manifest says, or could not be kept.
    #[error("keep blob {blob} of artifact {image}")]
    StageBlob {
        /// The source.
        image: String,
        /// The blob's digest.
        blob: String,
        #[source]
        /// What failed.
        source: Box<image_store::StageBlobError>,
    },
    /// An artifact could not be recorded.
    #[error("record artifact {image}")]
    Artifact {
        /// The source.
        image: String,
        #[source]
        /// What failed.
        source: Box<image_store::ArtifactError>,
    },
    /// The store's records.
    #[error("look for layers of image {image}")]
    Records {
        /// The source.
        image: String,
        #[source]
        /// What failed.
        source: image_store::RecordsError,
    },
    /// The image could not be recorded.
    #[error("record image {image}")]
    Put {
        /// The source.
        image: String,
        #[source]
        /// What failed.
        source: Box<image_store::PutImageError>,
    },
}

impl PullImageError {
    /// The class of failure, where a registry was to blame.
    #[must_use]
    pub fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::Resolve { source, .. } => Some(source.kind()),
            Self::Blob { source, .. } => Some(source.kind()),
            Self::Candidates { tried, .. } => tried.last().and_then(Self::kind),
            _ => None,
        }
    }
}

impl Node {
    /// Pulls an image, or joins the pull of the same one with the same credentials.
    ///
    /// `image` is a name, or a local source: `oci:`, `oci-archive:`, `docker-archive:` and a path.
    pub async fn pull_image(
        self: &Arc<Self>,
        image: String,
        auth: Option<RequestAuth>,
    ) -> Result<ImageId, Arc<PullImageError>> {
        if image.is_empty() {
            return Err(Arc::new(PullImageError::Unnamed));
        }
        let key = PullKey { image: image.clone(), credentials: fingerprint(auth.as_ref()) };
        let node = Arc::clone(self);
        let pulled = self.pulls.join(key, || async move { node.pull(&image, auth.as_ref()).await }).await;
        // Buffers of a pull are as large as all else the daemon holds, and may not be needed again for days.
        blocking::run("give memory back", sys::memory::trim).await;
        pulled
    }

    /// How far the pull of `image`, as it was asked for, has come; `None` if there is none.
    #[must_use]
    pub fn pull_progress(&self, image: &str) -> Option<PullProgress> {
        self.pulls_under_way.of(image)
    }

    pub(crate) async fn pull(
        self: &Arc<Self>,
        image: &str,
        auth: Option<&RequestAuth>,
    ) -> Result<ImageId, PullImageError> {
        let sources = self.sources(image)?;
        let credentials = self.credentials(auth)?;
        let under_way = self.pulls_under_way.begin(image);
        let mut tried = Vec::new();
        for source in &sources {
            match self.pull_source(source, &credentials, under_way.counters()).await {
                Ok(id) => {
                    tracing::info!(image, image.id = %id, "image is pulled");
                    return Ok(id);
                }
                Err(error) => tried.push(error),
            }
        }
        match tried.len() {
            1 => Err(tried.remove(0)),
            _ => Err(PullImageError::Candidates { image: image.to_owned(), tried }),
        }
    }

    fn sources(&self, image: &str) -> Result<Vec<Source>, PullImageError> {
        let wrong = |source| PullImageError::Reference { image: image.to_owned(), source };
        let name = image.strip_prefix(&self.config.image.default_transport).unwrap_or(image);
        match Source::parse(name) {
            Ok(Source::Registry(_)) => {
                let candidates = self.registry.candidates(name).map_err(|error| wrong(Box::new(error)))?;
                Ok(candidates.into_iter().map(Source::Registry).collect())
            }
            Ok(local) => Ok(vec![local]),
            Err(error) => Err(wrong(Box::new(error))),
        }
    }

    pub(crate) fn credentials(&self, auth: Option<&RequestAuth>) -> Result<Credentials, PullImageError> {
        let login = auth.map(RequestAuth::parse).transpose().map_err(PullImageError::Credentials)?.flatten();
        let files = match &self.config.image.global_auth_file {
            Some(path) => AuthFiles::only(path),
            None => AuthFiles::standard(&EnvironmentPaths::from_environment()),
        };
        Ok(match login {
            Some(login) => Credentials::Request { login, elsewhere: files },
            None => Credentials::Files(files),
        })
    }

    async fn pull_source(
        self: &Arc<Self>,
        source: &Source,
        credentials: &Credentials,
        counters: &PullCounters,
    ) -> Result<ImageId, PullImageError> {
        let name = source.to_string();
        let resolved = self
            .registry
            .resolve_any(source, credentials, &Platform::host())
            .await
            .map_err(|source| PullImageError::Resolve { image: name.clone(), source: Box::new(source) })?;
        let resolved = match resolved {
            Resolved::Image(image) => image,
            Resolved::Artifact(artifact) => return self.pull_artifact(&name, artifact, counters).await,
        };
        let (top, diff_ids) = self.fetch_layers(&name, &resolved, counters).await?;
        let config = resolved.configuration.complete(&diff_ids).map_err(|source| {
            let source = ResolveError::Manifest { what: "manifest", digest: resolved.manifest_digest.clone(), source };
            PullImageError::Resolve { image: name.clone(), source: Box::new(source) }
        })?;
        let created = ImageConfig::parse(&config.bytes).ok().and_then(|config| config.created.parse().ok());
        let id = config.image_id();
        let new = NewImage {
            id: id.clone(),
            names: resolved.names.iter().map(Reference::to_string).collect(),
            top_layer: top.as_ref().map(|pin| pin.id().clone()),
            manifest: resolved.manifest_bytes.to_vec(),
            manifest_digest: resolved.manifest_digest,
            index: resolved.index.map(|index| (index.digest, index.bytes.to_vec())),
            config: config.bytes.to_vec(),
            config_digest: config.digest,
            signatures: Vec::new(),
            created,
        };
        let store = Arc::clone(&self.store);
        blocking::run("record image", move || {
            // Held until the image names its layers: until then nothing else keeps them.
            let _top = top;
            store.put_image(new)
        })
        .await
        .map_err(|source| PullImageError::Put { image: name, source: Box::new(source) })?;
        Ok(id)
    }

    /// Fetches what is not here yet, several layers at once, and commits them in order, lowest first. Returns the
    /// topmost and the diff ids of all.
    async fn fetch_layers(
        self: &Arc<Self>,
        name: &str,
        image: &ResolvedImage,
        counters: &PullCounters,
    ) -> Result<(Option<LayerPin>, Vec<Digest>), PullImageError> {
        let (top, mut diff_ids) = self.present_layers(name, image).await?;
        let mut pins: Vec<LayerPin> = top.into_iter().collect();
        counters.begin(image.layers.iter().skip(diff_ids.len()).map(|layer| layer.size));
        match self.fetch_missing(name, image, &mut diff_ids, &mut pins, counters).await {
            Ok(()) => Ok((pins.pop(), diff_ids)),
            Err(error) => {
                self.drop_layers(pins).await;
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
                    tracing::warn!(layer = %id, error = %chain(&error), "a layer of a failed pull stays until the next start");
                }
            }
        })
        .await;
    }

    async fn fetch_missing(
        self: &Arc<Self>,
        name: &str,
        image: &ResolvedImage,
        diff_ids: &mut Vec<Digest>,
        pins: &mut Vec<LayerPin>,
        counters: &PullCounters,
    ) -> Result<(), PullImageError> {
        let present = diff_ids.len();
        let missing: Vec<(usize, LayerBlob)> = image.layers.iter().cloned().enumerate().skip(present).collect();
        let mut staged = stream::iter(missing.into_iter().map(|(index, layer)| {
            let (node, name, image) = (Arc::clone(self), name.to_owned(), image.clone());
            async move {
                let staged = node.stage(&name, &image, &layer, counters).await?;
                Ok::<_, PullImageError>((index, layer, staged))
            }
        }))
        .buffer_unordered(LAYERS_AT_ONCE);
        let mut waiting = BTreeMap::new();
        let mut next = present;
        while let Some(result) = staged.next().await {
            let (index, layer, layer_staged) = result?;
            waiting.insert(index, (layer, layer_staged));
            while let Some((layer, layer_staged)) = waiting.remove(&next) {
                let parent = pins.last().map(|pin| pin.id().clone());
                diff_ids.push(layer_staged.contents().diff_id.clone());
                pins.push(self.commit(name, layer, layer_staged, parent).await?);
                counters.committed();
                next += 1;
            }
        }
        Ok(())
    }

    /// The lowest layers that are here already: the topmost of them, pinned, and the diff ids of all.
    async fn present_layers(
        &self,
        name: &str,
        image: &ResolvedImage,
    ) -> Result<(Option<LayerPin>, Vec<Digest>), PullImageError> {
        let store = Arc::clone(&self.store);
        let wanted: Vec<_> = image.layers.iter().map(|layer| (layer.diff_id.clone(), layer.digest.clone())).collect();
        blocking::run("find layers", move || {
            let mut top: Option<LayerPin> = None;
            let mut diff_ids = Vec::new();
            for (diff_id, blob) in wanted {
                let parent = top.as_ref().map(LayerPin::id);
                let found = match diff_id {
                    Some(diff_id) => store.find_layer(parent, &diff_id)?.map(|pin| (pin, diff_id)),
                    None => store.find_layer_of_blob(parent, &blob)?,
                };
                let Some((pin, diff_id)) = found else { break };
                top = Some(pin);
                diff_ids.push(diff_id);
            }
            Ok((top, diff_ids))
        })
        .await
        .map_err(|source| PullImageError::Records { image: name.to_owned(), source })
    }

    /// One layer from the network onto disk, without a name yet.
    async fn stage(
        &self,
        name: &str,
        image: &ResolvedImage,
        layer: &LayerBlob,
        counters: &PullCounters,
    ) -> Result<StagedLayer, PullImageError> {
        let digest = layer.digest.to_string();
        let blob_failed =
            |source| PullImageError::Blob { image: name.to_owned(), layer: digest.clone(), source: Box::new(source) };
        let blob = self.registry.open_blob(image, layer).await.map_err(blob_failed)?;
        let store = Arc::clone(&self.store);
        let unpack = move |chunks| store.stage_layer(chunks, StageOptions::default());
        let (staged, fetched) = pump("unpack layer", blob, counters, unpack).await;
        fetched.map_err(blob_failed)?;
        staged.map_err(|source| PullImageError::Stage {
            image: name.to_owned(),
            layer: digest.clone(),
            source: Box::new(source),
        })
    }

    async fn commit(
        &self,
        name: &str,
        layer: LayerBlob,
        staged: StagedLayer,
        parent: Option<LayerId>,
    ) -> Result<LayerPin, PullImageError> {
        let store = Arc::clone(&self.store);
        let digest = layer.digest.to_string();
        let expected = ExpectedLayer {
            diff_id: layer.diff_id,
            compressed_digest: layer.digest,
            compressed_size: Some(layer.size),
        };
        blocking::run("commit layer", move || store.commit_layer(staged, parent.as_ref(), &expected)).await.map_err(
            |source| PullImageError::Commit { image: name.to_owned(), layer: digest, source: Box::new(source) },
        )
    }
}

/// Reads a blob from the network into `work`, which may block; what each of the two ends had to say.
pub(crate) async fn pump<T: Send + 'static>(
    label: &'static str,
    mut blob: BlobStream,
    counters: &PullCounters,
    work: impl FnOnce(Chunks) -> T + Send + 'static,
) -> (T, Result<(), BlobError>) {
    let (sender, receiver) = mpsc::channel::<Bytes>(CHUNKS_WAITING_MAX);
    let working = blocking::run(label, move || work(Chunks { receiver, current: Bytes::new() }));
    let fetching = async move {
        while let Some(chunk) = blob.next_chunk().await {
            let chunk = chunk?;
            counters.arrived(chunk.len());
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

/// Tells credentials apart without keeping them: a keyed hash that lives as long as the process.
fn fingerprint(auth: Option<&RequestAuth>) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    use std::sync::OnceLock;
    static KEY: OnceLock<RandomState> = OnceLock::new();
    let parts =
        auth.map(|auth| (&auth.username, &auth.password, &auth.auth, &auth.identity_token, &auth.registry_token));
    KEY.get_or_init(RandomState::new).hash_one(parts)
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

    #[test]
    fn different_credentials_are_different_pulls() {
        let auth = |password: &str| RequestAuth {
            username: "user".to_owned(),
            password: password.to_owned(),
            ..RequestAuth::default()
        };
        assert_eq!(fingerprint(Some(&auth("a"))), fingerprint(Some(&auth("a"))));
        assert_ne!(fingerprint(Some(&auth("a"))), fingerprint(Some(&auth("b"))));
        assert_ne!(fingerprint(Some(&auth("a"))), fingerprint(None));
    }
}
