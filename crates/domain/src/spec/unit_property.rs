//! Properties of systemd units that pods bring along as annotations, for handlers that allow them.
//!
//! Runtimes read the value as a GVariant text and hand it to systemd (runc, crun: `org.systemd.property.NAME`). What is no
//! such text is refused here, before anything is made. Source: GLib, "GVariant Text Format", the part runtimes read.

use std::collections::BTreeMap;

use super::SpecError;

const PREFIX: &str = "org.systemd.property.";
/// Longer than any property a scope has.
const NAME_MAX_BYTES: usize = 64;
const VALUE_MAX_BYTES: usize = 4096;
/// Arrays of arrays are of no use to a scope; a bound for the recursion.
const DEPTH_MAX: usize = 4;
/// What may stand before a number.
const TYPES: [&str; 8] = ["byte", "int16", "uint16", "int32", "uint32", "int64", "uint64", "double"];

/// Refuses annotations that look like properties of a unit and are none.
pub fn check_unit_properties(annotations: &BTreeMap<String, String>) -> Result<(), SpecError> {
    for (key, value) in annotations {
        let Some(name) = key.strip_prefix(PREFIX) else { continue };
        let is_name = name.len() <= NAME_MAX_BYTES
            && name.starts_with(|first: char| first.is_ascii_uppercase())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let bad = |reason: &str| Err(SpecError::BadAnnotation { key: key.clone(), reason: reason.to_owned() });
        if !is_name {
            return bad("this is not the name of a unit's property");
        }
        if !is_value(value) {
            return bad("its value is not true, false, a number, a string in quotes, or an array of such");
        }
    }
    Ok(())
}

fn is_value(text: &str) -> bool {
    text.len() <= VALUE_MAX_BYTES
        && !text.chars().any(char::is_control)
        && value(text.trim_start_matches(' '), 0).is_some_and(|rest| rest.trim_matches(' ').is_empty())
}

/// What follows a value; `None` where there is none.
fn value(text: &str, depth: usize) -> Option<&str> {
    if depth > DEPTH_MAX {
        return None;
    }
    match text.chars().next()? {
        '[' => elements(&text[1..], depth),
        quote @ ('\'' | '"') => string(&text[1..], quote),
        _ => word(text),
    }
}

fn elements(text: &str, depth: usize) -> Option<&str> {
    let mut rest = text.trim_start_matches(' ');
    if let Some(after) = rest.strip_prefix(']') {
        return Some(after);
    }
    loop {
        rest = value(rest, depth + 1)?.trim_start_matches(' ');
        if let Some(after) = rest.strip_prefix(']') {
            return Some(after);
        }
        rest = rest.strip_prefix(',')?.trim_start_matches(' ');
    }
}

fn string(text: &str, quote: char) -> Option<&str> {
    let mut is_escaped = false;
    for (at, character) in text.char_indices() {
        match character {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            _ if character == quote => return Some(&text[at + 1..]),
            _ => {}
        }
    }
    None
}

fn word(text: &str) -> Option<&str> {
    let end = text.find([',', ']', ' ']).unwrap_or(text.len());
    let (first, rest) = text.split_at(end);
    if TYPES.contains(&first) {
        let number = rest.trim_start_matches(' ');
        let end = number.find([',', ']', ' ']).unwrap_or(number.len());
        return is_number(&number[..end]).then(|| &number[end..]);
    }
    (matches!(first, "true" | "false") || is_number(first)).then_some(rest)
}

fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if let Some(hexadecimal) = digits.strip_prefix("0x") {
        return !hexadecimal.is_empty() && hexadecimal.bytes().all(|byte| byte.is_ascii_hexdigit());
    }
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let are_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    digits.len() <= 40 && are_digits(whole) && are_digits(fraction)
}

/// Fuzz entry point: any text as a value.
pub fn fuzz_unit_property(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        assert!(!is_value(text) || !text.contains('\n'), "no value has a line break");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_literals_pass() {
        for (name, text, ok) in [
            ("TimeoutStopUSec", "uint64 30000000", true),
            ("CollectMode", "'inactive-or-failed'", true),
            ("DefaultDependencies", "true", true),
            ("After", "['crio.service', \"x.service\"]", true),
            ("CPUQuotaPerSecUSec", "200000", true),
            ("Nice", "-5", true),
            ("Empty", "[]", true),
            ("Weight", "uint64  1 ", true),
            ("Quoted", r"'it\'s'", true),
            ("Mask", "0xff", true),
            ("Ratio", "double 0.5", true),
            ("After", "crio.service", false),
            ("After", "['a'", false),
            ("After", "['a' 'b']", false),
            ("After", "'a", false),
            ("After", "'a' 'b'", false),
            ("After", "'a'\nExecStart='x'", false),
            ("After", "[[[[[['a']]]]]]", false),
            ("Environment", "uint64", false),
            ("Environment", "uint64 x", false),
            ("Environment", "string 'x'", false),
            ("Environment", "", false),
            ("Environment", "1.2.3", false),
            ("execStart", "'x'", false),
            ("Exec.Start", "'x'", false),
            ("", "'x'", false),
            ("Exec Start", "'x'", false),
        ] {
            let annotations = [(format!("{PREFIX}{name}"), text.to_owned())].into();
            assert_eq!(check_unit_properties(&annotations).is_ok(), ok, "{name}={text:?}");
        }
        assert!(check_unit_properties(&[("org.systemd.propertyX".to_owned(), "!".to_owned())].into()).is_ok());
    }
}
