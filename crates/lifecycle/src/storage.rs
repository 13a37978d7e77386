//! The store as a whole: checked, repaired, wiped; by the verbs `check` and `wipe`, and when the daemon starts after an
//! unclean end.
//!
//! What lives is never taken away but by force: a container whose first process runs or whose root is mounted, of
//! whichever tool, and a sandbox whose namespaces are there or one of whose containers lives.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use config::Config;
use domain::id::{ContainerId, ImageId};
use image_store::{
    CheckOptions, Depth, OnContainers, OnOpen, OpenError, RecordsError, RepairError, RepairOptions, Report, Store,
    StoreOptions, VolatileMounts,
};
use runtime_client::process;
use state_store::metadata::RecordMetadata;
use state_store::spec::load_spec;
use state_store::state::load_state;
use thiserror::Error;

use crate::puller::LEFTOVERS_KEPT;
use crate::undo::chain;

/// Layers nothing uses count as damage when they are older. Source: containers/storage.
const UNREFERENCED_AGE: Duration = Duration::from_secs(24 * 3600);
/// Lines of damage told at the start; a store that has more is not read line by line.
const TOLD_MAX: usize = 100;

/// Why the store cannot be looked at, repaired or wiped.
#[derive(Debug, Error)]
pub enum StorageError {
    /// It cannot be opened.
    #[error("open the store at {root}")]
    Open {
        /// Its root.
        root: PathBuf,
        #[source]
        /// What failed.
        source: OpenError,
    },
    /// Its records cannot be read.
    #[error("read the records of the store")]
    Records(#[source] RecordsError),
    /// Something lives in it.
    #[error("container {container} runs, so the storage directory {root} stays")]
    InUse {
        /// The container.
        container: ContainerId,
        /// The graph root.
        root: PathBuf,
    },
    /// It could not be removed.
    #[error("remove the storage directory: {action} {path}")]
    Remove {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        #[source]
        /// What the kernel said.
        source: io::Error,
    },
}

/// Whether something may be removed although it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByForce {
    /// No.
    No,
    /// Yes.
    Yes,
}

pub(crate) fn store_options(config: &Config) -> StoreOptions {
    let (root, storage) = (&config.root, &config.storage);
    StoreOptions {
        root: root.root.clone(),
        runroot: root.runroot.clone(),
        driver: if storage.is_driver_named { root.storage_driver.as_str().to_owned() } else { String::new() },
        driver_priority: storage.driver_priority.clone(),
        driver_options: root.storage_option.clone(),
        imagestore: root.imagestore.clone(),
        volatile_mounts: if storage.disable_volatile { VolatileMounts::Disabled } else { VolatileMounts::Allowed },
        keep_pending: LEFTOVERS_KEPT,
        ..StoreOptions::default()
    }
}

/// Whether the machine or the daemon ended without having said so: the marker is missing, its sibling says that there
/// should be one. Source: CRI-O.
#[must_use]
pub fn was_shutdown_unclean(config: &Config) -> bool {
    config.root.clean_shutdown_file.as_ref().is_some_and(|marker| {
        let mut supported = marker.as_os_str().to_owned();
        supported.push(".supported");
        // What cannot be looked at counts as absent, as for CRI-O.
        std::fs::metadata(supported).is_ok() && std::fs::metadata(marker).is_err()
    })
}

/// The store without a daemon.
pub struct Storage {
    store: Store,
}

/// What was wiped, and what not.
#[derive(Debug, Default)]
pub struct Wiped {
    /// Containers and sandboxes removed.
    pub containers: usize,
    /// Images removed.
    pub images: usize,
    /// What stays, and why, a line each.
    pub failures: Vec<String>,
}

impl Storage {
    /// Opens the store without changing anything that is there.
    pub fn open(config: &Config) -> Result<Self, StorageError> {
        let root = config.root.root.clone();
        let options = StoreOptions { on_open: OnOpen::LeaveAsIs, ..store_options(config) };
        Ok(Self { store: Store::open(options).map_err(|source| StorageError::Open { root, source })? })
    }

    /// Looks for damage; layers that nothing uses count when they are older than `age`.
    pub fn check(&self, depth: Depth, age: Duration) -> Result<Report, StorageError> {
        self.store.check(&CheckOptions { depth, unreferenced_age: age }).map_err(StorageError::Records)
    }

    /// Removes what a report says is damaged; containers only if told to. What stays is returned.
    #[must_use]
    pub fn repair(&self, report: &Report, containers: OnContainers) -> Vec<RepairError> {
        self.store.repair(report, &RepairOptions { containers, is_alive: &|id| is_alive(&self.store, id) })
    }

    /// Removes the graph root with everything in it, of whichever tool.
    pub fn remove(self, by_force: ByForce) -> Result<(), StorageError> {
        remove(self.store, by_force)
    }

