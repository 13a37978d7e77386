//! Running a program to its end with its output captured.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::pipe::PipeFlags;
use rustix::process::Signal;
use sys::spawn::{Child, Command, ExitStatus};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::unix::pipe;

/// What a command printed is kept up to this size: errors are a few lines, `state` and `features` a few KiB.
const OUTPUT_MAX_BYTES: usize = 256 * 1024;

/// How long a descendant that kept the pipes open is listened to after the command itself has ended.
const DRAIN_AFTER_EXIT: Duration = Duration::from_millis(200);

/// A command's end.
#[derive(Debug)]
pub(crate) struct Captured {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

/// A pipe whose reading end the daemon awaits.
pub(crate) fn reading_pipe() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&reader, true)?;
    Ok((pipe::Receiver::from_owned_fd(reader)?, writer))
}

/// `/dev/null`, for reading and writing.
pub(crate) fn null() -> io::Result<OwnedFd> {
    Ok(std::fs::File::options().read(true).write(true).open("/dev/null")?.into())
}

/// A child that is killed if the wait for it is abandoned, and collected in any case.
#[derive(Debug)]
pub(crate) struct Waiting(Option<AsyncFd<Child>>);

impl Waiting {
    pub(crate) fn new(child: Child) -> io::Result<Self> {
        #[expect(deprecated, reason = "its successor is unsafe, and a child keeps its descriptor as that asks for")]
        let child = AsyncFd::with_interest(child, Interest::READABLE)?;
        Ok(Self(Some(child)))
    }

    fn child(&self) -> io::Result<&AsyncFd<Child>> {
        self.0.as_ref().ok_or_else(|| io::Error::other("the child has been waited for"))
    }

    pub(crate) fn pid(&self) -> io::Result<i32> {
        Ok(self.child()?.get_ref().pid())
    }

    pub(crate) fn kill(&self) -> io::Result<()> {
        self.child()?.get_ref().signal(Signal::KILL)
    }

    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        self.child()?.get_ref().signal(signal)
    }

    /// Waits for the end. Being cancelled loses nothing; once it has returned the child is gone.
    pub(crate) async fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            let child = self.child()?;
            let mut ready = child.readable().await?;
            if let Some(status) = child.get_ref().try_wait()? {
                drop(ready);
                self.0 = None;
                return Ok(status);
            }
            ready.clear_ready();
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(child) = self.0.take() else { return };
        let _ = child.get_ref().signal(Signal::KILL);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let _ = Self(Some(child)).collect().await;
            });
        }
    }
}

impl Waiting {
    /// Waits for the end while `reading` takes what is printed; descendants that keep the pipes have `drain` more.
    pub(crate) async fn wait_reading(
        &mut self,
        reading: impl Future<Output = ()>,
        drain: Duration,
    ) -> io::Result<ExitStatus> {
        tokio::pin!(reading);
        let mut is_read = false;
        let status = loop {
            tokio::select! {
                status = self.wait() => break status?,
                () = &mut reading, if !is_read => is_read = true,
            }
        };
        if !is_read {
            let _ = tokio::time::timeout(drain, reading).await;
        }
        Ok(status)
    }

    async fn collect(mut self) -> io::Result<()> {
        let Some(child) = self.0.take() else { return Ok(()) };
        while child.get_ref().try_wait()?.is_none() {
            child.readable().await?.clear_ready();
        }
        Ok(())
    }
}

/// Runs a command to its end.
pub(crate) async fn capture(
    program: &Path,
    arguments: &[&std::ffi::OsStr],
    input: Option<&[u8]>,
    limit: Duration,
) -> io::Result<Captured> {
    capture_on(&[], program, arguments, input, limit).await
}

/// Runs a command to its end, on these CPUs where any are named.
pub(crate) async fn capture_on(
    cpus: &[u32],
    program: &Path,
    arguments: &[&std::ffi::OsStr],
    input: Option<&[u8]>,
    limit: Duration,
) -> io::Result<Captured> {
    capture_with(cpus, program, arguments, &[], input, limit).await
}

