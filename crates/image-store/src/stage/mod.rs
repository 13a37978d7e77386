//! A layer on its way into the store: compressed bytes in, a directory without a name out.
//!
//! Three threads. The calling one reads and digests; a second one decompresses; a third one digests the tar, takes it
//! apart and writes the files. Between them travel a few pieces of bounded size, so that a layer of any size takes the
//! same memory. The latter two handle bytes nobody has verified: they stand behind the walls of [`sys::confine`], around
//! the directory the files go into. What lies there is made durable when it gets a name; what a crash leaves is removed
//! when the store is opened.

mod feed;
mod pipe;
mod split;
mod unpack;
mod write_back;

use std::fs::File;
use std::io::{self, BufRead, BufWriter, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{Scope, ScopedJoinHandle};

use domain::digest::Digest;
use rustix::fs::{CWD, Mode, OFlags};
use sha2::{Digest as _, Sha256};

use crate::crc64::Crc64;
use crate::error::{PathError, StageError};
use crate::fault;
use crate::staging::{StagingDir, StagingFile};
use crate::store::Store;
use crate::tar::{Kind, Reader, TarError};
use crate::types::{LayerContents, StageOptions};
pub(crate) use pipe::{Outlet, pipe};
pub(crate) use split::{Seen, SplitWriter};
use unpack::{SparseWriter, write_plain};
pub(crate) use unpack::{Tree, clean, is_allowed_xattr, unpack_error};
pub(crate) use write_back::WriteBack;

/// Most members of one layer: ten times the largest layers in the field; each takes an inode.
pub(crate) const ENTRIES_MAX: u64 = 5_000_000;
/// Counts directories of layers that were opened.
static OPENED: AtomicU64 = AtomicU64::new(0);
/// Name of the files' directory in a staging directory.
pub(crate) const DIFF: &str = "diff";

/// A layer whose files lie in a directory of their own without a name; dropping it removes them.
#[derive(Debug)]
pub struct StagedLayer {
    pub(crate) directory: StagingDir,
    /// The directory of its files, opened before the first of them was made.
    root: OwnedFd,
    /// Larger than that of all layers whose directories were opened before.
    pub(crate) opened: u64,
    pub(crate) split: StagingFile,
    pub(crate) contents: LayerContents,
}

impl StagedLayer {
    /// What the bytes turned out to be.
    #[must_use]
    pub fn contents(&self) -> &LayerContents {
        &self.contents
    }

    /// Makes its files, and all else on their file system, survive a loss of power. Tells of what could not be written
    /// of any of them since the directory was opened.
    pub(crate) fn sync(&self) -> Result<(), PathError> {
        let failed = |source| PathError { action: "sync", path: self.directory.path().to_owned(), source };
        fault::step("sync staged layer").map_err(failed)?;
        rustix::fs::syncfs(&self.root).map_err(|error| failed(error.into()))
    }
}

impl Store {
    /// Unpacks the compressed bytes `source` gives into a directory that has no name yet.
    ///
    /// Compression is told by the first bytes. Several threads may stage layers at the same time; the layer below
    /// need not be there. On error nothing is left.
    /// Source: OCI image-spec `layer.md`; whiteouts as containers/storage writes them for overlay.
    pub fn stage_layer(&self, source: impl Read, options: StageOptions) -> Result<StagedLayer, StageError> {
        let directory = self.staging().new_dir().map_err(StageError::Path)?;
        let split = self.staging().new_file(&self.layers_dir());
        let (root, split_file) = open_targets(&directory, &split).map_err(StageError::Path)?;
        let opened = OPENED.fetch_add(1, Ordering::Relaxed);
        let limit = options.diff_size_max.unwrap_or(u64::MAX);
        let (compressed_in, compressed) = pipe();
        let (plain_in, plain) = pipe();
        let (read, decompressed, unpacked) = std::thread::scope(|scope| {
            let (root, directory, split) = (root.as_fd(), &directory, &split);
            let decompressing = confined(scope, "decompress", root, move || feed::decompress(compressed, plain_in));
            let unpacking = confined(scope, "unpack", root, move || {
                let pieces = Pieces::new(plain, limit, self.write_back(), root);
                let tree = Tree::confined(root, self.devices()).map_err(PathError::new("look at", directory.path()));
                unpack_layer(tree.map_err(StageError::Path)?, (split_file, split.path()), pieces)
            });
            let read = feed::read(source, compressed_in);
            (read, ended(decompressing), ended(unpacking))
        });
        // The first cause: a step that failed starves those behind it and stops those before it.
        let (read, compression, unpacked) = match (read, decompressed, unpacked) {
            (Err(error), _, _) | (_, Err(error), _) | (_, _, Err(error)) => return Err(error),
            (Ok(Some(read)), Ok(Some(compression)), Ok(Some(unpacked))) => (read, compression, unpacked),
            (Ok(_), Ok(_), Ok(_)) => {
                return Err(StageError::Decompress(io::Error::other("the steps of a layer disagree")));
            }
        };
        let contents = LayerContents {
            compressed_digest: Digest::from_sha256(&read.digest),
            compressed_size: read.size,
            compression,
            diff_id: Digest::from_sha256(&unpacked.digest),
            diff_size: unpacked.size,
            entries: unpacked.entries,
            uids: unpacked.uids,
            gids: unpacked.gids,
        };
        Ok(StagedLayer { directory, root, opened, split, contents })
    }
}

/// Opens what the unpacking thread writes to and could not open itself.
pub(crate) fn open_targets(directory: &StagingDir, split: &StagingFile) -> Result<(OwnedFd, File), PathError> {
    let diff = directory.path().join(DIFF);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, &diff, flags, Mode::empty()).map_err(PathError::new("open", &diff))?;
    let path = split.path();
    let file = File::options().write(true).create_new(true).mode(0o600).open(path);
    Ok((root, file.map_err(PathError::new("create", path))?))
}

