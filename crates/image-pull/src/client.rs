//! The client: one per daemon; resolves sources and opens blobs.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use domain::digest::Digest;
use sha2::{Digest as _, Sha256};

use crate::auth::Credentials;
use crate::blob::BlobStream;
use crate::error::{BlobError, ResolveError};
use crate::http::Http;
use crate::http::proxy::ProxyOptions;
use crate::image::{
    ArtifactBlob, ConfigBlob, Configuration, IndexManifest, LayerBlob, Origin, Resolved, ResolvedArtifact,
    ResolvedImage,
};
use crate::manifest::{
    CONFIG_MAX_BYTES, Descriptor, INDEX_DEPTH_MAX, ImageManifest, MANIFEST_MAX_BYTES, Manifest, ManifestError,
    OCI_MANIFEST, parse_diff_ids, parse_manifest,
};
use crate::partial::{PartialOptions, Partials};
use crate::places::Places;
use crate::platform::Platform;
use crate::reference::{Reference, Selector};
use crate::registries::{CandidatesError, EndpointError, Registries, RegistriesError, RegistriesOptions};
use crate::source::Source;
use crate::{blocking, local, schema1};

/// Limits of time; none of them bounds a whole pull, because the size of an image does not bound it either.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Name resolution, connection, proxy and TLS together.
    pub connect: Duration,
    /// From a request to the head of its answer.
    pub answer: Duration,
    /// Between two pieces of a body; then the connection counts as broken and the body is resumed by another.
    pub stall: Duration,
    /// Between two pieces of a blob, over all connections to one place; then that place is given up. None waits as long
    /// as attempts last. A blob that comes slowly is waited for.
    pub progress: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        // Connect as Go's dialer does; a registry may need to wake up an object store; a TCP connection that lost its
        // peer is silent for ever.
        Self {
            connect: Duration::from_secs(30),
            answer: Duration::from_secs(60),
            stall: Duration::from_secs(60),
            progress: None,
        }
    }
}

/// How often and how long to try again.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// Attempts of one request; and, for a blob, connections in a row that brought less than a megabyte. At least 1.
    pub attempts: u32,
    /// The first pause; each further one doubles.
    pub first_delay: Duration,
    /// The longest pause of our own.
    pub longest_delay: Duration,
    /// The longest pause a registry may ask for (`Retry-After`); beyond it the request fails at once.
    pub longest_retry_after: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        // 0.25 + 0.5 + 1 + 2 s: rides out a restart of a registry, and fails before the kubelet's own back-off begins.
        Self {
            attempts: 5,
            first_delay: Duration::from_millis(250),
            longest_delay: Duration::from_secs(10),
            longest_retry_after: Duration::from_secs(60),
        }
    }
}

/// How registries on this machine (`localhost`, `127.0.0.0/8`, `::1`) are connected to without a registries.conf entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LoopbackTrust {
    /// Like all others: CRI-O does this.
    #[default]
    Verified,
    /// As if marked insecure: Docker does this.
    Insecure,
}

/// What a client is made of.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Files of registries.conf.
    pub registries: RegistriesOptions,
    /// certs.d directories; the first that has one for a host is used for it.
    pub certificate_directories: Vec<PathBuf>,
    /// The `User-Agent` header.
    pub user_agent: String,
    /// Limits of time.
    pub timeouts: Timeouts,
    /// Patience.
    pub retry: RetryPolicy,
    /// Proxies.
    pub proxy: ProxyOptions,
    /// Trust in this machine.
    pub loopback: LoopbackTrust,
    /// Where the beginnings of layers are kept that come slowly; none keeps nothing.
    pub partial: Option<PartialOptions>,
}

impl Default for ClientOptions {
    /// The files of this machine, no proxy: [`ProxyOptions::from_environment`] is for the daemon to call.
    fn default() -> Self {
        Self {
            registries: RegistriesOptions::default(),
            certificate_directories: vec!["/etc/containers/certs.d".into(), "/etc/docker/certs.d".into()],
            // The shape registries' statistics know; what stands for Go is what we are written in.
            user_agent: format!(
                "cri-o/{} rust os/{} arch/{}",
                env!("CARGO_PKG_VERSION"),
                std::env::consts::OS,
                Platform::host().architecture
            ),
            timeouts: Timeouts::default(),
            retry: RetryPolicy::default(),
            proxy: ProxyOptions::default(),
            loopback: LoopbackTrust::default(),
            partial: None,
        }
    }
}

