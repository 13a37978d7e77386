//! A kind of record: its lock file, its JSON files (stable, and volatile where there is one), and what we remember.
//!
//! A write first makes us the last writer, then replaces the file: a crash in between makes others reload what did
//! not change, which is harmless. A change that could not be written is forgotten, because the next access reloads.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use durable::{Durability, ReplaceError};
use sys::locks::RecordLock;
use thiserror::Error;

use crate::fault;
use crate::lock::{Held, SharedLock, Stamp};
use crate::records::Record;

/// Largest record file read: a node with 100,000 layers has a tenth of that; anything more is not ours to load.
const FILE_MAX_BYTES: u64 = 512 << 20;

/// Why the records of the store could not be read or written.
#[derive(Debug, Error)]
pub enum RecordsError {
    /// The lock could not be taken, or its content not read or written.
    #[error("lock {path}")]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A record file could not be read.
    #[error("read {path}")]
    Read {
        /// The record file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A record file is not what it should be. It is left alone.
    #[error("parse {path}")]
    Parse {
        /// The record file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A record could not be put into words. The file is unchanged.
    #[error("encode {path}")]
    Encode {
        /// The record file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// What was to be changed is in a store that is only read.
    #[error("{what} is in an additional image store, which is read-only")]
    ReadOnly {
        /// A record, by name or id.
        what: String,
    },
    /// A record file could not be replaced. It is unchanged.
    #[error("write {path}")]
    Write {
        /// The record file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ReplaceError,
    },
}

/// One JSON file of a table.
#[derive(Debug, Clone)]
pub(crate) struct TableFile {
    pub(crate) path: PathBuf,
    pub(crate) durability: Durability,
}

/// What a file looked like when it was read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct FileStamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl FileStamp {
    fn of(path: &Path) -> io::Result<Self> {
        match std::fs::metadata(path) {
            Ok(data) => Ok(Self { inode: data.ino(), size: data.size(), modified: (data.mtime(), data.mtime_nsec()) }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }
}

/// A record file of a store that is only read, and the lock its owner takes.
#[derive(Debug, Clone)]
pub(crate) struct ForeignFile {
    pub(crate) path: PathBuf,
    pub(crate) lock: PathBuf,
}

#[derive(Debug)]
struct State<R> {
    loaded: bool,
    stamps: Vec<Option<Stamp>>,
    files: Vec<FileStamp>,
    rows: Vec<Vec<R>>,
    foreign: Vec<R>,
}

/// A kind of record.
#[derive(Debug)]
pub(crate) struct Table<R> {
    /// Taken in this order; the last writer of any of them makes others read all files again.
    locks: Vec<SharedLock>,
    files: Vec<TableFile>,
    foreign: Vec<ForeignFile>,
    state: Mutex<State<R>>,
}

impl<R: Record> Table<R> {
    pub(crate) fn open(
        locks: &[PathBuf],
        files: Vec<TableFile>,
        foreign: Vec<ForeignFile>,
    ) -> Result<Self, RecordsError> {
        let open =
            |path: &PathBuf| SharedLock::open(path).map_err(|source| RecordsError::Lock { path: path.clone(), source });
        let locks = locks.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let state = Mutex::new(State {
            loaded: false,
            stamps: Vec::new(),
            files: Vec::new(),
            rows: vec![Vec::new(); files.len()],
            foreign: Vec::new(),
        });
        Ok(Self { locks, files, foreign, state })
    }

    /// The records as they are now; others may read at the same time, in other processes.
    pub(crate) fn read(&self) -> Result<Guard<'_, R>, RecordsError> {
        self.enter(RecordLock::Shared)
    }

    /// The records as they are now, for changing.
    pub(crate) fn write(&self) -> Result<Guard<'_, R>, RecordsError> {
        self.enter(RecordLock::Exclusive)
    }

    /// Moves files aside that need not survive and did not: after a loss of power one can be cut short, which must not
    /// keep the store from opening. Stable ones are left for somebody to look at.
    pub(crate) fn set_aside_damaged(&self) -> Result<(), RecordsError> {
        for file in self.files.iter().filter(|file| file.durability == Durability::Volatile) {
            let Err(RecordsError::Parse { path, source }) = self.write().map(drop) else { continue };
            if path != file.path {
                continue;
            }
            let _held = self.hold(RecordLock::Exclusive)?;
            let mut aside = path.clone().into_os_string();
            aside.push(".damaged");
            rustix::fs::rename(&path, &aside)
                .map_err(|error| RecordsError::Read { path: path.clone(), source: error.into() })?;
            tracing::error!(path = %path.display(), error = %source, "damaged volatile records were set aside");
        }
        Ok(())
    }

    fn hold(&self, kind: RecordLock) -> Result<Vec<Held<'_>>, RecordsError> {
        self.locks
            .iter()
            .map(|lock| lock.hold(kind).map_err(|source| RecordsError::Lock { path: lock.path().to_owned(), source }))
            .collect()
    }

    fn enter(&self, kind: RecordLock) -> Result<Guard<'_, R>, RecordsError> {
        // A panic elsewhere cannot have left half a change: `dirty` makes the next access reload.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let held = self.hold(kind)?;
        let stamp = |held: &Held<'_>| {
            held.stamp().map_err(|source| RecordsError::Lock { path: held.path().to_owned(), source })
        };
        let stamps = held.iter().map(stamp).collect::<Result<Vec<_>, _>>()?;
        let paths = self.files.iter().map(|file| &file.path).chain(self.foreign.iter().map(|file| &file.path));
        let stamp_of =
            |path: &PathBuf| FileStamp::of(path).map_err(|source| RecordsError::Read { path: path.clone(), source });
        let files = paths.map(stamp_of).collect::<Result<Vec<_>, _>>()?;
        if !state.loaded || state.stamps != stamps || state.files != files {
            state.loaded = false;
            let rows = self.files.iter().map(|file| load(&file.path)).collect::<Result<Vec<_>, _>>()?;
            let mut foreign: Vec<R> = Vec::new();
            for file in &self.foreign {
                // Of two stores with the same record the first counts.
                let more: Vec<R> = load_foreign(file)?;
                foreign
                    .extend(more.into_iter().filter(|row| rows.iter().flatten().all(|own: &R| own.id() != row.id())));
            }
            *state = State { loaded: true, stamps, files, rows, foreign };
        }
        Ok(Guard { held, state, table: self, dirty: false })
    }
}

