//! Processor time and memory of a process and its children, from `/proc` (proc(5)).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::Failure;

/// How often memory is looked at; the kernel keeps the highest value of each process itself.
const SAMPLE_EVERY: Duration = Duration::from_millis(10);
/// `sysconf(_SC_CLK_TCK)`, which is 100 on every architecture containers run on.
const TICK: Duration = Duration::from_millis(10);

/// What a process and the children it has waited for have used; of one that ended, until it is waited for.
pub(crate) fn cpu(pid: u32) -> Result<Duration, Failure> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).map_err(Failure::new(&path))?;
    parse_cpu(&text).ok_or_else(|| Failure(format!("{path}: not as expected")))
}

fn parse_cpu(text: &str) -> Option<Duration> {
    // The name, in parentheses, may hold anything.
    let (_, fields) = text.rsplit_once(')')?;
    let ticks = fields.split_ascii_whitespace().skip(11).take(4).map(|field| field.parse::<u32>().ok());
    ticks.sum::<Option<u32>>().map(|ticks| TICK * ticks)
}

/// Whether a process has ended and waits for its parent.
pub(crate) fn has_ended(pid: u32) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    text.rsplit_once(')').is_none_or(|(_, fields)| fields.trim_start().starts_with(['Z', 'X']))
}

/// Makes the highest resident size of a process start anew.
pub(crate) fn reset_peak(pid: u32) -> Result<(), Failure> {
    use std::io::Write;
    let path = format!("/proc/{pid}/clear_refs");
    let written = std::fs::File::options().write(true).open(&path).and_then(|mut file| file.write_all(b"5"));
    written.map_err(Failure::new(&path))
}

fn status_kib(pid: u32, field: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// A process and all below it.
fn tree(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut at = 0;
    while let Some(pid) = all.get(at).copied() {
        at += 1;
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for task in tasks.flatten() {
            let text = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            all.extend(text.split_ascii_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    all
}

/// Watches the memory of a process and its children until asked for the highest sum.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Watch {
    pub(crate) fn start(pid: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut highest: HashMap<u32, u64> = HashMap::new();
            let mut highest_sum = 0;
            loop {
                let last = stopped.load(Ordering::Relaxed);
                let mut sum = 0;
                for process in tree(pid) {
                    sum += status_kib(process, "VmRSS").unwrap_or(0);
                    let peak = status_kib(process, "VmHWM").unwrap_or(0);
                    let known = highest.entry(process).or_insert(0);
                    *known = peak.max(*known);
                }
                highest_sum = highest_sum.max(sum);
                if last {
                    return highest_sum.max(highest.get(&pid).copied().unwrap_or(0));
                }
                std::thread::sleep(SAMPLE_EVERY);
            }
        });
        Self { stop, thread }
    }

    /// In KiB.
    pub(crate) fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let text = "12 (a) (b)) S 1 2 3 4 5 6 7 8 9 10 100 20 3 4 20 0 1 0 5";
        assert_eq!(parse_cpu(text), Some(Duration::from_millis(1270)));
        assert_eq!(parse_cpu("12 (a S"), None);
        assert_eq!(parse_cpu("12 (a) S 1 2"), Some(Duration::ZERO));
    }

    #[test]
    fn a_large_buffer_shows_after_it_is_gone() {
        let own = std::process::id();
        reset_peak(own).unwrap();
        let watch = Watch::start(own);
        let before = status_kib(own, "VmRSS").unwrap();
        drop(std::hint::black_box(vec![1_u8; 64 << 20]));
        assert!(watch.finish() > before + (60 << 10));
        assert!(!has_ended(own));
        assert!(has_ended(u32::MAX));
    }
}
