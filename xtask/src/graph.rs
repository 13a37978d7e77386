//! Which crate may use which, and where the async runtime may be.
//!
//! ```text
//! gRPC request -> cri-service, streaming                  translate, answer
//!              -> lifecycle over domain values            decide, order, undo
//!              -> image-pull, image-store, image-trust, network,
//!                 runtime-client, shim-client,
//!                 state-store, nri, injection             adapters        monitor, oci-runtime: other processes
//!              -> cgroup, confinement, durable, yaml      shared mechanisms  <-+
//!              -> sys -> kernel
//! ```
//! An edge this picture does not have is a finding; so is a crate it does not show.

use crate::metadata::{Metadata, Package};
use std::collections::{BTreeMap, BTreeSet};

/// For each crate, the crates of this workspace it may depend on, apart from dev-dependencies.
///
/// A star stands for every crate. The order is that of the picture, from the door to the kernel.
const ALLOWED: &[(&str, &[&str])] = &[
    ("crio", &["*"]),
    ("cri-service", &["streaming", "lifecycle", "domain", "cri-api", "config", "telemetry"]),
    ("streaming", &["domain", "sys", "telemetry"]),
    (
        "lifecycle",
        &[
            "image-crypt",
            "image-pull",
            "image-store",
            "image-trust",
            "network",
            "runtime-client",
            "shim-client",
            "state-store",
            "nri",
            "injection",
            "cgroup",
            "confinement",
            "durable",
            "sys",
            "config",
            "domain",
            "telemetry",
        ],
    ),
    // Adapters never see each other; two of them meet only in lifecycle.
    ("image-crypt", &["domain"]),
    ("image-pull", &["domain", "cgroup", "confinement", "durable", "sys", "telemetry"]),
    ("image-store", &["domain", "cgroup", "confinement", "durable", "sys", "telemetry"]),
    ("image-trust", &["domain", "yaml", "durable", "sys", "telemetry"]),
    ("network", &["domain", "cgroup", "confinement", "durable", "sys", "telemetry"]),
    ("runtime-client", &["config", "monitor-proto", "domain", "cgroup", "confinement", "durable", "sys", "telemetry"]),
    // Plugins of their own: they live for a millisecond.
    ("cni", &["netlink", "sys"]),
    // A program beside a container too, so smaller than its neighbours.
    ("shim-client", &["durable", "sys"]),
    ("state-store", &["domain", "cgroup", "confinement", "durable", "sys", "telemetry"]),
    ("injection", &["domain", "yaml", "cgroup", "confinement", "durable", "sys", "telemetry"]),
    ("nri", &["domain", "cgroup", "confinement", "durable", "sys", "telemetry"]),
    // Other processes: small, so nothing that is only for the daemon.
    ("monitor", &["sys", "monitor-proto"]),
    ("oci-runtime", &["domain", "cgroup", "confinement", "durable", "sys"]),
    ("monitor-proto", &[]),
    // Shared mechanisms.
    ("cgroup", &["domain", "sys", "telemetry"]),
    ("confinement", &["domain", "sys", "telemetry"]),
    ("durable", &["sys", "telemetry"]),
    ("netlink", &[]),
    ("yaml", &[]),
    // Rooms of their own.
    ("config", &["domain", "telemetry"]),
    ("domain", &[]),
    ("telemetry", &[]),
    ("sys", &[]),
    ("cri-api", &[]),
    // Clients see the wire and nothing else, so that they can judge any daemon.
    ("crioctl", &["cri-api"]),
    ("cri-bench", &["cri-api"]),
    ("e2e", &["cri-api"]),
    // The other end of the wire.
    ("shim-stub", &["shim-client"]),
    // Feeds bytes to whoever parses them, whichever room that is.
    ("parsers", &["*"]),
    ("test-support", &["domain", "durable", "sys", "cri-api"]),
    ("xtask", &[]),
];

/// Crates that may name tokio. All the others are blocking code, easier to read, test and crash.
const ASYNC: &[&str] = &[
    "crio",
    "cri-service",
    "streaming",
    "lifecycle",
    "image-pull",
    "runtime-client",
    "nri",
    "network",
    "crioctl",
    "cri-bench",
    "e2e",
    "test-support",
];

