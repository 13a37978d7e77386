//! Signatures kept with an image: one behind the other in a blob, their lengths in the image's own JSON.
//!
//! `signature-<hex>` and `signatures-sizes` are for each manifest, `signatures` and `signature-sizes` for the current one.
//! Source: containers/image, which is what podman, skopeo and CRI-O read them with.

use domain::id::ImageId;
use serde_json::{Map, Value, json};

use crate::error::BigDataError;
use crate::store::Store;
use crate::types::{NewImage, SIGNATURES_KEY};

const SIZES: &str = "signature-sizes";
const SIZES_BY_MANIFEST: &str = "signatures-sizes";

impl Store {
    /// Signatures of the current manifest, as they were recorded. Nobody has checked them.
    pub fn image_signatures(&self, image: &ImageId) -> Result<Vec<Vec<u8>>, BigDataError> {
        let (metadata, digest) = {
            let images = self.images.read().map_err(|source| BigDataError::Records { image: image.clone(), source })?;
            let row = images.find(image.as_str()).ok_or_else(|| BigDataError::NoImage { image: image.clone() })?;
            (row.metadata.clone(), row.digest.clone())
        };
        let metadata: Map<String, Value> = serde_json::from_str(&metadata).unwrap_or_default();
        let own = metadata.get(SIZES_BY_MANIFEST).and_then(|sizes| sizes.get(&digest));
        let hex = digest.split_once(':').map_or("", |(_, hex)| hex);
        let places = [(own, format!("signature-{hex}")), (metadata.get(SIZES), SIGNATURES_KEY.to_owned())];
        for (sizes, key) in places {
            let sizes = sizes.and_then(parse_sizes).unwrap_or_default();
            if !sizes.is_empty() {
                let bytes = self.image_big_data(image, &key)?;
                return cut(&bytes, &sizes).ok_or_else(|| BigDataError::Sizes { image: image.clone(), key });
            }
        }
        Ok(Vec::new())
    }
}

fn parse_sizes(value: &Value) -> Option<Vec<usize>> {
    value.as_array()?.iter().map(|size| usize::try_from(size.as_u64()?).ok()).collect()
}

/// Pieces of these lengths, which must use the bytes up.
fn cut(mut bytes: &[u8], sizes: &[usize]) -> Option<Vec<Vec<u8>>> {
    let mut pieces = Vec::new();
    for size in sizes {
        let (piece, rest) = bytes.split_at_checked(*size)?;
        pieces.push(piece.to_vec());
        bytes = rest;
    }
    bytes.is_empty().then_some(pieces)
}

/// The image's own JSON with the lengths of a manifest's signatures, which is the current one from now on.
pub(crate) fn add_sizes(metadata: &str, new: &NewImage) -> String {
    let mut metadata: Map<String, Value> = serde_json::from_str(metadata).unwrap_or_default();
    let lengths: Vec<usize> = new.signatures.iter().map(Vec::len).collect();
    let sizes = metadata.entry(SIZES_BY_MANIFEST).or_insert_with(|| json!({}));
    if !sizes.is_object() {
        *sizes = json!({});
    }
    if let Some(sizes) = sizes.as_object_mut() {
        sizes.insert(new.manifest_digest.to_string(), json!(lengths));
    }
    match lengths.is_empty() {
        // A blob of an earlier manifest may stay: without lengths nobody reads it.
        true => metadata.remove(SIZES),
        false => metadata.insert(SIZES.to_owned(), json!(lengths)),
    };
    Value::Object(metadata).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_use_the_bytes_up() {
        for (sizes, expected) in [
            (&[1, 2][..], Some(vec![b"a".to_vec(), b"bc".to_vec()])),
            (&[3, 0], Some(vec![b"abc".to_vec(), vec![]])),
            (&[2], None),
            (&[4], None),
            (&[usize::MAX, 1], None),
        ] {
            assert_eq!(cut(b"abc", sizes), expected, "{sizes:?}");
        }
        assert_eq!(parse_sizes(&json!([1, -1])), None);
        assert_eq!(parse_sizes(&json!({})), None);
    }
}
