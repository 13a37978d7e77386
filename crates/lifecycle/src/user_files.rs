//! `passwd` and `group` of an image, and the copies with a line for whoever the image does not know.

use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use durable::Durability;
use durable::beneath::Root;

/// One larger than this is an attack, not a list of users. Twice what is looked at for users; both files, and the copy of
/// one with a line added, are in memory at a time.
const MAX_BYTES: u64 = 4 << 20;

/// A file of the image, empty where there is none.
#[derive(Debug, Default)]
pub(crate) struct UserFile {
    pub(crate) bytes: Vec<u8>,
    mode: u32,
    uid: u32,
    gid: u32,
    /// The owner that counts: its user for passwd, its group for group.
    owner: u32,
}

/// Reads a file of the image, bounded and without following it out of the root. Absent is empty.
pub(crate) fn read(root: &Root, path: &str) -> io::Result<UserFile> {
    let file = match root.open_regular(Path::new(path)) {
        Ok(file) => file,
        // A dangling link, a directory or a fifo is no list of users either.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidInput
            ) =>
        {
            return Ok(UserFile::default());
        }
        Err(error) => return Err(error),
    };
    let stat = file.metadata()?;
    // A sparse file of any size costs its maker nothing, so that its size is looked at before it is read.
    if stat.len() > MAX_BYTES {
        return Err(io::Error::other("the file is larger than 4 MiB"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    let owner = if path.ends_with("group") { stat.gid() } else { stat.uid() };
    Ok(UserFile { bytes, mode: stat.mode() & 0o777, uid: stat.uid(), gid: stat.gid(), owner })
}

impl UserFile {
    /// Whether no copy is made for this user or group: there is nothing to bind over, or the image has arranged that its
    /// programs write the file themselves, as those for arbitrary users do. Source: CRI-O.
    pub(crate) fn is_left_alone(&self, id: Option<u32>) -> bool {
        self.bytes.is_empty() || self.mode & 0o022 != 0 || id == Some(self.owner) && self.mode & 0o200 != 0
    }
}

/// Writes a copy with one more line, which has its line break, for the same owner and with the same mode.
pub(crate) fn write(path: &Path, file: &UserFile, line: &str) -> io::Result<()> {
    let mut text = file.bytes.clone();
    if !text.ends_with(b"\n") {
        text.push(b'\n');
    }
    text.extend_from_slice(line.as_bytes());
    durable::replace(path, &text, file.mode, Durability::Volatile).map_err(io::Error::other)?;
    chown(path, Some(file.uid), Some(file.gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_programs_write_themselves_are_left_alone() {
        for (bytes, mode, owner, id, expected) in [
            (&b"x"[..], 0o644, 0, 1000, false),
            (b"x", 0o644, 0, 0, true),
            (b"x", 0o444, 0, 0, false),
            (b"x", 0o664, 0, 1000, true),
            (b"x", 0o646, 0, 1000, true),
            (b"x", 0o600, 1000, 1000, true),
            (b"", 0o444, 0, 1000, true),
        ] {
            let file = UserFile { bytes: bytes.to_vec(), mode, uid: owner, gid: owner, owner };
            assert_eq!(file.is_left_alone(Some(id)), expected, "{mode:o} {owner} {id}");
        }
    }

    #[test]
    fn copies_look_like_the_images_own() {
        let base = tempfile::tempdir().expect("a directory");
        let path = base.path().join("passwd");
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let file = UserFile { bytes: b"root:x:0:0::/:/bin/sh".to_vec(), mode: 0o640, uid, gid, owner: uid };
        write(&path, &file, "7:x:7:7:7 user:/:/sbin/nologin\n").expect("writes");
        let text = std::fs::read_to_string(&path).expect("reads");
        assert_eq!(text, "root:x:0:0::/:/bin/sh\n7:x:7:7:7 user:/:/sbin/nologin\n");
        assert_eq!(std::fs::metadata(&path).expect("stat").mode() & 0o777, 0o640);
    }
}
