//! What can go wrong with a request, a resolution and a blob, and how a caller tells the classes apart.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use domain::digest::Digest;
use thiserror::Error;

use crate::auth::AuthError;
use crate::manifest::ManifestError;
use crate::reference::Reference;

/// The classes of failure a caller maps to status codes, CRI texts and metric labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum ErrorKind {
    /// The registry, layout or archive has no such manifest or blob.
    NotFound,
    /// The registry wants (other) credentials: 401.
    Unauthorized,
    /// The registry refuses these credentials: 403.
    Denied,
    /// The registry asked for fewer requests, longer than we wait: 429.
    RateLimited,
    /// Nothing listens there, or the network cannot get there.
    ConnectionRefused,
    /// No answer in time, while connecting or afterwards.
    TimedOut,
    /// Name resolution, TLS, a broken connection, an answer of class 5xx.
    RegistryUnavailable,
    /// Content and digest, or content and declared size, disagree.
    DigestMismatch,
    /// Larger, deeper or longer than the bounds of this crate.
    TooLarge,
    /// Understood but not done: formats, media types, transports.
    Unsupported,
    /// Bytes that are not what they claim to be.
    Malformed,
    /// registries.conf forbids the registry.
    Blocked,
    /// The manifest is no runnable image.
    Artifact,
    /// The index has no entry for this machine.
    NoPlatform,
    /// Credentials or their files cannot be used.
    Credentials,
    /// Files of this machine cannot be read.
    Local,
}

impl ErrorKind {
    /// Whether CRI's `RegistryUnavailable` text applies.
    #[must_use]
    pub fn is_registry_unavailable(self) -> bool {
        matches!(self, Self::ConnectionRefused | Self::TimedOut | Self::RegistryUnavailable)
    }

    /// The value of the `error` label of CRI-O's `image_pulls_failure_total`.
    #[must_use]
    pub fn metric_label(self) -> &'static str {
        match self {
            Self::NotFound => "NOT_FOUND",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Denied => "DENIED",
            Self::RateLimited => "TOOMANYREQUESTS",
            Self::ConnectionRefused => "CONNECTION_REFUSED",
            Self::TimedOut => "CONNECTION_TIMEOUT",
            Self::RegistryUnavailable
            | Self::DigestMismatch
            | Self::TooLarge
            | Self::Unsupported
            | Self::Malformed
            | Self::Blocked
            | Self::Artifact
            | Self::NoPlatform
            | Self::Credentials
            | Self::Local => "UNKNOWN",
        }
    }
}

/// What a registry said instead of answering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryAnswer {
    /// The HTTP status.
    pub status: u16,
    /// The first code of the error body, such as `MANIFEST_UNKNOWN`; empty without one. Only `A-Z0-9_`.
    pub code: String,
    /// The first message of the error body, shortened, without control characters.
    pub message: String,
}

impl std::fmt::Display for RegistryAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "status {}", self.status)?;
        if !self.code.is_empty() {
            write!(f, " {}", self.code)?;
        }
        if self.message.is_empty() { Ok(()) } else { write!(f, ": {}", self.message) }
    }
}

