//! Which policy is in force, and bounded reading of the files that policies name.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::policy::{ParsePolicyError, Policy};

/// Largest policy: sixteen times what a thousand repositories with keys of their own take.
const POLICY_MAX_BYTES: usize = 16 << 20;
/// The policy of the machine. Source: containers-policy.json(5).
const SYSTEM_POLICY: &str = "/etc/containers/policy.json";

/// Why a policy, a key or a certificate could not be had from the file system.
#[derive(Debug, Error)]
pub enum FileError {
    /// There is no policy at all. Nothing is allowed then: that is for the operator to say.
    #[error(
        "no policy.json file found at any of the following: {}",
        looked.iter().map(|path| format!("{path:?}")).collect::<Vec<_>>().join(", ")
    )]
    NoPolicy {
        /// Where it was looked for.
        looked: Vec<PathBuf>,
    },
    /// A namespace that cannot be part of a file's name.
    #[error("namespace {namespace:?} cannot have a policy of its own")]
    Namespace {
        /// As the pod has it.
        namespace: String,
    },
    /// The file system.
    #[error("read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        #[source]
        /// The system's answer.
        source: io::Error,
    },
    /// Larger than anything sensible.
    #[error("{path} is larger than {limit} bytes")]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// In bytes.
        limit: usize,
    },
    /// The policy is damaged.
    #[error("invalid policy in {path:?}")]
    Policy {
        /// Which.
        path: PathBuf,
        #[source]
        /// What is wrong.
        source: ParsePolicyError,
    },
}

/// A regular file of at most `limit` bytes.
pub(crate) fn read_bounded(path: &Path, limit: usize) -> Result<Vec<u8>, FileError> {
    let failed = |source| FileError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > limit {
        return Err(FileError::TooLarge { path: path.to_owned(), limit });
    }
    Ok(bytes)
}

/// Where policies are. Source: CRI-O's `signature_policy` and `signature_policy_dir`, containers-policy.json(5).
#[derive(Debug, Clone)]
pub struct PolicyPaths {
    configured: Option<PathBuf>,
    namespaces: PathBuf,
    standard: Vec<PathBuf>,
}

impl PolicyPaths {
    /// `configured` is `signature_policy`, `namespaces` is `signature_policy_dir`, `home` the daemon's home directory,
    /// whose `.config/containers/policy.json` comes before the machine's.
    #[must_use]
    pub fn new(configured: Option<PathBuf>, namespaces: PathBuf, home: Option<&Path>) -> Self {
        let of_home = home.map(|home| home.join(".config/containers/policy.json"));
        Self { configured, namespaces, standard: of_home.into_iter().chain([SYSTEM_POLICY.into()]).collect() }
    }

    /// The file in force for a namespace, which may be empty.
    pub fn find(&self, namespace: &str) -> Result<PathBuf, FileError> {
        if let Some(path) = self.find_configured(namespace)? {
            return Ok(path);
        }
        let found = self.standard.iter().find(|path| path.exists());
        found.cloned().ok_or_else(|| FileError::NoPolicy { looked: self.standard.clone() })
    }

    /// The file in force for a namespace, if the configuration names it: for all namespaces, or for this one.
    pub fn find_configured(&self, namespace: &str) -> Result<Option<PathBuf>, FileError> {
        Ok(self.find_namespaced(namespace)?.or_else(|| self.configured.clone()))
    }

    fn find_namespaced(&self, namespace: &str) -> Result<Option<PathBuf>, FileError> {
        if namespace.is_empty() {
            return Ok(None);
        }
        if namespace.contains(['/', '\0']) {
            return Err(FileError::Namespace { namespace: namespace.to_owned() });
        }
        let path = self.namespaces.join(format!("{namespace}.json"));
        match path.metadata() {
            Ok(_) => Ok(Some(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // Whoever cannot see whether there is a policy must not go on without it.
            Err(source) => Err(FileError::Read { path, source }),
        }
    }
}

impl Policy {
    /// Reads and parses a policy (blocking).
    pub fn load(path: &Path) -> Result<Self, FileError> {
        let bytes = read_bounded(path, POLICY_MAX_BYTES)?;
        Self::parse(&bytes).map_err(|source| FileError::Policy { path: path.to_owned(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_namespace_comes_first_then_the_configuration_then_the_machine() {
        let root = tempfile::tempdir().expect("makes a directory");
        let (directory, home) = (root.path().join("policies"), root.path().join("home"));
        std::fs::create_dir_all(&directory).expect("makes a directory");
        std::fs::create_dir_all(home.join(".config/containers")).expect("makes a directory");
        File::create(directory.join("secure.json")).expect("makes a file");
        File::create(home.join(".config/containers/policy.json")).expect("makes a file");
        let configured = PathBuf::from("/configured.json");
        let with = PolicyPaths::new(Some(configured.clone()), directory.clone(), Some(&home));
        let without = PolicyPaths::new(None, directory.clone(), Some(&home));
        let of_home = home.join(".config/containers/policy.json");
        for (paths, namespace, expected, is_configured) in [
            (&with, "secure", directory.join("secure.json"), true),
            (&with, "other", configured.clone(), true),
            (&with, "", configured.clone(), true),
            (&without, "secure", directory.join("secure.json"), true),
            (&without, "other", of_home.clone(), false),
        ] {
            let found = paths.find_configured(namespace).expect("can be looked for");
            assert_eq!(found, is_configured.then(|| expected.clone()), "{namespace:?}");
            assert_eq!(paths.find(namespace).expect("finds a policy"), expected, "{namespace:?}");
        }
        assert!(matches!(with.find("../secure"), Err(FileError::Namespace { .. })));
        let nowhere = PolicyPaths { configured: None, namespaces: directory, standard: vec!["/absent.json".into()] };
        assert!(matches!(nowhere.find("x"), Err(FileError::NoPolicy { .. })));
    }

    #[test]
    fn files_are_read_up_to_their_bound() {
        let root = tempfile::tempdir().expect("makes a directory");
        let path = root.path().join("file");
        std::io::Write::write_all(&mut File::create(&path).expect("makes a file"), b"12345").expect("writes");
        assert_eq!(read_bounded(&path, 5).expect("reads"), b"12345");
        assert!(matches!(read_bounded(&path, 4), Err(FileError::TooLarge { .. })));
    }
}
