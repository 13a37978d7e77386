//! The content of one file: from another layer, chunk by chunk, or as zeros.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use zstd::stream::raw::{DParameter, Decoder as RawDecoder, InBuffer, Operation, OutBuffer};

use super::compose::Result;
use super::doors::Doors;
use super::ranges::Fetched;
use super::toc::{Chunk, Entry, TocError};
use super::{ChunkOrigin, Origin, Place, StageChunkedError, ZSTD_WINDOW_LOG_MAX};
use crate::stage::{Tree, WriteBack, is_allowed_xattr, unpack_error};
use crate::tar::{Member, shown};

/// Pieces of files in memory.
const PIECE_BYTES: usize = 128 << 10;
/// Pieces of compressed bytes in memory.
const COMPRESSED_BYTES: usize = 64 << 10;

/// Where one file's bytes are.
pub(super) enum Content<'p> {
    Table(&'p Entry, &'p Origin),
    Twin(Vec<u8>),
}

#[derive(PartialEq, Eq)]
pub(super) enum Links {
    Allowed,
    Never,
}

#[derive(PartialEq, Eq)]
enum Clones {
    Untried,
    /// The file system shares no blocks.
    Impossible,
}

/// Everything files are made of.
pub(super) struct Parts<'p, R> {
    write_back: &'p WriteBack,
    root: BorrowedFd<'p>,
    doors: Doors,
    fetched: Fetched<R>,
    frames: Frames,
    links: Links,
    clones: Clones,
    piece: Vec<u8>,
}

/// Somebody who wants to see the bytes of a file.
type Sink<'s> = &'s mut dyn FnMut(&[u8]) -> io::Result<()>;

impl<'p, R: Read> Parts<'p, R> {
    pub(super) fn new(
        (write_back, root): (&'p WriteBack, BorrowedFd<'p>),
        doors: Doors,
        fetched: Fetched<R>,
        links: Links,
    ) -> io::Result<Self> {
        let (frames, piece) = (Frames::new()?, vec![0; PIECE_BYTES]);
        Ok(Self { write_back, root, doors, fetched, frames, links, clones: Clones::Untried, piece })
    }

    /// Makes a file with content, and shows the content to `sink`.
    pub(super) fn write(
        &mut self,
        tree: &mut Tree<'_>,
        path: &[u8],
        member: &Member,
        content: &Content<'_>,
        sink: Sink<'_>,
    ) -> Result<()> {
        let (digest, place, chunks) = match content {
            Content::Twin(name) => (None, Some(Place { layer: 0, name: name.clone(), at: 0, size: member.size }), None),
            Content::Table(entry, Origin::Whole(place)) => (entry.digest, Some(place.clone()), None),
            Content::Table(entry, Origin::Chunks(origins)) => (entry.digest, None, Some((&entry.chunks, origins))),
        };
        let mut found = Sha256::new();
        let mut both = |bytes: &[u8]| {
            if digest.is_some() {
                found.update(bytes);
            }
            sink(bytes)
        };
        if let Some(place) = &place {
            self.write_whole(tree, path, member, place, &mut both)?;
        } else if let Some((chunks, origins)) = chunks {
            self.write_chunks(tree, path, member, chunks, origins, &mut both)?;
        }
        if digest.is_some_and(|digest| digest != <[u8; 32]>::from(found.finalize())) {
            return Err(match &place {
                Some(place) => StageChunkedError::Source { name: shown(&place.name), source: None },
                None => wrong_content(member),
            });
        }
        Ok(())
    }

    fn write_whole(
        &mut self,
        tree: &mut Tree<'_>,
        path: &[u8],
        member: &Member,
        place: &Place,
        sink: Sink<'_>,
    ) -> Result<()> {
        let fail = |action| unpack_error(member, action);
        let mut source = self.open(place)?;
        if self.links == Links::Allowed && is_equal_file(&source, member) {
            let doors = &self.doors;
            if tree.link_from(path, member, |parent, name| doors.link(&source, parent, name)).is_ok() {
                return self.copy(&mut source, None, 0, place, sink, member);
            }
        }
        let file = tree.create(path, member).map_err(StageChunkedError::Tar)?;
        let target = if self.share(&source, &file) { None } else { Some(&file) };
        self.copy(&mut source, target, 0, place, sink, member)?;
        if target.is_none() {
            // What was shared is the whole file, whatever its length is by now.
            let length = file.metadata().map_err(fail("look at file")).map_err(StageChunkedError::Tar)?.len();
            if length != member.size {
                return Err(StageChunkedError::Source { name: shown(&place.name), source: None });
            }
        }
        tree.finish_file(&file, member).map_err(StageChunkedError::Tar)
    }

