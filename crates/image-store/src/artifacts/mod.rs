//! OCI artifacts: an OCI image layout in `<root>/artifacts`, shared with CRI-O and podman.
//!
//! `index.json` names manifests by `org.opencontainers.image.ref.name`; all bytes lie in `blobs/sha256`. Whoever changes
//! the index holds `index.lock`, as for all records of the field; nobody holds it while bytes come from a registry.
//!
//! Adding, and what the next open makes of a crash in each gap: bytes are verified and made durable in a staging
//! directory of the writer's own (removed); they get their second names below `blobs` (those of them that no manifest
//! of the index mentions are removed, known by being the same files); the index names the manifest (kept). Removing is
//! the same backwards: what is to go is linked into a staging directory before the index forgets it.
//! Source: containers/image `oci/layout`, containers/common `libartifact`.

mod index;
mod staging;

use std::collections::{BTreeMap, HashSet};
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use domain::artifact::ArtifactManifest;
use domain::digest::Digest;
use durable::Durability;
use durable::lock::LockFile;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use sys::locks::RecordLock;
use thiserror::Error;

use crate::error::PathError;
use crate::fault;
use crate::images::{read_regular, replace_error};
use crate::lock::SharedLock;
use crate::staging::remove_tree;
use index::Index;
pub use index::fuzz_index;
pub use staging::{ArtifactStaging, StageBlobError};
use staging::{NEW, STAGING_PREFIX, blobs_in};

const INDEX: &str = "index.json";
const LAYOUT: &str = "oci-layout";
const LOCK: &str = "index.lock";
const BLOBS: &str = "blobs/sha256";

/// Some ten thousand artifacts; far more than a node has.
const INDEX_MAX_BYTES: u64 = 16 << 20;
/// As much as is taken from a registry.
const MANIFEST_MAX_BYTES: u64 = 4 << 20;

