//! The store: where its parts are, and how it is opened.
//!
//! Locks are always taken in the order layers, images, containers; mount counts come last.

use std::collections::HashMap;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use domain::id::{ContainerId, LayerId};
use durable::Durability;

use crate::btrfs::{Btrfs, make_subvolume};
use crate::driver::Driver;
use crate::error::{OpenError, PathError};
use crate::ids::SubordinateFiles;
use crate::options::{
    DevicePolicy, DriverName, DriverOptions, OnOpen, StoreOptions, Transient, VolatileMounts, candidates,
};
use crate::overlay::Overlay;
use crate::records::{ContainerRecord, ImageRecord, LayerRecord, MountRecord};
use crate::stage::WriteBack;
use crate::staging::{MakeDiff, Staging, plain_diff};
use crate::table::{FileStamp, Table, TableFile};
use crate::types::Usage;
use crate::vfs::Vfs;

/// Kinds of records, as directories are called after them.
pub(crate) const LAYERS: &str = "layers";
pub(crate) const IMAGES: &str = "images";
pub(crate) const CONTAINERS: &str = "containers";

/// Index of the file with records that survive a loss of power.
pub(crate) const STABLE: usize = 0;
/// Index of the file with those that need not.
pub(crate) const VOLATILE: usize = 1;

/// Permission bits the store's directories may have: of others, only the right to pass, which some configurations
/// need for user namespaces.
pub(crate) const DIRECTORY_MODE_MASK: u32 = 0o711;

/// Images, layers and containers beneath one graph root.
///
/// All calls block, may be made from any thread, and see what other tools changed in between.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    runroot: PathBuf,
    devices: DevicePolicy,
    volatile_mounts: VolatileMounts,
    transient: Transient,
    keep_pending: Duration,
    subordinate_files: SubordinateFiles,
    pub(crate) driver: Box<dyn Driver>,
    staging: Staging,
    write_back: WriteBack,
    pub(crate) layers: Table<LayerRecord>,
    pub(crate) images: Table<ImageRecord>,
    pub(crate) containers: Table<ContainerRecord>,
    pub(crate) mounts: Table<MountRecord>,
    pub(crate) pins: Arc<Mutex<HashMap<LayerId, usize>>>,
    /// What the data of images take, and which records that was found with.
    pub(crate) images_usage: Mutex<Option<(Vec<FileStamp>, Usage)>>,
}

