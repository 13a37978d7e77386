//! Credentials of a Kubernetes namespace: a file that a credential provider wrote for one pull.
//!
//! `<namespaced_auth_dir>/<namespace>-<sha256 of the repository>.json`, which is moved to
//! `in-use/<the same>-<uuid>.json` for the pull and deleted afterwards. Source: CRI-O and its credential provider.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use image_pull::Reference;
use image_pull::reference::repository_digest;

use crate::blocking;
use crate::pull_image::{PullImageError, PullOrder};

/// Where files are while they are used.
const IN_USE: &str = "in-use";
/// Longest name of a namespace: with the digest it still makes a file's name.
const NAMESPACE_MAX: usize = 128;

/// A file taken for one pull; deleted when dropped.
#[derive(Debug)]
pub(crate) struct NamespacedAuth(PathBuf);

impl NamespacedAuth {
    /// Takes the file for the namespace and repository of `order`; `None` where there is none.
    ///
    /// A file that cannot be taken is deleted: whoever wrote it meant it for this pull. Source: CRI-O.
    pub(crate) async fn take(directory: &Path, order: &PullOrder) -> Result<Option<Self>, PullImageError> {
        let Some(path) = path_of(directory, &order.namespace, &order.image) else { return Ok(None) };
        // Scripts look for these lines.
        tracing::debug!("Looking for namespaced auth JSON file in: {}", path.display());
        let (directory, file) = (directory.to_owned(), path.clone());
        let taken = blocking::run("take credentials", move || take(&directory, &file)).await;
        if matches!(taken, Ok(Some(_))) {
            tracing::info!("Using auth file for namespace {}: {}", order.namespace, path.display());
        }
        taken.map_err(|source| PullImageError::Namespaced { path, source })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for NamespacedAuth {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.0) {
            Ok(()) => tracing::debug!("Removed temp auth file: {}", self.0.display()),
            Err(error) => tracing::warn!(path = %self.0.display(), %error, "credentials of a pull stay"),
        }
    }
}

/// Where the credentials for an image of a namespace are; `None` for what is no namespace or no image of a registry.
fn path_of(directory: &Path, namespace: &str, image: &str) -> Option<PathBuf> {
    // Anything else would be a path. Longer ones than Kubernetes', with dots, are what other clients of the CRI send.
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    if namespace.is_empty() || namespace.len() > NAMESPACE_MAX || !namespace.chars().all(is_name) {
        return None;
    }
    let reference = Reference::parse(image).ok()?;
    Some(directory.join(format!("{namespace}-{}.json", repository_digest(&reference))))
}

fn take(directory: &Path, file: &Path) -> io::Result<Option<NamespacedAuth>> {
    match file.symlink_metadata() {
        Ok(found) if found.is_file() => {}
        Ok(_) => return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    }
    let moved = move_away(directory, file);
    if moved.is_err() {
        let _ = std::fs::remove_file(file);
    }
    moved.map(|taken| taken.map(NamespacedAuth))
}

fn move_away(directory: &Path, file: &Path) -> io::Result<Option<PathBuf>> {
    let in_use = directory.join(IN_USE);
    match DirBuilder::new().mode(0o700).create(&in_use) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    let to = in_use.join(format!("{stem}-{}.json", uuid.trim()));
    match rustix::fs::rename(file, &to) {
        Ok(()) => Ok(Some(to)),
        // Another pull of the same repository has taken it.
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn files_are_called_by_namespace_and_repository() {
        // sha256 of `registry.example/a/b`.
        let expected = "/auth/prod-e7a7252588c9c971d31159e06f014d240a248d9cfdbf45c11809669f761ae137.json";
        let path = |namespace, image| path_of(Path::new("/auth"), namespace, image);
        let same = path("prod", "registry.example/a/b:1").expect("a path");
        assert_eq!(same, Path::new(expected));
        let by_digest = format!("registry.example/a/b@sha256:{}", "a".repeat(64));
        assert_eq!(path("prod", &by_digest), Some(same));
        assert_eq!(path("prod", "busybox"), path("prod", "docker.io/library/busybox:latest"));
        for (namespace, image) in [("", "a"), ("a/b", "a"), ("prod", "oci:/x"), ("prod", "A")] {
            assert_eq!(path(namespace, image), None, "{namespace} {image}");
        }
    }

    #[tokio::test]
    async fn a_file_serves_one_pull_and_is_gone() {
        let directory = tempfile::tempdir().expect("a directory");
        let order =
            PullOrder { image: "registry.example/a:1".into(), namespace: "prod".into(), ..PullOrder::default() };
        assert!(NamespacedAuth::take(directory.path(), &order).await.expect("taken").is_none());
        let file = path_of(directory.path(), "prod", &order.image).expect("a path");
        std::fs::File::create(&file).expect("a file").write_all(b"{}").expect("written");
        let taken = NamespacedAuth::take(directory.path(), &order).await.expect("taken").expect("a file");
        assert!(!file.exists() && taken.path().starts_with(directory.path().join(IN_USE)));
        assert!(NamespacedAuth::take(directory.path(), &order).await.expect("taken").is_none());
        let used = taken.path().to_owned();
        assert!(used.exists());
        drop(taken);
        assert!(!used.exists());
        std::os::unix::fs::symlink("/etc/passwd", &file).expect("a link");
        assert!(NamespacedAuth::take(directory.path(), &order).await.is_err());
    }
}
