//! What opening a store repairs.
//!
//! Under the locks of all records, in this order: layers never finished and volatile layers without a container lose
//! their records; directories and streams no record mentions are removed; pending layers nothing uses are removed;
//! images whose current manifest was being replaced get it back; leftovers of staging go. A step that fails is logged
//! and left for the next start: none is needed for the store to work.

use std::collections::HashSet;
use std::path::Path;

use domain::digest::Digest;
use domain::id::{ContainerId, ImageId, LayerId};
use durable::Durability;
use sha2::{Digest as _, Sha256};

use crate::error::PathError;
use crate::images::{big_data_file, read_regular};
use crate::layers::chain_of;
use crate::options::Transient;
use crate::records::{ContainerRecord, ImageRecord, LayerRecord, Record};
use crate::staging::{Leftovers, StagingDir, remove_tree};
use crate::store::{CONTAINERS, LAYERS, Store, VOLATILE};
use crate::table::{Guard, RecordsError};
use crate::types::MANIFEST_KEY;

/// Largest manifest looked at for repair.
const MANIFEST_MAX_BYTES: u64 = 16 << 20;
/// What `durable` calls files being written.
const TEMPORARY_PREFIX: &str = ".tmp-";

fn tell(what: &'static str, error: &PathError) {
    tracing::warn!(path = %error.path.display(), action = error.action, error = %error.source, "{what}");
}

impl Store {
    pub(crate) fn recover(&self, leftovers: Leftovers) -> Result<(), RecordsError> {
        let mut away: Vec<StagingDir> = Vec::new();
        self.layers.set_aside_damaged()?;
        self.containers.set_aside_damaged()?;
        self.mounts.set_aside_damaged()?;
        {
            let mut layers = self.layers.write()?;
            let images = self.images.write()?;
            let containers = self.containers.read()?;
            self.drop_dead_records(&mut layers, &containers)?;
            self.remove_unmentioned_layers(&layers, &mut away);
            self.remove_unmentioned_images(&images);
            self.remove_unmentioned_containers(&containers);
            let stale = self.keep_young(&leftovers.pending);
            let pending: Vec<String> = stale.iter().flat_map(|id| chain_of(&layers, id.as_str())).collect();
            let doomed = self.unused(&layers, &images, &containers, &pending);
            if self.remove_layers(&mut layers, &doomed, &mut away).is_err() {
                tracing::warn!("layers of an image that was never recorded stay until the next start");
            }
            for row in images.own() {
                self.repair_manifest(row);
            }
        }
        if let Err(error) = leftovers.remove() {
            tell("leftovers of staging stay until the next start", &error);
        }
        self.remove_stale_files();
        if let Err(error) = self.driver.repair() {
            tell("short names of layers could not be repaired", &error);
        }
        Ok(())
    }

    fn drop_dead_records(
        &self,
        layers: &mut Guard<'_, LayerRecord>,
        containers: &Guard<'_, ContainerRecord>,
    ) -> Result<(), RecordsError> {
        let in_use: HashSet<&str> = containers.iter().map(|row| row.layer.as_str()).collect();
        for file in 0..layers.files() {
            let is_dead = |row: &LayerRecord| {
                let is_orphan = file == VOLATILE && !in_use.contains(row.id.as_str());
                (row.is_incomplete() || is_orphan) && !self.driver.is_mounted(&row.id).unwrap_or(true)
            };
            if layers.rows(file).iter().any(is_dead) {
                layers.rows_mut(file).retain(|row| !is_dead(row));
                layers.save(file)?;
            }
        }
        Ok(())
    }

    fn remove_unmentioned_layers(&self, layers: &Guard<'_, LayerRecord>, away: &mut Vec<StagingDir>) {
        let mut known: HashSet<String> = layers.own().map(|row| row.id.clone()).collect();
        known.extend(self.twin_layers());
        for id in self.driver.layers_on_disk() {
            if known.contains(&id) {
                continue;
            }
            if self.driver.is_mounted(&id).unwrap_or(true) {
                tracing::warn!(layer.id = id, "a layer no record mentions is mounted and stays");
                continue;
            }
            match self.take_layer_files(&id) {
                Ok(taken) => away.extend(taken),
                Err(error) => tell("a layer no record mentions could not be removed", &error),
            }
        }
        for name in names_in(&self.layers_dir()) {
            let id = name.strip_suffix(".tar-split.gz").unwrap_or(&name);
            if LayerId::parse(id).is_err() || known.contains(id) {
                continue;
            }
            let path = self.layers_dir().join(&name);
            let removed = if id == name {
                remove_tree(&path)
            } else {
                std::fs::remove_file(&path).map_err(PathError::new("remove", &path))
            };
            if let Err(error) = removed {
                tell("data of a layer no record mentions could not be removed", &error);
            }
        }
    }

