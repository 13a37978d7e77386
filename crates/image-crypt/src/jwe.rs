//! Reading JSON Web Encryption in its JSON form, as ocicrypt writes it. Source: RFC 7516, RFC 7518.

use aes::{Aes128, Aes192, Aes256};
use aes_gcm::aead::consts::U12;
use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{AesGcm, Nonce};
use aes_kw::AesKw;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rsa::Oaep;
use rsa::traits::PublicKeyParts;
use serde::Deserialize;
use serde_json::{Map, Value};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::keys::PrivateKey;

/// Most recipients tried: each costs an operation for each key of the node.
const RECIPIENTS_MAX: usize = 32;
/// Longest content: what ocicrypt encrypts is some 200 bytes.
const CONTENT_MAX_BYTES: usize = 64 << 10;

/// Why a message was not opened.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum JweError {
    /// Not of the form, or too large.
    #[error("malformed JWE: {0}")]
    Malformed(&'static str),
    /// An algorithm that is not read.
    #[error("JWE with {what} {name:?} is not supported")]
    Unsupported { what: &'static str, name: String },
    /// Every recipient is somebody else.
    #[error("no suitable private key found")]
    NoKey,
}

#[derive(Deserialize)]
struct Message {
    protected: String,
    #[serde(default)]
    unprotected: Map<String, Value>,
    #[serde(default)]
    recipients: Vec<Recipient>,
    #[serde(default)]
    header: Map<String, Value>,
    #[serde(default)]
    encrypted_key: Option<String>,
    iv: String,
    ciphertext: String,
    tag: String,
    #[serde(default)]
    aad: Option<String>,
}

#[derive(Deserialize)]
struct Recipient {
    #[serde(default)]
    header: Map<String, Value>,
    #[serde(default)]
    encrypted_key: String,
}

fn decode(text: &str) -> Result<Vec<u8>, JweError> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| JweError::Malformed("not base64url"))
}

/// The content of a message, by whichever key fits whichever recipient.
pub(crate) fn decrypt(message: &[u8], keys: &[PrivateKey]) -> Result<Vec<u8>, JweError> {
    let mut message: Message =
        serde_json::from_slice(message).map_err(|_| JweError::Malformed("not JSON of its shape"))?;
    let protected = decode(&message.protected)?;
    let protected: Map<String, Value> =
        serde_json::from_slice(&protected).map_err(|_| JweError::Malformed("protected header"))?;
    if let Some(encrypted_key) = message.encrypted_key.take() {
        let header = std::mem::take(&mut message.header);
        message.recipients.push(Recipient { header, encrypted_key });
    }
    if message.recipients.len() > RECIPIENTS_MAX {
        return Err(JweError::Malformed("too many recipients"));
    }
    if message.ciphertext.len() > CONTENT_MAX_BYTES {
        return Err(JweError::Malformed("content too long"));
    }
    let mut last = JweError::NoKey;
    for recipient in &message.recipients {
        let header = Header { parts: [&protected, &message.unprotected, &recipient.header] };
        let wrapped = decode(&recipient.encrypted_key)?;
        for key in keys {
            match header.content_key(key, &wrapped).and_then(|key| open(&message, &header, &key)) {
                Ok(content) => return Ok(content),
                Err(JweError::NoKey) => {}
                Err(error) => last = error,
            }
        }
    }
    Err(last)
}

/// The parts of a header; a name is looked for in the protected one first.
struct Header<'a> {
    parts: [&'a Map<String, Value>; 3],
}

impl Header<'_> {
    fn value(&self, name: &str) -> Option<&Value> {
        self.parts.iter().find_map(|part| part.get(name))
    }

    fn text(&self, name: &str) -> &str {
        self.value(name).and_then(Value::as_str).unwrap_or_default()
    }

    /// The key of the content, if `key` is the recipient's.
    fn content_key(&self, key: &PrivateKey, wrapped: &[u8]) -> Result<Vec<u8>, JweError> {
        for name in ["crit", "zip"] {
            if let Some(value) = self.value(name) {
                return Err(JweError::Unsupported { what: "header", name: format!("{name}={value:.40}") });
            }
        }
        match (self.text("alg"), key) {
            ("RSA-OAEP", PrivateKey::Rsa(key)) => open_rsa(key, Oaep::<Sha1>::new(), wrapped),
            ("RSA-OAEP-256", PrivateKey::Rsa(key)) => open_rsa(key, Oaep::<Sha256>::new(), wrapped),
            (alg @ ("ECDH-ES+A128KW" | "ECDH-ES+A192KW" | "ECDH-ES+A256KW"), key) => {
                self.unwrap_agreed(alg, key, wrapped)
            }
            ("RSA-OAEP" | "RSA-OAEP-256", _) => Err(JweError::NoKey),
            (other, _) => Err(JweError::Unsupported { what: "key algorithm", name: other.chars().take(40).collect() }),
        }
    }

    fn unwrap_agreed(&self, alg: &str, key: &PrivateKey, wrapped: &[u8]) -> Result<Vec<u8>, JweError> {
        let party = |name| decode(self.text(name));
        let shared = self.agree(key)?;
        let key_bytes = match alg {
            "ECDH-ES+A128KW" => 16,
            "ECDH-ES+A192KW" => 24,
            _ => 32,
        };
        let derived = derive(&shared, alg, &party("apu")?, &party("apv")?, key_bytes);
        unwrap(&derived, wrapped).ok_or(JweError::NoKey)
    }

    /// The secret both ends know, from the sender's public key in the header.
    fn agree(&self, key: &PrivateKey) -> Result<Vec<u8>, JweError> {
        let sender = self.value("epk").and_then(Value::as_object).ok_or(JweError::Malformed("no epk"))?;
        let text = |name| sender.get(name).and_then(Value::as_str).unwrap_or_default();
        let (curve, length): (&str, usize) = match key {
            PrivateKey::Rsa(_) => return Err(JweError::NoKey),
            PrivateKey::P256(_) => ("P-256", 32),
            PrivateKey::P384(_) => ("P-384", 48),
            PrivateKey::P521(_) => ("P-521", 66),
        };
        if (text("kty"), text("crv")) != ("EC", curve) {
            return Err(JweError::NoKey);
        }
        // SEC1, uncompressed: whether the point is on the curve, the curve's crate checks.
        let mut point = vec![4];
        for name in ["x", "y"] {
            let coordinate = decode(text(name))?;
            let padding = length.checked_sub(coordinate.len()).map_or_else(Vec::new, |missing| vec![0_u8; missing]);
            point.extend(padding.into_iter().chain(coordinate));
        }
        let off = |_| JweError::Malformed("epk is no point of its curve");
        Ok(match key {
            PrivateKey::Rsa(_) => return Err(JweError::NoKey),
            PrivateKey::P256(key) => {
                let public = p256::PublicKey::from_sec1_bytes(&point).map_err(off)?;
                key.diffie_hellman(&public).raw_secret_bytes().to_vec()
            }
            PrivateKey::P384(key) => {
                let public = p384::PublicKey::from_sec1_bytes(&point).map_err(off)?;
                key.diffie_hellman(&public).raw_secret_bytes().to_vec()
            }
            PrivateKey::P521(key) => {
                let public = p521::PublicKey::from_sec1_bytes(&point).map_err(off)?;
                key.diffie_hellman(&public).raw_secret_bytes().to_vec()
            }
        })
    }
}

