//! Durations and sizes as configuration files of this family write them.
//!
//! Source of the forms: Go's `time.ParseDuration` (`1h30m`, `200ms`) and docker/go-units `RAMInBytes` (`500KiB`, `12m`),
//! because those parse every `crio.conf` in existence.

use std::fmt;
use std::time::Duration;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteCount(u64);

impl ByteCount {
    /// So many bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }
    /// So many kibibytes (1024 bytes).
    pub const fn kib(count: u64) -> Self {
        Self(count * 1024)
    }
    /// So many mebibytes (1024 KiB).
    pub const fn mib(count: u64) -> Self {
        Self(count * 1024 * 1024)
    }
    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ByteCount {
    /// The largest binary unit that divides the count exactly, so that printing and parsing lose nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        for (name, shift) in UNITS {
            let unit = 1u64 << shift;
            if self.0 != 0 && self.0.is_multiple_of(unit) {
                return write!(f, "{}{name}", self.0 / unit);
            }
        }
        write!(f, "{}B", self.0)
    }
}

/// A size text that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a size such as 500KiB, 12MiB or 1048576")]
pub struct ParseSizeError {
    text: String,
}

/// Reads `12MiB`, `12m`, `12 MB`, `1.5g`, `4096`: units are powers of 1024, case does not matter.
pub fn parse_size(text: &str) -> Result<ByteCount, ParseSizeError> {
    let bad = || ParseSizeError { text: text.to_owned() };
    let split = text.rfind(|c: char| c.is_ascii_digit() || c == '.' || c == ' ').ok_or_else(bad)?;
    let (number, suffix) = text.split_at(split + 1);
    let number = number.strip_suffix(' ').unwrap_or(number);
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return Err(bad());
    }
    let shift = match suffix.to_ascii_lowercase().as_str() {
        "" | "b" => 0u32,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        _ => return Err(bad()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return Err(bad());
    }
    let unit = 1u64 << shift;
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| bad())? };
    let mut total = whole.checked_mul(unit).ok_or_else(bad)?;
    // Digits of the fraction beyond what a u128 product can hold are smaller than a byte.
    let fraction = fraction.get(..fraction.len().min(15)).unwrap_or_default();
    if !fraction.is_empty() {
        let digits: u64 = fraction.parse().map_err(|_| bad())?;
        let scale = 10u128.pow(u32::try_from(fraction.len()).map_err(|_| bad())?);
        let part = u128::from(digits) * u128::from(unit) / scale;
        total = total.checked_add(u64::try_from(part).map_err(|_| bad())?).ok_or_else(bad)?;
    }
    // The readers of this value count in signed 64-bit numbers.
    if i64::try_from(total).is_err() {
        return Err(bad());
    }
    Ok(ByteCount(total))
}

/// A duration text that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a duration such as 10s, 1m30s or 4h")]
pub struct ParseDurationError {
    text: String,
}

/// Reads Go's form: a sequence of decimal numbers with a unit each (`ns`, `us`, `µs`, `ms`, `s`, `m`, `h`), or `0`.
///
/// Negative durations are refused: no key of this configuration allows one.
pub fn parse_duration(text: &str) -> Result<Duration, ParseDurationError> {
    let bad = || ParseDurationError { text: text.to_owned() };
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" || text == "-0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(bad());
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let (number, tail) = rest.split_at(digits);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, next) = tail.split_at(unit_end);
        let unit: u128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(bad()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return Err(bad());
        }
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| bad())? };
        total = total.checked_add(u128::from(whole) * unit).ok_or_else(bad)?;
        // More digits than this are below a nanosecond for every unit.
        let fraction = fraction.get(..fraction.len().min(15)).unwrap_or_default();
        if !fraction.is_empty() {
            let digits: u64 = fraction.parse().map_err(|_| bad())?;
            let scale = 10u128.pow(u32::try_from(fraction.len()).map_err(|_| bad())?);
            total += u128::from(digits) * unit / scale;
        }
        rest = next;
    }
    // Go's durations end at 2^63 - 1 nanoseconds, about 292 years.
    i64::try_from(total).ok().and_then(|n| u64::try_from(n).ok()).map(Duration::from_nanos).ok_or_else(bad)
}

