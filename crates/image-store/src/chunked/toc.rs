//! The table of contents of a zstd:chunked layer: where it lies, and what it says.
//!
//! Both are as hostile as the layer. Nothing here is believed of a file's owner or mode: where the layer has a tar-split
//! stream, the tar's own headers count and the table must agree with them. Source: containers-storage-zstd-chunked(5).

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use domain::digest::Digest;
use jiff::Timestamp;
use serde::Deserialize;
use thiserror::Error;

use crate::stage::clean;
use crate::tar::{Kind, Member, NAME_MAX_BYTES};

/// Largest table read, plain: some 200 000 files. It is held in memory, and larger layers are rare; they come whole.
pub(super) const TOC_MAX_BYTES: u64 = 64 << 20;
/// Largest tar-split stream read, as it travels: it is held in memory until the layer is made.
pub(super) const SPLIT_MAX_BYTES: u64 = 32 << 20;
/// Most a zstd frame of nothing but zeros expands by; a chunk that claims more is a lie.
const EXPANSION_MAX: u64 = 1 << 16;
/// Kind of the table, the only one there is.
const MANIFEST_TYPE: u64 = 1;
/// Version of the table, the only one there is.
const VERSION: u64 = 1;

const CHECKSUM: &str = "io.github.containers.zstd-chunked.manifest-checksum";
const POSITION: &str = "io.github.containers.zstd-chunked.manifest-position";
const SPLIT_POSITION: &str = "io.github.containers.zstd-chunked.tarsplit-position";
const ESTARGZ: &str = "containerd.io/snapshot/stargz/toc.digest";

/// Why a layer cannot be made from its table of contents. It may still be made from all of its bytes.
#[derive(Debug, Error)]
pub enum TocError {
    /// Annotations or table break the format's rules, or contradict what they describe: nobody honest made this.
    #[error("table of contents refused: {0}")]
    Refused(String),
    /// The layer is of a kind that is pulled whole.
    #[error("layer has to be pulled whole: {0}")]
    Unsuitable(&'static str),
}

pub(super) fn refused<T>(what: impl Into<String>) -> Result<T, TocError> {
    Err(TocError::Refused(what.into()))
}

/// Bytes of a blob: from, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// Number of bytes, never zero.
    pub length: u64,
}

impl ByteRange {
    /// First byte behind it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.length)
    }
}

/// Where a layer's table lies in its blob, by the annotations of its descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TocPosition {
    /// Digest of the table as it travels.
    pub digest: Digest,
    /// The table, compressed.
    pub table: ByteRange,
    /// Its length when plain.
    pub table_size: u64,
    /// The tar-split stream, compressed, where the layer has one.
    pub split: Option<ByteRange>,
}

fn numbers<const N: usize>(key: &str, text: &str) -> Result<[u64; N], TocError> {
    let mut parts = text.split(':');
    let mut found = [0; N];
    for slot in &mut found {
        let part = parts.next().filter(|part| part.bytes().all(|byte| byte.is_ascii_digit()));
        let Some(number) = part.and_then(|part| part.parse().ok()) else {
            return refused(format!("annotation {key} is no list of {N} numbers"));
        };
        *slot = number;
    }
    if parts.next().is_some() {
        return refused(format!("annotation {key} is no list of {N} numbers"));
    }
    Ok(found)
}

