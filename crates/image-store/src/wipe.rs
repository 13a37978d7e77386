//! Removing a whole store.
//!
//! Order, and what a crash leaves: containers and images go one by one as ever; then the record files, those of images
//! first (the rest is found by a check); then the directory.

use std::io;

use crate::containers::unmount_beneath;
use crate::error::PathError;
use crate::staging::remove_tree;
use crate::store::{CONTAINERS, IMAGES, LAYERS, Store};

impl Store {
    /// Removes the graph root with all it holds, of whichever tool, and takes away every mount beneath it, in use or
    /// not. What cannot be removed in good order is told and removed without; a graph root that is a mount stays, empty.
    pub fn wipe(self) -> Result<(), PathError> {
        for container in self.containers().unwrap_or_default() {
            if let Err(error) = self.remove_container(&container.id) {
                tracing::info!(container.id = %container.id, %error, "a container could not be removed in good order");
            }
        }
        for image in self.images().unwrap_or_default() {
            if let Err(error) = self.remove_image(&image.id) {
                tracing::info!(image.id = %image.id, %error, "an image could not be removed in good order");
            }
        }
        unmount_beneath(self.root())?;
        for (kind, files) in [
            (IMAGES, &["images.json"][..]),
            (LAYERS, &["layers.json", "volatile-layers.json"]),
            (CONTAINERS, &["containers.json", "volatile-containers.json"]),
        ] {
            for file in files {
                let path = self.beneath(self.root(), kind).join(file);
                match std::fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(PathError::new("remove", path)(error));
                    }
                    _ => {}
                }
            }
        }
        let root = self.root().to_owned();
        drop(self);
        match remove_tree(&root) {
            Err(error) if error.source.kind() == io::ErrorKind::ResourceBusy && is_empty(&root) => Ok(()),
            other => other,
        }
    }
}

fn is_empty(path: &std::path::Path) -> bool {
    std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}