/// Programs of which one runs beside every container: no async runtime anywhere in what they link, tests included.
const WITHOUT_TOKIO: &[&str] = &["monitor", "oci-runtime", "shim-client"];

/// The async runtime's package name.
const TOKIO: &str = "tokio";

/// How one crate comes to depend on another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Linked into it.
    Normal,
    /// Linked into its build script.
    Build,
    /// Linked into its tests only.
    Dev,
}

/// The dependency graph by package id.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    /// Package id to package name.
    names: BTreeMap<String, String>,
    /// Ids of the workspace's own crates.
    members: BTreeSet<String>,
    /// Package id to (package id, kind).
    edges: BTreeMap<String, Vec<(String, Kind)>>,
}

impl Graph {
    /// The graph that cargo resolved.
    pub(crate) fn new(metadata: &Metadata) -> Self {
        let mut graph = Graph {
            members: metadata.members().map(|package: &Package| package.id.clone()).collect(),
            names: metadata.packages.iter().map(|package| (package.id.clone(), package.name.clone())).collect(),
            edges: BTreeMap::new(),
        };
        for node in &metadata.resolve.nodes {
            let edges = graph.edges.entry(node.id.clone()).or_default();
            for dep in &node.deps {
                for dep_kind in &dep.dep_kinds {
                    let kind = match dep_kind.kind.as_deref() {
                        None | Some("normal") => Kind::Normal,
                        Some("build") => Kind::Build,
                        Some(_) => Kind::Dev,
                    };
                    edges.push((dep.pkg.clone(), kind));
                }
            }
        }
        graph
    }

    fn name<'a>(&'a self, id: &'a str) -> &'a str {
        self.names.get(id).map_or(id, String::as_str)
    }

    fn edges_of(&self, id: &str) -> impl Iterator<Item = (&str, Kind)> {
        self.edges.get(id).into_iter().flatten().map(|(to, kind)| (to.as_str(), *kind))
    }

