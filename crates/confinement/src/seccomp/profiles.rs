//! Which profile a container gets.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use domain::security::SecurityProfile;
use domain::spec::CapabilitySet;
use oci_spec::runtime::LinuxSeccomp;
use rustix::fs::{FileType, Mode, OFlags};
use sha2::{Digest as _, Sha256};

use super::built_in;
use super::host::{Availability, Host};
use super::parse::{PROFILE_MAX_BYTES, ParseProfileError};
use super::resolve::Profile;

/// Most resolved profiles that are kept. The built-in one has some 400 names and takes about 25 KiB; a node has one default profile with two or three
/// capability sets that matter, and a few profiles of its own.
const RESOLVED_MAX: usize = 8;

/// Files the configuration names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfiguredPaths {
    /// `seccomp_profile`: what RuntimeDefault means; absent for the built-in profile.
    pub default: Option<PathBuf>,
    /// `privileged_seccomp_profile`: for privileged containers; absent for none. Read when one is made.
    pub privileged: Option<PathBuf>,
}

/// Where the default profile comes from; worth a line in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DefaultOrigin {
    /// Nothing is configured.
    BuiltIn,
    /// The file that is configured.
    File(PathBuf),
    /// The built-in one, because the file that is configured does not exist.
    BuiltInForMissing(PathBuf),
    /// None, because this kernel has no seccomp.
    Unavailable,
}

