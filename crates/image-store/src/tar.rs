//! Reading tar archives of hostile origin.

use thiserror::Error;

/// Why an archive cannot be a layer.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TarError {
    /// It ends inside a header or a file.
    #[error("archive ends early, at byte {offset}")]
    EndsEarly {
        /// Offset in the uncompressed tar.
        offset: u64,
    },
}