/// Resolves sources and opens blobs. Cheap to clone; clones share connections, tokens and configuration.
#[derive(Debug, Clone)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    http: Arc<Http>,
    registries: RwLock<Arc<Registries>>,
    options: RegistriesOptions,
    loopback: LoopbackTrust,
    partials: Option<Partials>,
}

impl Client {
    /// Reads registries.conf (blocking) and makes a client. The second value is warnings for the operator, each naming
    /// the file and key, or the variable, that has no effect.
    pub fn new(options: &ClientOptions) -> Result<(Self, Vec<String>), RegistriesError> {
        let (registries, mut warnings) = Registries::load(&options.registries)?;
        let (http, proxy_warnings) = Http::new(options);
        warnings.extend(proxy_warnings);
        let inner = Inner {
            http: Arc::new(http),
            registries: RwLock::new(Arc::new(registries)),
            options: options.registries.clone(),
            loopback: options.loopback,
            partials: options.partial.clone().map(Partials::new),
        };
        Ok((Self(Arc::new(inner)), warnings))
    }

    /// Reads registries.conf again (blocking). On error the old one stays. Returns warnings.
    pub fn reload_registries(&self) -> Result<Vec<String>, RegistriesError> {
        let (registries, warnings) = Registries::load(&self.0.options)?;
        *self.0.registries.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(registries);
        Ok(warnings)
    }

