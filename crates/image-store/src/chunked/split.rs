//! A tar-split stream as the tar it stands for, less the files' bytes.
//!
//! Reads like the archive up to where a file's bytes belong, and like its end there; [`SplitTar::next_file`] then says
//! which file, and [`SplitTar::pass`] goes on. What is read is digested; the files' bytes are given to the digest by
//! whoever has them.

use std::io::{self, BufRead, BufReader, Read};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

/// Longest line read: the field's writers keep segments far below a mebibyte, which base64 makes a third longer.
const LINE_MAX_BYTES: u64 = 16 << 20;

#[derive(Deserialize)]
struct Line<'a> {
    r#type: u8,
    #[serde(default)]
    name: Option<String>,
    #[serde(default, borrow)]
    name_raw: Option<&'a str>,
    #[serde(default)]
    size: u64,
    #[serde(default, borrow)]
    payload: Option<&'a str>,
}

/// A file whose bytes come next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SplitFile {
    /// As the archive has it.
    pub(super) name: Vec<u8>,
    /// Bytes, not zero.
    pub(super) size: u64,
}

/// The archive being read.
pub(super) struct SplitTar<R> {
    lines: BufReader<R>,
    line: Vec<u8>,
    segment: Vec<u8>,
    at: usize,
    file: Option<SplitFile>,
    is_over: bool,
    digest: Sha256,
    size: u64,
    limit: u64,
}

impl<R: Read> SplitTar<R> {
    /// `plain` is the stream without its compression; the archive may have `limit` bytes.
    pub(super) fn new(plain: R, limit: u64) -> Self {
        Self {
            lines: BufReader::with_capacity(64 << 10, plain),
            line: Vec::new(),
            segment: Vec::new(),
            at: 0,
            file: None,
            is_over: false,
            digest: Sha256::new(),
            size: 0,
            limit,
        }
    }

    /// The file whose bytes belong here, if the archive is at one.
    pub(super) fn next_file(&mut self) -> io::Result<Option<&SplitFile>> {
        self.load()?;
        Ok(if self.at == self.segment.len() { self.file.as_ref() } else { None })
    }

    /// Digests bytes of the file that is next.
    pub(super) fn content(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.digest.update(bytes);
        self.count(bytes.len())
    }

    /// Goes on behind the file that was next.
    pub(super) fn pass(&mut self) {
        self.file = None;
    }

    /// Digest and length of the archive so far.
    pub(super) fn finish(self) -> ([u8; 32], u64) {
        (self.digest.finalize().into(), self.size)
    }

    fn count(&mut self, bytes: usize) -> io::Result<()> {
        self.size = self.size.saturating_add(bytes as u64);
        if self.size > self.limit { Err(io::Error::from(io::ErrorKind::FileTooLarge)) } else { Ok(()) }
    }

    /// Makes sure that there is a byte to read, a file next, or nothing more.
    fn load(&mut self) -> io::Result<()> {
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "tar-split stream is damaged");
        while self.at == self.segment.len() && self.file.is_none() && !self.is_over {
            self.line.clear();
            if (&mut self.lines).take(LINE_MAX_BYTES).read_until(b'\n', &mut self.line)? == 0 {
                self.is_over = true;
                return Ok(());
            }
            let line: Line<'_> = serde_json::from_slice(&self.line).map_err(|_| damaged())?;
            match line.r#type {
                2 => {
                    self.segment.clear();
                    self.at = 0;
                    STANDARD.decode_vec(line.payload.unwrap_or_default(), &mut self.segment).map_err(|_| damaged())?;
                    self.digest.update(&self.segment);
                    self.count(self.segment.len())?;
                }
                1 if line.size == 0 => {}
                1 => {
                    let name = match (line.name, line.name_raw) {
                        (Some(name), _) => name.into_bytes(),
                        (None, Some(raw)) => STANDARD.decode(raw).map_err(|_| damaged())?,
                        (None, None) => return Err(damaged()),
                    };
                    self.file = Some(SplitFile { name, size: line.size });
                }
                _ => return Err(damaged()),
            }
        }
        Ok(())
    }
}

impl<R: Read> Read for SplitTar<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl<R: Read> BufRead for SplitTar<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.load()?;
        Ok(&self.segment[self.at..])
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}

/// Reads a plain stream as an archive whose files are empty; an entry point for fuzzing. Law: what is read is counted.
pub fn fuzz_split(bytes: &[u8]) {
    const LIMIT: u64 = 1 << 30;
    let mut reader = crate::tar::Reader::new(SplitTar::new(bytes, LIMIT));
    while let Ok(Some(_)) = reader.next_member() {
        reader.take_raw().clear();
        if matches!(reader.inner_mut().next_file(), Ok(Some(_))) {
            reader.inner_mut().pass();
            reader.pass_content();
        }
    }
    assert!(reader.into_inner().finish().1 <= LIMIT.max(bytes.len() as u64));
}
