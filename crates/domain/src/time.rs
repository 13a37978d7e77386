//! Points in time, as the CRI reports them.

use serde::{Deserialize, Serialize};

/// Nanoseconds since 1970-01-01 00:00 UTC, as every CRI field named `*_at` and `timestamp` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp(i64);

impl Timestamp {
    /// Takes nanoseconds since the epoch.
    #[must_use]
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the epoch.
    #[must_use]
    pub const fn nanos(self) -> i64 {
        self.0
    }
}
