//! The first two steps of a layer's way in: what it is made of is read and digested, then decompressed.

use std::io::{BufRead, Read};

use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;
use lzma_rust2::XzReader;
use sha2::{Digest as _, Sha256};

use super::pipe::{Inlet, NobodyListens, Outlet};
use crate::error::StageError;
use crate::types::Compression;

/// Largest zstd window accepted, 64 MiB: what the field's Go implementation allows by default.
const ZSTD_WINDOW_LOG_MAX: u32 = 26;
/// Most memory of an xz decoder: the largest dictionary of xz's own presets (`-9`) is 64 MiB, the rest is its buffers.
/// Headers may ask for up to 4 GiB.
const XZ_MEMORY_MAX_KIB: u32 = (64 << 10) + 1024;

/// What the bytes that came were.
pub(super) struct Source {
    pub(super) digest: [u8; 32],
    pub(super) size: u64,
}

/// Reads `source` to its end and sends it on. `Ok(None)` when a later step has given up.
pub(super) fn read(mut source: impl Read, compressed: Inlet) -> Result<Option<Source>, StageError> {
    let (mut digest, mut size) = (Sha256::new(), 0);
    let pumped = compressed.pump(&mut source, |piece| {
        digest.update(piece);
        size += piece.len() as u64;
    });
    match pumped.map_err(StageError::Source)? {
        Ok(()) => Ok(Some(Source { digest: digest.finalize().into(), size })),
        Err(NobodyListens) => Ok(None),
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

/// Sends on what was compressed. `Ok(None)` when another step has failed or given up.
pub(super) fn decompress(mut compressed: Outlet, plain: Inlet) -> Result<Option<Compression>, StageError> {
    // Pieces are full, so that the first one tells.
    let Ok(start) = compressed.fill_buf() else { return Ok(None) };
    let compression = recognise(start);
    let ignore = |_: &[u8]| {};
    let source = &mut compressed;
    let pumped = match compression {
        Compression::None => plain.pump(source, ignore),
        Compression::Gzip => plain.pump(&mut MultiGzDecoder::new(source), ignore),
        Compression::Zstd => zstd::Decoder::with_buffer(source).and_then(|mut decoder| {
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            plain.pump(&mut decoder, ignore)
        }),
        // Streams that follow one another are one, as in gzip and zstd.
        Compression::Xz => plain.pump(&mut XzReader::new_mem_limit(source, true, XZ_MEMORY_MAX_KIB), ignore),
        Compression::Bzip2 => plain.pump(&mut MultiBzDecoder::new(source), ignore),
    };
    match pumped {
        // A decompressor may stop where its format ends; the digest covers every byte.
        Ok(Ok(())) => while compressed.next_piece().is_some() {},
        Ok(Err(NobodyListens)) => return Ok(None),
        Err(_) if compressed.is_broken() => {}
        Err(error) => return Err(StageError::Decompress(error)),
    }
    Ok((!compressed.is_broken()).then_some(compression))
}
