//! Containers: recording, mounting, removing.
//!
//! Creating, and what opening the store does after a crash in each gap: the layer's directory is made (removed: no
//! record mentions it), its record is written (removed when volatile: no container has it), the container's
//! directories are made (used again), its record is written. Removing is the same backwards, and may be called again.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use domain::id::{ContainerId, ImageId, LayerId};
use domain::id_maps::{IdMaps, RootOwner};
use durable::Durability;
use jiff::Timestamp;
use serde_json::{Map, Value};
use sys::locks::RecordLock;

use crate::driver::{Below, MountAs, NewLayer};
use crate::error::{CreateContainerError, MountError, PathError, RemoveContainerError};
use crate::fault;
use crate::ids::{ContainerIds, MapRecord, let_pass, recorded_ids, user_namespace};
use crate::options::{Transient, VolatileMounts};
use crate::overlay::{LOWER_MAX, unmount_all};
use crate::random;
use crate::records::{ContainerRecord, LayerRecord, MountRecord};
use crate::staging::{StagingDir, remove_tree};
use crate::store::{STABLE, Store, VOLATILE};
use crate::table::{Guard, RecordsError};
use crate::types::{Container, NewContainer, Volatile};

fn to_container(file: usize, row: &ContainerRecord) -> Option<Container> {
    Some(Container {
        // Records with other ids are some other tool's.
        id: ContainerId::parse(&row.id).ok()?,
        names: row.names.clone(),
        image: ImageId::parse(&row.image).ok(),
        layer: LayerId::parse(&row.layer).ok(),
        metadata: row.metadata.clone(),
        created: row.created.parse().ok(),
        mount_label: row.flag_text("MountLabel"),
        process_label: row.flag_text("ProcessLabel"),
        volatile: if file == VOLATILE { Volatile::Yes } else { Volatile::No },
        ids: recorded_ids(row).ok().flatten(),
    })
}

fn make_private(path: &Path) -> Result<(), PathError> {
    DirBuilder::new().mode(0o700).recursive(true).create(path).map_err(PathError::new("make directory", path))
}

impl Store {
    /// All containers, of whichever tool.
    pub fn containers(&self) -> Result<Vec<Container>, RecordsError> {
        let containers = self.containers.read()?;
        let of_file = |file| containers.rows(file).iter().filter_map(move |row| to_container(file, row));
        Ok((0..containers.files()).flat_map(of_file).collect())
    }

    /// One container.
    pub fn container(&self, container: &ContainerId) -> Result<Option<Container>, RecordsError> {
        let containers = self.containers.read()?;
        Ok(containers.locate(container.as_str()).and_then(|(file, row)| to_container(file, row)))
    }

    /// Records a container and makes its read-write layer and its two directories.
    ///
    /// One in a user namespace: root of that namespace may pass through the directories, and all of them through those
    /// that containers share.
    pub fn create_container(&self, new: NewContainer) -> Result<Container, CreateContainerError> {
        let records = |source| CreateContainerError::Records { container: new.id.clone(), source };
        let path_error = |source| CreateContainerError::Path { container: new.id.clone(), source };
        let file = match (new.volatile, self.transient()) {
            (Volatile::No, Transient::No) => STABLE,
            (Volatile::Yes, _) | (_, Transient::Yes) => VOLATILE,
        };
        let id_lock = if new.ids == ContainerIds::Node { None } else { Some(self.id_lock().map_err(path_error)?) };
        let held = id_lock.as_ref().map(|lock| lock.hold(RecordLock::Exclusive)).transpose();
        let _choosing = held.map_err(PathError::new("lock ids of", self.root())).map_err(path_error)?;
        let mut layers = self.layers.write().map_err(records)?;
        let images = self.images.read().map_err(records)?;
        let mut containers = self.containers.write().map_err(records)?;
        check_free(&new, &layers, &containers)?;
        let no_image =
            |image: &ImageId| CreateContainerError::NoImage { container: new.id.clone(), image: image.clone() };
        let mut parent = String::new();
        if let Some(image) = &new.image {
            let row = images.find(image.as_str()).ok_or_else(|| no_image(image))?;
            parent.clone_from(&row.layer);
            if !parent.is_empty() && layers.find(&parent).is_none_or(LayerRecord::is_incomplete) {
                return Err(no_image(image));
            }
        }
        let below = if parent.is_empty() { None } else { Some(self.driver.below(&parent).map_err(path_error)?) };
        if let (Some(below), Some(image)) = (&below, &new.image)
            && below.depth > LOWER_MAX
        {
            return Err(CreateContainerError::TooDeep { container: new.id.clone(), image: image.clone() });
        }
        let layer = random::layer_id()
            .map_err(PathError::new("draw a name in", self.driver.container_home()))
            .map_err(path_error)?;
        let ids = self
            .choose_ids(&new.ids, &containers)
            .map_err(|source| CreateContainerError::Ids { container: new.id.clone(), source })?;
        let root = ids.as_ref().map(IdMaps::root);
        let layer_ids = ids.as_ref().filter(|_| !self.driver.has_mounts());
        let now = Timestamp::now().to_string();
        let layer_row = LayerRecord {
            id: layer.to_string(),
            names: new.layer_name.iter().cloned().collect(),
            parent,
            mount_label: new.mount_label.clone(),
            created: now.clone(),
            // An id-mapped mount leaves the files as they are.
            uidmap: layer_ids.map(|ids| MapRecord::list(ids.uids())).unwrap_or_default(),
            gidmap: layer_ids.map(|ids| MapRecord::list(ids.gids())).unwrap_or_default(),
            ..LayerRecord::default()
        };
        let row = record_of(&new, &layer, now, file, ids.as_ref());
        let container = to_container(file, &row);
        let made = self
            .make_container_layer(&layer, below.as_ref(), file, ids.as_ref(), &new.mount_label)
            .map_err(path_error)
            .and_then(|()| {
                layers.rows_mut(file).push(layer_row);
                layers.save(file).map_err(records)
            })
            .and_then(|()| {
                for path in [self.container_dir(&new.id), self.container_run_dir(&new.id)] {
                    fault::step("make container directory")
                        .map_err(PathError::new("make directory", &path))
                        .and_then(|()| make_private(&path))
                        .map_err(path_error)?;
                }
                if let Some(root) = root {
                    self.let_root_pass(&new.id, root).map_err(path_error)?;
                }
                containers.rows_mut(file).push(row);
                containers.save(file).map_err(records)
            });
        if let Err(error) = made {
            if !fault::is_dead() {
                self.undo_create(&new.id, &layer, &mut layers, file);
            }
            return Err(error);
        }
        // The id was parsed before it was written down.
        container.ok_or(CreateContainerError::Exists { container: new.id })
    }

