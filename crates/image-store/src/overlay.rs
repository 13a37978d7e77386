//! The overlay driver's directories and mounts.
//!
//! `<home>/<id>/{diff,link,lower,work,merged,empty}` and `<home>/l/<link>`. Source: containers/storage
//! `drivers/overlay`.

use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use domain::id_maps::IdMaps;
use domain::security::IdMapping;
use durable::Durability;
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, StatxAttributes, StatxFlags, Uid};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use crate::driver::{Below, Driver, Grouping, Homes, MountAs, NewLayer};
use crate::error::PathError;
use crate::fault;
use crate::ids::{let_pass, user_namespace};
use crate::options::DriverOptions;
use crate::overlay_mount::{MountCall, mount_options};
use crate::random;
use crate::recovery::names_in;
use crate::stage::DIFF;
use crate::staging::{Staging, StagingDir};

/// Most directories below one another; the kernel's own limit for overlay.
pub(crate) const LOWER_MAX: usize = 500;
/// `LOWER_MAX` names of 28 characters and a colon.
const LOWER_FILE_MAX_BYTES: u64 = 32 << 10;
/// Where lower directories are attached with other ids, while an overlay is made of them. Source: containers/storage.
const MAPPED: &str = "mapped";
/// Where short names lie.
const LINKS: &str = "l";
/// Mode of a base layer's directory. Source: containers/storage.
const BASE_DIFF_MODE: u32 = 0o555;

/// The driver's home directories, and how it mounts.
#[derive(Debug)]
pub(crate) struct Overlay {
    homes: Homes,
    mountopt: Vec<String>,
    is_home_mounted: bool,
}

fn make_dir(path: &Path, mode: u32) -> Result<(), PathError> {
    DirBuilder::new().mode(mode).create(path).map_err(PathError::new("make directory", path))
}

fn make_dir_anew(path: &Path) -> Result<(), PathError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(PathError::new("make directory", path)(error))
        }
        _ => Ok(()),
    }
}

fn write_new(path: &Path, content: &str, durability: Durability) -> Result<(), PathError> {
    let write = || -> io::Result<()> {
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o644).open(path)?;
        io::Write::write_all(&mut file, content.as_bytes())?;
        if durability == Durability::Durable { file.sync_all() } else { Ok(()) }
    };
    write().map_err(PathError::new("write", path))
}

fn open_dir(path: &Path) -> Result<File, PathError> {
    File::open(path).map_err(PathError::new("open", path))
}

fn read_small(path: &Path) -> Result<String, PathError> {
    let read = || -> io::Result<String> {
        let mut text = String::new();
        File::open(path)?.take(LOWER_FILE_MAX_BYTES).read_to_string(&mut text)?;
        Ok(text)
    };
    read().map_err(PathError::new("read", path))
}

/// Whether something is mounted exactly at `path`; not for a path that is not there. One `statx(2)`, Linux 5.8.
pub(crate) fn is_mount_point(path: &Path) -> Result<bool, PathError> {
    match rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty()) {
        Ok(stat) => Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(error) => Err(PathError::new("look at", path)(error)),
    }
}

/// What a layer on top of the one in `directory` needs to know.
fn below_in(directory: &Path) -> Result<Below, PathError> {
    let link_path = directory.join("link");
    let link = read_small(&link_path)?;
    let link = link.trim();
    if link.is_empty() || !link.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(PathError::new("read", link_path)(io::Error::from(io::ErrorKind::InvalidData)));
    }
    let mut lower = format!("l/{link}");
    match read_small(&directory.join("lower")) {
        Ok(rest) if rest.trim().is_empty() => {}
        Ok(rest) => {
            lower.push(':');
            lower.push_str(rest.trim());
        }
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let diff = directory.join("diff");
    let stat = std::fs::symlink_metadata(&diff).map_err(PathError::new("look at", &diff))?;
    let depth = lower.split(':').count();
    Ok(Below { lower, depth, tree: diff, mode: stat.mode() & 0o7777, uid: stat.uid(), gid: stat.gid() })
}

impl Grouping for Overlay {
    fn dress_unsynced(&self, staged: &Path, below: Option<&Below>) -> Result<String, PathError> {
        self.dress_as(staged, below, Durability::Volatile)
    }

    fn below_staged(&self, staged: &Path) -> Result<Below, PathError> {
        below_in(staged)
    }

    fn place_unsynced(&self, staged: StagingDir, id: &str, dressed: &str) -> Result<(), PathError> {
        let home = self.homes.of_images();
        staged.move_to(&home.join(id))?;
        self.link(home, dressed, id)
    }

