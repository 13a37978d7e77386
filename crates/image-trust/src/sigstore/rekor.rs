//! Entries of the transparency log Rekor: that this signature of this payload by this key was there, and when.
//!
//! The log signs an entry in the canonical form of JSON. An entry is read strictly first and then written in that form,
//! so that what was signed and what is understood are one. Source: cosign's "bundle" annotation, RFC 8785, Rekor's
//! hashedrekord 0.0.1.

use std::time::{Duration, SystemTime};

use ring::digest::{SHA256, digest};
use serde::Deserialize;

use super::der::parse_pem;
use super::key::PublicKey;
use crate::json::{JsonError, decode_base64, parse_object};
use crate::signature::SignatureError;

/// Beyond it the canonical form of numbers is no longer that of integers.
const INTEGER_MAX: i64 = 1 << 53;

/// What an entry must be about.
pub(crate) struct Entry<'a> {
    /// The key or certificate, its PEM block's contents.
    pub(crate) key: &'a [u8],
    pub(crate) signature: &'a [u8],
    pub(crate) payload: &'a [u8],
}

struct Bundle {
    timestamp: Vec<u8>,
    body: String,
    integrated: i64,
    log_id: String,
    log_index: i64,
}

/// When the log took the entry up, if one of its keys says so and the entry fits.
pub(crate) fn verify(
    log_keys: &[PublicKey],
    bundle: &[u8],
    expected: &Entry<'_>,
) -> Result<SystemTime, SignatureError> {
    let bundle = Bundle::parse(bundle).map_err(|error| invalid(format!("Rekor SET: {error}")))?;
    let canonical = bundle.canonical();
    if !log_keys.iter().any(|key| key.is_signed(canonical.as_bytes(), &bundle.timestamp)) {
        return Err(invalid("cryptographic signature verification of Rekor SET failed"));
    }
    let body = decode_base64(&bundle.body).ok_or_else(|| invalid("the body of the Rekor SET is not base64"))?;
    check_entry(&body, expected)?;
    let seconds = u64::try_from(bundle.integrated).map_err(|_| invalid("the Rekor SET is from before 1970"))?;
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

fn invalid(text: impl Into<String>) -> SignatureError {
    SignatureError::Invalid(text.into())
}

impl Bundle {
    fn parse(bytes: &[u8]) -> Result<Self, JsonError> {
        let mut outer = parse_object(bytes)?;
        let timestamp = outer.need("SignedEntryTimestamp")?.bytes("SignedEntryTimestamp")?;
        let mut payload = outer.need("Payload")?.object("Payload")?;
        outer.finish()?;
        let bundle = Self {
            timestamp,
            body: payload.need("body")?.text("body")?,
            integrated: payload.need("integratedTime")?.integer("integratedTime")?,
            log_id: payload.need("logID")?.text("logID")?,
            log_index: payload.need("logIndex")?.integer("logIndex")?,
        };
        payload.finish()?;
        if [bundle.integrated, bundle.log_index].iter().any(|number| number.abs() > INTEGER_MAX) {
            return Err(JsonError::Type { key: "Payload".to_owned(), expected: "of integers that JSON can hold" });
        }
        Ok(bundle)
    }

    /// Keys in order, nothing between them; texts are escaped as RFC 8785 wants it.
    fn canonical(&self) -> String {
        let text = |text: &str| serde_json::Value::from(text).to_string();
        format!(
            r#"{{"body":{},"integratedTime":{},"logID":{},"logIndex":{}}}"#,
            text(&self.body),
            self.integrated,
            text(&self.log_id),
            self.log_index
        )
    }
}

#[derive(Deserialize)]
struct HashedRekord {
    kind: String,
    #[serde(rename = "apiVersion")]
    version: String,
    spec: Spec,
}

#[derive(Deserialize)]
struct Spec {
    data: Data,
    signature: EntrySignature,
}

#[derive(Deserialize)]
struct Data {
    hash: EntryHash,
}

#[derive(Deserialize)]
struct EntryHash {
    algorithm: String,
    value: String,
}

#[derive(Deserialize)]
struct EntrySignature {
    content: String,
    #[serde(rename = "publicKey")]
    key: EntryKey,
}

#[derive(Deserialize)]
struct EntryKey {
    content: String,
}

/// The log has signed this body, so that it need not be read as strictly as what anybody can write.
fn check_entry(body: &[u8], expected: &Entry<'_>) -> Result<(), SignatureError> {
    let entry: HashedRekord =
        serde_json::from_slice(body).map_err(|error| invalid(format!("the body of the Rekor SET: {error}")))?;
    if (entry.kind.as_str(), entry.version.as_str()) != ("hashedrekord", "0.0.1") {
        return Err(invalid(format!("unsupported entry {:?} {:?} in the Rekor SET", entry.kind, entry.version)));
    }
    let key = decode_base64(&entry.spec.signature.key.content).and_then(|pem| only_block(&pem));
    if key.as_deref() != Some(expected.key) {
        return Err(invalid("publicKey in Rekor SET does not match"));
    }
    if decode_base64(&entry.spec.signature.content).as_deref() != Some(expected.signature) {
        return Err(invalid("signature in Rekor SET does not match"));
    }
    let EntryHash { algorithm, value } = entry.spec.data.hash;
    if algorithm != "sha256" {
        return Err(invalid(format!("unsupported hash {algorithm:?} in the Rekor SET")));
    }
    let hash: String = digest(&SHA256, expected.payload).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    if !value.eq_ignore_ascii_case(&hash) {
        return Err(invalid("payload in Rekor SET does not match"));
    }
    Ok(())
}

/// The contents of a PEM text of one block.
pub(crate) fn only_block(pem: &[u8]) -> Option<Vec<u8>> {
    let (blocks, has_more) = parse_pem(pem)?;
    let [block] = <[_; 1]>::try_from(blocks).ok()?;
    (!has_more).then_some(block.der)
}
