//! Layers made of what the store has already and of the bytes that are missing.
//!
//! A zstd:chunked blob ends in a table of contents: every file with its digest and the place of its bytes. The way of
//! such a layer: the caller finds the table by [`TocPosition`], fetches it ([`ChunkedLayer::parse`]) and has it compared
//! with the store ([`Store::plan_chunked`]); it fetches [`ChunkedPlan::ranges`], and [`Store::stage_chunked`] makes the
//! files of both. Where the blob carries its tar-split stream, which all current tools write, the layer's archive is put
//! together on the way, and what is made is what the archive says: the layer has its diff id or it is refused. Without
//! that stream only the table vouches for a layer, and it gets an identity of its own, if the operator allows it.
//!
//! The same composing makes a layer of another one with the same archive ([`Store::stage_twin`]).

mod commit;
mod compose;
mod content;
mod doors;
mod index;
mod ranges;
mod split;
mod toc;

use std::io::{self, Read};

use domain::digest::Digest;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::error::PathError;
use crate::staging::{StagingDir, StagingFile};
use crate::store::Store;
use crate::table::RecordsError;
use crate::tar::TarError;
pub use commit::{image_id_by_toc, toc_layer_id};
use index::{LocalLayer, Place, Wanted, has_size};
pub use split::fuzz_split;
pub use toc::{ByteRange, TocError, TocPosition, fuzz_toc};
use toc::{Toc, refused};

/// Key under which a layer's table is stored with it.
pub(crate) const TABLE: &str = "zstd-chunked-manifest";
/// Key under which it is stored how the layer's files lie.
pub(crate) const LAYER_FORMAT: &str = "zstd-chunked-layer-data";
/// Files lie in the layer's directory, under their names.
pub(crate) const LAYER_FORMAT_DIRECTORY: &[u8] = b"{\"format\":0}";
/// Largest zstd window accepted, 64 MiB, as for whole layers.
const ZSTD_WINDOW_LOG_MAX: u32 = 26;

/// Why a layer was not made from its parts. Nothing is left; all of its bytes may still make it.
#[derive(Debug, Error)]
pub enum StageChunkedError {
    /// The table cannot be used.
    #[error(transparent)]
    Toc(#[from] TocError),
    /// The store's records.
    #[error("look for content of the layer")]
    Records(#[source] RecordsError),
    /// Something on disk.
    #[error("make layer from its parts")]
    Path(#[source] PathError),
    /// The walls for what handles foreign bytes could not be put up.
    #[error("confine the making of a layer")]
    Confine(#[source] io::Error),
    /// A member of the archive.
    #[error("make layer from its parts")]
    Tar(#[source] TarError),
    /// The missing bytes stopped.
    #[error("read the missing parts of the layer")]
    Fetch(#[source] io::Error),
    /// A file of another layer is not what was unpacked there.
    #[error("file {name:?} of another layer was modified or went away")]
    Source {
        /// Its name there.
        name: String,
        /// What the kernel said, if it did.
        #[source]
        source: Option<io::Error>,
    },
}

impl StageChunkedError {
    /// Whether whoever made the layer is to blame, as far as it can be told.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Toc(TocError::Refused(_)) | Self::Tar(_))
    }
}

/// How layers may be made from parts. Source: containers-storage.conf(5), `pull_options`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChunkedOptions {
    /// `use_hard_links`: an equal file of another layer gets a further name instead of a copy.
    pub use_hard_links: bool,
    /// `insecure_allow_unpredictable_image_contents`: layers whose diff id cannot be checked are made nevertheless.
    pub allow_unpredictable: bool,
}

/// A layer's table and tar-split stream, digests checked.
#[derive(Debug, Clone)]
pub struct ChunkedLayer {
    toc: Toc,
    toc_digest: Digest,
    /// The table, plain: stored with the layer.
    table: Vec<u8>,
    /// Compressed.
    split: Option<Vec<u8>>,
}

impl ChunkedLayer {
    /// `table` and `split` are the bytes of the ranges that `position` names.
    pub fn parse(position: &TocPosition, table: &[u8], split: Option<Vec<u8>>) -> Result<Self, TocError> {
        let digest = |bytes: &[u8]| Digest::from_sha256(&Sha256::digest(bytes).into());
        if digest(table) != position.digest {
            return refused("the table has another digest than the annotation says");
        }
        let table = plain(table, position.table_size)?;
        let toc = Toc::parse(&table, position.table.start)?;
        let split = match (&toc.split_digest, split) {
            // Without its digest in the table nobody vouches for the stream.
            (None, _) => None,
            (Some(_), None) => return refused("the table wants a tar-split stream, and no annotation tells where"),
            (Some(expected), Some(split)) => {
                if digest(&split) != *expected {
                    return refused("the tar-split stream has another digest than the table says");
                }
                Some(split)
            }
        };
        Ok(Self { toc, toc_digest: position.digest.clone(), table, split })
    }
}

/// Exactly `size` bytes out of zstd frames.
fn plain(compressed: &[u8], size: u64) -> Result<Vec<u8>, TocError> {
    let mut bytes = Vec::new();
    let read = decoder(compressed).and_then(|decoder| decoder.take(size + 1).read_to_end(&mut bytes));
    match read {
        Ok(_) if bytes.len() as u64 == size => Ok(bytes),
        Ok(_) => refused("the table has another length than the annotation says"),
        Err(_) => refused("the table is not compressed with zstd"),
    }
}

fn decoder(compressed: &[u8]) -> io::Result<zstd::Decoder<'static, &[u8]>> {
    let mut decoder = zstd::Decoder::with_buffer(compressed)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
    Ok(decoder)
}

/// Where a file's bytes come from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    /// A file of another layer, as it is.
    Whole(Place),
    /// Chunk by chunk.
    Chunks(Vec<ChunkOrigin>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum ChunkOrigin {
    Fetched,
    Zeros,
    Local(Place),
}

/// What of a layer is here and what is missing.
pub struct ChunkedPlan {
    layer: ChunkedLayer,
    /// One for each entry of the table.
    origins: Vec<Origin>,
    locals: Vec<LocalLayer>,
    ranges: Vec<ByteRange>,
    size: u64,
    local_size: u64,
    use_hard_links: bool,
}

impl std::fmt::Debug for ChunkedPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkedPlan").field("ranges", &self.ranges.len()).finish_non_exhaustive()
    }
}

impl ChunkedPlan {
    /// What to fetch of the blob: in order, never overlapping, at most some hundred. Their bytes, one range behind the
    /// other, are what [`Store::stage_chunked`] reads.
    #[must_use]
    pub fn ranges(&self) -> &[ByteRange] {
        &self.ranges
    }

    /// Bytes of all ranges.
    #[must_use]
    pub fn missing_bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.length).sum()
    }

