//! Docker image manifest version 2, schema 1: what the oldest registries have.
//!
//! Such a manifest lists layers newest first, each with the description that Docker 1.9 and older gave it, and has no
//! configuration: that is put together once the layers' diff ids are known, byte for byte as containers/image does,
//! because its digest is the image's id. A signed manifest counts by the digest of its payload. Signatures are taken
//! off and not verified: Docker made a new key for each push, so that they say nothing about anybody.
//! Source: distribution `docs/spec/manifest-v2-1.md`, libtrust's pretty signatures, containers/image `docker_schema1`.

mod config;

use std::borrow::Cow;
use std::collections::HashSet;

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::general_purpose::GeneralPurpose;
use base64::engine::{DecodePaddingMode, GeneralPurposeConfig};
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use crate::digest::{Digest, ParseDigestError};
use crate::go_json;

/// Most entries: those that changed no files come on top of the layers an image may have.
pub const ENTRIES_MAX: usize = 2048;
/// Most signatures of one manifest: Docker made one.
const SIGNATURES_MAX: usize = 64;

/// Unpadded or padded, as the field's decoder takes both; trailing bits are ignored as it does.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Why a schema 1 manifest cannot be used.
#[derive(Debug, Error)]
pub enum Schema1Error {
    /// Not JSON, or not of the shape.
    #[error("parse {what}")]
    Json {
        /// The manifest, or the number of a history entry.
        what: String,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// The signature does not say what was signed.
    #[error("signature of a schema 1 manifest: {reason}")]
    Signature {
        /// What is wrong.
        reason: &'static str,
    },
    /// The entries do not belong together.
    #[error("schema 1 manifest: {reason}")]
    Entries {
        /// What is wrong.
        reason: &'static str,
    },
    /// A layer's digest is none.
    #[error("layer of a schema 1 manifest")]
    Digest(#[source] ParseDigestError),
    /// Another number of diff ids than layers.
    #[error("{diff_ids} diff ids for {layers} layers of a schema 1 manifest")]
    DiffIds {
        /// As given.
        diff_ids: usize,
        /// Of the manifest.
        layers: usize,
    },
}

/// A manifest, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schema1 {
    /// Oldest first; at least one.
    entries: Vec<Entry>,
    /// Description of the newest entry, as it was written: the configuration is made of it.
    newest: String,
}

/// What one step of the build left.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    blob: Digest,
    is_throwaway: bool,
    created: String,
    created_by: String,
    author: String,
    comment: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawManifest {
    schema_version: i64,
    #[serde(default)]
    fs_layers: Vec<RawLayer>,
    #[serde(default)]
    history: Vec<RawHistory>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawLayer {
    blob_sum: String,
}

#[derive(Deserialize)]
struct RawHistory {
    #[serde(rename = "v1Compatibility")]
    v1_compatibility: String,
}

#[derive(Deserialize)]
struct RawEntry {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    parent: Option<String>,
    #[serde(default)]
    comment: Option<String>,
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    author: Option<String>,
    #[serde(default)]
    throwaway: Option<bool>,
    #[serde(default)]
    container_config: Option<RawCommand>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawCommand {
    #[serde(default)]
    cmd: Option<Vec<Option<String>>>,
}

#[derive(Deserialize)]
struct RawSignature {
    protected: String,
}

/// The bytes of a manifest that its digest is of: the payload of a signed schema 1 manifest, all bytes of any other.
///
/// Of a signed one nothing but the payload must be read: what else surrounds it, no digest covers.
pub fn payload(manifest: &[u8]) -> Result<Cow<'_, [u8]>, Schema1Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Kind {
        #[serde(default)]
        schema_version: Value,
        #[serde(default)]
        media_type: Value,
        #[serde(default)]
        signatures: Value,
    }
    const KEY: &[u8] = b"\"signatures\"";
    // Spares parsing nearly every manifest twice.
    if !manifest.windows(KEY.len()).any(|window| window == KEY) {
        return Ok(Cow::Borrowed(manifest));
    }
    let Ok(kind) = serde_json::from_slice::<Kind>(manifest) else { return Ok(Cow::Borrowed(manifest)) };
    let is_newer = kind.media_type.as_str().is_some_and(|stated| !stated.is_empty() && !stated.contains(".v1+"));
    if kind.schema_version != 1 || is_newer || kind.signatures.is_null() {
        return Ok(Cow::Borrowed(manifest));
    }
    let json = |source| Schema1Error::Json { what: "signatures of a schema 1 manifest".to_owned(), source };
    let signatures: Vec<RawSignature> = serde_json::from_value(kind.signatures).map_err(json)?;
    let wrong = |reason| Schema1Error::Signature { reason };
    if signatures.is_empty() || signatures.len() > SIGNATURES_MAX {
        return Err(wrong("none, or too many"));
    }
    let mut format: Option<(usize, Vec<u8>)> = None;
    for signature in &signatures {
        let found = protected(&signature.protected)?;
        if format.as_ref().is_some_and(|format| *format != found) {
            return Err(wrong("several that cover different bytes"));
        }
        format = Some(found);
    }
    let Some((length, tail)) = format else { return Err(wrong("none")) };
    let head = manifest.get(..length).ok_or_else(|| wrong("covers more than there is"))?;
    Ok(Cow::Owned([head, &tail].concat()))
}

/// How many bytes from the start are covered, and what follows them in place of the signatures.
fn protected(text: &str) -> Result<(usize, Vec<u8>), Schema1Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Protected {
        format_length: usize,
        format_tail: String,
    }
    let decode = |text: &str| {
        let text: Vec<u8> = text.bytes().filter(|byte| !matches!(byte, b' ' | b'\n')).collect();
        BASE64.decode(text).map_err(|_| Schema1Error::Signature { reason: "not base64url" })
    };
    let json = |source| Schema1Error::Json { what: "protected header of a signature".to_owned(), source };
    let protected: Protected = serde_json::from_slice(&decode(text)?).map_err(json)?;
    Ok((protected.format_length, decode(&protected.format_tail)?))
}

