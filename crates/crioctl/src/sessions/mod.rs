//! Sessions over the engine's streaming server: programs with standard input and a terminal, attaching, ports, files.
//!
//! An RPC answers a URL, whose connection is upgraded to SPDY/3.1 (`upgrade`, `spdy`); that is what every engine of the
//! CRI understands. Begin reading at `remote`.

mod copy;
mod forward;
mod keys;
mod remote;
mod spdy;
mod terminal;
mod unpack;
mod upgrade;

use std::io;

pub(crate) use copy::copy;
pub(crate) use forward::{Mapping, forward};
pub(crate) use keys::DetachKeys;
pub(crate) use remote::{Wanted, attach, exec};
pub use unpack::fuzz_unpack;
pub(crate) use upgrade::Trust;

/// Why a session failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("the engine's streaming URL {url:?} is neither http://HOST:PORT/ nor https://")]
    Url { url: String },
    #[error("connect to the engine's streaming server at {host}")]
    Connect {
        host: String,
        #[source]
        source: io::Error,
    },
    #[error("read {what} {}", path.display())]
    TrustFile {
        what: &'static str,
        path: std::path::PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("set up TLS for the engine's streaming server")]
    Tls(#[source] io::Error),
    #[error("the engine's streaming server answers {status}: {text}")]
    Refused { status: String, text: String },
    #[error("the engine's streaming server closed the connection")]
    Closed,
    #[error("the session with the engine's streaming server broke")]
    Broken(#[source] io::Error),
    #[error("{0}")]
    Failed(String),
    #[error("set the terminal's mode")]
    Terminal(#[source] io::Error),
    #[error("--tty needs a terminal on standard input")]
    NoTerminal,
    #[error("write what the container wrote")]
    Write(#[source] io::Error),
    #[error("listen on {address}")]
    Listen {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("copy {what}")]
    Copy {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("one of source and destination is in a container, as CONTAINER:PATH; the other is not")]
    CopyEnds,
    #[error("{path:?} names no file or directory to copy")]
    CopyPath { path: String },
}
