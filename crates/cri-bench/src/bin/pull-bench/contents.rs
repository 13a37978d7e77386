//! Files as images have them: of very different sizes, some of them text, some programs, some compressed already.
//!
//! Drawn from a generator of random numbers with a fixed seed, so that every run measures the same bytes.

/// Steele, Lea, Flood: "Fast splittable pseudorandom number generators" (SplitMix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`, which is not zero.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Like [`Random::below`], small numbers much more often: as words of a language, or opcodes of a processor, come.
    fn often_small(&mut self, limit: u64) -> u64 {
        let below = self.below(limit);
        let again = self.below(below + 1);
        self.below(again + 1)
    }
}

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    /// Words with spaces between them: shrinks to about a quarter.
    Text,
    /// Records with small numbers and addresses near one another: to about a half.
    Program,
    /// Nothing that compression finds: archives, pictures.
    Packed,
}

/// Makes files.
pub(crate) struct Contents {
    random: Random,
    words: Vec<Vec<u8>>,
}

const WORDS: u64 = 6000;
const LETTERS: &[u8; 27] = b"etaoinshrdlcumwfgypbvk_xjqz";

impl Contents {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut word = || {
            let length = 2 + random.often_small(14);
            (0..length).map(|_| LETTERS[usize::try_from(random.often_small(27)).unwrap_or(0)]).collect()
        };
        let words = (0..WORDS).map(|_| word()).collect();
        Self { random, words }
    }

    /// The size of the next file: most are small, most bytes are in large ones.
    pub(crate) fn size(&mut self) -> u64 {
        let random = &mut self.random;
        match random.below(1000) {
            0..=29 => 0,
            30..=699 => 64 + random.below(8 << 10),
            700..=949 => (8 << 10) + random.below(120 << 10),
            950..=990 => (128 << 10) + random.below(700 << 10),
            991..=998 => (1 << 20) + random.below(4 << 20),
            _ => (4 << 20) + random.below(40 << 20),
        }
    }

    /// Replaces `file` by a new one of `size` bytes.
    pub(crate) fn fill(&mut self, file: &mut Vec<u8>, size: u64) {
        file.clear();
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let sort = match self.random.below(20) {
            0..=8 => Sort::Text,
            9..=17 => Sort::Program,
            _ => Sort::Packed,
        };
        let mut address = 0x40_0000_u64;
        while file.len() < size {
            let number = self.random.next();
            match sort {
                Sort::Text => {
                    let word = self.random.often_small(WORDS);
                    file.extend_from_slice(&self.words[usize::try_from(word).unwrap_or(0)]);
                    file.push(if number.is_multiple_of(11) { b'\n' } else { b' ' });
                }
                // Prologues, tables, templates: what was there a moment ago.
                Sort::Program if number.is_multiple_of(8) && file.len() > 4096 => {
                    let from = file.len() - 64 - usize::try_from(self.random.below(4032)).unwrap_or(0);
                    let length = 8 + usize::from(number.to_be_bytes()[0] >> 3);
                    file.extend_from_within(from..from + length);
                }
                Sort::Program => {
                    let opcode = self.random.often_small(160).to_le_bytes()[0];
                    file.extend_from_slice(&[0x48, opcode, number.to_le_bytes()[0] & 0x3f]);
                    if number & 0x300 == 0 {
                        address += self.random.often_small(4096);
                        file.extend_from_slice(&address.to_le_bytes()[..4]);
                    }
                }
                Sort::Packed => file.extend_from_slice(&number.to_le_bytes()),
            }
        }
        file.truncate(size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn bytes_are_the_same_each_time_and_shrink_as_those_of_images_do() {
        let make = || {
            let (mut contents, mut all, mut file) = (Contents::new(7), Vec::new(), Vec::new());
            for _ in 0..200 {
                let size = contents.size().min(300 << 10);
                contents.fill(&mut file, size);
                assert_eq!(file.len() as u64, size);
                all.extend_from_slice(&file);
            }
            all
        };
        let all = make();
        assert_eq!(all, make());
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(&all).unwrap();
        let packed = gzip.finish().unwrap().len();
        let percent = packed * 100 / all.len();
        assert!((30..60).contains(&percent), "{percent} %");
    }
}
