//! The members of a tar file: names, offsets and lengths. Nothing is unpacked.
//!
//! Source: POSIX pax and ustar formats, GNU long names (`L`, `K`) and base-256 numbers. Names are only ever compared;
//! a name with `..` cannot be asked for and is left out.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::Arc;

use super::LocalSlice;
use crate::error::LocalError;

/// Size of a header and unit of padding.
const BLOCK_BYTES: u64 = 512;
/// Most members: an image of 500 layers in both old and new form needs about 3000.
const MEMBERS_MAX: usize = 20_000;
/// Largest extended header or long name.
const EXTENSION_MAX_BYTES: u64 = 64 << 10;
/// Longest name that is kept.
const NAME_MAX_BYTES: usize = 4096;
/// Most links followed to a member; docker saves need one.
const LINKS_MAX: usize = 4;

/// Members of one archive by name.
#[derive(Debug)]
pub(crate) struct Members {
    file: Arc<File>,
    by_name: HashMap<String, Member>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Member {
    File {
        offset: u64,
        length: u64,
    },
    /// The name it points to, from the root of the archive.
    Link(String),
}

impl Members {
    /// The bytes of a regular member; links within the archive are followed.
    pub(crate) fn find(&self, name: &str) -> Option<LocalSlice> {
        let mut name = normalise(name, "")?;
        for _ in 0..=LINKS_MAX {
            match self.by_name.get(&name)? {
                Member::File { offset, length } => {
                    return Some(LocalSlice::of_file(Arc::clone(&self.file), *offset, *length));
                }
                Member::Link(target) => name = target.clone(),
            }
        }
        None
    }
}

/// The compression that the first bytes of a file tell.
pub(crate) fn find_compression(magic: &[u8]) -> Option<&'static str> {
    [
        (&[0x1f, 0x8b][..], "gzip"),
        (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
        (&[0xfd, b'7', b'z', b'X', b'Z', 0], "xz"),
        (b"BZh", "bzip2"),
    ]
    .into_iter()
    .find_map(|(start, name)| magic.starts_with(start).then_some(name))
}

/// Reads all headers of an archive of `length` bytes. Blocking; seeks past contents.
pub(crate) fn index(file: Arc<File>, length: u64) -> Result<Members, LocalError> {
    let slice = LocalSlice::of_file(Arc::clone(&file), 0, length);
    let read = |at, bytes| read_exactly(&slice, at, bytes);
    let by_name = read_members(&read, length)?;
    Ok(Members { file, by_name })
}

/// For the fuzzer: reads headers from memory. Returns the number of members.
pub(crate) fn index_bytes(bytes: &[u8]) -> Option<usize> {
    let slice = LocalSlice::of_memory(bytes::Bytes::copy_from_slice(bytes));
    let read = |at, length| read_exactly(&slice, at, length);
    read_members(&read, bytes.len() as u64).ok().map(|members| members.len())
}

fn read_exactly(slice: &LocalSlice, at: u64, length: usize) -> Result<Vec<u8>, LocalError> {
    let mut whole = Vec::with_capacity(length);
    while whole.len() < length {
        let bytes = slice.read_at(at + whole.len() as u64, length - whole.len());
        let bytes = bytes.map_err(|source| LocalError::Io { action: "read", file: "archive".to_owned(), source })?;
        if bytes.is_empty() {
            let source = io::ErrorKind::UnexpectedEof.into();
            return Err(LocalError::Io { action: "read", file: "archive".to_owned(), source });
        }
        whole.extend_from_slice(&bytes);
    }
    Ok(whole)
}

/// What extended headers say about the member that follows them.
#[derive(Default)]
struct Extension {
    name: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

fn read_members(
    read: &dyn Fn(u64, usize) -> Result<Vec<u8>, LocalError>,
    length: u64,
) -> Result<HashMap<String, Member>, LocalError> {
    let malformed = |at: u64, reason: &str| LocalError::Malformed {
        file: "archive".to_owned(),
        reason: format!("{reason} at byte {at}"),
    };
    let mut members = HashMap::new();
    let mut extension = Extension::default();
    let mut at = 0;
    let mut headers = 0;
    while at + BLOCK_BYTES <= length {
        let header = read(at, 512)?;
        if at == 0
            && let Some(format) = find_compression(&header)
        {
            return Err(LocalError::Compressed { format });
        }
        if header.iter().all(|byte| *byte == 0) {
            return Ok(members);
        }
        headers += 1;
        if headers > MEMBERS_MAX {
            return Err(LocalError::TooLarge { file: "members of the archive".to_owned(), limit: MEMBERS_MAX as u64 });
        }
        if !is_checksum_right(&header) {
            return Err(malformed(at, "no tar header"));
        }
        let kind = header[156];
        let stated = parse_number(&header[124..136]).ok_or_else(|| malformed(at, "bad size"))?;
        let is_extension = matches!(kind, b'L' | b'K' | b'x' | b'g');
        let size = if is_extension { stated } else { extension.size.unwrap_or(stated) };
        let offset = at + BLOCK_BYTES;
        if size > length - offset {
            return Err(malformed(at, "member reaches beyond the end"));
        }
        if is_extension {
            if size > EXTENSION_MAX_BYTES {
                return Err(malformed(at, "extended header is too large"));
            }
            let bytes = read(offset, usize::try_from(size).map_err(|_| malformed(at, "bad size"))?)?;
            extend(&mut extension, kind, &bytes).ok_or_else(|| malformed(at, "bad extended header"))?;
        } else {
            let of = std::mem::take(&mut extension);
            let name = of.name.unwrap_or_else(|| header_name(&header));
            let link = of.link.unwrap_or_else(|| text(&header[157..257]));
            if let Some(name) = normalise(&name, "") {
                let member = match kind {
                    b'0' | 0 | b'7' => Some(Member::File { offset, length: size }),
                    b'1' => normalise(&link, "").map(Member::Link),
                    b'2' => normalise(&link, name.rsplit_once('/').map_or("", |(parent, _)| parent)).map(Member::Link),
                    _ => None,
                };
                // The last of equal names counts, as when unpacking.
                if let Some(member) = member {
                    members.insert(name, member);
                }
            }
        }
        let padded = size.checked_next_multiple_of(BLOCK_BYTES).ok_or_else(|| malformed(at, "bad size"))?;
        at = offset.checked_add(padded).ok_or_else(|| malformed(at, "bad size"))?;
    }
    if headers == 0 || at < length {
        return Err(malformed(at, "no tar header"));
    }
    // Archives without the two empty blocks at the end are common enough.
    Ok(members)
}

fn extend(extension: &mut Extension, kind: u8, bytes: &[u8]) -> Option<()> {
    match kind {
        b'L' => extension.name = Some(text(bytes)),
        b'K' => extension.link = Some(text(bytes)),
        b'x' => {
            let mut rest = bytes;
            while !rest.is_empty() && rest[0] != 0 {
                // `<length> <key>=<value>\n`, the length counting itself.
                let space = rest.iter().position(|byte| *byte == b' ')?;
                let length: usize = std::str::from_utf8(&rest[..space]).ok()?.parse().ok()?;
                let record = rest.get(space + 1..length)?.strip_suffix(b"\n")?;
                let equals = record.iter().position(|byte| *byte == b'=')?;
                let value = text(&record[equals + 1..]);
                match &record[..equals] {
                    b"path" => extension.name = Some(value),
                    b"linkpath" => extension.link = Some(value),
                    b"size" => extension.size = Some(value.parse().ok()?),
                    _ => {}
                }
                rest = &rest[length..];
            }
        }
        // Global headers say nothing about names.
        _ => {}
    }
    Some(())
}

fn header_name(header: &[u8]) -> String {
    let name = text(&header[..100]);
    let is_ustar = &header[257..263] == b"ustar\0";
    match text(&header[345..500]) {
        prefix if is_ustar && !prefix.is_empty() => format!("{prefix}/{name}"),
        _ => name,
    }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Octal digits, or base-256 if the first bit is set.
fn parse_number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let mut value = u64::from(field[0] & 0x7f);
        for byte in &field[1..] {
            value = value.checked_mul(256)?.checked_add(u64::from(*byte))?;
        }
        return Some(value);
    }
    let digits = std::str::from_utf8(field).ok()?;
    let digits = digits.trim_matches(|c| c == ' ' || c == '\0');
    if digits.is_empty() { Some(0) } else { u64::from_str_radix(digits, 8).ok() }
}

fn is_checksum_right(header: &[u8]) -> bool {
    let sum: u64 =
        header.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u64::from(*byte) }).sum();
    parse_number(&header[148..156]) == Some(sum)
}

