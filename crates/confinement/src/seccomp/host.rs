//! The machine as profiles see it.

use std::path::Path;

/// Exists exactly where the kernel was built with `CONFIG_SECCOMP_FILTER` and sysctls. Since Linux 4.14; seccomp(2).
const ACTIONS: &str = "/proc/sys/kernel/seccomp/actions_avail";

/// Whether the kernel can filter system calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// It can.
    Available,
    /// It was built without.
    Unavailable,
}

/// Major and minor number of a kernel release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion {
    /// Of `6.18.44`, the 6.
    pub major: u32,
    /// Of `6.18.44`, the 18.
    pub minor: u32,
}

impl KernelVersion {
    /// Takes what comes before the second dot, and of the second number the leading digits (`6.1-rc2` is 6.1).
    #[must_use]
    pub fn of_release(text: &str) -> Option<Self> {
        let (major, rest) = text.split_once('.')?;
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        Some(Self { major: parse(major)?, minor: parse(&rest[..digits])? })
    }

    /// Takes `MAJOR.MINOR` and nothing else, as a profile's `minKernel` is written.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        Some(Self { major: parse(major)?, minor: parse(minor)? })
    }
}

fn parse(digits: &str) -> Option<u32> {
    // u32's own parser takes a plus sign.
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// What rules of a profile may depend on besides capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// The machine's architecture in the profiles' words (`amd64`, `arm64`, `ppc64le`), which are those of Go and,
    /// where Go has none, of libseccomp.
    pub architecture: &'static str,
    /// The running kernel.
    pub kernel: KernelVersion,
    /// Whether it has seccomp.
    pub availability: Availability,
}

impl Host {
    /// Looks at this machine.
    #[must_use]
    pub fn detect() -> Self {
        let release = rustix::system::uname();
        // A release that is not a number makes every minKernel rule apply, as it does for readers without that key.
        let unknown = KernelVersion { major: u32::MAX, minor: u32::MAX };
        let kernel = release.release().to_str().ok().and_then(KernelVersion::of_release).unwrap_or(unknown);
        let availability =
            if Path::new(ACTIONS).exists() { Availability::Available } else { Availability::Unavailable };
        Self { architecture: architecture(), kernel, availability }
    }
}

const fn architecture() -> &'static str {
    if cfg!(target_arch = "x86_64") {
        "amd64"
    } else if cfg!(target_arch = "x86") {
        "x86"
    } else if cfg!(target_arch = "aarch64") {
        "arm64"
    } else if cfg!(target_arch = "arm") {
        "arm"
    } else if cfg!(all(target_arch = "powerpc64", target_endian = "little")) {
        "ppc64le"
    } else if cfg!(target_arch = "powerpc64") {
        "ppc64"
    } else if cfg!(target_arch = "s390x") {
        "s390x"
    } else if cfg!(target_arch = "riscv64") {
        "riscv64"
    } else if cfg!(target_arch = "loongarch64") {
        "loongarch64"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_and_minimum_versions_are_read() {
        let version = |major, minor| Some(KernelVersion { major, minor });
        for (release, expected) in [
            ("6.18.44-fc-v669", version(6, 18)),
            ("5.10", version(5, 10)),
            ("6.1-rc2", version(6, 1)),
            ("5.14.0-503.el9.x86_64", version(5, 14)),
            ("6.", None),
            ("6", None),
            ("+6.1", None),
            ("", None),
            ("99999999999.1", None),
        ] {
            assert_eq!(KernelVersion::of_release(release), expected, "{release}");
        }
        for (text, expected) in [("4.8", version(4, 8)), ("4", None), ("4.8.1", None), ("4.x", None), ("4.+8", None)] {
            assert_eq!(KernelVersion::parse(text), expected, "{text}");
        }
        assert!(version(5, 10) < version(5, 11) && version(5, 99) < version(6, 0));
    }

    #[test]
    fn this_machine_is_known() {
        let host = Host::detect();
        assert!(!host.architecture.is_empty());
        assert!(host.kernel.major >= 5 && host.kernel.major < u32::MAX);
    }
}
