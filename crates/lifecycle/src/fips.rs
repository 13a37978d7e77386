//! Cryptography as certified: what a container is given on a node in FIPS mode, and how a pod opts out.
//!
//! On such a node the image's own policy for FIPS is bound over its current one, and images of that age find
//! `/run/secrets/system-fips`. The label `FIPS_DISABLE=true` of the pod takes that away, and together with the annotation
//! `disable-fips.crio.io` the container also reads from the kernel that FIPS mode is off. Source: CRI-O does this.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use domain::spec::{MountAccess, ResolvedMount};
use durable::Durability;
use durable::beneath::{Links, Root};
use rustix::fs::OFlags;
use thiserror::Error;

const ENABLED: &str = "/proc/sys/crypto/fips_enabled";
const LABEL: &str = "FIPS_DISABLE";
const ANNOTATION: &str = "disable-fips.crio.io";
const SECRETS: &str = "/run/secrets";
const OLD_MARK: &str = "/run/secrets/system-fips";
const OLD_MARK_FROM_ETC: &str = "../run/secrets/system-fips";
const BACK_ENDS: &str = "/etc/crypto-policies/back-ends";
const BACK_ENDS_FIPS: &str = "/usr/share/crypto-policies/back-ends/FIPS";
const POLICY: &str = "/etc/crypto-policies/config";
const POLICY_FIPS: &str = "/usr/share/crypto-policies/default-fips-config";

/// Why a container cannot be made what the node's FIPS mode wants.
#[derive(Debug, Error)]
#[error("{action} {path}")]
pub struct FipsError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// What is wanted for a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fips {
    /// The node is not in FIPS mode, or the pod does not want to know.
    Leave,
    /// Policies of the image for FIPS.
    Apply,
    /// The kernel's switch looks off.
    Hide,
}

/// By the node's mode and the pod's label and annotations, of which only allowed ones count.
pub(crate) fn wanted(
    is_node_in_fips_mode: Option<bool>,
    labels: &BTreeMap<String, String>,
    annotations: &BTreeMap<String, String>,
) -> Fips {
    let is_true = |map: &BTreeMap<String, String>, key| map.get(key).is_some_and(|value| value == "true");
    match (is_node_in_fips_mode, is_true(labels, LABEL), is_true(annotations, ANNOTATION)) {
        // A kernel that has no switch has none to hide.
        (Some(_), true, true) => Fips::Hide,
        (Some(true), false, _) => Fips::Apply,
        _ => Fips::Leave,
    }
}

/// Whether the node is in FIPS mode; absent where the kernel does not know it.
pub(crate) fn node_mode() -> Option<bool> {
    fs::read_to_string(ENABLED).ok().map(|text| text.trim() == "1")
}

/// The mounts for a container; files for them are made below `base`. `taken` are paths something is mounted on already.
pub(crate) fn mounts(fips: Fips, root: &Root, base: &Path, taken: &[&str]) -> Result<Vec<ResolvedMount>, FipsError> {
    match fips {
        Fips::Leave => Ok(vec![]),
        Fips::Hide => {
            let file = base.join("sysctl-fips");
            fs::create_dir_all(base).map_err(|source| failed("create", base, source))?;
            write(&file, b"0\n", 0o444)?;
            Ok(vec![ResolvedMount { access: MountAccess::ReadOnly, ..bind(ENABLED, &file) }])
        }
        Fips::Apply => apply(root, base, taken),
    }
}

