//! Images of schema 1: their manifests say neither how long layers are nor what they unpack to.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use domain::digest::Digest;
use domain::schema1::Schema1;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use http::header::CONTENT_LENGTH;

use crate::client::Document;
use crate::error::ResolveError;
use crate::image::{Configuration, IndexManifest, LayerBlob, Origin, Resolved, ResolvedImage};
use crate::manifest::{DOCKER_LAYER_GZIP, LAYERS_MAX, ManifestError, SCHEMA1};
use crate::{blocking, local};

/// Lengths asked for at a time: as many as layers are fetched by the field's tools.
const ASKED_AT_ONCE: usize = 6;

/// An image whose configuration is made when its layers are there.
pub(crate) async fn finish(
    origin: Origin,
    index: Option<IndexManifest>,
    document: Document,
    manifest: Schema1,
) -> Result<Resolved, ResolveError> {
    let digests: Vec<Digest> = manifest.layers().cloned().collect();
    if digests.len() > LAYERS_MAX {
        let source = ManifestError::TooLarge { size: digests.len() as u64, limit: LAYERS_MAX };
        return Err(ResolveError::Manifest { what: "layers of manifest", digest: document.digest, source });
    }
    let mut distinct = digests.clone();
    distinct.sort();
    distinct.dedup();
    let asked = distinct.into_iter().map(|digest| length_of(&origin, digest));
    let lengths: HashMap<Digest, u64> = stream::iter(asked).buffer_unordered(ASKED_AT_ONCE).try_collect().await?;
    let layer = |digest: Digest| LayerBlob {
        size: lengths.get(&digest).copied().unwrap_or_default(),
        digest,
        media_type: DOCKER_LAYER_GZIP.to_owned(),
        diff_id: None,
        annotations: BTreeMap::new(),
    };
    Ok(Resolved::Image(ResolvedImage {
        reference: None,
        names: Vec::new(),
        manifest_digest: document.digest,
        manifest_bytes: document.bytes,
        media_type: SCHEMA1.to_owned(),
        index,
        layers: digests.into_iter().map(layer).collect(),
        configuration: Configuration::Made(manifest),
        origin,
    }))
}

/// By the head of the answer to a request for the blob: storage behind signed addresses answers no other method.
async fn length_of(origin: &Origin, digest: Digest) -> Result<(Digest, u64), ResolveError> {
    match origin {
        Origin::Registry(place) => {
            let session = place.session();
            let (_, response) = session.blob(&digest, 0, None).await.map_err(|source| ResolveError::Registry {
                what: format!("layer {digest}"),
                reference: session.reference().at_digest(digest.clone()),
                source,
            })?;
            let length = response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
            match length.and_then(|length| length.parse().ok()) {
                Some(length) => Ok((digest, length)),
                None => {
                    let source = ManifestError::NoLength { digest: digest.clone() };
                    Err(ResolveError::Manifest { what: "layer", digest, source })
                }
            }
        }
        Origin::Local(image) => {
            let (files, wanted) = (Arc::clone(image), digest.clone());
            let slice = blocking::run("look at a blob", move || files.find_blob(&wanted))
                .await
                .unwrap_or_else(|source| Err(local::not_read(source)))
                .map_err(|source| ResolveError::Local { path: image.path().to_owned(), source })?;
            Ok((digest, slice.length))
        }
    }
}
