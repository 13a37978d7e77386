//! Attach sessions: a copy of a container's output, and its input, through the monitor's socket.
//!
//! Source: conmon's attach socket: packets whose first byte is the stream (2 output, 3 errors); input is raw bytes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::net::{AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::Interest;

use crate::backend::{AttachEnd, AttachRequest, AttachTarget, Backend};
use crate::descriptor::Descriptor;
use crate::queue::Input;
use crate::remote_command::{Channels, Sizes};
use crate::status::Outcome;
use crate::stream::Output;

/// The first byte of packets with output.
const OUTPUT: u8 = 2;
/// The first byte of packets with errors.
const ERRORS: u8 = 3;
/// Longest packet of a monitor: a byte and 8192; more room costs nothing and loses nothing.
const PACKET_MAX_BYTES: usize = 1 + 32 * 1024;
/// Longest packet a monitor reads.
const INPUT_PACKET_BYTES: usize = 8192;
/// The keys that leave a terminal: ctrl-p, ctrl-q. Source: CRI-O's default.
const DETACH_KEYS: [u8; 2] = [0x10, 0x11];

/// How long a terminal's output is still shown after the end of its input. That end is how a client leaves which looks
/// for the detach keys itself, as crictl does; waiting for the container's end instead would never let it go.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// Attaches, and tells the client when it is over.
pub(crate) async fn run(backend: Arc<dyn Backend>, request: AttachRequest, mut channels: Channels) {
    let has_terminal = request.streams.has_terminal;
    let container = request.container.clone();
    let outcome = match backend.attach(request).await {
        Ok(target) => match carry(&target, has_terminal, &mut channels).await {
            Ok(()) => Outcome::Success,
            Err(error) => Outcome::Failure(format!("error attaching to container: {error}")),
        },
        Err(refusal) => {
            let text = telemetry::chain(&*refusal).to_string();
            tracing::warn!(container.id = container, error = text, "attach session refused");
            Outcome::Failure(format!("error attaching to container: {text}"))
        }
    };
    let _ = channels.end(&outcome).await;
}

async fn carry(target: &AttachTarget, has_terminal: bool, channels: &mut Channels) -> io::Result<()> {
    let socket = Descriptor::new(connect(&target.bundle)?, Interest::READABLE | Interest::WRITABLE)?;
    let (stdin, resize) = (channels.stdin.take(), channels.resize.take());
    let inputs = async {
        match feed(stdin, &socket, has_terminal).await {
            Fed::Detached => return,
            Fed::End if target.end == AttachEnd::WithInput => return,
            Fed::End if has_terminal => return tokio::time::sleep(LAST_OUTPUT).await,
            Fed::End | Fed::Nothing => {}
        }
        std::future::pending::<()>().await;
    };
    let sizes = async {
        resize_terminal(resize, &target.bundle).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        result = show(&socket, channels.stdout.as_ref(), channels.stderr.as_ref()) => result,
        () = inputs => Ok(()),
        () = sizes => Ok(()),
    }
}

/// Connects to a bundle's attach socket, whose path may be longer than an address can be.
fn connect(bundle: &Path) -> io::Result<OwnedFd> {
    let directory = rustix::fs::openat(CWD, bundle, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let path = format!("/proc/self/fd/{}/attach", directory.as_fd().as_raw_fd());
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path.as_str())?)?;
    Ok(socket)
}

/// Copies output until the container has ended.
async fn show(socket: &Descriptor, stdout: Option<&Output>, stderr: Option<&Output>) -> io::Result<()> {
    let mut packet = vec![0; PACKET_MAX_BYTES];
    let (mut stdout, mut stderr) = (stdout, stderr);
    loop {
        let count = match socket.read(&mut packet).await {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        };
        let Some((stream, bytes)) = packet.get(..count).and_then(<[u8]>::split_first) else { continue };
        let output = match *stream {
            OUTPUT => &mut stdout,
            ERRORS => &mut stderr,
            _ => continue,
        };
        if let Some(writer) = output
            && writer.write(bytes).await.is_err()
        {
            *output = None;
        }
    }
}

/// What came of the client's input.
#[derive(Debug, PartialEq, Eq)]
enum Fed {
    Nothing,
    End,
    Detached,
}

async fn feed(stdin: Option<Input>, socket: &Descriptor, has_terminal: bool) -> Fed {
    let Some(mut stdin) = stdin else { return Fed::Nothing };
    let mut keys = Keys::default();
    while let Some(piece) = stdin.next().await {
        let (bytes, is_detached) = if has_terminal { keys.pass(&piece) } else { (piece.to_vec(), false) };
        for packet in bytes.chunks(INPUT_PACKET_BYTES) {
            if socket.write(packet).await.is_err() {
                return Fed::Nothing;
            }
        }
        if is_detached {
            return Fed::Detached;
        }
    }
    // The monitor passes the end on, unless the container keeps its input or another client is there.
    let _ = rustix::net::shutdown(socket.fd(), Shutdown::Write);
    Fed::End
}

/// Looks for the detach keys, which may come in two pieces; the first one is held back until the next is known.
#[derive(Debug, Default)]
struct Keys {
    is_held: bool,
}

impl Keys {
    /// What to pass on, and whether the client leaves. What follows the keys is dropped.
    fn pass(&mut self, piece: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(piece.len() + 1);
        for byte in piece {
            let was_held = std::mem::take(&mut self.is_held);
            if was_held && *byte == DETACH_KEYS[1] {
                return (passed, true);
            }
            if was_held {
                passed.push(DETACH_KEYS[0]);
            }
            if *byte == DETACH_KEYS[0] {
                self.is_held = true;
            } else {
                passed.push(*byte);
            }
        }
        (passed, false)
    }
}

async fn resize_terminal(resize: Option<Input>, bundle: &Path) {
    let Some(mut resize) = resize else { return };
    let mut sizes = Sizes::default();
    while let Some(piece) = resize.next().await {
        match sizes.add(&piece) {
            Ok(Some((width, height))) => {
                if let Err(error) = tell_size(bundle, width, height) {
                    tracing::debug!(%error, "resizing an attached terminal failed");
                }
            }
            Ok(None) => {}
            Err(error) => return tracing::debug!(%error, "the client's sizes are no JSON, no more are read"),
        }
    }
}

/// A line for the monitor. A line this short is written whole or not at all, and a monitor that is gone is no wait.
fn tell_size(bundle: &Path, width: u16, height: u16) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let control = rustix::fs::openat(CWD, bundle.join("ctl"), flags, Mode::empty())?;
    rustix::io::write(&control, format!("1 {height} {width}\n").as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detach_keys_are_found_across_pieces() {
        for (pieces, passed, is_detached) in [
            (&[&b"ab"[..]][..], &b"ab"[..], false),
            (&[b"a\x10\x11b"], b"a", true),
            (&[b"a\x10", b"\x11"], b"a", true),
            (&[b"a\x10", b"b"], b"a\x10b", false),
            (&[b"\x10\x10\x11"], b"\x10", true),
            (&[b"\x11\x10"], b"\x11", false),
        ] {
            let mut keys = Keys::default();
            let mut all = Vec::new();
            let mut found = false;
            for piece in pieces {
                let (bytes, is_found) = keys.pass(piece);
                all.extend(bytes);
                found |= is_found;
            }
            assert_eq!((all.as_slice(), found), (passed, is_detached), "{pieces:?}");
        }
    }
}
