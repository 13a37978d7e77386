//! YAML files of the node's other programs, as the JSON value they stand for.
//!
//! Promises: bounded depth, no aliases (whose expansion has no bound), one document, no key twice.
//! Must not know: what the values mean; readers take them out of the value with serde.
//! Plain scalars are what YAML 1.2's core schema says, and also what the Go programs read that these files are written
//! for: `0660` is octal, `0b101` and `1_000` are numbers.
//! Begin reading at [`parse`].
#![forbid(unsafe_code)]

use saphyr_parser::{Event, Parser, ScalarStyle, Tag};
use serde_json::{Map, Number, Value};
use thiserror::Error;

/// Deeper than any file of configuration, shallow enough for everything that walks the value.
const DEPTH_MAX: usize = 64;
/// The handle of the standard's own tags, `!!str` and so on.
const CORE: &str = "tag:yaml.org,2002:";

/// Why a text is no YAML that this parser takes.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum YamlError {
    /// Not YAML.
    #[error("line {line}, column {column}: {what}")]
    Syntax {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What the parser says.
        what: String,
    },
    /// Nested too deeply.
    #[error("nested more than {DEPTH_MAX} levels deep")]
    TooDeep,
    /// Anchors and aliases, tags of programs, several documents.
    #[error("line {line}: {what} not supported")]
    Unsupported {
        /// From 1.
        line: usize,
        /// In the plural.
        what: &'static str,
    },
    /// One key of a mapping twice.
    #[error("line {line}: key {key:?} appears twice")]
    DuplicateKey {
        /// From 1.
        line: usize,
        /// The key, shortened.
        key: String,
    },
}

/// A list or mapping whose end has not been read yet.
enum Open {
    List(Vec<Value>),
    Mapping(Map<String, Value>, Option<String>),
}

/// Reads one document. An empty text is `null`.
pub fn parse(text: &str) -> Result<Value, YamlError> {
    let mut stack: Vec<Open> = vec![];
    let mut root = None;
    let mut documents = 0;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| YamlError::Syntax {
            line: error.marker().line(),
            column: error.marker().col() + 1,
            what: error.info().chars().take(200).collect(),
        })?;
        let line = span.start.line();
        let unsupported = |what| YamlError::Unsupported { line, what };
        let value = match event {
            Event::DocumentStart(_) => {
                documents += 1;
                if documents > 1 {
                    return Err(unsupported("several documents are"));
                }
                continue;
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => continue,
            Event::Alias(_)
            | Event::Scalar(_, _, 1.., _)
            | Event::SequenceStart(1.., _)
            | Event::MappingStart(1.., _) => {
                return Err(unsupported("anchors and aliases are"));
            }
            Event::SequenceStart(_, tag) => {
                check_tag(tag.as_deref(), &["seq"]).map_err(unsupported)?;
                open(&mut stack, Open::List(vec![]))?;
                continue;
            }
            Event::MappingStart(_, tag) => {
                check_tag(tag.as_deref(), &["map"]).map_err(unsupported)?;
                open(&mut stack, Open::Mapping(Map::new(), None))?;
                continue;
            }
            Event::Scalar(text, style, _, tag) => {
                let kind = check_tag(tag.as_deref(), &["str", "int", "float", "bool", "null"]).map_err(unsupported)?;
                match (style, kind) {
                    (ScalarStyle::Plain, None | Some("int" | "float" | "bool" | "null")) if !is_key(&stack) => {
                        plain(&text)
                    }
                    _ => Value::String(text.into_owned()),
                }
            }
            Event::SequenceEnd | Event::MappingEnd => match stack.pop() {
                Some(Open::List(list)) => Value::Array(list),
                Some(Open::Mapping(map, _)) => Value::Object(map),
                None => continue,
            },
        };
        match stack.last_mut() {
            None => root = Some(value),
            Some(Open::List(list)) => list.push(value),
            Some(Open::Mapping(map, key @ None)) => match value {
                Value::String(text) if map.contains_key(&text) => {
                    return Err(YamlError::DuplicateKey { line, key: text.chars().take(100).collect() });
                }
                Value::String(text) => *key = Some(text),
                _ => return Err(unsupported("keys other than texts are")),
            },
            Some(Open::Mapping(map, Some(key))) => {
                map.insert(std::mem::take(key), value);
                if let Some(Open::Mapping(_, key)) = stack.last_mut() {
                    *key = None;
                }
            }
        }
    }
    Ok(root.unwrap_or(Value::Null))
}

