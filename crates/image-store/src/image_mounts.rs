//! Images mounted for containers: read-only, at the `merged` directory of their topmost layer.
//!
//! Counted in `mountpoints.json` as everybody's mounts are; podman may hold some of the counts. Which container holds
//! which of ours says `<run root>/overlay-containers/<id>/image-mounts`, an image and its layer a line, which goes with the
//! container. Order, and what a crash leaves in each gap:
//!
//! ```text
//! mounted      a mount without a count: the next one to mount the image takes it over
//! counted      one count too many, which goes with the image, as all of CRI-O's do
//! held         given back when the container is removed
//! ```
//!
//! Giving back is the same backwards. Source: containers/storage `MountImage`, `UnmountImage`.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use domain::id::{ContainerId, ImageId, LayerId};
use durable::Durability;

use crate::containers::{UnmountLayer, unmount_beneath};
use crate::error::{MountImageError, PathError};
use crate::fault;
use crate::ids::{recorded_ids, user_namespace};
use crate::images::{read_regular, replace_error};
use crate::records::{ContainerRecord, ImageRecord, LayerRecord, MountRecord};
use crate::store::{STABLE, Store};
use crate::table::Guard;

/// Beside the container's run directory, where no engine writes.
const HELD_FILE: &str = "image-mounts";
/// A line has 130 bytes; a container with eight thousand image volumes is none.
const HELD_MAX_BYTES: u64 = 1 << 20;

/// One count of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    image: ImageId,
    layer: LayerId,
}

fn parse_held(text: &[u8]) -> Vec<Held> {
    let text = String::from_utf8_lossy(text);
    let line = |line: &str| {
        let (image, layer) = line.split_once(' ')?;
        Some(Held { image: ImageId::parse(image).ok()?, layer: LayerId::parse(layer).ok()? })
    };
    text.lines().filter_map(line).collect()
}

impl Store {
    /// Where an image is mounted, or would be.
    pub fn image_mount_point(&self, image: &ImageId) -> Result<PathBuf, MountImageError> {
        let layers = self.layers.read().map_err(MountImageError::Records)?;
        let images = self.images.read().map_err(MountImageError::Records)?;
        Ok(self.driver.merged(top_layer(&layers, &images, image)?.as_str()))
    }

    /// Mounts an image read-only for a container, unless it is, and returns where.
    ///
    /// The container holds the mount until it is removed; asking again changes nothing. Its record must exist.
    pub fn mount_image(&self, image: &ImageId, holder: &ContainerId) -> Result<PathBuf, MountImageError> {
        let layers = self.layers.read().map_err(MountImageError::Records)?;
        // Held until the mount is, so that no removal of the image comes in between.
        let images = self.images.read().map_err(MountImageError::Records)?;
        let containers = self.containers.read().map_err(MountImageError::Records)?;
        if containers.find(holder.as_str()).is_none() {
            return Err(MountImageError::NoContainer { container: holder.clone() });
        }
        let layer = top_layer(&layers, &images, image)?;
        let label = layers.find(layer.as_str()).map(|row| row.mount_label.clone()).unwrap_or_default();
        let mut mounts = self.mounts.write().map_err(MountImageError::Records)?;
        let failed = |source| MountImageError::Path { image: image.clone(), source };
        let mut held = self.held_by(holder).map_err(failed)?;
        let merged = self.driver.merged(layer.as_str());
        let is_mounted = self.driver.is_mounted(layer.as_str()).map_err(failed)?;
        let is_held = held.iter().any(|held| held.image == *image && held.layer == layer);
        if is_mounted && is_held {
            return Ok(merged);
        }
        if !is_mounted {
            self.driver.mount_read_only(layer.as_str(), &label).map_err(failed)?;
        }
        let before = mounts.find(layer.as_str()).map_or(0, |mount| mount.count).max(0);
        let row = MountRecord {
            id: layer.to_string(),
            path: merged.to_string_lossy().into_owned(),
            // A count of what the kernel does not have mounted any more is of before a reboot.
            count: if is_mounted { before.saturating_add(1) } else { 1 },
            ..MountRecord::default()
        };
        let rows = mounts.rows_mut(STABLE);
        rows.retain(|mount| mount.id != row.id);
        rows.push(row);
        let counted = mounts.save(STABLE).map_err(MountImageError::Records);
        let done = counted.and_then(|()| {
            if !is_held {
                held.push(Held { image: image.clone(), layer: layer.clone() });
            }
            self.hold(holder, &held).map_err(failed)
        });
        if let Err(error) = done {
            if !fault::is_dead() {
                let _ = self.give_back(layer.as_str(), &mut mounts);
            }
            return Err(error);
        }
        Ok(merged)
    }

    /// Mounts an image that a container holds once more, at a directory of that container, with the ids of its user
    /// namespace; the directory is made. It goes with what the container holds.
    ///
    /// The mount everybody shares shows the ids of the node, and an overlay takes no other ones afterwards.
    pub fn mount_image_mapped(
        &self,
        image: &ImageId,
        holder: &ContainerId,
        target: &Path,
    ) -> Result<(), MountImageError> {
        let layers = self.layers.read().map_err(MountImageError::Records)?;
        let images = self.images.read().map_err(MountImageError::Records)?;
        let containers = self.containers.read().map_err(MountImageError::Records)?;
        let no_container = || MountImageError::NoContainer { container: holder.clone() };
        let row = containers.find(holder.as_str()).ok_or_else(no_container)?;
        let layer = top_layer(&layers, &images, image)?;
        let label = layers.find(layer.as_str()).map(|row| row.mount_label.clone()).unwrap_or_default();
        let failed = |source| MountImageError::Path { image: image.clone(), source };
        let no_ids = || io::Error::new(io::ErrorKind::InvalidInput, "the container has no user namespace");
        let users = recorded_ids(row)
            .and_then(|ids| user_namespace(&ids.ok_or_else(no_ids)?).map_err(io::Error::other))
            .map_err(PathError::new("map ids at", target))
            .map_err(failed)?;
        std::fs::create_dir(target).map_err(PathError::new("make directory", target)).map_err(failed)?;
        self.driver.mount_mapped(layer.as_str(), &label, target, users.as_fd()).map_err(failed)
    }

