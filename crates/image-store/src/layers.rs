//! Layers: identity, look-up, commit, removal.
//!
//! Commit, and what opening the store does after a crash in each gap:
//! 1. the files lie, durable, in a staging directory (removed);
//! 2. the layer is marked pending (the mark is dropped);
//! 3. the directory, its short name and the tar-split stream get their names (removed: no record mentions them);
//! 4. the record is written (kept if an image uses it by then, else removed for the mark).

use std::collections::HashMap;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use domain::digest::Digest;
use domain::id::LayerId;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use crate::driver::Below;
use crate::error::{CommitLayerError, PathError, RemoveLayerError};
use crate::fault;
use crate::images::big_data_file;
use crate::overlay::LOWER_MAX;
use crate::records::{ContainerRecord, ImageRecord, LayerRecord};
use crate::stage::StagedLayer;
use crate::staging::{StagingDir, StagingFile, remove_tree};
use crate::store::Store;
use crate::table::{Guard, RecordsError};
use crate::types::{ExpectedLayer, Layer};

/// Identity of a layer: the diff id's hexadecimal digits for a base layer, else the sha256 of
/// `<parent id>+<diff id digits>`. Source: containers/image.
#[must_use]
pub fn layer_id(parent: Option<&LayerId>, diff_id: &Digest) -> LayerId {
    match parent {
        // Both types hold 64 lower-case hexadecimal digits.
        None => LayerId::parse(diff_id.hex()).expect("invariant: a digest's digits are an id"),
        Some(parent) => LayerId::from_bytes(Sha256::digest(format!("{parent}+{}", diff_id.hex())).into()),
    }
}

/// A layer that this process does not remove as long as the pin lives: hold it until the image is recorded.
#[derive(Debug)]
pub struct LayerPin {
    id: LayerId,
    pins: Arc<Mutex<HashMap<LayerId, usize>>>,
}

impl LayerPin {
    /// The layer.
    #[must_use]
    pub fn id(&self) -> &LayerId {
        &self.id
    }
}

impl Drop for LayerPin {
    fn drop(&mut self) {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = pins.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.id);
            }
        }
    }
}

/// A layer whose files lie, durable, where nobody looks, and the record it is to have.
pub(crate) struct NamelessLayer {
    pub(crate) directory: StagingDir,
    pub(crate) split: Option<StagingFile>,
    /// What is stored with it: key and file.
    pub(crate) data: Vec<(&'static str, StagingFile)>,
    pub(crate) record: LayerRecord,
}

impl LayerRecord {
    fn to_layer(&self) -> Option<Layer> {
        Some(Layer {
            id: LayerId::parse(&self.id).ok()?,
            parent: if self.parent.is_empty() { None } else { Some(LayerId::parse(&self.parent).ok()?) },
            diff_id: Digest::parse(&self.diff_digest).ok(),
            diff_size: u64::try_from(self.diff_size).ok().filter(|_| !self.diff_digest.is_empty()),
            compressed_digest: Digest::parse(&self.compressed_diff_digest).ok(),
            compressed_size: u64::try_from(self.compressed_size).ok().filter(|size| *size > 0),
        })
    }
}

impl Store {
    pub(crate) fn pin(&self, id: LayerId) -> LayerPin {
        *self.pins.lock().unwrap_or_else(PoisonError::into_inner).entry(id.clone()).or_insert(0) += 1;
        LayerPin { id, pins: Arc::clone(&self.pins) }
    }

    /// Every image layer and read-write layer whose record is complete.
    pub fn layers(&self) -> Result<Vec<Layer>, RecordsError> {
        Ok(self.layers.read()?.iter().filter(|row| !row.is_incomplete()).filter_map(LayerRecord::to_layer).collect())
    }

    /// The layer with this content on this parent, if it is in the store.
    pub fn find_layer(&self, parent: Option<&LayerId>, diff_id: &Digest) -> Result<Option<LayerPin>, RecordsError> {
        let id = layer_id(parent, diff_id);
        let layers = self.layers.read()?;
        // Pinned while the lock is held, so that no removal comes in between.
        Ok(layers.find(id.as_str()).filter(|row| self.is_whole(row)).map(|_| self.pin(id)))
    }

