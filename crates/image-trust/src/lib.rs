//! Whether an image may be used: policy.json, the signatures it asks for, and where those are found.
//!
//! Promises: a signature counts only if its bytes, the key, the manifest's digest and the name of the image all fit;
//! whatever is not understood is a refusal, never a pass; every input is bounded before it is parsed. Must not know:
//! registries' protocol, the image store, pods. Files (policies, keys, registries.d) are read where a check needs
//! them, so that a change counts from the next check on.
//!
//! Cryptography is that of `ring` and `rustls-webpki`, which the TLS stack links anyway; the formats around it (OpenPGP
//! messages and keys, sigstore's annotations, Rekor's entries) are read here.
//!
//! Begin reading at [`Policy::parse`], then [`check`].
#![forbid(unsafe_code)]

mod claim;
mod files;
pub mod fuzz;
mod json;
mod name;
mod openpgp;
mod policy;
mod registries_d;
mod signature;
mod sigstore;

pub use files::{FileError, PolicyPaths};
pub use json::JsonError;
pub use name::{Name, ParseNameError};
pub use policy::check::{CheckError, Subject, check};
pub use policy::scope::Place;
pub use policy::{ParsePolicyError, Policy, PolicyFault};
pub use registries_d::{LookasideUrl, RegistriesD, RegistriesDError, SignatureSources};
pub use signature::{ParseSignatureError, SIGNATURE_MAX_BYTES, SIGNATURES_MAX, Signature, SignatureError};