/// Reads records of a store that is only read: its lock is taken if it can be, and never written to or made.
fn load_foreign<R: Record>(file: &ForeignFile) -> Result<Vec<R>, RecordsError> {
    let lock_error = |source| RecordsError::Lock { path: file.lock.clone(), source };
    let _held = match std::fs::File::open(&file.lock) {
        Ok(lock) => {
            sys::locks::lock_record(lock.as_fd(), RecordLock::Shared).map_err(lock_error)?;
            // Let go of by closing.
            Some(lock)
        }
        // Nobody has written to a store without one since it was made.
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(lock_error(error)),
    };
    load(&file.path)
}

fn load<R: Record>(path: &Path) -> Result<Vec<R>, RecordsError> {
    let read = |source| RecordsError::Read { path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(read(error)),
    };
    let mut bytes = Vec::new();
    file.take(FILE_MAX_BYTES + 1).read_to_end(&mut bytes).map_err(read)?;
    if bytes.len() as u64 > FILE_MAX_BYTES {
        return Err(read(io::Error::new(io::ErrorKind::FileTooLarge, "larger than a record file may be")));
    }
    // A file of no bytes is what a volatile one can be after a loss of power.
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Option<Vec<R>> =
        serde_json::from_slice(&bytes).map_err(|source| RecordsError::Parse { path: path.to_owned(), source })?;
    Ok(rows.unwrap_or_default())
}

/// The records while the lock is held.
pub(crate) struct Guard<'a, R: Record> {
    // Dropped in this order: the lock others see goes before the one our threads see.
    held: Vec<Held<'a>>,
    state: MutexGuard<'a, State<R>>,
    table: &'a Table<R>,
    dirty: bool,
}

impl<R: Record> Guard<'_, R> {
    /// All records; of one in several stores the one that can be changed.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &R> {
        let is_hidden = |row: &&R| self.state.rows.iter().flatten().any(|own| own.id() == row.id());
        self.state.rows.iter().flatten().chain(self.state.foreign.iter().filter(move |row| !is_hidden(row)))
    }

    /// Those that can be changed.
    pub(crate) fn own(&self) -> impl Iterator<Item = &R> {
        self.state.rows.iter().flatten()
    }

    /// Whether a record is only in stores that are read.
    pub(crate) fn is_foreign(&self, id: &str) -> bool {
        self.locate(id).is_none() && self.state.foreign.iter().any(|row| row.id() == id)
    }

    pub(crate) fn find(&self, id: &str) -> Option<&R> {
        self.iter().find(|row| row.id() == id)
    }

    /// Which file has the record, and the record; none if it is in a store that is only read.
    pub(crate) fn locate(&self, id: &str) -> Option<(usize, &R)> {
        self.state
            .rows
            .iter()
            .enumerate()
            .find_map(|(file, rows)| rows.iter().find(|row| row.id() == id).map(|row| (file, row)))
    }

    pub(crate) fn find_name(&self, name: &str) -> Option<&R> {
        self.iter().find(|row| row.names().iter().any(|own| own == name))
    }

    /// Another one whenever the files are others.
    pub(crate) fn version(&self) -> Vec<FileStamp> {
        self.state.files.clone()
    }

    /// How many files the table has.
    pub(crate) fn files(&self) -> usize {
        self.state.rows.len()
    }

    /// The rows of one file, for changing; [`Guard::save`] must follow.
    pub(crate) fn rows_mut(&mut self, file: usize) -> &mut Vec<R> {
        self.dirty = true;
        &mut self.state.rows[file]
    }

    pub(crate) fn rows(&self, file: usize) -> &[R] {
        &self.state.rows[file]
    }

    /// Writes one file's rows; compact, because the whole file is written each time.
    pub(crate) fn save(&mut self, file: usize) -> Result<(), RecordsError> {
        let target = &self.table.files[file];
        let bytes = serde_json::to_vec(&self.state.rows[file])
            .map_err(|source| RecordsError::Encode { path: target.path.clone(), source })?;
        let mut stamps = Vec::with_capacity(self.held.len());
        for held in &self.held {
            let stamp = fault::step("stamp lock file").and_then(|()| held.write_stamp());
            let stamp = stamp.map_err(|source| RecordsError::Lock { path: held.path().to_owned(), source })?;
            stamps.push(Some(stamp));
        }
        fault::step("replace record file")
            .map_err(|source| RecordsError::Read { path: target.path.clone(), source })?;
        durable::replace(&target.path, &bytes, 0o600, target.durability)
            .map_err(|source| RecordsError::Write { path: target.path.clone(), source })?;
        let seen =
            FileStamp::of(&target.path).map_err(|source| RecordsError::Read { path: target.path.clone(), source })?;
        self.state.stamps = stamps;
        self.state.files[file] = seen;
        self.dirty = false;
        Ok(())
    }
}

impl<R: Record> Drop for Guard<'_, R> {
    fn drop(&mut self) {
        if self.dirty {
            self.state.loaded = false;
        }
    }
}
