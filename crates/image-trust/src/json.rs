//! JSON where a typing error must not go unnoticed: a key twice, or one nobody knows, is an error.
//!
//! Ordinary JSON readers take the last of two equal keys and skip unknown ones. In a policy that would turn a slip of
//! the pen into a weaker policy, in a signature it would let two readers see two claims. Source: containers/image.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use thiserror::Error;

/// Why a text is not the JSON that was expected.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum JsonError {
    /// No JSON, or one key of an object twice.
    #[error("{0}")]
    Syntax(String),
    /// A key that is not known there.
    #[error("unknown key {0:?}")]
    UnknownKey(String),
    /// A key that must be there.
    #[error("key {0:?} is missing")]
    Missing(&'static str),
    /// A value of another type.
    #[error("{key:?} must be {expected}")]
    Type {
        /// The key, or what stands for it.
        key: String,
        /// With article.
        expected: &'static str,
    },
}

/// A JSON value whose objects have no key twice.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool,
    Number(serde_json::Number),
    Text(String),
    List(Vec<Value>),
    Object(Object),
}

/// An object from which keys are taken one by one, until none may be left.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Object(Vec<(String, Value)>);

/// Parses one value and nothing behind it. Nesting is bounded by the parser, at 128.
pub(crate) fn parse(bytes: &[u8]) -> Result<Value, JsonError> {
    serde_json::from_slice(bytes).map_err(|error| JsonError::Syntax(error.to_string()))
}

/// [`parse`] for a text that must be an object.
pub(crate) fn parse_object(bytes: &[u8]) -> Result<Object, JsonError> {
    parse(bytes)?.object("the document")
}

impl Value {
    pub(crate) fn object(self, key: &str) -> Result<Object, JsonError> {
        match self {
            Self::Object(object) => Ok(object),
            _ => Err(wrong(key, "an object")),
        }
    }

    pub(crate) fn list(self, key: &str) -> Result<Vec<Value>, JsonError> {
        match self {
            Self::List(list) => Ok(list),
            _ => Err(wrong(key, "a list")),
        }
    }

    pub(crate) fn text(self, key: &str) -> Result<String, JsonError> {
        match self {
            Self::Text(text) => Ok(text),
            _ => Err(wrong(key, "a string")),
        }
    }

    /// Base64 with padding; line ends are let pass. Source: Go's `[]byte` in JSON.
    pub(crate) fn bytes(self, key: &str) -> Result<Vec<u8>, JsonError> {
        decode_base64(&self.text(key)?).ok_or_else(|| wrong(key, "a string of base64"))
    }

    pub(crate) fn integer(self, key: &str) -> Result<i64, JsonError> {
        match self {
            Self::Number(number) => number.as_i64().ok_or_else(|| wrong(key, "an integer")),
            _ => Err(wrong(key, "an integer")),
        }
    }
}

pub(crate) fn decode_base64(text: &str) -> Option<Vec<u8>> {
    match text.contains(['\r', '\n']) {
        true => STANDARD.decode(text.replace(['\r', '\n'], "")).ok(),
        false => STANDARD.decode(text).ok(),
    }
}

impl Object {
    pub(crate) fn take(&mut self, key: &str) -> Option<Value> {
        let at = self.0.iter().position(|(found, _)| found == key)?;
        Some(self.0.swap_remove(at).1)
    }

    pub(crate) fn need(&mut self, key: &'static str) -> Result<Value, JsonError> {
        self.take(key).ok_or(JsonError::Missing(key))
    }

    pub(crate) fn take_text(&mut self, key: &str) -> Result<Option<String>, JsonError> {
        self.take(key).map(|value| value.text(key)).transpose()
    }

    pub(crate) fn take_bytes(&mut self, key: &str) -> Result<Option<Vec<u8>>, JsonError> {
        self.take(key).map(|value| value.bytes(key)).transpose()
    }

    /// What is left, in the order of the text.
    pub(crate) fn into_entries(self) -> Vec<(String, Value)> {
        self.0
    }

    /// Nothing may be left.
    pub(crate) fn finish(self) -> Result<(), JsonError> {
        match self.0.into_iter().next() {
            None => Ok(()),
            Some((key, _)) => Err(JsonError::UnknownKey(key.chars().take(100).collect())),
        }
    }
}

fn wrong(key: &str, expected: &'static str) -> JsonError {
    JsonError::Type { key: key.chars().take(100).collect(), expected }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Strict)
    }
}

struct Strict;

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Value, E> {
        Ok(Value::Bool)
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Value, E> {
        serde_json::Number::from_f64(number).map(Value::Number).ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Vec::new();
        let mut seen = std::collections::HashSet::new();
        while let Some((key, value)) = entries.next_entry::<String, Value>()? {
            if !seen.insert(key.clone()) {
                let key: String = key.chars().take(100).collect();
                return Err(de::Error::custom(format_args!("key {key:?} appears twice")));
            }
            object.push((key, value));
        }
        Ok(Value::Object(Object(object)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_there_once_or_not_at_all() {
        for (text, expected) in [
            (r#"{"a": 1, "b": {"c": [null, true, "x"]}}"#, true),
            (r#"{"a": 1, "a": 1}"#, false),
            (r#"{"b": {"c": 1, "c": 2}}"#, false),
            (r#"{"a": 1} x"#, false),
            (r#"{"a": 1,}"#, false),
            ("", false),
        ] {
            assert_eq!(parse(text.as_bytes()).is_ok(), expected, "{text}");
        }
        let deep = "[".repeat(1000) + &"]".repeat(1000);
        assert!(parse(deep.as_bytes()).is_err(), "depth is bounded");
    }

    #[test]
    fn an_object_must_be_used_up() {
        let mut object = parse_object(br#"{"a": "x", "b": "eA==\n", "c": 3}"#).expect("parses");
        assert_eq!(object.take_text("a"), Ok(Some("x".to_owned())));
        assert_eq!(object.take_bytes("b"), Ok(Some(b"x".to_vec())));
        assert_eq!(object.take_text("absent"), Ok(None));
        assert_eq!(object.clone().finish(), Err(JsonError::UnknownKey("c".to_owned())));
        assert_eq!(object.need("c").and_then(|value| value.integer("c")), Ok(3));
        assert_eq!(object.finish(), Ok(()));
    }
}
