//! As much of DER, PEM and X.509 as sigstore's keys and certificates need; chains are `webpki`'s.

use std::time::{Duration, SystemTime};

use crate::json::decode_base64;

/// Tags. Source: X.690.
mod tag {
    pub(super) const BIT_STRING: u8 = 0x03;
    pub(super) const OCTET_STRING: u8 = 0x04;
    pub(super) const OID: u8 = 0x06;
    pub(super) const UTF8_STRING: u8 = 0x0c;
    pub(super) const UTC_TIME: u8 = 0x17;
    pub(super) const GENERALIZED_TIME: u8 = 0x18;
    pub(super) const SEQUENCE: u8 = 0x30;
}

/// One PEM block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pem {
    pub(crate) label: String,
    pub(crate) der: Vec<u8>,
}

/// Every block of a text, and whether anything but white space stands between and around them. A damaged one is an
/// error. Source: RFC 7468, with what may stand between blocks.
pub(crate) fn parse_pem(bytes: &[u8]) -> Option<(Vec<Pem>, bool)> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (mut blocks, mut has_more) = (Vec::new(), false);
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        let Some(label) = line.strip_prefix("-----BEGIN ").and_then(|rest| rest.strip_suffix("-----")) else {
            has_more |= !line.is_empty();
            continue;
        };
        let end = format!("-----END {label}-----");
        let mut base64 = String::new();
        loop {
            match lines.next()? {
                line if line == end => break,
                line => base64.push_str(line),
            }
        }
        blocks.push(Pem { label: label.to_owned(), der: decode_base64(&base64)? });
    }
    Some((blocks, has_more))
}

/// The certificates of a text, which holds nothing else in its blocks.
pub(crate) fn parse_certificates(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let (blocks, _) = parse_pem(bytes)?;
    blocks.into_iter().map(|block| (block.label == "CERTIFICATE").then_some(block.der)).collect()
}

/// Values one behind the other.
#[derive(Debug, Clone, Copy)]
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next value: its tag, its contents, and both with their head.
    fn next(&mut self) -> Option<(u8, &'a [u8], &'a [u8])> {
        let (tag, rest) = self.0.split_first()?;
        let (first, rest) = rest.split_first()?;
        let (length, rest) = match *first {
            short @ 0..=0x7f => (usize::from(short), rest),
            // Four bytes of length are more than is ever read.
            long @ 0x81..=0x84 => {
                let (digits, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
                (digits.iter().fold(0_usize, |sum, digit| (sum << 8) | usize::from(*digit)), rest)
            }
            _ => return None,
        };
        let (contents, rest) = rest.split_at_checked(length)?;
        let whole = &self.0[..self.0.len() - rest.len()];
        self.0 = rest;
        Some((*tag, contents, whole))
    }

    fn expect(&mut self, wanted: u8) -> Option<&'a [u8]> {
        self.next().and_then(|(tag, contents, _)| (tag == wanted).then_some(contents))
    }

    fn finish(self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

/// What a text holds, one value of this tag and nothing behind it.
fn only(bytes: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut der = Der(bytes);
    let contents = der.expect(wanted)?;
    der.finish()?;
    Some(contents)
}

/// A text in UTF-8.
pub(crate) fn parse_utf8_string(bytes: &[u8]) -> Option<String> {
    only(bytes, tag::UTF8_STRING).and_then(|text| String::from_utf8(text.to_vec()).ok())
}

/// The parts of a public key. Source: RFC 5280, SubjectPublicKeyInfo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyInfo<'a> {
    pub(crate) algorithm: &'a [u8],
    /// The curve, where there is one.
    pub(crate) curve: Option<&'a [u8]>,
    pub(crate) key: &'a [u8],
}

pub(crate) fn parse_key_info(bytes: &[u8]) -> Option<KeyInfo<'_>> {
    let mut outer = Der(only(bytes, tag::SEQUENCE)?);
    let mut algorithm = Der(outer.expect(tag::SEQUENCE)?);
    let bits = outer.expect(tag::BIT_STRING)?;
    outer.finish()?;
    let oid = algorithm.expect(tag::OID)?;
    let curve = match algorithm.next() {
        Some((tag::OID, curve, _)) => Some(curve),
        _ => None,
    };
    // Keys are whole bytes.
    let key = bits.strip_prefix(&[0])?;
    Some(KeyInfo { algorithm: oid, curve, key })
}

