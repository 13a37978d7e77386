//! Reading the files a configuration is made of, without judging them.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::cli::Overrides;
use crate::problem::SourceFile;

/// The main file when no flag names one.
pub const DEFAULT_CONFIG_FILE: &str = "/etc/crio/crio.conf";

/// The drop-in directory when no flag names one.
pub const DEFAULT_DROP_IN_DIR: &str = "/etc/crio/crio.conf.d";

/// Largest configuration file read. The full template has 30 KiB; a larger file than this is not a configuration.
pub const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Most drop-in files read, to end on a directory that was named by mistake (such as `/`).
pub const MAX_DROP_INS: usize = 1000;

/// `/dev/null`: major 1, minor 3. Source: the kernel's devices.txt.
const NULL_DEVICE: u64 = 0x0103;

/// Deepest nesting of drop-in directories, for the same reason.
const MAX_DEPTH: usize = 16;

/// The main file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MainFile {
    /// Read if it exists.
    IfPresent(PathBuf),
    /// Must exist, because somebody named it.
    Required(PathBuf),
    /// Not read.
    Skip,
}

/// Where `storage.conf` is looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorageConf {
    /// The system's files beneath a root directory (`/` except in tests).
    System {
        /// The directory that holds `etc` and `usr`.
        root: PathBuf,
    },
    /// This file alone (`$CONTAINERS_STORAGE_CONF`).
    Only(PathBuf),
    /// Not read.
    Skip,
}

/// Which files to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locations {
    /// The main file.
    pub config: MainFile,
    /// The drop-in directory; None: none.
    pub drop_ins: Option<PathBuf>,
    /// `storage.conf`.
    pub storage: StorageConf,
    /// `$STORAGE_DRIVER`.
    pub storage_driver: Option<String>,
    /// `$STORAGE_OPTS`.
    pub storage_options: Option<String>,
    /// The kernel's file that is there where SELinux is; None: it is not asked for.
    pub selinux: Option<PathBuf>,
}

impl Default for Locations {
    fn default() -> Self {
        Self {
            config: MainFile::IfPresent(DEFAULT_CONFIG_FILE.into()),
            drop_ins: Some(DEFAULT_DROP_IN_DIR.into()),
            storage: StorageConf::System { root: "/".into() },
            storage_driver: None,
            storage_options: None,
            selinux: Some("/sys/fs/selinux/enforce".into()),
        }
    }
}

/// Everything a configuration is made from, as bytes. Order is precedence: later ones win.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sources {
    /// `storage.conf` and its drop-ins.
    pub storage: Vec<SourceFile>,
    /// `$STORAGE_DRIVER`.
    pub storage_driver: Option<String>,
    /// `$STORAGE_OPTS`.
    pub storage_options: Option<String>,
    /// `crio.conf` and its drop-ins.
    pub files: Vec<SourceFile>,
    /// This host has SELinux: labels are then on unless a key says otherwise. Source: CRI-O does this.
    pub has_selinux: bool,
    /// Flags and environment. A reload leaves them empty: SIGHUP re-reads files only.
    pub overrides: Overrides,
}

/// Why the files of a configuration could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadSourcesError {
    /// A file exists but cannot be read, or a required one does not exist.
    #[error("read configuration file {}", path.display())]
    ReadFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory cannot be listed.
    #[error("list configuration directory {}", path.display())]
    ListDirectory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A name leads to something that cannot hold a configuration.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// The name.
        path: PathBuf,
    },
    /// A file is larger than [`MAX_FILE_BYTES`].
    #[error("configuration file {} is larger than {MAX_FILE_BYTES} bytes", path.display())]
    FileTooLarge {
        /// The file.
        path: PathBuf,
    },
    /// More files than [`MAX_DROP_INS`], or directories nested too deeply.
    #[error("too many files or levels beneath configuration directory {}", path.display())]
    TooManyFiles {
        /// The directory.
        path: PathBuf,
    },
}