    /// Shares all blocks of a file, where the file system can.
    fn share(&mut self, source: &File, target: &File) -> bool {
        if self.clones == Clones::Impossible {
            return false;
        }
        let shared = rustix::fs::ioctl_ficlone(target, source);
        if matches!(shared, Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::NOTTY | Errno::INVAL | Errno::NOSYS)) {
            self.clones = Clones::Impossible;
        }
        shared.is_ok()
    }

    fn write_chunks(
        &mut self,
        tree: &mut Tree<'_>,
        path: &[u8],
        member: &Member,
        chunks: &[Chunk],
        origins: &[ChunkOrigin],
        sink: Sink<'_>,
    ) -> Result<()> {
        let file = tree.create(path, member).map_err(StageChunkedError::Tar)?;
        for (chunk, origin) in chunks.iter().zip(origins) {
            let mut found = Sha256::new();
            let mut both = |bytes: &[u8]| {
                if chunk.digest.is_some() {
                    found.update(bytes);
                }
                sink(bytes)
            };
            match origin {
                ChunkOrigin::Fetched => self.write_fetched(&file, chunk, &mut both, member)?,
                ChunkOrigin::Local(place) => {
                    let mut source = self.open(place)?;
                    self.copy(&mut source, Some(&file), chunk.at, place, &mut both, member)?;
                }
                ChunkOrigin::Zeros => self.show_zeros(chunk.size, &mut both, member)?,
            }
            if chunk.digest.is_some_and(|digest| digest != <[u8; 32]>::from(found.finalize())) {
                return Err(match origin {
                    ChunkOrigin::Local(place) => StageChunkedError::Source { name: shown(&place.name), source: None },
                    ChunkOrigin::Fetched | ChunkOrigin::Zeros => wrong_content(member),
                });
            }
        }
        // A hole at the end.
        let sized = file.set_len(member.size).map_err(unpack_error(member, "set length of file"));
        sized.map_err(StageChunkedError::Tar)?;
        tree.finish_file(&file, member).map_err(StageChunkedError::Tar)
    }

    fn write_fetched(&mut self, file: &File, chunk: &Chunk, sink: Sink<'_>, member: &Member) -> Result<()> {
        self.fetched.seek(chunk.stored).map_err(StageChunkedError::Fetch)?;
        self.frames.begin(chunk.stored.length).map_err(StageChunkedError::Fetch)?;
        let mut at = chunk.at;
        let end = chunk.at + chunk.size;
        loop {
            let count = self.frames.read(&mut self.fetched, &mut self.piece).map_err(|error| match error {
                FrameError::Source(error) => StageChunkedError::Fetch(error),
                FrameError::Frame => wrong_content(member),
            })?;
            if count == 0 {
                break;
            }
            let bytes = &self.piece[..count];
            if at + count as u64 > end {
                return Err(wrong_content(member));
            }
            put(file, bytes, at, sink, member)?;
            self.write_back.note(self.root, count as u64);
            at += count as u64;
        }
        if at == end { Ok(()) } else { Err(wrong_content(member)) }
    }

    /// Shows the bytes of a place, and writes them to a file from `at` on.
    fn copy(
        &mut self,
        source: &mut File,
        target: Option<&File>,
        mut at: u64,
        place: &Place,
        sink: Sink<'_>,
        member: &Member,
    ) -> Result<()> {
        let changed = |source| StageChunkedError::Source { name: shown(&place.name), source };
        let mut from = place.at;
        let end = place.at + place.size;
        while from < end {
            let most = self.piece.len().min(usize::try_from(end - from).unwrap_or(usize::MAX));
            let count = match source.read_at(&mut self.piece[..most], from) {
                Ok(0) => return Err(changed(None)),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(changed(Some(error))),
            };
            let bytes = &self.piece[..count];
            match target {
                Some(file) => {
                    put(file, bytes, at, sink, member)?;
                    self.write_back.note(self.root, count as u64);
                }
                None => show(bytes, sink, member)?,
            }
            from += count as u64;
            at += count as u64;
        }
        Ok(())
    }

    fn show_zeros(&mut self, mut size: u64, sink: Sink<'_>, member: &Member) -> Result<()> {
        self.piece.fill(0);
        while size > 0 {
            let count = self.piece.len().min(usize::try_from(size).unwrap_or(usize::MAX));
            show(&self.piece[..count], sink, member)?;
            size -= count as u64;
        }
        Ok(())
    }

    fn open(&self, place: &Place) -> Result<File> {
        self.doors
            .open(place)
            .map_err(|error| StageChunkedError::Source { name: shown(&place.name), source: Some(error) })
    }
}