    fn remove_unmentioned_images(&self, images: &Guard<'_, ImageRecord>) {
        for directory in self.own_images_dirs() {
            for id in names_in(&directory) {
                if ImageId::parse(&id).is_ok()
                    && images.locate(&id).is_none()
                    && let Err(error) = remove_tree(&directory.join(&id))
                {
                    tell("data of an image no record mentions could not be removed", &error);
                }
            }
        }
    }

    /// Directories of containers whose creation ended before they were recorded. The lock keeps others from creating.
    fn remove_unmentioned_containers(&self, containers: &Guard<'_, ContainerRecord>) {
        let mut known: HashSet<String> = containers.iter().map(|row| row.id.clone()).collect();
        known.extend(self.twin_containers());
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for home in [self.root(), self.runroot()] {
            for id in names_in(&self.beneath(home, CONTAINERS)) {
                if ContainerId::parse(&id).is_err() || known.contains(&id) {
                    continue;
                }
                let path = self.beneath(home, CONTAINERS).join(&id);
                if mounts.contains(&format!("{}/", path.display())) {
                    tracing::warn!(container.id = id, "files of a container no record mentions are mounted and stay");
                } else if let Err(error) = remove_tree(&path) {
                    tell("files of a container no record mentions could not be removed", &error);
                }
            }
        }
    }

    /// Whoever uses the same root with the other setting of `transient_store` keeps volatile records elsewhere.
    pub(crate) fn twin_layers(&self) -> Vec<String> {
        let twin = match self.transient() {
            Transient::No => self.runroot(),
            Transient::Yes => self.root(),
        };
        ids_in::<LayerRecord>(&self.beneath(twin, LAYERS).join("volatile-layers.json"))
    }

    /// Likewise of containers.
    pub(crate) fn twin_containers(&self) -> Vec<String> {
        let files = [self.root(), self.runroot()].map(|home| self.beneath(home, CONTAINERS));
        files.iter().flat_map(|path| ids_in::<ContainerRecord>(&path.join("volatile-containers.json"))).collect()
    }

    /// The current manifest is the one file of an image that is ever replaced; the record says by which digest, and
    /// a copy of each lies beside it.
    fn repair_manifest(&self, row: &ImageRecord) {
        let Ok(image) = ImageId::parse(&row.id) else { return };
        let Some(recorded) = row.big_data_digests.get(MANIFEST_KEY) else { return };
        let directory = self.image_dir(&image);
        let has_digest = |bytes: &[u8]| Digest::from_sha256(&Sha256::digest(bytes).into()).as_str() == recorded;
        let current = directory.join(MANIFEST_KEY);
        if read_regular(&current, MANIFEST_MAX_BYTES).is_ok_and(|bytes| bytes.is_some_and(|bytes| has_digest(&bytes))) {
            return;
        }
        let copy = directory.join(big_data_file(&format!("{MANIFEST_KEY}-{recorded}")));
        if let Ok(Some(bytes)) = read_regular(&copy, MANIFEST_MAX_BYTES)
            && has_digest(&bytes)
            && durable::replace(&current, &bytes, 0o600, Durability::Durable).is_ok()
        {
            tracing::info!(image.id = %image, "current manifest restored");
        }
    }

    fn remove_stale_files(&self) {
        let layers = self.layers_dir();
        for name in names_in(&layers) {
            if self.staging().is_stale_file(&name) {
                let _ = std::fs::remove_file(layers.join(name));
            }
        }
        let image_stores = self.own_images_dirs().map(|directory| (directory, "images.json"));
        for (directory, own) in image_stores.chain([
            (layers, "layers.json"),
            (self.beneath(self.root(), CONTAINERS), "containers.json"),
            (self.beneath(self.runroot(), LAYERS), "mountpoints.json"),
            // Where a transient store has its volatile tables.
            (self.beneath(self.runroot(), LAYERS), "layers.json"),
            (self.beneath(self.runroot(), CONTAINERS), "containers.json"),
        ]) {
            // Ours alone are called like this, with the id of the writing process; a living one is not disturbed.
            for name in names_in(&directory) {
                let is_own = name.starts_with(TEMPORARY_PREFIX) && name.contains(own);
                let writer = name.rsplit('-').nth(1).and_then(|pid| pid.parse::<u32>().ok());
                if is_own && writer.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                    let _ = std::fs::remove_file(directory.join(name));
                }
            }
        }
    }
}

fn ids_in<R: Record>(path: &Path) -> Vec<String> {
    let Ok(Some(bytes)) = read_regular(path, u64::from(u32::MAX)) else { return Vec::new() };
    let rows: Vec<R> = serde_json::from_slice(&bytes).unwrap_or_default();
    rows.iter().map(|row| row.id().to_owned()).collect()
}

pub(crate) fn names_in(path: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}