fn open_rsa(
    key: &rsa::RsaPrivateKey,
    padding: impl rsa::traits::PaddingScheme,
    wrapped: &[u8],
) -> Result<Vec<u8>, JweError> {
    if wrapped.len() != key.size() {
        return Err(JweError::NoKey);
    }
    key.decrypt(padding, wrapped).map_err(|_| JweError::NoKey)
}

/// Concat KDF of one to several rounds of SHA-256. Source: RFC 7518 section 4.6.2.
fn derive(shared: &[u8], alg: &str, apu: &[u8], apv: &[u8], length: usize) -> Vec<u8> {
    let prefixed = |bytes: &[u8]| {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        [&length.to_be_bytes()[..], bytes].concat()
    };
    let bits = u32::try_from(length * 8).unwrap_or(u32::MAX).to_be_bytes();
    let info = [&prefixed(alg.as_bytes())[..], &prefixed(apu), &prefixed(apv), &bits].concat();
    // Keys are at most as long as one round gives.
    let mut derived =
        Sha256::new().chain_update(1_u32.to_be_bytes()).chain_update(shared).chain_update(info).finalize().to_vec();
    derived.truncate(length);
    derived
}

/// AES key wrap. Source: RFC 3394.
fn unwrap(key: &[u8], wrapped: &[u8]) -> Option<Vec<u8>> {
    let mut out = vec![0; wrapped.len().checked_sub(8)?];
    let unwrapped = match key.len() {
        16 => AesKw::<Aes128>::new_from_slice(key).ok()?.unwrap_key(wrapped, &mut out),
        24 => AesKw::<Aes192>::new_from_slice(key).ok()?.unwrap_key(wrapped, &mut out),
        _ => AesKw::<Aes256>::new_from_slice(key).ok()?.unwrap_key(wrapped, &mut out),
    };
    unwrapped.ok()?;
    Some(out)
}

fn open(message: &Message, header: &Header<'_>, key: &[u8]) -> Result<Vec<u8>, JweError> {
    let aad = match &message.aad {
        Some(aad) => format!("{}.{aad}", message.protected),
        None => message.protected.clone(),
    };
    let sealed = [decode(&message.ciphertext)?, decode(&message.tag)?].concat();
    let iv: [u8; 12] = decode(&message.iv)?.try_into().map_err(|_| JweError::Malformed("iv"))?;
    if decode(&message.tag)?.len() != 16 {
        return Err(JweError::Malformed("tag"));
    }
    let payload = Payload { msg: &sealed, aad: aad.as_bytes() };
    let nonce = Nonce::<U12>::from(iv);
    let opened = match (header.text("enc"), key.len()) {
        ("A128GCM", 16) => {
            AesGcm::<Aes128, U12>::new_from_slice(key).ok().and_then(|gcm| gcm.decrypt(&nonce, payload).ok())
        }
        ("A192GCM", 24) => {
            AesGcm::<Aes192, U12>::new_from_slice(key).ok().and_then(|gcm| gcm.decrypt(&nonce, payload).ok())
        }
        ("A256GCM", 32) => {
            AesGcm::<Aes256, U12>::new_from_slice(key).ok().and_then(|gcm| gcm.decrypt(&nonce, payload).ok())
        }
        ("A128GCM" | "A192GCM" | "A256GCM", _) => None,
        (other, _) => {
            return Err(JweError::Unsupported { what: "content encryption", name: other.chars().take(40).collect() });
        }
    };
    // A key that unwraps and does not open is as good as none.
    opened.ok_or(JweError::NoKey)
}
