//! What `docker save` writes: `manifest.json`, configurations and layer tars; since Docker 25 an OCI layout as well.

use std::collections::BTreeMap;
use std::collections::HashMap;

use domain::digest::Digest;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::layout::{self, labels, names_of};
use super::{LocalImage, LocalSlice, NAMES_SHOWN_MAX, Opened};
use crate::client::digest_of;
use crate::error::LocalError;
use crate::manifest::{
    CONFIG_MAX_BYTES, DOCKER_CONFIG, DOCKER_LAYER, DOCKER_LAYER_GZIP, DOCKER_MANIFEST, Descriptor, LAYERS_MAX,
    MANIFEST_MAX_BYTES, parse_diff_ids,
};
use crate::reference::Reference;

const MANIFEST_FILE: &str = "manifest.json";
/// Bytes hashed at a time where a layer's digest is recorded nowhere.
const HASH_CHUNK_BYTES: usize = 256 << 10;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl Entry {
    fn names(&self) -> Vec<Reference> {
        self.repo_tags.iter().flatten().filter_map(|tag| Reference::parse(tag).ok()).collect()
    }
}

pub(super) fn choose(image: LocalImage, wanted: Option<&Reference>) -> Result<Opened, LocalError> {
    // The layout is preferred, because it has the digests of what is there. Old tools leave it out, and some write
    // one without names.
    if let Some(entries) = layout::read_index(&image)? {
        let is_wanted = |entry: &&Descriptor| {
            wanted.is_none_or(|wanted| {
                labels(entry).any(|label| Reference::parse(label).is_ok_and(|name| name == *wanted))
            })
        };
        if let Ok(manifest) = layout::only(entries.iter().filter(is_wanted), &entries, "") {
            let names = names_of(&manifest);
            return Ok(Opened { image, manifest, names });
        }
    }
    let slice =
        image.find_file(MANIFEST_FILE)?.ok_or_else(|| LocalError::Missing { file: MANIFEST_FILE.to_owned() })?;
    let entries = parse_entries(&slice.read_whole(MANIFEST_FILE, MANIFEST_MAX_BYTES)?)?;
    let entry = choose_entry(entries, wanted)?;
    let names = match wanted {
        Some(wanted) => vec![wanted.clone()],
        None => entry.names(),
    };
    build(image, &entry, names)
}

fn parse_entries(bytes: &[u8]) -> Result<Vec<Entry>, LocalError> {
    serde_json::from_slice(bytes)
        .map_err(|error| LocalError::Malformed { file: MANIFEST_FILE.to_owned(), reason: error.to_string() })
}

fn choose_entry(mut entries: Vec<Entry>, wanted: Option<&Reference>) -> Result<Entry, LocalError> {
    let present: Vec<String> =
        entries.iter().flat_map(Entry::names).take(NAMES_SHOWN_MAX).map(|name| name.to_string()).collect();
    if let Some(wanted) = wanted {
        entries.retain(|entry| entry.names().contains(wanted));
    }
    match (entries.pop(), entries.is_empty()) {
        (Some(entry), true) => Ok(entry),
        (Some(_), false) => Err(LocalError::Ambiguous { present }),
        (None, _) => {
            Err(LocalError::NoSuchImage { wanted: wanted.map(Reference::to_string).unwrap_or_default(), present })
        }
    }
}

/// The manifest that the archive does not have, in the form a registry would have served.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MadeManifest {
    schema_version: u8,
    media_type: &'static str,
    config: MadeDescriptor,
    layers: Vec<MadeDescriptor>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MadeDescriptor {
    media_type: &'static str,
    size: u64,
    digest: Digest,
}

fn build(mut image: LocalImage, entry: &Entry, names: Vec<Reference>) -> Result<Opened, LocalError> {
    let missing = |file: &str| LocalError::Missing { file: file.to_owned() };
    let malformed = |reason| LocalError::Malformed { file: MANIFEST_FILE.to_owned(), reason };
    let config = image.find_file(&entry.config)?.ok_or_else(|| missing(&entry.config))?;
    let config_bytes = config.read_whole(&entry.config, CONFIG_MAX_BYTES)?;
    let diff_ids = parse_diff_ids(&config_bytes).map_err(|error| malformed(crate::error::chain(&error)))?;
    let paths = entry.layers.as_deref().unwrap_or_default();
    if paths.len() > LAYERS_MAX {
        return Err(LocalError::TooLarge { file: "layers".to_owned(), limit: LAYERS_MAX as u64 });
    }
    if paths.len() != diff_ids.len() {
        return Err(malformed(format!("{} layers, configuration lists {} diff ids", paths.len(), diff_ids.len())));
    }
    let config_digest = digest_of(&config_bytes);
    let mut named = HashMap::new();
    let mut layers = Vec::new();
    for (path, diff_id) in paths.iter().zip(diff_ids) {
        let slice = image.find_file(path)?.ok_or_else(|| missing(path))?;
        let io = |source| LocalError::Io { action: "read", file: path.clone(), source };
        let magic = slice.read_at(0, 6).map_err(io)?;
        let length = slice.length;
        // A plain tar is its own diff id; of a compressed one nobody recorded the digest.
        let (digest, media_type) = match super::tar::find_compression(&magic) {
            None => (diff_id, DOCKER_LAYER),
            Some(_) => (hash(&slice).map_err(io)?, DOCKER_LAYER_GZIP),
        };
        named.insert(digest.clone(), slice);
        layers.push(MadeDescriptor { media_type, size: length, digest });
    }
    let made = MadeManifest {
        schema_version: 2,
        media_type: DOCKER_MANIFEST,
        config: MadeDescriptor { media_type: DOCKER_CONFIG, size: config.length, digest: config_digest.clone() },
        layers,
    };
    let bytes = serde_json::to_vec(&made).map_err(|error| malformed(error.to_string()))?;
    let manifest = Descriptor {
        media_type: DOCKER_MANIFEST.to_owned(),
        digest: digest_of(&bytes).to_string(),
        size: bytes.len() as u64,
        urls: Vec::new(),
        annotations: BTreeMap::new(),
        platform: None,
    };
    named.insert(config_digest, LocalSlice::of_memory(config_bytes));
    named.insert(digest_of(&bytes), LocalSlice::of_memory(bytes.into()));
    image.named = named;
    Ok(Opened { image, manifest, names })
}

fn hash(slice: &LocalSlice) -> std::io::Result<Digest> {
    let mut hasher = Sha256::new();
    let mut at = 0;
    while at < slice.length {
        let bytes = slice.read_at(at, HASH_CHUNK_BYTES)?;
        if bytes.is_empty() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        hasher.update(&bytes);
        at += bytes.len() as u64;
    }
    Ok(Digest::from_sha256(&hasher.finalize().into()))
}

/// For the fuzzer: `manifest.json` of hostile archives.
pub(crate) fn parse_archive_manifest(bytes: &[u8]) -> bool {
    parse_entries(bytes).and_then(|entries| choose_entry(entries, None)).is_ok()
}
