//! A layer on its way into the store: compressed bytes in, a directory without a name out.
//!
//! The calling thread reads, digests and decompresses; a second thread digests the tar, takes it apart and writes the
//! files. Between them travel a few pieces of bounded size, so that a layer of any size takes the same memory. What
//! lies in the directory is made durable before this returns; what a crash leaves is removed when the store is opened.

mod feed;
mod split;
mod unpack;

use std::fs::File;
use std::io::{self, BufRead, BufWriter, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};

use domain::digest::Digest;
use rustix::fs::{CWD, Mode, OFlags};
use sha2::{Digest as _, Sha256};

use crate::crc64::Crc64;
use crate::error::{PathError, StageError};
use crate::fault;
use crate::options::DevicePolicy;
use crate::staging::{StagingDir, StagingFile};
use crate::store::Store;
use crate::tar::{Kind, Reader, TarError};
use crate::types::{LayerContents, StageOptions};
use feed::{PIECES_IN_FLIGHT, Piece};
use split::{Seen, SplitWriter};
pub(crate) use unpack::clean;
use unpack::{SparseWriter, Tree, finish_file, unpack_error, write_plain};

/// Most members of one layer: ten times the largest layers in the field; each takes an inode.
const ENTRIES_MAX: u64 = 5_000_000;
/// Name of the files' directory in a staging directory.
pub(crate) const DIFF: &str = "diff";

/// A layer whose files lie in a directory of their own without a name; dropping it removes them.
#[derive(Debug)]
pub struct StagedLayer {
    pub(crate) directory: StagingDir,
    pub(crate) split: StagingFile,
    pub(crate) contents: LayerContents,
}

impl StagedLayer {
    /// What the bytes turned out to be.
    #[must_use]
    pub fn contents(&self) -> &LayerContents {
        &self.contents
    }
}

impl Store {
    /// Unpacks the compressed bytes `source` gives into a directory that has no name yet.
    ///
    /// Compression is told by the first bytes. Several threads may stage layers at the same time; the layer below
    /// need not be there. Returns when everything is on the disk. On error nothing is left.
    /// Source: OCI image-spec `layer.md`; whiteouts as containers/storage writes them for overlay.
    pub fn stage_layer(&self, source: impl Read, options: StageOptions) -> Result<StagedLayer, StageError> {
        let directory = self.staging().new_dir().map_err(StageError::Path)?;
        let split = self.staging().new_file(&self.layers_dir());
        let (full, pieces) = sync_channel(PIECES_IN_FLIGHT);
        let (used, empty) = channel();
        let limit = options.diff_size_max.unwrap_or(u64::MAX);
        let (fed, unpacked) = std::thread::scope(|scope| {
            let (path, split) = (directory.path(), split.path());
            let devices = self.devices();
            let unpacking = std::thread::Builder::new()
                .name("unpack".to_owned())
                .spawn_scoped(scope, move || unpack_layer(path, split, devices, Pieces::new(pieces, used, limit)));
            let unpacking = match unpacking {
                Ok(thread) => thread,
                Err(source) => {
                    return (Err(StageError::Path(PathError::new("start a thread for", path)(source))), Ok(None));
                }
            };
            let fed = feed::feed(source, &full, &empty);
            drop(full);
            let unpacked = unpacking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (fed, unpacked)
        });
        // The first cause: a reader that failed starves the other half, an unpacker that failed stops the reader.
        let (fed, unpacked) = match (fed, unpacked) {
            (Err(error), _) | (_, Err(error)) => return Err(error),
            (Ok(Some(fed)), Ok(Some(unpacked))) => (fed, unpacked),
            (Ok(_), Ok(_)) => {
                return Err(StageError::Decompress(io::Error::other("the two halves of a layer disagree")));
            }
        };
        let contents = LayerContents {
            compressed_digest: Digest::from_sha256(&fed.digest),
            compressed_size: fed.size,
            compression: fed.compression,
            diff_id: Digest::from_sha256(&unpacked.digest),
            diff_size: unpacked.size,
            entries: unpacked.entries,
            uids: unpacked.uids,
            gids: unpacked.gids,
        };
        Ok(StagedLayer { directory, split, contents })
    }
}

