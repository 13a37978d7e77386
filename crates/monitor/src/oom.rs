//! Whether the kernel killed a process of the container for want of memory.
//!
//! cgroup v1: an eventfd announced through `cgroup.event_control` fires when the group, or one above it, runs out; the
//! counter `oom_kill` of `memory.oom_control` tells whether it was ours that paid. It fires before the kill, so the counter
//! is looked at again a little later, and at the container's end. cgroup v2: `memory.events` is watched.
//! Source: the kernel's cgroup-v1/memory and cgroup-v2 documents.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::inotify;
use rustix::fs::{CWD, Mode, OFlags, openat, statfs};
use rustix::process::Pid;
use thiserror::Error;

const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// The magic number of a cgroup2 file system, statfs(2).
const CGROUP2_MAGIC: i64 = 0x6367_7270;

/// Longest `memory.events` or `memory.oom_control` that is read; they have a few lines of a word and a number.
const COUNTERS_MAX: usize = 1024;

/// Time between looks at the counter after the group ran out.
const RECHECK_INTERVAL: Duration = Duration::from_millis(50);

/// Looks before the event is taken for another group's. A kill is counted within milliseconds.
const RECHECKS: u32 = 20;

/// A container that cannot be watched.
#[derive(Debug, Error)]
pub(crate) enum WatchError {
    /// The cgroup of its process is not known.
    #[error("find the memory cgroup of process {pid}")]
    Find {
        pid: i32,
        #[source]
        source: io::Error,
    },
    /// The cgroup's files do not answer.
    #[error("watch {}", path.display())]
    Watch {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Where kills are counted.
#[derive(Debug, PartialEq, Eq)]
enum Group {
    V1(PathBuf),
    V2(PathBuf),
}

/// Reads `/proc/<pid>/cgroup`, cgroups(7). A hybrid machine has memory in v1 and an empty-handed v2 line.
fn parse_groups(text: &str, root: &Path, is_unified: bool) -> Option<Group> {
    let lines = || text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let beneath = |root: PathBuf, path: &str| root.join(path.trim_start_matches('/'));
    let v1 = lines().find(|(controllers, _)| controllers.split(',').any(|name| name == "memory"));
    if let Some((_, path)) = v1 {
        return Some(Group::V1(beneath(root.join("memory"), path)));
    }
    let (_, path) = lines().find(|(controllers, _)| controllers.is_empty())?;
    is_unified.then(|| Group::V2(beneath(root.to_owned(), path)))
}

/// The sum of the counters with these names.
fn parse_counters(text: &str, names: &[&str]) -> u64 {
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    let wanted = pairs.filter(|(name, _)| names.contains(name));
    wanted.filter_map(|(_, value)| value.trim().parse::<u64>().ok()).fold(0, u64::saturating_add)
}

/// Watches one container's cgroup.
#[derive(Debug)]
pub(crate) struct OomWatch {
    /// Becomes readable when something happened.
    event: OwnedFd,
    counters: File,
    names: &'static [&'static str],
    before: u64,
    recheck: Option<(Instant, u32)>,
}

impl OomWatch {
    /// `None` when no memory controller is in use.
    pub(crate) fn open(pid: Pid) -> Result<Option<Self>, WatchError> {
        let pid = pid.as_raw_nonzero().get();
        let find = |source| WatchError::Find { pid, source };
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).map_err(find)?;
        let is_unified = statfs(CGROUP_ROOT).map_err(|error| find(error.into()))?.f_type == CGROUP2_MAGIC;
        let Some(group) = parse_groups(&text, Path::new(CGROUP_ROOT), is_unified) else { return Ok(None) };
        let (path, opened) = match group {
            Group::V1(path) => (path.clone(), Self::open_v1(&path)),
            Group::V2(path) => (path.clone(), Self::open_v2(&path)),
        };
        opened.map(Some).map_err(|source| WatchError::Watch { path, source })
    }

