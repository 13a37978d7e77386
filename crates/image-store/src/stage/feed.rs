//! The reading half of a layer's way in: compressed bytes to digest and plain bytes.

use std::io::{self, BufReader, Read};
use std::sync::mpsc::{Receiver, SyncSender};

use bzip2::bufread::MultiBzDecoder;
use flate2::read::MultiGzDecoder;
use lzma_rust2::XzReader;
use sha2::{Digest as _, Sha256};

use crate::error::StageError;
use crate::types::Compression;

/// Size of the pieces that travel between the two threads of a layer.
pub(super) const PIECE_BYTES: usize = 128 << 10;
/// Pieces on their way: with their size, 512 KiB a layer in the daemon's memory.
pub(super) const PIECES_IN_FLIGHT: usize = 4;
/// Buffer between the caller's reader and the decompressor.
const SOURCE_BUFFER_BYTES: usize = 64 << 10;
/// Largest zstd window accepted, 64 MiB: what the field's Go implementation allows by default.
const ZSTD_WINDOW_LOG_MAX: u32 = 26;
/// Most memory of an xz decoder: the largest dictionary of xz's own presets (`-9`) is 64 MiB, the rest is its buffers.
/// Headers may ask for up to 4 GiB.
const XZ_MEMORY_MAX_KIB: u32 = (64 << 10) + 1024;
/// Bytes needed to tell compressions apart.
const MAGIC_BYTES: usize = 6;

/// What the unpacking thread is sent.
pub(super) enum Piece {
    /// Some of the tar.
    Bytes(Vec<u8>),
    /// All of it was sent. Without this the pieces end because something failed.
    End,
}

/// What the reading half found out.
pub(super) struct Fed {
    pub(super) digest: [u8; 32],
    pub(super) size: u64,
    pub(super) compression: Compression,
}

/// Counts and digests what the caller's reader gives.
struct Source<R> {
    inner: R,
    digest: Sha256,
    size: u64,
    failure: Option<io::Error>,
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(buffer) {
            Ok(count) => {
                self.digest.update(&buffer[..count]);
                self.size += count as u64;
                Ok(count)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                // Kept aside, because a decompressor may wrap or replace it.
                let kind = error.kind();
                self.failure = Some(error);
                Err(kind.into())
            }
        }
    }
}

/// Source: containers/image tells compressions apart by the same bytes.
fn recognise(start: &[u8]) -> Compression {
    // Skippable frames, which may come first, have magics 0x184D2A50 to 0x184D2A5F.
    let is_skippable = start.len() >= 4 && start[0] & 0xf0 == 0x50 && start[1..4] == [0x2a, 0x4d, 0x18];
    match start {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        _ if is_skippable => Compression::Zstd,
        [0xfd, b'7', b'z', b'X', b'Z', 0x00, ..] => Compression::Xz,
        [b'B', b'Z', b'h', ..] => Compression::Bzip2,
        _ => Compression::None,
    }
}

/// Reads `source` to its end and sends the plain bytes in pieces. `Ok(None)` when the other half has given up.
pub(super) fn feed(
    source: impl Read,
    full: &SyncSender<Piece>,
    empty: &Receiver<Vec<u8>>,
) -> Result<Option<Fed>, StageError> {
    let mut source = Source { inner: source, digest: Sha256::new(), size: 0, failure: None };
    let mut start = [0; MAGIC_BYTES];
    let mut have = 0;
    while have < start.len() {
        match source.read(&mut start[have..]) {
            Ok(0) => break,
            Ok(count) => have += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(StageError::Source(source.failure.take().unwrap_or(error))),
        }
    }
    let compression = recognise(&start[..have]);
    let mut compressed = BufReader::with_capacity(SOURCE_BUFFER_BYTES, start[..have].chain(&mut source));
    let pumped = match compression {
        Compression::None => pump(&mut compressed, full, empty),
        Compression::Gzip => pump(&mut MultiGzDecoder::new(&mut compressed), full, empty),
        Compression::Zstd => zstd::Decoder::with_buffer(&mut compressed).and_then(|mut decoder| {
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            pump(&mut decoder, full, empty)
        }),
        // Streams that follow one another are one, as in gzip and zstd.
        Compression::Xz => pump(&mut XzReader::new_mem_limit(&mut compressed, true, XZ_MEMORY_MAX_KIB), full, empty),
        Compression::Bzip2 => pump(&mut MultiBzDecoder::new(&mut compressed), full, empty),
    };
    // A decompressor may stop where its format ends; the digest covers every byte.
    let drained = match pumped {
        Ok(Pumped::All) => io::copy(&mut compressed, &mut io::sink()).map(|_| Pumped::All),
        other => other,
    };
    drop(compressed);
    match drained {
        Err(error) => Err(match source.failure.take() {
            Some(failure) => StageError::Source(failure),
            None => StageError::Decompress(error),
        }),
        Ok(Pumped::NobodyListens) => Ok(None),
        Ok(Pumped::All) => {
            if full.send(Piece::End).is_err() {
                return Ok(None);
            }
            Ok(Some(Fed { digest: source.digest.finalize().into(), size: source.size, compression }))
        }
    }
}

enum Pumped {
    All,
    NobodyListens,
}

fn pump(plain: &mut impl Read, full: &SyncSender<Piece>, empty: &Receiver<Vec<u8>>) -> io::Result<Pumped> {
    loop {
        let mut piece = empty.try_recv().unwrap_or_default();
        piece.resize(PIECE_BYTES, 0);
        let mut have = 0;
        while have < piece.len() {
            match plain.read(&mut piece[have..]) {
                Ok(0) => break,
                Ok(count) => have += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let is_last = have < piece.len();
        piece.truncate(have);
        if have > 0 && full.send(Piece::Bytes(piece)).is_err() {
            return Ok(Pumped::NobodyListens);
        }
        if is_last {
            return Ok(Pumped::All);
        }
    }
}
