//! Messages signed with OpenPGP, against the keys of a policy and no others.
//!
//! Does what gpg does with a keyring made for one check: a key needs a valid signature of its own on a user id; one that
//! is revoked, expired by now, or younger than the signature does not count; a subkey needs its binding, the flag to
//! sign, and its own signature back. Trust between keys is nobody's business: the policy names the keys.
//! Stricter than gpg 2.2: no message signed over SHA-1, no RSA below 2048 bits. Not verified, and refused by name: DSA,
//! curves other than P-256, P-384 and Ed25519, keys and signatures of versions other than 4.
//!
//! Source: RFC 9580, gnupg's doc/DETAILS.

mod armor;
mod certificate;
mod key;
mod message;
mod packet;
mod signature;

use std::time::SystemTime;

use thiserror::Error;

use crate::signature::SignatureError;
use certificate::Certificate;
use message::SignedMessage;

/// What is wrong with a message, a key or a signature.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum Fault {
    #[error("malformed: {0}")]
    Malformed(&'static str),
    #[error("{0} is not supported")]
    Unsupported(String),
    #[error("bad signature by key {key}")]
    Bad { key: String },
    #[error("key {key} {why}")]
    Key { key: String, why: &'static str },
    #[error("signature by key {id}, which is not a key of the policy")]
    NoKey { id: String },
    #[error("{0}")]
    Message(&'static str),
}

/// Public keys of a policy.
#[derive(Debug)]
pub(crate) struct Keyring(Vec<Certificate>);

impl Keyring {
    /// Reads keyrings, binary or as text. No key at all is an error.
    pub(crate) fn parse(blobs: &[Vec<u8>]) -> Result<Self, Fault> {
        let mut certificates: Vec<Certificate> = Vec::new();
        for blob in blobs {
            for certificate in certificate::parse(&armor::decode(blob)?)? {
                // What one copy of a key says, above all that it is revoked, holds for all of them.
                match certificates.iter_mut().find(|known| known.is_same_key(&certificate)) {
                    Some(known) => known.merge(certificate),
                    None => certificates.push(certificate),
                }
            }
        }
        match certificates.is_empty() {
            true => Err(Fault::Message("no public keys imported")),
            false => Ok(Self(certificates)),
        }
    }

    /// What is signed, if exactly one good signature by one of the keys signs it.
    pub(crate) fn verify(&self, message: &[u8], now: SystemTime) -> Result<Vec<u8>, SignatureError> {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.verify_at(message, now).map_err(|fault| SignatureError::Invalid(fault.to_string()))
    }

    fn verify_at(&self, message: &[u8], now: u64) -> Result<Vec<u8>, Fault> {
        let SignedMessage { contents, signature } = SignedMessage::parse(message)?;
        if signature.kind != signature::kind::BINARY {
            return Err(Fault::Unsupported(format!("signature of type {:#04x}", signature.kind)));
        }
        if signature.is_weak() {
            return Err(Fault::Unsupported("message signed over SHA-1".to_owned()));
        }
        if signature.is_expired(now) {
            return Err(Fault::Message("the signature has expired"));
        }
        let mut fault = None;
        for id in signature.issuers() {
            for (certificate, key) in self.0.iter().filter_map(|known| known.find(id)) {
                let verified = signature.verify(key, &[&contents]);
                match verified.and_then(|()| certificate.check_signer(key, signature.created, now)) {
                    Ok(()) => return Ok(contents),
                    Err(other) => fault = Some(other),
                }
            }
        }
        Err(fault.unwrap_or_else(|| {
            let id = signature.issuers().first().copied().unwrap_or_default();
            Fault::NoKey { id: id.iter().map(|byte| format!("{byte:02X}")).collect() }
        }))
    }
}

#[cfg(test)]
mod tests;