impl TocPosition {
    /// Reads the annotations of a layer of `blob_size` bytes. `None` where there is no table this crate reads.
    pub fn find(annotations: &BTreeMap<String, String>, blob_size: u64) -> Result<Option<Self>, TocError> {
        let Some(checksum) = annotations.get(CHECKSUM) else { return Ok(None) };
        if annotations.contains_key(ESTARGZ) {
            return refused("annotations name two tables");
        }
        let Ok(digest) = Digest::parse(checksum) else {
            return refused(format!("annotation {CHECKSUM} is no digest"));
        };
        let Some(position) = annotations.get(POSITION) else {
            return refused(format!("annotation {POSITION} is missing"));
        };
        let [start, length, table_size, kind] = numbers(POSITION, position)?;
        if kind != MANIFEST_TYPE {
            return refused(format!("table of unknown type {kind}"));
        }
        let within = |range: ByteRange, what: &str| match range.start.checked_add(range.length) {
            Some(end) if range.start > 0 && range.length > 0 && end <= blob_size => Ok(range),
            _ => refused(format!("{what} does not lie in the layer")),
        };
        let table = within(ByteRange { start, length }, "table")?;
        if table.length > TOC_MAX_BYTES || table_size > TOC_MAX_BYTES {
            return Err(TocError::Unsuitable("its table of contents is too large"));
        }
        let split = match annotations.get(SPLIT_POSITION) {
            None => None,
            Some(text) => {
                let [start, length, _] = numbers(SPLIT_POSITION, text)?;
                Some(within(ByteRange { start, length }, "tar-split stream")?)
            }
        };
        if split.is_some_and(|split| split.length > SPLIT_MAX_BYTES) {
            return Err(TocError::Unsuitable("its tar-split stream is too large"));
        }
        if split.is_some_and(|split| split.start < table.end() && table.start < split.end()) {
            return refused("table and tar-split stream overlap");
        }
        Ok(Some(Self { digest, table, table_size, split }))
    }
}

/// A part of a file that is stored by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// Where in the file it begins.
    pub(crate) at: u64,
    /// Plain bytes.
    pub(crate) size: u64,
    /// Its zstd frames in the blob.
    pub(crate) stored: ByteRange,
    /// Digest of the plain bytes; a file of one chunk has only its own.
    pub(crate) digest: Option<[u8; 32]>,
    /// Whether it is nothing but zeros.
    pub(crate) is_zeros: bool,
}

/// One member as the table has it.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// As an archive would have it; its name is not cleaned.
    pub(crate) member: Member,
    /// Digest of a file's content; files without content have none.
    pub(crate) digest: Option<[u8; 32]>,
    /// The parts of a file with content, in order and without gaps.
    pub(crate) chunks: Vec<Chunk>,
}

/// A table, checked by itself.
#[derive(Debug, Clone)]
pub(crate) struct Toc {
    /// In the order of the archive; names are unique.
    pub(crate) entries: Vec<Entry>,
    /// Digest of the tar-split stream as it travels.
    pub(crate) split_digest: Option<Digest>,
}

#[derive(Deserialize)]
struct Table<'a> {
    version: u64,
    #[serde(borrow)]
    entries: Vec<Line<'a>>,
    #[serde(default, borrow, rename = "tarSplitDigest")]
    split_digest: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    r#type: Cow<'a, str>,
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(default, borrow, rename = "linkName")]
    link: Option<Cow<'a, str>>,
    #[serde(default)]
    mode: u32,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
    #[serde(default, borrow)]
    modtime: Option<Cow<'a, str>>,
    #[serde(default)]
    dev_major: u32,
    #[serde(default)]
    dev_minor: u32,
    #[serde(default, borrow)]
    xattrs: Option<BTreeMap<Cow<'a, str>, Cow<'a, str>>>,
    #[serde(default, borrow)]
    digest: Option<Cow<'a, str>>,
    #[serde(default)]
    offset: u64,
    #[serde(default)]
    end_offset: u64,
    #[serde(default)]
    chunk_size: u64,
    #[serde(default)]
    chunk_offset: u64,
    #[serde(default, borrow)]
    chunk_digest: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    chunk_type: Option<Cow<'a, str>>,
}

fn kind_of(text: &str) -> Option<Kind> {
    Some(match text {
        "reg" => Kind::File,
        "hardlink" => Kind::HardLink,
        "symlink" => Kind::Symlink,
        "char" => Kind::CharDevice,
        "block" => Kind::BlockDevice,
        "dir" => Kind::Directory,
        "fifo" => Kind::Fifo,
        _ => return None,
    })
}

/// The 32 bytes of `sha256:` and digits; absent when the text is empty.
fn digest_of(text: Option<&str>) -> Result<Option<[u8; 32]>, TocError> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    let Ok(digest) = Digest::parse(text) else { return refused("digest of an unknown form") };
    Ok(Some(digest_bytes(&digest)))
}

