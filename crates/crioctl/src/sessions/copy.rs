//! Files between this machine and a container, through `tar` in the container, as `kubectl cp` does it.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use cri_api::v1::{ExecRequest, ExecSyncRequest};
use tokio::sync::mpsc;

use super::SessionError;
use super::remote::Streams;
use super::unpack::{Target, unpack};
use super::upgrade::Trust;
use crate::client::Client;
use crate::error::CommandError;

/// Parts of an archive that wait for the other side.
const QUEUE: usize = 8;
const PART: usize = 64 * 1024;

/// Copies `from` to `to`, one of which is in a container; `find` turns what the user calls it into its id.
pub(crate) async fn copy(
    client: &Client,
    from: &str,
    to: &str,
    trust: &Trust,
    find: impl AsyncFn(&str) -> Result<String, CommandError>,
) -> Result<(), CommandError> {
    match (split(from), split(to)) {
        (Some((container, path)), None) => {
            fetch(client, find(container).await?, Path::new(path), Path::new(to), trust).await
        }
        (None, Some((container, path))) => {
            store(client, find(container).await?, Path::new(from), Path::new(path), trust).await
        }
        _ => Err(SessionError::CopyEnds.into()),
    }
}

/// `CONTAINER:PATH`. A path of this machine that has a colon is written with a slash before it.
fn split(text: &str) -> Option<(&str, &str)> {
    text.split_once(':')
        .filter(|(container, path)| !container.is_empty() && !container.contains('/') && !path.is_empty())
}

