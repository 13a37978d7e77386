//! One connection to a shim, one question at a time.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use prost::Message;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use thiserror::Error;

use crate::address::Address;
use crate::frame::{self, Answer, Frame, FrameError};
use crate::wire;

/// Everything of ours is in containerd's namespace of this name. Source: CRI-O.
pub(crate) const NAMESPACE: &str = "default";
const NAMESPACE_KEY: &str = "containerd-namespace-ttrpc";
/// A shim whose queue of connections stays full this long accepts none.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// gRPC's code for what is not there.
const NOT_FOUND: i32 = 5;

/// Why a shim did not answer as asked.
#[derive(Debug, Error)]
pub(crate) enum CallError {
    #[error("connect to the shim at {address:?}")]
    Connect {
        address: Address,
        #[source]
        source: io::Error,
    },
    #[error("the shim is gone")]
    Gone,
    #[error("the shim did not answer {method} within {} s", limit.as_secs())]
    TimedOut { method: &'static str, limit: Duration },
    #[error("ask the shim for {method}")]
    Exchange {
        method: &'static str,
        #[source]
        source: FrameError,
    },
    #[error("the shim's answer to {method} is none")]
    Garbled {
        method: &'static str,
        #[source]
        source: prost::DecodeError,
    },
    #[error("{method}: {message}")]
    Refused { method: &'static str, code: i32, message: String },
}

impl CallError {
    /// Nobody is there to ask. A shim that is there and lets nobody connect is another matter.
    pub(crate) fn is_gone(&self) -> bool {
        match self {
            Self::Gone => true,
            Self::Connect { source, .. } => {
                matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
            }
            _ => false,
        }
    }

    /// The shim is there and does not know what was asked about.
    pub(crate) fn is_unknown(&self) -> bool {
        matches!(self, Self::Refused { code: NOT_FOUND, .. })
    }
}

/// A connection. After an error that is no refusal it is of no more use.
#[derive(Debug)]
pub(crate) struct Client {
    stream: UnixStream,
    next: u32,
}

impl Client {
    pub(crate) fn connect(address: &Address) -> Result<Self, CallError> {
        let stream = connect(address).map_err(|source| CallError::Connect { address: address.clone(), source })?;
        // Streams of whoever connected are odd.
        Ok(Self { stream: stream.into(), next: 1 })
    }

    /// The process that began to listen: the shim, or whoever started it.
    pub(crate) fn peer(&self) -> Option<i32> {
        sockopt::socket_peercred(&self.stream).ok().map(|credentials| credentials.pid.as_raw_nonzero().get())
    }

    /// Asks one question and waits for its answer; without a limit for ever.
    pub(crate) fn call<A: Message + Default>(
        &mut self,
        service: &str,
        method: &'static str,
        question: &impl Message,
        limit: Option<Duration>,
    ) -> Result<A, CallError> {
        let stream = self.next;
        self.next = self.next.wrapping_add(2);
        let nanos = limit.map_or(0, |limit| i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX));
        let request = wire::Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload: question.encode_to_vec(),
            timeout_nano: nanos,
            metadata: vec![wire::KeyValue { key: NAMESPACE_KEY.to_owned(), value: NAMESPACE.to_owned() }],
        };
        let frame = Frame { stream, kind: frame::REQUEST, message: request.encode_to_vec() };
        let mut timed = Timed { stream: &self.stream, deadline: limit.map(|limit| Instant::now() + limit) };
        let failed = |source| exchange_error(method, limit, source);
        let bytes = frame::encode(&frame).map_err(failed)?;
        timed.write_all(&bytes).map_err(|error| failed(FrameError::Read(error)))?;
        let message = loop {
            let frame = frame::read(&mut timed).map_err(failed)?;
            // What belongs to no question of ours is nothing to us; the limit ends a shim that only chatters.
            if frame.stream == stream && frame.kind == frame::RESPONSE {
                break frame.message;
            }
        };
        match frame::answer(&message).map_err(|source| CallError::Garbled { method, source })? {
            Answer::Payload(payload) => {
                A::decode(payload.as_slice()).map_err(|source| CallError::Garbled { method, source })
            }
            Answer::Refusal { code, message } => Err(CallError::Refused { method, code, message }),
        }
    }
}

fn exchange_error(method: &'static str, limit: Option<Duration>, source: FrameError) -> CallError {
    let kind = match &source {
        FrameError::Closed => return CallError::Gone,
        FrameError::TooLong { .. } => None,
        FrameError::Read(error) => Some(error.kind()),
    };
    match (kind, limit) {
        (Some(io::ErrorKind::TimedOut), Some(limit)) => CallError::TimedOut { method, limit },
        (Some(io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof), _) => {
            CallError::Gone
        }
        _ => CallError::Exchange { method, source },
    }
}

fn connect(address: &Address) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(CONNECT_LIMIT))?;
    match address {
        Address::Abstract(name) => rustix::net::connect(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?,
        Address::Path(path) => {
            // A path may be longer than an address can be.
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                return Err(io::ErrorKind::InvalidInput.into());
            };
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory = rustix::fs::openat(CWD, parent, flags, Mode::empty())?;
            let mut short = std::path::PathBuf::from(format!("/proc/self/fd/{}", directory.as_fd().as_raw_fd()));
            short.push(name);
            rustix::net::connect(&socket, &SocketAddrUnix::new(&short)?)?;
        }
    }
    Ok(socket)
}

/// A stream on which nothing is waited for beyond a moment.
struct Timed<'a> {
    stream: &'a UnixStream,
    deadline: Option<Instant>,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        let Some(deadline) = self.deadline else { return Ok(None) };
        match deadline.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => Ok(Some(left)),
            _ => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// A socket says "would block" when its time is over.
fn timed_out(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        (&mut &*self.stream).read(buffer).map_err(timed_out)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        (&mut &*self.stream).write(bytes).map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
