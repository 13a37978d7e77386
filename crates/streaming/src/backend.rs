//! What the server needs from the rest of the daemon.

use std::error::Error;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use futures_util::future::BoxFuture;

/// Why the daemon refuses: printed with all its causes.
pub type Refusal = Box<dyn Error + Send + Sync>;

/// Which streams a client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streams {
    /// A terminal; then there is no stream of its own for standard error.
    pub has_terminal: bool,
    /// Standard input.
    pub has_stdin: bool,
    /// Standard output.
    pub has_stdout: bool,
    /// Standard error.
    pub has_stderr: bool,
}

/// A program to run in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    /// The container's id.
    pub container: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Streams.
    pub streams: Streams,
}

/// A container to attach to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachRequest {
    /// The container's id.
    pub container: String,
    /// Streams.
    pub streams: Streams,
}

/// A sandbox to forward ports of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortForwardRequest {
    /// The sandbox's id.
    pub sandbox: String,
    /// Ports, where the client does not name them itself.
    pub ports: Vec<u16>,
}

/// The daemon's ends of a program's streams.
#[derive(Debug)]
pub enum Stdio {
    /// The master of its terminal.
    Terminal(OwnedFd),
    /// Pipes, those that were asked for.
    Pipes {
        /// To be written to.
        stdin: Option<OwnedFd>,
        /// To be read.
        stdout: Option<OwnedFd>,
        /// To be read.
        stderr: Option<OwnedFd>,
    },
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramEnd {
    /// Exit status, or 128 + signal.
    pub code: i32,
    /// What the runtime itself had to say and did not put on the program's standard error.
    pub complaint: Vec<u8>,
}

/// A program that runs. Dropping it kills and collects it.
pub trait Program: Send {
    /// Waits for its end. Cancelling loses nothing.
    fn wait(&mut self) -> BoxFuture<'_, io::Result<ProgramEnd>>;
    /// Sets the size of its terminal, in characters.
    fn resize(&self, width: u16, height: u16) -> io::Result<()>;
}

/// A program that was started.
pub struct Exec {
    /// Its streams.
    pub stdio: Stdio,
    /// Itself.
    pub program: Box<dyn Program>,
}

/// When an attached session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachEnd {
    /// With the client's input: the container keeps its standard input for the next client.
    WithInput,
    /// With the container's output.
    WithOutput,
}

/// Where a container is attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachTarget {
    /// The bundle, which holds the monitor's `attach` socket and its `ctl` fifo.
    pub bundle: PathBuf,
    /// When the session ends.
    pub end: AttachEnd,
}

/// Where ports are.
#[derive(Debug)]
pub enum Network {
    /// The node's.
    Host,
    /// Another network namespace.
    Namespace(OwnedFd),
}

/// The daemon behind the server. Everything is looked up when the client connects, not when its URL is made.
pub trait Backend: Send + Sync + 'static {
    /// Starts a program in a container.
    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, Result<Exec, Refusal>>;
    /// Finds a container's monitor.
    fn attach(&self, request: AttachRequest) -> BoxFuture<'_, Result<AttachTarget, Refusal>>;
    /// Finds a sandbox's network.
    fn port_forward(&self, sandbox: String) -> BoxFuture<'_, Result<Network, Refusal>>;
}
