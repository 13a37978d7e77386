//! Sets of CPUs, and the masks in which the kernel keeps the CPUs that take interrupts.

use std::collections::BTreeSet;
use std::fmt;

use thiserror::Error;

/// The highest CPU number accepted; the kernel's own limit (CONFIG_NR_CPUS) is 8192 at most.
const CPU_MAX: u32 = 8191;
/// Longest list that is read: every second of 8192 CPUs, each with a comma.
const LIST_MAX_BYTES: usize = 24 << 10;
/// The kernel writes masks in words of this many hexadecimal digits, the highest first.
const WORD_DIGITS: usize = 8;

/// A text that is no list of CPUs.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is not a list of numbers and ranges such as 0-3,8")]
pub struct CpuListError {
    text: String,
}

/// A text that is no mask of CPUs, or one too short for the CPUs that are to be changed in it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CpuMaskError {
    /// Not hexadecimal digits and commas.
    #[error("{text:?} is not a mask of CPUs such as ff or 00000001,ffffffff")]
    Syntax {
        /// As found.
        text: String,
    },
    /// The machine has fewer CPUs.
    #[error("CPU {cpu} is beyond the mask {text:?}")]
    Beyond {
        /// The CPU.
        cpu: u32,
        /// As found.
        text: String,
    },
}

/// A set of CPUs or memory nodes. The texts are those of the kernel. Source: cpuset(7), "List format", without strides.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct CpuSet(BTreeSet<u32>);

impl CpuSet {
    /// No CPU.
    pub const EMPTY: Self = Self(BTreeSet::new());

    /// Reads a list such as `0-3,8`; nothing is the empty set. Blanks around it do not count.
    pub fn parse(text: &str) -> Result<Self, CpuListError> {
        let bad = || CpuListError { text: text.chars().take(100).collect() };
        let text = text.trim();
        if text.is_empty() {
            return Ok(Self::EMPTY);
        }
        if text.len() > LIST_MAX_BYTES {
            return Err(bad());
        }
        let number = |part: &str| {
            let is_plain = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            part.parse::<u32>().ok().filter(|cpu| is_plain && *cpu <= CPU_MAX).ok_or_else(bad)
        };
        let mut set = BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(bad());
            }
            set.extend(first..=last);
        }
        Ok(Self(set))
    }

    /// One CPU.
    #[must_use]
    pub fn one(cpu: u32) -> Self {
        Self([cpu].into())
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The lowest.
    #[must_use]
    pub fn first(&self) -> Option<u32> {
        self.0.first().copied()
    }

    /// In ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.iter().copied()
    }

    /// Those of either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self(&self.0 | &other.0)
    }

    /// Those of both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self(&self.0 & &other.0)
    }

    /// Those that the other does not have.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        Self(&self.0 - &other.0)
    }
}