/// Why bytes did not travel.
#[derive(Debug, Error)]
pub enum TransferError {
    /// Name resolution failed.
    #[error("look up host {host}")]
    LookUp {
        /// The host.
        host: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// No connection to any address of the host.
    #[error("connect to {authority}")]
    Connect {
        /// Host and port.
        authority: String,
        /// The cause at the last address.
        #[source]
        source: io::Error,
    },
    /// No connection in time.
    #[error("connect to {authority}: no connection within {limit:?}")]
    ConnectTimeout {
        /// Host and port.
        authority: String,
        /// The limit.
        limit: Duration,
    },
    /// The TLS handshake failed, or the certificate is not trusted.
    #[error("secure the connection to {authority}")]
    Tls {
        /// Host and port.
        authority: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The certificates of certs.d cannot be used.
    #[error("load certificates for {authority}: {reason}")]
    Certificates {
        /// Host and port.
        authority: String,
        /// File and trouble.
        reason: String,
    },
    /// The proxy refused to connect us.
    #[error("connect to {authority} through proxy {proxy}: {reason}")]
    Proxy {
        /// Host and port.
        authority: String,
        /// The proxy's host and port.
        proxy: String,
        /// What it said.
        reason: String,
    },
    /// The exchange broke after the connection stood.
    #[error("exchange with {authority}")]
    Exchange {
        /// Host and port.
        authority: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time.
    #[error("no answer from {authority} within {limit:?}")]
    AnswerTimeout {
        /// Host and port.
        authority: String,
        /// The limit.
        limit: Duration,
    },
    /// The body stopped flowing.
    #[error("no bytes from {authority} for {limit:?}")]
    Stalled {
        /// Host and port.
        authority: String,
        /// The limit.
        limit: Duration,
    },
}

impl TransferError {
    /// The class of this failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Connect { source, .. } => match source.kind() {
                io::ErrorKind::ConnectionRefused
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable => ErrorKind::ConnectionRefused,
                io::ErrorKind::TimedOut => ErrorKind::TimedOut,
                _ => ErrorKind::RegistryUnavailable,
            },
            Self::ConnectTimeout { .. } | Self::AnswerTimeout { .. } | Self::Stalled { .. } => ErrorKind::TimedOut,
            Self::LookUp { .. } | Self::Tls { .. } | Self::Proxy { .. } | Self::Exchange { .. } => {
                ErrorKind::RegistryUnavailable
            }
            Self::Certificates { .. } => ErrorKind::Local,
        }
    }
}

/// Why one request to a registry, retries and authentication included, has no usable answer.
#[derive(Debug, Error)]
pub enum RequestError {
    /// The bytes did not travel.
    #[error("request {url}")]
    Transfer {
        /// Without query: signed addresses are secrets.
        url: String,
        /// The cause.
        #[source]
        source: TransferError,
    },
    /// The registry answered with an error.
    #[error("request {url}: {answer}")]
    Answer {
        /// Without query.
        url: String,
        /// What it said.
        answer: RegistryAnswer,
    },
    /// The token service gave no token. Scripts look for CRI-O's words about a wrong password.
    #[error("get a token for {registry}{}", if source.kind() == ErrorKind::Unauthorized { ": invalid username/password: unauthorized" } else { "" })]
    Token {
        /// Host and port.
        registry: String,
        /// The cause.
        #[source]
        source: Box<RequestError>,
    },
    /// The registry wants a kind of authentication that is not known, or its token service may not be asked.
    #[error("authenticate to {registry}: {reason}")]
    Challenge {
        /// Host and port.
        registry: String,
        /// What is wrong.
        reason: String,
    },
    /// A redirect that is not followed: from https to http, without or with an unusable target, or one too many.
    #[error("redirect of {url} refused: {reason}")]
    Redirect {
        /// Without query.
        url: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The answer's body is larger than we read.
    #[error("answer of {url} is larger than {limit} bytes")]
    TooLarge {
        /// Without query.
        url: String,
        /// The limit.
        limit: usize,
    },
    /// The answer does not follow the protocol.
    #[error("answer of {url} is malformed: {reason}")]
    Malformed {
        /// Without query.
        url: String,
        /// What is wrong.
        reason: String,
    },
}

impl RequestError {
    /// The class of this failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Transfer { source, .. } => source.kind(),
            Self::Answer { answer, .. } => match answer.status {
                401 => ErrorKind::Unauthorized,
                403 => ErrorKind::Denied,
                // Docker Hub answers 401 DENIED or 404 NAME_UNKNOWN for private repositories; the status decides.
                404 | 410 => ErrorKind::NotFound,
                429 => ErrorKind::RateLimited,
                408 | 504 => ErrorKind::TimedOut,
                500..=599 => ErrorKind::RegistryUnavailable,
                _ => ErrorKind::Malformed,
            },
            Self::Token { source, .. } => match source.kind() {
                // A token service answers a wrong password with 400, 401 or 403, as it likes.
                ErrorKind::Malformed | ErrorKind::NotFound => ErrorKind::Unauthorized,
                kind => kind,
            },
            Self::Challenge { .. } => ErrorKind::Unauthorized,
            Self::Redirect { .. } | Self::Malformed { .. } => ErrorKind::Malformed,
            Self::TooLarge { .. } => ErrorKind::TooLarge,
        }
    }
}