    /// The layer that this blob was unpacked to on this parent, if it is in the store, and its diff id. Both digests
    /// were verified when it came.
    pub fn find_layer_of_blob(
        &self,
        parent: Option<&LayerId>,
        blob: &Digest,
    ) -> Result<Option<(LayerPin, Digest)>, RecordsError> {
        let layers = self.layers.read()?;
        let parent_text = parent.map(LayerId::as_str).unwrap_or_default();
        let found = layers.iter().find_map(|row| {
            let is_it = row.compressed_diff_digest == blob.as_str() && row.parent == parent_text && self.is_whole(row);
            let diff_id = Digest::parse(&row.diff_digest).ok().filter(|_| is_it)?;
            let id = layer_id(parent, &diff_id);
            (id.as_str() == row.id).then_some((id, diff_id))
        });
        Ok(found.map(|(id, diff_id)| (self.pin(id), diff_id)))
    }

    /// Whether a layer was finished and its files are still there: a record alone must not make a pull skip it.
    pub(crate) fn is_whole(&self, row: &LayerRecord) -> bool {
        !row.is_incomplete() && self.driver.diff(&row.id).is_dir()
    }

    /// Gives a staged layer its name, if it is what was expected.
    ///
    /// A layer that is in the store already is kept, and the staged one is dropped. After this returns the layer
    /// survives a loss of power.
    pub fn commit_layer(
        &self,
        staged: StagedLayer,
        parent: Option<&LayerId>,
        expected: &ExpectedLayer,
    ) -> Result<LayerPin, CommitLayerError> {
        match self.commit_layers(vec![(staged, expected.clone())], parent) {
            (mut pins, None) => Ok(pins.pop().expect("invariant: what was not refused is committed")),
            (_, Some(error)) => Err(error),
        }
    }

    /// Commits one layer, where the driver cannot commit several.
    pub(crate) fn commit_alone(
        &self,
        staged: StagedLayer,
        parent: Option<&LayerId>,
        expected: &ExpectedLayer,
    ) -> Result<LayerPin, CommitLayerError> {
        check_contents(&staged, expected)?;
        let id = layer_id(parent, &staged.contents.diff_id);
        {
            let layers = self.layers.read().map_err(CommitLayerError::Records)?;
            if layers.find(id.as_str()).is_some_and(|row| self.is_whole(row)) {
                return Ok(self.pin(id));
            }
        }
        // What has to be synced is made ready without holding others up.
        staged.sync().map_err(CommitLayerError::Path)?;
        let record = record_of(&staged, &id, parent);
        let StagedLayer { directory, split, .. } = staged;
        self.commit(NamelessLayer { directory, split: Some(split), data: Vec::new(), record }, &id, parent)
    }

    /// Gives a layer its name; `record` says whose it is.
    pub(crate) fn commit(
        &self,
        layer: NamelessLayer,
        id: &LayerId,
        parent: Option<&LayerId>,
    ) -> Result<LayerPin, CommitLayerError> {
        // What has to be synced is made ready without holding others up.
        let below = {
            let layers = self.layers.read().map_err(CommitLayerError::Records)?;
            if layers.find(id.as_str()).is_some_and(|row| self.is_whole(row)) {
                return Ok(self.pin(id.clone()));
            }
            self.below_of(&layers, parent)?
        };
        let dressed = self.driver.dress(layer.directory.path(), below.as_ref()).map_err(CommitLayerError::Path)?;
        // Declared before the lock, so that directories are deleted after it is let go.
        let mut away: Vec<StagingDir> = Vec::new();
        let mut layers = self.layers.write().map_err(CommitLayerError::Records)?;
        if layers.find(id.as_str()).is_some_and(|row| self.is_whole(row)) {
            return Ok(self.pin(id.clone()));
        }
        if let Some((file, _)) = layers.locate(id.as_str()) {
            layers.rows_mut(file).retain(|row| row.id != id.as_str());
            layers.save(file).map_err(CommitLayerError::Records)?;
        }
        // A parent that was removed and made again meanwhile has another short name.
        let still_below = self.below_of(&layers, parent)?;
        if still_below.map(|below| below.lower) != below.map(|below| below.lower)
            && let Some(parent) = parent
        {
            return Err(CommitLayerError::NoParent { parent: parent.clone() });
        }
        self.staging().mark_pending(id.as_str()).map_err(CommitLayerError::Path)?;
        // Left by a crash; no record mentions it.
        away.extend(self.take_layer_files(id.as_str()).map_err(CommitLayerError::Path)?);
        let named = self.name_layer(layer, id, &dressed).map_err(CommitLayerError::Path).and_then(|record| {
            let file = self.image_layers_file();
            layers.rows_mut(file).push(record);
            layers.save(file).map_err(CommitLayerError::Records)
        });
        if let Err(error) = named {
            if !fault::is_dead() {
                away.extend(self.take_layer_files(id.as_str()).ok().flatten());
                self.staging().unmark_pending(id.as_str());
            }
            return Err(error);
        }
        Ok(self.pin(id.clone()))
    }

