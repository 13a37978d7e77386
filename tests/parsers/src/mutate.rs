//! Mutations of seeds, the same sequence for the same name, so that a failure seen once is seen again.
#![cfg(test)]

/// Inputs stay below this, so that a thousand of them are quick.
const INPUT_BYTES_MAX: usize = 64 * 1024;

/// How many edits one input may get: one finds off-by-ones, several cross the first check of a parser.
const EDITS_MAX: usize = 6;

/// Pieces that mean something to the formats we read.
const TOKENS: &[&[u8]] = &[
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b",",
    b":",
    b"\\",
    b"/",
    b"../",
    b"..",
    b".",
    b"//",
    b"@",
    b"=",
    b"#",
    b" ",
    b"\n",
    b"\r\n",
    b"\t",
    b"\0",
    b"null",
    b"true",
    b"false",
    b"0",
    b"-1",
    b"1e999",
    b"4294967295",
    b"4294967296",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"18446744073709551616",
    b"sha256:",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xc3\xa9",
    b"\\ud800",
    b"[[[[[[[[[[[[[[[[",
    b"{\"a\":{\"a\":{\"a\":",
    b"7777777",
    b"\x80\0\0\0",
    b"{}",
    b"[]",
    b"\"\"",
];

/// A source of inputs.
pub(crate) struct Mutator {
    state: u64,
}

impl Mutator {
    /// A source whose sequence depends on the name alone.
    pub(crate) fn new(name: &str) -> Self {
        // FNV-1a; zero would be a fixed point of the generator.
        let state = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        Self { state: state | 1 }
    }

    /// xorshift64*.
    fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, or 0 if that is 0.
    fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound.max(1)).expect("a length");
        usize::try_from(self.next() % bound).expect("below a length")
    }

    fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }

    /// One seed with a few edits.
    pub(crate) fn mutate(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut input = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(EDITS_MAX) {
            self.edit(&mut input, seeds);
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }

    fn edit(&mut self, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        let length = self.below(16.min(input.len() - at) + 1);
        match self.below(9) {
            0 if at < input.len() => input[at] ^= 1 << self.below(8),
            1 if at < input.len() => input[at] = self.byte(),
            2 => input.insert(at, self.byte()),
            3 => drop(input.drain(at..at + length)),
            4 => input.truncate(at),
            5 => {
                let piece = input[at..at + length].to_vec();
                let copies = 1 + self.below(40);
                input.splice(at..at, piece.iter().copied().cycle().take(piece.len() * copies));
            }
            6 => {
                let other = &seeds[self.below(seeds.len())];
                let from = self.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            7 => {
                let token = TOKENS[self.below(TOKENS.len())];
                input.splice(at..at, token.iter().copied());
            }
            _ => {
                let token = TOKENS[self.below(TOKENS.len())];
                input.splice(at..at + length, token.iter().copied());
            }
        }
    }
}

#[test]
fn the_same_name_gives_the_same_inputs_and_they_differ() {
    let seeds = [b"{\"a\": 1}".to_vec(), b"key = \"value\"".to_vec()];
    let inputs = |name| {
        let mut mutator = Mutator::new(name);
        (0..200).map(|_| mutator.mutate(&seeds)).collect::<Vec<_>>()
    };
    assert_eq!(inputs("x"), inputs("x"));
    assert_ne!(inputs("x"), inputs("y"));
    let distinct: std::collections::BTreeSet<_> = inputs("x").into_iter().collect();
    assert!(distinct.len() > 150, "{}", distinct.len());
    assert!(distinct.iter().all(|input| input.len() <= INPUT_BYTES_MAX));
}
