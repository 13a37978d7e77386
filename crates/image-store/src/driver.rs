//! How layers lie on disk: what differs from one graph driver to the next.
//!
//! Overlay keeps what each layer changes and stacks it when it is mounted. The others keep every layer whole, as a copy
//! of the one below with its changes made.

use std::fmt::Debug;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use domain::id_maps::{IdMaps, RootOwner};
use durable::Durability;

use crate::error::PathError;
use crate::staging::{Staging, StagingDir};

/// Where a driver keeps layers.
#[derive(Debug, Clone)]
pub(crate) struct Homes {
    /// `<root>/<driver>`: layers of containers, and those of images unless they have a place of their own.
    pub(crate) own: PathBuf,
    /// `<imagestore>/<driver>`
    pub(crate) images: Option<PathBuf>,
    /// Those of additional stores, which are only read.
    pub(crate) foreign: Vec<PathBuf>,
    /// `<run root>/<driver>`
    pub(crate) run: PathBuf,
}

impl Homes {
    /// Where layers of images are made.
    pub(crate) fn of_images(&self) -> &Path {
        self.images.as_deref().unwrap_or(&self.own)
    }

    /// Those that may be written to.
    pub(crate) fn writable(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(self.own.as_path()).chain(self.images.as_deref())
    }

    /// All, in the order in which a layer is looked for.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Path> {
        self.writable().chain(self.foreign.iter().map(PathBuf::as_path))
    }

    /// The one a layer lies in, by its directory beneath the home; the own one if it is in none.
    pub(crate) fn of(&self, beneath: &Path) -> &Path {
        if self.images.is_none() && self.foreign.is_empty() {
            return &self.own;
        }
        self.all().find(|home| home.join(beneath).exists()).unwrap_or(&self.own)
    }
}

/// What a layer lies on.
pub(crate) struct Below {
    /// Another one when the layer was removed and made again; for overlay the `lower` file of a layer on top of it.
    pub(crate) lower: String,
    /// How many layers the kernel stacks beneath one on top of it.
    pub(crate) depth: usize,
    /// Its files.
    pub(crate) tree: PathBuf,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// A container's layer to be made.
pub(crate) struct NewLayer<'a> {
    pub(crate) id: &'a str,
    pub(crate) below: Option<&'a Below>,
    pub(crate) durability: Durability,
    /// The ids of its user namespace.
    pub(crate) ids: Option<&'a IdMaps>,
    /// SELinux label of its files, or empty.
    pub(crate) label: &'a str,
}

impl NewLayer<'_> {
    /// Root of its user namespace.
    pub(crate) fn root(&self) -> Option<RootOwner> {
        self.ids.map(IdMaps::root)
    }
}

/// How a container's root file system is mounted.
#[derive(Clone, Copy)]
pub(crate) struct MountAs<'a> {
    /// SELinux label, or empty.
    pub(crate) label: &'a str,
    /// Nothing written needs to survive a loss of power.
    pub(crate) is_volatile: bool,
    /// A user namespace whose ids files show.
    pub(crate) users: Option<BorrowedFd<'a>>,
}

/// A graph driver. Layers are called by their ids, which whoever asks has checked.
pub(crate) trait Driver: Debug + Send + Sync {
    /// As directories are called after it.
    fn name(&self) -> &'static str;

    /// Where layers of images are made; staging lies beneath it.
    fn home(&self) -> &Path;

    /// Where layers of containers are made.
    fn container_home(&self) -> &Path {
        self.home()
    }

    /// Whether a layer lies where those of images are made; where all lie together, all do.
    fn lies_with_images(&self, _id: &str) -> bool {
        true
    }

    /// Ids of all layers that have a directory which may be written to, recorded or not.
    fn layers_on_disk(&self) -> Vec<String>;

    /// Where a layer's files are, as far as the layer has its own.
    fn diff(&self, id: &str) -> PathBuf;

    /// Where the layer with all below it can be seen, once it is mounted.
    fn merged(&self, id: &str) -> PathBuf;

    /// What a layer on top of `parent` needs to know.
    fn below(&self, parent: &str) -> Result<Below, PathError>;

    /// Makes a staged directory, whose `diff` has a layer's changes, one that can be [placed](Driver::place). Everything
    /// in it is durable afterwards.
    ///
    /// Returns what `place` wants to be told again.
    fn dress(&self, staged: &Path, below: Option<&Below>) -> Result<String, PathError>;

    /// Gives a dressed directory its place; what was there before must be gone.
    fn place(&self, staged: StagingDir, id: &str, dressed: &str) -> Result<(), PathError>;

    /// How several layers are committed at once, if they can be.
    fn grouping(&self) -> Option<&dyn Grouping> {
        None
    }

    /// Makes a container's layer.
    fn create(&self, new: &NewLayer<'_>, staging: &Staging) -> Result<(), PathError>;

    /// Takes all files of a layer away; they are deleted when the returned value is dropped. Fine if there are none.
    fn take(&self, id: &str, staging: &Staging) -> Result<Option<StagingDir>, PathError>;

    /// Whether [`Driver::merged`] has to be mounted to be of use; if not, it is there as long as the layer.
    fn has_mounts(&self) -> bool;

    /// Whether the layer is mounted: asked of the kernel. Never if the driver has no mounts.
    fn is_mounted(&self, id: &str) -> Result<bool, PathError>;

    /// Mounts a read-write layer at [`Driver::merged`].
    fn mount(&self, id: &str, how: &MountAs<'_>) -> Result<(), PathError>;

    /// Mounts an image layer with all below it, read-only, at [`Driver::merged`].
    fn mount_read_only(&self, id: &str, label: &str) -> Result<(), PathError>;

    /// Mounts an image layer with all below it, read-only, at a directory of one container; its files show the owners
    /// `users` says.
    fn mount_mapped(&self, id: &str, label: &str, target: &Path, users: BorrowedFd<'_>) -> Result<(), PathError>;

    /// Mounts a layer with all below it, read-only, at a directory of the caller's, to see whether it can be.
    fn try_mount(&self, id: &str, label: &str, target: &Path) -> Result<(), PathError>;

    /// Takes every mount of the layer away, in use or not; fine if there is none.
    fn unmount(&self, id: &str) -> Result<(), PathError>;

    /// What is missing of a layer's files, by its name in the layout.
    fn missing(&self, id: &str, has_parent: bool) -> Option<&'static str>;

    /// What lies in the driver's home and leads to no layer.
    fn strays(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    /// Gives back what opening took of the node, unless somebody else uses it.
    fn let_go(&self) {}

    /// Repairs what can be made again from what is there.
    fn repair(&self) -> Result<(), PathError>;

    /// Whether mounts can show a container's files with the ids of its user namespace. Drivers without mounts give each
    /// container files that have them.
    fn maps_ids_by_mount(&self) -> bool;
}

/// [`Driver::dress`] and [`Driver::place`] in steps, so that what several layers have in common is done once. Nothing is
/// durable before its file system is synced.
pub(crate) trait Grouping {
    /// Makes a staged directory one that can be placed; may be called again, with another layer below.
    fn dress_unsynced(&self, staged: &Path, below: Option<&Below>) -> Result<String, PathError>;

    /// What a layer on top of a dressed one needs to know.
    fn below_staged(&self, staged: &Path) -> Result<Below, PathError>;

    /// Gives a dressed directory its place; what was there before must be gone.
    fn place_unsynced(&self, staged: StagingDir, id: &str, dressed: &str) -> Result<(), PathError>;

    /// Makes all places given so far survive a loss of power.
    fn sync_places(&self) -> Result<(), PathError>;
}
