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

use domain::id::{ContainerId, ImageId, LayerId};
use durable::Durability;

use crate::btrfs::{Btrfs, make_subvolume};
use crate::driver::{Driver, Homes};
use crate::error::{OpenError, PathError};
use crate::ids::SubordinateFiles;
use crate::options::{
    DevicePolicy, DriverName, DriverOptions, OnOpen, OptionsError, StoreOptions, Transient, VolatileMounts, candidates,
};
use crate::overlay::Overlay;
use crate::records::{ContainerRecord, ImageRecord, LayerRecord, MountRecord};
use crate::stage::WriteBack;
use crate::staging::{MakeDiff, Staging, plain_diff};
use crate::table::{FileStamp, ForeignFile, Table, TableFile};
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

/// Index of the file with layers of images, where those have a place of their own.
const IMAGE_STORE: usize = 2;

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
    /// Of layers of containers, where those of images lie elsewhere.
    own_staging: Option<Staging>,
    imagestore: Option<PathBuf>,
    /// Where images have their directories; new ones in the first, those of additional stores last.
    image_dirs: Vec<PathBuf>,
    /// Roots of stores that are only read.
    additional: Vec<PathBuf>,
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
        for path in [&root, &runroot].into_iter().chain(&options.imagestore) {
            // Separators of overlay's mount options; the field does not escape them either.
            let text = path.to_str().unwrap_or_default();
            if !path.is_absolute() || text.is_empty() || text.contains([':', ',', '\\', '"']) {
                let error = io::Error::from(io::ErrorKind::InvalidInput);
                return Err(OpenError::Path(PathError::new("use as a root", path)(error)));
            }
        }
        let imagestore = options.imagestore.clone();
        if imagestore.as_ref() == Some(&root) {
            return Err(OpenError::Options(OptionsError::SameImageStore(root)));
        }
        let (driver, make_diff, additional) = open_driver(&options)?;
        let driver_name = driver.name();
        let (staging, mut leftovers) = Staging::open(driver.home(), make_diff).map_err(OpenError::Path)?;
        let mut own_staging = None;
        if driver.home() != driver.container_home() {
            let (second, more) = Staging::open(driver.container_home(), make_diff).map_err(OpenError::Path)?;
            leftovers.join(more);
            own_staging = Some(second);
        }
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
        let foreign = |kind: &str, names: &[&str]| -> Vec<ForeignFile> {
            let directories = additional.iter().map(|store| store.join(format!("{driver_name}-{kind}")));
            let of = |directory: PathBuf| {
                let lock = directory.join(format!("{kind}.lock"));
                names
                    .iter()
                    .map(move |name| ForeignFile { path: directory.join(name), lock: lock.clone() })
                    .collect::<Vec<_>>()
            };
            directories.flat_map(of).collect()
        };
        let mut layer_locks = vec![layers_dir.join("layers.lock")];
        let mut layer_files =
            vec![stable(layers_dir.join("layers.json")), volatile(volatile_layers.join("volatile-layers.json"))];
        let mut image_locks = vec![images_dir.join("images.lock")];
        let mut image_files = vec![stable(images_dir.join("images.json"))];
        let mut image_dirs = vec![images_dir];
        if let Some(imagestore) = &imagestore {
            let (layers_dir, images_dir) = (kind(imagestore, LAYERS)?, kind(imagestore, IMAGES)?);
            layer_locks.push(layers_dir.join("layers.lock"));
            layer_files.push(stable(layers_dir.join("layers.json")));
            // New images are recorded in the first file.
            image_locks.insert(0, images_dir.join("images.lock"));
            image_files.insert(0, stable(images_dir.join("images.json")));
            image_dirs.insert(0, images_dir);
        }
        image_dirs.extend(additional.iter().map(|store| store.join(format!("{driver_name}-{IMAGES}"))));
        let layers = Table::open(&layer_locks, layer_files, foreign(LAYERS, &["layers.json"]));
        let images = Table::open(&image_locks, image_files, foreign(IMAGES, &["images.json"]));
        let containers = Table::open(
            &[volatile_containers.join("containers.lock")],
            vec![
                stable(containers_dir.join("containers.json")),
                volatile(volatile_containers.join("volatile-containers.json")),
            ],
            Vec::new(),
        );
        let mounts = Table::open(
            &[run_layers_dir.join("mountpoints.lock")],
            vec![volatile(run_layers_dir.join("mountpoints.json"))],
            Vec::new(),
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
            own_staging,
            imagestore,
            image_dirs,
            additional,
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
        let Self { staging, own_staging, driver, .. } = self;
        // Have files open in the driver's home.
        drop((staging, own_staging));
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

    /// Where new images have their directories.
    pub(crate) fn images_dir(&self) -> PathBuf {
        self.beneath(self.imagestore.as_deref().unwrap_or(&self.root), IMAGES)
    }

    /// All places where images have their directories that may be removed.
    pub(crate) fn own_images_dirs(&self) -> impl Iterator<Item = PathBuf> {
        self.imagestore.iter().chain([&self.root]).map(|base| self.beneath(base, IMAGES))
    }

    /// The directory of an image's data, which is with its record; a new one's if it has none.
    pub(crate) fn image_dir(&self, image: &ImageId) -> PathBuf {
        let mut places = self.image_dirs.iter().map(|place| place.join(image.as_str()));
        let first = self.images_dir().join(image.as_str());
        if self.image_dirs.len() == 1 { first } else { places.find(|place| place.is_dir()).unwrap_or(first) }
    }

    /// Where an image's data can be written: with its record, if that can be changed.
    pub(crate) fn own_image_dir(&self, image: &ImageId) -> PathBuf {
        let mut places = self.own_images_dirs().map(|place| place.join(image.as_str()));
        places.find(|place| place.is_dir()).unwrap_or_else(|| self.images_dir().join(image.as_str()))
    }

    /// Which file new layers of images are recorded in.
    pub(crate) fn image_layers_file(&self) -> usize {
        if self.imagestore.is_some() { IMAGE_STORE } else { STABLE }
    }

    /// Layers' data of stores that are only read.
    pub(crate) fn additional_layers_dirs(&self) -> impl Iterator<Item = PathBuf> {
        self.additional.iter().map(|store| self.beneath(store, LAYERS))
    }

    /// Where containers' layers are made.
    pub(crate) fn container_staging(&self) -> &Staging {
        self.own_staging.as_ref().unwrap_or(&self.staging)
    }

    /// Where a layer is put that is taken away: beside it, because directories are not renamed across file systems.
    pub(crate) fn staging_beside(&self, layer: &str) -> &Staging {
        if self.driver.lies_with_images(layer) { &self.staging } else { self.container_staging() }
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

/// A driver, how it makes directories layers are unpacked into, and the stores that are only read.
type Opened = (Box<dyn Driver>, MakeDiff, Vec<PathBuf>);

/// The first driver that can be used.
fn open_driver(options: &StoreOptions) -> Result<Opened, OpenError> {
    let root = &options.root;
    let is_used = |name: &str| std::fs::read_dir(root.join(name)).is_ok_and(|mut entries| entries.next().is_some());
    let names = candidates(&options.driver, &options.driver_priority, root, is_used).map_err(OpenError::Options)?;
    for path in [root, &options.runroot].into_iter().chain(&options.imagestore) {
        private_dir(path, options.on_open).map_err(OpenError::Path)?;
    }
    let mut tried = Vec::new();
    for name in &names {
        let checked = DriverOptions::parse(*name, &options.driver_options, options.driver.is_empty())
            .map_err(OpenError::Options)?;
        if *name == DriverName::Btrfs && options.imagestore.is_some() {
            return Err(OpenError::Options(OptionsError::Unsupported("imagestore".to_owned())));
        }
        for store in &checked.additional_stores {
            check_additional(store, root).map_err(OpenError::Path)?;
        }
        let beneath = |base: &PathBuf| base.join(name.as_str());
        let homes = Homes {
            own: beneath(root),
            images: options.imagestore.as_ref().map(beneath),
            foreign: checked.additional_stores.iter().map(beneath).collect(),
            run: beneath(&options.runroot),
        };
        for home in homes.writable() {
            private_dir(home, options.on_open).map_err(OpenError::Path)?;
        }
        let opened: Result<(Box<dyn Driver>, MakeDiff), PathError> = match name {
            DriverName::Overlay => {
                Overlay::open(homes.clone(), &checked).map(|driver| (Box::new(driver) as _, plain_diff as _))
            }
            DriverName::Vfs => Vfs::open(homes.clone()).map(|driver| (Box::new(driver) as _, plain_diff as _)),
            DriverName::Btrfs => {
                Btrfs::open(homes.own.clone(), checked.size).map(|driver| (Box::new(driver) as _, make_subvolume as _))
            }
        };
        match opened {
            Ok((driver, make_diff)) => return Ok((driver, make_diff, checked.additional_stores)),
            Err(error) => {
                // Nothing tells another tool that it was tried.
                for home in homes.writable() {
                    let _ = std::fs::remove_dir(home);
                }
                tried.push(error);
            }
        }
    }
    Err(tried.into_iter().next().map_or(OpenError::NoDriver, OpenError::Path))
}

/// Whether a store can be read beside the own one.
fn check_additional(store: &Path, root: &Path) -> Result<(), PathError> {
    let failed = PathError::new("use as additional image store", store);
    let text = store.to_str().unwrap_or_default();
    if store == root || text.is_empty() || text.contains([':', ',', '\\', '"']) {
        return Err(failed(io::Error::from(io::ErrorKind::InvalidInput)));
    }
    match std::fs::metadata(store) {
        Ok(data) if data.is_dir() => Ok(()),
        Ok(_) => Err(failed(io::Error::from(io::ErrorKind::NotADirectory))),
        Err(error) => Err(failed(error)),
    }
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
