//! Signature policy: before the layers of an image are fetched, and again before a container is made of it.
//!
//! Policies, keys and registries.d are read at every check, so that what an operator changes counts from the next one on.
//! Source: CRI-O, containers-policy.json(5).

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use config::Config;
use domain::container::ImageSpec;
use domain::digest::Digest;
use domain::id::ImageId;
use image_pull::{
    AttachmentError, ErrorKind, ParseReferenceError, Reference, RequestError, SignatureAccess, SignatureLimits, Source,
};
use image_store::{BigDataError, Image, Store};
use image_trust::{
    CheckError, FileError, LookasideUrl, Name, ParseNameError, ParseSignatureError, Place, Policy, PolicyPaths,
    RegistriesD, RegistriesDError, SIGNATURE_MAX_BYTES, SIGNATURES_MAX, Signature, SignatureSources, Subject,
};
use thiserror::Error;

use crate::blocking;
use crate::node::Node;

/// Bytes of all signatures of one image: a thousand times what a signature with its certificates takes.
const ALL_SIGNATURES_MAX_BYTES: usize = 8 << 20;

/// Why an image may not be used, or why that could not be told.
#[derive(Debug, Error)]
pub enum TrustError {
    /// The policy, or the lack of one.
    #[error("signature policy")]
    Policy(#[source] FileError),
    /// The image's name or path is none that policies know.
    #[error("look up the policy for {image}")]
    Place {
        /// The image.
        image: String,
        #[source]
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Where its signatures are.
    #[error("find signatures")]
    Sources(#[from] RegistriesDError),
    /// One of its signatures could not be read.
    #[error("read signature {place}")]
    Read {
        /// Where.
        place: String,
        #[source]
        /// What failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server of signatures.
    #[error("read signature")]
    Lookaside(#[source] RequestError),
    /// What the registry has attached.
    #[error("read signatures")]
    Attachments(#[source] AttachmentError),
    /// One of its signatures is of no known format.
    #[error("parsing signature {place}")]
    Parse {
        /// Where.
        place: String,
        #[source]
        /// What is wrong.
        source: ParseSignatureError,
    },
    /// More signatures than are sensible.
    #[error("more than {SIGNATURES_MAX} signatures or {ALL_SIGNATURES_MAX_BYTES} bytes of them")]
    TooMany,
    /// The policy says no.
    #[error("source image rejected")]
    Rejected(#[source] CheckError),
    /// Neither request nor image has a name that would say where the image is from.
    #[error("user specified image not specified, cannot verify image signature")]
    Unnamed,
    /// The name in the request is none.
    #[error("user specified image {name:?}")]
    Name {
        /// As given.
        name: String,
        #[source]
        /// What is wrong.
        source: ParseReferenceError,
    },
    /// The store's records.
    #[error("look for image {image}")]
    Find {
        /// Which.
        image: ImageId,
        #[source]
        /// What failed.
        source: Box<image_store::FindImageError>,
    },
    /// It was removed meanwhile, or its record has no digest.
    #[error("image {image} is not in the store any more")]
    Gone {
        /// Which.
        image: ImageId,
    },
    /// The stored image.
    #[error("read the signatures of image {image}")]
    Stored {
        /// Which.
        image: ImageId,
        #[source]
        /// What failed.
        source: BigDataError,
    },
}

impl TrustError {
    /// Whether the image was judged: what the CRI calls `SignatureValidationFailed`.
    #[must_use]
    pub fn is_verdict(&self) -> bool {
        matches!(self, Self::Rejected(source) if source.is_verdict())
    }

    /// The CRI's word for a verdict, with a colon behind it; else nothing.
    pub(crate) fn reason(&self) -> &'static str {
        if self.is_verdict() { "SignatureValidationFailed: " } else { "" }
    }

    /// The class of failure, where a server was to blame.
    #[must_use]
    pub fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::Lookaside(source) => Some(source.kind()),
            Self::Attachments(source) => Some(source.kind()),
            _ => None,
        }
    }
}

/// Where policies and the places of signatures are.
#[derive(Debug, Clone)]
pub(crate) struct Trust {
    paths: PolicyPaths,
    home: Option<PathBuf>,
}

impl Trust {
    pub(crate) fn new(config: &Config) -> Self {
        let home = std::env::home_dir().filter(|home| home.is_absolute());
        let image = &config.image;
        let paths =
            PolicyPaths::new(image.signature_policy.clone(), image.signature_policy_dir.clone(), home.as_deref());
        Self { paths, home }
    }

    /// The policy in force for images of a namespace, which may be empty. Read before anything is asked of a registry:
    /// without a policy nothing is pulled.
    pub(crate) async fn policy(&self, image: &str, namespace: &str) -> Result<Arc<Policy>, TrustError> {
        let (paths, image, namespace) = (self.paths.clone(), image.to_owned(), namespace.to_owned());
        let loaded = blocking::run("read policy", move || {
            let path = paths.find(&namespace)?;
            tracing::debug!("Using pull policy path for image {image}: {path:?}");
            Policy::load(&path)
        });
        loaded.await.map(Arc::new).map_err(TrustError::Policy)
    }

    /// Fetches the signatures of a manifest that was read from `source`, and asks the policy. Returns the signatures as
    /// they are to be kept with the image.
    pub(crate) async fn check_pulled(
        &self,
        policy: &Arc<Policy>,
        source: &Source,
        access: Option<SignatureAccess>,
        manifest: &Digest,
    ) -> Result<Vec<Vec<u8>>, TrustError> {
        let place = self.place(source).await?;
        let signatures = match access {
            Some(access) => self.fetch(&access, manifest).await?,
            None => Vec::new(),
        };
        let (policy, manifest) = (Arc::clone(policy), manifest.clone());
        blocking::run("check signatures", move || {
            check(&policy, &place, &manifest, &signatures)?;
            Ok(signatures.iter().map(Signature::to_bytes).collect())
        })
        .await
    }

    async fn place(&self, source: &Source) -> Result<Place, TrustError> {
        let image = source.to_string();
        let (transport, path) = match source {
            Source::Registry(reference) => return docker_place(reference),
            Source::DockerArchive { .. } => return Ok(Place::DockerArchive),
            Source::OciLayout { path, .. } => ("oci", path.clone()),
            Source::OciArchive { path, .. } => ("oci-archive", path.clone()),
        };
        let real = blocking::run("resolve path", move || path.canonicalize()).await;
        let real = real.map_err(|source| TrustError::Place { image, source: Box::new(source) })?;
        Ok(Place::Path { transport, path: real.to_string_lossy().into_owned() })
    }

    async fn fetch(&self, access: &SignatureAccess, manifest: &Digest) -> Result<Vec<Signature>, TrustError> {
        let Place::Docker(name) = docker_place(access.reference())? else { unreachable!("a reference is a name") };
        let home = self.home.clone();
        let sources = blocking::run("read registries.d", move || {
            Ok::<_, RegistriesDError>(RegistriesD::load(home.as_deref())?.sources(&name))
        });
        let sources = sources.await?;
        let mut found = Found::default();
        let limits = SignatureLimits { count: SIGNATURES_MAX, bytes: found.bytes_left() };
        match access.extension(manifest, limits).await.map_err(TrustError::Attachments)? {
            Some(messages) => {
                messages.into_iter().try_for_each(|message| found.add(message.len(), Signature::Simple(message)))?;
            }
            None => read_lookaside(access, &sources, manifest, &mut found).await?,
        }
        if sources.use_attachments {
            let limits = SignatureLimits { count: SIGNATURES_MAX, bytes: found.bytes_left() };
            let attachments = access.attachments(manifest, limits).await.map_err(TrustError::Attachments)?;
            for attachment in attachments {
                let payload = attachment.payload.to_vec();
                found.add(
                    payload.len(),
                    Signature::Sigstore {
                        media_type: attachment.media_type,
                        payload,
                        annotations: attachment.annotations,
                    },
                )?;
            }
        }
        Ok(found.signatures)
    }
}

/// Signatures as they are found, within bounds.
#[derive(Debug, Default)]
struct Found {
    signatures: Vec<Signature>,
    bytes: usize,
}

impl Found {
    fn bytes_left(&self) -> usize {
        ALL_SIGNATURES_MAX_BYTES - self.bytes
    }

    fn add(&mut self, bytes: usize, signature: Signature) -> Result<(), TrustError> {
        if self.signatures.len() >= SIGNATURES_MAX || bytes > self.bytes_left() {
            return Err(TrustError::TooMany);
        }
        self.bytes += bytes;
        self.signatures.push(signature);
        Ok(())
    }
}

/// Reads signatures one, two, three, until there is none.
async fn read_lookaside(
    access: &SignatureAccess,
    sources: &SignatureSources,
    manifest: &Digest,
    found: &mut Found,
) -> Result<(), TrustError> {
    for address in sources.lookaside(manifest)? {
        let (place, bytes) = match address {
            LookasideUrl::Web(url) => {
                let bytes = access.read_lookaside(&url, SIGNATURE_MAX_BYTES).await.map_err(TrustError::Lookaside)?;
                (url, bytes.map(|bytes| bytes.to_vec()))
            }
            LookasideUrl::File(path) => {
                let place = path.display().to_string();
                let bytes = blocking::run("read signature", move || read_file(&path)).await;
                let failed = |source| TrustError::Read { place: place.clone(), source: Box::new(source) };
                (place.clone(), bytes.map_err(failed)?)
            }
        };
        let Some(bytes) = bytes else { return Ok(()) };
        let signature = Signature::parse(&bytes).map_err(|source| TrustError::Parse { place, source })?;
        found.add(bytes.len(), signature)?;
    }
    Err(TrustError::TooMany)
}

/// A file of at most [`SIGNATURE_MAX_BYTES`] and one byte, which tells it from a larger one.
fn read_file(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match std::fs::File::open(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        file => file?,
    };
    let mut bytes = Vec::new();
    file.take(SIGNATURE_MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

fn docker_place(reference: &Reference) -> Result<Place, TrustError> {
    let image = reference.to_string();
    let name = Name::parse(&image);
    name.map(Place::Docker).map_err(|source: ParseNameError| TrustError::Place { image, source: Box::new(source) })
}

fn check(policy: &Policy, place: &Place, manifest_digest: &Digest, signatures: &[Signature]) -> Result<(), TrustError> {
    let subject = Subject { place, manifest_digest, signatures };
    image_trust::check(policy, &subject, SystemTime::now()).map_err(TrustError::Rejected)
}

impl Node {
    /// Whether a pod of a namespace may use a stored image. Asks only a policy that the configuration names, because any
    /// other is the one the image was pulled under. Source: CRI-O.
    pub(crate) async fn check_stored_image(
        &self,
        image: &ImageId,
        spec: &ImageSpec,
        namespace: &str,
    ) -> Result<(), TrustError> {
        let (paths, namespace) = (self.puller.trust.paths.clone(), namespace.to_owned());
        let (store, id, spec) = (Arc::clone(&self.store), image.clone(), spec.clone());
        blocking::run("check image", move || {
            let Some(path) = paths.find_configured(&namespace).map_err(TrustError::Policy)? else { return Ok(()) };
            let policy = Policy::load(&path).map_err(TrustError::Policy)?;
            if policy.asks_nothing() {
                // Also of an image that has no name, which no other policy can judge.
                return Ok(());
            }
            check_stored(&store, &policy, &id, &spec)
        })
        .await
    }
}

fn check_stored(store: &Store, policy: &Policy, id: &ImageId, spec: &ImageSpec) -> Result<(), TrustError> {
    let find = |source| TrustError::Find { image: id.clone(), source: Box::new(source) };
    let gone = || TrustError::Gone { image: id.clone() };
    let image = store.find_image(id.as_str()).map_err(find)?.ok_or_else(gone)?;
    let manifest = image.digest.clone().ok_or_else(gone)?;
    let kept = store.image_signatures(id).map_err(|source| TrustError::Stored { image: id.clone(), source })?;
    let parsed = kept.iter().enumerate().map(|(number, bytes)| {
        let place = || format!("{} of image {id}", number + 1);
        Signature::parse(bytes).map_err(|source| TrustError::Parse { place: place(), source })
    });
    let signatures = parsed.collect::<Result<Vec<_>, _>>()?;
    let mut refused = TrustError::Unnamed;
    for name in intended(&image, spec)? {
        match check(policy, &docker_place(&name)?, &manifest, &signatures) {
            Ok(()) => return Ok(()),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

/// What the pod's author called the image, which the kubelet says beside the id it made of it. Of an image that is asked
/// for by its id alone any of its own names will do: a policy that lets one of them pass lets these bytes pass.
fn intended(image: &Image, spec: &ImageSpec) -> Result<Vec<Reference>, TrustError> {
    let user_specified = &spec.user_specified_image;
    if user_specified.is_empty() {
        return Ok(image.names.iter().filter_map(|name| Reference::parse(name).ok()).collect());
    }
    let parsed = Reference::parse(user_specified);
    Ok(vec![parsed.map_err(|source| TrustError::Name { name: user_specified.clone(), source })?])
}
