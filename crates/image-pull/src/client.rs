//! The client: one per daemon; resolves sources and opens blobs.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use domain::digest::Digest;
use domain::id::ImageId;
use sha2::{Digest as _, Sha256};

use crate::auth::{Credentials, Login};
use crate::blob::BlobStream;
use crate::error::{BlobError, ResolveError};
use crate::http::Http;
use crate::http::proxy::ProxyOptions;
use crate::http::session::Session;
use crate::image::{ArtifactBlob, IndexManifest, LayerBlob, Origin, Resolved, ResolvedArtifact, ResolvedImage};
use crate::manifest::{
    CONFIG_MAX_BYTES, Descriptor, INDEX_DEPTH_MAX, ImageManifest, MANIFEST_MAX_BYTES, Manifest, ManifestError,
    OCI_MANIFEST, parse_diff_ids, parse_manifest,
};
use crate::platform::Platform;
use crate::reference::{Reference, Selector};
use crate::registries::{
    CandidatesError, EndpointError, PullEndpoint, Registries, RegistriesError, RegistriesOptions, Transport,
};
use crate::source::Source;
use crate::{blocking, local};

/// Limits of time; none of them bounds a whole pull, because the size of an image does not bound it either.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Name resolution, connection, proxy and TLS together.
    pub connect: Duration,
    /// From a request to the head of its answer.
    pub answer: Duration,
    /// Between two pieces of a body.
    pub stall: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        // Connect as Go's dialer does; a registry may need to wake up an object store; a TCP connection that lost its
        // peer is silent for ever.
        Self { connect: Duration::from_secs(30), answer: Duration::from_secs(60), stall: Duration::from_secs(60) }
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
    /// Several streams may be open at once; each holds one connection and one buffer.
    pub async fn open_blob(&self, image: &ResolvedImage, layer: &LayerBlob) -> Result<BlobStream, BlobError> {
        if !image.layers.iter().any(|known| known.digest == layer.digest && known.size == layer.size) {
            return Err(BlobError::ForeignLayer { digest: layer.digest.clone() });
        }
        open_blob_of(&image.origin, &layer.digest, layer.size).await
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
        open_blob_of(&artifact.origin, &blob.digest, blob.size).await
    }

    async fn resolve_registry(
        &self,
        reference: &Reference,
        credentials: &Credentials,
        platform: &Platform,
    ) -> Result<Resolved, ResolveError> {
        let registries = self.registries();
        let mut endpoints = registries.endpoints(reference).map_err(|error| match error {
            EndpointError::Blocked { prefix } => ResolveError::Blocked { reference: reference.clone(), prefix },
            EndpointError::Location { location, .. } => {
                ResolveError::Location { reference: reference.clone(), location }
            }
        })?;
        let Some(last) = endpoints.pop() else { unreachable!("the registry itself is always an endpoint") };
        let mut failed = Vec::new();
        for endpoint in &endpoints {
            match self.resolve_at(endpoint, reference, &registries, credentials, platform).await {
                Ok(image) => return Ok(image),
                Err(error) => {
                    tracing::debug!(mirror = %endpoint.reference, error = crate::error::chain(&error), "mirror failed");
                    failed.push((endpoint.reference.repository(), error));
                }
            }
        }
        let resolved = self.resolve_at(&last, reference, &registries, credentials, platform).await;
        resolved.map_err(|error| match failed.is_empty() {
            true => error,
            false => ResolveError::WithMirrors { mirrors: failed, source: Box::new(error) },
        })
    }

    async fn resolve_at(
        &self,
        endpoint: &PullEndpoint,
        reference: &Reference,
        registries: &Registries,
        credentials: &Credentials,
        platform: &Platform,
    ) -> Result<Resolved, ResolveError> {
        let login = find_login(endpoint, reference, registries, credentials).await?;
        let is_trusted_loopback =
            self.0.loopback == LoopbackTrust::Insecure && is_loopback(endpoint.reference.domain());
        let transport = if is_trusted_loopback { Transport::Insecure } else { endpoint.transport };
        let wrong = |source| ResolveError::Registry {
            what: "manifest".to_owned(),
            reference: endpoint.reference.clone(),
            source,
        };
        let session = Session::open(&self.0.http, &endpoint.reference, transport, login).await.map_err(wrong)?;
        let selector = match endpoint.reference.selector() {
            Selector::Tag(tag) => tag.as_str(),
            Selector::Digest(digest) => digest.as_str(),
        };
        let (media_type, bytes) = session.manifest(selector, MANIFEST_MAX_BYTES).await.map_err(wrong)?;
        let digest = digest_of(&bytes);
        if let Some(expected) = reference.digest().filter(|expected| **expected != digest) {
            return Err(ResolveError::DigestMismatch { what: "manifest", expected: expected.clone(), actual: digest });
        }
        let first = Document { bytes, digest };
        let origin = Origin::Registry(Arc::new(session));
        let mut resolved = assemble(origin, media_type, first, platform).await?;
        resolved.set_names(vec![reference.clone()]);
        Ok(resolved)
    }
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

async fn open_blob_of(origin: &Origin, digest: &Digest, size: u64) -> Result<BlobStream, BlobError> {
    match origin {
        Origin::Registry(session) => BlobStream::open_remote(Arc::clone(session), digest, size).await,
        Origin::Local(local) => {
            let wrong = |source| BlobError::Local { digest: digest.clone(), path: local.path().to_owned(), source };
            let (files, wanted) = (Arc::clone(local), digest.clone());
            let slice = blocking::run("open a blob", move || files.find_blob(&wanted))
                .await
                .unwrap_or_else(|source| Err(local::not_read(source)))
                .map_err(wrong)?;
            BlobStream::open_local(local, slice, digest, size)
        }
    }
}

/// The login for one endpoint. What a request brings is for the registry it names, never for a mirror elsewhere.
async fn find_login(
    endpoint: &PullEndpoint,
    reference: &Reference,
    registries: &Registries,
    credentials: &Credentials,
) -> Result<Option<Login>, ResolveError> {
    let files = match credentials {
        Credentials::Anonymous => return Ok(None),
        Credentials::Request { login, .. } if endpoint.reference.domain() == reference.domain() => {
            return Ok(Some(login.clone()));
        }
        Credentials::Request { elsewhere, .. } => elsewhere,
        Credentials::Files(files) => files,
    };
    files
        .find(&endpoint.reference, &registries.credential_helpers)
        .await
        .map_err(|source| ResolveError::Credentials { reference: endpoint.reference.clone(), source })
}

fn is_loopback(domain: &str) -> bool {
    let host = match domain.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => domain.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Bytes whose digest is known because it was computed from them.
pub(crate) struct Document {
    pub(crate) bytes: Bytes,
    pub(crate) digest: Digest,
}

pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(&Sha256::digest(bytes).into())
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
            Self::Registry(session) => {
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
        let actual = digest_of(&bytes);
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
        diff_id,
        annotations: layer.annotations.clone(),
    });
    let Ok(image_id) = ImageId::parse(config.digest.hex()) else {
        unreachable!("the hexadecimal part of a digest is an id")
    };
    Ok(Resolved::Image(ResolvedImage {
        reference: None,
        names: Vec::new(),
        manifest_digest: document.digest,
        manifest_bytes: document.bytes,
        media_type: manifest.media_type.clone(),
        index,
        image_id,
        layers: layers.collect(),
        config_bytes: config.bytes,
        config_digest: config.digest,
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
