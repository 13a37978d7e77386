//! Which annotations of a pod or image may take effect: those in the table only when the runtime handler or workload
//! allows them, all others pass as they have no effect.
//!
//! A name matches whole, or up to a slash for the names that take `/<container>`; never by a bare prefix
//! (CVE-2023-6476), except for the four families that are prefixes by definition.

use std::collections::BTreeMap;

/// New and old spelling of the annotations this daemon acts on. Each may be followed by `/<container>`.
const ACTED_ON: [(&str, &str); 23] = [
    ("userns-mode.crio.io", "io.kubernetes.cri-o.userns-mode"),
    ("cgroup2-mount-hierarchy-rw.crio.io", "io.kubernetes.cri-o.cgroup2-mount-hierarchy-rw"),
    ("unified-cgroup.crio.io", "io.kubernetes.cri-o.UnifiedCgroup"),
    ("shm-size.crio.io", "io.kubernetes.cri-o.ShmSize"),
    ("devices.crio.io", "io.kubernetes.cri-o.Devices"),
    ("try-skip-volume-selinux-label.crio.io", "io.kubernetes.cri-o.TrySkipVolumeSELinuxLabel"),
    ("seccomp-notifier-action.crio.io", "io.kubernetes.cri-o.seccompNotifierAction"),
    ("umask.crio.io", "io.kubernetes.cri-o.umask"),
    ("spoofed.crio.io", "io.kubernetes.cri-o.Spoofed"),
    ("pod-linux-overhead.crio.io", "io.kubernetes.cri-o.PodLinuxOverhead"),
    ("pod-linux-resources.crio.io", "io.kubernetes.cri-o.PodLinuxResources"),
    ("platform-runtime-path.crio.io", "io.kubernetes.cri-o.PlatformRuntimePath"),
    ("link-logs.crio.io", "io.kubernetes.cri-o.LinkLogs"),
    ("disable-fips.crio.io", "io.kubernetes.cri-o.DisableFIPS"),
    ("seccomp-profile.crio.io", "seccomp-profile.kubernetes.cri-o.io"),
    ("cpu-load-balancing.crio.io", ""),
    ("cpu-quota.crio.io", ""),
    ("irq-load-balancing.crio.io", ""),
    ("cpu-c-states.crio.io", ""),
    ("cpu-freq-governor.crio.io", ""),
    ("cpu-shared.crio.io", ""),
    ("io.containers.trace-syscall", ""),
    ("io.kubernetes.cri.rdt-class", ""),
];

/// What runtimes act on by prefix; passed to them only when allowed.
const RUNTIME_PREFIXES: [&str; 6] = [
    "org.systemd.property.",
    "run.oci.",
    "org.criu.config",
    "module.wasm.image/variant",
    "io.kubernetes.cri.container-type",
    "bundle",
];

fn is_name(key: &str, name: &str) -> bool {
    !name.is_empty() && key.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The row of the table a key belongs to.
fn row(key: &str) -> Option<&'static (&'static str, &'static str)> {
    ACTED_ON.iter().find(|(new, old)| is_name(key, new) || is_name(key, old))
}

fn is_allowed(key: &str, allowed: &[String]) -> bool {
    if let Some((new, old)) = row(key) {
        return allowed.iter().any(|entry| entry == new || !old.is_empty() && entry == old || entry == key);
    }
    match RUNTIME_PREFIXES.iter().find(|prefix| key.starts_with(**prefix)) {
        // An entry allows its family, or one name of it in full.
        Some(prefix) => allowed.iter().any(|entry| entry == prefix || entry == key),
        None => true,
    }
}

/// Annotations after the filter.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FilteredAnnotations {
    /// With the spelling they came in.
    pub kept: BTreeMap<String, String>,
    /// Those that take effect, by their new names (`/<container>` kept); the new spelling wins over the old.
    pub effective: BTreeMap<String, String>,
    /// Names that were left out, for a debug line.
    pub dropped: Vec<String>,
}

/// Leaves out what the handler does not allow. Source: CRI-O's `allowed_annotations`.
#[must_use]
pub fn filter_annotations(annotations: &BTreeMap<String, String>, allowed: &[String]) -> FilteredAnnotations {
    let mut out = FilteredAnnotations::default();
    for (key, value) in annotations {
        if !is_allowed(key, allowed) {
            out.dropped.push(key.clone());
            continue;
        }
        out.kept.insert(key.clone(), value.clone());
        if let Some((new, old)) = row(key) {
            if is_name(key, new) {
                out.effective.insert(key.clone(), value.clone());
            } else {
                let suffix = key.strip_prefix(old).unwrap_or("");
                out.effective.entry(format!("{new}{suffix}")).or_insert_with(|| value.clone());
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names_need_permission_and_unknown_ones_pass() {
        for (key, allowed, expected) in [
            ("example.com/x", &[][..], true),
            ("umask.crio.io", &[], false),
            ("umask.crio.io", &["umask.crio.io"], true),
            ("io.kubernetes.cri-o.umask", &["umask.crio.io"], true),
            ("umask.crio.io", &["io.kubernetes.cri-o.umask"], true),
            ("unified-cgroup.crio.io/web", &["unified-cgroup.crio.io"], true),
            ("unified-cgroup.crio.io/web", &[], false),
            // only a slash ends a name: the longer one is another annotation, without any effect
            ("umask.crio.iox", &[], true),
            ("umask.crio.io", &["umask"], false),
            ("umask.crio.io", &["umask.crio.io/"], false),
            ("org.systemd.property.ExecStart", &[], false),
            ("org.systemd.property.ExecStart", &["org.systemd.property."], true),
            ("org.systemd.property.ExecStart", &["org.systemd.property.After"], false),
            ("org.systemd.property.After", &["org.systemd.property.After"], true),
            ("run.oci.handler", &[], false),
            ("spoofed.crio.io", &[], false),
            // opting out of something is nobody's privilege, and CRI-O does not gate it
            ("skip-gomaxprocs.crio.io", &[], true),
            ("cpu-quota.crio.io", &["cpu-load-balancing.crio.io"], false),
            ("cpu-shared.crio.io/web", &["cpu-shared.crio.io"], true),
        ] {
            let allowed: Vec<String> = allowed.iter().map(|entry| (*entry).to_owned()).collect();
            let filtered = filter_annotations(&[(key.to_owned(), "v".to_owned())].into(), &allowed);
            assert_eq!(filtered.kept.contains_key(key), expected, "{key} {allowed:?}");
            assert_eq!(filtered.dropped.is_empty(), expected, "{key} {allowed:?}");
        }
    }

    #[test]
    fn the_new_spelling_wins() {
        let both = [
            ("io.kubernetes.cri-o.umask", "1"),
            ("umask.crio.io", "2"),
            ("io.kubernetes.cri-o.UnifiedCgroup/web", "3"),
        ];
        let map: BTreeMap<String, String> = both.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let allowed = ["umask.crio.io".to_owned(), "unified-cgroup.crio.io".to_owned()];
        let effective = filter_annotations(&map, &allowed).effective;
        assert_eq!(effective.get("umask.crio.io").map(String::as_str), Some("2"));
        assert_eq!(effective.get("unified-cgroup.crio.io/web").map(String::as_str), Some("3"));
        assert_eq!(effective.len(), 2);
    }
}
