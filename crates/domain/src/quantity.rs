//! Kubernetes' way to write amounts, as in `64Mi`. Source: the documentation of `resource.Quantity`.

/// The bytes of a positive amount, rounded up; nothing else is one.
///
/// Digits with at most one point, then a binary suffix (`Ki` to `Ei`), a decimal one (`m`, none, `k` to `E`) or an
/// exponent (`e3`).
#[must_use]
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text.find(|character: char| !character.is_ascii_digit() && character != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    // Beyond this many digits no amount fits, and none is told from its neighbour.
    if whole.len() + fraction.len() == 0 || whole.len() > 20 || fraction.len() > 15 || fraction.contains('.') {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let (times, divided_by) = factor(suffix)?;
    let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?.checked_mul(divided_by)?;
    u64::try_from(digits.checked_mul(times)?.div_ceil(scale)).ok().filter(|bytes| *bytes > 0)
}

/// What a suffix multiplies with and divides by.
fn factor(suffix: &str) -> Option<(u128, u128)> {
    let binary = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].iter().zip(1_u32..).find(|(known, _)| **known == suffix);
    if let Some((_, power)) = binary {
        return Some((1 << (10 * power), 1));
    }
    let decimal = ["", "k", "M", "G", "T", "P", "E"].iter().zip(0_u32..).find(|(known, _)| **known == suffix);
    if let Some((_, power)) = decimal {
        return Some((1000_u128.pow(power), 1));
    }
    if suffix == "m" {
        return Some((1, 1000));
    }
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    let power = 10_u128.checked_pow(exponent.unsigned_abs()).filter(|_| exponent.unsigned_abs() <= 18)?;
    Some(if exponent < 0 { (1, power) } else { (power, 1) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_as_kubernetes_reads_them() {
        for (text, expected) in [
            ("64Mi", Some(64 << 20)),
            ("1Gi", Some(1 << 30)),
            ("1048576", Some(1 << 20)),
            ("100M", Some(100_000_000)),
            ("1k", Some(1000)),
            ("1.5Ki", Some(1536)),
            (".5Ki", Some(512)),
            ("5.Ki", Some(5120)),
            ("1.5", Some(2)),
            ("1500m", Some(2)),
            ("1e3", Some(1000)),
            ("1E3", Some(1000)),
            ("1E", Some(1_000_000_000_000_000_000)),
            ("12e-1", Some(2)),
            ("+7", Some(7)),
            ("15Ei", Some(15 << 60)),
            ("0", None),
            ("0Mi", None),
            ("-1", None),
            ("", None),
            (".", None),
            ("Mi", None),
            ("64MiB", None),
            ("64mi", None),
            ("64 Mi", None),
            ("1.2.3", None),
            ("16Ei", None),
            ("1e99", None),
            ("99999999999999999999999", None),
            ("1\n", None),
            ("1,mode=0777", None),
        ] {
            assert_eq!(parse_bytes(text), expected, "{text:?}");
        }
    }
}
