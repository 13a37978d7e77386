//! Times as Go writes them in JSON: RFC 3339, and the year 1 for "never".

use domain::time::Timestamp;
use jiff::Timestamp as Instant;

/// Go's zero time.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// Formats a point in time, or "never".
pub(crate) fn format(time: Option<Timestamp>) -> String {
    time.and_then(|time| Instant::from_nanosecond(i128::from(time.nanos())).ok())
        .map_or_else(|| NEVER.to_owned(), |instant| instant.to_string())
}

/// Reads a point in time; Go's zero time and an empty text mean never.
pub(crate) fn parse(text: &str) -> Result<Option<Timestamp>, String> {
    if text.is_empty() || text == NEVER {
        return Ok(None);
    }
    let instant: Instant = text.parse().map_err(|error| format!("{text:?} is not a time: {error}"))?;
    i64::try_from(instant.as_nanosecond())
        .map(|nanos| Some(Timestamp::from_nanos(nanos)))
        .map_err(|_| format!("{text:?} is out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_and_never_is_gos_zero() {
        for (text, nanos) in [
            ("1970-01-01T00:00:01Z", Some(1_000_000_000)),
            ("2025-01-02T03:04:05.123456789Z", Some(1_735_787_045_123_456_789)),
            ("2025-01-02T05:04:05.123456789+02:00", Some(1_735_787_045_123_456_789)),
            (NEVER, None),
            ("", None),
        ] {
            assert_eq!(parse(text).expect(text), nanos.map(Timestamp::from_nanos), "{text}");
        }
        assert!(parse("yesterday").is_err());
        assert_eq!(format(None), NEVER);
        assert_eq!(format(Some(Timestamp::from_nanos(1_735_787_045_123_456_789))), "2025-01-02T03:04:05.123456789Z");
    }
}