    pub(crate) fn below_of(
        &self,
        layers: &Guard<'_, LayerRecord>,
        parent: Option<&LayerId>,
    ) -> Result<Option<Below>, CommitLayerError> {
        let Some(parent) = parent else { return Ok(None) };
        if !layers.find(parent.as_str()).is_some_and(|row| self.is_whole(row)) {
            return Err(CommitLayerError::NoParent { parent: parent.clone() });
        }
        let below = self.driver.below(parent.as_str()).map_err(CommitLayerError::Path)?;
        // One more lies on top: the container's.
        if below.depth + 1 > LOWER_MAX {
            return Err(CommitLayerError::TooDeep { limit: LOWER_MAX });
        }
        Ok(Some(below))
    }

    fn name_layer(&self, layer: NamelessLayer, id: &LayerId, dressed: &str) -> Result<LayerRecord, PathError> {
        let NamelessLayer { directory, split, data, record } = layer;
        if let Some(split) = split {
            split.move_to(&self.own_tar_split(id.as_str()))?;
        }
        if !data.is_empty() {
            let home = self.layers_dir().join(id.as_str());
            fault::step("make directory of layer data").map_err(PathError::new("make directory", &home))?;
            DirBuilder::new().mode(0o700).create(&home).map_err(PathError::new("make directory", &home))?;
            for (key, file) in data {
                file.move_to(&home.join(big_data_file(key)))?;
            }
            let opened = File::open(&home).and_then(|home| home.sync_all());
            opened.map_err(PathError::new("sync", &home))?;
        }
        self.driver.place(directory, id.as_str(), dressed)?;
        Ok(record)
    }

    pub(crate) fn own_tar_split(&self, id: &str) -> PathBuf {
        self.layers_dir().join(format!("{id}.tar-split.gz"))
    }

    pub(crate) fn tar_split(&self, id: &str) -> PathBuf {
        let name = format!("{id}.tar-split.gz");
        let own = self.own_tar_split(id);
        let mut elsewhere = self.additional_layers_dirs().map(|directory| directory.join(&name));
        if own.exists() { own } else { elsewhere.find(|path| path.exists()).unwrap_or(own) }
    }