    fn sync_places(&self) -> Result<(), PathError> {
        Self::sync_home(self.homes.of_images())
    }
}

impl Overlay {
    /// The homes that may be written to exist. That of containers gets a private mount of its own unless it has one, so
    /// that mounts beneath it do not spread into other mount namespaces.
    pub(crate) fn open(homes: Homes, options: &DriverOptions) -> Result<Self, PathError> {
        for links in homes.writable().map(|home| home.join(LINKS)) {
            match DirBuilder::new().mode(0o755).create(&links) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(PathError::new("make directory", links)(error));
                }
                _ => {}
            }
        }
        let is_home_mounted = !options.skip_mount_home;
        let overlay = Self { homes, mountopt: options.mountopt.clone(), is_home_mounted };
        overlay.ensure_private_home()?;
        Ok(overlay)
    }

    /// Other tools take the private mount away when they end and see no container mounted.
    fn ensure_private_home(&self) -> Result<(), PathError> {
        if self.is_home_mounted { ensure_private(&self.homes.own) } else { Ok(()) }
    }

    fn home_of(&self, id: &str) -> &Path {
        self.homes.of(Path::new(id))
    }

    fn layer_dir(&self, id: &str) -> PathBuf {
        self.home_of(id).join(id)
    }

    /// Whether the layer is a container's, or lies with such ones.
    fn is_own(&self, id: &str) -> bool {
        self.home_of(id) == self.homes.own
    }

    /// Adds to a directory that has its `diff` what makes it a layer; returns the short name.
    fn dress_as(&self, directory: &Path, below: Option<&Below>, durability: Durability) -> Result<String, PathError> {
        fault::step("dress layer directory").map_err(PathError::new("make", directory))?;
        let diff_path = directory.join("diff");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let diff =
            rustix::fs::openat(CWD, &diff_path, flags, Mode::empty()).map_err(PathError::new("open", &diff_path))?;
        if let Some(below) = below.filter(|below| below.uid != 0 || below.gid != 0) {
            let owner = (Some(Uid::from_raw(below.uid)), Some(Gid::from_raw(below.gid)));
            rustix::fs::fchown(&diff, owner.0, owner.1).map_err(PathError::new("set owner of", &diff_path))?;
        }
        let mode = below.map_or(BASE_DIFF_MODE, |below| below.mode);
        rustix::fs::fchmod(diff.as_fd(), Mode::from_raw_mode(mode))
            .map_err(PathError::new("set mode of", &diff_path))?;
        let link = random::link_name().map_err(PathError::new("draw a name for", directory))?;
        write_new(&directory.join("link"), &link, durability)?;
        // Some are there when a staged layer is dressed again.
        make_dir_anew(&directory.join("work"))?;
        make_dir_anew(&directory.join("merged"))?;
        match below {
            Some(below) => write_new(&directory.join("lower"), &below.lower, durability)?,
            None => make_dir_anew(&directory.join("empty"))?,
        }
        if durability == Durability::Durable {
            for (handle, path) in [(File::from(diff), diff_path.as_path()), (open_dir(directory)?, directory)] {
                handle.sync_all().map_err(PathError::new("sync", path))?;
            }
        }
        Ok(link)
    }

    /// Makes the short name lead to the layer.
    fn link(&self, home: &Path, link: &str, id: &str) -> Result<(), PathError> {
        let path = home.join(LINKS).join(link);
        fault::step("link layer").map_err(PathError::new("link", &path))?;
        std::os::unix::fs::symlink(format!("../{id}/diff"), &path).map_err(PathError::new("link", &path))
    }

    /// Removes the short name of a layer, if it has one.
    fn unlink(&self, id: &str) {
        if let Ok(link) = read_small(&self.layer_dir(id).join("link")) {
            let link = link.trim();
            if !link.is_empty() && link.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                let _ = std::fs::remove_file(self.home_of(id).join(LINKS).join(link));
            }
        }
    }

    /// Makes names and directories of a home survive a loss of power.
    fn sync_home(home: &Path) -> Result<(), PathError> {
        for path in [home.join(LINKS), home.to_owned()] {
            fault::step("sync directory").map_err(PathError::new("sync", &path))?;
            open_dir(&path)?.sync_all().map_err(PathError::new("sync", &path))?;
        }
        Ok(())
    }

    fn make_merged(&self, id: &str) -> Result<PathBuf, PathError> {
        self.ensure_private_home()?;
        let merged = self.merged(id);
        match DirBuilder::new().mode(0o700).recursive(true).create(&merged) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(PathError::new("make directory", &merged)(error))
            }
            _ => Ok(merged),
        }
    }

    /// The directories of an image from its topmost layer down.
    fn image_lowers(&self, id: &str) -> Result<Vec<PathBuf>, PathError> {
        let mut lowers = self.short_lowers(&self.layer_dir(id).join("link"), &self.below(id)?.lower)?;
        // Without an upper directory the kernel wants two lower ones.
        if lowers.len() == 1 {
            lowers.extend(self.lowers(id)?);
        }
        Ok(lowers)
    }

    fn mount_image(&self, lowers: &[PathBuf], label: &str, flags: MountFlags, target: &Path) -> Result<(), PathError> {
        let (flags, mut options) = (flags | MountFlags::RDONLY, mount_options(&self.mountopt).1);
        if !label.is_empty() {
            options.push(format!("context=\"{label}\""));
        }
        let call = MountCall { lowers, upper: None, merged: target, options: &options, flags };
        fault::step("mount").map_err(PathError::new("mount", target))?;
        call.mount(&self.homes.own).map_err(PathError::new("mount overlay at", target))
    }

    /// Takes away lower directories that were attached with other ids when a mount was cut off.
    fn unmap(&self, id: &str) -> Result<(), PathError> {
        unmap(&self.layer_dir(id).join(MAPPED))
    }

    /// The directories below a layer, nearest first; short names that are gone are made again.
    fn lowers(&self, id: &str) -> Result<Vec<PathBuf>, PathError> {
        let directory = self.layer_dir(id);
        let path = directory.join("lower");
        let text = match read_small(&path) {
            Ok(text) => text,
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => {
                return Ok(vec![directory.join("empty")]);
            }
            Err(error) => return Err(error),
        };
        self.short_lowers(&path, &text)
    }

    /// The directories behind the short names in the text of the file `path`.
    fn short_lowers(&self, path: &Path, text: &str) -> Result<Vec<PathBuf>, PathError> {
        let mut lowers = Vec::new();
        for short in text.trim().split(':').filter(|short| !short.is_empty()) {
            let is_short = short
                .strip_prefix("l/")
                .is_some_and(|link| !link.is_empty() && link.bytes().all(|byte| byte.is_ascii_alphanumeric()));
            if !is_short {
                return Err(PathError::new("read", path)(io::Error::from(io::ErrorKind::InvalidData)));
            }
            let missing = || self.homes.own.join(short);
            lowers
                .push(self.homes.all().map(|home| home.join(short)).find(|path| path.exists()).unwrap_or_else(missing));
        }
        if lowers.iter().any(|lower| !lower.exists()) {
            self.homes.writable().try_for_each(repair_links)?;
        }
        Ok(lowers)
    }
}