fn open(stack: &mut Vec<Open>, what: Open) -> Result<(), YamlError> {
    if stack.len() >= DEPTH_MAX {
        return Err(YamlError::TooDeep);
    }
    stack.push(what);
    Ok(())
}

/// Whether the next scalar is a key, which is always a text.
fn is_key(stack: &[Open]) -> bool {
    matches!(stack.last(), Some(Open::Mapping(_, None)))
}

/// The standard's name of a tag, which must be one of those that make sense here.
fn check_tag<'a>(tag: Option<&'a Tag>, known: &[&str]) -> Result<Option<&'a str>, &'static str> {
    match tag {
        None => Ok(None),
        Some(tag) if tag.handle == CORE && known.contains(&tag.suffix.as_str()) => Ok(Some(&tag.suffix)),
        Some(_) => Err("tags of programs are"),
    }
}

/// What an unquoted scalar is.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    integer(text).or_else(|| float(text)).map_or_else(|| Value::String(text.to_owned()), Value::Number)
}

fn integer(text: &str) -> Option<Number> {
    let (is_negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if !digits.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    let digits = digits.replace('_', "");
    let (digits, radix) = match digits.as_bytes() {
        [b'0', b'x', ..] => (&digits[2..], 16),
        [b'0', b'o', ..] => (&digits[2..], 8),
        [b'0', b'b', ..] => (&digits[2..], 2),
        [b'0', _, ..] => (&digits[1..], 8),
        _ => (digits.as_str(), 10),
    };
    // A second sign is no digit.
    if !digits.starts_with(|first: char| first.is_ascii_alphanumeric()) {
        return None;
    }
    let value = u64::from_str_radix(digits, radix).ok()?;
    if is_negative { 0_i64.checked_sub_unsigned(value).map(Number::from) } else { Some(Number::from(value)) }
}

/// Infinities and what is not a number have no place in JSON; they stay texts.
fn float(text: &str) -> Option<Number> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.' | b'e' | b'E'));
    let has_digit = text.bytes().any(|byte| byte.is_ascii_digit());
    if is_number && has_digit { text.parse().ok().and_then(Number::from_f64) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn documents_become_values() {
        for (text, expected) in [
            ("", Value::Null),
            ("# nothing\n", Value::Null),
            ("a: 1\nb: [x, \"2\", 3.5, ~]\n", json!({"a": 1, "b": ["x", "2", 3.5, null]})),
            (
                "---\nkind: v.com/c\ndevices:\n  - name: d0\n    edits:\n      env:\n      - \"A=b\"\n",
                json!({"kind": "v.com/c", "devices": [{"name": "d0", "edits": {"env": ["A=b"]}}]}),
            ),
            (
                "mode: 0660\nother: 0o17\nhex: 0x1F\nbits: 0b11\nbig: 1_000\nminus: -7\n",
                json!({"mode": 432, "other": 15, "hex": 31, "bits": 3, "big": 1000, "minus": -7}),
            ),
            (
                "version: 0.6.0\nname: 09\nyes: yes\ntrue: true\n",
                json!({"version": "0.6.0", "name": 9.0, "yes": "yes", "true": true}),
            ),
            (
                "text: |\n  one\n  two\nfolded: >-\n  three\n  four\n",
                json!({"text": "one\ntwo\n", "folded": "three four"}),
            ),
            ("tagged: !!str 12\n", json!({"tagged": "12"})),
            ("{\"json\": {\"is\": [\"yaml\", true]}}", json!({"json": {"is": ["yaml", true]}})),
            ("empty:\nnext: x\n", json!({"empty": null, "next": "x"})),
            ("inf: .inf\nsign: +-1\n", json!({"inf": ".inf", "sign": "+-1"})),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_has_no_bound_or_no_meaning_is_refused() {
        let deep = "[".repeat(1000) + &"]".repeat(1000);
        for text in [
            "a: &x [1]\nb: *x\n",
            "a: *unknown\n",
            "a: 1\na: 2\n",
            "a: !go/struct x\n",
            "--- a\n--- b\n",
            "? [list]\n: 1\n",
            "a: [1, 2\n",
            "\ta: 1\n b",
            "key: value: other",
            deep.as_str(),
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
