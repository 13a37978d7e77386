//! Layers that no image uses yet: what pulls that were cut short had finished.
//!
//! They are whole, and the next pull of the image finds them. For as long as the caller says they are kept for that, then
//! removed like everything that nothing uses.

use std::time::{Duration, SystemTime};

use domain::id::LayerId;

use crate::error::RemoveLayerError;
use crate::layers::{RemoveLayers, chain_of};
use crate::staging::StagingDir;
use crate::store::Store;

impl Store {
    /// Of the layers that a process that is gone left, those that have waited long enough; the others wait on as ours.
    pub(crate) fn keep_young(&self, pending: &[(LayerId, SystemTime)]) -> Vec<LayerId> {
        let now = SystemTime::now();
        let mut stale = Vec::new();
        for (layer, since) in pending {
            let is_young = !self.keep_pending().is_zero() && *since + self.keep_pending() > now;
            // A layer that cannot be marked would never go again.
            if !is_young || self.staging().mark_pending_since(layer.as_str(), *since).is_err() {
                stale.push(layer.clone());
            }
        }
        stale
    }

    /// Removes layers that have waited for an image for `age`, and those below them, if nothing uses them; returns how
    /// many. Layers that are pinned stay.
    pub fn sweep_pending(&self, age: Duration) -> Result<usize, RemoveLayerError> {
        let now = SystemTime::now();
        let stale: Vec<LayerId> =
            self.staging().pending().into_iter().filter(|(_, since)| *since + age <= now).map(|(id, _)| id).collect();
        let Some(first) = stale.first() else { return Ok(0) };
        let records = |source| RemoveLayerError::Records { layer: first.clone(), source };
        let mut away: Vec<StagingDir> = Vec::new();
        let mut layers = self.layers.write().map_err(records)?;
        let images = self.images.read().map_err(records)?;
        let containers = self.containers.read().map_err(records)?;
        let candidates: Vec<String> = stale.iter().flat_map(|id| chain_of(&layers, id.as_str())).collect();
        let doomed = self.unused(&layers, &images, &containers, &candidates);
        self.remove_layers(&mut layers, &doomed, &mut away).map_err(|error| match error {
            RemoveLayers::Records(source) => RemoveLayerError::Records { layer: first.clone(), source },
            RemoveLayers::Path(source) => RemoveLayerError::Path { layer: first.clone(), source },
        })?;
        Ok(doomed.len())
    }
}