    /// The registries.conf in force.
    #[must_use]
    pub fn registries(&self) -> Arc<Registries> {
        Arc::clone(&self.0.registries.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The references a name may mean, to be tried in order; see [`Registries::candidates`].
    pub fn candidates(&self, name: &str) -> Result<Vec<Reference>, CandidatesError> {
        self.registries().candidates(name)
    }

    /// [`Client::resolve_any`] where only an image will do: an artifact is an error.
    pub async fn resolve(
        &self,
        source: &Source,
        credentials: &Credentials,
        platform: &Platform,
    ) -> Result<ResolvedImage, ResolveError> {
        match self.resolve_any(source, credentials, platform).await? {
            Resolved::Image(image) => Ok(image),
            Resolved::Artifact(artifact) => {
                Err(ResolveError::Artifact { digest: artifact.manifest_digest, artifact_type: artifact.artifact_type })
            }
        }
    }

    /// Reads and verifies manifest and configuration of an image or artifact; mirrors before the registry itself.
    ///
    /// Every document is hashed and compared before it is parsed. Errors: see [`ResolveError::kind`]. Dropping the
    /// future ends the requests.
    pub async fn resolve_any(
        &self,
        source: &Source,
        credentials: &Credentials,
        platform: &Platform,
    ) -> Result<Resolved, ResolveError> {
        match source {
            Source::Registry(reference) => self.resolve_registry(reference, credentials, platform).await,
            Source::OciLayout { path, .. } | Source::OciArchive { path, .. } | Source::DockerArchive { path, .. } => {
                let wrong = |source| ResolveError::Local { path: path.clone(), source };
                let wanted = source.clone();
                let opened = blocking::run("open a local image", move || local::open(&wanted))
                    .await
                    .unwrap_or_else(|source| Err(local::not_read(source)))
                    .map_err(wrong)?;
                let origin = Origin::Local(Arc::new(opened.image));
                let first = origin.read(&opened.manifest, "manifest", MANIFEST_MAX_BYTES).await?;
                let served_as = Some(opened.manifest.media_type.clone()).filter(|text| !text.is_empty());
                let mut resolved = assemble(origin, served_as, first, platform).await?;
                resolved.set_names(opened.names);
                Ok(resolved)
            }
        }
    }

    /// Opens one layer of an image. The first answer of the registry is awaited, the bytes are not.
    ///
    /// Several streams may be open at once; each holds one connection and one buffer. The beginning of a layer that comes
    /// slowly is kept on disk, and read from there if the layer is opened again; once the layer is in its place, or has
    /// turned out to be another, [`Client::forget_partial`] is to be called.
    pub async fn open_blob(&self, image: &ResolvedImage, layer: &LayerBlob) -> Result<BlobStream, BlobError> {
        if !image.layers.iter().any(|known| known.digest == layer.digest && known.size == layer.size) {
            return Err(BlobError::ForeignLayer { digest: layer.digest.clone() });
        }
        open_blob_of(&image.origin, &layer.digest, layer.size, Part::Whole(self.0.partials.as_ref())).await
    }

    /// The bytes `range` of a layer's blob: exactly those, or an error as the last item.
    ///
    /// The same login, mirrors, retries and resuming as [`Client::open_blob`]. Nothing checks the bytes: whoever wants
    /// parts has checksums for them. Errors: `BadRange` for one that is empty or outside the blob; `NoRanges` if no
    /// place answers with parts, and the whole blob is to be read then.
    pub async fn open_range(
        &self,
        image: &ResolvedImage,
        layer: &LayerBlob,
        range: Range<u64>,
    ) -> Result<BlobStream, BlobError> {
        if !image.layers.iter().any(|known| known.digest == layer.digest && known.size == layer.size) {
            return Err(BlobError::ForeignLayer { digest: layer.digest.clone() });
        }
        if range.is_empty() || range.end > layer.size {
            let (first, end, size) = (range.start, range.end, layer.size);
            return Err(BlobError::BadRange { digest: layer.digest.clone(), first, end, size });
        }
        open_blob_of(&image.origin, &layer.digest, layer.size, Part::Range(range)).await
    }

    /// Drops what is kept of a layer's beginning.
    pub async fn forget_partial(&self, digest: &Digest) {
        if let Some(partials) = &self.0.partials {
            partials.forget(digest).await;
        }
    }

    /// Drops the beginnings of layers that nobody has added to for `age` (blocking). Errors are told in the log.
    pub fn sweep_partials(&self, age: Duration) {
        let swept = self.0.partials.as_ref().map_or(Ok(0), |partials| partials.sweep(age, SystemTime::now()));
        match swept {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "beginnings of layers that nobody asked for again are removed"),
            Err(error) => tracing::warn!(%error, "beginnings of layers cannot be looked through"),
        }
    }

    /// [`Client::open_blob`] for a blob of an artifact.
    pub async fn open_artifact_blob(
        &self,
        artifact: &ResolvedArtifact,
        blob: &ArtifactBlob,
    ) -> Result<BlobStream, BlobError> {
        if !artifact.blobs.contains(blob) {
            return Err(BlobError::ForeignLayer { digest: blob.digest.clone() });
        }
        open_blob_of(&artifact.origin, &blob.digest, blob.size, Part::Whole(None)).await
    }

    async fn resolve_registry(
        &self,
        reference: &Reference,
        credentials: &Credentials,
        platform: &Platform,
    ) -> Result<Resolved, ResolveError> {
        let registries = self.registries();
        let endpoints = registries.endpoints(reference).map_err(|error| match error {
            EndpointError::Blocked { prefix } => ResolveError::Blocked { reference: reference.clone(), prefix },
            EndpointError::Location { location, .. } => {
                ResolveError::Location { reference: reference.clone(), location }
            }
        })?;
        let places = Places::new(&self.0.http, self.0.loopback, reference, &registries, credentials, endpoints);
        let mut failed = Vec::new();
        for (index, asked) in places.references().enumerate() {
            match resolve_at(&places, index, reference, asked, platform).await {
                Ok(image) => return Ok(image),
                Err(error) => {
                    tracing::debug!(place = %asked, error = crate::error::chain(&error), "not to be had here");
                    failed.push((asked.repository(), error));
                }
            }
        }
        let Some((_, source)) = failed.pop() else { unreachable!("the registry itself is always an endpoint") };
        Err(match failed.is_empty() {
            true => source,
            false => ResolveError::WithMirrors { mirrors: failed, source: Box::new(source) },
        })
    }
}

async fn resolve_at(
    places: &Arc<Places>,
    index: usize,
    reference: &Reference,
    asked: &Reference,
    platform: &Platform,
) -> Result<Resolved, ResolveError> {
    let place = places.open(index).await?;
    let selector = match asked.selector() {
        Selector::Tag(tag) => tag.as_str(),
        Selector::Digest(digest) => digest.as_str(),
    };
    let wrong = |source| ResolveError::Registry { what: "manifest".to_owned(), reference: asked.clone(), source };
    let (media_type, bytes) = place.session().manifest(selector, MANIFEST_MAX_BYTES).await.map_err(wrong)?;
    let digest = digest_of_manifest(&bytes).map_err(|source| ResolveError::Manifest {
        what: "manifest",
        digest: digest_of(&bytes),
        source,
    })?;
    if let Some(expected) = reference.digest().filter(|expected| **expected != digest) {
        return Err(ResolveError::DigestMismatch { what: "manifest", expected: expected.clone(), actual: digest });
    }
    let first = Document { bytes, digest };
    let mut resolved = assemble(Origin::Registry(place), media_type, first, platform).await?;
    resolved.set_names(vec![reference.clone()]);
    Ok(resolved)
}

impl Resolved {
    fn set_names(&mut self, names: Vec<Reference>) {
        match self {
            Self::Image(image) => {
                image.reference = names.first().cloned();
                image.names = names;
            }
            Self::Artifact(artifact) => artifact.names = names,
        }
    }
}

/// What of a blob is wanted.
pub(crate) enum Part<'a> {
    /// All; with a place for what comes slowly.
    Whole(Option<&'a Partials>),
    Range(Range<u64>),
}

pub(crate) async fn open_blob_of(
    origin: &Origin,
    digest: &Digest,
    size: u64,
    part: Part<'_>,
) -> Result<BlobStream, BlobError> {
    match origin {
        Origin::Registry(place) => match part {
            Part::Whole(partials) => BlobStream::open_remote(place, digest, size, partials).await,
            Part::Range(range) => BlobStream::open_remote_range(place, digest, size, range).await,
        },
        Origin::Local(local) => {
            let wrong = |source| BlobError::Local { digest: digest.clone(), path: local.path().to_owned(), source };
            let (files, wanted) = (Arc::clone(local), digest.clone());
            let slice = blocking::run("open a blob", move || files.find_blob(&wanted))
                .await
                .unwrap_or_else(|source| Err(local::not_read(source)))
                .map_err(wrong)?;
            let range = match part {
                Part::Whole(_) => 0..size,
                Part::Range(range) => range,
            };
            BlobStream::open_local(local, slice, digest, size, range)
        }
    }
}

/// Bytes whose digest is known because it was computed from them.
pub(crate) struct Document {
    pub(crate) bytes: Bytes,
    pub(crate) digest: Digest,
}

pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(&Sha256::digest(bytes).into())
}

