//! Blobs that were not fetched to their end, kept for whoever asks for them next: after a restart, or after a pull that
//! was given up.
//!
//! `<directory>/<digest>.partial` holds the first bytes of a blob. Whoever writes it or reads from it holds a lock; others
//! do without. Its bytes are as good as the registry's: the digest is checked over all of them at the end, so that nothing
//! here needs to be durable. Only what comes slowly is kept, because fetching it again would hurt.

use std::fs::{File, FileTimes};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use domain::digest::Digest;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use tokio::time::Instant;

use crate::blocking;

const SUFFIX: &str = ".partial";
/// Bytes by which the speed of a line is judged; so many are held in memory for each blob.
const JUDGED_BYTES: usize = 2 << 20;
/// How long a line may take for that.
const JUDGED_TIME: Duration = Duration::from_secs(2);
/// Bytes written at a time.
const WRITE_BYTES: usize = 1 << 20;
/// Bytes read at a time.
const READ_BYTES: usize = 256 << 10;
/// Room that is left to others on the file system, besides twice the blob.
const ROOM_LEFT: u64 = 1 << 30;

/// Where and when the beginnings of blobs are kept.
#[derive(Debug, Clone)]
pub struct PartialOptions {
    /// A directory of its own; made with mode 0700. One that others may write to is not used.
    pub directory: PathBuf,
    /// Kept is what comes with fewer bytes a second.
    pub slower_than: u64,
    /// Kept is what has at least so many bytes to come.
    pub at_least: u64,
}

impl PartialOptions {
    /// The usual limits: a line of less than 30 MiB a second, and half a second of that or more to come.
    #[must_use]
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), slower_than: 30 << 20, at_least: 16 << 20 }
    }
}

/// The beginnings of blobs.
#[derive(Debug, Clone)]
pub(crate) struct Partials(Arc<PartialOptions>);

impl Partials {
    pub(crate) fn new(options: PartialOptions) -> Self {
        Self(Arc::new(options))
    }

    /// What there is of a blob, locked; `None` if nothing, or if somebody else has it.
    pub(crate) async fn find(&self, digest: &Digest, size: u64) -> Option<Kept> {
        if size < self.0.at_least {
            return None;
        }
        let (options, name) = (Arc::clone(&self.0), name_of(digest));
        let found = blocking::run("look for the beginning of a blob", move || {
            // Not made for looking.
            if !options.directory.exists() {
                return Ok(None);
            }
            let file = match open_in(&options.directory, &name, OFlags::RDWR) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                file => file?,
            };
            let length = file.metadata()?.len();
            let is_ours = lock(&file)?;
            Ok((is_ours && length > 0 && length <= size).then_some(Kept { file: Arc::new(file), length }))
        });
        found.await.and_then(|found| found).unwrap_or_else(|error| {
            tracing::debug!(%digest, %error, "the beginning of a blob cannot be used");
            None
        })
    }

    /// Removes what there is of a blob, because all of it is here or because it is worth nothing.
    pub(crate) async fn forget(&self, digest: &Digest) {
        let (options, name) = (Arc::clone(&self.0), name_of(digest));
        let removed =
            blocking::run("forget the beginning of a blob", move || match open_directory(&options.directory) {
                Ok(directory) => match rustix::fs::unlinkat(&directory, &name, AtFlags::empty()) {
                    Err(error) if error != rustix::io::Errno::NOENT => Err(error.into()),
                    _ => Ok(()),
                },
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
            });
        if let Err(error) = removed.await.and_then(|removed| removed) {
            tracing::debug!(%digest, %error, "the beginning of a blob stays");
        }
    }

    /// Removes what was not written to for `age`, and is not in use; returns how many.
    pub(crate) fn sweep(&self, age: Duration, now: SystemTime) -> io::Result<usize> {
        let entries = match std::fs::read_dir(&self.0.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            entries => entries?,
        };
        let directory = open_directory(&self.0.directory)?;
        let mut removed = 0;
        for entry in entries {
            let Ok(name) = entry?.file_name().into_string() else { continue };
            if !name.ends_with(SUFFIX) {
                continue;
            }
            let Ok(file) = open_in(&self.0.directory, &name, OFlags::RDWR) else { continue };
            let is_old = file.metadata()?.modified()? + age < now;
            if is_old && lock(&file)? {
                rustix::fs::unlinkat(&directory, &name, AtFlags::empty())?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    fn create(&self, digest: &Digest, size: u64) -> io::Result<Option<File>> {
        let directory = &self.0.directory;
        match std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let room = rustix::fs::statvfs(directory)?;
        if room.f_bavail.saturating_mul(room.f_frsize) < size.saturating_mul(2).saturating_add(ROOM_LEFT) {
            return Ok(None);
        }
        let file = open_in(directory, &name_of(digest), OFlags::RDWR | OFlags::CREATE)?;
        if !lock(&file)? {
            return Ok(None);
        }
        file.set_len(0)?;
        Ok(Some(file))
    }
}

fn name_of(digest: &Digest) -> String {
    format!("{}{SUFFIX}", digest.hex())
}

/// A directory that nobody else can put files into.
fn open_directory(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let found = directory.metadata()?;
    if found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o077 != 0 {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "others may use the directory"));
    }
    Ok(directory)
}

