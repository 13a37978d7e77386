//! Exit records: the file `exit` a monitor leaves in the container's persistent directory, and the marker `oom`.
//!
//! Plain decimal without a newline; the time of the end is the file's change time. Source: conmon.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::{fs, io};

use domain::time::Timestamp;

use crate::{LoadError, load};

/// What a monitor wrote down at the end of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitRecord {
    /// Exit status, or 128 + signal.
    pub code: i32,
    /// When the record was written.
    pub finished: Timestamp,
    /// Whether the monitor saw the kernel kill in the container's cgroup for want of memory.
    pub has_oom_marker: bool,
}

/// Reads the exit record beneath a container's persistent directory; `None` while there is none.
pub fn load_exit(persistent: &Path, bundle: &Path) -> Result<Option<ExitRecord>, LoadError> {
    let path = persistent.join("exit");
    let Some(bytes) = load(&path)? else { return Ok(None) };
    let code = std::str::from_utf8(&bytes)
        .ok()
        .and_then(|text| text.trim_end().parse().ok())
        .ok_or_else(|| LoadError::Invalid { path: path.clone(), reason: "not a decimal exit code".to_owned() })?;
    let metadata = fs::metadata(&path).map_err(|source| LoadError::Read { path, source })?;
    let nanos = metadata.ctime().saturating_mul(1_000_000_000).saturating_add(metadata.ctime_nsec());
    let has_oom_marker = [persistent, bundle].iter().any(|directory| match directory.join("oom").symlink_metadata() {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::NotFound && error.kind() != io::ErrorKind::NotADirectory,
    });
    Ok(Some(ExitRecord { code, finished: Timestamp::from_nanos(nanos), has_oom_marker }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::save;

    #[test]
    fn an_exit_record_is_a_plain_number() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path();
        assert!(load_exit(path, path).expect("loads").is_none());
        for (bytes, code) in
            [(&b"0"[..], Some(0)), (b"137", Some(137)), (b"137\n", Some(137)), (b"", None), (b"x", None)]
        {
            save(&path.join("exit"), bytes, 0o644).expect("saves");
            match (load_exit(path, path), code) {
                (Ok(Some(record)), Some(code)) => assert_eq!(record.code, code),
                (Err(_), None) => {}
                (result, _) => panic!("{bytes:?} gave {result:?}"),
            }
        }
    }

    #[test]
    fn an_oom_marker_counts_from_either_directory() {
        let (persistent, bundle) = (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("two"));
        save(&persistent.path().join("exit"), b"137", 0o644).expect("saves");
        let load = || load_exit(persistent.path(), bundle.path()).expect("loads").expect("is there");
        assert!(!load().has_oom_marker);
        save(&bundle.path().join("oom"), b"", 0o644).expect("saves");
        assert!(load().has_oom_marker);
    }
}
