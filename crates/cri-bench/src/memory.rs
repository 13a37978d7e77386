//! Memory of processes, read from `/proc/PID/smaps_rollup` (proc(5), Linux 4.14).

use std::path::{Path, PathBuf};

use crate::error::BenchError;

/// What a process occupies, in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Resident pages, shared ones counted whole.
    pub(crate) rss_kib: u64,
    /// Resident pages, each divided by the number of processes that share it.
    pub(crate) pss_kib: u64,
}

/// Memory of one process.
pub(crate) fn of_process(pid: u32) -> Result<Memory, BenchError> {
    let path = PathBuf::from(format!("/proc/{pid}/smaps_rollup"));
    let text = std::fs::read_to_string(&path).map_err(|source| BenchError::Read { path: path.clone(), source })?;
    parse(&text, &path)
}

fn parse(text: &str, path: &Path) -> Result<Memory, BenchError> {
    let field = |name: &'static str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().strip_suffix("kB")?.trim().parse().ok())
            .ok_or_else(|| BenchError::NoField { path: path.to_owned(), field: name })
    };
    Ok(Memory { rss_kib: field("Rss")?, pss_kib: field("Pss")? })
}

/// The processes whose command line names one of `ids`: monitors and shims do, because
/// that is how they know what they are for; workloads do not.
///
/// Processes that end while this looks are left out.
pub(crate) fn find_helpers(ids: &[String]) -> Result<Vec<u32>, BenchError> {
    let path = PathBuf::from("/proc");
    let entries = std::fs::read_dir(&path).map_err(|source| BenchError::Read { path, source })?;
    let own = std::process::id();
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_helper = |pid: &u32| {
        let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else { return false };
        let line = String::from_utf8_lossy(&line);
        *pid != own && ids.iter().any(|id| line.contains(id.as_str()))
    };
    Ok(pids.filter(is_helper).collect())
}

/// PSS in KiB, and number, of the helpers found by [`find_helpers`].
pub(crate) fn of_helpers(ids: &[String]) -> Result<(u64, u64), BenchError> {
    let (mut pss_kib, mut count) = (0, 0);
    for memory in find_helpers(ids)?.into_iter().filter_map(|pid| of_process(pid).ok()) {
        pss_kib += memory.pss_kib;
        count += 1;
    }
    Ok((pss_kib, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rollups() {
        let path = Path::new("/proc/1/smaps_rollup");
        let text = "55d0-7ffc ---p 00000000 00:00 0    [rollup]\nRss:                1234 kB\nPss:                 567 kB\n\
                    Pss_Dirty:           89 kB\nPss_Anon: 1 kB\n";
        assert_eq!(parse(text, path).unwrap(), Memory { rss_kib: 1234, pss_kib: 567 });
        for broken in ["", "Rss: 1 kB\n", "Rss: x kB\nPss: 1 kB\n", "Rss: 1\nPss: 1 kB\n"] {
            assert!(parse(broken, path).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn own_process_has_memory() {
        let memory = of_process(std::process::id()).unwrap();
        assert!(memory.rss_kib > 100 && memory.pss_kib > 0 && memory.pss_kib <= memory.rss_kib);
    }

    #[test]
    fn helpers_are_found_by_id() {
        let id = format!("{:064x}", u64::from(std::process::id()) << 20 | 0xabcde);
        let mut child = std::process::Command::new("sleep").args(["60"]).env_clear().spawn().unwrap();
        assert_eq!(of_helpers(std::slice::from_ref(&id)).unwrap().1, 0);
        let mut named = std::process::Command::new("sh").args(["-c", "sleep 60; :", &id]).spawn().unwrap();
        // The command line is the shell's only after its exec.
        let found = (0..100).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            of_helpers(std::slice::from_ref(&id)).unwrap().1 == 1
        });
        for child in [&mut child, &mut named] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(found);
    }
}
