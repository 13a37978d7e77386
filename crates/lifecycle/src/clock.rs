//! The only place where this crate asks what time it is.

use domain::time::Timestamp;

/// The time of day, in nanoseconds since the epoch.
pub(crate) fn now() -> Timestamp {
    let nanos = jiff::Timestamp::now().as_nanosecond();
    Timestamp::from_nanos(i64::try_from(nanos).unwrap_or(i64::MAX))
}