/// Runs a command to its end, with variables `K=V` of its own.
pub(crate) async fn capture_with(
    cpus: &[u32],
    program: &Path,
    arguments: &[&std::ffi::OsStr],
    variables: &[&str],
    input: Option<&[u8]>,
    limit: Duration,
) -> io::Result<Captured> {
    let mut command = Command::new(program)?;
    for argument in arguments {
        command.arg(argument)?;
    }
    inherit_environment(&mut command)?;
    for variable in variables {
        command.env(variable)?;
    }
    let (mut stdout, stdout_writer) = reading_pipe()?;
    let (mut stderr, stderr_writer) = reading_pipe()?;
    let stdin = match input {
        Some(bytes) => input_file(bytes)?,
        None => null()?,
    };
    command.descriptor(stdin.as_fd(), 0)?;
    command.descriptor(stdout_writer.as_fd(), 1)?;
    command.descriptor(stderr_writer.as_fd(), 2)?;
    command.own_process_group().cpus(cpus.iter().copied());
    let mut child = Waiting::new(command.spawn()?)?;
    drop((command, stdout_writer, stderr_writer));
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let run = async {
        let reading = async {
            tokio::join!(read_bounded(&mut stdout, &mut out), read_bounded(&mut stderr, &mut err));
        };
        child.wait_reading(reading, DRAIN_AFTER_EXIT).await
    };
    let status = match tokio::time::timeout(limit, run).await {
        Ok(status) => status?,
        Err(_) => {
            // Not waited for: one in uninterruptible sleep ends when it likes, and whoever is dropped is collected then.
            child.kill()?;
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no end within {} s", limit.as_secs())));
        }
    };
    Ok(Captured { status, stdout: out, stderr: err })
}

/// `PATH` and `XDG_RUNTIME_DIR` are all of the daemon's environment that a runtime or monitor may depend on.
pub(crate) fn inherit_environment(command: &mut Command) -> io::Result<()> {
    for name in ["PATH", "XDG_RUNTIME_DIR"] {
        if let Some(value) = std::env::var_os(name) {
            let mut entry = std::ffi::OsString::from(name);
            entry.push("=");
            entry.push(value);
            command.env(entry)?;
        }
    }
    Ok(())
}

fn input_file(bytes: &[u8]) -> io::Result<OwnedFd> {
    use std::io::{Seek, Write};
    let file = rustix::fs::memfd_create("input", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(file);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}

/// Reads to the end, keeping the first [`OUTPUT_MAX_BYTES`]. A broken pipe is an end like any other.
async fn read_bounded(reader: &mut pipe::Receiver, kept: &mut Vec<u8>) {
    let mut buffer = [0; 4096];
    loop {
        match reader.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => kept.extend_from_slice(&buffer[..count.min(OUTPUT_MAX_BYTES - kept.len())]),
        }
    }
}

/// What a program printed, fit for one line of an error message.
pub(crate) fn printed(bytes: &[u8]) -> String {
    const SHOWN_MAX_CHARS: usize = 2000;
    let text = String::from_utf8_lossy(bytes);
    let mut line: String = text.trim().chars().take(SHOWN_MAX_CHARS).collect();
    if line.is_empty() {
        line.push_str("it printed nothing");
    }
    line.replace(|character: char| character.is_control() && character != '\t', " ")
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    async fn shell(script: &str, limit: Duration) -> io::Result<Captured> {
        capture(Path::new("/bin/sh"), &[OsStr::new("-c"), OsStr::new(script)], None, limit).await
    }

    #[tokio::test]
    async fn output_is_captured_apart_and_to_a_bound() {
        let second = Duration::from_secs(20);
        let end = shell("echo out; echo err >&2; exit 3", second).await.expect("runs");
        assert_eq!((end.status, &end.stdout[..], &end.stderr[..]), (ExitStatus::Code(3), &b"out\n"[..], &b"err\n"[..]));
        let end = shell("head -c 1000000 /dev/zero", second).await.expect("runs");
        assert_eq!((end.status, end.stdout.len()), (ExitStatus::Code(0), OUTPUT_MAX_BYTES));
    }

    #[tokio::test]
    async fn neither_a_hanging_command_nor_its_child_holds_us() {
        let error = shell("sleep 60", Duration::from_millis(100)).await.expect_err("hangs");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let begun = std::time::Instant::now();
        let end = shell("sleep 3 & echo done", Duration::from_secs(20)).await.expect("runs");
        assert_eq!(end.stdout, b"done\n");
        assert!(begun.elapsed() < Duration::from_secs(2));
    }
}
