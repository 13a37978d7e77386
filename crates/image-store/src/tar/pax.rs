//! PAX extended headers (POSIX.1-2001 pax, `SCHILY.xattr`, `GNU.sparse`).

use super::header::Header;
use super::sparse::{EXTENTS_MAX, Extent, SparseMap};

const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// The records that concern a layer. A record with an empty value takes the header's own value back.
#[derive(Debug, Default)]
pub(super) struct Pax {
    path: Option<Vec<u8>>,
    linkpath: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse_name: Option<Vec<u8>>,
    pub(super) sparse_size: Option<u64>,
    sparse_version: (Option<u64>, Option<u64>),
    sparse_numbers: Vec<u64>,
    has_sparse_list: bool,
}

impl Pax {
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, &'static str> {
        let mut pax = Self::default();
        while !bytes.is_empty() {
            let space = bytes.iter().take(8).position(|byte| *byte == b' ').ok_or("PAX record without a length")?;
            let length = usize::try_from(decimal(&bytes[..space])?).map_err(|_| "PAX record too long")?;
            if length <= space + 1 || length > bytes.len() || bytes[length - 1] != b'\n' {
                return Err("PAX record of a wrong length");
            }
            let record = &bytes[space + 1..length - 1];
            bytes = &bytes[length..];
            let equals = record.iter().position(|byte| *byte == b'=').ok_or("PAX record without =")?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            if key.is_empty() || key.contains(&0) {
                return Err("PAX record with a bad key");
            }
            pax.add(key, value)?;
        }
        Ok(pax)
    }

    fn add(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let is_set = !value.is_empty();
        let some_text = |value: &[u8]| -> Result<Option<Vec<u8>>, &'static str> {
            if value.contains(&0) {
                return Err("PAX name holds a zero byte");
            }
            Ok(is_set.then(|| value.to_vec()))
        };
        let some_number = |value: &[u8]| if is_set { decimal(value).map(Some) } else { Ok(None) };
        match key {
            b"path" => self.path = some_text(value)?,
            b"linkpath" => self.linkpath = some_text(value)?,
            b"size" => self.size = some_number(value)?,
            b"uid" => self.uid = some_number(value)?,
            b"gid" => self.gid = some_number(value)?,
            b"mtime" => self.mtime = if is_set { Some(time(value)?) } else { None },
            b"GNU.sparse.name" => self.sparse_name = some_text(value)?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse_size = some_number(value)?,
            b"GNU.sparse.major" => self.sparse_version.0 = some_number(value)?,
            b"GNU.sparse.minor" => self.sparse_version.1 = some_number(value)?,
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                // Strictly alternating: an offset comes at an even place.
                if (key == b"GNU.sparse.offset") != self.sparse_numbers.len().is_multiple_of(2) {
                    return Err("sparse records out of order");
                }
                self.has_sparse_list = true;
                self.sparse_numbers.push(decimal(value)?);
            }
            b"GNU.sparse.map" => {
                self.has_sparse_list = true;
                self.sparse_numbers = value.split(|byte| *byte == b',').map(decimal).collect::<Result<Vec<_>, _>>()?;
            }
            b"GNU.sparse.numblocks" => self.has_sparse_list = true,
            _ => {
                if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                    self.xattrs.retain(|(other, _)| other != name);
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        if self.sparse_numbers.len() > 2 * EXTENTS_MAX {
            return Err("sparse map too long");
        }
        Ok(())
    }

    pub(super) fn apply(&self, header: &mut Header) -> Result<(), &'static str> {
        if let Some(path) = &self.path {
            header.name.clone_from(path);
        }
        if let Some(linkpath) = &self.linkpath {
            header.link.clone_from(linkpath);
        }
        header.size = self.size.unwrap_or(header.size);
        header.uid = self.uid.unwrap_or(header.uid);
        header.gid = self.gid.unwrap_or(header.gid);
        header.modified = self.mtime.unwrap_or(header.modified);
        if i64::try_from(header.size).is_err() {
            return Err("size out of range");
        }
        Ok(())
    }

    pub(super) fn has_map_in_content(&self) -> bool {
        self.sparse_version == (Some(1), Some(0))
    }

    /// The map of formats 0.0 and 0.1.
    pub(super) fn sparse_map(&self) -> Result<Option<SparseMap>, &'static str> {
        if !self.has_sparse_list {
            return match self.sparse_version {
                (None, None) => Ok(None),
                _ => Err("sparse format of an unknown version"),
            };
        }
        if !self.sparse_numbers.len().is_multiple_of(2) {
            return Err("sparse map with an odd number of numbers");
        }
        let extents = self.sparse_numbers.chunks(2).map(|pair| Extent { offset: pair[0], length: pair[1] }).collect();
        Ok(Some(SparseMap { real_size: self.sparse_size.ok_or("sparse file without a size")?, extents }))
    }
}

pub(super) fn decimal(text: &[u8]) -> Result<u64, &'static str> {
    if text.is_empty() || text.len() > 19 {
        return Err("a number that is not one");
    }
    let mut value: u64 = 0;
    for digit in text {
        if !digit.is_ascii_digit() {
            return Err("a number that is not decimal");
        }
        // 19 digits fit.
        value = value * 10 + u64::from(digit - b'0');
    }
    Ok(value)
}

/// Seconds with an optional fraction, of which nanoseconds count.
fn time(text: &[u8]) -> Result<(i64, u32), &'static str> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let dot = text.iter().position(|byte| *byte == b'.');
    let seconds = i64::try_from(decimal(&text[..dot.unwrap_or(text.len())])?).map_err(|_| "time out of range")?;
    let mut nanoseconds: u32 = 0;
    if let Some(dot) = dot {
        let fraction = &text[dot + 1..];
        if !fraction.iter().all(u8::is_ascii_digit) {
            return Err("a time that is not decimal");
        }
        for place in 0..9 {
            let digit = fraction.get(place).map_or(0, |digit| digit - b'0');
            nanoseconds = nanoseconds * 10 + u32::from(digit);
        }
    }
    // Times before the epoch become the epoch, so their fraction does not matter.
    Ok(if negative { (-seconds.max(1), 0) } else { (seconds, nanoseconds) })
}
