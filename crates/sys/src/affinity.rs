//! On which CPUs threads run.

use std::io;

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};

/// Lets one thread run on these CPUs alone; `None` is the calling one (sched_setaffinity(2)).
///
/// Errors: `InvalidInput` when none of them is among those the thread's cgroup leaves it, or one is beyond what the call
/// can say (1024).
pub fn set(thread: Option<i32>, cpus: impl IntoIterator<Item = u32>) -> io::Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        let at = usize::try_from(cpu).map_err(io::Error::other)?;
        if at >= CpuSet::MAX_CPU {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("CPU {cpu} is beyond {}", CpuSet::MAX_CPU),
            ));
        }
        set.set(at);
    }
    let thread = thread.map(|id| Pid::from_raw(id).ok_or(io::ErrorKind::InvalidInput)).transpose()?;
    Ok(sched_setaffinity(thread, &set)?)
}

/// Lets every thread of a process run on these CPUs alone. Threads it starts meanwhile have those of who starts them.
pub fn set_process(pid: i32, cpus: &[u32]) -> io::Result<()> {
    for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let Some(thread) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        match set(Some(thread), cpus.iter().copied()) {
            // It has ended meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            done => done?,
        }
    }
    Ok(())
}

/// Lets every thread of a process run wherever its cgroup lets it.
pub fn reset_process(pid: i32) -> io::Result<()> {
    let all: Vec<u32> = (0..).take(CpuSet::MAX_CPU).collect();
    set_process(pid, &all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(pid: i32) -> String {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a status");
        let line = status.lines().find(|line| line.starts_with("Cpus_allowed_list:")).expect("a list");
        line.rsplit('\t').next().expect("a value").to_owned()
    }

    #[test]
    fn a_child_runs_where_it_is_told_and_we_go_on_as_before() {
        let own = i32::try_from(std::process::id()).expect("a pid");
        let before = allowed(own);
        let mut command = crate::spawn::Command::new(std::path::Path::new("/bin/sleep")).expect("a command");
        let child = command.arg("60").and_then(|command| command.cpus([0]).spawn()).expect("starts");
        assert_eq!((allowed(child.pid()), allowed(own)), ("0".to_owned(), before.clone()));
        reset_process(child.pid()).expect("resets");
        assert_eq!(allowed(child.pid()), before);
        set_process(child.pid(), &[0]).expect("sets");
        assert_eq!(allowed(child.pid()), "0");
        child.signal(rustix::process::Signal::KILL).expect("ends");
        assert!(set(None, [1 << 20]).is_err());
        let beyond =
            crate::spawn::Command::new(std::path::Path::new("/bin/true")).expect("a command").cpus([1023]).spawn();
        assert!(beyond.is_err(), "a CPU that is not there");
    }
}
