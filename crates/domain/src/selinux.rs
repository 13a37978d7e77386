//! SELinux labels: of a sandbox, of its containers, of what they mount.
//!
//! Pure: the policy's defaults, what the pod says and a level nobody else has come in, labels go out. Whether the kernel
//! knows them is asked elsewhere. Source: CRI-O and the library it shares with podman, whose rules these are.
//! Begin reading at [`Policy::labels`].

use std::fmt;

use thiserror::Error;

use crate::security::SelinuxOptions;

/// Longest label; the kernel takes a page, but a label is part of mount options that share one.
const LABEL_MAX_BYTES: usize = 1024;
/// The type of a container that SELinux does not confine.
const SUPER_PRIVILEGED: &str = "spc_t";
/// What every category may use.
const SHARED_LEVEL: &str = "s0";
/// Categories of the multi-category policy: `c0` to `c1023`.
const CATEGORIES: u16 = 1024;

/// Why a text is no label.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is not an SELinux label")]
pub struct BadLabel {
    /// As given.
    pub text: String,
}

/// `user:role:type` or `user:role:type:level`.
///
/// It ends up between quotes among mount options, in files of the kernel and in the runtime spec: letters, digits and
/// `_ - .`, in the level `: ,` as well, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    user: String,
    role: String,
    kind: String,
    level: String,
}

impl Label {
    /// Checks a label.
    pub fn parse(text: &str) -> Result<Self, BadLabel> {
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        let label = Self { user: next(), role: next(), kind: next(), level: next() };
        if text.ends_with(':') { Err(BadLabel { text: text.to_owned() }) } else { label.checked() }
    }

    fn checked(self) -> Result<Self, BadLabel> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
        let is_good =
            [&self.user, &self.role, &self.kind].into_iter().all(|part| !part.is_empty() && part.bytes().all(is_plain))
                && self.level.bytes().all(|byte| is_plain(byte) || matches!(byte, b':' | b','))
                && self.to_string().len() <= LABEL_MAX_BYTES;
        if is_good { Ok(self) } else { Err(BadLabel { text: self.to_string() }) }
    }

    /// Its type.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Its level, empty without one: what must not be given to two pods.
    #[must_use]
    pub fn level(&self) -> &str {
        &self.level
    }

    /// The same for whoever has any category.
    #[must_use]
    pub fn shared(&self) -> Self {
        let level = if self.level.is_empty() { String::new() } else { SHARED_LEVEL.to_owned() };
        Self { level, ..self.clone() }
    }

    /// Whether a process of this label is not kept from anything, so that nothing needs to be labelled for it.
    #[must_use]
    pub fn is_super_privileged(&self) -> bool {
        self.kind == SUPER_PRIVILEGED
    }

    fn of_kind(&self, kind: &str) -> Self {
        Self { kind: kind.to_owned(), ..self.clone() }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.user, self.role, self.kind)?;
        if self.level.is_empty() { Ok(()) } else { write!(f, ":{}", self.level) }
    }
}

/// Why the policy's file of container labels cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PolicyError {
    /// A label is missing.
    #[error("it has no label {key:?}")]
    Missing {
        /// `process` or `file`.
        key: &'static str,
    },
    /// A label is none.
    #[error("label {key:?}")]
    Label {
        /// Its name.
        key: &'static str,
        #[source]
        /// What is wrong.
        source: BadLabel,
    },
}

/// What runs in a container, as far as the policy has a type of its own for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// Anything.
    Ordinary,
    /// An init system.
    Init,
}

/// Labels of the process and of what it mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// Of the process.
    pub process: Label,
    /// Of its root file system, shared memory and volumes.
    pub mount: Label,
}

/// The policy's labels for containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    process: Label,
    file: Label,
    init_kind: String,
    kvm_kind: String,
}

