//! Versions of the CNI specification.

use std::fmt;

/// A version number; ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Version(u8, u8, u8);

impl Version {
    /// What a configuration without a version means.
    pub(crate) const FIRST: Self = Self(0, 1, 0);
    /// Since here results list addresses and interfaces instead of one address of each family.
    pub(crate) const LISTS: Self = Self(0, 3, 0);
    /// Since here there is CHECK, and removal is told the result.
    pub(crate) const CHECK: Self = Self(0, 4, 0);
    /// Since here there are STATUS and GC. Also the newest version known.
    pub(crate) const CURRENT: Self = Self(1, 1, 0);

    const KNOWN: [Self; 7] =
        [Self::FIRST, Self(0, 2, 0), Self::LISTS, Self(0, 3, 1), Self::CHECK, Self(1, 0, 0), Self::CURRENT];

    /// Three numbers. Accepts versions this daemon does not know, because plugins list such.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.').map(|part| part.parse().ok());
        let version = Self(parts.next()??, parts.next()??, parts.next()??);
        parts.next().is_none().then_some(version)
    }

    /// Whether results and calls of this version are understood.
    pub(crate) fn is_known(self) -> bool {
        Self::KNOWN.contains(&self)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (text, known) in [
            ("0.1.0", Some(true)),
            ("0.3.1", Some(true)),
            ("1.1.0", Some(true)),
            ("0.4.1", Some(false)),
            ("2.0.0", Some(false)),
            ("1.1", None),
            ("1.1.0.0", None),
            ("1.1.0-dev", None),
            ("", None),
            ("300.0.0", None),
        ] {
            let version = Version::parse(text);
            assert_eq!(version.map(Version::is_known), known, "{text}");
            assert!(version.is_none_or(|version| version.to_string() == text));
        }
        assert!(Version::LISTS < Version::CHECK && Version::CHECK < Version::CURRENT);
    }
}