    /// Everything in the graph that the picture does not have, one line each, sorted.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = BTreeSet::new();
        for member in &self.members {
            let from = self.name(member);
            let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == from) else {
                problems.insert(format!("crate {from} is not in the picture: give it its edges in xtask/src/graph.rs"));
                continue;
            };
            for (to_id, kind) in self.edges_of(member) {
                let to = self.name(to_id);
                let is_allowed = allowed.contains(&"*") || allowed.contains(&to);
                if kind != Kind::Dev && self.members.contains(to_id) && !is_allowed {
                    problems.insert(format!("crate {from} depends on {to}, an edge the picture does not have"));
                }
                if to == TOKIO && kind != Kind::Build && !ASYNC.contains(&from) {
                    problems.insert(format!("crate {from} depends on {TOKIO}, but is blocking code"));
                }
            }
            if WITHOUT_TOKIO.contains(&from)
                && let Some(path) = self.path_to(member, TOKIO)
            {
                problems.insert(format!("crate {from} links {TOKIO}: {}", path.join(" -> ")));
            }
        }
        problems.into_iter().collect()
    }

    /// The names on a shortest way from a crate (its tests included) to a package that gets linked with it, if any.
    fn path_to(&self, from: &str, wanted: &str) -> Option<Vec<String>> {
        let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
        let mut level = vec![from];
        while !level.is_empty() {
            let mut next = Vec::new();
            for id in level {
                for (to, kind) in self.edges_of(id) {
                    // What other crates need to be tested or built is not in our program.
                    let is_linked = kind == Kind::Normal || (kind == Kind::Dev && id == from);
                    if !is_linked || to == from || came_from.contains_key(to) {
                        continue;
                    }
                    came_from.insert(to, id);
                    if self.name(to) == wanted {
                        let mut path = vec![wanted.to_owned()];
                        let mut at = to;
                        while let Some(previous) = came_from.get(at) {
                            path.push(self.name(previous).to_owned());
                            at = previous;
                        }
                        path.reverse();
                        return Some(path);
                    }
                    next.push(to);
                }
            }
            level = next;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds a graph out of member names and `(from, to, kind)`; names serve as ids.
    fn graph(members: &[&str], edges: &[(&str, &str, Kind)]) -> Graph {
        let mut graph = Graph { members: members.iter().map(|name| (*name).to_owned()).collect(), ..Graph::default() };
        for (from, to, kind) in edges {
            graph.edges.entry((*from).to_owned()).or_default().push(((*to).to_owned(), *kind));
        }
        graph
    }

    #[track_caller]
    fn check(members: &[&str], edges: &[(&str, &str, Kind)], expected: &[&str]) {
        assert_eq!(graph(members, edges).problems(), expected, "{edges:?}");
    }

    #[test]
    fn edges_of_the_picture_pass() {
        let members = ["crio", "cri-service", "lifecycle", "network", "durable", "sys", "domain", "runtime-client"];
        check(
            &members,
            &[
                ("crio", "network", Kind::Normal),
                ("cri-service", "lifecycle", Kind::Normal),
                ("lifecycle", "network", Kind::Normal),
                ("network", "durable", Kind::Normal),
                ("network", "domain", Kind::Normal),
                ("durable", "sys", Kind::Normal),
                ("network", "serde", Kind::Normal),
                ("network", "tokio", Kind::Normal),
            ],
            &[],
        );
    }

    #[test]
    fn edges_the_picture_lacks_are_reported() {
        let cases: &[(&str, &str)] = &[
            ("image-pull", "image-store"),
            ("network", "config"),
            ("domain", "sys"),
            ("cri-service", "image-store"),
            ("lifecycle", "cri-api"),
            ("monitor", "domain"),
            ("crioctl", "domain"),
            ("sys", "durable"),
            ("durable", "domain"),
            ("xtask", "sys"),
            ("network", "test-support"),
        ];
        for (from, to) in cases {
            let expected = format!("crate {from} depends on {to}, an edge the picture does not have");
            check(&[from, to], &[(from, to, Kind::Normal)], &[&expected]);
            check(&[from, to], &[(from, to, Kind::Build)], &[&expected]);
            check(&[from, to], &[(from, to, Kind::Dev)], &[]);
        }
    }

    #[test]
    fn a_crate_without_a_place_is_reported() {
        check(&["utils"], &[], &["crate utils is not in the picture: give it its edges in xtask/src/graph.rs"]);
    }

    #[test]
    fn blocking_crates_stay_blocking() {
        let expected = "crate image-store depends on tokio, but is blocking code";
        check(&["image-store"], &[("image-store", "tokio", Kind::Normal)], &[expected]);
        check(&["image-store"], &[("image-store", "tokio", Kind::Dev)], &[expected]);
        check(&["lifecycle"], &[("lifecycle", "tokio", Kind::Normal)], &[]);
    }

    #[test]
    fn the_monitor_links_no_runtime_by_any_way() {
        let through = "crate monitor links tokio: monitor -> sys -> helper -> tokio";
        let edges =
            [("monitor", "sys", Kind::Normal), ("sys", "helper", Kind::Normal), ("helper", "tokio", Kind::Normal)];
        check(&["monitor", "sys"], &edges, &[through]);
        check(
            &["monitor"],
            &[("monitor", "x", Kind::Dev), ("x", "tokio", Kind::Normal)],
            &["crate monitor links tokio: monitor -> x -> tokio"],
        );
        // Neither another crate's tests nor a build script end up in the program.
        check(
            &["monitor", "sys"],
            &[("monitor", "sys", Kind::Normal), ("sys", "x", Kind::Dev), ("x", "tokio", Kind::Normal)],
            &[],
        );
        check(&["monitor"], &[("monitor", "x", Kind::Build), ("x", "tokio", Kind::Normal)], &[]);
    }

    #[test]
    fn the_table_names_only_crates_it_knows() {
        let known: Vec<&str> = ALLOWED.iter().map(|(name, _)| *name).collect();
        for (name, allowed) in ALLOWED {
            assert!(!allowed.contains(name), "{name} beside itself");
            for to in *allowed {
                assert!(*to == "*" || known.contains(to), "{name} -> {to}");
            }
        }
        for name in ASYNC.iter().chain(WITHOUT_TOKIO) {
            assert!(known.contains(name), "{name}");
        }
    }
}