/// An RSA key in the older form, in the newer one.
pub(crate) fn wrap_rsa(pkcs1: &[u8]) -> Option<Vec<u8>> {
    only(pkcs1, tag::SEQUENCE)?;
    const ALGORITHM: &[u8] = &[0x30, 13, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 5, 0];
    let bits = wrap(tag::BIT_STRING, &[&[0], pkcs1].concat())?;
    wrap(tag::SEQUENCE, &[ALGORITHM, &bits].concat())
}

fn wrap(tag: u8, contents: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(contents.len()).ok()?.to_be_bytes();
    let head: &[u8] = match length {
        [0, short @ 0..=0x7f] => &[tag, short],
        [0, medium] => &[tag, 0x81, medium],
        [high, low] => &[tag, 0x82, high, low],
    };
    Some([head, contents].concat())
}

/// What is looked at in a certificate, beside its chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CertificateParts<'a> {
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    /// The public key, whole.
    pub(crate) key_info: &'a [u8],
    /// Extensions by their object identifiers.
    extensions: Vec<(&'a [u8], &'a [u8])>,
}

/// Source: RFC 5280 section 4.1.
pub(crate) fn parse_certificate(bytes: &[u8]) -> Option<CertificateParts<'_>> {
    let mut certificate = Der(only(bytes, tag::SEQUENCE)?);
    let mut signed = Der(certificate.expect(tag::SEQUENCE)?);
    let (first, _, _) = signed.next()?;
    // Certificates of version 1 begin with their serial number, and have no extensions.
    if first != 0xa0 {
        return None;
    }
    let _serial = signed.next()?;
    let _algorithm = signed.next()?;
    let _issuer = signed.next()?;
    let mut validity = Der(signed.expect(tag::SEQUENCE)?);
    let (not_before, not_after) = (parse_time(&mut validity)?, parse_time(&mut validity)?);
    let _subject = signed.next()?;
    let (_, _, key_info) = signed.next()?;
    let mut extensions = Vec::new();
    while let Some((tag, contents, _)) = signed.next() {
        if tag == 0xa3 {
            extensions = parse_extensions(contents)?;
        }
    }
    signed.finish()?;
    Some(CertificateParts { not_before, not_after, key_info, extensions })
}

fn parse_extensions(bytes: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut list = Der(only(bytes, tag::SEQUENCE)?);
    let mut extensions: Vec<(&[u8], &[u8])> = Vec::new();
    while let Some((tag::SEQUENCE, contents, _)) = list.next() {
        let mut extension = Der(contents);
        let oid = extension.expect(tag::OID)?;
        let (mut kind, mut value, _) = extension.next()?;
        if kind != tag::OCTET_STRING {
            (kind, value, _) = extension.next()?;
        }
        // Of two extensions alike each reader would take another one.
        if kind != tag::OCTET_STRING || extensions.iter().any(|(known, _)| *known == oid) {
            return None;
        }
        extensions.push((oid, value));
    }
    list.finish()?;
    Some(extensions)
}

impl CertificateParts<'_> {
    pub(crate) fn extension(&self, oid: &[u8]) -> Option<&[u8]> {
        self.extensions.iter().find(|(found, _)| *found == oid).map(|(_, value)| *value)
    }

    /// Addresses of electronic mail among the subject's alternative names.
    pub(crate) fn emails(&self) -> Vec<String> {
        const SUBJECT_ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 0x11];
        const EMAIL: u8 = 0x81;
        let names = self.extension(SUBJECT_ALTERNATIVE_NAMES).and_then(|value| only(value, tag::SEQUENCE));
        let mut names = Der(names.unwrap_or_default());
        let mut emails = Vec::new();
        while let Some((kind, contents, _)) = names.next() {
            if let (EMAIL, Ok(text)) = (kind, std::str::from_utf8(contents)) {
                emails.push(text.to_owned());
            }
        }
        emails
    }

    pub(crate) fn is_valid_at(&self, time: SystemTime) -> bool {
        self.not_before <= time && time <= self.not_after
    }
}