fn open_in(directory: &Path, name: &str, flags: OFlags) -> io::Result<File> {
    let directory = open_directory(directory)?;
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::openat(&directory, name, flags, Mode::from_raw_mode(0o600))?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(file)
}

/// Takes the file for oneself; `false` if somebody else has it, or has removed it meanwhile.
fn lock(file: &File) -> io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file.metadata()?.nlink() > 0),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The beginning of a blob, found.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    file: Arc<File>,
    length: u64,
}

impl Kept {
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// The bytes from `at` on, some of them; empty at the end.
    pub(crate) async fn read(&self, at: u64) -> io::Result<Bytes> {
        let file = Arc::clone(&self.file);
        let length = usize::try_from(self.length - at).unwrap_or(READ_BYTES).min(READ_BYTES);
        blocking::run("read the beginning of a blob", move || {
            let mut bytes = vec![0; length];
            let count = file.read_at(&mut bytes, at)?;
            bytes.truncate(count);
            Ok(Bytes::from(bytes))
        })
        .await?
    }
}

/// Watches a blob come, and keeps its beginning if it comes slowly.
#[derive(Debug)]
pub(crate) enum Keeper {
    /// Not decided: what has come is held.
    Judging { partials: Partials, digest: Digest, size: u64, since: Instant, held: Vec<Bytes>, bytes: usize },
    /// It is written.
    Writing { file: Arc<File>, at: u64, held: Vec<Bytes>, bytes: usize, digest: Digest },
    /// It comes fast, or cannot be kept.
    Off,
}

impl Keeper {
    /// For a blob of which nothing is there.
    pub(crate) fn begin(partials: Option<&Partials>, digest: &Digest, size: u64) -> Self {
        match partials {
            Some(partials) if size >= partials.0.at_least => Self::Judging {
                partials: partials.clone(),
                digest: digest.clone(),
                size,
                since: Instant::now(),
                held: Vec::new(),
                bytes: 0,
            },
            _ => Self::Off,
        }
    }

    /// For one whose beginning was found: what follows is written after it.
    pub(crate) fn go_on(kept: &Kept, digest: &Digest) -> Self {
        let file = Arc::clone(&kept.file);
        Self::Writing { file, at: kept.length, held: Vec::new(), bytes: 0, digest: digest.clone() }
    }

    /// Takes note of bytes that have come.
    pub(crate) async fn see(&mut self, piece: &Bytes) {
        match self {
            Self::Off => {}
            Self::Judging { since, held, bytes, .. } => {
                held.push(piece.clone());
                *bytes += piece.len();
                if *bytes >= JUDGED_BYTES || since.elapsed() >= JUDGED_TIME {
                    self.judge().await;
                }
            }
            Self::Writing { held, bytes, .. } => {
                held.push(piece.clone());
                *bytes += piece.len();
                if *bytes >= WRITE_BYTES {
                    self.write().await;
                }
            }
        }
    }

    /// Writes what is still held.
    pub(crate) async fn end(&mut self) {
        if matches!(self, Self::Writing { bytes: 1.., .. }) {
            self.write().await;
        }
    }

    async fn judge(&mut self) {
        let Self::Judging { partials, digest, size, since, held, bytes } = std::mem::replace(self, Self::Off) else {
            return;
        };
        let millis = since.elapsed().as_millis().max(1);
        let rate = u64::try_from(bytes as u128 * 1000 / millis).unwrap_or(u64::MAX);
        if rate >= partials.0.slower_than || size.saturating_sub(bytes as u64) < partials.0.at_least {
            return;
        }
        let wanted = digest.clone();
        let created = blocking::run("keep a blob", move || partials.create(&wanted, size)).await;
        match created.and_then(|created| created) {
            Ok(Some(file)) => {
                tracing::debug!(%digest, rate, "a blob comes slowly and is kept as it comes");
                *self = Self::Writing { file: Arc::new(file), at: 0, held, bytes, digest };
                self.write().await;
            }
            // Somebody else keeps it, or there is no room.
            Ok(None) => {}
            Err(error) => tracing::debug!(%digest, %error, "a blob that comes slowly cannot be kept"),
        }
    }

