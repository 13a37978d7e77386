//! A lock file that one holder has at a time: `flock(2)` on a file of its own.
//!
//! For locks between our own processes. Those shared with other tools of the field are record locks; they live with
//! the store whose format prescribes them.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{CWD, FlockOperation, Mode, OFlags};

/// A held lock; dropping it lets go. The file stays, because removing it would let two holders in.
#[derive(Debug)]
pub struct LockFile {
    file: File,
}

impl LockFile {
    /// Waits until the lock is free and takes it. The file is made, mode 0600, if it is absent.
    pub fn lock(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        loop {
            match rustix::fs::flock(&file, FlockOperation::LockExclusive) {
                Err(rustix::io::Errno::INTR) => {}
                other => return other.map(|()| Self { file }).map_err(Into::into),
            }
        }
    }

    /// Takes the lock if it is free, else returns `None`.
    pub fn try_lock(path: &Path) -> io::Result<Option<Self>> {
        let file = open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(other) => Err(other.into()),
        }
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        // Explicit, because a child between fork and exec may still have a copy of the descriptor.
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}

fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(File::from(rustix::fs::openat(CWD, path, flags, Mode::from_raw_mode(0o600))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time() {
        let path = std::env::temp_dir().join(format!("durable-lock-{}", std::process::id()));
        let held = LockFile::lock(&path).unwrap();
        assert!(LockFile::try_lock(&path).unwrap().is_none());
        drop(held);
        assert!(LockFile::try_lock(&path).unwrap().is_some());
        std::fs::remove_file(&path).unwrap();
    }
}
