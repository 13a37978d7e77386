//! Layers: identity, look-up, commit.

use domain::digest::Digest;
use domain::id::LayerId;
use sha2::{Digest as _, Sha256};

/// Identity of a layer: the diff id's hexadecimal digits for a base layer, else the sha256 of
/// `<parent id>+<diff id digits>`. Source: containers/image.
#[must_use]
pub fn layer_id(parent: Option<&LayerId>, diff_id: &Digest) -> LayerId {
    let bytes = match parent {
        None => {
            // The digest's digits are an id by construction.
            return LayerId::parse(diff_id.hex()).unwrap_or_else(|_| LayerId::from_bytes([0; 32]));
        }
        Some(parent) => Sha256::digest(format!("{parent}+{}", diff_id.hex())),
    };
    LayerId::from_bytes(bytes.into())
}

/// A layer that this process does not remove as long as the pin lives.
#[derive(Debug)]
pub struct LayerPin {
    id: LayerId,
}

impl LayerPin {
    /// The layer.
    #[must_use]
    pub fn id(&self) -> &LayerId {
        &self.id
    }
}
