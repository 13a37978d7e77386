//! Everything between an image reference and verified streams of bytes: names, registries.conf, credentials, the
//! registry protocol, manifests, and archives and layouts on this machine that stand in for a registry.
//!
//! Promises: nothing that a registry or an archive says is used before its digest was checked; every answer is read
//! up to a named bound; credentials belong to one scheme and host and appear neither in logs nor in errors; a blob
//! stream never yields more bytes than were declared. Must not know: the image store, unpacking, gRPC, policy.
//! What is **not** here: the digest of a blob as it was served is checked by whoever consumes the stream, because
//! the consumer hashes anyway and hashing twice would cost a core ([`BlobStream::expected_digest`]).
//!
//! Begin reading at [`reference`], then [`Client::resolve`], then [`BlobStream`].
#![forbid(unsafe_code)]

pub mod auth;
mod blob;
mod blocking;
mod client;
mod error;
pub mod fuzz;
mod http;
mod image;
mod local;
pub mod manifest;
mod multipart;
mod partial;
mod places;
pub mod platform;
mod ranges;
pub mod reference;
pub mod registries;
mod schema1;
mod signatures;
mod source;

pub use auth::Credentials;
pub use blob::{BlobProgress, BlobStream, BlockingBlobReader};
pub use client::{Client, ClientOptions, LoopbackTrust, RetryPolicy, Timeouts};
pub use error::{BlobError, ErrorKind, RegistryAnswer, RequestError, ResolveError, TransferError};
pub use http::proxy::ProxyOptions;
pub use image::{
    ArtifactBlob, ConfigBlob, Configuration, IndexManifest, LayerBlob, Resolved, ResolvedArtifact, ResolvedImage,
};
pub use partial::PartialOptions;
pub use platform::Platform;
pub use reference::{NameOrId, ParseReferenceError, Reference};
pub use signatures::{Attachment, AttachmentError, SignatureAccess, SignatureLimits};
pub use source::{ParseSourceError, Source};
