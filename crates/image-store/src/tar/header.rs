//! One header block.

use super::BLOCK;

/// 512 bytes.
#[derive(Debug, Clone)]
pub(crate) struct Block(pub(crate) [u8; BLOCK]);

impl Block {
    pub(crate) fn is_zero(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }
}

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A further name of a file of the same layer.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

impl Kind {
    pub(crate) fn of(flag: u8, name: &[u8]) -> Option<Self> {
        Some(match flag {
            // Archives older than POSIX mark directories by the slash alone.
            0 if name.ends_with(b"/") => Self::Directory,
            0 | b'0' | b'7' | b'S' => Self::File,
            b'1' => Self::HardLink,
            b'2' => Self::Symlink,
            b'3' => Self::CharDevice,
            b'4' => Self::BlockDevice,
            b'5' => Self::Directory,
            b'6' => Self::Fifo,
            _ => return None,
        })
    }
}

/// The fields of a header.
#[derive(Debug, Clone)]
pub(crate) struct Header {
    pub(crate) name: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) flag: u8,
    pub(crate) mode: u32,
    pub(crate) uid: i64,
    pub(crate) gid: i64,
    pub(crate) size: i64,
    pub(crate) modified: (i64, u32),
    pub(crate) device: (u32, u32),
    pub(crate) format: Format,
}

/// Which tar a header is of, by its magic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    V7,
    Gnu,
    Star,
    Ustar,
}

impl Header {
    /// Bytes of content that follow, by the header as it is now.
    pub(crate) fn content_size(&self) -> Result<u64, &'static str> {
        match self.flag {
            // Whatever these say, nothing follows them.
            b'1'..=b'6' => Ok(0),
            _ => u64::try_from(self.size).map_err(|_| "negative size"),
        }
    }

    pub(crate) fn parse(block: &Block) -> Result<Self, &'static str> {
        let bytes = &block.0;
        let expected = octal(&bytes[148..156])?;
        let (mut unsigned, mut signed) = (0_i64, 0_i64);
        for (index, byte) in bytes.iter().enumerate() {
            let byte = if (148..156).contains(&index) { b' ' } else { *byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        if expected != unsigned && expected != signed {
            return Err("wrong checksum");
        }
        let format = match (&bytes[257..263], &bytes[263..265], &bytes[508..512]) {
            (b"ustar\0", _, b"tar\0") => Format::Star,
            (b"ustar\0", _, _) => Format::Ustar,
            (b"ustar ", b" \0", _) => Format::Gnu,
            _ => Format::V7,
        };
        let mut name = text(&bytes[0..100]).to_vec();
        let prefix = match format {
            Format::Ustar => text(&bytes[345..500]),
            Format::Star => {
                // Times of access and change, which nobody needs; a header in which they are none is none.
                number(&bytes[476..488]).and(number(&bytes[488..500]))?;
                text(&bytes[345..476])
            }
            // Go before 1.8 wrote prefixes where this format has those times.
            Format::Gnu if has_bad_times(bytes) => {
                Some(text(&bytes[345..500])).filter(|text| text.is_ascii()).unwrap_or(&[])
            }
            Format::V7 | Format::Gnu => &[],
        };
        if !prefix.is_empty() {
            let mut long = prefix.to_vec();
            long.push(b'/');
            long.append(&mut name);
            name = long;
        }
        let flag = bytes[156];
        // Older headers have something else there, or nothing.
        let device = match format {
            Format::V7 => (0, 0),
            _ => (number(&bytes[329..337])?, number(&bytes[337..345])?),
        };
        let device = match flag {
            b'3' | b'4' => {
                let half = |number: i64| u32::try_from(number).map_err(|_| "device number out of range");
                (half(device.0)?, half(device.1)?)
            }
            _ => (0, 0),
        };
        Ok(Self {
            name,
            link: text(&bytes[157..257]).to_vec(),
            flag,
            mode: u32::try_from(number(&bytes[100..108])? & 0o7777).map_err(|_| "mode")?,
            uid: number(&bytes[108..116])?,
            gid: number(&bytes[116..124])?,
            size: number(&bytes[124..136])?,
            modified: (number(&bytes[136..148])?, 0),
            device,
            format,
        })
    }
}

/// Bytes up to the first NUL.
pub(crate) fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|byte| *byte == 0).unwrap_or(field.len())]
}

/// Octal digits, or base 256 when the first bit is set.
pub(crate) fn number(field: &[u8]) -> Result<i64, &'static str> {
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let mut value: u64 = 0;
        for (index, byte) in field.iter().enumerate() {
            let mut byte = if negative { !*byte } else { *byte };
            if index == 0 {
                byte &= 0x7f;
            }
            if value >> 56 != 0 {
                return Err("number too large");
            }
            value = (value << 8) | u64::from(byte);
        }
        let value = i64::try_from(value).map_err(|_| "number too large")?;
        return Ok(if negative { !value } else { value });
    }
    octal(field)
}

/// Whether the times of access and change of a GNU header are there and are no numbers.
fn has_bad_times(bytes: &[u8]) -> bool {
    [&bytes[345..357], &bytes[357..369]].iter().any(|field| field[0] != 0 && number(field).is_err())
}

/// Octal digits among blanks and NULs; nothing is zero.
fn octal(field: &[u8]) -> Result<i64, &'static str> {
    let is_filler = |byte: &u8| matches!(byte, b' ' | 0);
    let Some(start) = field.iter().position(|byte| !is_filler(byte)) else { return Ok(0) };
    let end = field.iter().rposition(|byte| !is_filler(byte)).map_or(start, |last| last + 1);
    let digits = text(&field[start..end]);
    let mut value: i64 = 0;
    for digit in digits {
        if !(b'0'..=b'7').contains(digit) {
            return Err("a number that is not octal");
        }
        value = value.checked_mul(8).ok_or("number too large")? + i64::from(digit - b'0');
    }
    Ok(value)
}
