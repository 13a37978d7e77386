//! Files with holes: the old GNU header and PAX formats 0.0, 0.1 and 1.0.

use super::header::{Block, number};
use super::pax::decimal;

/// Most pieces of one file: a map of this many takes 2 MiB, and archivers write far fewer.
pub(super) const EXTENTS_MAX: usize = 128 << 10;

/// Longest number in a map: what fits 64 bits, a sign, and zeros in front.
const NUMBER_MAX_BYTES: usize = 64;

/// A piece of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where in the file it belongs.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// Where the content of a file with holes belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SparseMap {
    /// Length of the file, holes included.
    pub real_size: u64,
    /// Pieces, in order; together as long as the content.
    pub extents: Vec<Extent>,
}

impl SparseMap {
    /// Pieces are in order, inside the file, and together exactly the content.
    pub(super) fn check(&self, content: u64) -> Result<(), &'static str> {
        let mut end = 0_u64;
        let mut total = 0_u64;
        for extent in &self.extents {
            if extent.offset < end {
                return Err("sparse map out of order");
            }
            end = extent.offset.checked_add(extent.length).ok_or("sparse map out of range")?;
            total += extent.length;
        }
        if end > self.real_size || i64::try_from(self.real_size).is_err() {
            return Err("sparse map beyond the end of the file");
        }
        if total != content {
            return Err("sparse map and content differ");
        }
        Ok(())
    }

    pub(super) fn of_gnu_header(block: &Block) -> Result<(Self, bool), &'static str> {
        let bytes = &block.0;
        let real_size = u64::try_from(number(&bytes[483..495])?).map_err(|_| "negative size")?;
        let mut map = Self { real_size, extents: Vec::new() };
        map.add_gnu_extents(&bytes[386..482])?;
        Ok((map, bytes[482] != 0))
    }

    /// Adds an extension block; whether another follows.
    pub(super) fn add_gnu_block(&mut self, block: &Block) -> Result<bool, &'static str> {
        self.add_gnu_extents(&block.0[..504])?;
        Ok(block.0[504] != 0)
    }

    fn add_gnu_extents(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        for pair in bytes.chunks_exact(24) {
            // An empty field ends the list.
            if pair[0] == 0 {
                break;
            }
            let part = |field: &[u8]| u64::try_from(number(field)?).map_err(|_| "negative number in sparse map");
            self.extents.push(Extent { offset: part(&pair[..12])?, length: part(&pair[12..])? });
            if self.extents.len() > EXTENTS_MAX {
                return Err("sparse map too long");
            }
        }
        Ok(())
    }
}

/// The map of format 1.0: a count, then offsets and lengths, one a line.
#[derive(Debug, Default)]
pub(super) struct MapText {
    digits: Vec<u8>,
    count: Option<u64>,
    numbers: Vec<u64>,
}

impl MapText {
    /// Adds a block; the whole map when this was its last.
    pub(super) fn add(&mut self, block: &Block) -> Result<Option<Vec<Extent>>, &'static str> {
        for byte in &block.0 {
            if *byte != b'\n' {
                if self.digits.len() >= NUMBER_MAX_BYTES {
                    return Err("sparse map with a number too long");
                }
                self.digits.push(*byte);
                continue;
            }
            let number = u64::try_from(decimal(&self.digits)?).map_err(|_| "negative number in sparse map")?;
            self.digits.clear();
            match self.count {
                None if number > EXTENTS_MAX as u64 => return Err("sparse map too long"),
                None => self.count = Some(number),
                Some(_) => self.numbers.push(number),
            }
            if self.count.is_some_and(|count| self.numbers.len() as u64 == count * 2) {
                let pairs = self.numbers.chunks(2);
                return Ok(Some(pairs.map(|pair| Extent { offset: pair[0], length: pair[1] }).collect()));
            }
        }
        Ok(None)
    }
}
