//! The missing parts of a blob: which to ask for, and finding each in what comes.

use std::io::{self, Read};

use super::toc::ByteRange;

/// Bytes between two parts that are fetched with them: asking costs about as much. Source: containers/storage.
const GAP_MAX_BYTES: u64 = 1024;
/// Most ranges of one layer: more, and the smallest gaps are fetched too. A registry is asked for some hundred at once.
const RANGES_MAX: usize = 1024;

/// Joins parts, given in order and not overlapping, to the ranges to ask for.
pub(super) fn join(parts: impl IntoIterator<Item = ByteRange>) -> Vec<ByteRange> {
    let joined = join_gaps(parts, GAP_MAX_BYTES);
    if joined.len() <= RANGES_MAX {
        return joined;
    }
    let mut gaps: Vec<u64> = joined.windows(2).map(|pair| pair[1].start - pair[0].end()).collect();
    gaps.sort_unstable();
    // As many gaps are closed as there are ranges too many; equal ones go together.
    let widest = gaps[joined.len() - RANGES_MAX - 1];
    join_gaps(joined, widest)
}

fn join_gaps(parts: impl IntoIterator<Item = ByteRange>, widest: u64) -> Vec<ByteRange> {
    let mut joined: Vec<ByteRange> = Vec::new();
    for part in parts {
        match joined.last_mut() {
            Some(last) if part.start.saturating_sub(last.end()) <= widest => last.length = part.end() - last.start,
            _ => joined.push(part),
        }
    }
    joined
}

/// The bytes of all ranges, one behind the other, taken apart again.
pub(super) struct Fetched<R> {
    inner: R,
    ranges: std::vec::IntoIter<ByteRange>,
    /// What is left of the current range.
    current: Option<ByteRange>,
}

impl<R: Read> Fetched<R> {
    pub(super) fn new(inner: R, ranges: Vec<ByteRange>) -> Self {
        Self { inner, ranges: ranges.into_iter(), current: None }
    }

    /// Goes to a part, which must lie behind the last one and in one of the ranges; exactly its bytes are then to be
    /// read with [`Fetched::read`].
    pub(super) fn seek(&mut self, part: ByteRange) -> io::Result<()> {
        loop {
            let Some(current) = self.current else {
                self.current = Some(self.ranges.next().ok_or(io::ErrorKind::InvalidInput)?);
                continue;
            };
            if part.start < current.start {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let skipped = (part.start - current.start).min(current.length);
            self.skip(skipped)?;
            let rest = ByteRange { start: current.start + skipped, length: current.length - skipped };
            if rest.length == 0 {
                self.current = None;
                continue;
            }
            self.current = Some(rest);
            return if part.end() <= rest.end() { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) };
        }
    }

    fn skip(&mut self, count: u64) -> io::Result<()> {
        let skipped = io::copy(&mut (&mut self.inner).take(count), &mut io::sink())?;
        if skipped == count { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Reads on in the current range.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(current) = &mut self.current else { return Ok(0) };
        let most = usize::try_from(current.length).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.inner.read(&mut buffer[..most])?;
        current.start += count as u64;
        current.length -= count as u64;
        if current.length == 0 {
            self.current = None;
        }
        Ok(count)
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "small numbers")]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange { start, length: end - start }
    }

    #[test]
    fn small_gaps_are_fetched_too() {
        for (parts, expected) in [
            (vec![], vec![]),
            (vec![range(8, 10), range(10, 20)], vec![range(8, 20)]),
            (vec![range(8, 10), range(1034, 1040)], vec![range(8, 1040)]),
            (vec![range(8, 10), range(1035, 1040)], vec![range(8, 10), range(1035, 1040)]),
        ] {
            assert_eq!(join(parts), expected);
        }
        let many: Vec<ByteRange> =
            (0..5000).map(|index| range(index * 10_000 + index, index * 10_000 + index + 9)).collect();
        let joined = join(many.clone());
        assert!(joined.len() <= RANGES_MAX, "{}", joined.len());
        assert!(
            many.iter().all(|part| joined.iter().any(|range| range.start <= part.start && part.end() <= range.end()))
        );
    }

    #[test]
    fn parts_are_found_in_what_comes() {
        let blob: Vec<u8> = (0..=255).collect();
        let ranges = vec![range(10, 20), range(50, 60), range(100, 101)];
        let bytes: Vec<u8> =
            ranges.iter().flat_map(|part| part.start..part.end()).map(|at| blob[at as usize]).collect();
        let check = |parts: &[ByteRange]| -> io::Result<()> {
            let mut fetched = Fetched::new(&bytes[..], ranges.clone());
            for part in parts {
                fetched.seek(*part)?;
                let mut found = Vec::new();
                while (found.len() as u64) < part.length {
                    let mut byte = [0];
                    if fetched.read(&mut byte)? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    found.push(byte[0]);
                }
                assert_eq!(found, blob[part.start as usize..part.end() as usize]);
            }
            Ok(())
        };
        for parts in [&[range(10, 20)][..], &[range(12, 13), range(15, 17), range(50, 60)], &[range(100, 101)]] {
            check(parts).unwrap();
        }
        // Backwards, beyond a range, in none.
        for parts in [&[range(15, 17), range(12, 13)][..], &[range(10, 21)], &[range(30, 31)], &[range(200, 201)]] {
            check(parts).unwrap_err();
        }
    }
}
