//! What can be wrong or odd with a configuration, and where it was said.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a value was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere: it is the built-in value, or follows from several.
    BuiltIn,
    /// In this file, at this line (1 is the first).
    File {
        /// The file.
        path: Arc<Path>,
        /// The line.
        line: usize,
    },
    /// By this flag, without dashes.
    Flag(String),
    /// By this environment variable.
    Environment(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("configuration"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Flag(name) => write!(f, "--{name}"),
            Self::Environment(name) => write!(f, "${name}"),
        }
    }
}

/// One reason why a configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub origin: Origin,
    /// Full name of the key, for example `crio.runtime.log_level`; empty if the file as a whole is meant.
    pub key: String,
    /// What.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.what)
    }
}

/// All the reasons why a configuration cannot be used. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors {
    problems: Vec<Problem>,
}

impl ConfigErrors {
    /// None if there is no problem.
    pub(crate) fn from_problems(problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self { problems }) }
    }
    /// The problems, in the order of the files and then of the keys.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.problems.len() == 1 { "" } else { "s" };
        write!(f, "{} problem{plural} in the configuration: ", self.problems.len())?;
        for (at, problem) in self.problems.iter().enumerate() {
            let separator = if at == 0 { "" } else { "; " };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

/// Something the operator should know, with which the daemon starts nevertheless.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Where.
    pub origin: Origin,
    /// Full name of the key.
    pub key: String,
    /// What.
    pub kind: WarningKind,
}

/// What a warning is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WarningKind {
    /// Nobody knows this key; it may be misspelt or of another version.
    UnknownKey,
    /// Nobody knows this table.
    UnknownTable,
    /// An old version knew this key.
    Obsolete,
    /// The key works, but there is a better one.
    Deprecated(&'static str),
    /// The key is known, but what it asks for does not exist yet.
    NotEffective,
    /// The handler cannot be used and is left out.
    HandlerDropped(String),
    /// The value is not used as it was given.
    Adjusted(String),
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: ", self.origin, self.key)?;
        match &self.kind {
            WarningKind::UnknownKey => f.write_str("unknown key ignored"),
            WarningKind::UnknownTable => f.write_str("unknown table ignored"),
            WarningKind::Obsolete => f.write_str("key of old versions ignored"),
            WarningKind::Deprecated(instead) => write!(f, "deprecated, {instead}"),
            WarningKind::NotEffective => f.write_str("accepted, but has no effect in this version"),
            WarningKind::HandlerDropped(why) => write!(f, "runtime handler left out: {why}"),
            WarningKind::Adjusted(how) => f.write_str(how),
        }
    }
}

/// A file's origin, from its path.
pub(crate) fn file_origin(path: &Arc<Path>, line: usize) -> Origin {
    Origin::File { path: Arc::clone(path), line }
}

/// A file and what it holds, as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Where it was read.
    pub path: PathBuf,
    /// Its content, not judged yet.
    pub bytes: Vec<u8>,
}
