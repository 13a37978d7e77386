//! JSON and times byte for byte as Go's `encoding/json` writes them: digests are computed of them.

use std::fmt::Write as _;

/// What an absent time is written as.
pub(crate) const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// A string, quoted. Beyond JSON's rules, what could end an HTML element or a line of JavaScript is escaped.
pub(crate) fn string(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    push_escaped(&mut out, &serde_json::Value::from(text).to_string());
    out
}

/// A JSON text without white space between its parts; escapes as [`string`] does, and otherwise left as it is.
pub(crate) fn compact(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    let (mut in_string, mut is_escaped) = (false, false);
    for c in raw.chars() {
        if in_string {
            in_string = is_escaped || c != '"';
            is_escaped = !is_escaped && c == '\\';
        } else if matches!(c, ' ' | '\t' | '\r' | '\n') {
            continue;
        } else {
            in_string = c == '"';
        }
        push_char(&mut out, c);
    }
    out
}

fn push_escaped(out: &mut String, text: &str) {
    text.chars().for_each(|c| push_char(out, c));
}

fn push_char(out: &mut String, c: char) {
    match c {
        '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
            // Writing to a string cannot fail.
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        }
        c => out.push(c),
    }
}

/// A time of RFC 3339 as it comes out after it was read: without zeros at the end of the fraction, which has at most
/// nine digits, and with `Z` for an offset of nothing. `None` if it is no time.
pub(crate) fn time(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let number = |range: std::ops::Range<usize>| -> Option<u32> {
        let digits = bytes.get(range)?;
        digits.iter().try_fold(0, |sum, digit| digit.is_ascii_digit().then(|| sum * 10 + u32::from(digit - b'0')))
    };
    let is_at = |at: usize, expected: u8| bytes.get(at) == Some(&expected);
    let is_shaped = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')].iter().all(|(at, c)| is_at(*at, *c));
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days = match month {
        2 if is_leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !is_shaped || day == 0 || day > days || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let mut rest = &text[19..];
    let mut fraction = "";
    if let Some(digits) = rest.strip_prefix('.') {
        let end = digits.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(digits.len());
        if end == 0 {
            return None;
        }
        fraction = digits[..end.min(9)].trim_end_matches('0');
        rest = &digits[end..];
    }
    let zone = match rest.as_bytes() {
        b"Z" => "Z",
        [b'+' | b'-', ..] if rest.len() == 6 && rest.as_bytes()[3] == b':' => {
            let at = text.len() - 5;
            let (hours, minutes) = (number(at..at + 2)?, number(at + 3..at + 5)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            if hours == 0 && minutes == 0 { "Z" } else { rest }
        }
        _ => return None,
    };
    let dot = if fraction.is_empty() { "" } else { "." };
    Some(format!("{}{dot}{fraction}{zone}", &text[..19]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expectations from Go 1.27.
    #[test]
    fn text_is_escaped_as_go_does() {
        for (text, expected) in [
            ("a/\"\\\u{7}\t", r#""a/\"\\\u0007\t""#),
            ("<a & b>", r#""\u003ca \u0026 b\u003e""#),
            ("\u{2028}é\u{7f}", "\"\\u2028é\u{7f}\""),
            ("\u{8}\u{c}", r#""\b\f""#),
        ] {
            assert_eq!(string(text), expected);
        }
        let raw = " { \"a b\" : [ 1.50 , \"x \\\" y\\\\\" , \"\\u00e9<\" ] }\n";
        assert_eq!(compact(raw), r#"{"a b":[1.50,"x \" y\\","\u00e9\u003c"]}"#);
    }

    #[test]
    fn times_are_written_as_go_does() {
        for (text, expected) in [
            ("2015-10-31T22:22:54.690851953Z", Some("2015-10-31T22:22:54.690851953Z")),
            ("2015-10-31T22:22:54.690850Z", Some("2015-10-31T22:22:54.69085Z")),
            ("2015-10-31T22:22:54.000Z", Some("2015-10-31T22:22:54Z")),
            ("2015-10-31T22:22:54.1234567891Z", Some("2015-10-31T22:22:54.123456789Z")),
            ("2015-10-31T22:22:54+00:00", Some("2015-10-31T22:22:54Z")),
            ("2015-10-31T22:22:54+02:30", Some("2015-10-31T22:22:54+02:30")),
            ("2016-02-29T00:00:00Z", Some("2016-02-29T00:00:00Z")),
            ("2015-02-29T00:00:00Z", None),
            ("2015-10-31 22:22:54Z", None),
            ("2015-10-31T24:22:54Z", None),
            ("2015-10-31T22:22:54.Z", None),
            ("2015-10-31T22:22:54", None),
            ("2015-10-31T22:22:54é", None),
            ("", None),
        ] {
            assert_eq!(time(text).as_deref(), expected, "{text}");
        }
    }
}