impl Sources {
    /// Reads the files that exist, drop-ins recursively in lexical order, whatever their suffix.
    ///
    /// Errors: `ReadFile` if a required file is missing or any file cannot be read; `NotAFile`, `FileTooLarge`,
    /// `TooManyFiles` if a directory holds something else than configuration.
    /// Source: CRI-O reads its configuration in this order.
    pub fn read(locations: &Locations) -> Result<Self, ReadSourcesError> {
        let mut files = Vec::new();
        match &locations.config {
            MainFile::Skip => {}
            MainFile::Required(path) => files.push(read_file(path)?),
            MainFile::IfPresent(path) => files.extend(if_present(read_file(path))?),
        }
        if let Some(dir) = &locations.drop_ins {
            let mut paths = Vec::new();
            match dir.metadata() {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(ReadSourcesError::ListDirectory { path: dir.clone(), source }),
                Ok(_) => walk(dir, dir, 0, &mut paths)?,
            }
            for path in &paths {
                files.push(read_file(path)?);
            }
        }
        Ok(Self {
            storage: read_storage(&locations.storage)?,
            storage_driver: locations.storage_driver.clone(),
            storage_options: locations.storage_options.clone(),
            files,
            has_selinux: locations.selinux.as_ref().is_some_and(|path| path.exists()),
            overrides: Overrides::default(),
        })
    }
}

/// `/etc/containers/storage.conf` or else the vendor's, then drop-ins: the vendor's before the administrator's.
///
/// Source: containers-storage.conf(5).
fn read_storage(storage: &StorageConf) -> Result<Vec<SourceFile>, ReadSourcesError> {
    let root = match storage {
        StorageConf::Skip => return Ok(Vec::new()),
        StorageConf::Only(path) => return Ok(vec![read_file(path)?]),
        StorageConf::System { root } => root,
    };
    let (etc, usr) = (root.join("etc/containers"), root.join("usr/share/containers"));
    let mut files = Vec::new();
    match if_present(read_file(&etc.join("storage.conf")))? {
        Some(file) => files.push(file),
        None => files.extend(if_present(read_file(&usr.join("storage.conf")))?),
    }
    for base in [usr, etc] {
        for name in ["storage.conf.d", "storage.rootful.conf.d"] {
            let dir = base.join(name);
            for path in list(&dir)? {
                if path.extension() == Some(OsStr::new("conf")) {
                    files.push(read_file(&path)?);
                }
            }
        }
    }
    Ok(files)
}

/// The entries of a directory in lexical order; none if it does not exist.
fn list(dir: &Path) -> Result<Vec<PathBuf>, ReadSourcesError> {
    let failed = |source| ReadSourcesError::ListDirectory { path: dir.to_owned(), source };
    let entries = match dir.read_dir() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(failed)?.path());
        if paths.len() > MAX_DROP_INS {
            return Err(ReadSourcesError::TooManyFiles { path: dir.to_owned() });
        }
    }
    // Within one directory the order of paths is that of names, byte by byte.
    paths.sort_by(|a, b| a.file_name().cmp(&b.file_name()));
    Ok(paths)
}

fn walk(top: &Path, dir: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), ReadSourcesError> {
    let too_many = || ReadSourcesError::TooManyFiles { path: top.to_owned() };
    if depth > MAX_DEPTH {
        return Err(too_many());
    }
    for path in list(dir)? {
        let kind = path
            .symlink_metadata()
            .map_err(|source| ReadSourcesError::ReadFile { path: path.clone(), source })?
            .file_type();
        if kind.is_dir() {
            walk(top, &path, depth + 1, found)?;
        } else {
            found.push(path);
        }
        if found.len() > MAX_DROP_INS {
            return Err(too_many());
        }
    }
    Ok(())
}

fn read_file(path: &Path) -> Result<SourceFile, ReadSourcesError> {
    let failed = |source| ReadSourcesError::ReadFile { path: path.to_owned(), source };
    // Asked first, because opening a FIFO would wait for a writer.
    let metadata = path.metadata().map_err(failed)?;
    if !metadata.is_file() && !is_null_device(&metadata) {
        return Err(ReadSourcesError::NotAFile { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_FILE_BYTES {
        return Err(ReadSourcesError::FileTooLarge { path: path.to_owned() });
    }
    Ok(SourceFile { path: path.to_owned(), bytes })
}

/// `/dev/null` is how scripts say that there is to be no configuration.
fn is_null_device(metadata: &Metadata) -> bool {
    metadata.file_type().is_char_device() && metadata.rdev() == NULL_DEVICE
}

fn if_present(result: Result<SourceFile, ReadSourcesError>) -> Result<Option<SourceFile>, ReadSourcesError> {
    match result {
        Ok(file) => Ok(Some(file)),
        Err(ReadSourcesError::ReadFile { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}
