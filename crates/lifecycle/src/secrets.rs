//! Files of the node that every container gets a copy of: those that `mounts.conf` lists, such as subscriptions.
//!
//! The copies lie in the container's run directory and go with it. Links in the node's directories are followed, because
//! what is customary there (`/usr/share/rhel/secrets`) consists of nothing else; a copy contains none, and it is made
//! beneath a handle, so that nothing is ever written elsewhere. Source: containers-mounts.conf(5); CRI-O does this.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use domain::spec::ResolvedMount;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

/// Looked for in this order when the configuration names none; the first that exists counts alone.
const CUSTOMARY: [&str; 2] = ["/etc/containers/mounts.conf", "/usr/share/containers/mounts.conf"];
const LIST_MAX_BYTES: u64 = 1 << 20;
/// Certificates and configuration have some kilobytes; every container costs this much at worst.
const COPY_MAX_BYTES: u64 = 64 << 20;
const COPY_MAX_FILES: usize = 8192;
/// Ends loops of links.
const DEPTH_MAX: usize = 16;

/// A line of the list: what of the node appears where.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    source: PathBuf,
    destination: PathBuf,
}

/// Copies what the list names below `base`, which is made, and returns the mounts of the copies.
///
/// What is absent is passed over; what cannot be copied is told and passed over, as by CRI-O. `taken` are the container
/// paths of the request's own mounts, which win.
pub(crate) fn copy(configured: Option<&Path>, base: &Path, taken: &[&str]) -> Vec<ResolvedMount> {
    let files = match configured {
        Some(file) => vec![file],
        None => CUSTOMARY.iter().map(Path::new).collect(),
    };
    let Some(list) = files.into_iter().find(|file| file.exists()) else { return vec![] };
    let text = match read_list(list) {
        Ok(text) => text,
        Err(error) => {
            tracing::warn!(path = %list.display(), %error, "cannot read the list of mounts for every container");
            return vec![];
        }
    };
    let mut mounts = Vec::new();
    for entry in parse(&text) {
        let destination = entry.destination.display().to_string();
        if taken.contains(&destination.as_str()) || !entry.source.exists() {
            tracing::debug!(path = %entry.source.display(), "passing over a mount for every container");
            continue;
        }
        let copy = base.join(entry.destination.strip_prefix("/").unwrap_or(&entry.destination));
        match copy_entry(&entry, base) {
            Ok(()) => mounts.push(ResolvedMount {
                destination,
                source: copy.display().to_string(),
                ..ResolvedMount::default()
            }),
            Err(error) => tracing::warn!(
                path = %entry.source.display(), list = %list.display(), %error,
                "leaving out a mount for every container, it cannot be copied"
            ),
        }
    }
    mounts
}

fn read_list(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LIST_MAX_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// `/source:/destination` or one path for both a line; other lines are comments.
fn parse(text: &str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| line.starts_with('/')) {
        let (source, destination) = line.split_once(':').unwrap_or((line, line));
        match clean(destination) {
            // Later lines win, and one run directory has one copy for a path.
            Some(destination) => {
                entries.retain(|known| known.destination != destination);
                entries.push(Entry { source: source.into(), destination });
            }
            None => tracing::warn!(line, "a mount for every container has no usable destination"),
        }
    }
    entries
}

/// Absolute, below `/`, without `..`.
fn clean(path: &str) -> Option<PathBuf> {
    let path = Path::new(path);
    let mut cleaned = PathBuf::from("/");
    for component in path.is_absolute().then(|| path.components())? {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    (cleaned != Path::new("/")).then_some(cleaned)
}

/// What is left of the bounds.
struct Budget {
    bytes: u64,
    files: usize,
}

impl Budget {
    fn take_file(&mut self) -> io::Result<()> {
        self.files = self.files.checked_sub(1).ok_or_else(|| io::Error::other("more than 8192 files"))?;
        Ok(())
    }
}

fn copy_entry(entry: &Entry, base: &Path) -> io::Result<()> {
    let mut budget = Budget { bytes: COPY_MAX_BYTES, files: COPY_MAX_FILES };
    let stat = fs::metadata(&entry.source)?;
    fs::create_dir_all(base)?;
    let base = rustix::fs::open(base, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let names = entry.destination.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name),
        _ => None,
    });
    let names: Vec<_> = names.collect();
    let Some((last, parents)) = names.split_last() else { return Ok(()) };
    let mut parent = base;
    for name in parents {
        parent = make_directory(parent.as_fd(), name, 0o755)?;
    }
    if stat.is_dir() {
        let directory = make_directory(parent.as_fd(), last, stat.mode() & 0o777)?;
        copy_directory(&entry.source, directory.as_fd(), 0, &mut budget)
    } else if stat.is_file() {
        copy_file(&entry.source, parent.as_fd(), last, &mut budget)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a file nor a directory"))
    }
}

/// Makes a directory, or takes the one that another line's copy made.
fn make_directory(parent: BorrowedFd<'_>, name: &std::ffi::OsStr, mode: u32) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    // The umask does not count: the container has the node's modes.
    rustix::fs::fchmod(&made, Mode::from_raw_mode(mode))?;
    Ok(made)
}

fn copy_directory(source: &Path, target: BorrowedFd<'_>, depth: usize, budget: &mut Budget) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(io::Error::other("more than 16 levels deep"));
    }
    for found in fs::read_dir(source)? {
        let found = found?;
        let (path, name) = (found.path(), found.file_name());
        let stat = match fs::metadata(&path) {
            Ok(stat) => stat,
            // A link to nowhere.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if stat.is_dir() {
            budget.take_file()?;
            let below = make_directory(target, &name, stat.mode() & 0o777)?;
            copy_directory(&path, below.as_fd(), depth + 1, budget)?;
        } else if stat.is_file() {
            copy_file(&path, target, &name, budget)?;
        }
    }
    Ok(())
}

