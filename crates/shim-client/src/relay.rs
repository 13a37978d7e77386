//! Carrying a program's streams between the shim's fifos and our own descriptors, and signals and sizes to the shim.
//!
//! A thread a stream: each only waits and copies. They end with the process.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Signal;
use sys::supervise::SignalFd;

use crate::client::CallError;
use crate::record::Record;
use crate::stdio::Fifos;
use crate::task::Task;
use crate::terminal;

/// As much as a monitor reads at once.
const PIECE_BYTES: usize = 8192;
/// Threads that copy need no more.
const STACK_BYTES: usize = 64 << 10;
/// After a program's end its output is read until it ends too, or for as long as something comes this often: a shim may
/// keep the fifos open until the program is deleted.
const SILENCE: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_millis(5);
/// A program that is not started yet has no terminal to size and no input to close; it is asked again.
const RETRY: Duration = Duration::from_millis(200);
const RETRIES: u32 = 50;
/// What a shim writes into its log is kept up to this; then the file begins anew.
const LOG_MAX_BYTES: u64 = 1 << 20;

/// Signals that are passed on to the program.
const PASSED_ON: [Signal; 6] = [Signal::TERM, Signal::INT, Signal::QUIT, Signal::HUP, Signal::USR1, Signal::USR2];

/// Whose streams are carried.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) record: Arc<Record>,
    /// Empty for the container's own program.
    pub(crate) exec_id: String,
}

impl Program {
    pub(crate) fn connect(&self) -> Result<Task, CallError> {
        Task::connect(&self.record).map(|task| task.of_exec(&self.exec_id))
    }

    /// Says something to the shim, and again while the program is not far enough.
    fn tell(&self, say: impl Fn(&mut Task) -> Result<(), CallError>) {
        for _ in 0..RETRIES {
            match self.connect().and_then(|mut task| say(&mut task)) {
                Err(CallError::Refused { .. }) => thread::sleep(RETRY),
                // What cannot be told now never can; the wait for the end notices a dead shim.
                Ok(()) | Err(_) => return,
            }
        }
    }
}

/// Signals are taken from the moment this is made; before any thread is.
pub(crate) fn take_signals() -> io::Result<SignalFd> {
    let mut signals = PASSED_ON.to_vec();
    signals.push(Signal::WINCH);
    SignalFd::block(&signals)
}

/// Copies under way.
#[derive(Debug, Default)]
pub(crate) struct Relay {
    /// Outputs that have not ended.
    open: Arc<AtomicUsize>,
    /// Pieces carried.
    carried: Arc<AtomicU64>,
}

impl Relay {
    /// Begins to carry; with a terminal its side takes the place of descriptors 0 and 1.
    pub(crate) fn begin(program: &Program, fifos: Fifos, side: Option<OwnedFd>, signals: SignalFd) -> io::Result<Self> {
        let relay = Self::default();
        let stdin = io::stdin().as_fd().try_clone_to_owned()?;
        let stdout = io::stdout().as_fd().try_clone_to_owned()?;
        let (input, output) = match &side {
            Some(side) => (side.try_clone()?, side.try_clone()?),
            None => (stdin, stdout),
        };
        if let Some(fifo) = fifos.stdout {
            relay.carry_output("stdout", fifo, output, side.is_some())?;
        }
        if let Some(fifo) = fifos.stderr {
            relay.carry_output("stderr", fifo, io::stderr().as_fd().try_clone_to_owned()?, false)?;
        }
        if let Some(fifo) = fifos.stdin {
            let program = program.clone();
            spawn("stdin", move || {
                copy_input(&input, &fifo);
                drop(fifo);
                program.tell(Task::close_stdin);
            })?;
        }
        let program = program.clone();
        spawn("signals", move || pass_on(&program, &signals, side.as_ref()))?;
        Ok(relay)
    }

    fn carry_output(&self, name: &str, fifo: OwnedFd, to: OwnedFd, is_terminal: bool) -> io::Result<()> {
        let (open, carried) = (Arc::clone(&self.open), Arc::clone(&self.carried));
        open.fetch_add(1, Ordering::SeqCst);
        spawn(name, move || {
            copy_output(&fifo, to, is_terminal, &carried);
            open.fetch_sub(1, Ordering::SeqCst);
        })
    }

