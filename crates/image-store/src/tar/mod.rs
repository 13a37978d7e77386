//! Reading tar archives of hostile origin: headers, PAX records, GNU names and sparse files, with limits.
//!
//! Names, sizes and types come out as the field's tar reader (Go's archive/tar) understands them, because tar-split
//! streams written here are put together again by tools that use it. No I/O of its own; nothing is joined or opened.
//! Every byte that is not content of a file is handed out as it was read ([`Reader::take_raw`]).

mod header;
mod pax;
mod sparse;

use std::io::{self, BufRead};

use thiserror::Error;

pub use header::Kind;
use header::{Block, Format, Header};
use pax::{Pax, SparseForm};
pub use sparse::{Extent, SparseMap};

/// Size of a tar block.
pub(crate) const BLOCK: usize = 512;
const BLOCK_U64: u64 = 512;
/// Largest PAX header or GNU long name; what Go's reader allows.
pub(crate) const SPECIAL_MAX_BYTES: u64 = 1 << 20;
/// Longest name of a member or target of a link: the kernel's `PATH_MAX`, less its NUL.
pub(crate) const NAME_MAX_BYTES: usize = 4095;
/// Latest time that counts, in the year 2262; later ones become the epoch, as earlier ones do. Source: containers/storage.
const TIME_MAX_SECONDS: i64 = i64::MAX / 1_000_000_000;
/// Most raw bytes kept before they must be taken.
const RAW_SOFT_MAX_BYTES: usize = 64 << 10;

