//! Where layers lie before they have a name and after they have lost it.
//!
//! `overlay/tempdirs/crio-staging/<instance>/`: a directory for each open store, which holds a lock on the `lock` file in it.
//! One whose lock is free belongs to a process that is gone, and is removed when a store is opened. Other tools skip
//! names that are not ids; their own `staging` directory is not used, because old ones empty it without looking.
//!
//! `pending/<layer id>` there marks layers that may have no image yet, or no more: when their process died, those
//! still unused are removed too, at once or after a while (`pending`).

use std::collections::HashSet;
use std::fs::{DirBuilder, File, FileTimes};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use domain::id::LayerId;
use sys::locks::{RecordLock, lock_record, try_lock_record, unlock_record};

use crate::btrfs;
use crate::error::PathError;
use crate::fault;
use crate::random;
use crate::stage::DIFF;

/// In the one directory that containers/storage takes neither for a layer nor for its own: it only looks there for names
/// that begin with `temp-dir-` and `lock-`.
const AREA: &str = "tempdirs/crio-staging";
const LOCK: &str = "lock";
const PENDING: &str = "pending";
const FILE_PREFIX: &str = ".crio-staged-";

/// How a driver makes the directory a layer is unpacked into.
pub(crate) type MakeDiff = fn(&Path) -> Result<(), PathError>;

/// A plain directory.
pub(crate) fn plain_diff(path: &Path) -> Result<(), PathError> {
    make_dir(path, 0o755)
}

/// One process's part of the staging area.
#[derive(Debug)]
pub(crate) struct Staging {
    make_diff: MakeDiff,
    area: PathBuf,
    instance: PathBuf,
    lock: File,
    next: AtomicU64,
}

/// What processes that are gone have left.
pub(crate) struct Leftovers {
    /// Layers that may be used by nothing, and since when.
    pub(crate) pending: Vec<(LayerId, SystemTime)>,
    instances: Vec<(PathBuf, File)>,
}

fn make_dir(path: &Path, mode: u32) -> Result<(), PathError> {
    DirBuilder::new().mode(mode).create(path).map_err(PathError::new("make directory", path))
}

fn open_lock(path: &Path) -> Result<File, PathError> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(PathError::new("open lock", path))
}

