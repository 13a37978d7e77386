//! Encrypted layers as manifests name them, and the manifest of an image once its layers are plain.
//!
//! Source: OCI image specification's proposal for encrypted layers, ocicrypt, containers/image.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::digest::Digest;
use crate::go_json;

const SUFFIX: &str = "+encrypted";
const ANNOTATION_PREFIX: &str = "org.opencontainers.image.enc";

/// Whether a layer of this media type is encrypted.
#[must_use]
pub fn is_encrypted(media_type: &str) -> bool {
    media_type.ends_with(SUFFIX)
}

/// The media type of the plain layer.
#[must_use]
pub fn plain_media_type(media_type: &str) -> &str {
    media_type.strip_suffix(SUFFIX).unwrap_or(media_type)
}

/// The annotations of the plain layer.
#[must_use]
pub fn plain_annotations(annotations: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let kept = annotations.iter().filter(|(key, _)| !key.starts_with(ANNOTATION_PREFIX));
    kept.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Why a manifest was not written anew.
#[derive(Debug, Error)]
pub enum PlainManifestError {
    /// It is no manifest of the OCI.
    #[error("read the manifest of an encrypted image")]
    Parse(#[from] serde_json::Error),
    /// It has an encrypted layer of which nothing is known.
    #[error("layer {0} of an encrypted image was not decrypted")]
    Missing(usize),
}

/// In the order containers/image writes, so that the digest comes out the same.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    config: Descriptor,
    layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    urls: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "is_empty_map")]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    platform: Option<Map<String, Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
}

#[allow(clippy::ref_option, reason = "serde gives a reference to the field")]
fn is_empty_map(map: &Option<BTreeMap<String, String>>) -> bool {
    map.as_ref().is_none_or(BTreeMap::is_empty)
}

/// The manifest with its encrypted layers as the plain blobs they became: digests and sizes by the layers' numbers,
/// counted from 0, lowest first.
pub fn plain_manifest(manifest: &[u8], plain: &BTreeMap<usize, (Digest, u64)>) -> Result<Vec<u8>, PlainManifestError> {
    let mut manifest: Manifest = serde_json::from_slice(manifest)?;
    for (number, layer) in manifest.layers.iter_mut().enumerate() {
        if !is_encrypted(&layer.media_type) {
            continue;
        }
        let (digest, size) = plain.get(&number).ok_or(PlainManifestError::Missing(number))?;
        layer.media_type = plain_media_type(&layer.media_type).to_owned();
        layer.annotations = layer.annotations.as_ref().map(plain_annotations);
        layer.digest = digest.to_string();
        layer.size = *size;
        layer.urls = None;
    }
    Ok(go_json::compact(&serde_json::to_string(&manifest)?).into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encrypted_layers_become_plain_and_all_else_stays() {
        let manifest = r#"{ "schemaVersion": 2,
            "config": {"digest":"sha256:c","mediaType":"application/vnd.oci.image.config.v1+json","size":3},
            "layers": [
              {"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:a","size":1},
              {"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip+encrypted","digest":"sha256:b","size":2,
               "annotations":{"org.opencontainers.image.enc.keys.jwe":"x","org.opencontainers.image.enc.pubopts":"y"}},
              {"mediaType":"application/vnd.oci.image.layer.v1.tar+encrypted","digest":"sha256:d","size":4,
               "annotations":{"org.opencontainers.image.enc.keys.jwe":"x","a":"<b>"}}],
            "annotations": {"z":"1","a":"2"} }"#;
        let digest = |number: u8| Digest::from_sha256(&[number; 32]);
        let plain = BTreeMap::from([(1, (digest(1), 11)), (2, (digest(2), 22))]);
        let expected = format!(
            concat!(
                r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","#,
                r#""digest":"sha256:c","size":3}},"layers":["#,
                r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:a","size":1}},"#,
                r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{}","size":11}},"#,
                r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{}","size":22,"#,
                r#""annotations":{{"a":"\u003cb\u003e"}}}}],"annotations":{{"a":"2","z":"1"}}}}"#
            ),
            digest(1),
            digest(2)
        );
        assert_eq!(
            String::from_utf8(plain_manifest(manifest.as_bytes(), &plain).expect("is one")).expect("text"),
            expected
        );
        let missing = plain_manifest(manifest.as_bytes(), &BTreeMap::from([(1, (digest(1), 11))]));
        assert!(matches!(missing, Err(PlainManifestError::Missing(2))));
        assert!(plain_manifest(b"{}", &plain).is_err());
    }
}
