//! The quick check of a store: whether everything records mention is there.
//!
//! For the start after an unclean end of the machine. Contents are checked by [`Store::write_layer_tar`]. Repair is
//! the caller's: removing the image or container that is damaged, in use or not, is a decision.

use domain::id::{ContainerId, ImageId, LayerId};

use crate::images::big_data_file;
use crate::layers::chain_of;
use crate::records::LayerRecord;
use crate::store::Store;
use crate::table::RecordsError;

/// Something records mention that is not there, or not whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Damage {
    /// A layer without its directory, its short name, or the stream that gives its tar back.
    LayerFiles {
        /// The layer.
        layer: LayerId,
        /// What is missing, by its name in the layout.
        missing: &'static str,
    },
    /// An image one of whose layers has no record.
    ImageLayer {
        /// The image.
        image: ImageId,
    },
    /// An image one of whose blobs is missing or of another length.
    ImageData {
        /// The image.
        image: ImageId,
        /// The blob's key.
        key: String,
    },
    /// A container whose layer, or one below, has no record.
    ContainerLayer {
        /// The container.
        container: ContainerId,
    },
}

impl Store {
    /// Everything that is missing; nothing is changed. Costs a few look-ups a layer, image and container.
    pub fn check(&self) -> Result<Vec<Damage>, RecordsError> {
        let mut found = Vec::new();
        let layers = self.layers.read()?;
        let images = self.images.read()?;
        let containers = self.containers.read()?;
        for row in layers.iter() {
            let Ok(layer) = LayerId::parse(&row.id) else { continue };
            if let Some(missing) = self.missing_file(row) {
                found.push(Damage::LayerFiles { layer, missing });
            }
        }
        let is_chain_whole = |top: &str| {
            let chain = chain_of(&layers, top);
            let last = chain.last().and_then(|id| layers.find(id));
            top.is_empty() || last.is_some_and(|row| row.parent.is_empty())
        };
        for row in images.iter() {
            let Ok(image) = ImageId::parse(&row.id) else { continue };
            if !is_chain_whole(&row.layer) {
                found.push(Damage::ImageLayer { image: image.clone() });
            }
            let directory = self.image_dir(&image);
            for key in &row.big_data_names {
                let data = std::fs::symlink_metadata(directory.join(big_data_file(key)));
                let size = row.big_data_sizes.get(key).and_then(|size| u64::try_from(*size).ok());
                let is_whole = data.is_ok_and(|data| data.is_file() && size.is_none_or(|size| size == data.len()));
                if !is_whole {
                    found.push(Damage::ImageData { image: image.clone(), key: key.clone() });
                }
            }
        }
        for row in containers.iter() {
            let Ok(container) = ContainerId::parse(&row.id) else { continue };
            if row.layer.is_empty() || !is_chain_whole(&row.layer) {
                found.push(Damage::ContainerLayer { container });
            }
        }
        Ok(found)
    }

    fn missing_file(&self, row: &LayerRecord) -> Option<&'static str> {
        let has_split = row.diff_digest.is_empty() || self.tar_split(&row.id).is_file();
        self.driver.missing(&row.id, !row.parent.is_empty()).or((!has_split).then_some("tar-split"))
    }
}