/// The digest a manifest is known by: that of its payload where it is signed.
fn digest_of_manifest(bytes: &[u8]) -> Result<Digest, ManifestError> {
    Ok(digest_of(&domain::schema1::payload(bytes)?))
}

impl Origin {
    /// Reads what a descriptor describes, and checks size and digest.
    async fn read(&self, descriptor: &Descriptor, what: &'static str, limit: usize) -> Result<Document, ResolveError> {
        let expected = descriptor.parse_digest(what).map_err(|source| ResolveError::Manifest {
            what,
            digest: digest_of(descriptor.digest.as_bytes()),
            source,
        })?;
        if descriptor.size > limit as u64 {
            let source = ManifestError::TooLarge { size: descriptor.size, limit };
            return Err(ResolveError::Manifest { what, digest: expected, source });
        }
        let bytes = match self {
            Self::Registry(place) => {
                let session = place.session();
                let read = match what {
                    "configuration" => session.small_blob(&expected, limit).await,
                    _ => session.manifest(expected.as_str(), limit).await.map(|(_, bytes)| bytes),
                };
                read.map_err(|source| ResolveError::Registry {
                    what: format!("{what} {expected}"),
                    reference: session.reference().at_digest(expected.clone()),
                    source,
                })?
            }
            Self::Local(image) => {
                let (files, digest) = (Arc::clone(image), expected.clone());
                blocking::run("read from a local image", move || files.read_whole(&digest, limit))
                    .await
                    .unwrap_or_else(|source| Err(local::not_read(source)))
                    .map_err(|source| ResolveError::Local { path: image.path().to_owned(), source })?
            }
        };
        if bytes.len() as u64 != descriptor.size {
            let actual = bytes.len() as u64;
            return Err(ResolveError::SizeMismatch { what, digest: expected, expected: descriptor.size, actual });
        }
        let actual = match what {
            "manifest" => digest_of_manifest(&bytes).map_err(|source| ResolveError::Manifest {
                what,
                digest: expected.clone(),
                source,
            })?,
            _ => digest_of(&bytes),
        };
        if actual != expected {
            return Err(ResolveError::DigestMismatch { what, expected, actual });
        }
        Ok(Document { bytes, digest: actual })
    }
}