    /// Takes back one mount of a layer; the last one unmounts, in use or not.
    pub(crate) fn give_back(&self, layer: &str, mounts: &mut Guard<'_, MountRecord>) -> Result<(), UnmountLayer> {
        if mounts.find(layer).is_some_and(|mount| mount.count > 1) {
            for mount in mounts.rows_mut(STABLE).iter_mut().filter(|mount| mount.id == layer) {
                mount.count -= 1;
            }
            return mounts.save(STABLE).map_err(UnmountLayer::Records);
        }
        self.unmount_layer(layer, mounts)
    }

    /// Gives back every image a container holds, and whatever of them is mounted in its run directory.
    pub(crate) fn release_images(&self, container: &ContainerId) -> Result<(), UnmountLayer> {
        if !self.held_file(container).exists() {
            return Ok(());
        }
        // Before anything of the directory is deleted: deleting goes through mounts.
        unmount_beneath(&self.container_run_base(container)).map_err(UnmountLayer::Path)?;
        let _layers = self.layers.read().map_err(UnmountLayer::Records)?;
        let mut mounts = self.mounts.write().map_err(UnmountLayer::Records)?;
        let mut held = self.held_by(container).map_err(UnmountLayer::Path)?;
        while let Some(last) = held.pop() {
            self.hold(container, &held).map_err(UnmountLayer::Path)?;
            if let Err(error) = self.give_back(last.layer.as_str(), &mut mounts) {
                held.push(last);
                let _ = self.hold(container, &held);
                return Err(error);
            }
        }
        Ok(())
    }

    /// A container that holds the image.
    pub(crate) fn holder_of(
        &self,
        image: &ImageId,
        containers: &Guard<'_, ContainerRecord>,
    ) -> Result<Option<String>, PathError> {
        for row in containers.iter() {
            let Ok(id) = ContainerId::parse(&row.id) else { continue };
            if self.held_by(&id)?.iter().any(|held| held.image == *image) {
                return Ok(Some(row.id.clone()));
            }
        }
        Ok(None)
    }

    /// Unmounts an image that is about to be removed, whoever still counts on it.
    pub(crate) fn unmount_removed(&self, layer: &str) -> Result<(), UnmountLayer> {
        let mut mounts = self.mounts.write().map_err(UnmountLayer::Records)?;
        if mounts.find(layer).is_none() && !self.driver.is_mounted(layer).map_err(UnmountLayer::Path)? {
            return Ok(());
        }
        self.driver.unmount(layer).map_err(UnmountLayer::Path)?;
        mounts.rows_mut(STABLE).retain(|mount| mount.id != layer);
        mounts.save(STABLE).map_err(UnmountLayer::Records)
    }

    fn held_file(&self, container: &ContainerId) -> PathBuf {
        self.container_run_base(container).join(HELD_FILE)
    }

    fn held_by(&self, container: &ContainerId) -> Result<Vec<Held>, PathError> {
        let path = self.held_file(container);
        match read_regular(&path, HELD_MAX_BYTES) {
            Ok(Some(text)) => Ok(parse_held(&text)),
            Ok(None) => Err(PathError::new("read", &path)(io::Error::from(io::ErrorKind::FileTooLarge))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(PathError::new("read", &path)(error)),
        }
    }

    fn hold(&self, container: &ContainerId, held: &[Held]) -> Result<(), PathError> {
        let path: &Path = &self.held_file(container);
        let text: String = held.iter().map(|held| format!("{} {}\n", held.image, held.layer)).collect();
        fault::step("hold image").map_err(PathError::new("write", path))?;
        durable::replace(path, text.as_bytes(), 0o600, Durability::Volatile).map_err(replace_error(path))
    }
}

fn top_layer(
    layers: &Guard<'_, LayerRecord>,
    images: &Guard<'_, ImageRecord>,
    image: &ImageId,
) -> Result<LayerId, MountImageError> {
    let row = images.find(image.as_str()).ok_or_else(|| MountImageError::NoImage { image: image.clone() })?;
    let no_layer = || MountImageError::NoLayer { image: image.clone(), layer: row.layer.clone() };
    let layer = LayerId::parse(&row.layer).map_err(|_| no_layer())?;
    if layers.find(layer.as_str()).is_none_or(LayerRecord::is_incomplete) {
        return Err(no_layer());
    }
    Ok(layer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_lines_hold_nothing() {
        let (image, layer) = ("a".repeat(64), "b".repeat(64));
        let text = format!("{image} {layer}\n{image}\n../x {layer}\n{image} ../../y\n\u{0}\n");
        let held = parse_held(text.as_bytes());
        assert_eq!(held.len(), 1);
        assert_eq!((held[0].image.as_str(), held[0].layer.as_str()), (image.as_str(), layer.as_str()));
    }
}