/// `./a//b` → `a/b`; a link's target from the directory it lies in; `None` if it leaves the archive.
fn normalise(name: &str, directory: &str) -> Option<String> {
    if name.len() + directory.len() > NAME_MAX_BYTES {
        return None;
    }
    let mut parts: Vec<&str> = Vec::new();
    let relative_to = if name.starts_with('/') { "" } else { directory };
    for part in relative_to.split('/').chain(name.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                // Only links may climb, and only within the archive.
                if directory.is_empty() {
                    return None;
                }
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        for (name, directory, expected) in [
            ("a/b", "", Some("a/b")),
            ("./a//b/", "", Some("a/b")),
            ("/a", "", Some("a")),
            ("../a", "", None),
            ("a/../b", "", None),
            ("../x/layer.tar", "y", Some("x/layer.tar")),
            ("../../etc/passwd", "y", None),
            ("/etc/passwd", "y", Some("etc/passwd")),
            (".", "", None),
        ] {
            assert_eq!(normalise(name, directory).as_deref(), expected, "{name} in {directory:?}");
        }
    }

    #[test]
    fn numbers_are_octal_or_base_256() {
        for (field, expected) in [
            (&b"00000001750\0"[..], Some(1000)),
            (b"       1750 ", Some(1000)),
            (b"\0\0\0\0\0\0\0\0\0\0\0\0", Some(0)),
            (b"\x80\0\0\0\0\0\0\x02\0\0\0\0", Some(2 << 32)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"00000009999\0", None),
        ] {
            assert_eq!(parse_number(field), expected, "{field:?}");
        }
    }

    #[test]
    fn garbage_is_no_archive() {
        assert_eq!(index_bytes(&[]), None);
        assert_eq!(index_bytes(&[7; 2048]), None);
        assert_eq!(index_bytes(&[0; 1024]), Some(0));
    }
}