impl FromIterator<u32> for CpuSet {
    fn from_iter<I: IntoIterator<Item = u32>>(cpus: I) -> Self {
        Self(cpus.into_iter().collect())
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.iter().copied().peekable();
        let mut separator = "";
        while let Some(first) = rest.next() {
            let mut last = first;
            while let Some(next) = rest.next_if_eq(&(last + 1)) {
                last = next;
            }
            write!(f, "{separator}{first}")?;
            if last != first {
                write!(f, "-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

/// A mask of CPUs as `/proc/irq/default_smp_affinity` has it: as long as the machine has CPUs, in whole words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuMask {
    /// CPU 0 first; as many as the text has digits, times four.
    bits: Vec<bool>,
    text: String,
}

impl CpuMask {
    /// Reads hexadecimal words, the highest first, with or without commas. Source: the kernel's bitmap format, `%*pb`.
    pub fn parse(text: &str) -> Result<Self, CpuMaskError> {
        let text: String = text.trim().chars().take(CPU_MAX as usize).collect();
        let syntax = || CpuMaskError::Syntax { text: text.chars().take(100).collect() };
        let mut bits = Vec::new();
        for digit in text.chars().rev().filter(|digit| *digit != ',') {
            let digit = digit.to_digit(16).ok_or_else(syntax)?;
            bits.extend((0..4).map(|bit| digit >> bit & 1 == 1));
        }
        if bits.is_empty() { Err(syntax()) } else { Ok(Self { bits, text }) }
    }

    /// The CPUs in it.
    #[must_use]
    pub fn cpus(&self) -> CpuSet {
        (0..).zip(&self.bits).filter(|(_, is_set)| **is_set).map(|(cpu, _)| cpu).collect()
    }

    /// Whether every CPU up to the highest in it is in it: what the kernel begins with.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.bits.iter().skip_while(|is_set| **is_set).all(|is_set| !is_set)
    }

    /// The mask with CPUs put in or taken out.
    pub fn with(&self, cpus: &CpuSet, change: MaskChange) -> Result<Self, CpuMaskError> {
        let mut changed = self.clone();
        for cpu in cpus.iter() {
            let bit = usize::try_from(cpu).ok().and_then(|at| changed.bits.get_mut(at));
            *bit.ok_or_else(|| CpuMaskError::Beyond { cpu, text: self.text.clone() })? = change == MaskChange::PutIn;
        }
        Ok(changed)
    }

    /// The mask of the CPUs that are not in it, as irqbalance's `IRQBALANCE_BANNED_CPUS` says them.
    #[must_use]
    pub fn inverted(&self) -> Self {
        Self { bits: self.bits.iter().map(|is_set| !is_set).collect(), text: self.text.clone() }
    }
}

/// What is done with CPUs of a mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaskChange {
    /// They are in it afterwards.
    PutIn,
    /// They are not in it afterwards.
    TakeOut,
}

impl fmt::Display for CpuMask {
    /// Whole words of eight digits, which the kernel takes on machines of any size.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.bits.len().div_ceil(4).next_multiple_of(WORD_DIGITS);
        for at in (0..digits).rev() {
            let digit =
                (0..4).filter(|bit| self.bits.get(at * 4 + bit) == Some(&true)).fold(0, |sum, bit| sum | 1 << bit);
            write!(f, "{digit:x}")?;
            if at != 0 && at % WORD_DIGITS == 0 {
                f.write_str(",")?;
            }
        }
        Ok(())
    }
}

/// Fuzz entry point: any text as a list and as a mask.
pub fn fuzz(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(set) = CpuSet::parse(text) {
        assert_eq!(CpuSet::parse(&set.to_string()), Ok(set), "a list reads back as itself");
    }
    if let Ok(mask) = CpuMask::parse(text) {
        let again = CpuMask::parse(&mask.to_string()).map(|again| again.cpus());
        assert_eq!(again, Ok(mask.cpus()), "a mask reads back as itself");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> CpuSet {
        CpuSet::parse(text).expect("a list")
    }

    #[test]
    fn lists_are_read_and_written() {
        for (text, written) in [
            ("", ""),
            ("0", "0"),
            ("0-3", "0-3"),
            ("3,1,2\n", "1-3"),
            ("8,0-2,1", "0-2,8"),
            ("0,2,4", "0,2,4"),
            ("8191", "8191"),
        ] {
            assert_eq!(set(text).to_string(), written, "{text:?}");
        }
        for text in ["a", "1-", "-1", "3-1", "1,,2", "8192", "1 2", "0x1", "+1", "1-2-3", "1:2", ","] {
            assert!(CpuSet::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn sets_are_combined() {
        let (a, b) = (set("0-3"), set("2-5"));
        assert_eq!(a.union(&b).to_string(), "0-5");
        assert_eq!(a.intersection(&b).to_string(), "2-3");
        assert_eq!(a.difference(&b).to_string(), "0-1");
        assert_eq!((a.len(), b.first(), CpuSet::EMPTY.first()), (4, Some(2), None));
    }

    #[test]
    fn masks_lose_and_regain_cpus() {
        use MaskChange::{PutIn, TakeOut};
        // current, CPUs, change, mask, banned
        for (current, cpus, change, mask, banned) in [
            ("ff", "0-1", TakeOut, "000000fc", "00000003"),
            ("fc", "0-1", PutIn, "000000ff", "00000000"),
            ("0000,0000000f", "4", PutIn, "00000000,0000001f", "0000ffff,ffffffe0"),
            ("ffffffff,ffffffff", "31-32", TakeOut, "fffffffe,7fffffff", "00000001,80000000"),
            ("3", "", TakeOut, "00000003", "0000000c"),
            ("fff", "11", TakeOut, "000007ff", "00000800"),
        ] {
            let changed = CpuMask::parse(current).and_then(|mask| mask.with(&set(cpus), change)).expect("a mask");
            assert_eq!(
                (changed.to_string(), changed.inverted().to_string()),
                (mask.to_owned(), banned.to_owned()),
                "{current}"
            );
        }
        assert_eq!(
            CpuMask::parse("f").and_then(|mask| mask.with(&CpuSet::one(4), TakeOut)),
            Err(CpuMaskError::Beyond { cpu: 4, text: "f".to_owned() })
        );
        for text in ["", ",", "0x1", "g", "é"] {
            assert!(CpuMask::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_full_mask_has_no_gaps() {
        for (text, is_full) in [("ff", true), ("0000000f", true), ("fe", false), ("ffff,fffffff7", false), ("1", true)]
        {
            assert_eq!(CpuMask::parse(text).map(|mask| mask.is_full()), Ok(is_full), "{text}");
        }
        assert_eq!(CpuMask::parse("5,00000001").map(|mask| mask.cpus().to_string()), Ok("0,32,34".to_owned()));
    }
}