/// Makes missing short names again from the `link` files, and removes those that lead nowhere.
fn repair_links(home: &Path) -> Result<(), PathError> {
    let list = |path: &Path| std::fs::read_dir(path).map_err(PathError::new("list", path));
    let links = home.join(LINKS);
    for entry in list(&links)?.flatten() {
        let path = entry.path();
        if std::fs::metadata(&path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            let _ = std::fs::remove_file(&path);
        }
    }
    for entry in list(home)?.flatten() {
        let Ok(id) = entry.file_name().into_string() else { continue };
        if domain::id::LayerId::parse(&id).is_err() {
            continue;
        }
        let Ok(link) = read_small(&entry.path().join("link")) else { continue };
        let link = link.trim();
        let path = links.join(link);
        if !link.is_empty() && link.bytes().all(|byte| byte.is_ascii_alphanumeric()) && !path.exists() {
            fault::step("link layer").map_err(PathError::new("link", &path))?;
            std::os::unix::fs::symlink(format!("../{id}/diff"), &path).map_err(PathError::new("link", &path))?;
        }
    }
    Ok(())
}

impl Driver for Overlay {
    fn name(&self) -> &'static str {
        "overlay"
    }

    fn home(&self) -> &Path {
        self.homes.of_images()
    }

    fn container_home(&self) -> &Path {
        &self.homes.own
    }

    fn lies_with_images(&self, id: &str) -> bool {
        self.home_of(id) == self.homes.of_images()
    }

    fn layers_on_disk(&self) -> Vec<String> {
        let names = self.homes.writable().flat_map(names_in);
        names.filter(|name| domain::id::LayerId::parse(name).is_ok()).collect()
    }

    fn diff(&self, id: &str) -> PathBuf {
        self.layer_dir(id).join(DIFF)
    }

    /// What other processes may mount, too, is mounted in the run root. Source: containers/storage.
    fn merged(&self, id: &str) -> PathBuf {
        let directory = if self.is_own(id) { self.layer_dir(id) } else { self.homes.run.join(id) };
        directory.join("merged")
    }

    fn below(&self, parent: &str) -> Result<Below, PathError> {
        below_in(&self.layer_dir(parent))
    }

    fn grouping(&self) -> Option<&dyn Grouping> {
        Some(self)
    }

    fn dress(&self, staged: &Path, below: Option<&Below>) -> Result<String, PathError> {
        self.dress_as(staged, below, Durability::Durable)
    }

    fn place(&self, staged: StagingDir, id: &str, dressed: &str) -> Result<(), PathError> {
        let home = self.homes.of_images();
        staged.move_to(&home.join(id))?;
        self.link(home, dressed, id)?;
        Self::sync_home(home)
    }

    fn create(&self, new: &NewLayer<'_>, _: &Staging) -> Result<(), PathError> {
        let home = &self.homes.own;
        let directory = home.join(new.id);
        let diff = directory.join(DIFF);
        fault::step("make layer directory").map_err(PathError::new("make directory", &directory))?;
        for path in [&directory, &diff] {
            make_dir(path, 0o700)?;
        }
        let link = self.dress_as(&directory, new.below, new.durability)?;
        self.link(home, &link, new.id)?;
        if let Some(root) = new.root() {
            std::os::unix::fs::lchown(&diff, Some(root.uid), Some(root.gid))
                .map_err(PathError::new("set owner of", diff))?;
            let_pass(&directory, root)?;
        }
        if new.durability == Durability::Durable { Self::sync_home(home) } else { Ok(()) }
    }

    fn take(&self, id: &str, staging: &Staging) -> Result<Option<StagingDir>, PathError> {
        self.unlink(id);
        self.unmap(id)?;
        staging.take(&self.layer_dir(id))
    }

    fn has_mounts(&self) -> bool {
        true
    }

    fn is_mounted(&self, id: &str) -> Result<bool, PathError> {
        is_mount_point(&self.merged(id))
    }

    fn mount(&self, id: &str, how: &MountAs<'_>) -> Result<(), PathError> {
        let directory = self.layer_dir(id);
        let merged = self.make_merged(id)?;
        // Left by an unclean end of the machine; the kernel then refuses the upper directory.
        let _ = std::fs::remove_dir_all(directory.join("work/work/incompat/volatile"));
        let mut lowers = self.lowers(id)?;
        if let Some(users) = how.users {
            lowers = map_lowers(&self.layer_dir(id).join(MAPPED), &lowers, users)?;
        }
        let (flags, mut options) = mount_options(&self.mountopt);
        if how.is_volatile {
            options.push("volatile".to_owned());
        }
        if !how.label.is_empty() {
            options.push(format!("context=\"{}\"", how.label));
        }
        let call = MountCall { lowers: &lowers, upper: Some(&directory), merged: &merged, options: &options, flags };
        fault::step("mount").map_err(PathError::new("mount", &merged))?;
        let mounted = call.mount(&self.homes.own).map_err(PathError::new("mount overlay at", &merged));
        if how.users.is_some() {
            // The overlay keeps mounts of its own.
            self.unmap(id)?;
        }
        mounted
    }

    /// With the flags CRI-O gives; whoever makes a mount on top of this one decides anew about executing.
    fn mount_read_only(&self, id: &str, label: &str) -> Result<(), PathError> {
        let merged = self.make_merged(id)?;
        let flags = mount_options(&self.mountopt).0 | MountFlags::NOEXEC | MountFlags::NOSUID | MountFlags::NODEV;
        self.mount_image(&self.image_lowers(id)?, label, flags, &merged)
    }

    fn try_mount(&self, id: &str, label: &str, target: &Path) -> Result<(), PathError> {
        self.mount_image(&self.image_lowers(id)?, label, MountFlags::NOEXEC | MountFlags::NOSUID, target)
    }

    /// Short names.
    fn strays(&self) -> Vec<PathBuf> {
        let is_dangling =
            |path: &PathBuf| std::fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        let links = self.homes.writable().map(|home| home.join(LINKS));
        links
            .flat_map(|links| names_in(&links).into_iter().map(move |link| links.join(link)))
            .filter(is_dangling)
            .collect()
    }

    fn let_go(&self) {
        if self.is_home_mounted {
            let _ = rustix::mount::unmount(&self.homes.own, UnmountFlags::NOFOLLOW);
        }
    }

    /// Nothing is made on top of this mount: it has the flags a root file system has at the least, because a user
    /// namespace keeps those it finds, and older runtimes fail when they bind it with others.
    fn mount_mapped(&self, id: &str, label: &str, target: &Path, users: BorrowedFd<'_>) -> Result<(), PathError> {
        let directory = target.with_extension(MAPPED);
        let lowers = map_lowers(&directory, &self.image_lowers(id)?, users)?;
        let mounted = self.mount_image(&lowers, label, MountFlags::empty(), target);
        unmap(&directory)?;
        mounted
    }

    fn unmount(&self, id: &str) -> Result<(), PathError> {
        let merged = self.merged(id);
        unmount_all(&merged)?;
        if merged.starts_with(&self.homes.run) {
            // Made for the mount alone.
            let _ = std::fs::remove_dir(&merged);
            let _ = std::fs::remove_dir(self.homes.run.join(id));
        }
        self.unmap(id)
    }

    fn missing(&self, id: &str, has_parent: bool) -> Option<&'static str> {
        let directory = self.layer_dir(id);
        let has_link = self.below(id).is_ok();
        if !directory.join(DIFF).is_dir() {
            Some("diff")
        } else if !has_link {
            Some("link")
        } else if has_parent && !directory.join("lower").is_file() {
            Some("lower")
        } else {
            None
        }
    }

    fn repair(&self) -> Result<(), PathError> {
        self.homes.writable().try_for_each(repair_links)
    }

    /// Overlay on id-mapped mounts came with Linux 5.19. Some file systems have no part in it.
    fn maps_ids_by_mount(&self) -> bool {
        const OLDEST: (u32, u32) = (5, 19);
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let mut numbers = release.split(['.', '-', '+']).map_while(|number| number.parse::<u32>().ok());
        let version = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
        version >= OLDEST && maps_ids(&self.homes.of_images().join(LINKS))
    }
}