/// Why artifacts cannot be listed, added or removed.
#[derive(Debug, Error)]
pub enum ArtifactError {
    /// A file or directory.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The index is damaged; nothing is changed then.
    #[error("read the index of artifacts {path}")]
    Index {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// What was to be recorded is not what it says.
    #[error("the manifest of an artifact has digest {actual}, not {expected}")]
    Digest {
        /// As given.
        expected: Digest,
        /// Of its bytes.
        actual: Digest,
    },
    /// The manifest cannot be read.
    #[error("artifact {digest}")]
    Manifest {
        /// Its digest.
        digest: Digest,
        /// Why.
        #[source]
        source: domain::artifact::ParseArtifactError,
    },
    /// The manifest mentions a blob that nobody staged.
    #[error("artifact {digest} without its blob {blob}")]
    NoBlob {
        /// Its digest.
        digest: Digest,
        /// The blob's.
        blob: Digest,
    },
    /// An additional store.
    #[error("artifacts in {path} are only read")]
    ReadOnly {
        /// The store.
        path: PathBuf,
    },
}

impl ArtifactError {
    /// Whether the disk is full.
    #[must_use]
    pub fn is_out_of_space(&self) -> bool {
        matches!(self, Self::Path(error) if is_full(&error.source))
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// An artifact of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredArtifact {
    /// Of its manifest.
    pub digest: Digest,
    /// As recorded; none once another manifest took the only one.
    pub names: Vec<String>,
    /// What it consists of.
    pub manifest: ArtifactManifest,
}

/// An artifact to record, after all its blobs are staged.
#[derive(Debug, Clone)]
pub struct NewArtifact {
    /// The name it gets; taken from whichever artifact has it.
    pub name: Option<String>,
    /// The manifest, byte for byte.
    pub manifest: Vec<u8>,
    /// Its digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
}

/// What is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forget<'a> {
    /// One name; the artifact goes with its last one.
    Name(&'a str),
    /// The artifact, with all names.
    Artifact(&'a Digest),
}

/// The artifacts beneath one directory. All calls block, and see what other tools changed in between.
#[derive(Debug)]
pub struct ArtifactStore {
    root: PathBuf,
    /// None in an additional store, whose lock file may not be ours to open.
    lock: Option<Mutex<SharedLock>>,
}

impl ArtifactStore {
    /// Opens the store in `root`, making what is absent, and removes what a crash left.
    pub fn open(root: PathBuf) -> Result<Self, ArtifactError> {
        DirBuilder::new().recursive(true).mode(0o700).create(&root).map_err(PathError::new("make directory", &root))?;
        let lock_path = root.join(LOCK);
        let lock = SharedLock::open(&lock_path).map_err(PathError::new("open", lock_path))?;
        let store = Self { root, lock: Some(Mutex::new(lock)) };
        if let Err(error) = store.sweep() {
            tracing::warn!(root = %store.root.display(), %error, "leftovers of artifacts stay until the next start");
        }
        Ok(store)
    }

    /// A store that somebody else fills and that is never written to. It may be absent, or come later.
    #[must_use]
    pub fn read_only(root: PathBuf) -> Self {
        Self { root, lock: None }
    }

    /// Where it is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Every artifact. One whose manifest cannot be read is left out, with a warning.
    pub fn list(&self) -> Result<Vec<StoredArtifact>, ArtifactError> {
        let index = self.with_lock(RecordLock::Shared, || self.read_index())?;
        let mut found: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
        for entry in index.entries() {
            found.entry(entry.digest).or_default().extend(entry.name);
        }
        let read = |(digest, names): (Digest, Vec<String>)| match self.read_manifest(&digest) {
            Ok(manifest) => Some(StoredArtifact { digest, names, manifest }),
            Err(error) => {
                tracing::warn!(artifact = %digest, root = %self.root.display(), %error, "leaving out an artifact that cannot be read");
                None
            }
        };
        Ok(found.into_iter().filter_map(read).collect())
    }

    /// Where the bytes of a blob are: a regular file of this size, or an error.
    pub fn blob(&self, digest: &Digest, size: u64) -> Result<PathBuf, PathError> {
        let path = self.blob_path(digest);
        let data = std::fs::symlink_metadata(&path).map_err(PathError::new("look at", &path))?;
        if !data.is_file() || data.len() != size {
            let error = io::Error::new(io::ErrorKind::InvalidData, format!("not a file of {size} bytes"));
            return Err(PathError::new("use", path)(error));
        }
        Ok(path)
    }

    /// All bytes of a blob, verified. At most `limit` of them.
    pub fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, PathError> {
        let path = self.blob_path(digest);
        let failed = |kind, text: &str| PathError::new("read", &path)(io::Error::new(kind, text.to_owned()));
        let bytes = read_regular(&path, limit).map_err(PathError::new("read", &path))?;
        let bytes = bytes.ok_or_else(|| failed(io::ErrorKind::FileTooLarge, &format!("more than {limit} bytes")))?;
        if digest_of(&bytes) == *digest { Ok(bytes) } else { Err(failed(io::ErrorKind::InvalidData, "damaged")) }
    }

    /// Begins to add an artifact.
    pub fn stage(&self) -> Result<ArtifactStaging, ArtifactError> {
        if self.lock.is_none() {
            return Err(ArtifactError::ReadOnly { path: self.root.clone() });
        }
        Ok(ArtifactStaging::make(&self.root)?)
    }

    /// Records an artifact whose configuration and blobs are staged. After this returns it survives a loss of power.
    pub fn commit(&self, staging: &ArtifactStaging, new: &NewArtifact) -> Result<(), ArtifactError> {
        let actual = digest_of(&new.manifest);
        if actual != new.digest {
            return Err(ArtifactError::Digest { expected: new.digest.clone(), actual });
        }
        let parsed = ArtifactManifest::parse(&new.manifest)
            .map_err(|source| ArtifactError::Manifest { digest: new.digest.clone(), source })?;
        for blob in blobs_of(&parsed) {
            if !staging.has(blob) {
                return Err(ArtifactError::NoBlob { digest: new.digest.clone(), blob: blob.clone() });
            }
        }
        staging.write(&new.digest, &new.manifest)?;
        staging.sync()?;
        self.with_lock(RecordLock::Exclusive, || {
            let blobs = self.root.join(BLOBS);
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(&blobs)
                .map_err(PathError::new("make directory", &blobs))?;
            staging.link_into(&blobs)?;
            sync_dir(&blobs)?;
            let layout = self.root.join(LAYOUT);
            if !layout.exists() {
                durable::replace(&layout, br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644, Durability::Durable)
                    .map_err(replace_error(&layout))?;
            }
            let mut index = self.read_index()?;
            index.put(new);
            self.write_index(&index)
        })
    }

    /// Forgets a name or an artifact, and deletes the blobs nothing mentions any more. `false` if there was none.
    pub fn remove(&self, what: Forget<'_>) -> Result<bool, ArtifactError> {
        if self.lock.is_none() {
            return Err(ArtifactError::ReadOnly { path: self.root.clone() });
        }
        self.with_lock(RecordLock::Exclusive, || {
            let mut index = self.read_index()?;
            let gone = index.forget(what);
            if gone.is_empty() {
                return Ok(false);
            }
            let doomed = self.unmentioned(&gone, &index);
            let staging = ArtifactStaging::make(&self.root)?;
            for digest in &doomed {
                staging.adopt(&self.blob_path(digest), digest)?;
            }
            staging.sync()?;
            self.write_index(&index)?;
            for digest in &doomed {
                let path = self.blob_path(digest);
                fault::step("remove blob").map_err(PathError::new("remove", &path))?;
                match std::fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(PathError::new("remove", path)(error).into());
                    }
                    _ => {}
                }
            }
            Ok(true)
        })
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join(BLOBS).join(digest.hex())
    }