fn copy_file(source: &Path, target: BorrowedFd<'_>, name: &std::ffi::OsStr, budget: &mut Budget) -> io::Result<()> {
    budget.take_file()?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let from = File::from(rustix::fs::open(source, flags, Mode::empty())?);
    let stat = from.metadata()?;
    if !stat.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file any more"));
    }
    match rustix::fs::unlinkat(target, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut to = File::from(rustix::fs::openat(target, name, flags, Mode::from_raw_mode(0o600))?);
    let copied = io::copy(&mut from.take(budget.bytes + 1), &mut to)?;
    budget.bytes = budget.bytes.checked_sub(copied).ok_or_else(|| io::Error::other("larger than 64 MiB"))?;
    to.flush()?;
    rustix::fs::fchmod(&to, Mode::from_raw_mode(stat.mode() & 0o777))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn write(path: &Path, text: &str) {
        File::create(path).and_then(|mut file| file.write_all(text.as_bytes())).expect("writes");
    }

    #[test]
    fn lines_are_paths_and_pairs_of_paths() {
        let entry = |source: &str, destination: &str| Entry { source: source.into(), destination: destination.into() };
        let text =
            "# comment\n/a:/run/secrets\n\n  /b  \nrelative:/x\n/c:relative\n/d:/../etc\n/e:/\n/f:/run//secrets/\n";
        assert_eq!(parse(text), [entry("/b", "/b"), entry("/f", "/run/secrets")]);
    }

    #[test]
    fn directories_are_copied_without_links() {
        let base = tempfile::tempdir().expect("a directory");
        let (source, bundle, list) = (base.path().join("s"), base.path().join("bundle"), base.path().join("list"));
        fs::create_dir_all(source.join("deep")).expect("a directory");
        fs::create_dir(&bundle).expect("a directory");
        write(&base.path().join("elsewhere"), "linked");
        write(&source.join("key"), "secret");
        write(&source.join("deep/more"), "more");
        fs::set_permissions(source.join("key"), fs::Permissions::from_mode(0o640)).expect("a mode");
        symlink(base.path().join("elsewhere"), source.join("link")).expect("a link");
        symlink("/no/where", source.join("dangling")).expect("a link");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            source.join("fifo"),
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .expect("a fifo");
        let line = |from: &Path, to: &str| format!("{}:{to}\n", from.display());
        let lines = [
            line(&source, "/run/secrets"),
            line(&source.join("key"), "/run/secrets/again"),
            line(&source, "/taken"),
            line(Path::new("/no/such/directory"), "/absent"),
        ];
        write(&list, &lines.concat());
        let mounts = copy(Some(&list), &bundle, &["/taken"]);
        let places: Vec<_> = mounts.iter().map(|mount| mount.destination.as_str()).collect();
        assert_eq!(places, ["/run/secrets", "/run/secrets/again"]);
        let copied = bundle.join("run/secrets");
        assert_eq!(mounts[0].source, copied.display().to_string());
        assert_eq!(fs::read_to_string(copied.join("key")).expect("reads"), "secret");
        assert_eq!(fs::read_to_string(copied.join("deep/more")).expect("reads"), "more");
        assert_eq!(fs::read_to_string(copied.join("again")).expect("reads"), "secret");
        assert_eq!(fs::metadata(copied.join("key")).expect("stat").mode() & 0o777, 0o640);
        assert!(copied.join("link").symlink_metadata().expect("stat").is_file());
        for absent in ["dangling", "fifo"] {
            assert!(copied.join(absent).symlink_metadata().is_err(), "{absent}");
        }
        assert!(!bundle.join("taken").exists());
        assert!(copy(Some(Path::new("/no/such/list")), &bundle, &[]).is_empty());
    }

    #[test]
    fn copies_are_bounded_and_loops_end() {
        let base = tempfile::tempdir().expect("a directory");
        let (source, bundle, list) = (base.path().join("s"), base.path().join("bundle"), base.path().join("list"));
        fs::create_dir(&source).expect("a directory");
        fs::create_dir(&bundle).expect("a directory");
        symlink(".", source.join("loop")).expect("a link");
        write(&list, &format!("{}:/loop\n", source.display()));
        assert!(copy(Some(&list), &bundle, &[]).is_empty());
        let large = base.path().join("large");
        File::create(&large).and_then(|file| file.set_len(COPY_MAX_BYTES + 1)).expect("a file");
        write(&list, &format!("{}:/large\n", large.display()));
        assert!(copy(Some(&list), &bundle, &[]).is_empty());
    }

    #[test]
    fn nothing_is_written_through_a_link_in_the_run_directory() {
        let base = tempfile::tempdir().expect("a directory");
        let (bundle, victim, source) = (base.path().join("bundle"), base.path().join("victim"), base.path().join("s"));
        for directory in [&bundle, &victim] {
            fs::create_dir(directory).expect("a directory");
        }
        write(&source, "secret");
        symlink(&victim, bundle.join("run")).expect("a link");
        let entry = Entry { source, destination: "/run/key".into() };
        assert!(copy_entry(&entry, &bundle).is_err());
        assert_eq!(fs::read_dir(&victim).expect("reads").count(), 0);
    }
}
