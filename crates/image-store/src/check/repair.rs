//! The repair of a store: what a check found damaged is removed, and what depends on it; everything else stays.
//!
//! In this order: containers, images, layers, what belongs to nobody. What runs is never removed, nor what it lies on.

use std::collections::HashSet;

use domain::id::{ContainerId, ImageId, LayerId};
use thiserror::Error;

use super::{Damage, Report, Stray, StrayKind};
use crate::error::{PathError, RemoveContainerError, RemoveImageError};
use crate::layers::{RemoveLayers, chain_of};
use crate::records::LayerRecord;
use crate::staging::{StagingDir, remove_tree};
use crate::store::{DIRECTORY_MODE_MASK, Store};
use crate::table::{Guard, RecordsError};

/// Whether damaged containers are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnContainers {
    /// They stay, and with them the images and layers they are made of.
    Keep,
    /// Those that do not run go.
    Remove,
}

/// How a store is repaired.
pub struct RepairOptions<'a> {
    /// Whether damaged containers are removed.
    pub containers: OnContainers,
    /// Whether something of a container lives; one whose root file system is mounted counts as living without being
    /// asked for.
    pub is_alive: &'a dyn Fn(&ContainerId) -> bool,
}

/// Why something damaged stays.
#[derive(Debug, Error)]
pub enum RepairError {
    /// A container that runs.
    #[error("container {container} is damaged and stays, because it runs")]
    Alive {
        /// The container.
        container: String,
    },
    /// An image or layer that a container which stays is made of.
    #[error("{what} {id} is damaged and stays, because container {container} is made of it")]
    InUse {
        /// `image` or `layer`.
        what: &'static str,
        /// Its id.
        id: String,
        /// The container.
        container: String,
    },
    /// A container could not be removed.
    #[error("remove a damaged container")]
    Container(#[source] RemoveContainerError),
    /// An image could not be removed.
    #[error("remove a damaged image")]
    Image(#[source] RemoveImageError),
    /// A layer could not be removed.
    #[error("remove damaged layer {layer}")]
    Layer {
        /// The layer.
        layer: String,
        #[source]
        /// Why.
        source: PathError,
    },
    /// What belongs to nobody could not be removed.
    #[error("tidy up")]
    Stray(#[source] PathError),
    /// The records could not be read or written.
    #[error("repair the store")]
    Records(#[source] RecordsError),
}

impl RepairError {
    /// Whether something failed; otherwise it was left alone on purpose.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        !matches!(self, Self::Alive { .. } | Self::InUse { .. })
    }
}

impl Store {
    /// Removes what `report` names, but nothing of additional stores. What stays although it is damaged is returned.
    ///
    /// A daemon may serve meanwhile; a report that is old removes what has been made anew since, which costs a pull.
    pub fn repair(&self, report: &Report, options: &RepairOptions<'_>) -> Vec<RepairError> {
        let mut errors = Vec::new();
        if options.containers == OnContainers::Remove {
            for id in report.containers.keys() {
                self.repair_container(id, options, &mut errors);
            }
        }
        for id in report.images.keys() {
            let Ok(image) = ImageId::parse(id) else { continue };
            match self.remove_image(&image) {
                Ok(()) => {}
                Err(RemoveImageError::InUse { container, .. }) => {
                    errors.push(RepairError::InUse { what: "image", id: id.clone(), container });
                }
                Err(error) => errors.push(RepairError::Image(error)),
            }
        }
        if let Err(error) = self.repair_layers(report, &mut errors) {
            errors.push(RepairError::Records(error));
        }
        self.repair_strays(report, &mut errors);
        errors
    }

    fn repair_container(&self, id: &str, options: &RepairOptions<'_>, errors: &mut Vec<RepairError>) {
        let Ok(container) = ContainerId::parse(id) else { return };
        match self.is_mounted(&container) {
            Ok(is_mounted) if is_mounted || (options.is_alive)(&container) => {
                errors.push(RepairError::Alive { container: id.to_owned() });
            }
            Ok(_) => errors.extend(self.remove_container(&container).err().map(RepairError::Container)),
            Err(error) => errors.push(RepairError::Records(error)),
        }
    }

    /// Whether the root file system of a container is mounted, as far as can be seen; if not, it is taken for mounted.
    pub fn is_mounted(&self, container: &ContainerId) -> Result<bool, RecordsError> {
        let containers = self.containers.read()?;
        let Some(row) = containers.find(container.as_str()) else { return Ok(false) };
        if LayerId::parse(&row.layer).is_err() {
            return Ok(false);
        }
        Ok(self.driver.is_mounted(&row.layer).unwrap_or(true))
    }

    fn repair_layers(&self, report: &Report, errors: &mut Vec<RepairError>) -> Result<(), RecordsError> {
        let mut away: Vec<StagingDir> = Vec::new();
        let mut layers = self.layers.write()?;
        let images = self.images.read()?;
        let containers = self.containers.read()?;
        let damaged: HashSet<&str> = report.layers.keys().map(String::as_str).collect();
        // What lies on a damaged layer goes with it.
        let mut doomed: Vec<String> = layers
            .iter()
            .filter(|row| chain_of(&layers, &row.id).iter().any(|id| damaged.contains(id.as_str())))
            .map(|row| row.id.clone())
            .collect();
        let is_image_kept = |id: &String| images.iter().any(|row| chain_of(&layers, &row.layer).contains(id));
        doomed.retain(|id| {
            let user = containers.iter().find(|row| chain_of(&layers, &row.layer).contains(id));
            if let Some(user) = user {
                // Told once, of the layer that is damaged itself.
                if damaged.contains(id.as_str()) {
                    let (id, container) = (id.clone(), user.id.clone());
                    errors.push(RepairError::InUse { what: "layer", id, container });
                }
            }
            // An image that stayed has been told of.
            user.is_none() && !is_image_kept(id)
        });
        for id in &doomed {
            if LayerId::parse(id).is_ok() {
                let _ = self.driver.unmount(id);
            }
        }
        self.remove_damaged(&mut layers, &doomed, &mut away, errors)?;
        for (id, list) in &report.layers {
            let is_known = layers.find(id).is_some();
            if is_known || LayerId::parse(id).is_err() || !list.iter().any(|it| matches!(it, Damage::Unaccounted)) {
                continue;
            }
            if self.driver.is_mounted(id).unwrap_or(true) {
                tracing::warn!(layer.id = id, "a layer no record mentions is mounted and stays");
                continue;
            }
            match self.take_layer_files(id) {
                Ok(taken) => away.extend(taken),
                Err(source) => errors.push(RepairError::Layer { layer: id.clone(), source }),
            }
        }
        drop((containers, images, layers));
        drop(away);
        Ok(())
    }

    fn remove_damaged(
        &self,
        layers: &mut Guard<'_, LayerRecord>,
        doomed: &[String],
        away: &mut Vec<StagingDir>,
        errors: &mut Vec<RepairError>,
    ) -> Result<(), RecordsError> {
        let (named, foreign): (Vec<String>, Vec<String>) =
            doomed.iter().cloned().partition(|id| LayerId::parse(id).is_ok());
        match self.remove_layers(layers, &named, away) {
            Ok(()) => {}
            Err(RemoveLayers::Records(error)) => return Err(error),
            Err(RemoveLayers::Path(source)) => {
                errors.push(RepairError::Layer { layer: named.first().cloned().unwrap_or_default(), source });
            }
        }
        if !foreign.is_empty() {
            tracing::warn!(layers = ?foreign, "damaged layers of a kind this store does not know stay");
        }
        Ok(())
    }

    /// By their places, not by the report: what has got a record since is nobody's any more.
    fn repair_strays(&self, report: &Report, errors: &mut Vec<RepairError>) {
        // A layer that has lost its `link` file leaves its short name behind when it goes.
        let is_reported =
            |own: &Stray| own.what == StrayKind::Link || report.strays.iter().any(|stray| stray.path == own.path);
        let snapshot = match super::Snapshot::take(self) {
            Ok(snapshot) => snapshot,
            Err(error) => return errors.push(RepairError::Records(error)),
        };
        for stray in snapshot.strays.into_iter().filter(is_reported) {
            let path = &stray.path;
            let removed = match stray.what {
                StrayKind::Link => std::fs::remove_file(path).map_err(PathError::new("remove", path)),
                StrayKind::Mode(mode) => {
                    use std::os::unix::fs::PermissionsExt;
                    let mode = std::fs::Permissions::from_mode(mode & DIRECTORY_MODE_MASK);
                    std::fs::set_permissions(path, mode).map_err(PathError::new("set mode of", path))
                }
                StrayKind::LayerData if !path.is_dir() => {
                    std::fs::remove_file(path).map_err(PathError::new("remove", path))
                }
                // What is mounted in there is somebody's after all.
                StrayKind::ContainerData if has_mounts(path) => {
                    tracing::warn!(path = %path.display(), "a directory no record mentions has mounts and stays");
                    Ok(())
                }
                StrayKind::LayerData | StrayKind::ImageData | StrayKind::ContainerData | StrayKind::Staging => {
                    remove_tree(path)
                }
            };
            if let Err(error) = removed
                && error.source.kind() != std::io::ErrorKind::NotFound
            {
                errors.push(RepairError::Stray(error));
            }
        }
    }
}

fn has_mounts(path: &std::path::Path) -> bool {
    let prefix = format!("{}/", path.display());
    std::fs::read_to_string("/proc/self/mounts").map_or(true, |mounts| mounts.contains(&prefix))
}