/// From the first document to an image: follows indices, reads the configuration, checks what belongs together.
async fn assemble(
    origin: Origin,
    served_as: Option<String>,
    first: Document,
    platform: &Platform,
) -> Result<Resolved, ResolveError> {
    let mut index = None;
    let mut document = first;
    let mut served_as = served_as;
    for _ in 0..=INDEX_DEPTH_MAX {
        let wrong =
            |digest: &Digest, source| ResolveError::Manifest { what: "manifest", digest: digest.clone(), source };
        let parsed = parse_manifest(&document.bytes, served_as.as_deref()).map_err(|e| wrong(&document.digest, e))?;
        match parsed {
            Manifest::Image(manifest) => return finish(origin, index, document, &manifest).await,
            Manifest::Schema1(manifest) => return schema1::finish(origin, index, document, manifest).await,
            Manifest::Index(list) => {
                let chosen = list.choose(platform).ok_or_else(|| ResolveError::NoPlatform {
                    digest: document.digest.clone(),
                    os: platform.os.clone(),
                    architecture: platform.architecture.clone(),
                    variant: platform.variant.clone(),
                })?;
                let next = origin.read(chosen, "manifest", MANIFEST_MAX_BYTES).await?;
                served_as = Some(chosen.media_type.clone());
                let outer = std::mem::replace(&mut document, next);
                index.get_or_insert(IndexManifest {
                    bytes: outer.bytes,
                    digest: outer.digest,
                    media_type: list.media_type,
                });
            }
        }
    }
    Err(ResolveError::TooDeep { digest: document.digest, limit: INDEX_DEPTH_MAX })
}

async fn finish(
    origin: Origin,
    index: Option<IndexManifest>,
    document: Document,
    manifest: &ImageManifest,
) -> Result<Resolved, ResolveError> {
    let of_manifest = |source| ResolveError::Manifest { what: "manifest", digest: document.digest.clone(), source };
    if let Some(artifact_type) = manifest.find_artifact_type() {
        return finish_artifact(origin, document, manifest, artifact_type.to_owned()).await.map(Resolved::Artifact);
    }
    let digests = manifest.check_layers().map_err(of_manifest)?;
    let config = origin.read(&manifest.config, "configuration", CONFIG_MAX_BYTES).await?;
    let of_config = |source| ResolveError::Manifest { what: "configuration", digest: config.digest.clone(), source };
    let diff_ids = parse_diff_ids(&config.bytes).map_err(of_config)?;
    if diff_ids.len() != manifest.layers.len() {
        return Err(of_config(ManifestError::DiffIds { diff_ids: diff_ids.len(), layers: manifest.layers.len() }));
    }
    let layers = manifest.layers.iter().zip(digests).zip(diff_ids).map(|((layer, digest), diff_id)| LayerBlob {
        digest,
        size: layer.size,
        media_type: layer.media_type.clone(),
        diff_id: Some(diff_id),
        annotations: layer.annotations.clone(),
    });
    Ok(Resolved::Image(ResolvedImage {
        reference: None,
        names: Vec::new(),
        manifest_digest: document.digest,
        manifest_bytes: document.bytes,
        media_type: manifest.media_type.clone(),
        index,
        layers: layers.collect(),
        configuration: Configuration::Served(ConfigBlob { bytes: config.bytes, digest: config.digest }),
        origin,
    }))
}

/// Any media type is fine for a blob that is never unpacked; what belongs to no layout of the OCI is not.
async fn finish_artifact(
    origin: Origin,
    document: Document,
    manifest: &ImageManifest,
    artifact_type: String,
) -> Result<ResolvedArtifact, ResolveError> {
    let of_manifest = |source| ResolveError::Manifest { what: "manifest", digest: document.digest.clone(), source };
    if manifest.media_type != OCI_MANIFEST {
        return Err(ResolveError::Artifact { digest: document.digest, artifact_type });
    }
    let blob = |layer: &Descriptor| Ok(ArtifactBlob { digest: layer.parse_digest("blob")?, size: layer.size });
    let blobs = manifest.layers.iter().map(blob).collect::<Result<Vec<_>, _>>().map_err(of_manifest)?;
    let config = origin.read(&manifest.config, "configuration", CONFIG_MAX_BYTES).await?;
    Ok(ResolvedArtifact {
        names: Vec::new(),
        manifest_digest: document.digest,
        manifest_bytes: document.bytes,
        media_type: manifest.media_type.clone(),
        artifact_type,
        config_bytes: config.bytes,
        config_digest: config.digest,
        blobs,
        origin,
    })
}