    fn let_root_pass(&self, id: &ContainerId, root: RootOwner) -> Result<(), PathError> {
        for base in [self.container_base(id), self.container_run_base(id)] {
            let_pass(&base.join("userdata"), root)?;
            let_pass(&base, root)?;
        }
        self.let_containers_pass()
    }

    fn make_container_layer(
        &self,
        layer: &LayerId,
        below: Option<&Below>,
        file: usize,
        ids: Option<&IdMaps>,
        label: &str,
    ) -> Result<(), PathError> {
        let durability = if file == STABLE { Durability::Durable } else { Durability::Volatile };
        self.driver.create(&NewLayer { id: layer.as_str(), below, durability, ids, label }, self.container_staging())
    }

    fn undo_create(&self, id: &ContainerId, layer: &LayerId, layers: &mut Guard<'_, LayerRecord>, file: usize) {
        layers.rows_mut(file).retain(|row| row.id != layer.as_str());
        let saved = layers.save(file);
        let taken = self.take_layer_files(layer.as_str());
        let removed = remove_tree(&self.container_base(id)).and(remove_tree(&self.container_run_base(id)));
        if saved.is_err() || taken.is_err() || removed.is_err() {
            tracing::warn!(container.id = %id, "parts of a container not created stay until the next start");
        }
    }

    /// Mounts a container's root file system, unless it is mounted, and returns where.
    ///
    /// Not for a container that runs: if some other tool detached the mount, the container still has it in its own
    /// mount namespace, and two overlays on one upper directory disagree. Ask [`Store::mounted_path`] there.
    pub fn mount(&self, container: &ContainerId) -> Result<PathBuf, MountError> {
        let (row, file) = self.find_for_mount(container)?;
        let records = |source| MountError::Records { container: container.clone(), source };
        let layers = self.layers.read().map_err(records)?;
        if layers.find(&row.layer).is_none() {
            return Err(MountError::NoLayer { container: container.clone(), layer: row.layer });
        }
        let mut mounts = self.mounts.write().map_err(records)?;
        let path_error = |source| MountError::Path { container: container.clone(), source };
        let merged = self.driver.merged(&row.layer);
        let is_mounted = self.driver.is_mounted(&row.layer).map_err(path_error)?;
        if !is_mounted {
            let is_volatile = file == VOLATILE && self.volatile_mounts() == VolatileMounts::Allowed;
            let label = row.flag_text("MountLabel");
            let no_ids = |source| MountError::Ids { container: container.clone(), source };
            let ids = recorded_ids(&row).map_err(no_ids)?;
            let users = ids.as_ref().map(user_namespace).transpose().map_err(io::Error::other).map_err(no_ids)?;
            let users = users.as_ref().map(AsFd::as_fd);
            let how = MountAs { label: &label, is_volatile, users };
            self.driver.mount(&row.layer, &how).map_err(path_error)?;
        }
        let is_counted = mounts.find(&row.layer).is_some_and(|mount| mount.count > 0);
        if !(is_mounted && is_counted) {
            let rows = mounts.rows_mut(STABLE);
            rows.retain(|mount| mount.id != row.layer);
            rows.push(MountRecord {
                id: row.layer.clone(),
                path: merged.to_string_lossy().into_owned(),
                count: 1,
                ..MountRecord::default()
            });
            if let Err(error) = mounts.save(STABLE) {
                if !is_mounted && !fault::is_dead() {
                    let _ = self.driver.unmount(&row.layer);
                }
                return Err(records(error));
            }
        }
        Ok(merged)
    }

