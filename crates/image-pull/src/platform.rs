//! Which entry of an index suits a machine.

/// The machine an image is wanted for, in the words of the OCI image specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, `arm`, `ppc64le`, `s390x`, `riscv64`, ...
    pub architecture: String,
    /// `v7`, `v8`, ...; empty if the architecture alone says it.
    pub variant: String,
}

impl Platform {
    /// The machine this program was built for.
    #[must_use]
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "x86" => ("386", ""),
            "aarch64" => ("arm64", "v8"),
            // Rust's arm targets with hardware floating point start at version 7.
            "arm" => ("arm", "v7"),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", ""),
            other => (other, ""),
        };
        Self { os: std::env::consts::OS.to_owned(), architecture: architecture.to_owned(), variant: variant.to_owned() }
    }

    /// How well an entry suits: `None` not at all, else the smaller the better.
    ///
    /// Variants of arm run on every later one, so a v7 machine takes v7, then v6, then v5, then an entry without
    /// variant. An arm64 entry without variant is v8. Source: containers/image does this.
    #[must_use]
    pub fn rank(&self, os: &str, architecture: &str, variant: &str) -> Option<usize> {
        if self.os != os || self.architecture != architecture {
            return None;
        }
        self.variants().iter().position(|known| known == variant)
    }

    /// Acceptable variants, best first.
    fn variants(&self) -> Vec<String> {
        let level = self.variant.strip_prefix('v').and_then(|level| level.parse::<u8>().ok());
        let down_to = |lowest: u8| {
            let highest = level.unwrap_or(lowest);
            (lowest..=highest).rev().map(|level| format!("v{level}"))
        };
        match self.architecture.as_str() {
            "arm" if level.is_none() => ["", "v7", "v6", "v5"].map(str::to_owned).to_vec(),
            "arm" => down_to(5).chain([String::new()]).collect(),
            "arm64" => down_to(8).chain([String::new()]).collect(),
            // Micro-architecture levels: v1 is what an entry without variant means.
            "amd64" => down_to(2)
                .filter(|_| level.is_some_and(|level| level > 1))
                .chain([String::new(), "v1".to_owned()])
                .collect(),
            _ if self.variant.is_empty() => vec![String::new()],
            _ => vec![self.variant.clone(), String::new()],
        }
    }
}

impl Default for Platform {
    fn default() -> Self {
        Self::host()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_fall_back_downwards() {
        for (wanted, order) in [
            (("arm", "v7"), vec!["v7", "v6", "v5", ""]),
            (("arm", "v6"), vec!["v6", "v5", ""]),
            (("arm", ""), vec!["", "v7", "v6", "v5"]),
            (("arm64", "v8"), vec!["v8", ""]),
            (("arm64", ""), vec!["v8", ""]),
            (("arm64", "v9"), vec!["v9", "v8", ""]),
            (("amd64", ""), vec!["", "v1"]),
            (("amd64", "v3"), vec!["v3", "v2", "", "v1"]),
            (("s390x", ""), vec![""]),
        ] {
            let platform = Platform { os: "linux".into(), architecture: wanted.0.into(), variant: wanted.1.into() };
            assert_eq!(platform.variants(), order, "{wanted:?}");
            assert_eq!(platform.rank("linux", wanted.0, order[0]), Some(0));
            assert_eq!(platform.rank("windows", wanted.0, order[0]), None);
            assert_eq!(platform.rank("linux", "mips", ""), None);
        }
    }
}
