//! The kernel's side: whether it has AppArmor, and which profiles are loaded.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use domain::apparmor::ApparmorName;
use thiserror::Error;

/// A line a profile; a node with everything a distribution has lists some hundred.
const PROFILES_MAX_BYTES: u64 = 4 << 20;
/// Directories of loaded profiles that are looked through for one.
const PROFILE_DIRECTORIES_MAX: usize = 1 << 14;
/// Where packages put the parser. The daemon's search path is the operator's, and may lack directories of root.
const PARSERS: [&str; 4] = [
    "/usr/sbin/apparmor_parser",
    "/sbin/apparmor_parser",
    "/usr/bin/apparmor_parser",
    "/usr/local/sbin/apparmor_parser",
];

/// Whether the kernel confines by AppArmor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// It does.
    Available,
    /// It does not, or its files are not mounted.
    Unavailable,
}

/// Where the machine keeps what AppArmor needs.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Whether the kernel has it.
    pub availability: Availability,
    /// The kernel's files.
    pub securityfs: PathBuf,
    /// `apparmor_parser`, if there is one.
    pub parser: Option<PathBuf>,
    /// What the parser includes from.
    pub policy: PathBuf,
}

impl Machine {
    /// Looks at this machine.
    #[must_use]
    pub fn detect() -> Self {
        let securityfs = PathBuf::from("/sys/kernel/security/apparmor");
        let is_enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled")
            .is_ok_and(|text| text.trim() == "Y")
            && securityfs.is_dir();
        Self {
            availability: if is_enabled { Availability::Available } else { Availability::Unavailable },
            securityfs,
            parser: PARSERS.iter().map(PathBuf::from).find(|path| path.is_file()),
            policy: "/etc/apparmor.d".into(),
        }
    }

    /// Whether a profile of exactly this name is loaded.
    pub(crate) fn is_loaded(&self, name: &ApparmorName) -> Result<bool, KernelError> {
        let path = self.securityfs.join("profiles");
        let failed = |source| KernelError { path: path.clone(), source };
        let mut bytes = Vec::new();
        let file = File::open(&path).map_err(failed)?;
        file.take(PROFILES_MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > PROFILES_MAX_BYTES {
            return Err(failed(io::Error::other("the list of profiles is longer than 4 MiB")));
        }
        Ok(loaded(&bytes).any(|loaded| loaded == name.as_str().as_bytes()))
    }

    /// The kernel's digest of the policy that is loaded under this name; `None` where it keeps none.
    pub(crate) fn digest(&self, name: &str) -> Option<String> {
        let prefix = format!("{name}.");
        let is_name = |directory: &Path| {
            fs::read_to_string(directory.join("name"))
                .is_ok_and(|text| text.strip_suffix('\n').unwrap_or(&text) == name)
        };
        let entries = fs::read_dir(self.securityfs.join("policy/profiles")).ok()?;
        let mut directories = entries
            .flatten()
            .take(PROFILE_DIRECTORIES_MAX)
            .filter(|entry| entry.file_name().to_str().is_some_and(|found| found.starts_with(&prefix)))
            .map(|entry| entry.path());
        let directory = directories.find(|directory| is_name(directory))?;
        // Linux 6.8 went from one to the other.
        let digest = ["sha256", "sha1"].iter().find_map(|kind| fs::read_to_string(directory.join(kind)).ok())?;
        Some(digest.trim().to_owned()).filter(|digest| !digest.is_empty())
    }
}

/// Why the kernel's list of profiles could not be had.
#[derive(Debug, Error)]
#[error("read the loaded AppArmor profiles from {path}")]
pub struct KernelError {
    /// Which file.
    pub path: PathBuf,
    #[source]
    /// The system's answer.
    pub source: io::Error,
}

/// The names in `profiles`: `NAME (MODE)` a line, where a name may have blanks and brackets of its own.
fn loaded(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(|byte| *byte == b'\n').filter_map(|line| {
        let line = line.strip_suffix(b")")?;
        let mode = line.windows(2).rposition(|pair| pair == b" (")?;
        Some(&line[..mode])
    })
}

/// Reads any bytes as the kernel's list; for the fuzzer.
pub fn fuzz_profiles(bytes: &[u8]) {
    for name in loaded(bytes) {
        assert!(!name.contains(&b'\n'), "a name ends with its line");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_profile_is_loaded_under_its_whole_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let machine = Machine {
            availability: Availability::Available,
            securityfs: directory.path().to_owned(),
            parser: None,
            policy: directory.path().to_owned(),
        };
        let name = |text: &str| ApparmorName::parse(text).expect("a name");
        assert!(machine.is_loaded(&name("a")).is_err(), "no list");
        let mut file = File::create(directory.path().join("profiles")).expect("a file");
        file.write_all(b"a (enforce)\na b (complain)\nx (y) (kill)\nbroken\n:n://p (unconfined)\n").expect("writes");
        for (text, expected) in [
            ("a", true),
            ("a b", true),
            ("x (y)", true),
            (":n://p", true),
            ("b", false),
            ("x", false),
            ("a (enforce)", false),
            ("broken", false),
            ("unconfined", false),
        ] {
            assert_eq!(machine.is_loaded(&name(text)).expect("reads"), expected, "{text}");
        }
    }

    #[test]
    fn the_digest_is_that_of_the_same_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let machine = Machine {
            availability: Availability::Available,
            securityfs: directory.path().to_owned(),
            parser: None,
            policy: directory.path().to_owned(),
        };
        assert_eq!(machine.digest("p"), None);
        let put = |path: &str, text: &str| {
            let path = directory.path().join("policy/profiles").join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            File::create(path).expect("a file").write_all(text.as_bytes()).expect("writes");
        };
        put("p.q.1/name", "p.q\n");
        put("p.q.1/sha1", "no\n");
        assert_eq!(machine.digest("p"), None);
        put("p.7/name", "p\n");
        assert_eq!(machine.digest("p"), None, "a kernel that keeps no digests");
        put("p.7/sha1", "06e5\n");
        assert_eq!(machine.digest("p").as_deref(), Some("06e5"));
    }
}
