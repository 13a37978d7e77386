//! From when to when a certificate is valid. Source: RFC 5280, section 4.1; DER is X.690.

/// Seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) first: i64,
    pub(super) last: i64,
}

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// The version of a certificate, which the first one left out.
const VERSION: u8 = 0xa0;

impl Validity {
    /// What a certificate says of itself; `None` if it is none.
    pub(super) fn of(certificate: &[u8]) -> Option<Self> {
        let (certificate, _) = take(certificate, SEQUENCE)?;
        let (mut fields, _) = take(certificate, SEQUENCE)?;
        if let Some((_, rest)) = take(fields, VERSION) {
            fields = rest;
        }
        // Serial number, algorithm, issuer.
        for tag in [INTEGER, SEQUENCE, SEQUENCE] {
            (_, fields) = take(fields, tag)?;
        }
        let (times, _) = take(fields, SEQUENCE)?;
        let (first, rest) = take_time(times)?;
        let (last, _) = take_time(rest)?;
        Some(Self { first, last })
    }
}

/// The content of the next element if it has this tag, and what follows it.
fn take(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, rest) = bytes.split_first()?;
    let (first, rest) = rest.split_first()?;
    if *found != tag {
        return None;
    }
    if *first < 0x80 {
        return rest.split_at_checked(usize::from(*first));
    }
    let (length, rest) = rest.split_at_checked(usize::from(*first & 0x7f))?;
    if length.len() > 4 {
        return None;
    }
    let length = length.iter().fold(0_usize, |length, byte| (length << 8) | usize::from(*byte));
    rest.split_at_checked(length)
}

fn take_time(bytes: &[u8]) -> Option<(i64, &[u8])> {
    if let Some((text, rest)) = take(bytes, UTC_TIME) {
        let (year, text) = (number(text.get(..2)?)?, text.get(2..)?);
        // Two digits of a year are those of 1950 to 2049.
        return Some((seconds(if year < 50 { 2000 + year } else { 1900 + year }, text)?, rest));
    }
    let (text, rest) = take(bytes, GENERALIZED_TIME)?;
    Some((seconds(number(text.get(..4)?)?, text.get(4..)?)?, rest))
}

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0, |number, digit| digit.is_ascii_digit().then(|| number * 10 + i64::from(digit - b'0')))
}

/// A year and `MMDDhhmmssZ`.
fn seconds(year: i64, text: &[u8]) -> Option<i64> {
    let text = text.strip_suffix(b"Z").filter(|text| text.len() == 10)?;
    let part = |at: usize| number(text.get(at..at + 2)?);
    let (month, day) = (part(0).filter(|month| (1..=12).contains(month))?, part(2)?);
    // Days of the civil calendar, counted from March so that the leap day is a year's last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    let days = days + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some(((days * 24 + part(4)?) * 60 + part(6)?) * 60 + part(8)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_both_forms() {
        for (time, expected) in [
            (&b"\x17\x0d700101000000Z"[..], Some(0)),
            (b"\x17\x0d260301123456Z", Some(1_772_368_496)),
            (b"\x17\x0d491231235959Z", Some(2_524_607_999)),
            (b"\x18\x0f20500101000000Z", Some(2_524_608_000)),
            (b"\x18\x0f99991231235959Z", Some(253_402_300_799)),
            (b"\x17\x0d991301000000Z", None),
            (b"\x17\x0c99120100000Z", None),
            (b"\x17\x0d9912010000x0Z", None),
            (b"\x05\x00", None),
            (b"\x17\x84\xff\xff\xff\xff", None),
        ] {
            assert_eq!(take_time(time).map(|(seconds, _)| seconds), expected, "{}", time.escape_ascii());
        }
    }

    #[test]
    fn a_certificate_has_its_times_behind_its_issuer() {
        let element = |tag: u8, content: &[u8]| [&[tag, u8::try_from(content.len()).expect("short")], content].concat();
        let times = element(SEQUENCE, b"\x17\x0d700101000000Z\x18\x0f20500101000000Z");
        let empty = element(SEQUENCE, b"");
        for version in [&b""[..], b"\xa0\x03\x02\x01\x02"] {
            let fields = [version, &element(INTEGER, b"\x07"), &empty, &empty, &times].concat();
            let certificate = element(SEQUENCE, &element(SEQUENCE, &fields));
            assert_eq!(Validity::of(&certificate), Some(Validity { first: 0, last: 2_524_608_000 }));
            for end in 0..certificate.len() {
                assert_eq!(Validity::of(&certificate[..end]), None, "cut at {end}");
            }
        }
    }
}
