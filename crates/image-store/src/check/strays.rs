//! What lies in a store and belongs to nobody. Only names of a known shape are judged: the rest may be another tool's.

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use domain::id::{ContainerId, ImageId, LayerId};

use super::{Snapshot, Stray, StrayKind};
use crate::recovery::names_in;
use crate::store::{CONTAINERS, DIRECTORY_MODE_MASK, Store};

impl Store {
    /// To be called while the records are locked: everybody makes directories and their records under one lock.
    pub(super) fn find_strays(&self, snapshot: &mut Snapshot) {
        let layers: HashSet<String> = snapshot.layers.keys().cloned().chain(self.twin_layers()).collect();
        let mut strays: Vec<Stray> = Vec::new();
        let mut add = |path: PathBuf, what| strays.push(Stray { path, what });
        snapshot.unaccounted = self.driver.layers_on_disk();
        snapshot.unaccounted.retain(|id| !layers.contains(id));
        snapshot.unaccounted.sort();
        for path in self.driver.strays() {
            add(path, StrayKind::Link);
        }
        for name in names_in(&self.layers_dir()) {
            let id = name.strip_suffix(".tar-split.gz").unwrap_or(&name);
            if (LayerId::parse(id).is_ok() && !layers.contains(id)) || self.staging().is_stale_file(&name) {
                add(self.layers_dir().join(&name), StrayKind::LayerData);
            }
        }
        let images: HashSet<&str> = snapshot.images.iter().map(|row| row.id.as_str()).collect();
        for directory in self.own_images_dirs() {
            for id in names_in(&directory) {
                if ImageId::parse(&id).is_ok() && !images.contains(id.as_str()) {
                    add(directory.join(id), StrayKind::ImageData);
                }
            }
        }
        let own = snapshot.containers.iter().map(|row| row.id.clone());
        let containers: HashSet<String> = own.chain(self.twin_containers()).collect();
        for home in [self.root(), self.runroot()].map(|home| self.beneath(home, CONTAINERS)) {
            for id in names_in(&home) {
                if ContainerId::parse(&id).is_ok() && !containers.contains(&id) {
                    add(home.join(id), StrayKind::ContainerData);
                }
            }
        }
        let mut left = self.staging().left_by_the_dead();
        if self.driver.home() != self.driver.container_home() {
            left.extend(self.container_staging().left_by_the_dead());
        }
        for path in left {
            add(path, StrayKind::Staging);
        }
        for path in self.private_directories() {
            if let Some(mode) = open_mode(&path) {
                add(path, StrayKind::Mode(mode));
            }
        }
        strays.sort_by(|one, other| one.path.cmp(&other.path));
        snapshot.strays = strays;
    }
}

/// The mode of a directory that lets others do more than pass.
fn open_mode(path: &Path) -> Option<u32> {
    let mode = std::fs::symlink_metadata(path).ok()?.permissions().mode() & 0o7777;
    (mode & !DIRECTORY_MODE_MASK != 0).then_some(mode)
}
