//! Content digests as the OCI image specification writes them: `sha256:` and 64 hexadecimal characters.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is not a digest: sha256: and 64 lower-case hexadecimal characters are expected")]
pub struct ParseDigestError {
    text: String,
}

/// A sha256 content digest. Other algorithms of the specification are refused: no registry in the field serves them.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    const PREFIX: &str = "sha256:";

    /// Accepts `sha256:` and 64 lower-case hexadecimal characters.
    pub fn parse(text: &str) -> Result<Self, ParseDigestError> {
        let hex = text
            .strip_prefix(Self::PREFIX)
            .filter(|hex| hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
        match hex {
            Some(_) => Ok(Self(text.to_owned())),
            None => Err(ParseDigestError { text: text.chars().take(100).collect() }),
        }
    }

    /// Makes a digest of the 32 bytes a sha256 computation ended with.
    #[must_use]
    pub fn from_sha256(bytes: &[u8; 32]) -> Self {
        let mut text = String::with_capacity(71);
        text.push_str(Self::PREFIX);
        text.extend(bytes.iter().map(|byte| format!("{byte:02x}")));
        Self(text)
    }

    /// The whole text, algorithm included.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 64 hexadecimal characters.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.0[Self::PREFIX.len()..]
    }
}

impl TryFrom<String> for Digest {
    type Error = ParseDigestError;
    fn try_from(text: String) -> Result<Self, ParseDigestError> {
        Self::parse(&text)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_sha256_and_lower_case_hex() {
        let hex = "0123456789abcdef".repeat(4);
        for (text, ok) in [
            (format!("sha256:{hex}"), true),
            (format!("sha512:{hex}"), false),
            (format!("sha256:{}", hex.to_uppercase()), false),
            (hex.clone(), false),
            (format!("sha256:{}", &hex[1..]), false),
            (String::new(), false),
        ] {
            assert_eq!(Digest::parse(&text).is_ok(), ok, "{text}");
        }
    }

    #[test]
    fn a_digest_prints_what_it_was_made_of() {
        let digest = Digest::from_sha256(&[0xab; 32]);
        assert_eq!(digest.hex(), "ab".repeat(32));
        assert_eq!(digest.as_str(), format!("sha256:{}", "ab".repeat(32)));
    }
}
