//! CRC-64 with the ISO polynomial, as tar-split has it (Go's `crc64.ISO`), without tables.
//!
//! The polynomial is P = x^64 + x^4 + x^3 + x + 1, so x^64 = x^4 + x^3 + x + 1 modulo P: to multiply by x^64 takes a few
//! shifts. To multiply by x^512 takes as few, because squaring a sum over two elements squares its terms:
//! (x^4 + x^3 + x + 1)^8 = x^32 + x^24 + x^8 + 1. Hence eight words of the input can be taken in at once, side by side.
//!
//! In a register the highest power is the lowest bit: multiplying by x^k shifts right by k, and what falls out is, as a
//! polynomial times x^64, the register shifted left by 64 - k.

const LANES: usize = 8;

/// `high` times x^64, for a polynomial of a degree below 60.
fn fold(high: u64) -> u64 {
    high ^ (high >> 1) ^ (high >> 3) ^ (high >> 4)
}

/// Times x^64.
fn times_64(crc: u64) -> u64 {
    fold(crc) ^ fold((crc << 63) ^ (crc << 61) ^ (crc << 60))
}

/// Times x^512.
fn times_512(lane: u64) -> u64 {
    lane ^ (lane >> 8) ^ (lane >> 24) ^ (lane >> 32) ^ fold((lane << 56) ^ (lane << 40) ^ (lane << 32))
}

/// A checksum under way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Crc64(u64);

impl Crc64 {
    pub(crate) fn new() -> Self {
        Self(!0)
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        let mut crc = self.0;
        let (words, rest) = bytes.as_chunks::<8>();
        let (blocks, words) = words.as_chunks::<LANES>();
        if let Some((first, blocks)) = blocks.split_first() {
            let mut lanes = first.map(u64::from_le_bytes);
            // What came before is the highest part of what comes now.
            lanes[0] ^= crc;
            for block in blocks {
                for (lane, word) in lanes.iter_mut().zip(block) {
                    *lane = times_512(*lane) ^ u64::from_le_bytes(*word);
                }
            }
            crc = lanes.iter().fold(0, |crc, lane| times_64(crc ^ lane));
        }
        for word in words {
            crc = times_64(crc ^ u64::from_le_bytes(*word));
        }
        for byte in rest {
            crc = (crc >> 8) ^ fold((crc ^ u64::from(*byte)) << 56);
        }
        self.0 = crc;
    }

    /// The eight bytes, as they are stored.
    pub(crate) fn finish(self) -> [u8; 8] {
        (!self.0).to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_published_check_value() {
        // CRC-64/GO-ISO of "123456789", from the catalogue of parametrised CRC algorithms.
        for split in 0..9 {
            let mut crc = Crc64::new();
            crc.update(&b"123456789"[..split]);
            crc.update(&b"123456789"[split..]);
            assert_eq!(crc.finish(), 0xb909_56c7_75a4_1001_u64.to_be_bytes());
        }
    }

    #[test]
    fn agrees_with_the_definition_at_every_length_and_split() {
        let one_bit = |crc: u64| if crc & 1 == 1 { (crc >> 1) ^ 0xD800_0000_0000_0000 } else { crc >> 1 };
        let by_definition = |bytes: &[u8]| {
            let all = bytes.iter().fold(!0_u64, |crc, byte| (0..8).fold(crc ^ u64::from(*byte), |crc, _| one_bit(crc)));
            (!all).to_be_bytes()
        };
        let mut state = 1_u64;
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        })
        .take(700)
        .collect();
        for length in 0..bytes.len() {
            let (mut whole, mut parts) = (Crc64::new(), Crc64::new());
            whole.update(&bytes[..length]);
            let split = (length * 7919) % (length + 1);
            parts.update(&bytes[..split]);
            parts.update(&bytes[split..length]);
            let expected = by_definition(&bytes[..length]);
            assert_eq!((whole.finish(), parts.finish()), (expected, expected), "{length} bytes, split at {split}");
        }
    }
}