    /// Takes everything of a layer but its record out of the way.
    pub(crate) fn take_layer_files(&self, id: &str) -> Result<Option<StagingDir>, PathError> {
        let directory = self.driver.take(id, self.staging_beside(id))?;
        let split = self.own_tar_split(id);
        match std::fs::remove_file(&split) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(PathError::new("remove", split)(error));
            }
            _ => {}
        }
        remove_tree(&self.layers_dir().join(id))?;
        Ok(directory)
    }

    /// Removes a layer, and then the layers below it, that nothing uses: for what a failed pull has committed.
    ///
    /// `true` if the layer itself was removed. Drop its pins first.
    pub fn remove_layer_if_unused(&self, layer: &LayerId) -> Result<bool, RemoveLayerError> {
        let records = |source| RemoveLayerError::Records { layer: layer.clone(), source };
        let mut away = Vec::new();
        let mut layers = self.layers.write().map_err(records)?;
        let images = self.images.read().map_err(records)?;
        let containers = self.containers.read().map_err(records)?;
        let chain = chain_of(&layers, layer.as_str());
        let doomed = self.unused(&layers, &images, &containers, &chain);
        let is_removed = doomed.iter().any(|id| id == layer.as_str());
        self.remove_layers(&mut layers, &doomed, &mut away).map_err(|error| match error {
            RemoveLayers::Records(source) => RemoveLayerError::Records { layer: layer.clone(), source },
            RemoveLayers::Path(source) => RemoveLayerError::Path { layer: layer.clone(), source },
        })?;
        Ok(is_removed)
    }

    /// Those of `candidates`, children before parents, that nothing uses.
    pub(crate) fn unused(
        &self,
        layers: &Guard<'_, LayerRecord>,
        images: &Guard<'_, ImageRecord>,
        containers: &Guard<'_, ContainerRecord>,
        candidates: &[String],
    ) -> Vec<String> {
        let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let mut doomed: Vec<String> = Vec::new();
        for id in candidates {
            let is_pinned = LayerId::parse(id).is_ok_and(|id| pins.contains_key(&id));
            let has_child = layers.iter().any(|row| row.parent == *id && !doomed.contains(&row.id));
            let in_image = images.iter().any(|row| row.layer == *id || row.mapped_layers.contains(id));
            let in_container = containers.iter().any(|row| row.layer == *id);
            // A name means that somebody keeps it for its own sake.
            // What is in a store that is only read has no place.
            let is_named = layers.locate(id).is_none_or(|(_, row)| !row.names.is_empty());
            let is_mounted = self.driver.is_mounted(id).unwrap_or(true);
            if !(is_pinned || has_child || in_image || in_container || is_named || is_mounted || doomed.contains(id)) {
                doomed.push(id.clone());
            }
        }
        doomed
    }

    /// Removes records first: a directory no record mentions is found when the store is opened, the reverse is not.
    pub(crate) fn remove_layers(
        &self,
        layers: &mut Guard<'_, LayerRecord>,
        doomed: &[String],
        away: &mut Vec<StagingDir>,
    ) -> Result<(), RemoveLayers> {
        for file in 0..layers.files() {
            if layers.rows(file).iter().any(|row| doomed.contains(&row.id)) {
                layers.rows_mut(file).retain(|row| !doomed.contains(&row.id));
                layers.save(file).map_err(RemoveLayers::Records)?;
            }
        }
        for id in doomed {
            away.extend(self.take_layer_files(id).map_err(RemoveLayers::Path)?);
            self.staging().unmark_pending(id);
        }
        Ok(())
    }
}

/// Why layers could not be removed.
pub(crate) enum RemoveLayers {
    Records(RecordsError),
    Path(PathError),
}

/// A layer and those below it, from the top.
pub(crate) fn chain_of(layers: &Guard<'_, LayerRecord>, top: &str) -> Vec<String> {
    let mut chain = Vec::new();
    let mut next = top.to_owned();
    while let Some(row) = layers.find(&next) {
        // A record that is its own ancestor is nobody's valid one.
        if chain.contains(&next) {
            break;
        }
        chain.push(next);
        next = row.parent.clone();
    }
    chain
}

pub(crate) fn check_contents(staged: &StagedLayer, expected: &ExpectedLayer) -> Result<(), CommitLayerError> {
    let contents = &staged.contents;
    if let Some(size) = expected.compressed_size
        && size != contents.compressed_size
    {
        return Err(CommitLayerError::CompressedSize { expected: size, actual: contents.compressed_size });
    }
    if expected.compressed_digest != contents.compressed_digest {
        return Err(CommitLayerError::CompressedDigest {
            expected: expected.compressed_digest.clone(),
            actual: contents.compressed_digest.clone(),
        });
    }
    if let Some(diff_id) = &expected.diff_id
        && *diff_id != contents.diff_id
    {
        return Err(CommitLayerError::DiffId { expected: diff_id.clone(), actual: contents.diff_id.clone() });
    }
    Ok(())
}

pub(crate) fn record_of(staged: &StagedLayer, id: &LayerId, parent: Option<&LayerId>) -> LayerRecord {
    let contents = &staged.contents;
    LayerRecord {
        id: id.to_string(),
        parent: parent.map(ToString::to_string).unwrap_or_default(),
        created: Timestamp::now().to_string(),
        compressed_diff_digest: contents.compressed_digest.to_string(),
        compressed_size: i64::try_from(contents.compressed_size).unwrap_or(i64::MAX),
        diff_digest: contents.diff_id.to_string(),
        diff_size: i64::try_from(contents.diff_size).unwrap_or(i64::MAX),
        compression: contents.compression.number(),
        uidset: contents.uids.clone(),
        gidset: contents.gids.clone(),
        ..LayerRecord::default()
    }
}
