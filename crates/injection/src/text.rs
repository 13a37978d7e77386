//! How texts of these files are read and shown.

use serde::{Deserialize, Deserializer};

/// Null stands for nothing, as in the programs these files are written for.
pub(crate) fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// A value of a file as an error message shows it.
pub(crate) fn short(text: &str) -> String {
    text.chars().take(120).collect()
}

/// `NAME=value` with a name and no NUL byte.
pub(crate) fn split_env(entry: &str) -> Option<(&str, &str)> {
    entry.split_once('=').filter(|(name, _)| !name.is_empty() && !entry.contains('\0'))
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
