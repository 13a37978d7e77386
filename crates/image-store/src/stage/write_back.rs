//! Getting files to the disk while more of them come, so that little is left to wait for at the end.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{Mode, OFlags};

/// Written between two flushes: enough that each is worth its journal commit, and a fraction of a second of any disk.
const STEP_BYTES: u64 = 32 << 20;

/// What all layers under way have written since a flush began. One flush is under way at a time.
#[derive(Debug, Default)]
pub(crate) struct WriteBack {
    written: AtomicU64,
    is_flushing: Arc<AtomicBool>,
}

impl WriteBack {
    /// Notes that this much was written beneath `directory`, and begins a flush when it is time.
    ///
    /// Promises nothing: whoever needs files to be durable calls `syncfs` on a descriptor opened before they were made,
    /// which also reports what went wrong in these flushes.
    pub(crate) fn note(&self, directory: BorrowedFd<'_>, bytes: u64) {
        let written = self.written.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if written < STEP_BYTES || self.is_flushing.swap(true, Ordering::Relaxed) {
            return;
        }
        self.written.store(0, Ordering::Relaxed);
        let is_flushing = Arc::clone(&self.is_flushing);
        // Opened anew: an error is told once for each opening, and must be told where somebody listens.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(directory, ".", flags, Mode::empty());
        let flush = move || {
            if let Ok(directory) = opened {
                let _ = rustix::fs::syncfs(directory.as_fd());
            }
            is_flushing.store(false, Ordering::Relaxed);
        };
        if std::thread::Builder::new().name("write-back".to_owned()).spawn(flush).is_err() {
            self.is_flushing.store(false, Ordering::Relaxed);
        }
    }
}