type Running<'scope, T> = io::Result<ScopedJoinHandle<'scope, Result<T, StageError>>>;

/// Runs a step in a thread that reaches nothing but what is beneath `root`.
fn confined<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    root: BorrowedFd<'scope>,
    work: impl FnOnce() -> Result<T, StageError> + Send + 'scope,
) -> Running<'scope, T> {
    std::thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, move || {
        sys::confine::enter(root).map_err(StageError::Confine)?;
        work()
    })
}

fn ended<T>(running: Running<'_, T>) -> Result<T, StageError> {
    match running {
        Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        Err(source) => Err(StageError::Confine(source)),
    }
}

/// What the unpacking step found out.
struct Unpacked {
    digest: [u8; 32],
    size: u64,
    entries: u64,
    uids: Vec<u32>,
    gids: Vec<u32>,
}

/// The tar as it arrives, digested and counted.
struct Pieces<'a> {
    plain: Outlet,
    digest: Sha256,
    size: u64,
    limit: u64,
    write_back: &'a WriteBack,
    root: BorrowedFd<'a>,
}

impl<'a> Pieces<'a> {
    fn new(plain: Outlet, limit: u64, write_back: &'a WriteBack, root: BorrowedFd<'a>) -> Self {
        Self { plain, digest: Sha256::new(), size: 0, limit, write_back, root }
    }

    fn is_too_large(&self) -> bool {
        self.size > self.limit
    }
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Pieces<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.plain.rest().is_empty()
            && !self.is_too_large()
            && let Some(piece) = self.plain.next_piece()
        {
            self.digest.update(piece);
            let count = piece.len() as u64;
            self.size += count;
            self.write_back.note(self.root, count);
        }
        if self.is_too_large() { Err(io::ErrorKind::FileTooLarge.into()) } else { self.plain.fill_buf() }
    }

    fn consume(&mut self, count: usize) {
        self.plain.consume(count);
    }
}

/// `Ok(None)` when the pieces ended because a step before this one failed.
fn unpack_layer(
    tree: Tree<'_>,
    (split_file, split_path): (File, &Path),
    pieces: Pieces<'_>,
) -> Result<Option<Unpacked>, StageError> {
    let mut split = SplitWriter::new(BufWriter::new(split_file));
    let mut reader = Reader::new(pieces);
    let done = Unpacking { tree, split: &mut split, split_path, entries: 0 }.run(&mut reader);
    let pieces = reader.into_inner();
    if pieces.is_too_large() {
        return Err(StageError::TooLarge { limit: pieces.limit });
    }
    if pieces.plain.is_broken() {
        return Ok(None);
    }
    let done = done?;
    split
        .finish()
        .and_then(|buffered| buffered.into_inner().map_err(io::IntoInnerError::into_error))
        .and_then(|file| {
            // The driver's home may be another file system, whose sync does not reach this file.
            let is_elsewhere = rustix::fs::fstat(&file)?.st_dev != rustix::fs::fstat(pieces.root)?.st_dev;
            if is_elsewhere { file.sync_all() } else { Ok(()) }
        })
        .map_err(|source| StageError::Path(PathError::new("write", split_path)(source)))?;
    Ok(Some(Unpacked {
        digest: pieces.digest.finalize().into(),
        size: pieces.size,
        entries: done.entries,
        uids: done.uids,
        gids: done.gids,
    }))
}