/// Why an archive cannot be a layer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TarError {
    /// The bytes could not be read.
    #[error("read archive at byte {offset}")]
    Read {
        /// Offset in the uncompressed tar.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ends inside a header or a file.
    #[error("archive ends early, at byte {offset}")]
    EndsEarly {
        /// Offset in the uncompressed tar.
        offset: u64,
    },
    /// A header is not one.
    #[error("archive header at byte {offset}: {reason}")]
    BadHeader {
        /// Offset in the uncompressed tar.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// A PAX header or long name beyond any sense.
    #[error("archive header at byte {offset} has {size} bytes of extensions, more than {limit}")]
    ExtensionTooLarge {
        /// Offset in the uncompressed tar.
        offset: u64,
        /// As the header says.
        size: u64,
        /// Most allowed.
        limit: u64,
    },
    /// A member of a type no layer has.
    #[error("{name:?}: archive member of type {flag:?} is not supported")]
    UnsupportedType {
        /// The member.
        name: String,
        /// Its type flag.
        flag: char,
    },
    /// A name that is absent, too long, or leads out of the layer.
    #[error("{name:?}: {reason}")]
    BadName {
        /// The name, or its beginning.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// Two members of one name, of which at least one has content.
    #[error("{name:?}: archive has this file more than once")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// A device, and the policy does not allow it.
    #[error("{name:?}: device nodes are refused")]
    DeviceRefused {
        /// The name.
        name: String,
    },
    /// More members than a layer may have.
    #[error("archive has more than {limit} members")]
    TooManyEntries {
        /// Most allowed.
        limit: u64,
    },
    /// More directories than a layer may have, by what it takes to remember them.
    #[error("names of the archive's directories have more than {limit} bytes")]
    TooManyDirectories {
        /// Most allowed.
        limit: usize,
    },
    /// A member could not be made in the layer.
    #[error("{name:?}: {action}")]
    Unpack {
        /// The member.
        name: String,
        /// What was attempted.
        action: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A name for messages: readable, and not longer than a line.
pub(crate) fn shown(name: &[u8]) -> String {
    const SHOWN_MAX: usize = 200;
    String::from_utf8_lossy(&name[..name.len().min(SHOWN_MAX)]).into_owned()
}

/// One member of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// As the archive has it: not cleaned, not even necessarily inside.
    pub name: Vec<u8>,
    /// Target of a hard or symbolic link, likewise.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, including setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of content in the archive.
    pub size: u64,
    /// Modification time: seconds since the epoch, not before it, and nanoseconds.
    pub modified: (i64, u32),
    /// Of devices: major and minor number.
    pub device: (u32, u32),
    /// Extended attributes, by full name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the content belongs, for files with holes.
    pub sparse: Option<SparseMap>,
}

/// Reads an archive member by member.
#[derive(Debug)]
pub struct Reader<R> {
    inner: R,
    offset: u64,
    raw: Vec<u8>,
    /// Content of the current member not yet read, and padding behind it.
    content_left: u64,
    padding_left: u64,
}

impl<R: BufRead> Reader<R> {
    /// Starts at the beginning of an uncompressed archive.
    pub fn new(inner: R) -> Self {
        Self { inner, offset: 0, raw: Vec::new(), content_left: 0, padding_left: 0 }
    }

    /// Gives the bytes' source back.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// The bytes' source.
    pub(crate) fn inner_mut(&mut self) -> &mut R {
        &mut self.inner
    }

    /// Counts the content of the current member as read: it came from elsewhere.
    pub(crate) fn pass_content(&mut self) {
        self.offset += std::mem::take(&mut self.content_left);
    }

    /// Raw bytes since the last call: headers, extensions, padding, and content passed with [`Reader::advance_keeping`].
    pub fn take_raw(&mut self) -> &mut Vec<u8> {
        &mut self.raw
    }

    /// Whether enough raw bytes have gathered that they should be taken.
    pub fn is_raw_full(&self) -> bool {
        self.raw.len() >= RAW_SOFT_MAX_BYTES
    }

    /// The next member; content of the last one not yet read is kept with the raw bytes.
    ///
    /// `None` at the end. Bytes behind it are read by [`Reader::trailing`].
    pub fn next_member(&mut self) -> Result<Option<Member>, TarError> {
        self.skip_rest()?;
        let mut pax = Pax::default();
        let mut long_name: Option<Vec<u8>> = None;
        let mut long_link: Option<Vec<u8>> = None;
        loop {
            let at = self.offset;
            let Some(block) = self.read_block()? else { return Ok(None) };
            if block.is_zero() {
                return match self.read_block()? {
                    None => Ok(None),
                    Some(second) if second.is_zero() => Ok(None),
                    Some(_) => Err(TarError::BadHeader { offset: at, reason: "a single zero block" }),
                };
            }
            let bad = |reason| TarError::BadHeader { offset: at, reason };
            let header = Header::parse(&block).map_err(bad)?;
            let size = header.content_size().map_err(bad)?;
            match header.flag {
                b'x' => pax = Pax::parse(&self.read_special(size, at)?).map_err(bad)?,
                b'L' => long_name = Some(until_nul(self.read_special(size, at)?)),
                b'K' => long_link = Some(until_nul(self.read_special(size, at)?)),
                b'g' => {
                    // Applies to no member in the field's reader, for which it is a member of its own: what came before
                    // it was for it.
                    Pax::parse(&self.read_special(size, at)?).map_err(bad)?;
                    (pax, long_name, long_link) = (Pax::default(), None, None);
                }
                _ => return self.finish_member(header, &block, pax, long_name, long_link, at).map(Some),
            }
        }
    }

    fn finish_member(
        &mut self,
        mut header: Header,
        block: &Block,
        pax: Pax,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
        at: u64,
    ) -> Result<Member, TarError> {
        let bad = |reason| TarError::BadHeader { offset: at, reason };
        let flag = header.flag;
        pax.apply(&mut header).map_err(bad)?;
        if let Some(name) = long_name.filter(|name| !name.is_empty()) {
            header.name = name;
        }
        if let Some(link) = long_link.filter(|link| !link.is_empty()) {
            header.link = link;
        }
        let kind = Kind::of(flag, &header.name)
            .ok_or_else(|| TarError::UnsupportedType { name: shown(&header.name), flag: char::from(flag) })?;
        // A name that ended in a slash may just have become one of a directory.
        let size = if kind == Kind::File { header.content_size().map_err(bad)? } else { 0 };
        self.content_left = size;
        self.padding_left = (BLOCK_U64 - size % BLOCK_U64) % BLOCK_U64;
        let sparse = match pax.sparse_form() {
            // The older star has the same flag and another header.
            _ if flag == b'S' && header.format != Format::Gnu => return Err(bad("sparse file of an unknown format")),
            _ if flag == b'S' => Some(self.read_gnu_sparse(block, at)?),
            None => None,
            Some(_) if kind != Kind::File => return Err(bad("sparse map of what is no file")),
            Some(form) => Some(self.read_pax_sparse(&pax, form, size, at)?),
        };
        if let Some(map) = &sparse {
            map.check(self.content_left).map_err(bad)?;
            if let Some(name) = pax.sparse_name.filter(|_| flag != b'S') {
                header.name = name;
            }
        }
        if header.name.is_empty() || header.name.len() > NAME_MAX_BYTES || header.link.len() > NAME_MAX_BYTES {
            return Err(TarError::BadName { name: shown(&header.name), reason: "name is empty or too long" });
        }
        if header.name.contains(&0) || header.link.contains(&0) {
            return Err(TarError::BadName { name: shown(&header.name), reason: "name holds a zero byte" });
        }
        // u32::MAX means "leave as it is" to chown(2).
        let owner = |id: i64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
        Ok(Member {
            kind,
            mode: header.mode & 0o7777,
            uid: owner(header.uid).ok_or_else(|| bad("owner out of range"))?,
            gid: owner(header.gid).ok_or_else(|| bad("group out of range"))?,
            size: self.content_left,
            modified: Some(header.modified)
                .filter(|(seconds, _)| (0..=TIME_MAX_SECONDS).contains(seconds))
                .unwrap_or((0, 0)),
            device: header.device,
            xattrs: pax.xattrs,
            sparse,
            name: header.name,
            link: header.link,
        })
    }

    /// The next piece of the current member's content; empty when there is no more. Pieces are what happens to be in
    /// memory, not copied. [`Reader::advance`] must follow.
    pub fn content(&mut self) -> Result<&[u8], TarError> {
        if self.content_left == 0 {
            return Ok(&[]);
        }
        let left = usize::try_from(self.content_left).unwrap_or(usize::MAX);
        let piece = fill(&mut self.inner, self.offset)?;
        if piece.is_empty() {
            return Err(TarError::EndsEarly { offset: self.offset });
        }
        Ok(&piece[..piece.len().min(left)])
    }

    /// Marks `count` bytes of what [`Reader::content`] returned as used.
    pub fn advance(&mut self, count: usize) {
        self.inner.consume(count);
        self.offset += count as u64;
        self.content_left -= count as u64;
    }

    /// Like [`Reader::advance`], and keeps the bytes with the raw ones.
    pub fn advance_keeping(&mut self, count: usize) -> Result<(), TarError> {
        let piece = fill(&mut self.inner, self.offset)?;
        self.raw.extend_from_slice(&piece[..count]);
        self.advance(count);
        Ok(())
    }

    /// A piece of what follows the end of the archive, moved to the raw bytes; `false` when there is no more.
    pub fn trailing(&mut self) -> Result<bool, TarError> {
        let piece = fill(&mut self.inner, self.offset)?;
        let count = piece.len().min(RAW_SOFT_MAX_BYTES);
        self.raw.extend_from_slice(&piece[..count]);
        self.inner.consume(count);
        self.offset += count as u64;
        Ok(count > 0)
    }

    fn keep_content(&mut self) -> Result<(), TarError> {
        while self.content_left > 0 {
            let count = self.content()?.len();
            self.advance_keeping(count)?;
        }
        Ok(())
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        self.keep_content()?;
        let mut padding = std::mem::take(&mut self.padding_left);
        while padding > 0 {
            let piece = fill(&mut self.inner, self.offset)?;
            // Go's reader forgives an archive that ends in the padding of its last file.
            if piece.is_empty() {
                break;
            }
            let count = piece.len().min(usize::try_from(padding).unwrap_or(usize::MAX));
            self.raw.extend_from_slice(&piece[..count]);
            self.inner.consume(count);
            self.offset += count as u64;
            padding -= count as u64;
        }
        Ok(())
    }

    fn read_block(&mut self) -> Result<Option<Block>, TarError> {
        let mut block = [0; BLOCK];
        let mut have = 0;
        while have < BLOCK {
            let piece = fill(&mut self.inner, self.offset)?;
            if piece.is_empty() {
                if have == 0 {
                    return Ok(None);
                }
                return Err(TarError::EndsEarly { offset: self.offset });
            }
            let count = piece.len().min(BLOCK - have);
            block[have..have + count].copy_from_slice(&piece[..count]);
            self.inner.consume(count);
            self.offset += count as u64;
            have += count;
        }
        self.raw.extend_from_slice(&block);
        Ok(Some(Block(block)))
    }

    /// The content of an extension header, which also stays among the raw bytes.
    fn read_special(&mut self, size: u64, at: u64) -> Result<Vec<u8>, TarError> {
        if size > SPECIAL_MAX_BYTES {
            return Err(TarError::ExtensionTooLarge { offset: at, size, limit: SPECIAL_MAX_BYTES });
        }
        let from = self.raw.len();
        (self.content_left, self.padding_left) = (size, (BLOCK_U64 - size % BLOCK_U64) % BLOCK_U64);
        self.keep_content()?;
        let content = self.raw[from..].to_vec();
        self.skip_rest()?;
        Ok(content)
    }

    fn read_gnu_sparse(&mut self, block: &Block, at: u64) -> Result<SparseMap, TarError> {
        let bad = |reason| TarError::BadHeader { offset: at, reason };
        let (mut map, mut more) = SparseMap::of_gnu_header(block).map_err(bad)?;
        while more {
            let next = self.read_block()?.ok_or(TarError::EndsEarly { offset: self.offset })?;
            more = map.add_gnu_block(&next).map_err(bad)?;
        }
        Ok(map)
    }

    fn read_pax_sparse(&mut self, pax: &Pax, form: SparseForm, size: u64, at: u64) -> Result<SparseMap, TarError> {
        let bad = |reason| TarError::BadHeader { offset: at, reason };
        let real_size = pax.sparse_size(size).map_err(bad)?;
        if form == SparseForm::InHeader {
            return Ok(SparseMap { real_size, extents: pax.sparse_map().map_err(bad)? });
        }
        // Format 1.0: decimal numbers in front of the content, filled up to whole blocks.
        let mut text = sparse::MapText::default();
        loop {
            if self.content_left < BLOCK_U64 {
                return Err(bad("sparse map longer than the file"));
            }
            let block = self.read_block()?.ok_or(TarError::EndsEarly { offset: self.offset })?;
            self.content_left -= BLOCK_U64;
            if let Some(extents) = text.add(&block).map_err(bad)? {
                return Ok(SparseMap { real_size, extents });
            }
        }
    }
}

fn fill<R: BufRead>(inner: &mut R, offset: u64) -> Result<&[u8], TarError> {
    inner.fill_buf().map_err(|source| TarError::Read { offset, source })
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

/// Reads a whole archive and does nothing with it; an entry point for fuzzing. Returns how many members it had.
pub fn scan(bytes: &[u8]) -> Result<u64, TarError> {
    let mut reader = Reader::new(bytes);
    let mut members = 0;
    while reader.next_member()?.is_some() {
        reader.take_raw().clear();
        members += 1;
    }
    while reader.trailing()? {
        reader.take_raw().clear();
    }
    Ok(members)
}

#[cfg(test)]
mod tests;
