//! What annotations of a layer say of its encryption.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use thiserror::Error;

use crate::jwe;
use crate::keys::DecryptionKeys;

const KEYS_PREFIX: &str = "org.opencontainers.image.enc.keys.";
pub(crate) const JWE: &str = "org.opencontainers.image.enc.keys.jwe";
pub(crate) const PUBLIC: &str = "org.opencontainers.image.enc.pubopts";
/// The one cipher ocicrypt has.
const CIPHER: &str = "AES_256_CTR_HMAC_SHA256";
/// Most messages of one layer: one for each time somebody added recipients.
const MESSAGES_MAX: usize = 32;

/// Why the key of a layer was not found out.
#[derive(Debug, Error)]
pub enum UnwrapError {
    /// There is no key on this node.
    #[error("missing private key needed for decryption")]
    NoKeys,
    /// None of the node's keys is a recipient's.
    #[error("no suitable key found for decrypting layer key: {}", reasons.join("; "))]
    NoSuitableKey {
        /// What each message said.
        reasons: Vec<String>,
    },
    /// Only recipients of kinds that are not read.
    #[error("layer is encrypted for recipients of kind {kinds} only, which is not supported")]
    Unsupported {
        /// `pkcs7`, `pgp`, ...
        kinds: String,
    },
    /// The annotations make no sense.
    #[error("annotations of an encrypted layer: {reason}")]
    Annotations {
        /// What is wrong.
        reason: &'static str,
    },
    /// A cipher other than the one there is.
    #[error("unsupported cipher type: {cipher}")]
    Cipher {
        /// As named.
        cipher: String,
    },
}

/// What opens one layer. Its bytes appear nowhere.
pub struct LayerKey {
    pub(crate) key: [u8; 32],
    pub(crate) nonce: [u8; 16],
    pub(crate) hmac: Vec<u8>,
}

impl fmt::Debug for LayerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayerKey").finish_non_exhaustive()
    }
}

#[derive(Deserialize, Default)]
pub(crate) struct PublicOptions {
    #[serde(default)]
    cipher: String,
    #[serde(default)]
    hmac: Option<String>,
    #[serde(default)]
    cipheroptions: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct PrivateOptions {
    symkey: String,
    #[serde(default)]
    cipheroptions: Option<BTreeMap<String, String>>,
}

pub(crate) fn public_options(annotations: &BTreeMap<String, String>) -> Result<PublicOptions, UnwrapError> {
    let wrong = |reason| UnwrapError::Annotations { reason };
    match annotations.get(PUBLIC).filter(|text| !text.is_empty()) {
        Some(text) => {
            let json = STANDARD.decode(text).map_err(|_| wrong("public options are not base64"))?;
            serde_json::from_slice(&json).map_err(|_| wrong("public options are not JSON of their shape"))
        }
        None => Ok(PublicOptions::default()),
    }
}

impl DecryptionKeys {
    /// The key of a layer, by the annotations of its descriptor.
    pub fn unwrap_layer_key(&self, annotations: &BTreeMap<String, String>) -> Result<LayerKey, UnwrapError> {
        let kinds = annotations.keys().filter_map(|key| key.strip_prefix(KEYS_PREFIX));
        let Some(messages) = annotations.get(JWE).filter(|text| !text.is_empty()) else {
            let kinds: Vec<&str> = kinds.collect();
            return Err(match kinds.is_empty() {
                true => UnwrapError::Annotations { reason: "missing annotations needed for decryption" },
                false => UnwrapError::Unsupported { kinds: kinds.join(", ") },
            });
        };
        if self.is_empty() {
            return Err(UnwrapError::NoKeys);
        }
        let wrong = |reason| UnwrapError::Annotations { reason };
        let mut reasons = Vec::new();
        for message in messages.split(',').take(MESSAGES_MAX) {
            let message = STANDARD.decode(message).map_err(|_| wrong("a wrapped key is not base64"))?;
            match jwe::decrypt(&message, &self.private) {
                Ok(options) => return layer_key(&options, &public_options(annotations)?),
                Err(error) => reasons.push(error.to_string()),
            }
        }
        Err(UnwrapError::NoSuitableKey { reasons })
    }
}

fn layer_key(options: &[u8], public: &PublicOptions) -> Result<LayerKey, UnwrapError> {
    let wrong = |reason| UnwrapError::Annotations { reason };
    let private: PrivateOptions =
        serde_json::from_slice(options).map_err(|_| wrong("private options are not JSON of their shape"))?;
    if public.cipher != CIPHER {
        return Err(UnwrapError::Cipher { cipher: public.cipher.chars().take(60).collect() });
    }
    let decode = |text: &str| STANDARD.decode(text).map_err(|_| wrong("options that are not base64"));
    let option =
        |options: &Option<BTreeMap<String, String>>| options.as_ref().and_then(|all| all.get("nonce").cloned());
    let nonce =
        option(&public.cipheroptions).or_else(|| option(&private.cipheroptions)).ok_or_else(|| wrong("no nonce"))?;
    let hmac = decode(public.hmac.as_deref().unwrap_or_default())?;
    if hmac.is_empty() {
        return Err(wrong("HMAC is not provided for decryption process"));
    }
    Ok(LayerKey {
        key: decode(&private.symkey)?.try_into().map_err(|_| wrong("invalid key length"))?,
        nonce: decode(&nonce)?.try_into().map_err(|_| wrong("invalid nonce length"))?,
        hmac,
    })
}