/// The 32 bytes a digest stands for.
pub(super) fn digest_bytes(digest: &Digest) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digest.hex().as_bytes().chunks(2)) {
        let value = |digit: u8| if digit <= b'9' { digit - b'0' } else { digit - b'a' + 10 };
        *byte = (value(pair[0]) << 4) | value(pair[1]);
    }
    bytes
}

impl Line<'_> {
    /// Seconds and nanoseconds, with the epoch for what an archive cannot say, as the tar reader has it.
    fn modified(&self) -> Result<(i64, u32), TocError> {
        let Some(text) = &self.modtime else { return Ok((0, 0)) };
        let Ok(time) = text.parse::<Timestamp>() else { return refused("time of an unknown form") };
        let since = time.as_second();
        let nanoseconds = u32::try_from(time.subsec_nanosecond()).unwrap_or(0);
        Ok(if since < 0 { (0, 0) } else { (since, nanoseconds) })
    }

    fn member(&self) -> Result<Member, TocError> {
        let Some(kind) = kind_of(&self.r#type) else {
            return refused(format!("entry {:?} of an unknown type", short(&self.name)));
        };
        let link = self.link.as_deref().unwrap_or_default();
        for text in [&*self.name, link] {
            if text.len() > NAME_MAX_BYTES || text.contains('\0') {
                return refused(format!("entry {:?} has an impossible name", short(&self.name)));
            }
        }
        if self.name.is_empty() || clean(self.name.as_bytes()).is_err() {
            return refused(format!("name {:?} leads out of the layer", short(&self.name)));
        }
        if kind == Kind::HardLink && clean(link.as_bytes()).map_or(true, |target| target.is_empty()) {
            return refused(format!("hard link to {:?}, which is not in the layer", short(link)));
        }
        if self.uid == u32::MAX || self.gid == u32::MAX {
            return refused(format!("entry {:?} has an impossible owner", short(&self.name)));
        }
        let mut xattrs = Vec::new();
        for (name, value) in self.xattrs.iter().flatten() {
            let Ok(value) = STANDARD.decode(value.as_bytes()) else {
                return refused(format!("entry {:?} has an attribute that is not base64", short(&self.name)));
            };
            xattrs.push((name.as_bytes().to_vec(), value));
        }
        Ok(Member {
            name: self.name.as_bytes().to_vec(),
            link: link.as_bytes().to_vec(),
            kind,
            mode: self.mode & 0o7777,
            uid: self.uid,
            gid: self.gid,
            size: if kind == Kind::File { self.size } else { 0 },
            modified: self.modified()?,
            device: (self.dev_major, self.dev_minor),
            xattrs,
            sparse: None,
        })
    }
}

pub(super) fn short(text: &str) -> String {
    text.chars().take(200).collect()
}

impl Toc {
    /// Parses and checks a plain table. Files' bytes must lie in the first `content_end` bytes of the blob, in the
    /// order of the entries, none twice.
    pub(crate) fn parse(bytes: &[u8], content_end: u64) -> Result<Self, TocError> {
        let table: Table<'_> = match serde_json::from_slice(bytes) {
            Ok(table) => table,
            Err(error) => return refused(format!("not a table: {error}")),
        };
        if table.version != VERSION {
            return refused(format!("table of unknown version {}", table.version));
        }
        let split_digest = match table.split_digest.as_deref().filter(|text| !text.is_empty()) {
            None => None,
            Some(text) => match Digest::parse(text) {
                Ok(digest) => Some(digest),
                Err(_) => return refused("digest of the tar-split stream is none"),
            },
        };
        let mut entries: Vec<Entry> = Vec::new();
        let mut names = std::collections::HashSet::with_capacity(table.entries.len());
        let mut stored_until = 0;
        let mut lines = table.entries.iter().peekable();
        while let Some(line) = lines.next() {
            if line.r#type == "chunk" {
                return refused(format!("chunk of {:?} without its file", short(&line.name)));
            }
            let member = line.member()?;
            if !names.insert(&*line.name) {
                return refused(format!("name {:?} twice", short(&line.name)));
            }
            let mut parts = vec![line];
            while let Some(part) = lines.next_if(|next| next.r#type == "chunk") {
                parts.push(part);
            }
            let entry = entry_of(member, &parts, content_end, &mut stored_until)?;
            entries.push(entry);
        }
        Ok(Self { entries, split_digest })
    }
}

