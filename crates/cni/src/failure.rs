//! What a plugin says when it could not do what it was asked.

use std::fmt;

use thiserror::Error;

/// Error codes of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    IncompatibleVersion = 1,
    Environment = 4,
    InputOutput = 5,
    Decode = 6,
    InvalidConfig = 7,
    InvalidNamespace = 8,
    Internal = 999,
}

/// An error object. Source: CNI specification, "Error".
#[derive(Debug, Error)]
#[error("{message}")]
pub(crate) struct Failure {
    code: u32,
    message: String,
}

impl Failure {
    pub(crate) fn new(code: Code, message: impl fmt::Display) -> Self {
        Self { code: code as u32, message: message.to_string() }
    }

    /// Something the configuration says cannot be done.
    pub(crate) fn config(message: impl fmt::Display) -> Self {
        Self::new(Code::InvalidConfig, message)
    }

    /// What another plugin reported, with its code.
    pub(crate) fn reported(code: u32, message: String) -> Self {
        Self { code, message }
    }

    pub(crate) fn to_json(&self, version: &str) -> String {
        serde_json::json!({ "cniVersion": version, "code": self.code, "msg": self.message }).to_string()
    }
}

/// Says what was tried when something failed.
pub(crate) trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(Code::Internal, format!("{}: {error}", what())))
    }
}