/// Why a source could not be resolved to an image.
#[derive(Debug, Error)]
pub enum ResolveError {
    /// registries.conf blocks the registry.
    #[error("registry {prefix} is blocked in registries.conf: {reference}")]
    Blocked {
        /// The reference asked for.
        reference: Reference,
        /// The prefix of the entry that blocks it.
        prefix: String,
    },
    /// A rewritten location is no reference, for example because it grew too long.
    #[error("location {location:?} of registries.conf does not fit {reference}")]
    Location {
        /// The reference asked for.
        reference: Reference,
        /// The location or mirror that was to replace its prefix.
        location: String,
    },
    /// Credential files or helpers cannot be used.
    #[error("find credentials for {reference}")]
    Credentials {
        /// The reference credentials were looked for.
        reference: Reference,
        /// The cause.
        #[source]
        source: AuthError,
    },
    /// A manifest or config could not be had from the registry.
    #[error("read {what} of {reference}")]
    Registry {
        /// Manifest or config, with its digest if known.
        what: String,
        /// The reference as asked of this endpoint.
        reference: Reference,
        /// The cause.
        #[source]
        source: RequestError,
    },
    /// Mirrors failed, and so did the registry itself, whose failure counts.
    #[error("mirrors also failed: {}", mirrors.iter().map(|(location, error)| format!("[{location}: {}]", chain(error))).collect::<Vec<_>>().join(", "))]
    WithMirrors {
        /// What happened at each mirror, in the order they were tried.
        mirrors: Vec<(String, ResolveError)>,
        /// What happened at the registry.
        #[source]
        source: Box<ResolveError>,
    },
    /// Bytes do not hash to the digest they were asked by.
    #[error("{what}: expected {expected}, got {actual}")]
    DigestMismatch {
        /// Manifest or config.
        what: &'static str,
        /// What was asked for.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// Bytes are more or fewer than the descriptor says.
    #[error("{what} {digest}: expected {expected} bytes, got {actual}")]
    SizeMismatch {
        /// Manifest or config.
        what: &'static str,
        /// The digest of the descriptor.
        digest: Digest,
        /// Bytes declared.
        expected: u64,
        /// Bytes that came.
        actual: u64,
    },
    /// A manifest, index or config cannot be used.
    #[error("{what} {digest}")]
    Manifest {
        /// Manifest, index or config.
        what: &'static str,
        /// Its digest.
        digest: Digest,
        /// The cause.
        #[source]
        source: ManifestError,
    },
    /// An index contains an index, deeper than we follow.
    #[error("index {digest} is nested deeper than {limit} levels")]
    TooDeep {
        /// The index that is one too many.
        digest: Digest,
        /// The limit.
        limit: usize,
    },
    /// The image is for other machines.
    #[error("no image found in image index for architecture {architecture}, variant {variant:?}, OS {os}: {digest}")]
    NoPlatform {
        /// The index.
        digest: Digest,
        /// As wanted.
        os: String,
        /// As wanted.
        architecture: String,
        /// As wanted; empty if none.
        variant: String,
    },
    /// The manifest is an artifact, not a runnable image.
    #[error("manifest {digest} is an artifact of type {artifact_type:?}, not an image")]
    Artifact {
        /// The manifest.
        digest: Digest,
        /// `artifactType`, or the media type of the config.
        artifact_type: String,
    },
    /// A layout or archive cannot be read.
    #[error("read {}", path.display())]
    Local {
        /// The layout or archive.
        path: PathBuf,
        /// The cause.
        #[source]
        source: LocalError,
    },
}

/// Why a layout or archive on this machine cannot be used.
#[derive(Debug, Error)]
pub enum LocalError {
    /// The operating system refused.
    #[error("{action} {file}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The file within the layout or archive, or the archive itself.
        file: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file that must be there is not.
    #[error("{file} is missing")]
    Missing {
        /// The file within the layout or archive.
        file: String,
    },
    /// No image of that name, or several and no name given.
    #[error("no image named {wanted:?}, there are: {}", present.join(", "))]
    NoSuchImage {
        /// The name asked for; empty if none.
        wanted: String,
        /// Names there are, at most a few.
        present: Vec<String>,
    },
    /// Several images, and no name to choose by.
    #[error("more than one image, name one of: {}", present.join(", "))]
    Ambiguous {
        /// Names there are, at most a few.
        present: Vec<String>,
    },
    /// The archive is compressed as a whole.
    #[error("archive is compressed with {format}, decompress it first")]
    Compressed {
        /// The compression.
        format: &'static str,
    },
    /// The bytes are not what they should be.
    #[error("{file}: {reason}")]
    Malformed {
        /// The file within the layout or archive.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// Larger than we read.
    #[error("{file} exceeds the limit of {limit}")]
    TooLarge {
        /// The file, or the thing that is too many.
        file: String,
        /// Bytes or entries.
        limit: u64,
    },
}

impl LocalError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => ErrorKind::NotFound,
            Self::Io { .. } => ErrorKind::Local,
            Self::Missing { .. } | Self::NoSuchImage { .. } => ErrorKind::NotFound,
            Self::Ambiguous { .. } | Self::Malformed { .. } => ErrorKind::Malformed,
            Self::Compressed { .. } => ErrorKind::Unsupported,
            Self::TooLarge { .. } => ErrorKind::TooLarge,
        }
    }
}