    /// Waits until everything a program that has ended said is passed on.
    pub(crate) fn finish(&self) {
        let mut seen = self.carried.load(Ordering::SeqCst);
        let mut since = Instant::now();
        while self.open.load(Ordering::SeqCst) > 0 && since.elapsed() < SILENCE {
            thread::sleep(LOOK);
            let now = self.carried.load(Ordering::SeqCst);
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
        }
    }
}

pub(crate) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES).spawn(work).map(drop)
}

/// Waits until there is something to read, or the end. Before its first writer a fifo has no end.
fn wait(fd: BorrowedFd<'_>) -> bool {
    loop {
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], None) {
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

fn copy_output(fifo: &OwnedFd, to: OwnedFd, is_terminal: bool, carried: &AtomicU64) {
    let mut buffer = [0; PIECE_BYTES];
    let mut to = Some(File::from(to));
    let mut is_ready = !is_terminal;
    while wait(fifo.as_fd()) {
        match rustix::io::read(fifo, &mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                if let Some(file) = &mut to {
                    if !is_ready {
                        is_ready = terminal::pass_through(file.as_fd()).is_ok();
                    }
                    // Nobody listens any more: what comes is dropped, so that the program does not hang.
                    if write_all(file, &buffer[..count]).is_err() {
                        to = None;
                    }
                }
                carried.fetch_add(1, Ordering::SeqCst);
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

/// A pipe that somebody else made non-blocking is waited for.
fn write_all(file: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let _ = poll(&mut [PollFd::new(&*file, PollFlags::OUT)], None);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn copy_input(from: &OwnedFd, fifo: &OwnedFd) {
    let mut buffer = [0; PIECE_BYTES];
    while wait(from.as_fd()) {
        match rustix::io::read(from, &mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                let mut rest = &buffer[..count];
                while !rest.is_empty() {
                    match rustix::io::write(fifo, rest) {
                        Ok(written) => rest = &rest[written..],
                        Err(rustix::io::Errno::INTR) => {}
                        Err(_) => return,
                    }
                }
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            // A terminal says so when its master is closed.
            Err(_) => return,
        }
    }
}

fn pass_on(program: &Program, signals: &SignalFd, side: Option<&OwnedFd>) {
    let tell_size = || {
        if let Some((width, height)) = side.and_then(|side| terminal::size(side.as_fd())) {
            program.tell(|task| task.resize(width, height));
        }
    };
    tell_size();
    while wait(signals.as_fd()) {
        match signals.read() {
            Ok(Some(number)) if number == Signal::WINCH.as_raw() => tell_size(),
            Ok(Some(number)) => {
                let Ok(number) = u32::try_from(number) else { continue };
                // Whoever sent it cannot be told that it did not arrive.
                let _ = program.connect().and_then(|mut task| task.kill(number, false));
            }
            Ok(None) => {}
            Err(_) => return,
        }
    }
}

/// Keeps the end of a shim's log in a file, for as long as the shim writes.
pub(crate) fn keep_log(log: OwnedFd, path: PathBuf) -> io::Result<()> {
    spawn("log", move || {
        let mut buffer = [0; PIECE_BYTES];
        let mut file: Option<(File, u64)> = None;
        while wait(log.as_fd()) {
            let count = match rustix::io::read(&log, &mut buffer) {
                Ok(0) => return,
                Ok(count) => count,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => continue,
                Err(_) => return,
            };
            let is_full = file.as_ref().is_none_or(|(_, size)| *size >= LOG_MAX_BYTES);
            if is_full {
                file = File::create(&path).ok().map(|file| (file, 0));
            }
            // A log that cannot be kept is read all the same: the shim must not hang on it.
            if let Some((file, size)) = &mut file
                && file.write_all(&buffer[..count]).is_ok()
            {
                *size += count as u64;
            }
        }
    })
}
