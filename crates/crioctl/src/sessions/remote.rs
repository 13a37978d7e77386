//! A program's standard streams over a session: exec and attach.

use std::io::{self, Read as _};

use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use cri_api::v1::{AttachRequest, ExecRequest};

use super::keys::Watch;
use super::spdy::{Connection, Sender, Stream};
use super::terminal::{RawTerminal, size_message};
use super::upgrade::{Trust, upgrade};
use super::{DetachKeys, SessionError};
use crate::client::Client;
use crate::error::CommandError;

/// Versions of the protocol over SPDY that tell exit codes; the first one is what engines of this decade choose.
const PROTOCOLS: [&str; 1] = ["v4.channel.k8s.io"];
/// Longest status.
const STATUS_MAX: usize = 64 * 1024;
/// What is read from standard input at once, bytes.
const INPUT_PART: usize = 16 * 1024;

/// What of a program is wanted.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) stdin: bool,
    pub(crate) tty: bool,
    pub(crate) keys: DetachKeys,
    pub(crate) trust: Trust,
}

/// The end of a session. Source: the status object of Kubernetes' remote commands.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    status: String,
    message: String,
    reason: String,
    details: Details,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Details {
    causes: Vec<Cause>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Cause {
    reason: String,
    message: String,
}

/// The exit code that a status tells, or what went wrong.
fn exit_code(bytes: &[u8]) -> Result<i32, SessionError> {
    if bytes.is_empty() {
        return Err(SessionError::Closed);
    }
    let text = || String::from_utf8_lossy(bytes).trim().to_owned();
    let status: Status = serde_json::from_slice(bytes).map_err(|_| SessionError::Failed(text()))?;
    if status.status == "Success" {
        return Ok(0);
    }
    let code = status.details.causes.iter().find(|cause| cause.reason == "ExitCode");
    match code.and_then(|cause| cause.message.parse().ok()) {
        Some(code) if status.reason == "NonZeroExitCode" => Ok(code),
        _ if status.message.is_empty() => Err(SessionError::Failed(text())),
        _ => Err(SessionError::Failed(status.message)),
    }
}

/// Runs a program in a container with this process's standard streams; returns its exit code.
pub(crate) async fn exec(
    client: &Client,
    container_id: String,
    cmd: Vec<String>,
    wanted: &Wanted,
) -> Result<i32, CommandError> {
    let terminal = wanted.tty.then(RawTerminal::enter).transpose()?;
    let order =
        ExecRequest { container_id, cmd, tty: wanted.tty, stdin: wanted.stdin, stdout: true, stderr: !wanted.tty };
    let url = client.exec(order).await?.url;
    let ended = follow(&url, wanted, terminal.is_some()).await;
    drop(terminal);
    Ok(ended?)
}

/// Follows a container's own streams until it ends or the detach keys are typed.
pub(crate) async fn attach(client: &Client, container_id: String, wanted: &Wanted) -> Result<(), CommandError> {
    // Its output may be followed without a terminal here.
    let is_interactive = wanted.tty && wanted.stdin;
    let terminal = is_interactive.then(RawTerminal::enter).transpose()?;
    let order = AttachRequest { container_id, stdin: wanted.stdin, tty: wanted.tty, stdout: true, stderr: !wanted.tty };
    let url = client.attach(order).await?.url;
    let ended = follow(&url, wanted, terminal.is_some()).await;
    drop(terminal);
    ended?;
    Ok(())
}

/// A program's streams, opened.
pub(super) struct Streams {
    _connection: Connection,
    error: Stream,
    pub(super) stdin: Option<Sender>,
    pub(super) stdout: Stream,
    stderr: Option<Stream>,
    resize: Option<Sender>,
}

impl Streams {
    /// Opens those of a session.
    pub(super) async fn open(url: &str, has_stdin: bool, tty: bool, trust: &Trust) -> Result<Self, SessionError> {
        let mut connection = Connection::new(upgrade(url, &PROTOCOLS, trust).await?);
        let mut open = async |kind: &str| connection.open(&[("streamtype", kind)]).await.map_err(SessionError::Broken);
        let error = open("error").await?;
        error.sender().finish().await.map_err(SessionError::Broken)?;
        let stdin = if has_stdin { Some(open("stdin").await?.sender()) } else { None };
        let stdout = open("stdout").await?;
        let stderr = if tty { None } else { Some(open("stderr").await?) };
        let resize = if tty { Some(open("resize").await?.sender()) } else { None };
        Ok(Self { _connection: connection, error, stdin, stdout, stderr, resize })
    }

    /// What the session said of its end, after everything was read.
    pub(super) async fn end(&mut self) -> Result<i32, SessionError> {
        exit_code(&self.error.read_to_end(STATUS_MAX).await)
    }

    /// What the program wrote to standard error, within a bound.
    pub(super) async fn complaint(&mut self) -> String {
        match &mut self.stderr {
            Some(stderr) => String::from_utf8_lossy(&stderr.read_to_end(STATUS_MAX).await).trim().to_owned(),
            None => String::new(),
        }
    }
}

/// Standard input on a thread of its own, because reading it cannot be given up.
fn read_stdin() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut part = vec![0; INPUT_PART];
        while let Ok(read) = stdin.read(&mut part)
            && read > 0
        {
            if sender.blocking_send(part[..read].to_vec()).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Passes on bytes until there are none.
async fn pour(stream: Option<&mut Stream>, mut target: impl io::Write) -> Result<(), SessionError> {
    let Some(stream) = stream else { return Ok(()) };
    while let Some(part) = stream.next().await {
        target.write_all(&part).and_then(|()| target.flush()).map_err(SessionError::Write)?;
    }
    Ok(())
}

/// Connects this process's streams with the session's. Leaving by the keys is success.
async fn follow(url: &str, wanted: &Wanted, has_terminal: bool) -> Result<i32, SessionError> {
    let mut streams = Streams::open(url, wanted.stdin, wanted.tty, &wanted.trust).await?;
    let (stdin, resize) = (streams.stdin.take(), streams.resize.take().filter(|_| has_terminal));
    let typing = async {
        let left = match stdin {
            Some(stdin) => pass_input(&stdin, wanted, has_terminal).await,
            None => false,
        };
        // Input that has ended ends nothing else.
        if !left {
            std::future::pending::<()>().await;
        }
    };
    let sizes = async {
        if let Some(resize) = resize {
            pass_sizes(&resize).await;
        }
        std::future::pending::<()>().await;
    };
    let Streams { stdout, stderr, .. } = &mut streams;
    let output = async { tokio::try_join!(pour(Some(stdout), io::stdout()), pour(stderr.as_mut(), io::stderr())) };
    tokio::select! {
        poured = output => poured.map(drop)?,
        () = typing => return Ok(0),
        () = sizes => {}
    }
    streams.end().await
}

/// Returns whether the session was left by the keys.
async fn pass_input(stdin: &Sender, wanted: &Wanted, has_terminal: bool) -> bool {
    let mut input = read_stdin();
    let mut watch = Watch::new(&wanted.keys);
    while let Some(typed) = input.recv().await {
        let (sent, is_left) = if has_terminal { watch.pass(&typed) } else { (typed, false) };
        if stdin.send(&sent).await.is_err() {
            return false;
        }
        if is_left {
            return true;
        }
    }
    // A session that has ended needs no end of its input.
    let _ = stdin.finish().await;
    false
}

async fn pass_sizes(resize: &Sender) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
    loop {
        if let Some(size) = size_message()
            && resize.send(&size).await.is_err()
        {
            return;
        }
        if changes.recv().await.is_none() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends() {
        let failure = r#"{"status":"Failure","message":"command terminated with exit code 3","reason":"NonZeroExitCode",
            "details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#;
        let cases = [
            (r#"{"metadata":{},"status":"Success"}"#, Ok(0)),
            (failure, Ok(3)),
            (
                r#"{"status":"Failure","message":"no such container","reason":"InternalError"}"#,
                Err("no such container"),
            ),
            (r#"{"status":"Failure","reason":"NonZeroExitCode"}"#, Err("NonZeroExitCode")),
            ("boom", Err("boom")),
            ("", Err("closed the connection")),
        ];
        for (text, expected) in cases {
            let found = exit_code(text.as_bytes());
            match (found, expected) {
                (Ok(code), Ok(wanted)) => assert_eq!(code, wanted),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
                (found, expected) => panic!("{text}: {found:?}, not {expected:?}"),
            }
        }
    }
}
