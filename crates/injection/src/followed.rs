//! Directories of small files that are read again once something in them has changed.
//!
//! Whoever wants the content asks, and then the directories are looked at: some calls of stat(2) for a container, in
//! exchange for no watch that could be lost and no moment in which a file is there and nobody knows.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// Generators write hundreds of kilobytes for large machines; this is for those that got out of hand.
const FILE_MAX_BYTES: u64 = 8 << 20;
/// A directory with more than this is not one of hand-picked definitions.
const FILES_MAX: usize = 4096;
/// Two changes within one tick of the kernel's clock look the same; what is this young is read again next time.
const YOUNG: Duration = Duration::from_secs(1);

/// One file of the directories.
pub(crate) struct File {
    /// Which directory it lies in, from 0.
    pub(crate) directory: usize,
    pub(crate) path: PathBuf,
    pub(crate) bytes: io::Result<Vec<u8>>,
}

/// What a file looked like when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Look {
    directory: usize,
    path: PathBuf,
    /// Device, inode, size, and the times of content and inode in nanoseconds; absent for what cannot be looked at.
    stat: Option<(u64, u64, u64, i128, i128)>,
}

/// The content, and how to make it of files: what is wrong comes beside it.
pub(crate) struct Followed<T> {
    extensions: &'static [&'static str],
    make: fn(Vec<File>) -> (T, Vec<String>),
    state: Mutex<State<T>>,
}

struct State<T> {
    directories: Vec<PathBuf>,
    looks: Vec<Look>,
    /// Absent while it cannot be trusted: never read, too young, or with problems that may be gone by the next time.
    current: Option<Arc<T>>,
    /// Problems that were told already.
    said: BTreeSet<String>,
}

impl<T> Followed<T> {
    pub(crate) fn new(
        directories: Vec<PathBuf>,
        extensions: &'static [&'static str],
        make: fn(Vec<File>) -> (T, Vec<String>),
    ) -> Self {
        let state = State { directories, looks: vec![], current: None, said: BTreeSet::new() };
        Self { extensions, make, state: Mutex::new(state) }
    }

    /// Looks into other directories from now on.
    pub(crate) fn set_directories(&self, directories: Vec<PathBuf>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.directories = directories;
        state.current = None;
    }

    /// What the files say now. Problems are logged, each once for as long as it lasts.
    pub(crate) fn get(&self) -> Arc<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (looks, mut problems) = look(&state.directories, self.extensions);
        if let Some(current) = state.current.as_ref().filter(|_| looks == state.looks) {
            return Arc::clone(current);
        }
        let files = looks.iter().map(|look| File {
            directory: look.directory,
            path: look.path.clone(),
            bytes: read(&look.path),
        });
        let (content, wrong) = (self.make)(files.collect());
        problems.extend(wrong);
        let content = Arc::new(content);
        for problem in problems.iter().filter(|problem| !state.said.contains(*problem)) {
            tracing::error!("{problem}");
        }
        state.current = (problems.is_empty() && !is_young(&looks)).then(|| Arc::clone(&content));
        state.said = problems.into_iter().collect();
        state.looks = looks;
        content
    }
}

fn look(directories: &[PathBuf], extensions: &[&str]) -> (Vec<Look>, Vec<String>) {
    let (mut looks, mut problems) = (vec![], vec![]);
    for (number, directory) in directories.iter().enumerate() {
        match names(directory, extensions) {
            Ok(paths) => {
                looks.extend(paths.into_iter().map(|path| Look { directory: number, stat: stat(&path), path }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => problems.push(format!("read directory {}: {error}", directory.display())),
        }
    }
    (looks, problems)
}

/// Files with one of the extensions, sorted by name; directories are passed over.
fn names(directory: &Path, extensions: &[&str]) -> io::Result<Vec<PathBuf>> {
    let mut paths = vec![];
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let is_wanted =
            path.extension().and_then(|extension| extension.to_str()).is_some_and(|own| extensions.contains(&own));
        if is_wanted && !path.is_dir() {
            paths.push(path);
        }
        if paths.len() > FILES_MAX {
            return Err(io::Error::other(format!("more than {FILES_MAX} files")));
        }
    }
    paths.sort();
    Ok(paths)
}

fn stat(path: &Path) -> Option<(u64, u64, u64, i128, i128)> {
    let found = fs::metadata(path).ok()?;
    let time = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    let (changed, inode_changed) = (time(found.mtime(), found.mtime_nsec()), time(found.ctime(), found.ctime_nsec()));
    Some((found.dev(), found.ino(), found.len(), changed, inode_changed))
}

fn is_young(looks: &[Look]) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let Ok(limit) = i128::try_from(now.saturating_sub(YOUNG).as_nanos()) else { return true };
    looks.iter().any(|look| look.stat.is_none_or(|(.., changed, inode_changed)| changed.max(inode_changed) > limit))
}

/// Reads a regular file, bounded; never blocks on what is none.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = fs::File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = vec![];
    file.take(FILE_MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_MAX_BYTES {
        return Err(io::Error::other(format!("larger than {FILE_MAX_BYTES} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn write(path: &Path, text: &str) {
        fs::File::create(path).and_then(|mut file| file.write_all(text.as_bytes())).expect("writes");
    }

    fn texts(files: Vec<File>) -> (Vec<String>, Vec<String>) {
        let (mut texts, mut problems) = (vec![], vec![]);
        for file in files {
            match file.bytes {
                Ok(bytes) => texts.push(format!("{}:{}", file.directory, String::from_utf8_lossy(&bytes))),
                Err(error) => problems.push(format!("{}: {error}", file.path.display())),
            }
        }
        (texts, problems)
    }

    #[test]
    fn changes_are_seen_at_the_next_look() {
        let base = tempfile::tempdir().expect("a directory");
        let (first, second) = (base.path().join("1"), base.path().join("2"));
        fs::create_dir(&first).expect("a directory");
        let followed = Followed::new(vec![first.clone(), second.clone()], &["json"], texts);
        assert!(followed.get().is_empty());
        write(&first.join("b.json"), "b");
        write(&first.join("a.json"), "a");
        write(&first.join("c.txt"), "c");
        fs::create_dir(first.join("d.json")).expect("a directory");
        assert_eq!(*followed.get(), ["0:a", "0:b"]);
        fs::create_dir(&second).expect("a directory");
        write(&second.join("a.json"), "A");
        assert_eq!(*followed.get(), ["0:a", "0:b", "1:A"]);
        // Same size, same tick of the clock.
        write(&second.join("a.json"), "B");
        assert_eq!(*followed.get(), ["0:a", "0:b", "1:B"]);
        fs::remove_file(first.join("a.json")).expect("removes");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            first.join("fifo.json"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .expect("a fifo");
        assert_eq!(*followed.get(), ["0:b", "1:B"]);
        followed.set_directories(vec![second]);
        assert_eq!(*followed.get(), ["0:B"]);
    }

    #[test]
    fn what_has_come_to_rest_is_not_read_again() {
        let base = tempfile::tempdir().expect("a directory");
        write(&base.path().join("a.json"), "a");
        let followed = Followed::new(vec![base.path().to_owned()], &["json"], texts);
        std::thread::sleep(YOUNG + Duration::from_millis(100));
        let one = followed.get();
        assert!(Arc::ptr_eq(&one, &followed.get()));
        write(&base.path().join("b.json"), "b");
        assert_eq!(followed.get().len(), 2);
    }
}