fn file_name(path: &Path) -> Result<&OsStr, SessionError> {
    path.file_name().ok_or_else(|| SessionError::CopyPath { path: path.display().to_string() })
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn words(words: &[&OsStr]) -> Vec<String> {
    words.iter().map(|word| word.to_string_lossy().into_owned()).collect()
}

/// Begins `tar` in the container.
async fn tar(
    client: &Client,
    container_id: String,
    cmd: Vec<String>,
    stdin: bool,
    trust: &Trust,
) -> Result<Streams, CommandError> {
    let order = ExecRequest { container_id, cmd, tty: false, stdin, stdout: true, stderr: true };
    let url = client.exec(order).await?.url;
    Ok(Streams::open(&url, stdin, false, trust).await?)
}

/// Out of the container. Nothing is written but what was asked for: links and devices are passed over.
async fn fetch(
    client: &Client,
    container_id: String,
    from: &Path,
    to: &Path,
    trust: &Trust,
) -> Result<(), CommandError> {
    let base = file_name(from)?.to_owned();
    // Into a directory under its own name, else under the name given.
    let (directory, name) =
        if to.is_dir() { (to.to_owned(), base.clone()) } else { (parent(to).to_owned(), file_name(to)?.to_owned()) };
    let target = Target::open(&directory, &base, &name)?;
    let member = [OsStr::new("./"), &base].concat_os();
    let cmd = words(&[
        OsStr::new("tar"),
        OsStr::new("cf"),
        OsStr::new("-"),
        OsStr::new("-C"),
        parent(from).as_os_str(),
        &member,
    ]);
    let mut streams = tar(client, container_id, cmd, false, trust).await?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    let writing = tokio::task::spawn_blocking(move || unpack(Parts { receiver, part: Vec::new(), at: 0 }, &target));
    let Streams { stdout, .. } = &mut streams;
    while let Some(part) = stdout.next().await {
        if sender.send(part).await.is_err() {
            break;
        }
    }
    drop(sender);
    let written = writing.await.map_err(|error| SessionError::Failed(error.to_string()))?;
    // What tar complains of says more than that the archive was cut short.
    finish(&mut streams, &from.display().to_string()).await?;
    for skipped in written? {
        eprintln!("crioctl: passed over {skipped}: neither a file nor a directory");
    }
    Ok(())
}

/// Into the container.
async fn store(
    client: &Client,
    container_id: String,
    from: &Path,
    to: &Path,
    trust: &Trust,
) -> Result<(), CommandError> {
    let failed = |source| SessionError::Copy { what: from.display().to_string(), source };
    from.symlink_metadata().map_err(failed)?;
    let test = words(&[OsStr::new("test"), OsStr::new("-d"), to.as_os_str()]);
    let order = ExecSyncRequest { container_id: container_id.clone(), cmd: test, timeout: 0 };
    let is_directory = client.exec_sync(order).await.is_ok_and(|answer| answer.exit_code == 0);
    let absolute = std::path::absolute(from).map_err(failed)?;
    let (directory, name) = if is_directory {
        (to.to_owned(), file_name(&absolute)?.to_owned())
    } else {
        (parent(to).to_owned(), file_name(to)?.to_owned())
    };
    let cmd = words(&[OsStr::new("tar"), OsStr::new("xf"), OsStr::new("-"), OsStr::new("-C"), directory.as_os_str()]);
    let mut streams = tar(client, container_id, cmd, true, trust).await?;
    let (sender, mut parts) = mpsc::channel(QUEUE);
    let source = from.to_owned();
    let packing = tokio::task::spawn_blocking(move || pack(&source, &name, Pipe { sender, part: Vec::new() }));
    if let Some(stdin) = streams.stdin.take() {
        while let Some(part) = parts.recv().await {
            if stdin.send(&part).await.is_err() {
                break;
            }
        }
        let _ = stdin.finish().await;
    }
    drop(parts);
    let packed = packing.await.map_err(|error| SessionError::Failed(error.to_string()))?;
    finish(&mut streams, &to.display().to_string()).await?;
    for skipped in packed.map_err(failed)? {
        eprintln!("crioctl: passed over {}: neither a file, a directory nor a link", skipped.display());
    }
    Ok(())
}

/// Waits for `tar` and says what it complained of.
async fn finish(streams: &mut Streams, what: &str) -> Result<(), SessionError> {
    let complaint = streams.complaint().await;
    match streams.end().await? {
        0 => Ok(()),
        code if complaint.is_empty() => Err(SessionError::Failed(format!("copy {what}: tar ended with {code}"))),
        _ => Err(SessionError::Failed(format!("copy {what}: {complaint}"))),
    }
}

/// An archive of a file or a directory under a name, everything owned by root; returns what has no place in it.
fn pack(from: &Path, name: &OsStr, target: impl Write) -> io::Result<Vec<PathBuf>> {
    let mut builder = tar::Builder::new(target);
    let mut skipped = Vec::new();
    let mut waiting = vec![(from.to_owned(), PathBuf::from(name))];
    while let Some((path, name)) = waiting.pop() {
        let metadata = path.symlink_metadata()?;
        let mut header = tar::Header::new_gnu();
        header.set_mode(metadata.permissions().mode() & 0o7777);
        header.set_mtime(metadata.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs());
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        if metadata.is_dir() {
            header.set_entry_type(tar::EntryType::Directory);
            builder.append_data(&mut header, &name, io::empty())?;
            for entry in std::fs::read_dir(&path)? {
                let entry = entry?.file_name();
                waiting.push((path.join(&entry), name.join(&entry)));
            }
        } else if metadata.is_file() {
            header.set_size(metadata.len());
            // A file that shrinks meanwhile would leave the archive crooked.
            let file = std::fs::File::open(&path)?.take(metadata.len()).chain(io::repeat(0)).take(metadata.len());
            builder.append_data(&mut header, &name, file)?;
        } else if metadata.is_symlink() {
            header.set_entry_type(tar::EntryType::Symlink);
            builder.append_link(&mut header, &name, std::fs::read_link(&path)?)?;
        } else {
            skipped.push(path);
        }
    }
    builder.into_inner()?.flush()?;
    Ok(skipped)
}

/// Joins words without regard to what they are.
trait ConcatOs {
    fn concat_os(&self) -> OsString;
}

impl ConcatOs for [&OsStr; 2] {
    fn concat_os(&self) -> OsString {
        OsStr::from_bytes(&self.map(OsStr::as_bytes).concat()).to_owned()
    }
}

/// Parts from the session as something to read.
struct Parts {
    receiver: mpsc::Receiver<Vec<u8>>,
    part: Vec<u8>,
    at: usize,
}

impl Read for Parts {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.part.len() {
            match self.receiver.blocking_recv() {
                Some(part) => (self.part, self.at) = (part, 0),
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.part.len() - self.at);
        buffer[..length].copy_from_slice(&self.part[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}

/// Something to write to as parts for the session.
struct Pipe {
    sender: mpsc::Sender<Vec<u8>>,
    part: Vec<u8>,
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.part.extend_from_slice(bytes);
        if self.part.len() >= PART {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let part = std::mem::take(&mut self.part);
        if part.is_empty() {
            return Ok(());
        }
        self.sender.blocking_send(part).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends() {
        for (text, expected) in [
            ("web:/etc/hosts", Some(("web", "/etc/hosts"))),
            ("web:x", Some(("web", "x"))),
            ("./a:b", None),
            ("/a:b", None),
            ("a", None),
            (":a", None),
            ("a:", None),
        ] {
            assert_eq!(split(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_packed_is_unpacked() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let tree = from.path().join("tree");
        std::fs::create_dir_all(tree.join("deep/er")).unwrap();
        let long = "long".repeat(40);
        for (name, bytes) in [("a", &b"one"[..]), ("deep/er/b", &[7; 200_000]), (&long, b"")] {
            std::fs::File::create(tree.join(name)).unwrap().write_all(bytes).unwrap();
        }
        std::os::unix::fs::symlink("/etc/passwd", tree.join("link")).unwrap();
        std::fs::set_permissions(tree.join("a"), std::fs::Permissions::from_mode(0o4711)).unwrap();
        let mut archive = Vec::new();
        assert!(pack(&tree, OsStr::new("tree"), &mut archive).unwrap().is_empty());
        let target = Target::open(to.path(), OsStr::new("tree"), OsStr::new("copy")).unwrap();
        let skipped = unpack(&archive[..], &target).unwrap();
        assert_eq!(skipped, ["tree/link"]);
        let read = |name: &str| std::fs::read(to.path().join("copy").join(name)).unwrap();
        assert_eq!((read("a"), read("deep/er/b").len(), read(&long).len()), (b"one".to_vec(), 200_000, 0));
        let mode = to.path().join("copy/a").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o711, "no bits that change who runs it");
    }
}