/// Why the file of a profile could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ReadProfileError {
    /// There is none of that name.
    #[error("seccomp profile {path:?}: no such file or directory")]
    Absent {
        /// Where.
        path: PathBuf,
    },
    /// Not a regular file.
    #[error("seccomp profile {path:?} is not a regular file")]
    NotFile {
        /// Where.
        path: PathBuf,
    },
    /// The system refused.
    #[error("read seccomp profile {path:?}")]
    Read {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Why the configured profile could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadProfileError {
    /// The file could not be had.
    #[error(transparent)]
    Read(#[from] ReadProfileError),
    /// It is no profile.
    #[error("load seccomp profile {path:?}")]
    Parse {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: ParseProfileError,
    },
}

/// Why a container's profile could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ResolveProfileError {
    /// The file could not be had.
    #[error(transparent)]
    Read(#[from] ReadProfileError),
    /// It is no profile.
    #[error("load seccomp profile {path:?}")]
    Parse {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: ParseProfileError,
    },
    /// The name a request gave is relative, and a daemon has no directory that it would be relative to.
    #[error("seccomp profile {path:?}: no such file or directory, an absolute path is expected")]
    NotAbsolute {
        /// Where.
        path: PathBuf,
    },
    /// The bytes given are no profile.
    #[error("load seccomp profile")]
    ParseBytes(#[source] ParseProfileError),
    /// A profile was asked for by name and this kernel cannot apply one.
    #[error("seccomp profile {wanted} was asked for and the kernel has no seccomp")]
    Unavailable {
        /// What was asked for.
        wanted: String,
    },
}

/// What a resolved profile was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    BuiltIn,
    /// The sha256 of the file.
    Bytes([u8; 32]),
}

#[derive(Debug)]
struct Resolved {
    source: Source,
    /// Capabilities that make a difference to it.
    relevant: CapabilitySet,
    /// Those of them it was resolved for.
    capabilities: CapabilitySet,
    spec: Option<Arc<LinuxSeccomp>>,
}

#[derive(Debug)]
struct Configured {
    digest: [u8; 32],
    profile: Profile,
}

/// The node's profiles.
///
/// Cheap to share; a lock is held only while the few remembered results are looked through.
#[derive(Debug)]
pub struct Profiles {
    host: Host,
    origin: DefaultOrigin,
    /// The configured default; absent for the built-in one.
    default: Option<Configured>,
    privileged: Option<PathBuf>,
    /// Latest used last.
    resolved: Mutex<Vec<Resolved>>,
    /// A container went without.
    is_missed: AtomicBool,
    /// Somebody was told.
    is_warned: AtomicBool,
}

impl Profiles {
    /// Reads the configured default profile.
    ///
    /// One that does not exist makes place for the built-in one, which [`Profiles::default_origin`] tells; one that
    /// cannot be read or understood is an error. Source: CRI-O does this.
    pub fn load(paths: ConfiguredPaths) -> Result<Self, LoadProfileError> {
        Self::load_on(Host::detect(), paths)
    }

    /// [`Profiles::load`] for a machine that is already known.
    pub fn load_on(host: Host, paths: ConfiguredPaths) -> Result<Self, LoadProfileError> {
        let (origin, default) = match (host.availability, paths.default) {
            (Availability::Unavailable, _) => (DefaultOrigin::Unavailable, None),
            (Availability::Available, None) => (DefaultOrigin::BuiltIn, None),
            (Availability::Available, Some(path)) => match read(&path) {
                Ok(bytes) => {
                    let profile = Profile::parse(&bytes, &host)
                        .map_err(|source| LoadProfileError::Parse { path: path.clone(), source })?;
                    (DefaultOrigin::File(path), Some(Configured { digest: digest(&bytes), profile }))
                }
                Err(ReadProfileError::Absent { path }) => (DefaultOrigin::BuiltInForMissing(path), None),
                Err(other) => return Err(other.into()),
            },
        };
        let resolved = Mutex::new(Vec::with_capacity(RESOLVED_MAX));
        Ok(Self {
            host,
            origin,
            default,
            privileged: paths.privileged,
            resolved,
            is_missed: AtomicBool::new(false),
            is_warned: AtomicBool::new(false),
        })
    }

    /// Where the default profile came from.
    #[must_use]
    pub fn default_origin(&self) -> &DefaultOrigin {
        &self.origin
    }

    /// Whether this kernel can apply profiles.
    #[must_use]
    pub fn availability(&self) -> Availability {
        self.host.availability
    }

    /// Says once, to whoever asks first, that a container was meant to have a profile and the kernel cannot apply it.
    #[must_use]
    pub fn take_unavailable_warning(&self) -> bool {
        self.is_missed.load(Ordering::Relaxed) && !self.is_warned.swap(true, Ordering::Relaxed)
    }

    /// The profile for a container or sandbox; `None` for no filter.
    ///
    /// `capabilities` is the container's bounding set. `handler_profile` is the runtime handler's `seccomp_profile`,
    /// read anew each time. Privileged: `privileged_seccomp_profile` or none, whatever was chosen. Nothing chosen is
    /// unconfined, as in CRI-O. Where the kernel has no seccomp, only a profile asked for by path is an error.
    pub fn resolve(
        &self,
        choice: Option<&SecurityProfile>,
        is_privileged: bool,
        capabilities: CapabilitySet,
        handler_profile: Option<&Path>,
    ) -> Result<Option<Arc<LinuxSeccomp>>, ResolveProfileError> {
        let is_available = self.availability() == Availability::Available;
        let path = match (choice, is_privileged, handler_profile) {
            (_, true, _) => match &self.privileged {
                Some(path) if is_available => path.as_path(),
                Some(_) => return Ok(self.miss()),
                None => return Ok(None),
            },
            (None | Some(SecurityProfile::Unconfined), false, _) => return Ok(None),
            (Some(SecurityProfile::RuntimeDefault), false, _) if !is_available => return Ok(self.miss()),
            (Some(SecurityProfile::RuntimeDefault), false, None) => return Ok(self.resolve_default(capabilities)),
            (Some(SecurityProfile::RuntimeDefault), false, Some(path)) => path,
            (Some(SecurityProfile::Localhost(path)), false, _) if !Path::new(path).is_absolute() => {
                return Err(ResolveProfileError::NotAbsolute { path: path.into() });
            }
            (Some(SecurityProfile::Localhost(path)), false, _) => Path::new(path),
        };
        if !is_available {
            return Err(ResolveProfileError::Unavailable { wanted: format!("{path:?}") });
        }
        let bytes = read(path)?;
        let failed = |source| ResolveProfileError::Parse { path: path.to_owned(), source };
        self.resolve_parsed(&bytes, capabilities).map_err(failed)
    }

    /// The filter of a profile that somebody else read, such as one from a registry.
    pub fn resolve_bytes(
        &self,
        bytes: &[u8],
        capabilities: CapabilitySet,
    ) -> Result<Option<Arc<LinuxSeccomp>>, ResolveProfileError> {
        if self.availability() == Availability::Unavailable {
            return Err(ResolveProfileError::Unavailable { wanted: "of an artifact".to_owned() });
        }
        self.resolve_parsed(bytes, capabilities).map_err(ResolveProfileError::ParseBytes)
    }

    /// The text that CRI-O records in `io.kubernetes.cri-o.SeccompProfilePath` for such a choice.
    #[must_use]
    pub fn reference(&self, choice: Option<&SecurityProfile>, is_privileged: bool) -> String {
        let is_available = self.availability() == Availability::Available;
        match (choice, is_privileged) {
            (_, true) => match &self.privileged {
                Some(path) if is_available => path.to_string_lossy().into_owned(),
                _ => "Unconfined".to_owned(),
            },
            (None, false) if is_available => String::new(),
            (Some(SecurityProfile::RuntimeDefault), false) if is_available => "RuntimeDefault".to_owned(),
            (Some(SecurityProfile::Localhost(path)), false) if is_available => path.clone(),
            (None | Some(_), false) => "Unconfined".to_owned(),
        }
    }

    fn miss(&self) -> Option<Arc<LinuxSeccomp>> {
        self.is_missed.store(true, Ordering::Relaxed);
        None
    }

    fn resolve_default(&self, capabilities: CapabilitySet) -> Option<Arc<LinuxSeccomp>> {
        match &self.default {
            Some(Configured { digest, profile }) => self.remember(Source::Bytes(*digest), capabilities, || {
                (profile.relevant_capabilities(), profile.resolve(capabilities, &self.host))
            }),
            None => self.remember(Source::BuiltIn, capabilities, || {
                (built_in::relevant_capabilities(), Some(built_in::resolve(capabilities, &self.host)))
            }),
        }
    }

    fn resolve_parsed(
        &self,
        bytes: &[u8],
        capabilities: CapabilitySet,
    ) -> Result<Option<Arc<LinuxSeccomp>>, ParseProfileError> {
        let source = Source::Bytes(digest(bytes));
        if let Some(spec) = self.recall(source, capabilities) {
            return Ok(spec);
        }
        let profile = Profile::parse(bytes, &self.host)?;
        Ok(self.remember(source, capabilities, || {
            (profile.relevant_capabilities(), profile.resolve(capabilities, &self.host))
        }))
    }

    fn recall(&self, source: Source, capabilities: CapabilitySet) -> Option<Option<Arc<LinuxSeccomp>>> {
        let mut resolved = self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        let matches =
            |entry: &Resolved| entry.source == source && entry.capabilities == capabilities.and(entry.relevant);
        let position = resolved.iter().position(matches)?;
        let entry = resolved.remove(position);
        let spec = entry.spec.clone();
        resolved.push(entry);
        Some(spec)
    }

    fn remember(
        &self,
        source: Source,
        capabilities: CapabilitySet,
        resolve: impl FnOnce() -> (CapabilitySet, Option<LinuxSeccomp>),
    ) -> Option<Arc<LinuxSeccomp>> {
        if let Some(spec) = self.recall(source, capabilities) {
            return spec;
        }
        let (relevant, spec) = resolve();
        let spec = spec.map(Arc::new);
        let mut resolved = self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        if resolved.len() == RESOLVED_MAX {
            resolved.remove(0);
        }
        resolved.push(Resolved { source, relevant, capabilities: capabilities.and(relevant), spec: spec.clone() });
        spec
    }
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Reads a file that an administrator or a request named. Bounded, and never waits for a pipe's other end.
fn read(path: &Path) -> Result<Vec<u8>, ReadProfileError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => ReadProfileError::Absent { path: path.to_owned() },
        _ => ReadProfileError::Read { path: path.to_owned(), source },
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
    let kind = rustix::fs::fstat(&file).map_err(|errno| failed(errno.into()))?.st_mode;
    if FileType::from_raw_mode(kind) != FileType::RegularFile {
        return Err(ReadProfileError::NotFile { path: path.to_owned() });
    }
    let mut bytes = vec![];
    // One byte more than allowed is enough for the parser to refuse it.
    let limit = u64::try_from(PROFILE_MAX_BYTES + 1).unwrap_or(u64::MAX);
    std::fs::File::from(file).take(limit).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}
