//! What there is of a world in the kernel and on disk, as lines; two of them show what was left behind.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use crate::tools;
use crate::world::World;

/// One look at a world.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// What is here and was not `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self(self.0.difference(&before.0).cloned().collect())
    }

    /// The lines: a kind, a space, what it is.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The lines of one kind (their first word).
    #[must_use]
    pub fn of_kind(&self, kind: &str) -> Vec<&str> {
        let wanted = |line: &&String| line.split(' ').next() == Some(kind);
        self.0.iter().filter(wanted).map(|line| &line[kind.len() + 1..]).collect()
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(formatter, "  {line}"))
    }
}

/// Everything that running something may leave behind: kernel objects, records, leases, rules, files.
pub(crate) fn take(world: &World) -> Snapshot {
    let mut lines = BTreeSet::new();
    let mut add = |kind: &str, what: &str| lines.insert(format!("{kind} {what}"));
    for line in tools::read(format!("/proc/{}/mountinfo", world.holder_pid())).lines() {
        let place = line.split(' ').nth(4).unwrap_or_default();
        add("mount", place);
    }
    for directory in world.cgroups() {
        add("cgroup", &directory.display().to_string());
    }
    for (pid, command) in world.processes() {
        add("process", &format!("{pid} {command}"));
    }
    for kind in tools::names(world.path("ns")) {
        for pin in tools::names(world.path("ns").join(&kind)) {
            add("pin", &format!("{kind}/{pin}"));
        }
    }
    for network in tools::names(world.path("ipam")) {
        for lease in tools::names(world.path("ipam").join(&network)) {
            // Beside the leases host-local keeps a lock and the last address it gave.
            if lease.parse::<std::net::IpAddr>().is_ok() {
                add("lease", &lease);
            }
        }
    }
    for line in tools::read(format!("/proc/{}/net/dev", world.holder_pid())).lines().skip(2) {
        add("link", line.split(':').next().unwrap_or_default().trim());
    }
    for result in tools::names(world.path("var-lib-cni/results")) {
        add("cni-result", &result);
    }
    let mut chain = String::new();
    for line in tools::run(world.command("nft").args(["--stateless", "list", "ruleset"])).lines() {
        if line.starts_with("table") || line.trim_start().starts_with("chain") {
            chain = line.trim().to_owned();
        }
        add("nft", &format!("{chain} | {}", without_counters(line.trim())));
    }
    for name in ["storage", "run", "exits", "a", "runtime", "logs"] {
        files(&world.path(name), &mut |path| {
            lines.insert(format!("file {path}"));
        });
    }
    // Each daemon has an area of its own in which layers are unpacked, under a name that nobody can know.
    let staging = world.path("storage/overlay/tempdirs/crio-staging");
    let own = format!("file {}/", staging.display());
    lines.retain(|line| !line.starts_with(&own));
    for number in 0..tools::names(&staging).len() {
        lines.insert(format!("file staging area {number}"));
    }
    for name in ["containers.json", "volatile-containers.json"] {
        let records = tools::read(world.path("storage/overlay-containers").join(name));
        let Ok(serde_json::Value::Array(records)) = serde_json::from_str(&records) else { continue };
        for record in records {
            lines.insert(format!("record {}", record["id"]));
        }
    }
    Snapshot(lines)
}

/// Rules count packets, which is not a change.
fn without_counters(rule: &str) -> String {
    let mut kept = Vec::new();
    for word in rule.split(' ') {
        kept.push(if matches!(kept.last(), Some(&"packets" | &"bytes")) { "n" } else { word });
    }
    kept.join(" ")
}

/// Every path beneath a directory, but not what is inside layers: their own tests look there.
fn files(directory: &Path, found: &mut dyn FnMut(String)) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        found(path.display().to_string());
        let is_layer = matches!(entry.file_name().to_str(), Some("diff" | "merged" | "work"));
        if !is_layer && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files(&path, found);
        }
    }
}