    /// Plain bytes of all files, and those of them that other layers have.
    #[must_use]
    pub fn sizes(&self) -> (u64, u64) {
        (self.size, self.local_size)
    }
}

/// A layer made from parts, whose files lie in a directory without a name; dropping it removes them.
#[derive(Debug)]
pub struct StagedChunked {
    pub(crate) directory: StagingDir,
    pub(crate) split: Option<StagingFile>,
    pub(crate) contents: ChunkedContents,
    /// What is stored with the layer: key and file.
    pub(crate) data: Vec<(&'static str, StagingFile)>,
}

/// What a layer made from parts turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkedContents {
    /// Digest of the table as it travelled; a twin of another layer has that one's, if any.
    pub toc_digest: Option<Digest>,
    /// Digest and length of the archive; absent where only the table vouches for the files.
    pub diff: Option<(Digest, u64)>,
    /// The blob of the layer that a twin was made of: digest, length, compression as recorded.
    pub(crate) compressed: Option<(String, i64, i64)>,
    /// Members of the archive.
    pub entries: u64,
    /// Users that own something in it.
    pub uids: Vec<u32>,
    /// Groups that own something in it.
    pub gids: Vec<u32>,
}

impl StagedChunked {
    /// What it turned out to be.
    #[must_use]
    pub fn contents(&self) -> &ChunkedContents {
        &self.contents
    }
}

impl Store {
    /// Finds what of a layer the store has.
    pub fn plan_chunked(&self, layer: ChunkedLayer, options: ChunkedOptions) -> Result<ChunkedPlan, StageChunkedError> {
        if layer.split.is_none() && !options.allow_unpredictable {
            let why = "it has no tar-split stream, so that its diff id could not be checked";
            return Err(TocError::Unsuitable(why).into());
        }
        let mut wanted = Wanted::new();
        for entry in &layer.toc.entries {
            wanted.extend(entry.digest.map(|digest| (digest, None)));
            wanted.extend(entry.chunks.iter().filter_map(|chunk| chunk.digest).map(|digest| (digest, None)));
        }
        let locals = self.find_content(&mut wanted).map_err(StageChunkedError::Records)?;
        let find = |digest: Option<[u8; 32]>, size: u64, is_whole: bool| {
            let place = wanted.get(&digest?)?.as_ref()?;
            let exactly = is_whole.then_some(size);
            let is_there = has_size(&locals[place.layer].root, &place.name, place.at.saturating_add(size), exactly);
            (place.size == size && (!is_whole || place.at == 0) && is_there).then(|| place.clone())
        };
        let (mut size, mut local_size) = (0_u64, 0_u64);
        let mut missing = Vec::new();
        let mut origins = Vec::with_capacity(layer.toc.entries.len());
        for entry in &layer.toc.entries {
            size = size.saturating_add(entry.member.size);
            if let Some(place) = find(entry.digest, entry.member.size, true) {
                local_size = local_size.saturating_add(entry.member.size);
                origins.push(Origin::Whole(place));
                continue;
            }
            let mut chunks = Vec::with_capacity(entry.chunks.len());
            for chunk in &entry.chunks {
                chunks.push(if chunk.is_zeros {
                    ChunkOrigin::Zeros
                } else if let Some(place) = find(chunk.digest, chunk.size, false) {
                    local_size = local_size.saturating_add(chunk.size);
                    ChunkOrigin::Local(place)
                } else {
                    missing.push(chunk.stored);
                    ChunkOrigin::Fetched
                });
            }
            origins.push(Origin::Chunks(chunks));
        }
        let ranges = ranges::join(missing);
        let use_hard_links = options.use_hard_links;
        Ok(ChunkedPlan { layer, origins, locals, ranges, size, local_size, use_hard_links })
    }
}