impl Policy {
    /// Reads `lxc_contexts`: `key = "label"` a line, `#` and `;` begin comments. Unknown keys are other programs'.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let find = |wanted: &'static str| -> Result<Option<Label>, PolicyError> {
            let lines = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
            let mut entries = lines.filter_map(|line| line.split_once('='));
            // The last one counts.
            let Some((_, value)) = entries.rfind(|(key, _)| key.trim() == wanted) else { return Ok(None) };
            let label = Label::parse(value.trim().trim_matches('"'));
            label.map(Some).map_err(|source| PolicyError::Label { key: wanted, source })
        };
        let process = find("process")?.ok_or(PolicyError::Missing { key: "process" })?;
        let file = find("file")?.ok_or(PolicyError::Missing { key: "file" })?;
        let kind = |label: Option<Label>| label.map_or_else(|| process.kind.clone(), |label| label.kind);
        let (init_kind, kvm_kind) = (kind(find("init_process")?), kind(find("kvm_process")?));
        Ok(Self { process, file, init_kind, kvm_kind })
    }

    /// Whether processes are kept apart by level.
    #[must_use]
    pub fn has_levels(&self) -> bool {
        !self.process.level.is_empty()
    }

    /// The level that privileged mounts of other tools have, given to no pod. Source: CRI-O's library.
    #[must_use]
    pub fn reserved_level() -> String {
        format!("s0:c{},c{}", CATEGORIES - 2, CATEGORIES - 1)
    }

    /// A level of two categories out of random bytes; `None` when they are the same one.
    #[must_use]
    pub fn level_of(random: [u8; 4]) -> Option<String> {
        let [a, b, c, d] = random;
        let (first, second) = (u16::from_le_bytes([a, b]) % CATEGORIES, u16::from_le_bytes([c, d]) % CATEGORIES);
        (first != second).then(|| format!("s0:c{},c{}", first.min(second), first.max(second)))
    }

    /// The labels of a sandbox, or of a container in the sandbox whose process label is `base`.
    ///
    /// What the policy says yields to the sandbox, that to the options, part by part. `fresh` is a level nobody else
    /// has, for when none is given otherwise. Mounts have the policy's type for files and the level of the process.
    /// An init system's own type replaces the policy's, but none that was asked for.
    /// Errors: a part that no label can have.
    pub fn labels(
        &self,
        base: Option<&Label>,
        options: Option<&SelinuxOptions>,
        fresh: &str,
        workload: Workload,
    ) -> Result<Labels, BadLabel> {
        let mut process = base.cloned().unwrap_or_else(|| {
            let level = if self.has_levels() { fresh.to_owned() } else { String::new() };
            Label { level, ..self.process.clone() }
        });
        if let Some(options) = options {
            let given = [
                (&mut process.user, &options.user),
                (&mut process.role, &options.role),
                (&mut process.kind, &options.kind),
                (&mut process.level, &options.level),
            ];
            for (part, given) in given.into_iter().filter(|(_, given)| !given.is_empty()) {
                part.clone_from(given);
            }
        }
        if workload == Workload::Init && process.kind == self.process.kind {
            process.kind.clone_from(&self.init_kind);
        }
        let user = if process.user == self.process.user { &self.file.user } else { &process.user };
        let mount = Label { user: user.clone(), level: process.level.clone(), ..self.file.clone() };
        Ok(Labels { process: process.checked()?, mount: mount.checked()? })
    }

    /// The label of a process that is a whole machine: the policy's type for those, unless another was asked for.
    #[must_use]
    pub fn machine(&self, process: &Label) -> Label {
        if process.kind == self.process.kind { process.of_kind(&self.kvm_kind) } else { process.clone() }
    }
}