impl Staging {
    /// Makes this process's part, and finds those of processes that are gone.
    pub(crate) fn open(home: &Path, make_diff: MakeDiff) -> Result<(Self, Leftovers), PathError> {
        let area = home.join(AREA);
        match DirBuilder::new().mode(0o700).recursive(true).create(&area) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(PathError::new("make directory", &area)(error));
            }
            _ => {}
        }
        // Held while instances come and go, so that none is taken for dead before it has its own lock.
        let area_lock_path = area.join(LOCK);
        let area_lock = open_lock(&area_lock_path)?;
        lock_record(area_lock.as_fd(), RecordLock::Exclusive).map_err(PathError::new("lock", &area_lock_path))?;
        let leftovers = find_leftovers(&area)?;
        let instance = area.join(random::hex(8).map_err(PathError::new("draw a name in", &area))?);
        make_dir(&instance, 0o700)?;
        make_dir(&instance.join(PENDING), 0o700)?;
        let lock_path = instance.join(LOCK);
        let lock = open_lock(&lock_path)?;
        lock_record(lock.as_fd(), RecordLock::Exclusive).map_err(PathError::new("lock", &lock_path))?;
        let _ = unlock_record(area_lock.as_fd());
        Ok((Self { make_diff, area, instance, lock, next: AtomicU64::new(0) }, leftovers))
    }

    fn next_path(&self) -> PathBuf {
        self.instance.join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// A directory with an empty `diff`, removed when dropped.
    pub(crate) fn new_dir(&self) -> Result<StagingDir, PathError> {
        let directory = self.new_empty_dir()?;
        (self.make_diff)(&directory.path().join(DIFF))?;
        Ok(directory)
    }

    /// An empty directory, removed when dropped.
    pub(crate) fn new_empty_dir(&self) -> Result<StagingDir, PathError> {
        let path = self.next_path();
        fault::step("make staging directory").map_err(PathError::new("make directory", &path))?;
        make_dir(&path, 0o700)?;
        Ok(StagingDir { path: Some(path) })
    }

    /// A name in `directory` for a file on its way in; removed when dropped.
    ///
    /// Not in the staging area, because the driver's home may be a mount of its own and files are not renamed across.
    pub(crate) fn new_file(&self, directory: &Path) -> StagingFile {
        let instance = self.instance.file_name().unwrap_or_default().to_string_lossy();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        StagingFile { path: Some(directory.join(format!("{FILE_PREFIX}{instance}-{number}"))) }
    }

    /// Whether a file made by [`Staging::new_file`] belongs to a process that is gone.
    pub(crate) fn is_stale_file(&self, name: &str) -> bool {
        let instance = name.strip_prefix(FILE_PREFIX).and_then(|rest| rest.split('-').next());
        instance.is_some_and(|instance| !instance.is_empty() && !self.area.join(instance).exists())
    }

    /// Takes a directory of the driver's home out of the way in one step; removed when the returned value is dropped.
    /// `None` if it is not there.
    pub(crate) fn take(&self, path: &Path) -> Result<Option<StagingDir>, PathError> {
        let to = self.next_path();
        fault::step("move directory away").map_err(PathError::new("move away", path))?;
        match rustix::fs::rename(path, &to) {
            Ok(()) => Ok(Some(StagingDir { path: Some(to) })),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(PathError::new("move away", path)(error)),
        }
    }

    /// Notes that a layer may be used by nothing from now on.
    pub(crate) fn mark_pending(&self, layer: &str) -> Result<(), PathError> {
        let path = self.instance.join(PENDING).join(layer);
        fault::step("mark layer pending").map_err(PathError::new("mark", &path))?;
        File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map(drop)
            .map_err(PathError::new("mark", &path))
    }

    /// The same for a mark of an earlier process: the layer has waited since then.
    pub(crate) fn mark_pending_since(&self, layer: &str, since: SystemTime) -> Result<(), PathError> {
        self.mark_pending(layer)?;
        let path = self.instance.join(PENDING).join(layer);
        let marked = File::options().write(true).open(&path);
        marked
            .and_then(|file| file.set_times(FileTimes::new().set_modified(since)))
            .map_err(PathError::new("mark", &path))
    }

    /// What is marked, and since when.
    pub(crate) fn pending(&self) -> Vec<(LayerId, SystemTime)> {
        marks_in(&self.instance.join(PENDING))
    }

    /// Takes [`Staging::mark_pending`] back. A mark that stays does no harm: it is looked at again later.
    pub(crate) fn unmark_pending(&self, layer: &str) {
        let _ = std::fs::remove_file(self.instance.join(PENDING).join(layer));
    }
}

impl Staging {
    /// Every part, those of the living and those of the dead; none while one comes.
    fn instances(&self) -> (Vec<PathBuf>, Vec<PathBuf>) {
        let area_lock = open_lock(&self.area.join(LOCK)).ok();
        let _held = area_lock.as_ref().map(|lock| lock_record(lock.as_fd(), RecordLock::Exclusive));
        let Ok(entries) = std::fs::read_dir(&self.area) else { return Default::default() };
        let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        directories.map(|entry| entry.path()).partition(|instance| !self.is_dead(instance))
    }

    /// Whether the process an instance belongs to is gone.
    fn is_dead(&self, instance: &Path) -> bool {
        // Not made if it is missing: then it is being removed.
        *instance != self.instance
            && File::options().read(true).write(true).open(instance.join(LOCK)).is_ok_and(|lock| {
                let is_free = try_lock_record(lock.as_fd(), RecordLock::Exclusive).unwrap_or(false);
                // Closing would let go too; sooner is better for whoever asks next.
                let _ = unlock_record(lock.as_fd());
                is_free
            })
    }

    /// Parts of processes that are gone.
    pub(crate) fn left_by_the_dead(&self) -> Vec<PathBuf> {
        self.instances().1
    }

    /// Layers that processes which live, this one too, mark as about to be used or to go.
    pub(crate) fn marked_by_the_living(&self) -> HashSet<String> {
        let marks =
            self.instances().0.into_iter().filter_map(|instance| std::fs::read_dir(instance.join(PENDING)).ok());
        marks.flatten().flatten().filter_map(|mark| mark.file_name().into_string().ok()).collect()
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if fault::is_dead() {
            let _ = unlock_record(self.lock.as_fd());
            return;
        }
        // Marks of layers that still wait for an image keep the instance: the next store looks at them.
        let pending = std::fs::read_dir(self.instance.join(PENDING)).is_ok_and(|mut marks| marks.next().is_some());
        if !pending && let Err(error) = std::fs::remove_dir_all(&self.instance) {
            tracing::warn!(path = %self.instance.display(), %error, "staging directory stays until the next start");
        }
        let _ = unlock_record(self.lock.as_fd());
        tracing::trace!(area = %self.area.display(), "staging closed");
    }
}

