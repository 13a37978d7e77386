//! `cargo xtask tidy`: reads the tree, applies the rules of [`graph`] and [`text`], and lists what breaks them.

use crate::graph::Graph;
use crate::metadata::{Metadata, Package, Target};
use crate::text::{self, Root, Unsafe};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The one crate that may contain `unsafe`.
const UNSAFE_HOME: &str = "sys";

/// What is looked at for length: text that people write by hand and read from top to bottom.
const SOURCES: &[&str] = &["rs", "sh"];

/// What is looked at for machine paths. Seeds and samples are bytes and stay out.
const TEXTS: &[&str] = &["rs", "sh", "toml", "md", "proto", "json", "yml", "yaml", "conf", ""];

/// Directories that hold nothing of ours.
const SKIPPED: &[&str] = &["target", ".git", "seeds", "corpus", "artifacts", "coverage"];

/// Directories every machine has; a checkout directly beneath one says nothing about the machine.
const COMMON: &[&str] =
    &["/", "/home", "/mnt", "/opt", "/root", "/run", "/srv", "/tmp", "/usr", "/usr/src", "/var", "/var/tmp"];

/// Why the tree could not be looked at.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TidyError {
    /// cargo could not be started.
    #[error("run cargo metadata")]
    RunCargo {
        /// From the system.
        #[source]
        source: io::Error,
    },
    /// cargo refused.
    #[error("cargo metadata failed: {stderr}")]
    Cargo {
        /// What it said.
        stderr: String,
    },
    /// cargo's answer was not what its format version 1 promises.
    #[error("read the answer of cargo metadata")]
    ParseMetadata {
        /// From the parser.
        #[source]
        source: serde_json::Error,
    },
    /// A file or directory of the tree could not be read.
    #[error("read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// From the system.
        #[source]
        source: io::Error,
    },
}

/// Looks at the workspace this program was built from and returns one line for each broken rule, sorted.
pub(crate) fn run() -> Result<Vec<String>, TidyError> {
    let metadata = load_metadata()?;
    let root = &metadata.workspace_root;
    let mut problems = Graph::new(&metadata).problems();
    for package in metadata.members() {
        check_package(package, root, &mut problems)?;
    }
    let places = machine_places(root);
    let mut files = Vec::new();
    find_files(root, &mut files)?;
    for path in files {
        check_file(&path, root, &places, &mut problems)?;
    }
    problems.sort();
    Ok(problems)
}

fn load_metadata() -> Result<Metadata, TidyError> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .map_err(|source| TidyError::RunCargo { source })?;
    if !output.status.success() {
        return Err(TidyError::Cargo { stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned() });
    }
    serde_json::from_slice(&output.stdout).map_err(|source| TidyError::ParseMetadata { source })
}

fn read(path: &Path) -> Result<Vec<u8>, TidyError> {
    std::fs::read(path).map_err(|source| TidyError::Read { path: path.to_owned(), source })
}

fn shown<'a>(path: &'a Path, root: &Path) -> std::path::Display<'a> {
    path.strip_prefix(root).unwrap_or(path).display()
}

fn check_package(package: &Package, root: &Path, problems: &mut Vec<String>) -> Result<(), TidyError> {
    let manifest = read(&package.manifest_path)?;
    for problem in text::manifest(&String::from_utf8_lossy(&manifest)) {
        problems.push(format!("{}: {problem}", shown(&package.manifest_path, root)));
    }
    let rule = if package.name == UNSAFE_HOME { Unsafe::Home } else { Unsafe::Forbidden };
    let is_kind = |target: &Target, wanted: &str| target.kind.iter().any(|kind| kind == wanted);
    let has_library = package.targets.iter().any(|target| is_kind(target, "lib"));
    for target in &package.targets {
        if !["lib", "bin", "proc-macro"].iter().any(|kind| is_kind(target, kind)) {
            continue;
        }
        let role = if has_library && is_kind(target, "bin") { Root::BesideLibrary } else { Root::Main };
        for problem in text::crate_root(&String::from_utf8_lossy(&read(&target.src_path)?), role, rule) {
            problems.push(format!("{}: {problem}", shown(&target.src_path, root)));
        }
    }
    Ok(())
}

fn check_file(path: &Path, root: &Path, places: &[String], problems: &mut Vec<String>) -> Result<(), TidyError> {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or("");
    if !TEXTS.contains(&extension) {
        return Ok(());
    }
    // Files without an extension may be anything; those that are not text have no lines to look at.
    let Ok(content) = String::from_utf8(read(path)?) else { return Ok(()) };
    if SOURCES.contains(&extension)
        && let Some(problem) = text::length(&content)
    {
        problems.push(format!("{}: {problem}", shown(path, root)));
    }
    for (line, place) in text::machine_paths(&content, places) {
        problems.push(format!("{}:{line}: names {place}, which only this machine has", shown(path, root)));
    }
    Ok(())
}

/// Every file beneath a directory, without following links.
fn find_files(directory: &Path, found: &mut Vec<PathBuf>) -> Result<(), TidyError> {
    let failed = |source| TidyError::Read { path: directory.to_owned(), source };
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let kind = entry.file_type().map_err(failed)?;
        if kind.is_dir() {
            if !SKIPPED.iter().any(|name| entry.file_name() == *name) {
                find_files(&entry.path(), found)?;
            }
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    Ok(())
}

/// The absolute paths that mean something on this machine only: the checkout, what lies beside it, cargo's own homes.
fn machine_places(root: &Path) -> Vec<String> {
    let homes = ["CARGO_HOME", "RUSTUP_HOME"].into_iter().filter_map(|name| std::env::var(name).ok());
    let defaults = std::env::var("HOME").ok().into_iter().flat_map(|home| {
        let home = home.trim_end_matches('/').to_owned();
        [format!("{home}/.cargo"), format!("{home}/.rustup")]
    });
    let mut places: Vec<String> = homes.chain(defaults).collect();
    places.extend(root.to_str().map(str::to_owned));
    if let Some(parent) = root.parent().filter(|parent| !COMMON.iter().any(|common| Path::new(common) == *parent)) {
        // A parent that cannot be listed has no neighbours to betray.
        let neighbours = std::fs::read_dir(parent).into_iter().flatten().flatten();
        places.extend(neighbours.filter_map(|entry| entry.path().to_str().map(str::to_owned)));
    }
    places.retain(|place| place.starts_with('/') && !COMMON.contains(&place.as_str()));
    places.sort();
    places.dedup();
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checkout_is_a_machine_place_and_a_common_parent_is_not() {
        let places = machine_places(Path::new("/tmp/checkout"));
        assert!(places.contains(&"/tmp/checkout".to_owned()), "{places:?}");
        assert!(!places.contains(&"/tmp".to_owned()), "{places:?}");
    }

    #[test]
    fn what_lies_beside_the_checkout_is_a_machine_place() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let places = machine_places(&here.join("src"));
        assert!(places.contains(&here.join("Cargo.toml").display().to_string()), "{places:?}");
        assert!(!places.contains(&here.display().to_string()), "{places:?}");
    }

    #[test]
    fn the_walk_skips_what_is_not_ours() {
        let mut files = Vec::new();
        find_files(Path::new(env!("CARGO_MANIFEST_DIR")), &mut files).expect("own sources");
        assert!(files.iter().any(|file| file.ends_with("src/tidy.rs")), "{files:?}");
        files.clear();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
        find_files(root, &mut files).expect("the workspace");
        assert!(!files.iter().any(|file| file.components().any(|part| part.as_os_str() == "target")));
    }
}