impl Store {
    /// Opens the store, making what is absent, and removes what a crash left: layers never finished, directories no
    /// record mentions, read-write layers without a container.
    ///
    /// Nothing another tool is working on is touched: everything is done under the locks the field has for it.
    pub fn open(options: StoreOptions) -> Result<Self, OpenError> {
        let on_open = options.on_open;
        let StoreOptions { root, runroot, .. } = options.clone();
        for path in [&root, &runroot] {
            // Separators of overlay's mount options; the field does not escape them either.
            let text = path.to_str().unwrap_or_default();
            if !path.is_absolute() || text.is_empty() || text.contains([':', ',', '\\', '"']) {
                let error = io::Error::from(io::ErrorKind::InvalidInput);
                return Err(OpenError::Path(PathError::new("use as a root", path)(error)));
            }
        }
        let (driver, make_diff) = open_driver(&options)?;
        let driver_name = driver.name();
        let (staging, leftovers) = Staging::open(driver.home(), make_diff).map_err(OpenError::Path)?;
        let kind = |base: &Path, kind: &str| {
            let path = base.join(format!("{driver_name}-{kind}"));
            private_dir(&path, on_open).map_err(OpenError::Path).map(|()| path)
        };
        let (layers_dir, run_layers_dir) = (kind(&root, LAYERS)?, kind(&runroot, LAYERS)?);
        let images_dir = kind(&root, IMAGES)?;
        let (containers_dir, run_containers_dir) = (kind(&root, CONTAINERS)?, kind(&runroot, CONTAINERS)?);
        let (volatile_layers, volatile_containers) = match options.transient {
            Transient::No => (&layers_dir, &containers_dir),
            Transient::Yes => (&run_layers_dir, &run_containers_dir),
        };
        let stable = |path| TableFile { path, durability: Durability::Durable };
        let volatile = |path| TableFile { path, durability: Durability::Volatile };
        let layers = Table::open(
            &layers_dir.join("layers.lock"),
            vec![stable(layers_dir.join("layers.json")), volatile(volatile_layers.join("volatile-layers.json"))],
        );
        let images = Table::open(&images_dir.join("images.lock"), vec![stable(images_dir.join("images.json"))]);
        let containers = Table::open(
            &volatile_containers.join("containers.lock"),
            vec![
                stable(containers_dir.join("containers.json")),
                volatile(volatile_containers.join("volatile-containers.json")),
            ],
        );
        let mounts = Table::open(
            &run_layers_dir.join("mountpoints.lock"),
            vec![volatile(run_layers_dir.join("mountpoints.json"))],
        );
        let store = Self {
            layers: layers.map_err(OpenError::Records)?,
            images: images.map_err(OpenError::Records)?,
            containers: containers.map_err(OpenError::Records)?,
            mounts: mounts.map_err(OpenError::Records)?,
            devices: options.devices,
            volatile_mounts: options.volatile_mounts,
            transient: options.transient,
            keep_pending: options.keep_pending,
            subordinate_files: options.subordinate_files,
            root,
            runroot,
            driver,
            staging,
            write_back: WriteBack::default(),
            pins: Arc::default(),
            images_usage: Mutex::default(),
        };
        // There from the beginning, as other tools make it.
        drop(store.id_lock().map_err(OpenError::Path)?);
        if on_open == OnOpen::Recover {
            if sys::confine::landlock_version().is_none() {
                tracing::warn!("this kernel has no Landlock: unpacking is confined by its root and capabilities alone");
            }
            store.recover(leftovers).map_err(OpenError::Records)?;
        }
        Ok(store)
    }

    /// Ends the use of a store by a program that does not stay: unless somebody else uses it, nothing is mounted
    /// afterwards that was not before.
    pub fn close(self) {
        let Self { staging, driver, .. } = self;
        // Has a file open in the driver's home.
        drop(staging);
        driver.let_go();
    }

    /// The graph root.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The run root.
    #[must_use]
    pub fn runroot(&self) -> &Path {
        &self.runroot
    }

    /// Name of the graph driver, by which directories are called.
    #[must_use]
    pub fn driver(&self) -> &'static str {
        self.driver.name()
    }

    /// The directory of one kind of records in root or run root: `<root>/<driver>-<kind>`.
    pub(crate) fn beneath(&self, root: &Path, kind: &str) -> PathBuf {
        root.join(format!("{}-{kind}", self.driver()))
    }

    /// The engine's own directory of a container, which lasts: `<root>/overlay-containers/<id>/userdata`.
    #[must_use]
    pub fn container_dir(&self, container: &ContainerId) -> PathBuf {
        self.container_base(container).join("userdata")
    }

    /// The engine's own directory of a container, gone after a reboot: the bundle.
    #[must_use]
    pub fn container_run_dir(&self, container: &ContainerId) -> PathBuf {
        self.container_run_base(container).join("userdata")
    }

    pub(crate) fn container_base(&self, container: &ContainerId) -> PathBuf {
        self.beneath(&self.root, CONTAINERS).join(container.as_str())
    }

    pub(crate) fn container_run_base(&self, container: &ContainerId) -> PathBuf {
        self.beneath(&self.runroot, CONTAINERS).join(container.as_str())
    }

    pub(crate) fn layers_dir(&self) -> PathBuf {
        self.beneath(&self.root, LAYERS)
    }

    pub(crate) fn images_dir(&self) -> PathBuf {
        self.beneath(&self.root, IMAGES)
    }

    pub(crate) fn staging(&self) -> &Staging {
        &self.staging
    }

    /// What nobody else is to look into.
    pub(crate) fn private_directories(&self) -> Vec<PathBuf> {
        let own = [&self.root, &self.runroot].map(Clone::clone).into_iter();
        let lasting = [LAYERS, IMAGES, CONTAINERS].map(|kind| self.beneath(&self.root, kind));
        let passing = [LAYERS, CONTAINERS].map(|kind| self.beneath(&self.runroot, kind));
        own.chain([self.driver.home().to_owned()]).chain(lasting).chain(passing).collect()
    }

    pub(crate) fn write_back(&self) -> &WriteBack {
        &self.write_back
    }

    pub(crate) fn devices(&self) -> DevicePolicy {
        self.devices
    }

    pub(crate) fn volatile_mounts(&self) -> VolatileMounts {
        self.volatile_mounts
    }

    pub(crate) fn subordinate_files(&self) -> &SubordinateFiles {
        &self.subordinate_files
    }

    pub(crate) fn keep_pending(&self) -> Duration {
        self.keep_pending
    }

    pub(crate) fn transient(&self) -> Transient {
        self.transient
    }
}

