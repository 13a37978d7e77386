//! Processor time of processes, read from `/proc/PID/task/TID/schedstat` (the kernel's sched-stats document): in
//! nanoseconds, where `/proc/PID/stat` has hundredths of a second.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::BenchError;

/// What all threads of one process have used. A thread that ended takes its time along.
fn of_process(pid: u32) -> Result<Duration, BenchError> {
    let path = PathBuf::from(format!("/proc/{pid}/task"));
    let threads = std::fs::read_dir(&path).map_err(|source| BenchError::Read { path, source })?;
    let nanos = threads.flatten().filter_map(|thread| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_ascii_whitespace().next()?.parse::<u64>().ok()
    });
    Ok(Duration::from_nanos(nanos.sum()))
}

/// What a daemon and its helpers have used together. Helpers that are gone count nothing.
pub(crate) fn of_engine(daemon: u32, helpers: &[u32]) -> Result<Duration, BenchError> {
    let helpers = helpers.iter().filter_map(|pid| of_process(*pid).ok());
    Ok(of_process(daemon)? + helpers.sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_shows() {
        let own = std::process::id();
        let before = of_engine(own, &[]).unwrap();
        let sum = (0..30_000_000_u64).fold(0_u64, |sum, number| std::hint::black_box(sum ^ number));
        let used = of_engine(own, &[]).unwrap().saturating_sub(before);
        assert!(used > Duration::from_millis(1), "{used:?} for {sum}");
        assert!(of_engine(own, &[u32::MAX]).is_ok() && of_engine(u32::MAX, &[]).is_err());
    }
}