    /// Removes the sandboxes and containers of CRI-O and of this daemon, and, if told to, the images they were made
    /// from. What lives stays.
    pub fn wipe(&self, with_images: bool) -> Result<Wiped, StorageError> {
        let mut wiped = Wiped::default();
        let mut images: Vec<ImageId> = Vec::new();
        let containers = self.store.containers().map_err(StorageError::Records)?;
        for container in containers.into_iter().filter(|it| RecordMetadata::parse(&it.metadata).is_some()) {
            let id = &container.id;
            images.extend(container.image.filter(|image| !images.contains(image)));
            if self.store.is_mounted(id).map_err(StorageError::Records)? || is_alive(&self.store, id) {
                wiped.failures.push(format!("container {id} runs"));
                continue;
            }
            match self.store.remove_container(id) {
                Ok(()) => wiped.containers += 1,
                Err(error) => wiped.failures.push(chain(&error)),
            }
        }
        for image in images.iter().filter(|_| with_images) {
            match self.store.remove_image(image) {
                Ok(()) => wiped.images += 1,
                Err(error) => wiped.failures.push(chain(&error)),
            }
        }
        Ok(wiped)
    }

    /// Ends the use of the store.
    pub fn close(self) {
        self.store.close();
    }
}

fn remove(store: Store, by_force: ByForce) -> Result<(), StorageError> {
    if by_force == ByForce::No {
        for container in store.containers().unwrap_or_default() {
            if store.is_mounted(&container.id).unwrap_or(true) || is_alive(&store, &container.id) {
                return Err(StorageError::InUse { container: container.id, root: store.root().to_owned() });
            }
        }
    }
    store.wipe().map_err(|error| StorageError::Remove { action: error.action, path: error.path, source: error.source })
}

/// Whether something of a container or sandbox lives; mounts aside.
fn is_alive(store: &Store, id: &ContainerId) -> bool {
    let Ok(Some(container)) = store.container(id) else { return false };
    let Some(metadata) = RecordMetadata::parse(&container.metadata) else { return false };
    if runs(store, id) {
        return true;
    }
    if !metadata.is_sandbox {
        return false;
    }
    let spec = load_spec(&store.container_dir(id)).ok().flatten();
    let has_namespace = spec.is_some_and(|spec| {
        ["network", "ipc", "uts", "user"]
            .into_iter()
            .any(|kind| spec.namespace_path(kind).is_some_and(|path| sys::namespace::is_pinned(path).unwrap_or(false)))
    });
    has_namespace
        || store.containers().unwrap_or_default().iter().any(|other| {
            RecordMetadata::parse(&other.metadata).is_some_and(|it| it.pod_id == id.as_str()) && runs(store, &other.id)
        })
}

/// Whether the first process of a container runs.
fn runs(store: &Store, id: &ContainerId) -> bool {
    let directories = [store.container_dir(id), store.container_run_dir(id)];
    let states = directories.iter().filter_map(|directory| load_state(directory).ok().flatten());
    states.filter_map(|state| state.life?.init()).any(process::is_alive)
}

/// Opens the daemon's store. After an unclean end it is checked and repaired first; one that cannot be repaired is
/// removed, unless something lives in it, and begun anew. Source: CRI-O.
pub(crate) fn open_for_daemon(config: &Config) -> Result<Store, OpenError> {
    let store = Store::open(store_options(config))?;
    if !config.root.internal_repair || !was_shutdown_unclean(config) {
        return Ok(store);
    }
    let root = store.root().display().to_string();
    tracing::warn!("Checking storage directory {root} for errors because of unclean shutdown");
    let begun = Instant::now();
    let report = store.check(&CheckOptions { depth: Depth::Presence, unreferenced_age: UNREFERENCED_AGE });
    let is_repaired = match report {
        Ok(report) if report.is_clean() => {
            tracing::info!(seconds = begun.elapsed().as_secs_f64(), "the storage directory is whole");
            true
        }
        Ok(report) => {
            let lines = report.lines();
            lines.iter().take(TOLD_MAX).for_each(|line| tracing::warn!("{line}"));
            if lines.len() > TOLD_MAX {
                tracing::warn!("{} more lines of damage", lines.len() - TOLD_MAX);
            }
            tracing::warn!("Attempting to repair storage directory {root} because of unclean shutdown");
            let is_alive = &|id: &ContainerId| is_alive(&store, id);
            let errors = store.repair(&report, &RepairOptions { containers: OnContainers::Remove, is_alive });
            errors.iter().for_each(|error| tracing::error!(error = %chain(error), "damage stays"));
            !errors.iter().any(RepairError::is_failure)
        }
        Err(error) => {
            tracing::error!(error = %chain(&error), "the storage directory cannot be checked");
            false
        }
    };
    if is_repaired {
        return Ok(store);
    }
    tracing::warn!("Wiping storage directory {root} because of unclean shutdown");
    match remove(store, ByForce::No) {
        Ok(()) => {}
        // What runs goes on running, and what is damaged is told of; a node without daemon would help nobody.
        Err(error) => tracing::error!(error = %chain(&error), "the damaged storage directory stays in use"),
    }
    Store::open(store_options(config))
}
