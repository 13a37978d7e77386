//! Names of AppArmor profiles.

use std::fmt;

use thiserror::Error;

/// Longest name the kubelet lets through, and less than the page the kernel takes.
const MAX_BYTES: usize = 4095;
/// The kernel's name for "no profile".
const UNCONFINED: &str = "unconfined";

/// Why a text names no profile.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is not the name of an AppArmor profile")]
pub struct BadApparmorName {
    /// As given.
    pub text: String,
}

/// The name of an AppArmor profile: one line, without blanks at its ends.
///
/// It is written into the runtime spec and from there, after a keyword and a blank, to the kernel, which strips blanks
/// and ends at a line break; so neither can be in it. Source: kernel `security/apparmor/lsm.c`, `do_setattr`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApparmorName(String);

impl ApparmorName {
    /// Checks a name.
    pub fn parse(text: &str) -> Result<Self, BadApparmorName> {
        let is_good = (1..=MAX_BYTES).contains(&text.len())
            && !text.chars().any(|character| character.is_control() || matches!(character, '\u{2028}' | '\u{2029}'))
            && text.trim().len() == text.len();
        if is_good { Ok(Self(text.to_owned())) } else { Err(BadApparmorName { text: text.to_owned() }) }
    }

    /// What leaves every profile.
    #[must_use]
    pub fn unconfined() -> Self {
        Self(UNCONFINED.to_owned())
    }

    /// Whether it is [`ApparmorName::unconfined`].
    #[must_use]
    pub fn is_unconfined(&self) -> bool {
        self.0 == UNCONFINED
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ApparmorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_line_without_blanks_at_its_ends() {
        for good in ["crio-default", "/usr/bin/x", "a b", "a//b", ":ns://p", "ü", &"p".repeat(MAX_BYTES)] {
            assert_eq!(ApparmorName::parse(good).map(|name| name.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", " ", " a", "a ", "a\t", "a\nb", "a\0", "\u{7f}", "a\u{85}b", "a\u{2028}b", "a\u{a0}"] {
            assert!(ApparmorName::parse(bad).is_err(), "{bad:?}");
        }
        assert!(ApparmorName::parse(&"p".repeat(MAX_BYTES + 1)).is_err());
        assert!(ApparmorName::parse("unconfined").is_ok_and(|name| name.is_unconfined()));
    }
}