    async fn write(&mut self) {
        let Self::Writing { file, at, held, bytes, digest } = self else { return };
        let (target, from, pieces) = (Arc::clone(file), *at, std::mem::take(held));
        let written = blocking::run("keep a blob", move || {
            let mut at = from;
            for piece in pieces {
                target.write_all_at(&piece, at)?;
                at += piece.len() as u64;
            }
            Ok::<_, io::Error>(())
        });
        match written.await.and_then(|written| written) {
            Ok(()) => {
                *at += *bytes as u64;
                *bytes = 0;
            }
            Err(error) => {
                tracing::debug!(%digest, %error, "a blob is not kept any further");
                // What was written before is good; a torn end is not.
                let _ = file.set_len(*at);
                let _ = file.set_times(FileTimes::new().set_modified(SystemTime::now()));
                *self = Self::Off;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(directory: &Path) -> PartialOptions {
        PartialOptions { directory: directory.join("partial"), slower_than: u64::MAX, at_least: 10 }
    }

    fn digest(byte: u8) -> Digest {
        Digest::from_sha256(&[byte; 32])
    }

    async fn keep(partials: &Partials, digest: &Digest, size: u64, pieces: &[&[u8]]) -> Keeper {
        let mut keeper = Keeper::begin(Some(partials), digest, size);
        for piece in pieces {
            keeper.see(&Bytes::copy_from_slice(piece)).await;
        }
        keeper.judge().await;
        keeper.end().await;
        keeper
    }

    #[tokio::test]
    async fn what_was_kept_is_found_by_one_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let partials = Partials::new(options(directory.path()));
        assert!(partials.find(&digest(1), 100).await.is_none());
        let keeper = keep(&partials, &digest(1), 100, &[b"abc", b"defg"]).await;
        assert!(partials.find(&digest(1), 100).await.is_none(), "somebody writes it");
        drop(keeper);
        let kept = partials.find(&digest(1), 100).await.unwrap();
        assert!(partials.find(&digest(1), 100).await.is_none(), "somebody reads it");
        assert_eq!((kept.length(), &kept.read(2).await.unwrap()[..]), (7, &b"cdefg"[..]));
        let mut on = Keeper::go_on(&kept, &digest(1));
        drop(kept);
        on.see(&Bytes::from_static(b"hij")).await;
        on.end().await;
        drop(on);
        let kept = partials.find(&digest(1), 100).await.unwrap();
        assert_eq!(&kept.read(0).await.unwrap()[..], b"abcdefghij");
        drop(kept);
        assert!(partials.find(&digest(1), 9).await.is_none(), "too small to be kept");
        assert!(partials.find(&digest(2), 100).await.is_none());
        partials.forget(&digest(1)).await;
        assert!(partials.find(&digest(1), 100).await.is_none());
        partials.forget(&digest(1)).await;
    }

    #[tokio::test]
    async fn what_comes_fast_or_is_small_is_not_kept() {
        let directory = tempfile::tempdir().unwrap();
        let fast = Partials::new(PartialOptions { slower_than: 0, ..options(directory.path()) });
        assert!(matches!(keep(&fast, &digest(1), 100, &[b"abc"]).await, Keeper::Off));
        let partials = Partials::new(options(directory.path()));
        assert!(matches!(keep(&partials, &digest(1), 12, &[b"abc"]).await, Keeper::Off), "little is left");
        assert!(!directory.path().join("partial").exists(), "nothing was made for nothing");
    }

    #[tokio::test]
    async fn old_ones_go_and_directories_of_others_are_not_used() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let partials = Partials::new(options(directory.path()));
        let hour = Duration::from_secs(3600);
        let now = SystemTime::now();
        assert_eq!(partials.sweep(hour, now).unwrap(), 0);
        let used = keep(&partials, &digest(1), 100, &[b"abc"]).await;
        drop(keep(&partials, &digest(2), 100, &[b"abc"]).await);
        assert_eq!(partials.sweep(hour, now).unwrap(), 0, "young");
        assert_eq!(partials.sweep(hour, now + hour * 2).unwrap(), 1, "one is in use");
        drop(used);
        assert!(partials.find(&digest(1), 100).await.is_some());
        let path = directory.path().join("partial");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(partials.find(&digest(1), 100).await.is_none());
        assert!(matches!(keep(&partials, &digest(3), 100, &[b"abc"]).await, Keeper::Off));
        std::fs::remove_dir_all(&path).unwrap();
        std::os::unix::fs::symlink("/", &path).unwrap();
        assert!(matches!(keep(&partials, &digest(3), 100, &[b"abc"]).await, Keeper::Off));
    }
}