/// Writes a duration the way Go does: `4h0m0s`, `1m30s`, `1.5s`, `200ms`, `0s`.
pub fn format_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    if nanos < 1_000_000_000 {
        let (scale, unit) = match nanos {
            n if n < 1_000 => (1, "ns"),
            n if n < 1_000_000 => (1_000, "µs"),
            _ => (1_000_000, "ms"),
        };
        return format!("{}{unit}", decimal(nanos, scale));
    }
    let seconds = nanos / 1_000_000_000;
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let rest = decimal(nanos - (seconds - seconds % 60) * 1_000_000_000, 1_000_000_000);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, m) => format!("{m}m{rest}s"),
        (h, m) => format!("{h}h{m}m{rest}s"),
    }
}

/// `value / scale` with as many decimals as it has.
fn decimal(value: u128, scale: u128) -> String {
    let (whole, part) = (value / scale, value % scale);
    if part == 0 {
        return whole.to_string();
    }
    let width = scale.to_string().len() - 1;
    let digits = format!("{part:0width$}");
    format!("{whole}.{}", digits.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("4096", Some(4096)),
            ("0", Some(0)),
            ("10b", Some(10)),
            ("500KiB", Some(512_000)),
            ("12MiB", Some(12 << 20)),
            ("12m", Some(12 << 20)),
            ("12 MB", Some(12 << 20)),
            ("1.5g", Some(3 << 29)),
            (".5k", Some(512)),
            ("2T", Some(2 << 40)),
            ("", None),
            ("MiB", None),
            (".", None),
            ("-5m", None),
            ("12mibs", None),
            ("12q", None),
            ("1.2.3", None),
            ("99999999999999999999", None),
            ("9223372036854775808", None),
        ] {
            assert_eq!(parse_size(text).ok().map(ByteCount::bytes), expected, "{text:?}");
        }
    }

    #[test]
    fn sizes_print_exactly() {
        for (count, text) in [(0, "0B"), (1000, "1000B"), (512_000, "500KiB"), (12 << 20, "12MiB"), (3 << 30, "3GiB")] {
            assert_eq!(ByteCount::new(count).to_string(), text);
            assert_eq!(parse_size(text), Ok(ByteCount::new(count)));
        }
    }

    #[test]
    fn durations() {
        for (text, nanos) in [
            ("0", Some(0)),
            ("0s", Some(0)),
            ("5s", Some(5_000_000_000)),
            ("1m30s", Some(90_000_000_000)),
            ("1.5h", Some(5_400_000_000_000)),
            ("200ms", Some(200_000_000)),
            ("3µs", Some(3_000)),
            ("7ns", Some(7)),
            (".5s", Some(500_000_000)),
            ("+2s", Some(2_000_000_000)),
            ("", None),
            ("5", None),
            ("s", None),
            (".s", None),
            ("5 s", None),
            ("1.2.3s", None),
            ("-5s", None),
            ("1d", None),
            ("99999999999h", None),
        ] {
            assert_eq!(parse_duration(text).ok().map(|d| d.as_nanos()), nanos, "{text:?}");
        }
    }

    #[test]
    fn durations_print_as_go_does() {
        for (nanos, text) in [
            (0, "0s"),
            (7, "7ns"),
            (1_500, "1.5µs"),
            (200_000_000, "200ms"),
            (1_500_000_000, "1.5s"),
            (90_000_000_000, "1m30s"),
            (14_400_000_000_000, "4h0m0s"),
        ] {
            assert_eq!(format_duration(Duration::from_nanos(nanos)), text);
            assert_eq!(parse_duration(text), Ok(Duration::from_nanos(nanos)));
        }
    }
}
