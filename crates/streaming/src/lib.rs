//! The streaming server: exec, attach and port-forward sessions of `kubectl`, over SPDY/3.1 and WebSocket.
//!
//! A session is prepared by an RPC, which answers a URL; the client brings the URL's token within a minute and upgrades
//! the connection. Promises: a token works once; a client that leaves takes its session with it, program and
//! descriptors included; a client that does not read stalls only itself; every queue is bounded. Must not know: how
//! containers are found or programs started; that is behind [`Backend`].
//! Begin reading at [`Streaming`], then `connection` and `exec`.
#![forbid(unsafe_code)]

mod attach;
mod backend;
mod connection;
mod descriptor;
mod exec;
mod port_forward;
mod presence;
mod queue;
mod remote_command;
mod server;
mod spdy;
mod status;
mod stream;
mod tls;
mod tokens;
mod transport;
mod websocket;

pub use backend::{
    AttachEnd, AttachRequest, AttachTarget, Backend, Exec, ExecRequest, Network, PortForwardRequest, Program,
    ProgramEnd, Refusal, Stdio, Streams,
};
pub use remote_command::fuzz_sizes;
pub use server::{BindError, Options, Server, Streaming, fuzz_requests};
pub use spdy::fuzz_frames;
pub use tls::{TlsError, TlsOptions, TlsVersion};
pub use tokens::PrepareError;
pub use websocket::fuzz_messages;