/// Reads any bytes as a policy's labels; for the fuzzer.
pub fn fuzz_policy(bytes: &[u8]) {
    let Ok(policy) = Policy::parse(&String::from_utf8_lossy(bytes)) else { return };
    let labels = policy.labels(None, None, "s0:c1,c2", Workload::Init).expect("labels of a policy with a good level");
    for label in [&labels.process, &labels.mount, &policy.machine(&labels.process)] {
        assert_eq!(Label::parse(&label.to_string()).as_ref(), Ok(label), "a label reads back as itself");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXTS: &str = r#"
# of the distribution
process = "system_u:system_r:container_t:s0"
 file="system_u:object_r:container_file_t:s0"
;file = "x"
init_process = "system_u:system_r:container_init_t:s0"
kvm_process = "system_u:system_r:container_kvm_t:s0"
content = "anything"
"#;

    fn policy() -> Policy {
        Policy::parse(CONTEXTS).expect("a policy")
    }

    #[test]
    fn a_label_holds_nothing_that_could_end_it() {
        for good in [
            "system_u:system_r:container_t",
            "system_u:object_r:container_file_t:s0",
            "u:r:t:s0:c1,c1023",
            "u:r:t:s0-s15:c0.c1023",
        ] {
            assert_eq!(Label::parse(good).map(|label| label.to_string()), Ok(good.to_owned()));
        }
        for bad in [
            "",
            "u",
            "u:r",
            "u:r:",
            "u::t",
            ":r:t",
            "u:r:t:",
            "u:r:t:s0:",
            "u:r:t\":s0",
            "u:r:t:s0\"",
            "u:r:t:s0 ",
            "u r:r:t",
            "u:r:t,x",
            "u:r:t\n",
            "u:r:t:s0\0",
            "u:r:t:s0=",
            "u:r:t:s0\\",
            "u:r:t:s\u{f6}",
        ] {
            assert!(Label::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Label::parse(&format!("u:r:t:{}", "c".repeat(LABEL_MAX_BYTES))).is_err());
    }

    #[test]
    fn the_policy_s_file_is_read_by_its_last_lines() {
        let policy = policy();
        assert_eq!(policy.process.to_string(), "system_u:system_r:container_t:s0");
        assert_eq!((policy.init_kind.as_str(), policy.kvm_kind.as_str()), ("container_init_t", "container_kvm_t"));
        let old = Policy::parse("process=\"u:r:first:s0\"\nfile=\"u:o:f:s0\"\nprocess=\"u:r:p\"").expect("a policy");
        assert_eq!((old.process.kind(), old.init_kind.as_str(), old.has_levels()), ("p", "p", false));
        let without_level = old.labels(None, None, "s0:c1,c2", Workload::Ordinary).expect("labels");
        assert_eq!(without_level.process.to_string(), "u:r:p");
        for bad in ["", "process=\"u:r:p\"", "file=\"u:r:p\"", "process=\"u\"\nfile=\"u:r:p\"", "process=\nfile=u:o:f"]
        {
            assert!(Policy::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn categories_are_two_and_in_order() {
        assert_eq!(Policy::level_of([1, 0, 2, 0]).as_deref(), Some("s0:c1,c2"));
        assert_eq!(Policy::level_of([0xff, 0xff, 0, 0]).as_deref(), Some("s0:c0,c1023"));
        assert_eq!(Policy::level_of([5, 0, 5, 4]), None);
        assert_eq!(Policy::reserved_level(), "s0:c1022,c1023");
    }

    #[test]
    fn options_win_over_the_sandbox_and_it_over_the_policy() {
        let options = |user: &str, role: &str, kind: &str, level: &str| {
            let part = str::to_owned;
            Some(SelinuxOptions { user: part(user), role: part(role), kind: part(kind), level: part(level) })
        };
        let base = "system_u:system_r:container_t:s0:c3,c4";
        let ordinary = Workload::Ordinary;
        for (base, options, workload, process, mount) in [
            (
                None,
                None,
                ordinary,
                "system_u:system_r:container_t:s0:c1,c2",
                "system_u:object_r:container_file_t:s0:c1,c2",
            ),
            (Some(base), None, ordinary, base, "system_u:object_r:container_file_t:s0:c3,c4"),
            (
                Some(base),
                options("", "", "spc_t", ""),
                ordinary,
                "system_u:system_r:spc_t:s0:c3,c4",
                "system_u:object_r:container_file_t:s0:c3,c4",
            ),
            (
                Some(base),
                options("", "", "", "s0:c7"),
                ordinary,
                "system_u:system_r:container_t:s0:c7",
                "system_u:object_r:container_file_t:s0:c7",
            ),
            (
                None,
                options("me_u", "me_r", "my_t", "s0"),
                ordinary,
                "me_u:me_r:my_t:s0",
                "me_u:object_r:container_file_t:s0",
            ),
            (Some("me_u:me_r:my_t:s0"), None, ordinary, "me_u:me_r:my_t:s0", "me_u:object_r:container_file_t:s0"),
            (
                None,
                None,
                Workload::Init,
                "system_u:system_r:container_init_t:s0:c1,c2",
                "system_u:object_r:container_file_t:s0:c1,c2",
            ),
            (
                None,
                options("", "", "spc_t", ""),
                Workload::Init,
                "system_u:system_r:spc_t:s0:c1,c2",
                "system_u:object_r:container_file_t:s0:c1,c2",
            ),
        ] {
            let base = base.map(|text| Label::parse(text).expect("a label"));
            let labels = policy().labels(base.as_ref(), options.as_ref(), "s0:c1,c2", workload).expect("labels");
            assert_eq!((labels.process.to_string(), labels.mount.to_string()), (process.to_owned(), mount.to_owned()));
        }
        for bad in [
            options("", "", "a:b", ""),
            options("a b", "", "", ""),
            options("", "", "", "s0\",exec"),
            options("", "x\n", "", ""),
        ] {
            assert!(policy().labels(None, bad.as_ref(), "s0:c1,c2", ordinary).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn labels_are_shared_and_machines_have_their_own_type() {
        let label = |text: &str| Label::parse(text).expect("a label");
        assert_eq!(label("u:r:t:s0:c1,c2").shared(), label("u:r:t:s0"));
        assert_eq!(label("u:r:t").shared(), label("u:r:t"));
        assert_eq!(policy().machine(&label("u:r:container_t:s0:c1,c2")), label("u:r:container_kvm_t:s0:c1,c2"));
        assert_eq!(policy().machine(&label("u:r:spc_t:s0")), label("u:r:spc_t:s0"));
        assert!(label("u:r:spc_t:s0").is_super_privileged() && !label("u:r:t").is_super_privileged());
    }
}