/// What the unpacking half found out.
struct Unpacked {
    digest: [u8; 32],
    size: u64,
    entries: u64,
    uids: Vec<u32>,
    gids: Vec<u32>,
}

/// The tar as it arrives, digested and counted.
struct Pieces {
    full: Receiver<Piece>,
    used: Sender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    digest: Sha256,
    size: u64,
    limit: u64,
    state: Arrival,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arrival {
    Going,
    Ended,
    TooLarge,
    Broken,
}

impl Pieces {
    fn new(full: Receiver<Piece>, used: Sender<Vec<u8>>, limit: u64) -> Self {
        Self { full, used, current: Vec::new(), at: 0, digest: Sha256::new(), size: 0, limit, state: Arrival::Going }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.current.len() && self.state == Arrival::Going {
            match self.full.recv() {
                Ok(Piece::Bytes(piece)) => {
                    // Whoever fills pieces may have gone; then this one is simply freed.
                    let _ = self.used.send(std::mem::replace(&mut self.current, piece));
                    self.at = 0;
                    self.digest.update(&self.current);
                    self.size += self.current.len() as u64;
                    if self.size > self.limit {
                        self.state = Arrival::TooLarge;
                    }
                }
                Ok(Piece::End) => self.state = Arrival::Ended,
                Err(_) => self.state = Arrival::Broken,
            }
        }
        match self.state {
            Arrival::Going | Arrival::Ended => Ok(&self.current[self.at..]),
            Arrival::TooLarge => Err(io::Error::from(io::ErrorKind::FileTooLarge)),
            Arrival::Broken => Err(io::Error::from(io::ErrorKind::BrokenPipe)),
        }
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}

/// `Ok(None)` when the pieces ended because the other half failed.
fn unpack_layer(
    path: &Path,
    split_path: &Path,
    devices: DevicePolicy,
    pieces: Pieces,
) -> Result<Option<Unpacked>, StageError> {
    let path_error =
        |action, path: &Path, source: io::Error| StageError::Path(PathError { action, path: path.to_owned(), source });
    let diff = path.join(DIFF);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, &diff, flags, Mode::empty())
        .map_err(|error| path_error("open", &diff, error.into()))?;
    let split_file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(split_path)
        .map_err(|error| path_error("create", split_path, error))?;
    let mut split = SplitWriter::new(BufWriter::new(split_file));
    let mut reader = Reader::new(pieces);
    let done = Unpacking { tree: Tree::new(root, devices), split: &mut split, split_path, entries: 0 }.run(&mut reader);
    let pieces = reader.into_inner();
    match (pieces.state, done) {
        (Arrival::TooLarge, _) => Err(StageError::TooLarge { limit: pieces.limit }),
        (Arrival::Broken, _) => Ok(None),
        (_, Err(error)) => Err(error),
        (_, Ok(done)) => {
            // Synced by itself: the driver's home may be another file system.
            split
                .finish()
                .and_then(|buffered| buffered.into_inner().map_err(io::IntoInnerError::into_error))
                .and_then(|file| file.sync_all())
                .map_err(|error| path_error("write", split_path, error))?;
            fault::step("sync staged layer").map_err(|error| path_error("sync", path, error))?;
            // One call for all files of the layer; the alternative, an fsync each, costs a journal commit a file.
            rustix::fs::syncfs(&done.root).map_err(|error| path_error("sync", path, error.into()))?;
            Ok(Some(Unpacked {
                digest: pieces.digest.finalize().into(),
                size: pieces.size,
                entries: done.entries,
                uids: done.uids,
                gids: done.gids,
            }))
        }
    }
}

struct Done {
    root: OwnedFd,
    entries: u64,
    uids: Vec<u32>,
    gids: Vec<u32>,
}

struct Unpacking<'a, W: io::Write> {
    tree: Tree,
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
        let (root, uids, gids) = self.tree.finish().map_err(StageError::Tar)?;
        Ok(Done { root, entries: self.entries, uids, gids })
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
            finish_file(&file, member)?;
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
        finish_file(&file, member)?;
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

fn is_whiteout(path: &[u8]) -> bool {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    name.starts_with(b".wh.")
}