/// The first driver that can be used, and how it makes directories layers are unpacked into.
fn open_driver(options: &StoreOptions) -> Result<(Box<dyn Driver>, MakeDiff), OpenError> {
    let root = &options.root;
    let is_used = |name: &str| std::fs::read_dir(root.join(name)).is_ok_and(|mut entries| entries.next().is_some());
    let names = candidates(&options.driver, &options.driver_priority, root, is_used).map_err(OpenError::Options)?;
    for path in [root, &options.runroot] {
        private_dir(path, options.on_open).map_err(OpenError::Path)?;
    }
    let mut tried = Vec::new();
    for name in &names {
        let checked = DriverOptions::parse(*name, &options.driver_options, options.driver.is_empty())
            .map_err(OpenError::Options)?;
        let home = root.join(name.as_str());
        private_dir(&home, options.on_open).map_err(OpenError::Path)?;
        let opened: Result<(Box<dyn Driver>, MakeDiff), PathError> = match name {
            DriverName::Overlay => Overlay::open(home.clone(), checked.mountopt, checked.skip_mount_home)
                .map(|driver| (Box::new(driver) as Box<dyn Driver>, plain_diff as MakeDiff)),
            DriverName::Vfs => Vfs::open(home.clone()).map(|driver| (Box::new(driver) as _, plain_diff as _)),
            DriverName::Btrfs => {
                Btrfs::open(home.clone(), checked.size).map(|driver| (Box::new(driver) as _, make_subvolume as _))
            }
        };
        match opened {
            Ok(opened) => return Ok(opened),
            Err(error) => {
                // Nothing tells another tool that it was tried.
                let _ = std::fs::remove_dir(&home);
                tried.push(error);
            }
        }
    }
    Err(tried.into_iter().next().map_or(OpenError::NoDriver, OpenError::Path))
}

/// Makes a directory nobody else can look into, or takes from others what they should not have.
fn private_dir(path: &Path, on_open: OnOpen) -> Result<(), PathError> {
    DirBuilder::new().mode(0o700).recursive(true).create(path).map_err(PathError::new("make directory", path))?;
    if on_open == OnOpen::LeaveAsIs {
        return Ok(());
    }
    let mode = std::fs::metadata(path).map_err(PathError::new("look at", path))?.permissions().mode() & 0o7777;
    if mode & !DIRECTORY_MODE_MASK != 0 {
        let tightened = std::fs::Permissions::from_mode(mode & DIRECTORY_MODE_MASK);
        std::fs::set_permissions(path, tightened).map_err(PathError::new("set mode of", path))?;
    }
    Ok(())
}