    /// Where a container's root file system is mounted, if it is: asked of the kernel.
    pub fn mounted_path(&self, container: &ContainerId) -> Result<Option<PathBuf>, MountError> {
        let (row, _) = self.find_for_mount(container)?;
        let merged = self.driver.merged(&row.layer);
        let is_there = if self.driver.has_mounts() { self.driver.is_mounted(&row.layer) } else { Ok(merged.is_dir()) };
        let is_there = is_there.map_err(|source| MountError::Path { container: container.clone(), source })?;
        Ok(is_there.then_some(merged))
    }

    /// Takes back one mount, ours or that of another tool that counts; the last one unmounts, in use or not. Fine if
    /// nothing is mounted.
    pub fn unmount(&self, container: &ContainerId) -> Result<(), MountError> {
        let (row, _) = self.find_for_mount(container)?;
        let records = |source| MountError::Records { container: container.clone(), source };
        let _layers = self.layers.read().map_err(records)?;
        let mut mounts = self.mounts.write().map_err(records)?;
        self.give_back(&row.layer, &mut mounts).map_err(|error| match error {
            UnmountLayer::Path(source) => MountError::Path { container: container.clone(), source },
            UnmountLayer::Records(source) => records(source),
        })
    }

    pub(crate) fn unmount_layer(&self, layer: &str, mounts: &mut Guard<'_, MountRecord>) -> Result<(), UnmountLayer> {
        fault::step("unmount").map_err(PathError::new("unmount", layer)).map_err(UnmountLayer::Path)?;
        self.driver.unmount(layer).map_err(UnmountLayer::Path)?;
        if mounts.find(layer).is_some() {
            mounts.rows_mut(STABLE).retain(|mount| mount.id != layer);
            mounts.save(STABLE).map_err(UnmountLayer::Records)?;
        }
        Ok(())
    }

    fn find_for_mount(&self, container: &ContainerId) -> Result<(ContainerRecord, usize), MountError> {
        let containers =
            self.containers.read().map_err(|source| MountError::Records { container: container.clone(), source })?;
        let found = containers.locate(container.as_str()).map(|(file, row)| (row.clone(), file));
        let (row, file) = found.ok_or_else(|| MountError::NoContainer { container: container.clone() })?;
        // The layer's name becomes part of paths.
        if LayerId::parse(&row.layer).is_err() {
            return Err(MountError::NoLayer { container: container.clone(), layer: row.layer });
        }
        Ok((row, file))
    }

    /// Removes a container with its layer, both its directories and its record; what is still mounted is unmounted,
    /// in use or not. One that is not there is removed already, and so are directories without a record.
    pub fn remove_container(&self, container: &ContainerId) -> Result<(), RemoveContainerError> {
        let records = |source| RemoveContainerError::Records { container: container.clone(), source };
        let path_error = |source| RemoveContainerError::Path { container: container.clone(), source };
        let unmount_error = |error| match error {
            UnmountLayer::Path(source) => path_error(source),
            UnmountLayer::Records(source) => records(source),
        };
        self.release_images(container).map_err(unmount_error)?;
        let layer = {
            let containers = self.containers.read().map_err(records)?;
            containers.find(container.as_str()).map(|row| row.layer.clone())
        };
        let layer = layer.filter(|layer| LayerId::parse(layer).is_ok());
        if let Some(layer) = &layer {
            let _layers = self.layers.read().map_err(records)?;
            let mut mounts = self.mounts.write().map_err(records)?;
            self.unmount_layer(layer, &mut mounts).map_err(unmount_error)?;
        }
        // Without locks, because there may be much in them; the record still says whose they are.
        for path in [self.container_run_base(container), self.container_base(container)] {
            fault::step("remove container directory")
                .map_err(PathError::new("remove", &path))
                .and_then(|()| remove_with_mounts(&path))
                .map_err(path_error)?;
        }
        let mut away: Option<StagingDir> = None;
        let mut layers = self.layers.write().map_err(records)?;
        let mut containers = self.containers.write().map_err(records)?;
        if let Some(layer) = &layer {
            for file in 0..layers.files() {
                if layers.rows(file).iter().any(|row| row.id == *layer) {
                    layers.rows_mut(file).retain(|row| row.id != *layer);
                    layers.save(file).map_err(records)?;
                }
            }
            away = self.take_layer_files(layer).map_err(path_error)?;
        }
        for file in 0..containers.files() {
            if containers.rows(file).iter().any(|row| row.id == container.as_str()) {
                containers.rows_mut(file).retain(|row| row.id != container.as_str());
                containers.save(file).map_err(records)?;
            }
        }
        drop((containers, layers));
        drop(away);
        Ok(())
    }
}