fn wrong_content(member: &Member) -> StageChunkedError {
    TocError::Refused(format!("content of {:?} is not what the table says", shown(&member.name))).into()
}

fn put(file: &File, bytes: &[u8], at: u64, sink: Sink<'_>, member: &Member) -> Result<()> {
    file.write_all_at(bytes, at).map_err(unpack_error(member, "write file")).map_err(StageChunkedError::Tar)?;
    show(bytes, sink, member)
}

fn show(bytes: &[u8], sink: Sink<'_>, member: &Member) -> Result<()> {
    sink(bytes).map_err(unpack_error(member, "write file")).map_err(StageChunkedError::Tar)
}

/// Whether a file could stand for a member: a further name shares owner, mode, time and attributes.
fn is_equal_file(file: &File, member: &Member) -> bool {
    let Ok(found) = file.metadata() else { return false };
    let (seconds, nanoseconds) = member.modified;
    let is_same = found.uid() == member.uid
        && found.gid() == member.gid
        && found.mode() & 0o7777 == member.mode
        && found.len() == member.size
        && (found.mtime(), found.mtime_nsec()) == (seconds, i64::from(nanoseconds));
    is_same && has_attributes(file, member)
}

fn has_attributes(file: &File, member: &Member) -> bool {
    let mut names = vec![0; 64 << 10];
    let Ok(length) = rustix::fs::flistxattr(file, &mut names) else { return member.xattrs.is_empty() };
    let mut expected: HashMap<&[u8], &[u8]> = member
        .xattrs
        .iter()
        .filter(|(name, _)| is_allowed_xattr(name, member.kind))
        .map(|(name, value)| (&name[..], &value[..]))
        .collect();
    let mut value = vec![0; 64 << 10];
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        // Given by the machine's policy, not by the image.
        if name == b"security.selinux" {
            continue;
        }
        let found = rustix::fs::fgetxattr(file, std::ffi::OsStr::from_bytes(name), &mut value);
        let is_expected = found.is_ok_and(|length| expected.remove(name) == Some(&value[..length]));
        if !is_expected {
            return false;
        }
    }
    expected.is_empty()
}

/// Why frames end early.
enum FrameError {
    Source(io::Error),
    Frame,
}

/// Plain bytes out of zstd frames of known length; one decoder for all of them.
struct Frames {
    decoder: RawDecoder<'static>,
    compressed: Vec<u8>,
    at: usize,
    have: usize,
    /// Compressed bytes not yet read.
    left: u64,
    is_between: bool,
}

impl Frames {
    fn new() -> io::Result<Self> {
        let mut decoder = RawDecoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX))?;
        Ok(Self { decoder, compressed: vec![0; COMPRESSED_BYTES], at: 0, have: 0, left: 0, is_between: true })
    }

    fn begin(&mut self, length: u64) -> io::Result<()> {
        self.decoder.reinit()?;
        (self.at, self.have, self.left, self.is_between) = (0, 0, length, true);
        Ok(())
    }

    /// Some plain bytes; none at the end of the last frame.
    fn read<R: Read>(&mut self, source: &mut Fetched<R>, plain: &mut [u8]) -> std::result::Result<usize, FrameError> {
        loop {
            if self.at == self.have && self.left > 0 {
                let most = self.compressed.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
                let count = match source.read(&mut self.compressed[..most]) {
                    Ok(0) => return Err(FrameError::Source(io::ErrorKind::UnexpectedEof.into())),
                    Ok(count) => count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(FrameError::Source(error)),
                };
                (self.at, self.have) = (0, count);
                self.left -= count as u64;
            }
            let is_last = self.at == self.have && self.left == 0;
            if is_last && self.is_between {
                return Ok(0);
            }
            let mut input = InBuffer::around(&self.compressed[self.at..self.have]);
            let mut output = OutBuffer::around(&mut *plain);
            let hint = self.decoder.run(&mut input, &mut output).map_err(|_| FrameError::Frame)?;
            let (read, written) = (input.pos(), output.pos());
            self.at += read;
            self.is_between = hint == 0;
            if written > 0 {
                return Ok(written);
            }
            if is_last && read == 0 && !self.is_between {
                return Err(FrameError::Frame);
            }
        }
    }
}
