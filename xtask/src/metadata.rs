//! The part of `cargo metadata` (format version 1) that the rules look at.

use serde::Deserialize;
use std::path::PathBuf;

/// What `cargo metadata --format-version 1` prints.
#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    /// Every package of the dependency tree, ours and others'.
    pub(crate) packages: Vec<Package>,
    /// Package ids of the workspace's own crates.
    pub(crate) workspace_members: Vec<String>,
    /// Absolute path of the checkout.
    pub(crate) workspace_root: PathBuf,
    /// Which package was resolved to which.
    pub(crate) resolve: Resolve,
}

/// One package.
#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    /// Opaque key, the same in `resolve`.
    pub(crate) id: String,
    /// The crate's name as in its manifest.
    pub(crate) name: String,
    /// Where its `Cargo.toml` is.
    pub(crate) manifest_path: PathBuf,
    /// What it is built into.
    pub(crate) targets: Vec<Target>,
}

/// One library, program or test of a package.
#[derive(Debug, Deserialize)]
pub(crate) struct Target {
    /// `lib`, `bin`, `proc-macro`, `test`, `custom-build` and so on.
    pub(crate) kind: Vec<String>,
    /// Its root file.
    pub(crate) src_path: PathBuf,
}

/// The resolved graph.
#[derive(Debug, Deserialize)]
pub(crate) struct Resolve {
    /// One node a package.
    pub(crate) nodes: Vec<Node>,
}

/// The dependencies of one package, after resolution.
#[derive(Debug, Deserialize)]
pub(crate) struct Node {
    /// Package id.
    pub(crate) id: String,
    /// Its edges.
    pub(crate) deps: Vec<NodeDep>,
}

/// One edge, which several kinds of dependency may share.
#[derive(Debug, Deserialize)]
pub(crate) struct NodeDep {
    /// Package id at the other end.
    pub(crate) pkg: String,
    /// Why it is there.
    pub(crate) dep_kinds: Vec<DepKind>,
}

/// The kind of one dependency declaration.
#[derive(Debug, Deserialize)]
pub(crate) struct DepKind {
    /// `None` for an ordinary dependency, else `dev` or `build`.
    pub(crate) kind: Option<String>,
}

impl Metadata {
    /// The workspace's own packages, in the order cargo lists them.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| self.workspace_members.contains(&package.id))
    }
}