impl Schema1 {
    /// Reads a manifest, signed or not.
    ///
    /// Entries must be a chain by their ids; of neighbours with one id the oldest counts. Source: containers/image,
    /// and `docker pull` before it.
    pub fn parse(manifest: &[u8]) -> Result<Self, Schema1Error> {
        let json = |source| Schema1Error::Json { what: "schema 1 manifest".to_owned(), source };
        let raw: RawManifest = serde_json::from_slice(&payload(manifest)?).map_err(json)?;
        let wrong = |reason| Schema1Error::Entries { reason };
        if raw.schema_version != 1 {
            return Err(wrong("another version"));
        }
        if raw.fs_layers.len() != raw.history.len() {
            return Err(wrong("history and layers are of different lengths"));
        }
        if raw.fs_layers.is_empty() || raw.fs_layers.len() > ENTRIES_MAX {
            return Err(wrong("no layers, or too many"));
        }
        // Newest first, as written.
        let mut steps = Vec::with_capacity(raw.history.len());
        for (number, (layer, history)) in raw.fs_layers.iter().zip(raw.history).enumerate() {
            let parsed: RawEntry = serde_json::from_str(&history.v1_compatibility)
                .map_err(|source| Schema1Error::Json { what: format!("history entry {number}"), source })?;
            steps.push((Digest::parse(&layer.blob_sum).map_err(Schema1Error::Digest)?, parsed, history));
        }
        let keep = check_chain(&steps.iter().map(|(_, entry, _)| entry).collect::<Vec<_>>())?;
        let mut kept = steps.into_iter().zip(keep).filter_map(|(step, is_kept)| is_kept.then_some(step)).peekable();
        let newest = kept.peek().map(|(_, _, history)| history.v1_compatibility.clone()).unwrap_or_default();
        let mut entries = kept.map(|(blob, entry, _)| entry.into_entry(blob)).collect::<Result<Vec<_>, _>>()?;
        entries.reverse();
        Ok(Self { entries, newest })
    }

    /// Digests of the layers, lowest first, without those that changed no files.
    pub fn layers(&self) -> impl Iterator<Item = &Digest> {
        self.entries.iter().filter(|entry| !entry.is_throwaway).map(|entry| &entry.blob)
    }
}

/// Which entries, newest first, count.
fn check_chain(entries: &[&RawEntry]) -> Result<Vec<bool>, Schema1Error> {
    let wrong = |reason| Schema1Error::Entries { reason };
    let id = |at: usize| entries[at].id.as_deref().unwrap_or_default();
    let parent = |at: usize| entries[at].parent.as_deref().unwrap_or_default();
    let is_id =
        |id: &str| id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    if !(0..entries.len()).all(|at| is_id(id(at))) {
        return Err(wrong("a layer id that is none"));
    }
    let oldest = entries.len() - 1;
    if !parent(oldest).is_empty() {
        return Err(wrong("the base layer has a parent"));
    }
    let mut seen = HashSet::new();
    for at in 0..entries.len() {
        let is_repeated = at > 0 && id(at) == id(at - 1);
        if !seen.insert(id(at)) && !is_repeated {
            return Err(wrong("a layer id in several places"));
        }
    }
    let mut keep = vec![true; entries.len()];
    for at in (0..oldest).rev() {
        if id(at) == id(at + 1) {
            keep[at] = false;
        } else if parent(at) != id(at + 1) {
            return Err(wrong("a layer whose parent is another"));
        }
    }
    Ok(keep)
}

impl RawEntry {
    fn into_entry(self, blob: Digest) -> Result<Entry, Schema1Error> {
        let command = self.container_config.and_then(|config| config.cmd).unwrap_or_default();
        let words: Vec<String> = command.into_iter().map(Option::unwrap_or_default).collect();
        let created = match self.created {
            Some(text) => go_json::time(&text).ok_or(Schema1Error::Entries { reason: "a time that is none" })?,
            None => go_json::ZERO_TIME.to_owned(),
        };
        Ok(Entry {
            blob,
            is_throwaway: self.throwaway.unwrap_or_default(),
            created,
            created_by: words.join(" "),
            author: self.author.unwrap_or_default(),
            comment: self.comment.unwrap_or_default(),
        })
    }
}

/// Entry point for fuzzing: what parses has a configuration that parses.
pub fn fuzz(bytes: &[u8]) {
    let Ok(manifest) = Schema1::parse(bytes) else { return };
    let diff_ids: Vec<Digest> = manifest.layers().cloned().collect();
    if let Ok(config) = manifest.config(&diff_ids) {
        let parsed: Value = serde_json::from_slice(&config).expect("invariant: what was written is JSON");
        assert!(parsed.get("rootfs").is_some() && parsed.get("id").is_none());
    }
}

#[cfg(test)]
mod tests;