/// Why a layer could not be unmounted.
pub(crate) enum UnmountLayer {
    Path(PathError),
    Records(RecordsError),
}

fn check_free(
    new: &NewContainer,
    layers: &Guard<'_, LayerRecord>,
    containers: &Guard<'_, ContainerRecord>,
) -> Result<(), CreateContainerError> {
    if containers.find(new.id.as_str()).is_some() {
        return Err(CreateContainerError::Exists { container: new.id.clone() });
    }
    let in_use = |name: &str, holder: &str| CreateContainerError::NameInUse {
        container: new.id.clone(),
        name: name.to_owned(),
        holder: holder.to_owned(),
    };
    for name in &new.names {
        if let Some(holder) = containers.find_name(name) {
            return Err(in_use(name, &holder.id));
        }
    }
    if let Some(name) = &new.layer_name
        && let Some(holder) = layers.find_name(name)
    {
        return Err(in_use(name, &holder.id));
    }
    Ok(())
}

fn record_of(
    new: &NewContainer,
    layer: &LayerId,
    created: String,
    file: usize,
    ids: Option<&IdMaps>,
) -> ContainerRecord {
    let mut flags = Map::new();
    flags.insert("MountLabel".to_owned(), Value::String(new.mount_label.clone()));
    flags.insert("ProcessLabel".to_owned(), Value::String(new.process_label.clone()));
    if file == VOLATILE {
        flags.insert("Volatile".to_owned(), Value::Bool(true));
    }
    ContainerRecord {
        id: new.id.to_string(),
        names: new.names.clone(),
        image: new.image.as_ref().map(ToString::to_string).unwrap_or_default(),
        layer: layer.to_string(),
        metadata: new.metadata.clone(),
        created,
        uidmap: ids.map(|ids| MapRecord::list(ids.uids())).unwrap_or_default(),
        gidmap: ids.map(|ids| MapRecord::list(ids.gids())).unwrap_or_default(),
        flags,
        ..ContainerRecord::default()
    }
}

/// Removes a directory; if something beneath it is mounted, that is unmounted first.
fn remove_with_mounts(path: &Path) -> Result<(), PathError> {
    match remove_tree(path) {
        Err(error) if error.source.kind() == io::ErrorKind::ResourceBusy => {}
        other => return other,
    }
    unmount_beneath(path)?;
    remove_tree(path)
}

/// Takes away everything mounted strictly beneath `path`.
pub(crate) fn unmount_beneath(path: &Path) -> Result<(), PathError> {
    let table = std::fs::read("/proc/self/mountinfo").map_err(PathError::new("read", "/proc/self/mountinfo"))?;
    let mut beneath = mounts_beneath(&table, path);
    // Later ones may lie on earlier ones.
    beneath.reverse();
    for target in beneath {
        unmount_all(&target)?;
    }
    Ok(())
}

/// Mount points strictly beneath `path`, in the order they were mounted. Source: proc_pid_mountinfo(5).
fn mounts_beneath(table: &[u8], path: &Path) -> Vec<PathBuf> {
    let fields = table.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    fields
        .map(|field| PathBuf::from(unescape(field)))
        .filter(|target| target.starts_with(path) && target != path)
        .collect()
}

/// Octal escapes of space, tab, newline and backslash.
fn unescape(field: &[u8]) -> std::ffi::OsString {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        if *first == b'\\'
            && let Some(digits) = after.get(..3)
            && digits.iter().all(|digit| (b'0'..=b'7').contains(digit))
        {
            let value = digits.iter().fold(0_u32, |value, digit| value * 8 + u32::from(digit - b'0'));
            bytes.push(u8::try_from(value & 0xff).unwrap_or(b'?'));
            rest = &after[3..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    std::ffi::OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_beneath_a_directory_are_found() {
        let table = b"1 2 0:1 / /run/a rw - tmpfs t rw\n\
            3 1 0:2 / /run/a/userdata/shm rw - tmpfs t rw\n\
            4 1 0:3 / /run/a/user\\040data rw - tmpfs t rw\n\
            5 1 0:4 / /run/ab rw - tmpfs t rw\n";
        let found = mounts_beneath(table, Path::new("/run/a"));
        assert_eq!(found, [PathBuf::from("/run/a/userdata/shm"), PathBuf::from("/run/a/user data")]);
    }
}
