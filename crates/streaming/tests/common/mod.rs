//! A daemon whose programs are a pipe each, and clients of its server.
#![allow(dead_code, reason = "each test uses its part")]

pub(crate) mod spdy;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use streaming::{
    AttachRequest, AttachTarget, Backend, Exec, ExecRequest, Network, Options, Program, ProgramEnd, Refusal, Stdio,
    Streaming, Streams, TlsOptions,
};

pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// What a client writes comes back; commands: the milliseconds it runs.
#[derive(Default, Clone)]
pub(crate) struct Echo {
    pub(crate) running: Arc<AtomicUsize>,
    /// The sizes its terminals got.
    pub(crate) sizes: Arc<Mutex<Vec<(u16, u16)>>>,
}

struct Running(Echo, Duration);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Program for Running {
    fn wait(&mut self) -> BoxFuture<'_, std::io::Result<ProgramEnd>> {
        async {
            tokio::time::sleep(self.1).await;
            Ok(ProgramEnd { code: 3, complaint: Vec::new() })
        }
        .boxed()
    }

    fn resize(&self, width: u16, height: u16) -> std::io::Result<()> {
        self.0.sizes.lock().expect("is whole").push((width, height));
        Ok(())
    }
}

impl Backend for Echo {
    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, Result<Exec, Refusal>> {
        async move {
            let life = Duration::from_millis(request.command.concat().parse()?);
            self.running.fetch_add(1, Ordering::SeqCst);
            let program = Box::new(Running(self.clone(), life));
            let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
            let stdio = Stdio::Pipes { stdin: Some(writer), stdout: Some(reader), stderr: None };
            Ok(Exec { stdio, program })
        }
        .boxed()
    }

    fn attach(&self, _: AttachRequest) -> BoxFuture<'_, Result<AttachTarget, Refusal>> {
        async { Err("not here".into()) }.boxed()
    }

    fn port_forward(&self, _: String) -> BoxFuture<'_, Result<Network, Refusal>> {
        async { Ok(Network::Host) }.boxed()
    }
}

/// Serves `backend` on a port of its own.
pub(crate) async fn serve(backend: impl Backend, tls: Option<TlsOptions>) -> Arc<Streaming> {
    let options = Options { address: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), port: 0, idle_limit: LIMIT, tls };
    let (streaming, server) = Streaming::bind(&options, Arc::new(backend)).await.expect("binds");
    tokio::spawn(server.run());
    streaming
}

/// Prepares a session with input and output of a program that runs so long.
pub(crate) fn exec_url(streaming: &Streaming, millis: u64) -> String {
    let streams = Streams { has_terminal: false, has_stdin: true, has_stdout: true, has_stderr: false };
    let request = ExecRequest { container: "c".to_owned(), command: vec![millis.to_string()], streams };
    streaming.exec_url(request).expect("is prepared")
}

/// As [`exec_url`], with a terminal.
pub(crate) fn terminal_url(streaming: &Streaming, millis: u64) -> String {
    let streams = Streams { has_terminal: true, has_stdin: true, has_stdout: true, has_stderr: false };
    let request = ExecRequest { container: "c".to_owned(), command: vec![millis.to_string()], streams };
    streaming.exec_url(request).expect("is prepared")
}