struct Done {
    entries: u64,
    uids: Vec<u32>,
    gids: Vec<u32>,
}

struct Unpacking<'a, W: io::Write> {
    tree: Tree<'a>,
    split: &'a mut SplitWriter<W>,
    split_path: &'a Path,
    entries: u64,
}

impl<W: io::Write> Unpacking<'_, W> {
    fn run<R: BufRead>(mut self, reader: &mut Reader<R>) -> Result<Done, StageError> {
        while let Some(member) = reader.next_member().map_err(StageError::Tar)? {
            self.entries += 1;
            if self.entries > ENTRIES_MAX {
                return Err(StageError::Tar(TarError::TooManyEntries { limit: ENTRIES_MAX }));
            }
            fault::step("unpack a member").map_err(unpack_error(&member, "make")).map_err(StageError::Tar)?;
            self.segment(reader)?;
            let path = clean(&member.name).map_err(StageError::Tar)?;
            let is_whiteout = is_whiteout(&path);
            // Content that will not lie in the layer as one file goes into the stream itself.
            let is_plain = member.kind == Kind::File && member.sparse.is_none() && !is_whiteout;
            let size_in_layer = if is_plain { member.size } else { 0 };
            let seen = self.split.note(&path, size_in_layer);
            if seen == Seen::AgainWithContent {
                let name = crate::tar::shown(&member.name);
                return Err(StageError::Tar(TarError::Duplicate { name }));
            }
            let mut crc = None;
            if member.kind == Kind::File && !is_whiteout && (member.size > 0 || member.sparse.is_some()) {
                crc = self.write_file(reader, &path, &member).map_err(StageError::Tar)?;
            } else {
                self.tree.make(&path, &member).map_err(StageError::Tar)?;
            }
            if seen == Seen::New {
                self.split.file(&member.name, size_in_layer, crc).map_err(|error| self.split_error(error))?;
            }
            self.keep_content(reader)?;
        }
        while reader.trailing().map_err(StageError::Tar)? {
            self.segment(reader)?;
        }
        self.segment(reader)?;
        let (uids, gids) = self.tree.finish().map_err(StageError::Tar)?;
        Ok(Done { entries: self.entries, uids, gids })
    }

    fn write_file<R: BufRead>(
        &mut self,
        reader: &mut Reader<R>,
        path: &[u8],
        member: &crate::tar::Member,
    ) -> Result<Option<[u8; 8]>, TarError> {
        if path.is_empty() {
            return Err(TarError::BadName { name: crate::tar::shown(&member.name), reason: "file without a name" });
        }
        let file = self.tree.create(path, member)?;
        let mut crc = Crc64::new();
        if let Some(map) = &member.sparse {
            let mut sparse = SparseWriter::new(map);
            loop {
                let piece = reader.content()?;
                let count = piece.len();
                if count == 0 {
                    break;
                }
                sparse.write(&file, piece).map_err(unpack_error(member, "write file"))?;
                reader.advance_keeping(count)?;
                if reader.is_raw_full() {
                    self.split.segment(reader.take_raw()).map_err(unpack_error(member, "write tar-split of"))?;
                }
            }
            file.set_len(map.real_size).map_err(unpack_error(member, "set length of file"))?;
            self.tree.finish_file(&file, member)?;
            return Ok(None);
        }
        loop {
            let piece = reader.content()?;
            let count = piece.len();
            if count == 0 {
                break;
            }
            crc.update(piece);
            write_plain(&file, piece).map_err(unpack_error(member, "write file"))?;
            reader.advance(count);
        }
        self.tree.finish_file(&file, member)?;
        Ok(Some(crc.finish()))
    }

    fn keep_content<R: BufRead>(&mut self, reader: &mut Reader<R>) -> Result<(), StageError> {
        loop {
            let count = reader.content().map_err(StageError::Tar)?.len();
            if count == 0 {
                return Ok(());
            }
            reader.advance_keeping(count).map_err(StageError::Tar)?;
            if reader.is_raw_full() {
                self.segment(reader)?;
            }
        }
    }

    fn segment<R: BufRead>(&mut self, reader: &mut Reader<R>) -> Result<(), StageError> {
        self.split.segment(reader.take_raw()).map_err(|error| self.split_error(error))
    }

    fn split_error(&self, error: io::Error) -> StageError {
        StageError::Path(PathError::new("write", self.split_path)(error))
    }
}

/// Whether a cleaned name is that of a whiteout.
pub(crate) fn is_whiteout(path: &[u8]) -> bool {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    name.starts_with(b".wh.")
}
