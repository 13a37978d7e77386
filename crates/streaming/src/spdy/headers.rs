//! Header blocks: name-value lists, compressed with one state for all blocks of a direction.

use std::io;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::dictionary::dictionary;

/// Longest header block, unpacked. Headers of these sessions take some hundred bytes.
const BLOCK_MAX_BYTES: usize = 64 * 1024;
/// Most headers in one block.
const HEADERS_MAX: u32 = 64;

/// Headers of a stream: names in lower case, values in the order of arrival.
pub(crate) type Headers = Vec<(String, String)>;

/// The value of a header, the first one where there are several.
pub(crate) fn find<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    headers.iter().find(|(found, _)| found == name).and_then(|(_, value)| value.split('\0').next())
}

/// Unpacks the peer's header blocks.
pub(super) struct Reader(Decompress);

/// Packs ours.
pub(super) struct Writer(Compress);

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Reader {
    pub(super) fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// The headers of a block.
    pub(super) fn read(&mut self, block: &[u8]) -> io::Result<Headers> {
        parse(&self.unpack(block)?).ok_or_else(|| damaged("a header block is damaged"))
    }

    fn unpack(&mut self, mut block: &[u8]) -> io::Result<Vec<u8>> {
        let mut unpacked = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let (read, written) = (self.0.total_in(), self.0.total_out());
            let result = self.0.decompress(block, &mut buffer, FlushDecompress::Sync);
            let read = usize::try_from(self.0.total_in() - read).unwrap_or(usize::MAX);
            let written = usize::try_from(self.0.total_out() - written).unwrap_or(usize::MAX);
            block = block.get(read..).unwrap_or_default();
            unpacked.extend_from_slice(buffer.get(..written).unwrap_or_default());
            if unpacked.len() > BLOCK_MAX_BYTES {
                return Err(damaged("a header block is too long"));
            }
            match result {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0
                        .set_dictionary(&dictionary())
                        .map_err(|_| damaged("a header block of another dictionary"))?;
                }
                Err(_) | Ok(Status::StreamEnd) => return Err(damaged("a header block is damaged")),
                Ok(_) if written == buffer.len() => {}
                Ok(_) if block.is_empty() => return Ok(unpacked),
                Ok(_) if read == 0 && written == 0 => return Err(damaged("a header block is damaged")),
                Ok(_) => {}
            }
        }
    }
}

impl Writer {
    pub(super) fn new() -> io::Result<Self> {
        let mut compress = Compress::new(Compression::fast(), true);
        compress.set_dictionary(&dictionary()).map_err(io::Error::other)?;
        Ok(Self(compress))
    }

    /// Packs an empty list: an answer needs no headers.
    pub(super) fn empty(&mut self) -> io::Result<Vec<u8>> {
        self.pack(&0_u32.to_be_bytes())
    }

    fn pack(&mut self, list: &[u8]) -> io::Result<Vec<u8>> {
        // Room for the list stored as it is, the stream's head and a sync mark.
        let mut block = Vec::with_capacity(list.len() + 64);
        self.0.compress_vec(list, &mut block, FlushCompress::Sync).map_err(io::Error::other)?;
        Ok(block)
    }
}

/// Reads a name-value list. Source: SPDY protocol draft 3.1, section 2.6.10.
fn parse(list: &[u8]) -> Option<Headers> {
    let mut rest = list;
    let count = take_word(&mut rest)?;
    if count > HEADERS_MAX {
        return None;
    }
    let mut headers = Headers::new();
    for _ in 0..count {
        let name = take_text(&mut rest)?.to_ascii_lowercase();
        headers.push((name, take_text(&mut rest)?));
    }
    Some(headers)
}

fn take_word(rest: &mut &[u8]) -> Option<u32> {
    let (word, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u32::from_be_bytes(*word))
}

fn take_text(rest: &mut &[u8]) -> Option<String> {
    let length = usize::try_from(take_word(rest)?).ok()?;
    let (text, after) = rest.split_at_checked(length)?;
    *rest = after;
    String::from_utf8(text.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(headers: &[(&str, &str)]) -> Vec<u8> {
        let word = |length: usize| u32::try_from(length).expect("fits").to_be_bytes();
        let mut bytes = word(headers.len()).to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            bytes.extend_from_slice(&word(text.len()));
            bytes.extend_from_slice(text.as_bytes());
        }
        bytes
    }

    #[test]
    fn blocks_of_one_direction_share_their_state() {
        let (mut writer, mut reader) = (Writer::new().expect("is set up"), Reader::new());
        for headers in [&[("Streamtype", "error")][..], &[("streamtype", "data"), ("port", "80\u{0}81")], &[]] {
            let block = writer.pack(&list(headers)).expect("packs");
            let read = reader.read(&block).expect("reads");
            assert_eq!(read.len(), headers.len());
            for ((name, value), (read_name, read_value)) in headers.iter().zip(&read) {
                assert_eq!((name.to_ascii_lowercase().as_str(), *value), (read_name.as_str(), read_value.as_str()));
            }
            assert_eq!(find(&read, "port"), headers.iter().any(|(name, _)| *name == "port").then_some("80"));
        }
        assert!(reader.read(&writer.empty().expect("packs")).expect("reads").is_empty());
        assert!(reader.read(b"garbage").is_err());
    }

    #[test]
    fn long_lists_and_bombs_are_refused() {
        let long = "x".repeat(BLOCK_MAX_BYTES);
        for (headers, is_fine) in
            [(vec![("a", "b"); 64], true), (vec![("a", "b"); 65], false), (vec![("a", &long)], false)]
        {
            let mut writer = Writer::new().expect("is set up");
            let mut block = Vec::with_capacity(1 << 20);
            writer.0.compress_vec(&list(&headers), &mut block, FlushCompress::Sync).expect("packs");
            assert_eq!(Reader::new().read(&block).is_ok(), is_fine);
        }
        assert_eq!(parse(b"\0\0\0\x01\xff\xff\xff\xff"), None);
        assert_eq!(parse(b"\0\0\0"), None);
    }
}