    fn new(event: OwnedFd, counters: File, names: &'static [&'static str]) -> io::Result<Self> {
        let mut watch = Self { event, counters, names, before: 0, recheck: None };
        watch.before = watch.count()?;
        Ok(watch)
    }

    fn open_v1(group: &Path) -> io::Result<Self> {
        let counters = File::open(group.join("memory.oom_control"))?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let control = openat(CWD, group.join("cgroup.event_control"), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        let request = format!("{} {}", event.as_raw_fd(), counters.as_raw_fd());
        rustix::io::write(&control, request.as_bytes())?;
        Self::new(event, counters, &["oom_kill"])
    }

    fn open_v2(group: &Path) -> io::Result<Self> {
        let path = group.join("memory.events");
        let event = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&event, &path, inotify::WatchFlags::MODIFY)?;
        Self::new(event, File::open(&path)?, &["oom", "oom_kill"])
    }

    fn count(&mut self) -> io::Result<u64> {
        let mut buffer = [0; COUNTERS_MAX];
        self.counters.seek(SeekFrom::Start(0))?;
        let mut length = 0;
        loop {
            match self.counters.read(&mut buffer[length..])? {
                0 => break,
                count => length += count,
            }
        }
        Ok(parse_counters(&String::from_utf8_lossy(&buffer[..length]), self.names))
    }

    /// Whether there was a kill. A group that was removed answers no.
    pub(crate) fn has_killed(&mut self) -> bool {
        self.count().is_ok_and(|count| count > self.before)
    }

    /// Takes the event off the descriptor. Follow with [`Self::look`].
    pub(crate) fn acknowledge(&mut self, now: Instant) {
        // Nothing to be read is as good as read.
        let _ = rustix::io::read(&self.event, &mut [0; 512]);
        self.recheck = Some((now, RECHECKS));
    }

    /// When to look next.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        self.recheck.map(|(at, _)| at)
    }

    /// Looks if it is time to; true when there was a kill.
    pub(crate) fn look(&mut self, now: Instant) -> bool {
        match self.recheck {
            Some((at, left)) if now >= at => {
                self.recheck = left.checked_sub(1).map(|left| (now + RECHECK_INTERVAL, left));
                self.has_killed()
            }
            Some(_) | None => false,
        }
    }
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn the_group_that_accounts_memory_is_found() {
        let root = Path::new("/cg");
        let v1 = |path: &str| Some(Group::V1(path.into()));
        let v2 = |path: &str| Some(Group::V2(path.into()));
        for (text, is_unified, group) in [
            ("9:name=systemd:/a\n3:cpu,memory:/b/c\n0::/d\n", false, v1("/cg/memory/b/c")),
            ("0::/pod/ctr\n", true, v2("/cg/pod/ctr")),
            ("0::/pod:1/ctr\n", true, v2("/cg/pod:1/ctr")),
            ("4:cpu:/x\n0::/y\n", false, None),
            ("", true, None),
            ("nonsense\n", true, None),
        ] {
            assert_eq!(parse_groups(text, root, is_unified), group, "{text:?}");
        }
    }

    #[test]
    fn counters_are_read_by_name() {
        let text = "low 9\nhigh 9\nmax 9\noom 2\noom_kill 1\noom_group_kill 9\n";
        assert_eq!(parse_counters(text, &["oom", "oom_kill"]), 3);
        assert_eq!(parse_counters("oom_kill_disable 0\nunder_oom 0\noom_kill 4\n", &["oom_kill"]), 4);
        assert_eq!(parse_counters("oom_kill x\n\noom_kill", &["oom_kill"]), 0);
    }

    #[test]
    fn a_rising_counter_of_v2_is_seen() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("memory.events");
        let mut file = File::create(&path).unwrap();
        file.write_all(b"oom 1\noom_kill 1\n").unwrap();
        let mut watch = OomWatch::open_v2(root.path()).unwrap();
        let now = Instant::now();
        watch.acknowledge(now);
        assert!(!watch.look(now));
        assert!(watch.next_look().is_some());
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(b"oom 2\noom_kill 2\n").unwrap();
        let readable = rustix::event::PollFd::new(&watch, rustix::event::PollFlags::IN);
        assert_eq!(rustix::event::poll(&mut [readable], None).unwrap(), 1);
        let now = Instant::now() + RECHECK_INTERVAL;
        assert!(watch.look(now) && watch.has_killed());
    }

    #[test]
    fn looking_ends_by_itself() {
        let root = tempfile::tempdir().unwrap();
        File::create(root.path().join("memory.events")).unwrap();
        let mut watch = OomWatch::open_v2(root.path()).unwrap();
        let mut now = Instant::now();
        watch.acknowledge(now);
        let mut looks = 0;
        while let Some(at) = watch.next_look() {
            now = at;
            assert!(!watch.look(now));
            looks += 1;
        }
        assert_eq!(looks, RECHECKS + 1);
    }
}