fn entry_of(member: Member, parts: &[&Line<'_>], content_end: u64, stored_until: &mut u64) -> Result<Entry, TocError> {
    let name = short(&parts[0].name);
    let wrong = |what: &str| refused::<Entry>(format!("file {name:?}: {what}"));
    if member.kind != Kind::File || member.size == 0 {
        if parts.len() > 1 {
            return wrong("chunks of what has no content");
        }
        return Ok(Entry { member, digest: None, chunks: Vec::new() });
    }
    let Some(digest) = digest_of(parts[0].digest.as_deref())? else { return wrong("no digest") };
    let mut chunks = Vec::with_capacity(parts.len());
    let mut at = 0_u64;
    for (index, part) in parts.iter().enumerate() {
        let is_last = index + 1 == parts.len();
        // The end is the first entry's; every other chunk ends where the next one begins.
        let end = parts.get(index + 1).map_or(parts[0].end_offset, |next| next.offset);
        if part.name != parts[0].name || part.chunk_offset != at {
            return wrong("chunks out of order");
        }
        if part.offset == 0 || part.offset < *stored_until || end <= part.offset || end > content_end {
            return wrong("chunks that overlap or do not lie in the layer");
        }
        let Some(left) = member.size.checked_sub(at).filter(|left| *left > 0) else {
            return wrong("chunks beyond its size");
        };
        let size = if part.chunk_size > 0 { part.chunk_size } else { left };
        if size > left || (is_last && size != left) {
            return wrong("chunks that do not add up to its size");
        }
        let stored = ByteRange { start: part.offset, length: end - part.offset };
        if size / EXPANSION_MAX > stored.length {
            return wrong("a size its bytes cannot expand to");
        }
        let is_zeros = match part.chunk_type.as_deref().unwrap_or_default() {
            "" => false,
            "zeros" => true,
            _ => return wrong("a chunk of unknown type"),
        };
        chunks.push(Chunk { at, size, stored, digest: digest_of(part.chunk_digest.as_deref())?, is_zeros });
        *stored_until = end;
        at += size;
    }
    Ok(Entry { member, digest: Some(digest), chunks })
}

/// Finds and parses a table in any bytes; an entry point for fuzzing. Laws: what is accepted lies in the layer, in order.
pub fn fuzz_toc(bytes: &[u8]) {
    const CONTENT_END: u64 = 1 << 40;
    if let Some(split) = bytes.iter().position(|byte| *byte == b'\n')
        && let Ok(text) = std::str::from_utf8(&bytes[..split])
    {
        let keys = [CHECKSUM, POSITION, SPLIT_POSITION, ESTARGZ];
        let annotations: BTreeMap<String, String> =
            keys.iter().zip(text.split(' ')).map(|(key, value)| ((*key).to_owned(), value.to_owned())).collect();
        if let Ok(Some(found)) = TocPosition::find(&annotations, CONTENT_END) {
            assert!(found.table.end() <= CONTENT_END && found.split.is_none_or(|split| split.end() <= CONTENT_END));
        }
    }
    let table = bytes.splitn(2, |byte| *byte == b'\n').last().unwrap_or_default();
    let Ok(toc) = Toc::parse(table, CONTENT_END) else { return };
    let mut end = 0;
    for entry in &toc.entries {
        let mut at = 0;
        for chunk in &entry.chunks {
            assert!(chunk.at == at && chunk.stored.start >= end && chunk.stored.end() <= CONTENT_END);
            (at, end) = (at + chunk.size, chunk.stored.end());
        }
        assert_eq!(at, entry.member.size, "chunks make the file");
    }
}

#[cfg(test)]
#[path = "toc_tests.rs"]
mod tests;
