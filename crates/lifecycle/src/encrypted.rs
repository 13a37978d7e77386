//! Pulling encrypted layers: the keys are found before anything is fetched, and the image is recorded with its layers plain.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use domain::digest::Digest;
use domain::encryption::{PlainManifestError, is_encrypted, plain_manifest};
use image_crypt::{DecryptionKeys, LayerKey, LoadKeysError, UnwrapError};
use image_pull::{LayerBlob, ResolvedImage};
use image_store::LayerContents;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::blocking;
use crate::pull_image::PullImageError;
use crate::puller::Puller;

/// Why an encrypted image was not pulled.
#[derive(Debug, Error)]
pub enum DecryptError {
    /// The directory of keys.
    #[error("keys in {}", path.display())]
    Keys {
        /// `decryption_keys_path`.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: LoadKeysError,
    },
    /// A layer nobody here can open.
    #[error("decrypt layer {layer}")]
    Unwrap {
        /// The layer's digest.
        layer: Digest,
        /// Why not.
        #[source]
        source: UnwrapError,
    },
    /// The manifest with plain layers.
    #[error("write the manifest anew")]
    Manifest(#[source] PlainManifestError),
}

/// Keys of encrypted layers, by the layers' numbers.
pub(crate) type LayerKeys = BTreeMap<usize, Arc<LayerKey>>;

/// What is known of an image's layers once they are unpacked.
#[derive(Debug, Default)]
pub(crate) struct Fetched {
    /// Of all layers, lowest first.
    pub(crate) diff_ids: Vec<Digest>,
    /// Of all layers: the table of contents of one that nothing else vouches for.
    pub(crate) tables: Vec<Option<Digest>>,
    /// Digest and size of what encrypted layers became, by the layers' numbers.
    pub(crate) decrypted: BTreeMap<usize, (Digest, u64)>,
}

impl Fetched {
    pub(crate) fn add(&mut self, diff_id: Digest, table: Option<Digest>) {
        self.diff_ids.push(diff_id);
        self.tables.push(table);
    }

    pub(crate) fn note(&mut self, number: usize, layer: &LayerBlob, contents: &LayerContents) {
        self.add(contents.diff_id.clone(), None);
        if is_encrypted(&layer.media_type) {
            self.decrypted.insert(number, (contents.compressed_digest.clone(), contents.compressed_size));
        }
    }
}

/// The manifest an image is recorded with.
pub(crate) struct StoredManifest {
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: Digest,
    /// What the reference named, where that is another.
    pub(crate) index: Option<(Digest, Vec<u8>)>,
}

/// As served; with encrypted layers written anew, and kept as served beside it. Source: containers/image.
pub(crate) fn stored_manifest(
    image: &str,
    resolved: &ResolvedImage,
    fetched: &Fetched,
) -> Result<StoredManifest, PullImageError> {
    let (bytes, digest) = (resolved.manifest_bytes.to_vec(), resolved.manifest_digest.clone());
    let index = resolved.index.as_ref().map(|index| (index.digest.clone(), index.bytes.to_vec()));
    if fetched.decrypted.is_empty() {
        return Ok(StoredManifest { bytes, digest, index });
    }
    let plain = plain_manifest(&bytes, &fetched.decrypted).map_err(|source| PullImageError::Decrypt {
        image: image.to_owned(),
        source: Box::new(DecryptError::Manifest(source)),
    })?;
    let plain_digest = Digest::from_sha256(&Sha256::digest(&plain).into());
    Ok(StoredManifest { bytes: plain, digest: plain_digest, index: index.or(Some((digest, bytes))) })
}

impl Puller {
    /// The keys of an image's encrypted layers. Files are read anew for each image, as CRI-O does.
    pub(crate) async fn layer_keys(&self, image: &str, resolved: &ResolvedImage) -> Result<LayerKeys, PullImageError> {
        let encrypted: Vec<(usize, LayerBlob)> =
            resolved.layers.iter().cloned().enumerate().filter(|(_, layer)| is_encrypted(&layer.media_type)).collect();
        if encrypted.is_empty() {
            return Ok(LayerKeys::new());
        }
        let path = self.config.runtime.decryption_keys_path.clone();
        blocking::run("find keys of layers", move || {
            let keys = match path {
                Some(path) => DecryptionKeys::load(&path).map_err(|source| DecryptError::Keys { path, source })?,
                None => DecryptionKeys::default(),
            };
            let unwrap = |(number, layer): (usize, LayerBlob)| {
                let key = keys.unwrap_layer_key(&layer.annotations);
                let key = key.map_err(|source| DecryptError::Unwrap { layer: layer.digest, source })?;
                Ok((number, Arc::new(key)))
            };
            encrypted.into_iter().map(unwrap).collect::<Result<LayerKeys, DecryptError>>()
        })
        .await
        .map_err(|source| PullImageError::Decrypt { image: image.to_owned(), source: Box::new(source) })
    }
}