/// Whether the file system of a directory takes part in id-mapped mounts.
fn maps_ids(directory: &Path) -> bool {
    let one = vec![IdMapping { container_id: 0, host_id: 1, length: 1 }];
    let Ok(maps) = IdMaps::new(one.clone(), one) else { return false };
    user_namespace(&maps).is_ok_and(|users| sys::idmap::mapped_tree(directory, users.as_fd()).is_ok())
}

/// Attaches id-mapped copies of lower directories in `directory`, by numbers.
fn map_lowers(directory: &Path, lowers: &[PathBuf], users: BorrowedFd<'_>) -> Result<Vec<PathBuf>, PathError> {
    unmap(directory)?;
    make_dir(directory, 0o700)?;
    let map = |(number, lower): (usize, &PathBuf)| {
        let target = directory.join(number.to_string());
        make_dir(&target, 0o700)?;
        let tree = sys::idmap::mapped_tree(lower, users).map_err(PathError::new("map ids of", lower))?;
        sys::idmap::attach(&tree, &target).map_err(PathError::new("attach", &target))?;
        Ok(target)
    };
    let mapped: Result<Vec<_>, PathError> = lowers.iter().enumerate().map(map).collect();
    if mapped.is_err() {
        // The first failure is the one to tell; what stays is taken away with the layer or container.
        let _ = unmap(directory);
    }
    mapped
}

