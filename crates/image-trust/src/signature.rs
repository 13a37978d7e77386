//! A signature as it travels and as it is kept with an image.
//!
//! Simple signing: the OpenPGP message itself. Sigstore: a zero byte, `sigstore-json`, a line feed, and JSON with media
//! type, payload and annotations. Source: containers/image, whose store both podman and CRI-O read.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::json::{JsonError, decode_base64};

/// Largest signature, of either kind. Source: containers/image.
pub const SIGNATURE_MAX_BYTES: usize = 4 << 20;
/// Most signatures of one manifest. Source: containers/image.
pub const SIGNATURES_MAX: usize = 128;
/// The media type of what cosign signs; other attachments are not signatures.
pub(crate) const SIGSTORE_MEDIA_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

const SIMPLE_FORMAT: &[u8] = b"simple-signing";
const SIGSTORE_FORMAT: &[u8] = b"sigstore-json";

/// Why a signature is not accepted, whatever the policy says about names.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SignatureError {
    /// It does not hold.
    #[error("{0}")]
    Invalid(String),
    /// What is signed is no claim about an image.
    #[error("signed contents")]
    Claim(#[from] JsonError),
}

/// Why bytes are no signature of a known kind.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ParseSignatureError {
    /// Nothing there.
    #[error("empty signature")]
    Empty,
    /// Too large.
    #[error("signature of {0} bytes is larger than {SIGNATURE_MAX_BYTES}")]
    TooLarge(usize),
    /// Not a format of ours.
    #[error("unrecognized signature format, starting with byte {0:#04x}")]
    Format(u8),
    /// The head of the newer format is damaged, or names a format nobody knows.
    #[error("unrecognized signature format {0:?}")]
    Head(String),
    /// Sigstore's JSON is damaged.
    #[error("sigstore signature: {0}")]
    Sigstore(String),
}

/// A signature nobody has checked yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signature {
    /// An OpenPGP message.
    Simple(Vec<u8>),
    /// A payload signed for sigstore, or another attachment.
    Sigstore {
        /// Its media type.
        media_type: String,
        /// What is signed.
        payload: Vec<u8>,
        /// The signature itself, certificates, entries of logs.
        annotations: BTreeMap<String, String>,
    },
}

#[derive(Serialize, Deserialize)]
struct SigstoreJson {
    #[serde(rename = "mimeType", default)]
    media_type: String,
    #[serde(default)]
    payload: Option<String>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

impl Signature {
    /// Reads what [`Signature::to_bytes`] writes, and what lies in a lookaside.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseSignatureError> {
        if bytes.len() > SIGNATURE_MAX_BYTES {
            return Err(ParseSignatureError::TooLarge(bytes.len()));
        }
        match bytes {
            [] => Err(ParseSignatureError::Empty),
            // The first byte of an OpenPGP packet: compressed data, one-pass signature or signature, old and new form.
            [0xa0..=0xa3 | 0xc8 | 0x90..=0x93 | 0xc4 | 0x88..=0x8b | 0xc2, ..] => Ok(Self::Simple(bytes.to_vec())),
            [0, rest @ ..] => Self::parse_named(rest),
            [other, ..] => Err(ParseSignatureError::Format(*other)),
        }
    }

    fn parse_named(bytes: &[u8]) -> Result<Self, ParseSignatureError> {
        /// Longer names of formats are not shown.
        const NAME_MAX_BYTES: usize = 64;
        let end = bytes.iter().take(NAME_MAX_BYTES).position(|byte| *byte == b'\n');
        let head = |bytes: &[u8]| ParseSignatureError::Head(String::from_utf8_lossy(bytes).into_owned());
        let end = end.ok_or_else(|| head(&bytes[..bytes.len().min(NAME_MAX_BYTES)]))?;
        let (name, rest) = (&bytes[..end], &bytes[end + 1..]);
        match name {
            SIMPLE_FORMAT => Ok(Self::Simple(rest.to_vec())),
            SIGSTORE_FORMAT => Self::parse_sigstore(rest),
            _ => Err(head(name)),
        }
    }

    fn parse_sigstore(bytes: &[u8]) -> Result<Self, ParseSignatureError> {
        let wrong = |text: String| ParseSignatureError::Sigstore(text);
        let json: SigstoreJson = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
        let payload = json.payload.unwrap_or_default();
        let payload = decode_base64(&payload).ok_or_else(|| wrong("payload is not base64".to_owned()))?;
        Ok(Self::Sigstore { media_type: json.media_type, payload, annotations: json.annotations.unwrap_or_default() })
    }

    /// As it is kept.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Simple(message) => message.clone(),
            Self::Sigstore { media_type, payload, annotations } => {
                let json = SigstoreJson {
                    media_type: media_type.clone(),
                    payload: Some(STANDARD.encode(payload)),
                    annotations: Some(annotations.clone()),
                };
                let mut bytes = vec![0];
                bytes.extend_from_slice(SIGSTORE_FORMAT);
                bytes.push(b'\n');
                let Ok(()) = serde_json::to_writer(&mut bytes, &json) else { unreachable!("texts become JSON") };
                bytes
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_again() {
        let sigstore = Signature::Sigstore {
            media_type: SIGSTORE_MEDIA_TYPE.to_owned(),
            payload: b"{\"a\": \"<&>\"}".to_vec(),
            annotations: [("k".to_owned(), "v\n\"".to_owned())].into(),
        };
        for signature in [Signature::Simple(vec![0xa3, 1, 2]), sigstore] {
            assert_eq!(Signature::parse(&signature.to_bytes()), Ok(signature));
        }
        let of_go = b"\0sigstore-json\n{\"mimeType\":\"m\",\"payload\":\"eA==\",\"annotations\":null,\"more\":1}";
        let expected =
            Signature::Sigstore { media_type: "m".to_owned(), payload: b"x".to_vec(), annotations: BTreeMap::new() };
        assert_eq!(Signature::parse(of_go), Ok(expected));
        assert_eq!(Signature::parse(b"\0simple-signing\nabc"), Ok(Signature::Simple(b"abc".to_vec())));
    }

    #[test]
    fn other_bytes_are_refused() {
        for bytes in
            [&b""[..], b"-----BEGIN", b"<html>", b"\0", b"\0other\n{}", b"\0sigstore-json", b"\0sigstore-json\n["]
        {
            assert!(Signature::parse(bytes).is_err(), "{bytes:?}");
        }
        let large = vec![0xa3; SIGNATURE_MAX_BYTES + 1];
        assert_eq!(Signature::parse(&large), Err(ParseSignatureError::TooLarge(large.len())));
    }
}
