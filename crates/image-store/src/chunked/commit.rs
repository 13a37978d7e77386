//! Who a layer made from parts is, and its record.

use domain::digest::Digest;
use domain::id::{ImageId, LayerId};
use jiff::Timestamp;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::StagedChunked;
use crate::error::CommitLayerError;
use crate::layers::{LayerPin, NamelessLayer, layer_id};
use crate::records::LayerRecord;
use crate::store::Store;
use crate::table::RecordsError;

/// Flag of a layer whose diff id nobody checked: the one its image claims. Tools that give the layer's blob on need it.
const CLAIMED_DIFF_ID: &str = "expected-layer-diffid";

/// Identity of a layer that only its table vouches for: the sha256 of `<parent id>+@TOC=<digits of the table's digest>`.
/// Source: containers/image.
#[must_use]
pub fn toc_layer_id(parent: Option<&LayerId>, toc_digest: &Digest) -> LayerId {
    let parent = parent.map(LayerId::as_str).unwrap_or_default();
    LayerId::from_bytes(Sha256::digest(format!("{parent}+@TOC={}", toc_digest.hex())).into())
}

/// Identity of an image of which some layers have only their tables' word, given for those and `None` for the others,
/// lowest first. `None` when there is no such layer: the image then has its usual identity. Source: containers/image.
#[must_use]
pub fn image_id_by_toc(layers: &[Option<Digest>]) -> Option<ImageId> {
    layers.iter().flatten().next()?;
    let mut text = "@With TOC:".to_owned();
    for layer in layers {
        text.push_str(layer.as_ref().map(Digest::as_str).unwrap_or_default());
        text.push('|');
    }
    let digest = Digest::from_sha256(&Sha256::digest(text).into());
    // Both types hold 64 lower-case hexadecimal digits.
    Some(ImageId::parse(digest.hex()).expect("invariant: a digest's digits are an id"))
}

impl Store {
    /// The layer that this table vouches for on this parent, if it is in the store.
    pub fn find_toc_layer(
        &self,
        parent: Option<&LayerId>,
        toc_digest: &Digest,
    ) -> Result<Option<LayerPin>, RecordsError> {
        let id = toc_layer_id(parent, toc_digest);
        let layers = self.layers.read()?;
        Ok(layers.find(id.as_str()).filter(|row| self.is_whole(row)).map(|_| self.pin(id)))
    }

    /// Gives a layer made from parts its name, if its archive has the expected digest; where it has none, the layer has
    /// the identity of its table, and `diff_id` is recorded as claimed.
    ///
    /// As [`Store::commit_layer`] does.
    pub fn commit_chunked(
        &self,
        staged: StagedChunked,
        parent: Option<&LayerId>,
        diff_id: &Digest,
    ) -> Result<LayerPin, CommitLayerError> {
        let StagedChunked { directory, split, contents, data } = staged;
        let mut flags = Map::new();
        let (id, diff_size) = match (&contents.diff, &contents.toc_digest) {
            (Some((actual, _)), _) if actual != diff_id => {
                return Err(CommitLayerError::DiffId { expected: diff_id.clone(), actual: actual.clone() });
            }
            (Some((actual, size)), _) => (layer_id(parent, actual), i64::try_from(*size).unwrap_or(i64::MAX)),
            (None, Some(toc_digest)) => {
                flags.insert(CLAIMED_DIFF_ID.to_owned(), Value::String(diff_id.to_string()));
                // Nobody knows; the field writes it like this.
                (toc_layer_id(parent, toc_digest), -1)
            }
            (None, None) => unreachable!("invariant: what has no archive was made by a table"),
        };
        let (compressed_diff_digest, compressed_size, compression) = contents.compressed.unwrap_or_default();
        let mut big_data_names: Vec<String> = data.iter().map(|(key, _)| (*key).to_owned()).collect();
        big_data_names.sort();
        let record = LayerRecord {
            id: id.to_string(),
            parent: parent.map(ToString::to_string).unwrap_or_default(),
            created: Timestamp::now().to_string(),
            compressed_diff_digest,
            compressed_size,
            diff_digest: contents.diff.map(|(digest, _)| digest.to_string()).unwrap_or_default(),
            toc_digest: contents.toc_digest.as_ref().map(ToString::to_string).unwrap_or_default(),
            diff_size,
            compression,
            uidset: contents.uids,
            gidset: contents.gids,
            flags,
            big_data_names,
            ..LayerRecord::default()
        };
        self.commit(NamelessLayer { directory, split, data, record }, &id, parent)
    }
}