impl ResolveError {
    /// The class of this failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Blocked { .. } => ErrorKind::Blocked,
            Self::Location { .. } => ErrorKind::Malformed,
            Self::Credentials { .. } => ErrorKind::Credentials,
            Self::Registry { source, .. } => source.kind(),
            Self::WithMirrors { source, .. } => source.kind(),
            Self::DigestMismatch { .. } | Self::SizeMismatch { .. } => ErrorKind::DigestMismatch,
            Self::Manifest { source, .. } => source.kind(),
            Self::TooDeep { .. } => ErrorKind::TooLarge,
            Self::NoPlatform { .. } => ErrorKind::NoPlatform,
            Self::Artifact { .. } => ErrorKind::Artifact,
            Self::Local { source, .. } => source.kind(),
        }
    }
}

/// Why a blob ended before its last byte.
#[derive(Debug, Error)]
pub enum BlobError {
    /// The registry refused the blob.
    #[error("read blob {digest}")]
    Request {
        /// The blob.
        digest: Digest,
        /// The cause.
        #[source]
        source: RequestError,
    },
    /// The registry or file announces another size than the manifest.
    #[error("blob {digest}: manifest declares {declared} bytes, source has {announced}")]
    SizeMismatch {
        /// The blob.
        digest: Digest,
        /// Bytes by the manifest.
        declared: u64,
        /// Bytes by the source.
        announced: u64,
    },
    /// More bytes came than the manifest declares. Never yields the excess.
    #[error("blob {digest} exceeds its declared size of {declared} bytes")]
    Excess {
        /// The blob.
        digest: Digest,
        /// Bytes by the manifest.
        declared: u64,
    },
    /// Connections broke or stalled more often than we resume.
    #[error("blob {digest}: gave up after {attempts} connections at byte {received} of {declared}")]
    GaveUp {
        /// The blob.
        digest: Digest,
        /// Bytes yielded.
        received: u64,
        /// Bytes by the manifest.
        declared: u64,
        /// Connections tried.
        attempts: u32,
        /// What ended the last one, if it did not end early in silence.
        #[source]
        source: Option<Box<TransferError>>,
    },
    /// No bytes came for as long as the operator waits. What comes slowly is waited for. The last words are CRI-O's.
    #[error("blob {digest}: no progress within {limit:?} at byte {received} of {declared}: context canceled")]
    NoProgress {
        /// The blob.
        digest: Digest,
        /// Bytes yielded.
        received: u64,
        /// Bytes by the manifest.
        declared: u64,
        /// `pull_progress_timeout`.
        limit: Duration,
    },
    /// A place that might have the blob cannot be asked.
    #[error("ask for blob {digest}")]
    Place {
        /// The blob.
        digest: Digest,
        /// The cause.
        #[source]
        source: Box<ResolveError>,
    },
    /// Mirrors failed, and so did the registry itself, whose failure counts.
    #[error("mirrors also failed: {}", mirrors.iter().map(|(location, error)| format!("[{location}: {}]", chain(error))).collect::<Vec<_>>().join(", "))]
    WithMirrors {
        /// What happened at each mirror, in the order they were tried.
        mirrors: Vec<(String, BlobError)>,
        /// What happened at the registry.
        #[source]
        source: Box<BlobError>,
    },
    /// What was kept of the blob cannot be read. It is better forgotten.
    #[error("read the beginning of blob {digest}")]
    Kept {
        /// The blob.
        digest: Digest,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A part was asked for, and the whole was offered.
    #[error("blob {digest}: the registry does not serve parts")]
    NoRanges {
        /// The blob.
        digest: Digest,
    },
    /// The bytes asked for are none, or not all within the blob.
    #[error("blob {digest} of {size} bytes has no bytes from {first} up to {end}")]
    BadRange {
        /// The blob.
        digest: Digest,
        /// The first byte asked for.
        first: u64,
        /// The first one after those.
        end: u64,
        /// Bytes by the manifest.
        size: u64,
    },
    /// The registry answered a range with another range.
    #[error("blob {digest}: asked for bytes from {wanted}, got {got:?}")]
    Range {
        /// The blob.
        digest: Digest,
        /// First byte asked for.
        wanted: u64,
        /// `Content-Range` as answered.
        got: String,
    },
    /// A file of this machine cannot be read, or shrank.
    #[error("read blob {digest} from {}", path.display())]
    Local {
        /// The blob.
        digest: Digest,
        /// Layout or archive.
        path: PathBuf,
        /// The cause.
        #[source]
        source: LocalError,
    },
    /// The image does not have this layer.
    #[error("blob {digest} is no layer of this image")]
    ForeignLayer {
        /// The blob asked for.
        digest: Digest,
    },
}

impl BlobError {
    /// The class of this failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Request { source, .. } => source.kind(),
            Self::SizeMismatch { .. } | Self::Excess { .. } => ErrorKind::DigestMismatch,
            Self::GaveUp { source, .. } => {
                source.as_ref().map_or(ErrorKind::RegistryUnavailable, |source| source.kind())
            }
            Self::NoProgress { .. } => ErrorKind::TimedOut,
            Self::Place { source, .. } => source.kind(),
            Self::WithMirrors { source, .. } => source.kind(),
            Self::Kept { .. } => ErrorKind::Local,
            Self::NoRanges { .. } => ErrorKind::Unsupported,
            Self::Range { .. } | Self::BadRange { .. } | Self::ForeignLayer { .. } => ErrorKind::Malformed,
            Self::Local { source, .. } => source.kind(),
        }
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
