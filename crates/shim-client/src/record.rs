//! What is kept of a container between two commands: `<root>/crio/shims/<id>`, JSON.
//!
//! Written before anything is made of the container and removed last, so that whoever finds it finds everything that is
//! to be given back. It lies on a volatile file system with the shims' sockets: a reboot takes all of it.

use std::io;
use std::path::{Path, PathBuf};

use durable::Durability;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::address::{self, Address, Version};
use crate::process::Process;

/// The only form so far.
const FORMAT: u32 = 1;

/// Why a record cannot be had.
#[derive(Debug, Error)]
pub(crate) enum RecordError {
    #[error("{0:?} is no container id")]
    Id(String),
    #[error("{action} {path}")]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is damaged")]
    Damaged {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{path} is of form {format}, which a newer version wrote")]
    Newer { path: PathBuf, format: u32 },
}

/// A container of a shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    format: u32,
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    /// As the shim printed it; absent until it has.
    pub(crate) address: Option<String>,
    pub(crate) version: Version,
    /// The shim, where it said which process it is and that is true.
    pub(crate) shim: Option<Process>,
    /// The process that stands for the container on the node.
    pub(crate) stand_in: Option<Process>,
    /// The program's process by the shim's account.
    pub(crate) init_pid: Option<i32>,
}

fn directory(root: &Path) -> PathBuf {
    root.join("crio/shims")
}

fn path_of(root: &Path, id: &str) -> Result<PathBuf, RecordError> {
    // An id becomes part of paths.
    let is_id = !id.is_empty() && id.len() <= 128 && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if is_id { Ok(directory(root).join(id)) } else { Err(RecordError::Id(id.to_owned())) }
}

/// The directory of a container's fifos.
pub(crate) fn fifo_directory(root: &Path, id: &str) -> PathBuf {
    root.join("crio/fifo").join(id)
}

impl Record {
    /// A container of which nothing is made yet.
    pub(crate) fn new(id: &str, bundle: PathBuf) -> Self {
        Self {
            format: FORMAT,
            id: id.to_owned(),
            bundle,
            address: None,
            version: Version::V2,
            shim: None,
            stand_in: None,
            init_pid: None,
        }
    }

    pub(crate) fn load(root: &Path, id: &str) -> Result<Option<Self>, RecordError> {
        let path = path_of(root, id)?;
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RecordError::File { action: "read", path, source }),
        };
        let record: Self = match serde_json::from_slice(&bytes) {
            Ok(record) => record,
            Err(source) => return Err(RecordError::Damaged { path, source }),
        };
        if record.format > FORMAT { Err(RecordError::Newer { path, format: record.format }) } else { Ok(Some(record)) }
    }

    pub(crate) fn save(&self, root: &Path) -> Result<(), RecordError> {
        let path = path_of(root, &self.id)?;
        let failed = |source| RecordError::File { action: "write", path: path.clone(), source };
        std::fs::create_dir_all(directory(root)).map_err(failed)?;
        let bytes = serde_json::to_vec(self).map_err(|error| failed(error.into()))?;
        durable::replace(&path, &bytes, 0o600, Durability::Volatile).map_err(|error| failed(io::Error::other(error)))
    }

    pub(crate) fn remove(&self, root: &Path) -> Result<(), RecordError> {
        let path = path_of(root, &self.id)?;
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(RecordError::File { action: "remove", path, source })
            }
            _ => Ok(()),
        }
    }

    /// Where the shim listens. One that was cut off while it started has left its address in the bundle, as shims do.
    pub(crate) fn address(&self) -> Option<Address> {
        let left = || std::fs::read(self.bundle.join("address")).ok();
        let started = match &self.address {
            Some(address) => Address::parse(address).ok()?,
            None => Address::parse(&address::parse(&left()?).ok()?.address).ok()?,
        };
        Some(started)
    }

    /// Whether another container is kept by the same shim.
    pub(crate) fn has_company(&self, root: &Path) -> bool {
        let Some(address) = self.address() else { return false };
        let Ok(entries) = std::fs::read_dir(directory(root)) else { return false };
        let mut others = entries.flatten().filter_map(|entry| {
            let id = entry.file_name().into_string().ok().filter(|id| *id != self.id)?;
            Self::load(root, &id).ok().flatten()
        });
        others.any(|other| other.address().as_ref() == Some(&address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_and_knows_its_company() {
        let root = tempfile::tempdir().expect("a directory");
        let mut one = Record::new("aa", root.path().join("b"));
        assert_eq!(Record::load(root.path(), "aa").expect("loads"), None);
        one.address = Some("unix:///s".to_owned());
        one.shim = Some(Process { pid: 7, start_time: 8 });
        one.save(root.path()).expect("saves");
        assert_eq!(Record::load(root.path(), "aa").expect("loads"), Some(one.clone()));
        assert!(!one.has_company(root.path()));
        let other = Record { id: "bb".to_owned(), ..one.clone() };
        other.save(root.path()).expect("saves");
        assert!(one.has_company(root.path()));
        other.remove(root.path()).expect("removes");
        other.remove(root.path()).expect("is removed already");
        assert!(!one.has_company(root.path()));
    }

    #[test]
    fn what_is_no_id_or_of_another_time_is_refused() {
        let root = tempfile::tempdir().expect("a directory");
        for id in ["", "../x", "a/b", ".", "a b"] {
            assert!(matches!(Record::load(root.path(), id), Err(RecordError::Id(_))), "{id}");
        }
        let newer = Record { format: FORMAT + 1, ..Record::new("aa", "/b".into()) };
        newer.save(root.path()).expect("saves");
        assert!(matches!(Record::load(root.path(), "aa"), Err(RecordError::Newer { .. })));
        durable::replace(&root.path().join("crio/shims/aa"), b"{", 0o600, Durability::Volatile).expect("writes");
        assert!(matches!(Record::load(root.path(), "aa"), Err(RecordError::Damaged { .. })));
    }
}