fn find_leftovers(area: &Path) -> Result<Leftovers, PathError> {
    let mut found = Leftovers { pending: Vec::new(), instances: Vec::new() };
    for entry in std::fs::read_dir(area).map_err(PathError::new("list", area))? {
        let entry = entry.map_err(PathError::new("list", area))?;
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let instance = entry.path();
        let lock = open_lock(&instance.join(LOCK))?;
        if !try_lock_record(lock.as_fd(), RecordLock::Exclusive).map_err(PathError::new("lock", &instance))? {
            continue;
        }
        found.pending.extend(marks_in(&instance.join(PENDING)));
        found.instances.push((instance, lock));
    }
    Ok(found)
}

fn marks_in(directory: &Path) -> Vec<(LayerId, SystemTime)> {
    let Ok(marks) = std::fs::read_dir(directory) else { return Vec::new() };
    let mark = |mark: io::Result<std::fs::DirEntry>| {
        let mark = mark.ok()?;
        let since = mark.metadata().and_then(|found| found.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        Some((LayerId::parse(&mark.file_name().into_string().ok()?).ok()?, since))
    };
    marks.filter_map(mark).collect()
}

impl Leftovers {
    /// Takes in what was found elsewhere.
    pub(crate) fn join(&mut self, other: Self) {
        self.pending.extend(other.pending);
        self.instances.extend(other.instances);
    }

    /// Removes the directories, after what they mark has been dealt with.
    pub(crate) fn remove(self) -> Result<(), PathError> {
        for (instance, lock) in self.instances {
            remove_tree(&instance)?;
            let _ = unlock_record(lock.as_fd());
        }
        Ok(())
    }
}

/// Removes a directory and all it holds, without following links; fine if it is not there.
pub(crate) fn remove_tree(path: &Path) -> Result<(), PathError> {
    if is_subvolume(path) && btrfs::delete_subvolume(path).is_ok() {
        return Ok(());
    }
    // An empty subvolume goes as a directory does, since Linux 4.18.
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(PathError::new("remove", path)(error)),
        _ => Ok(()),
    }
}

fn is_subvolume(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|stat| stat.is_dir() && stat.ino() == sys::btrfs::SUBVOLUME_INODE)
}

/// A directory without a name; removed when dropped.
#[derive(Debug)]
pub(crate) struct StagingDir {
    path: Option<PathBuf>,
}

impl StagingDir {
    pub(crate) fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new(""))
    }

    /// Moves the directory to its place.
    pub(crate) fn move_to(mut self, target: &Path) -> Result<(), PathError> {
        fault::step("move layer to its place").map_err(PathError::new("move to", target))?;
        rustix::fs::rename(self.path(), target).map_err(PathError::new("move to", target))?;
        self.path = None;
        Ok(())
    }
}

impl Drop for StagingDir {
    fn drop(&mut self) {
        if let (Some(path), false) = (&self.path, fault::is_dead())
            && let Err(error) = remove_tree(path)
        {
            tracing::warn!(path = %path.display(), error = %error.source, "directory stays until the next start");
        }
    }
}

/// A file without a name of its own yet; removed when dropped.
#[derive(Debug)]
pub(crate) struct StagingFile {
    path: Option<PathBuf>,
}

impl StagingFile {
    pub(crate) fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new(""))
    }

    /// Gives the file its name.
    pub(crate) fn move_to(mut self, target: &Path) -> Result<(), PathError> {
        fault::step("move file to its place").map_err(PathError::new("move to", target))?;
        rustix::fs::rename(self.path(), target).map_err(PathError::new("move to", target))?;
        self.path = None;
        Ok(())
    }
}

impl Drop for StagingFile {
    fn drop(&mut self) {
        if let (Some(path), false) = (&self.path, fault::is_dead()) {
            let _ = std::fs::remove_file(path);
        }
    }
}
