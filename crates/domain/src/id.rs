//! Identities: 64 lower-case hexadecimal characters, as the whole field writes them.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is not an id: 64 lower-case hexadecimal characters are expected")]
pub struct ParseIdError {
    text: String,
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Accepts exactly 64 lower-case hexadecimal characters.
            pub fn parse(text: &str) -> Result<Self, ParseIdError> {
                if is_id(text) { Ok(Self(text.to_owned())) } else { Err(ParseIdError { text: text.to_owned() }) }
            }

            /// Makes an id of 32 random bytes, which the caller draws.
            #[must_use]
            pub fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
            }

            /// The 64 characters.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The first twelve characters, as people read ids.
            #[must_use]
            pub fn short(&self) -> &str {
                &self.0[..12]
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseIdError;
            fn try_from(text: String) -> Result<Self, ParseIdError> {
                if is_id(&text) { Ok(Self(text)) } else { Err(ParseIdError { text }) }
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

id_type!(
    /// A pod sandbox, and its infra container, which carries the same id.
    SandboxId
);
id_type!(
    /// A container.
    ContainerId
);
id_type!(
    /// An image: the hexadecimal digest of its configuration blob.
    ImageId
);
id_type!(
    /// A layer of the store.
    LayerId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_64_lower_case_hex() {
        let good = "0123456789abcdef".repeat(4);
        for (text, ok) in [
            (good.as_str(), true),
            (&good[1..], false),
            ("", false),
            (&good.to_uppercase(), false),
            (&format!("{}/", &good[1..]), false),
            (&format!("{good}0"), false),
        ] {
            assert_eq!(ContainerId::parse(text).is_ok(), ok, "{text}");
        }
    }
}
