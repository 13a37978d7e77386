//! Names of CDI devices: `vendor/class=device`. Source: CDI specification, "Kind" and "Names".

use std::fmt;

/// A well-formed name of a device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceName(String);

impl DeviceName {
    /// Takes `vendor/class=device` and nothing else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, device) = text.split_once('=')?;
        (is_kind(kind) && is_device(device)).then(|| Self(text.to_owned()))
    }

    /// Of a kind and a device that were checked before.
    pub(super) fn of(kind: &str, device: &str) -> Self {
        Self(format!("{kind}={device}"))
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `vendor/class`: both begin with a letter and end with a letter or digit.
pub(super) fn is_kind(text: &str) -> bool {
    let is_part = |part: &str| part.starts_with(|first: char| first.is_ascii_alphabetic()) && is_word(part, b"_-.");
    text.split_once('/').is_some_and(|(vendor, class)| is_part(vendor) && is_part(class))
}

/// Begins and ends with a letter or digit.
pub(super) fn is_device(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric()) && is_word(text, b"_-.:")
}

fn is_word(text: &str, others: &[u8]) -> bool {
    text.ends_with(|last: char| last.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || others.contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_three_parts() {
        for (text, expected) in [
            ("vendor.com/class=dev0", true),
            ("v/c=0", true),
            ("nvidia.com/gpu=GPU-1:2.3_4", true),
            ("k8s.gpu.example.com/claim=uid-1", true),
            ("v/c=", false),
            ("/c=d", false),
            ("v/=d", false),
            ("v=d", false),
            ("v/c", false),
            ("1v/c=d", false),
            ("v/1c=d", false),
            ("v-/c=d", false),
            ("v/c.=d", false),
            ("v/c=d-", false),
            ("v/c=-d", false),
            ("v/c=d/e", false),
            ("v/c/e=d", false),
            ("v/c=d=e", false),
            ("v/c=d e", false),
            ("v/c=d\n", false),
            ("../c=d", false),
            ("", false),
        ] {
            assert_eq!(DeviceName::parse(text).is_some(), expected, "{text:?}");
        }
    }
}