/// Takes away what [`map_lowers`] attached, also when it was cut off.
fn unmap(directory: &Path) -> Result<(), PathError> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(PathError::new("list", directory))?,
    };
    for entry in entries.flatten() {
        unmount_all(&entry.path())?;
        // Not with what it holds: that might be a layer of an image.
        std::fs::remove_dir(entry.path()).map_err(PathError::new("remove", entry.path()))?;
    }
    std::fs::remove_dir(directory).map_err(PathError::new("remove", directory))
}

/// Takes away everything that is mounted exactly at `path`, in use or not; fine if nothing is.
pub(crate) fn unmount_all(path: &Path) -> Result<(), PathError> {
    /// Mounts on top of one another that are taken away; more are somebody's mistake elsewhere.
    const STACKED_MAX: usize = 16;
    for _ in 0..STACKED_MAX {
        match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Not a mount point, or not there.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return Ok(()),
            Err(error) => return Err(PathError::new("unmount", path)(error)),
        }
    }
    Ok(())
}

/// Gives a driver's home a private mount of its own, unless it has one.
pub(crate) fn ensure_private(home: &Path) -> Result<(), PathError> {
    if is_mount_point(home)? {
        return Ok(());
    }
    rustix::mount::mount_bind(home, home).map_err(PathError::new("bind", home))?;
    rustix::mount::mount_change(home, MountPropagationFlags::PRIVATE).map_err(PathError::new("make private", home))
}
