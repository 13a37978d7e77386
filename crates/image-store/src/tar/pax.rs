//! PAX extended headers (POSIX.1-2001 pax, `SCHILY.xattr`, `GNU.sparse`).

use super::header::Header;
use super::sparse::{EXTENTS_MAX, Extent};

const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// The records that concern a layer. A record with an empty value takes the header's own value back.
#[derive(Debug, Default)]
pub(super) struct Pax {
    path: Option<Vec<u8>>,
    linkpath: Option<Vec<u8>>,
    size: Option<Vec<u8>>,
    uid: Option<Vec<u8>>,
    gid: Option<Vec<u8>>,
    mtime: Option<Vec<u8>>,
    /// Of access and change: nobody needs them, but they must be times.
    other_times: [Option<Vec<u8>>; 2],
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse_name: Option<Vec<u8>>,
    sparse_size: Option<Vec<u8>>,
    sparse_real_size: Option<Vec<u8>>,
    sparse_version: (Vec<u8>, Vec<u8>),
    sparse_blocks: Vec<u8>,
    /// Numbers with commas between them.
    sparse_map: Vec<u8>,
    /// The same, one record a number, of format 0.0.
    sparse_numbers: Vec<Vec<u8>>,
}

/// Where the map of a sparse file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SparseForm {
    /// In records: formats 0.0 and 0.1.
    InHeader,
    /// In front of the content: format 1.0.
    InContent,
}

impl Pax {
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, &'static str> {
        let mut pax = Self::default();
        while !bytes.is_empty() {
            let space = bytes.iter().position(|byte| *byte == b' ').ok_or("PAX record without a length")?;
            let length = usize::try_from(decimal(&bytes[..space])?).map_err(|_| "PAX record of a wrong length")?;
            if length < 5 || length <= space + 1 || length > bytes.len() || bytes[length - 1] != b'\n' {
                return Err("PAX record of a wrong length");
            }
            let record = &bytes[space + 1..length - 1];
            bytes = &bytes[length..];
            let equals = record.iter().position(|byte| *byte == b'=').ok_or("PAX record without =")?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            let is_text = matches!(key, b"path" | b"linkpath" | b"uname" | b"gname");
            if key.is_empty() || if is_text { value.contains(&0) } else { key.contains(&0) } {
                return Err("PAX record with a zero byte or without a key");
            }
            pax.add(key, value)?;
        }
        Ok(pax)
    }

    fn add(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let is_set = !value.is_empty();
        let some_text = |value: &[u8]| is_set.then(|| value.to_vec());
        match key {
            b"path" => self.path = some_text(value),
            b"linkpath" => self.linkpath = some_text(value),
            b"size" => self.size = some_text(value),
            b"uid" => self.uid = some_text(value),
            b"gid" => self.gid = some_text(value),
            b"mtime" => self.mtime = some_text(value),
            b"atime" => self.other_times[0] = some_text(value),
            b"ctime" => self.other_times[1] = some_text(value),
            b"GNU.sparse.name" => self.sparse_name = some_text(value),
            b"GNU.sparse.size" => self.sparse_size = some_text(value),
            b"GNU.sparse.realsize" => self.sparse_real_size = some_text(value),
            b"GNU.sparse.major" => self.sparse_version.0 = value.to_vec(),
            b"GNU.sparse.minor" => self.sparse_version.1 = value.to_vec(),
            b"GNU.sparse.numblocks" => self.sparse_blocks = value.to_vec(),
            b"GNU.sparse.map" => self.sparse_map = value.to_vec(),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                // Strictly alternating: an offset comes at an even place.
                let is_offset = key == b"GNU.sparse.offset";
                if is_offset != self.sparse_numbers.len().is_multiple_of(2) || value.contains(&b',') {
                    return Err("sparse records out of order");
                }
                self.sparse_numbers.push(value.to_vec());
                if self.sparse_numbers.len() > 2 * EXTENTS_MAX {
                    return Err("sparse map too long");
                }
            }
            _ => {
                if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                    self.xattrs.retain(|(other, _)| other != name);
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
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
        // Only now, because records that never come to a member are never read as numbers.
        let set = |to: &mut i64, from: &Option<Vec<u8>>| -> Result<(), &'static str> {
            if let Some(text) = from {
                *to = decimal(text)?;
            }
            Ok(())
        };
        set(&mut header.size, &self.size)?;
        set(&mut header.uid, &self.uid)?;
        set(&mut header.gid, &self.gid)?;
        if let Some(text) = &self.mtime {
            header.modified = time(text)?;
        }
        self.other_times.iter().flatten().try_for_each(|text| time(text).map(drop))
    }

    /// Whether these records are of a sparse file. Versions that are not known are not: the file is then as it is stored.
    pub(super) fn sparse_form(&self) -> Option<SparseForm> {
        match (&self.sparse_version.0[..], &self.sparse_version.1[..]) {
            (b"0", b"0" | b"1") => Some(SparseForm::InHeader),
            (b"1", b"0") => Some(SparseForm::InContent),
            (b"", b"") if !self.sparse_map.is_empty() || !self.sparse_numbers.is_empty() => Some(SparseForm::InHeader),
            _ => None,
        }
    }

    /// Length of a sparse file with its holes; `stored` if nothing says.
    pub(super) fn sparse_size(&self, stored: u64) -> Result<u64, &'static str> {
        match self.sparse_size.as_ref().or(self.sparse_real_size.as_ref()) {
            Some(text) => u64::try_from(decimal(text)?).map_err(|_| "sparse file of a negative size"),
            None => Ok(stored),
        }
    }

    /// The map of formats 0.0 and 0.1.
    pub(super) fn sparse_map(&self) -> Result<Vec<Extent>, &'static str> {
        let numbers: Vec<&[u8]> = match self.sparse_numbers.is_empty() {
            false => self.sparse_numbers.iter().map(Vec::as_slice).collect(),
            true if self.sparse_map.is_empty() => Vec::new(),
            true => self.sparse_map.split(|byte| *byte == b',').collect(),
        };
        if usize::try_from(decimal(&self.sparse_blocks)?).ok().and_then(|count| count.checked_mul(2))
            != Some(numbers.len())
        {
            return Err("sparse map of another length than announced");
        }
        if numbers.len() > 2 * EXTENTS_MAX {
            return Err("sparse map too long");
        }
        let number = |text: &[u8]| u64::try_from(decimal(text)?).map_err(|_| "negative number in sparse map");
        numbers.chunks(2).map(|pair| Ok(Extent { offset: number(pair[0])?, length: number(pair[1])? })).collect()
    }
}

/// A decimal number with or without a sign. Source: Go's `strconv.ParseInt`.
pub(super) fn decimal(text: &[u8]) -> Result<i64, &'static str> {
    let text = std::str::from_utf8(text).map_err(|_| "a number that is not decimal")?;
    text.parse().map_err(|_| "a number that is not decimal")
}

/// Seconds with an optional fraction, of which nanoseconds count.
fn time(text: &[u8]) -> Result<(i64, u32), &'static str> {
    let dot = text.iter().position(|byte| *byte == b'.');
    let seconds = decimal(&text[..dot.unwrap_or(text.len())])?;
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
    Ok(if text[0] == b'-' { (seconds.min(-1), 0) } else { (seconds, nanoseconds) })
}
