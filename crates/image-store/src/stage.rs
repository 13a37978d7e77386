//! A layer on its way into the store.

use crate::types::LayerContents;

/// A layer whose files lie in a directory of their own without a name; dropping it removes them.
#[derive(Debug)]
pub struct StagedLayer {
    contents: LayerContents,
}

impl StagedLayer {
    /// What the bytes turned out to be.
    #[must_use]
    pub fn contents(&self) -> &LayerContents {
        &self.contents
    }
}
