//! Images on this machine that are read as if a registry served them: layouts and archives.
//!
//! Nothing is unpacked. Names inside an archive are keys of a table, never paths of the host; names inside a layout
//! are made of digests and opened beneath the layout's directory.

mod docker_archive;
mod layout;
pub(crate) mod tar;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use domain::digest::Digest;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use crate::error::LocalError;
use crate::manifest::Descriptor;
use crate::reference::Reference;
use crate::source::Source;

pub(crate) use docker_archive::parse_archive_manifest;

/// Most names listed in an error.
const NAMES_SHOWN_MAX: usize = 10;

/// An opened layout or archive.
#[derive(Debug)]
pub(crate) struct LocalImage {
    path: PathBuf,
    files: Files,
    /// Blobs that are not under `blobs/sha256`: layers of old docker archives, and documents made up for them.
    named: HashMap<Digest, LocalSlice>,
}

#[derive(Debug)]
enum Files {
    Directory(OwnedFd),
    Archive(tar::Members),
}

/// Bytes of one blob.
#[derive(Debug, Clone)]
pub(crate) struct LocalSlice {
    bytes: SliceBytes,
    /// Bytes of the blob.
    pub(crate) length: u64,
}

#[derive(Debug, Clone)]
enum SliceBytes {
    File { file: Arc<File>, offset: u64 },
    Memory(Bytes),
}

impl LocalSlice {
    pub(crate) fn of_file(file: Arc<File>, offset: u64, length: u64) -> Self {
        Self { bytes: SliceBytes::File { file, offset }, length }
    }

    fn of_memory(bytes: Bytes) -> Self {
        Self { length: bytes.len() as u64, bytes: SliceBytes::Memory(bytes) }
    }

    /// Up to `length` bytes from `at` on; empty only at the end of the file.
    pub(crate) fn read_at(&self, at: u64, length: usize) -> io::Result<Bytes> {
        let left = usize::try_from(self.length.saturating_sub(at)).unwrap_or(usize::MAX);
        let length = length.min(left);
        match &self.bytes {
            SliceBytes::Memory(bytes) => {
                let start = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
                Ok(bytes.slice(start..start + length))
            }
            SliceBytes::File { file, offset } => {
                let mut buffer = vec![0; length];
                let read = loop {
                    match file.read_at(&mut buffer, offset + at) {
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        read => break read?,
                    }
                };
                buffer.truncate(read);
                Ok(buffer.into())
            }
        }
    }

    /// All bytes, of which there may be at most `limit`.
    fn read_whole(&self, name: &str, limit: usize) -> Result<Bytes, LocalError> {
        if self.length > limit as u64 {
            return Err(LocalError::TooLarge { file: name.to_owned(), limit: limit as u64 });
        }
        let io = |source| LocalError::Io { action: "read", file: name.to_owned(), source };
        let mut whole = Vec::new();
        while (whole.len() as u64) < self.length {
            let bytes = self.read_at(whole.len() as u64, limit).map_err(io)?;
            if bytes.is_empty() {
                return Err(LocalError::Malformed { file: name.to_owned(), reason: "shorter than it was".to_owned() });
            }
            whole.extend_from_slice(&bytes);
        }
        Ok(whole.into())
    }
}

impl LocalImage {
    /// The layout or archive.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Finds a blob by digest. Blocking.
    pub(crate) fn find_blob(&self, digest: &Digest) -> Result<LocalSlice, LocalError> {
        if let Some(slice) = self.named.get(digest) {
            return Ok(slice.clone());
        }
        let name = format!("blobs/sha256/{}", digest.hex());
        self.find_file(&name)?.ok_or(LocalError::Missing { file: name })
    }

    /// Reads a small blob. Blocking. The caller checks the digest.
    pub(crate) fn read_whole(&self, digest: &Digest, limit: usize) -> Result<Bytes, LocalError> {
        self.find_blob(digest)?.read_whole(digest.as_str(), limit)
    }

    fn find_file(&self, name: &str) -> Result<Option<LocalSlice>, LocalError> {
        match &self.files {
            Files::Archive(members) => Ok(members.find(name)),
            Files::Directory(directory) => {
                let io = |action, source| LocalError::Io { action, file: name.to_owned(), source };
                // NONBLOCK: a FIFO in place of a blob must not hold us.
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                let file = match rustix::fs::openat2(directory, name, flags, Mode::empty(), beneath) {
                    Ok(file) => File::from(file),
                    Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
                    Err(error) => return Err(io("open", error.into())),
                };
                regular_length(&file)
                    .map_err(|source| io("inspect", source))
                    .map(|length| Some(LocalSlice::of_file(Arc::new(file), 0, length)))
            }
        }
    }
}

/// What opening a source yields: where to begin, and the names it is known by.
pub(crate) struct Opened {
    pub(crate) image: LocalImage,
    pub(crate) manifest: Descriptor,
    pub(crate) names: Vec<Reference>,
}

/// Opens a layout or archive and chooses the image. Blocking.
pub(crate) fn open(source: &Source) -> Result<Opened, LocalError> {
    match source {
        Source::Registry(reference) => Err(LocalError::Missing { file: reference.to_string() }),
        Source::OciLayout { path, name } => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory = rustix::fs::openat(CWD, path, flags, Mode::empty())
                .map_err(|source| io_error("open", path, source.into()))?;
            layout::choose(new_image(path, Files::Directory(directory)), name.as_deref())
        }
        Source::OciArchive { path, name } => {
            layout::choose(new_image(path, Files::Archive(open_archive(path)?)), name.as_deref())
        }
        Source::DockerArchive { path, name } => {
            docker_archive::choose(new_image(path, Files::Archive(open_archive(path)?)), name.as_ref())
        }
    }
}

fn new_image(path: &Path, files: Files) -> LocalImage {
    LocalImage { path: path.to_owned(), files, named: HashMap::new() }
}

fn open_archive(path: &Path) -> Result<tar::Members, LocalError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map(File::from)
        .map_err(|source| io_error("open", path, source.into()))?;
    let length = regular_length(&file).map_err(|source| io_error("inspect", path, source))?;
    tar::index(Arc::new(file), length)
}

fn regular_length(file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    match metadata.is_file() {
        true => Ok(metadata.len()),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    }
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> LocalError {
    LocalError::Io { action, file: path.display().to_string(), source }
}

/// A blocking task that did not run.
pub(crate) fn not_read(source: io::Error) -> LocalError {
    LocalError::Io { action: "read", file: "local image".to_owned(), source }
}
