//! Evaluating a policy for one image.

use std::time::SystemTime;

use domain::digest::Digest;
use thiserror::Error;

use super::{KeyType, Policy, Requirement, SignedBy, SigstoreSigned, Sources};
use crate::claim::{Claim, Kind};
use crate::files::{FileError, read_bounded};
use crate::openpgp::Keyring;
use crate::policy::identity::SignedIdentity;
use crate::policy::scope::Place;
use crate::signature::{SIGSTORE_MEDIA_TYPE, Signature, SignatureError};
use crate::sigstore;

/// Largest file of keys or certificates: distributions' keyrings have some hundred kilobytes.
pub(crate) const KEYS_MAX_BYTES: usize = 8 << 20;

/// An image a policy is asked about.
#[derive(Debug, Clone)]
pub struct Subject<'a> {
    /// Where it comes from, and its name there.
    pub place: &'a Place,
    /// Digest of the manifest that describes it, verified; not of an index.
    pub manifest_digest: &'a Digest,
    /// Whatever signatures were found with it.
    pub signatures: &'a [Signature],
}

/// Why a policy does not let an image be used.
#[derive(Debug, Error)]
pub enum CheckError {
    /// The policy says so.
    #[error("running image {image} is rejected by policy")]
    Rejected {
        /// Its place.
        image: String,
    },
    /// The policy asks for what nothing can give.
    #[error("policy asks for {what}, which is not implemented")]
    NotImplemented {
        /// As the policy has it.
        what: String,
    },
    /// No signature of the wanted kind is there.
    #[error("a signature was required, but no signature exists{}", describe_others(*.others))]
    NoSignature {
        /// How many of other kinds there are.
        others: usize,
    },
    /// A signature does not hold.
    #[error("signature is not accepted")]
    Signature(#[source] SignatureError),
    /// A good signature, for another manifest.
    #[error("signature for digest {digest} does not match")]
    Digest {
        /// The manifest that was signed.
        digest: Digest,
    },
    /// A good signature, for another name.
    #[error("signature for identity {identity:?} is not accepted")]
    Identity {
        /// The name that was signed.
        identity: String,
    },
    /// Several signatures, of which none is accepted.
    #[error(
        "none of the signatures were accepted, reasons: {}",
        reasons.iter().map(describe_chain).collect::<Vec<_>>().join("; ")
    )]
    None {
        /// One for each.
        reasons: Vec<CheckError>,
    },
    /// A file of keys or certificates that the policy names.
    #[error(transparent)]
    File(#[from] FileError),
    /// What is in it.
    #[error("keys of the policy: {0}")]
    Keys(String),
}

impl CheckError {
    /// Whether the image was judged, rather than the policy found unusable: what the CRI calls
    /// `SignatureValidationFailed`.
    #[must_use]
    pub fn is_verdict(&self) -> bool {
        !matches!(self, Self::File(_) | Self::Keys(_))
    }
}

fn describe_others(count: usize) -> String {
    if count == 0 { String::new() } else { format!(" ({count} of other kinds)") }
}

fn describe_chain(error: &CheckError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Whether the policy lets the image be used: every requirement of the list for its place must be met. `now` is what
/// keys and certificates are valid or expired by. Reads the files that the policy names (blocking).
pub fn check(policy: &Policy, subject: &Subject<'_>, now: SystemTime) -> Result<(), CheckError> {
    policy.requirements(subject.place).iter().try_for_each(|requirement| match requirement {
        Requirement::InsecureAcceptAnything => Ok(()),
        Requirement::Reject => Err(CheckError::Rejected { image: subject.place.describe() }),
        Requirement::SignedBaseLayer => Err(CheckError::NotImplemented { what: "signedBaseLayer".to_owned() }),
        Requirement::SignedBy(wanted) => check_signed_by(wanted, subject, now),
        Requirement::SigstoreSigned(wanted) => check_sigstore(wanted, subject, now),
    })
}

fn check_signed_by(wanted: &SignedBy, subject: &Subject<'_>, now: SystemTime) -> Result<(), CheckError> {
    if let KeyType::Other(kind) = &wanted.key_type {
        return Err(CheckError::NotImplemented { what: format!("keyType {kind}") });
    }
    let simple = |signature: &Signature| match signature {
        Signature::Simple(message) => Some(message.clone()),
        Signature::Sigstore { .. } => None,
    };
    let messages: Vec<Vec<u8>> = subject.signatures.iter().filter_map(simple).collect();
    if messages.is_empty() {
        return Err(CheckError::NoSignature { others: subject.signatures.len() });
    }
    let keyring = Keyring::parse(&wanted.keys.load()?).map_err(|error| CheckError::Keys(error.to_string()))?;
    one_accepted(messages.iter().map(|message| {
        let contents = keyring.verify(message, now).map_err(CheckError::Signature)?;
        check_claim(&contents, Kind::Simple, subject, &wanted.identity)
    }))
}

fn check_sigstore(wanted: &SigstoreSigned, subject: &Subject<'_>, now: SystemTime) -> Result<(), CheckError> {
    let of_kind = |signature: &&Signature| matches!(signature, Signature::Sigstore { media_type, .. } if media_type == SIGSTORE_MEDIA_TYPE);
    let signatures: Vec<&Signature> = subject.signatures.iter().filter(of_kind).collect();
    if signatures.is_empty() {
        return Err(CheckError::NoSignature { others: subject.signatures.len() });
    }
    let roots = sigstore::Roots::load(wanted)?;
    one_accepted(signatures.iter().map(|signature| {
        let Signature::Sigstore { payload, annotations, .. } = signature else {
            unreachable!("others were left out above")
        };
        roots.verify(payload, annotations, now).map_err(CheckError::Signature)?;
        check_claim(payload, Kind::Sigstore, subject, &wanted.identity)
    }))
}

/// One signature is enough, however bad others are.
fn one_accepted(results: impl Iterator<Item = Result<(), CheckError>>) -> Result<(), CheckError> {
    let mut reasons = Vec::new();
    for result in results {
        match result {
            Ok(()) => return Ok(()),
            Err(reason) => reasons.push(reason),
        }
    }
    match reasons.len() {
        1 => Err(reasons.remove(0)),
        _ => Err(CheckError::None { reasons }),
    }
}

fn check_claim(
    contents: &[u8],
    kind: Kind,
    subject: &Subject<'_>,
    identity: &SignedIdentity,
) -> Result<(), CheckError> {
    let claim = Claim::parse(contents, kind).map_err(CheckError::Signature)?;
    if claim.manifest_digest != *subject.manifest_digest {
        return Err(CheckError::Digest { digest: claim.manifest_digest });
    }
    let intended = match subject.place {
        Place::Docker(name) => Some(name),
        Place::Path { .. } | Place::DockerArchive => None,
    };
    match identity.is_met(intended, &claim.reference) {
        true => Ok(()),
        false => Err(CheckError::Identity { identity: claim.reference }),
    }
}

impl Sources {
    /// Every file or piece, in order.
    pub(crate) fn load(&self) -> Result<Vec<Vec<u8>>, FileError> {
        match self {
            Self::Files(paths) => paths.iter().map(|path| read_bounded(path, KEYS_MAX_BYTES)).collect(),
            Self::Inline(pieces) => Ok(pieces.clone()),
        }
    }
}
