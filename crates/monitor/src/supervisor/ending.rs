//! The last part of a container's life: what is left is read, and its end recorded.

use std::ffi::{CStr, CString};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{Signal, WaitOptions, kill_process, kill_process_group, waitpid};
use sys::supervise::{Program, spawn};

use super::{End, STDERR, STDOUT, Supervisor};
use crate::exit_record::{Destinations, Unrecorded};
use crate::oom::OomWatch;
use crate::options::{Stdio, Task};
use crate::runtime;

/// How long output is read after the container's end. All of it is there by then; the bound is for a process that left the
/// container's process tree, still writes, and would keep the exit from being recorded.
pub(crate) const DRAIN_MAX: Duration = Duration::from_secs(2);

/// How long a terminal that is still held open by somebody may be silent before it counts as drained. The kernel moves what
/// was written to a terminal in the background, so an empty one may be about to be filled.
const TERMINAL_SILENCE: Duration = Duration::from_millis(100);

/// How long a killed process may take to end. Only one that hangs in the kernel takes longer than moments.
const KILLED_MAX: Duration = Duration::from_secs(1);

/// Time between looks at a killed process.
const KILLED_INTERVAL: Duration = Duration::from_millis(5);

impl Supervisor {
    /// Reads what the container left behind.
    pub(super) fn drain(&mut self) {
        let give_up = Instant::now() + DRAIN_MAX;
        for token in [STDOUT, STDERR] {
            let is_terminal = token == STDOUT && self.options.stdio == Stdio::Terminal;
            while Instant::now() < give_up {
                match self.pass_on(token) {
                    Ok(1..) | Err(rustix::io::Errno::INTR) => {}
                    Err(rustix::io::Errno::AGAIN) if is_terminal && self.terminal_has_more() => {}
                    // For a pipe, nothing there means that nothing comes from what has ended.
                    Ok(0) | Err(_) => break,
                }
            }
        }
    }

    pub(super) fn terminal_has_more(&self) -> bool {
        let Some(terminal) = &self.stdout else { return false };
        let silence = rustix::time::Timespec { tv_sec: 0, tv_nsec: TERMINAL_SILENCE.subsec_nanos().into() };
        poll(&mut [PollFd::new(terminal, PollFlags::IN)], Some(&silence)).is_ok_and(|count| count > 0)
    }

    pub(super) fn finish(mut self, end: End, destinations: &Destinations) -> u8 {
        let (code, message) = match end {
            End::Exited(code) => {
                self.drain();
                (code, None)
            }
            End::TimedOut => {
                self.kill_container();
                if let Some(watcher) = &self.watcher {
                    watcher.tell_code(-1);
                }
                (-1, Some(&b"command timed out"[..]))
            }
        };
        self.reporter.info(&format!("container ended with code {code}"));
        if self.oom.as_mut().is_some_and(OomWatch::has_killed) {
            self.record_oom();
        }
        let unrecorded = destinations.record(code);
        for error in unrecorded.errors() {
            self.reporter.error("record the exit", error);
        }
        if let Some(watcher) = &self.watcher {
            watcher.tell_recorded();
        }
        if matches!(self.options.task, Task::Exec(_))
            && let Err(error) = self.sync_pipe.tell_exited(code, message)
        {
            self.reporter.warn("tell the daemon", &error);
        }
        self.attach = None;
        if self.options.is_log_synced {
            self.logs.sync(&self.reporter);
        }
        // A log that filled the disk and was deleted gives its room back only when it is closed.
        self.logs.close();
        self.retry(unrecorded);
        self.run_exit_command();
        // The lowest eight bits are all that a parent sees.
        u8::try_from(code.rem_euclid(256)).unwrap_or(u8::MAX)
    }

    pub(super) fn retry(&self, unrecorded: Unrecorded) {
        if let Err(error) = unrecorded.retry() {
            self.reporter.error("record the exit at last", &error);
        }
    }

    /// Its whole process group, because what it started would keep its output open.
    pub(super) fn kill_container(&self) {
        let Some(container) = self.container else { return };
        let group = rustix::process::getpgid(Some(container)).ok();
        let foreign = group.filter(|group| group.as_raw_nonzero().get() > 1 && *group != rustix::process::getpgrp());
        let killed = match foreign {
            Some(group) => kill_process_group(group, Signal::KILL),
            None => kill_process(container, Signal::KILL),
        };
        if let Err(error) = killed {
            self.reporter.warn("kill the container after its timeout", &error);
            return;
        }
        // Who inherits it may be slow to collect it, and until then the container that it ran in cannot end.
        let give_up = Instant::now() + KILLED_MAX;
        while let Ok(None) = waitpid(Some(container), WaitOptions::NOHANG)
            && Instant::now() < give_up
        {
            std::thread::sleep(KILLED_INTERVAL);
        }
    }

    pub(super) fn run_exit_command(&self) {
        std::thread::sleep(self.options.exit_delay);
        let Some(command) = &self.options.exit_command else { return };
        let words = [std::slice::from_ref(&command.path), &command.args[..]].concat();
        let Ok(args) = runtime::c_strings(words) else { return };
        let null = self.null.as_fd();
        let spawned = spawn(&Program {
            path: args.first().map_or(c"", |path: &CString| -> &CStr { path }),
            args: &args,
            env: &runtime::environment(),
            stdio: [null, null, null],
            death_signal: None,
            oom_score_adj: self.oom_score_adj.as_deref(),
        });
        match spawned {
            Ok(pid) => {
                if let Err(error) = waitpid(Some(pid), WaitOptions::empty()) {
                    self.reporter.warn("wait for the exit command", &error);
                }
            }
            Err(error) => self.reporter.error("start the exit command", &error),
        }
    }

    /// Tells the daemon by an empty file why the container will have ended.
    pub(super) fn record_oom(&mut self) {
        if self.is_oom_recorded {
            return;
        }
        self.is_oom_recorded = true;
        self.reporter.info("out of memory");
        for directory in self.options.persist_dir.iter().chain([&self.options.bundle]) {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
            if let Err(error) = openat(CWD, directory.join("oom"), flags, Mode::from_raw_mode(0o644)) {
                self.reporter.warn("record that memory ran out", &error);
            }
        }
    }
}