/// `YYMMDDhhmmssZ` or `YYYYMMDDhhmmssZ`. Source: RFC 5280 section 4.1.2.5.
fn parse_time(der: &mut Der<'_>) -> Option<SystemTime> {
    let (kind, text, _) = der.next()?;
    let digits = text.strip_suffix(b"Z")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = |digits: &[u8]| digits.iter().fold(0_u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    let (year, rest) = match (kind, digits.len()) {
        (tag::UTC_TIME, 12) => {
            let short = number(&digits[..2]);
            (if short < 50 { 2000 + short } else { 1900 + short }, &digits[2..])
        }
        (tag::GENERALIZED_TIME, 14) => (number(&digits[..4]), &digits[4..]),
        _ => return None,
    };
    let [month, day, hour, minute, second] = [0, 2, 4, 6, 8].map(|at| number(&rest[at..at + 2]));
    let is_time = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second < 61;
    let days = days_before(year, month)?.checked_add(day.checked_sub(1)?)?;
    let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second;
    is_time.then(|| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

/// Days from 1970 to the first of a month.
fn days_before(year: u64, month: u64) -> Option<u64> {
    const BEFORE_MONTH: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let leap_days = |year: u64| year / 4 - year / 100 + year / 400;
    let years = year.checked_sub(1970)?;
    let past = leap_days(year.checked_sub(1)?) - leap_days(1969);
    let in_year = BEFORE_MONTH.get(usize::try_from(month.checked_sub(1)?).ok()?)?;
    Some(years * 365 + past + in_year + u64::from(is_leap && month > 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_counted_from_1970() {
        for (kind, text, expected) in [
            (tag::UTC_TIME, "700101000000Z", Some(0)),
            (tag::UTC_TIME, "491231235959Z", Some(2_524_607_999)),
            (tag::UTC_TIME, "240229120000Z", Some(1_709_208_000)),
            (tag::UTC_TIME, "240301000000Z", Some(1_709_251_200)),
            (tag::GENERALIZED_TIME, "20000301000000Z", Some(951_868_800)),
            (tag::GENERALIZED_TIME, "99991231235959Z", Some(253_402_300_799)),
            (tag::UTC_TIME, "500101000000Z", None),
            (tag::UTC_TIME, "240001000000Z", None),
            (tag::UTC_TIME, "241301000000Z", None),
            (tag::UTC_TIME, "240101240000Z", None),
            (tag::UTC_TIME, "2401010000Z", None),
            (tag::UTC_TIME, "240101000000+0000", None),
            (tag::GENERALIZED_TIME, "240101000000Z", None),
        ] {
            let bytes = [&[kind, u8::try_from(text.len()).expect("is short")], text.as_bytes()].concat();
            let time = parse_time(&mut Der(&bytes));
            let seconds = time.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
            assert_eq!(seconds.map(|since| since.as_secs()), expected, "{text}");
        }
    }

    #[test]
    fn values_are_read_to_their_ends() {
        assert_eq!(only(&[0x30, 1, 7], 0x30), Some(&[7][..]));
        assert_eq!(only(&[0x30, 0x81, 1, 7], 0x30), Some(&[7][..]));
        for bytes in [&[0x30, 2, 7][..], &[0x30, 1, 7, 0], &[0x31, 1, 7], &[0x30, 0x80, 0, 0], &[0x30, 0x85], &[]] {
            assert_eq!(only(bytes, 0x30), None, "{bytes:?}");
        }
    }

    #[test]
    fn blocks_are_found_between_other_text() {
        let block = "-----BEGIN X-----\nAQ\nI=\n-----END X-----\n";
        let one = Pem { label: "X".to_owned(), der: vec![1, 2] };
        for (text, expected) in [
            (block.to_owned(), Some((vec![one.clone()], false))),
            (format!("text\n{block}\n{block}"), Some((vec![one.clone(), one.clone()], true))),
            (String::new(), Some((vec![], false))),
            ("-----BEGIN X-----\nAQI=\n".to_owned(), None),
            ("-----BEGIN X-----\n?\n-----END X-----\n".to_owned(), None),
        ] {
            assert_eq!(parse_pem(text.as_bytes()), expected, "{text}");
        }
        assert_eq!(parse_certificates(block.as_bytes()), None);
    }
}
