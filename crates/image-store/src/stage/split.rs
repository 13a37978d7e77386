//! Writing a tar-split stream: what, together with the files of a layer, gives its tar back bit for bit.
//!
//! Gzip of one JSON object a line. Source: vbatts/tar-split `tar/storage`, and streams written by podman.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;

/// Whether a name had content when it was last seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    None,
    Some,
}

/// Whether a file can be named in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// For the first time.
    New,
    /// Again, and nothing of either has content: the readers of the field refuse a second entry, and none is needed.
    AgainWithoutContent,
    /// Again, and content of one of them will not be in the layer.
    AgainWithContent,
}

/// A stream being written.
pub(crate) struct SplitWriter<W: Write> {
    gzip: GzEncoder<W>,
    position: u64,
    line: String,
    /// Hashes of cleaned names with a random key; a false match would need luck of one in millions even for a layer
    /// of a million files, and only refuses that pull.
    seen: HashMap<u64, Content>,
    hasher: RandomState,
}

impl<W: Write> SplitWriter<W> {
    pub(crate) fn new(inner: W) -> Self {
        Self {
            gzip: GzEncoder::new(inner, Compression::fast()),
            position: 0,
            line: String::new(),
            seen: HashMap::new(),
            hasher: RandomState::new(),
        }
    }

    /// Notes that a member of this cleaned name is about to be written.
    pub(crate) fn note(&mut self, clean: &[u8], size: u64) -> Seen {
        let content = if size > 0 { Content::Some } else { Content::None };
        let key = self.hasher.hash_one(clean);
        match self.seen.insert(key, content) {
            None => Seen::New,
            Some(Content::None) if content == Content::None => Seen::AgainWithoutContent,
            Some(_) => Seen::AgainWithContent,
        }
    }

    /// Raw bytes; none write nothing.
    pub(crate) fn segment(&mut self, raw: &mut Vec<u8>) -> io::Result<()> {
        if raw.is_empty() {
            return Ok(());
        }
        self.line.clear();
        self.line.push_str("{\"type\":2,\"payload\":\"");
        STANDARD.encode_string(&*raw, &mut self.line);
        self.line.push('"');
        raw.clear();
        self.finish_line()
    }

    /// A file of the layer, by the name the archive has for it.
    pub(crate) fn file(&mut self, name: &[u8], size: u64, crc: Option<[u8; 8]>) -> io::Result<()> {
        use std::fmt::Write as _;
        self.line.clear();
        self.line.push_str("{\"type\":1,");
        match std::str::from_utf8(name) {
            Ok(name) => {
                self.line.push_str("\"name\":");
                self.line.push_str(&serde_json::to_string(name)?);
            }
            Err(_) => {
                self.line.push_str("\"name_raw\":\"");
                STANDARD.encode_string(name, &mut self.line);
                self.line.push('"');
            }
        }
        if size > 0 {
            write!(self.line, ",\"size\":{size}").map_err(io::Error::other)?;
        }
        self.line.push_str(",\"payload\":");
        match crc {
            Some(crc) => {
                self.line.push('"');
                STANDARD.encode_string(crc, &mut self.line);
                self.line.push('"');
            }
            None => self.line.push_str("null"),
        }
        self.finish_line()
    }

    fn finish_line(&mut self) -> io::Result<()> {
        use std::fmt::Write as _;
        // The first position, zero, is written like all others by the field.
        writeln!(self.line, ",\"position\":{}}}", self.position).map_err(io::Error::other)?;
        self.position += 1;
        self.gzip.write_all(self.line.as_bytes())
    }

    pub(crate) fn finish(self) -> io::Result<W> {
        self.gzip.finish()
    }
}