    fn read_manifest(&self, digest: &Digest) -> Result<ArtifactManifest, ArtifactError> {
        let bytes = self.read_blob(digest, MANIFEST_MAX_BYTES)?;
        ArtifactManifest::parse(&bytes).map_err(|source| ArtifactError::Manifest { digest: digest.clone(), source })
    }

    /// Runs `work` under the lock, which other tools and our own threads respect.
    fn with_lock<T>(
        &self,
        kind: RecordLock,
        work: impl FnOnce() -> Result<T, ArtifactError>,
    ) -> Result<T, ArtifactError> {
        let Some(lock) = &self.lock else { return work() };
        let lock: MutexGuard<'_, SharedLock> = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let held = lock.hold(kind).map_err(PathError::new("lock", lock.path()))?;
        if matches!(kind, RecordLock::Exclusive) {
            held.write_stamp().map_err(PathError::new("stamp", lock.path()))?;
        }
        work()
    }

    fn read_index(&self) -> Result<Index, ArtifactError> {
        let path = self.root.join(INDEX);
        let bytes = match read_regular(&path, INDEX_MAX_BYTES) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Err(PathError::new("read", path)(io::Error::from(io::ErrorKind::FileTooLarge)).into()),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(Index::default());
            }
            Err(error) => return Err(PathError::new("read", path)(error).into()),
        };
        serde_json::from_slice(&bytes).map(Index).map_err(|source| ArtifactError::Index { path, source })
    }

    fn write_index(&self, index: &Index) -> Result<(), ArtifactError> {
        let path = self.root.join(INDEX);
        fault::step("replace index").map_err(PathError::new("write", &path))?;
        let text = Value::Object(index.0.clone()).to_string();
        durable::replace(&path, text.as_bytes(), 0o644, Durability::Durable).map_err(replace_error(&path))?;
        Ok(())
    }

    /// Those blobs of manifests that are gone which no manifest of the index mentions. None if that cannot be known.
    fn unmentioned(&self, gone: &[Digest], index: &Index) -> Vec<Digest> {
        let Some(mentioned) = self.mentioned(index) else { return Vec::new() };
        let mut doomed: Vec<Digest> = Vec::new();
        for digest in gone {
            let parsed = self.read_manifest(digest).ok();
            let blobs = parsed.iter().flat_map(blobs_of);
            for blob in blobs.chain([digest]) {
                if !mentioned.contains(blob) && !doomed.contains(blob) {
                    doomed.push(blob.clone());
                }
            }
        }
        doomed
    }

    /// Everything the index leads to; `None` if a manifest cannot be read.
    fn mentioned(&self, index: &Index) -> Option<HashSet<Digest>> {
        let mut mentioned = HashSet::new();
        for entry in index.entries() {
            let manifest = self
                .read_manifest(&entry.digest)
                .inspect_err(|error| tracing::warn!(artifact = %entry.digest, %error, "blobs of artifacts stay: a manifest cannot be read"))
                .ok()?;
            mentioned.extend(blobs_of(&manifest).cloned());
            mentioned.insert(entry.digest);
        }
        Some(mentioned)
    }

    /// Removes what others, who are dead, were adding or removing.
    fn sweep(&self) -> Result<(), ArtifactError> {
        let entries = std::fs::read_dir(&self.root).map_err(PathError::new("list", &self.root))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let left: Vec<PathBuf> =
            names.filter(|name| name.starts_with(STAGING_PREFIX)).map(|name| self.root.join(name)).collect();
        for directory in left {
            let lock = match LockFile::try_lock(&directory.join(staging::LOCK)) {
                Ok(Some(lock)) => lock,
                // At work.
                Ok(None) => continue,
                Err(error) => return Err(PathError::new("lock", directory)(error).into()),
            };
            self.with_lock(RecordLock::Exclusive, || {
                let Some(mentioned) = self.mentioned(&self.read_index()?) else { return Ok(()) };
                for (digest, path) in blobs_in(&directory.join(NEW)) {
                    let named = self.blob_path(&digest);
                    if !mentioned.contains(&digest) && is_same_file(&path, &named) {
                        std::fs::remove_file(&named).map_err(PathError::new("remove", &named))?;
                    }
                }
                Ok(())
            })?;
            remove_tree(&directory)?;
            drop(lock);
        }
        Ok(())
    }
}

fn blobs_of(manifest: &ArtifactManifest) -> impl Iterator<Item = &Digest> {
    manifest.blobs.iter().map(|blob| &blob.digest).chain([&manifest.config])
}

fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(&Sha256::digest(bytes).into())
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| std::fs::symlink_metadata(path).map(|data| (data.dev(), data.ino())).ok();
    identity(one).is_some_and(|found| identity(other) == Some(found))
}

fn sync_dir(path: &Path) -> Result<(), PathError> {
    fault::step("sync directory").map_err(PathError::new("sync", path))?;
    File::open(path).and_then(|directory| directory.sync_all()).map_err(PathError::new("sync", path))
}