fn apply(root: &Root, base: &Path, taken: &[&str]) -> Result<Vec<ResolvedMount>, FipsError> {
    let mut mounts = vec![];
    let is_free = |path: &str| !taken.contains(&path);
    if points_to_old_mark(root) {
        let directory = base.join("run/secrets");
        fs::create_dir_all(&directory).map_err(|source| failed("create", &directory, source))?;
        write(&directory.join("system-fips"), b"", 0o644)?;
        if is_free(SECRETS) {
            mounts.push(bind(SECRETS, &directory));
        }
    }
    let Some(back_ends) = place_in(root, BACK_ENDS_FIPS)? else { return Ok(mounts) };
    if is_free(BACK_ENDS) {
        mounts.push(bind(BACK_ENDS, &back_ends));
    }
    if is_free(POLICY) {
        let policy = match place_in(root, POLICY_FIPS)? {
            Some(policy) => policy,
            None => {
                let file = base.join("fips-config");
                fs::create_dir_all(base).map_err(|source| failed("create", base, source))?;
                write(&file, b"FIPS\n", 0o644)?;
                file
            }
        };
        mounts.push(bind(POLICY, &policy));
    }
    Ok(mounts)
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> FipsError {
    FipsError { action, path: path.to_owned(), source }
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FipsError> {
    durable::replace(path, bytes, mode, Durability::Volatile)
        .map_err(|error| failed("write", path, io::Error::other(error)))
}

fn bind(destination: &str, source: &Path) -> ResolvedMount {
    ResolvedMount {
        destination: destination.to_owned(),
        source: source.display().to_string(),
        ..ResolvedMount::default()
    }
}

/// Whether the image expects the mark, by a link of its own.
fn points_to_old_mark(root: &Root) -> bool {
    let etc = root.open_beneath(Path::new("/etc"), OFlags::PATH | OFlags::DIRECTORY, 0, Links::InRoot);
    let target = etc.and_then(|etc| Ok(rustix::fs::readlinkat(etc.as_fd(), "system-fips", Vec::new())?));
    target.is_ok_and(|target| [OLD_MARK, OLD_MARK_FROM_ETC].iter().any(|known| target.as_bytes() == known.as_bytes()))
}

/// Where something of the image is on the node, links resolved as the container would; absent if it is not there.
///
/// Nothing of the container runs yet, so that the path stays what it is until the runtime binds it.
fn place_in(root: &Root, path: &str) -> Result<Option<PathBuf>, FipsError> {
    match root.open_beneath(Path::new(path), OFlags::PATH, 0, Links::InRoot) {
        Ok(opened) => fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd()))
            .map(Some)
            .map_err(|source| failed("locate", Path::new(path), source)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(source) => Err(failed("open", Path::new(path), source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn node_label_and_annotation_decide() {
        let one = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        let none = BTreeMap::new();
        for (mode, labels, annotations, expected) in [
            (None, &none, &none, Fips::Leave),
            (Some(false), &none, &none, Fips::Leave),
            (Some(true), &none, &none, Fips::Apply),
            (Some(true), &one(LABEL, "true"), &none, Fips::Leave),
            (Some(true), &one(LABEL, "yes"), &none, Fips::Apply),
            (Some(true), &none, &one(ANNOTATION, "true"), Fips::Apply),
            (Some(true), &one(LABEL, "true"), &one(ANNOTATION, "true"), Fips::Hide),
            (Some(true), &one(LABEL, "true"), &one(ANNOTATION, "1"), Fips::Leave),
            (None, &one(LABEL, "true"), &one(ANNOTATION, "true"), Fips::Leave),
        ] {
            assert_eq!(wanted(mode, labels, annotations), expected, "{mode:?} {labels:?} {annotations:?}");
        }
    }

    #[test]
    fn policies_of_the_image_are_bound() {
        let base = tempfile::tempdir().expect("a directory");
        let (inside, bundle) = (base.path().join("root"), base.path().join("bundle"));
        for directory in [&inside.join("etc"), &bundle] {
            fs::create_dir_all(directory).expect("a directory");
        }
        let root = Root::open(&inside).expect("opens");
        let made = |taken: &[&str]| -> Vec<(String, String)> {
            let mounts = mounts(Fips::Apply, &root, &bundle, taken).expect("mounts");
            mounts.into_iter().map(|mount| (mount.destination, mount.source)).collect()
        };
        assert!(made(&[]).is_empty());
        let text = |path: &Path| path.display().to_string();
        symlink(OLD_MARK, inside.join("etc/system-fips")).expect("a link");
        let secrets = (SECRETS.to_owned(), text(&bundle.join("run/secrets")));
        assert_eq!(made(&[]), std::slice::from_ref(&secrets));
        assert!(bundle.join("run/secrets/system-fips").is_file());
        // A link of the image leads to another place of the image, and nowhere else.
        fs::create_dir_all(inside.join("usr/share/crypto-policies/back-ends")).expect("a directory");
        fs::create_dir(inside.join("policies")).expect("a directory");
        symlink("/policies", inside.join(BACK_ENDS_FIPS.trim_start_matches('/'))).expect("a link");
        let real = fs::canonicalize(&inside).expect("resolves");
        let back_ends = (BACK_ENDS.to_owned(), text(&real.join("policies")));
        let policy = (POLICY.to_owned(), text(&bundle.join("fips-config")));
        assert_eq!(made(&[SECRETS]), [back_ends.clone(), policy]);
        fs::File::create(inside.join(POLICY_FIPS.trim_start_matches('/'))).expect("a file");
        let policy = (POLICY.to_owned(), text(&real.join(POLICY_FIPS.trim_start_matches('/'))));
        assert_eq!(made(&[]), [secrets, back_ends, policy]);
        let hidden = mounts(Fips::Hide, &root, &bundle, &[]).expect("mounts");
        assert_eq!((hidden[0].destination.as_str(), hidden[0].access), (ENABLED, MountAccess::ReadOnly));
        assert_eq!(fs::read(&hidden[0].source).expect("reads"), b"0\n");
    }
}
