//! Bandwidth limits from annotations, as Kubernetes quantities in bits a second. No I/O.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use thiserror::Error;

/// The annotation with the limit of what the sandbox receives.
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
/// The annotation with the limit of what it sends.
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// Bits a burst may have: just below 4 GiB in bytes, the most the plugin's counter holds. CRI-O passes this.
const BURST_BITS: u64 = 34_359_738_359;
/// Digits a quantity may have: more than any number of bits.
const DIGITS_MAX: usize = 30;

/// A limit that is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BandwidthError {
    /// `kubernetes.io/ingress-bandwidth`
    #[error("failed to parse ingress bandwidth: {0:?} is not a quantity")]
    Ingress(String),
    /// `kubernetes.io/egress-bandwidth`
    #[error("failed to parse egress bandwidth: {0:?} is not a quantity")]
    Egress(String),
}

/// The value of the capability `bandwidth`; `None` without limits.
///
/// A quantity that is not a whole, positive number of bits limits nothing, as in CRI-O.
pub(crate) fn capability(annotations: &BTreeMap<String, String>) -> Result<Option<Value>, BandwidthError> {
    let rate = |key| match annotations.get(key) {
        None => Ok(0),
        Some(text) => parse_quantity(text).ok_or(text),
    };
    let egress = rate(EGRESS).map_err(|text| BandwidthError::Egress(text.clone()))?;
    let ingress = rate(INGRESS).map_err(|text| BandwidthError::Ingress(text.clone()))?;
    let burst = |rate: u64| if rate > 0 { BURST_BITS } else { 0 };
    Ok((ingress > 0 || egress > 0).then(|| {
        json!({
            "ingressRate": ingress, "ingressBurst": burst(ingress), "egressRate": egress, "egressBurst": burst(egress),
        })
    }))
}

/// A Kubernetes quantity as a whole number; 0 when it is negative, has a fraction or is too large for an i64.
fn parse_quantity(text: &str) -> Option<u64> {
    let (negative, rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let (base, exponent): (u128, i32) = match suffix {
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1 << 50, 0),
        "Ei" => (1 << 60, 0),
        "n" => (1, -9),
        "u" => (1, -6),
        "m" => (1, -3),
        "" => (1, 0),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        other => {
            let digits = other.strip_prefix(['e', 'E'])?;
            let is_number = digits.trim_start_matches(['+', '-']).bytes().all(|byte| byte.is_ascii_digit());
            if !is_number || digits.len() > 4 {
                return None;
            }
            (1, digits.parse().ok()?)
        }
    };
    let fraction = fraction.trim_end_matches('0');
    let digits = format!("{}{fraction}", whole.trim_start_matches('0'));
    if negative || digits.len() > DIGITS_MAX {
        return Some(0);
    }
    let mantissa: u128 = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    let exponent = exponent - i32::try_from(fraction.len()).ok()?;
    Some(
        whole_number(mantissa, base, exponent).and_then(|value| i64::try_from(value).ok()).map_or(0, i64::unsigned_abs),
    )
}

/// `mantissa * base * 10^exponent` when that is whole and small enough.
fn whole_number(mantissa: u128, base: u128, exponent: i32) -> Option<u128> {
    let value = mantissa.checked_mul(base)?;
    let power = 10_u128.checked_pow(exponent.unsigned_abs());
    if exponent >= 0 {
        if value == 0 { Some(0) } else { value.checked_mul(power?) }
    } else {
        let power = power?;
        value.is_multiple_of(power).then(|| value / power)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        for (text, expected) in [
            ("1M", Some(1_000_000)),
            ("10", Some(10)),
            ("1.5k", Some(1500)),
            ("1Ki", Some(1024)),
            ("2.5Mi", Some(2_621_440)),
            ("1e3", Some(1000)),
            ("1E3", Some(1000)),
            ("1E", Some(1_000_000_000_000_000_000)),
            ("12e-1", Some(0)),
            ("+5G", Some(5_000_000_000)),
            ("100m", Some(0)),
            (".5k", Some(500)),
            ("5.", Some(5)),
            ("-1M", Some(0)),
            ("0", Some(0)),
            ("99E", Some(0)),
            ("1e999", Some(0)),
            ("1e-999", Some(0)),
            ("", None),
            ("M", None),
            (".", None),
            ("1.2.3", None),
            ("1 M", None),
            ("1Mbit", None),
            ("10 ", None),
            ("0x10", None),
            ("1e", None),
            ("1e1.5", None),
            ("1KI", None),
            ("é", None),
        ] {
            assert_eq!(parse_quantity(text), expected, "{text:?}");
        }
    }

    #[test]
    fn limits() {
        let check = |pairs: &[(&str, &str)]| {
            let map = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            match capability(&map) {
                Ok(Some(value)) => value.to_string(),
                Ok(None) => "none".to_owned(),
                Err(error) => error.to_string(),
            }
        };
        assert_eq!(check(&[("x", "1M")]), "none");
        assert_eq!(check(&[(INGRESS, "500m")]), "none");
        let one = check(&[(INGRESS, "1M")]);
        assert!(one.contains(r#""ingressRate":1000000"#) && one.contains(r#""ingressBurst":34359738359"#), "{one}");
        assert!(one.contains(r#""egressRate":0"#) && one.contains(r#""egressBurst":0"#), "{one}");
        assert_eq!(check(&[(EGRESS, "1Q")]), r#"failed to parse egress bandwidth: "1Q" is not a quantity"#);
        assert_eq!(check(&[(INGRESS, "fast")]), r#"failed to parse ingress bandwidth: "fast" is not a quantity"#);
    }
}
