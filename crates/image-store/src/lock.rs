//! Lock files shared with the other tools of the field.
//!
//! A lock is a record lock on the whole file; the content, 64 bytes, names the last writer, so that whoever takes the
//! lock next knows whether what it remembers is still true.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{CWD, Mode, OFlags};
use sys::locks::{RecordLock, lock_record, unlock_record};

/// Length of the last-writer content.
const STAMP_LEN: usize = 64;

/// Who wrote last: compared, never interpreted.
pub(crate) type Stamp = [u8; STAMP_LEN];

/// One open lock file. Threads of this process exclude one another by the mutex of whoever owns it.
#[derive(Debug)]
pub(crate) struct SharedLock {
    path: PathBuf,
    file: File,
    random: [u8; 44],
}

static WRITES: AtomicU64 = AtomicU64::new(0);

impl SharedLock {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(CWD, path, flags, Mode::from_raw_mode(0o644))?);
        let mut random = [0; 44];
        File::open("/dev/urandom")?.read_exact_at(&mut random, 0)?;
        Ok(Self { path: path.to_owned(), file, random })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn hold(&self, lock: RecordLock) -> io::Result<Held<'_>> {
        lock_record(self.file.as_fd(), lock)?;
        Ok(Held { lock: self })
    }
}

/// A held lock; dropping it lets go.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    lock: &'a SharedLock,
}

impl Held<'_> {
    pub(crate) fn path(&self) -> &Path {
        self.lock.path()
    }

    /// The last writer; `None` when nobody wrote since the file was made.
    pub(crate) fn stamp(&self) -> io::Result<Option<Stamp>> {
        let mut stamp = [0; STAMP_LEN];
        match self.lock.file.read_at(&mut stamp, 0)? {
            0 => Ok(None),
            // Shorter ones were written by tools of before 2022; the zeros behind them compare as well.
            _ => Ok(Some(stamp)),
        }
    }

    /// Makes this process the last writer.
    pub(crate) fn write_stamp(&self) -> io::Result<Stamp> {
        let mut stamp = [0; STAMP_LEN];
        let nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        // 64 bits of nanoseconds last until 2554.
        stamp[0..8].copy_from_slice(&nanoseconds.to_le_bytes()[..8]);
        stamp[8..16].copy_from_slice(&WRITES.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        stamp[16..20].copy_from_slice(&std::process::id().to_le_bytes());
        stamp[20..].copy_from_slice(&self.lock.random);
        self.lock.file.write_all_at(&stamp, 0)?;
        Ok(stamp)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Err(error) = unlock_record(self.lock.file.as_fd()) {
            tracing::error!(path = %self.lock.path.display(), %error, "unlock failed");
        }
    }
}
