//! The server over real sockets, with programs that are a pipe each.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, FutureExt};
use streaming::{
    AttachRequest, AttachTarget, Backend, Exec, ExecRequest, Network, Options, Program, ProgramEnd, Refusal, Stdio,
    Streaming, Streams,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const LIMIT: Duration = Duration::from_secs(10);

/// What a client writes comes back; commands: the milliseconds it runs.
#[derive(Default)]
struct Echo {
    running: Arc<AtomicUsize>,
}

struct Running(Arc<AtomicUsize>, Duration);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
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

    fn resize(&self, _: u16, _: u16) -> std::io::Result<()> {
        Ok(())
    }
}

impl Backend for Echo {
    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, Result<Exec, Refusal>> {
        async move {
            let life = Duration::from_millis(request.command.concat().parse()?);
            self.running.fetch_add(1, Ordering::SeqCst);
            let program = Box::new(Running(Arc::clone(&self.running), life));
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

async fn start() -> (Arc<Streaming>, Arc<AtomicUsize>) {
    let backend = Echo::default();
    let running = Arc::clone(&backend.running);
    let options = Options { address: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), port: 0, idle_limit: LIMIT };
    let (streaming, server) = Streaming::bind(&options, Arc::new(backend)).await.expect("binds");
    tokio::spawn(server.run());
    (streaming, running)
}

fn exec_url(streaming: &Streaming, millis: u64) -> String {
    let streams = Streams { has_terminal: false, has_stdin: true, has_stdout: true, has_stderr: false };
    let request = ExecRequest { container: "c".to_owned(), command: vec![millis.to_string()], streams };
    streaming.exec_url(request).expect("is prepared")
}

const WEBSOCKET: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n";

/// Sends a request; the connection, and the answer's head.
async fn ask(url: &str, headers: &str) -> (TcpStream, String) {
    let rest = url.strip_prefix("http://").expect("is plain");
    let (host, path) = rest.split_once('/').expect("has a path");
    let mut stream = TcpStream::connect(host).await.expect("connects");
    let request = format!("POST /{path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.expect("sends");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tokio::time::timeout(LIMIT, stream.read_u8()).await.expect("answers").expect("answers"));
    }
    (stream, String::from_utf8(head).expect("is text"))
}

/// A client's message with a mask of zeros, which changes nothing.
fn message(channel: u8, text: &[u8]) -> Vec<u8> {
    let length = u8::try_from(text.len() + 1).expect("is short");
    [&[0x82, 0x80 | length, 0, 0, 0, 0, channel], text].concat()
}

#[tokio::test]
async fn a_session_echoes_and_tells_its_exit_code_and_its_token_is_used_up() {
    let (streaming, running) = start().await;
    let url = exec_url(&streaming, 300);
    let (mut stream, head) = ask(&url, WEBSOCKET).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert!(head.to_lowercase().contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
    stream.write_all(&message(0, b"hello")).await.expect("sends");
    stream.write_all(&message(255, &[0])).await.expect("ends standard input");
    let mut all = Vec::new();
    tokio::time::timeout(LIMIT, stream.read_to_end(&mut all)).await.expect("ends").expect("ends well");
    assert!(all.starts_with(b"\x82\x01\x01\x82\x06\x01hello\x82"), "a greeting, the echo: {all:?}");
    let text = String::from_utf8_lossy(&all);
    assert!(text.contains(r#""reason":"NonZeroExitCode""#) && text.contains(r#""message":"3""#), "{text}");
    assert!(all.ends_with(b"\x88\x02\x03\xe8"), "closed as intended");
    assert_eq!(running.load(Ordering::SeqCst), 0);
    let (_, head) = ask(&url, WEBSOCKET).await;
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");
}

#[tokio::test]
async fn what_is_no_session_is_refused() {
    let (streaming, running) = start().await;
    let base = streaming.base_url().to_owned();
    let other_kind = exec_url(&streaming, 1).replace("/exec/", "/attach/");
    for (url, headers, expected) in [
        (format!("{base}/exec/AAAAAAAA"), WEBSOCKET, "404"),
        (format!("{base}/"), WEBSOCKET, "404"),
        (other_kind, WEBSOCKET, "404"),
        (exec_url(&streaming, 1), "", "400"),
        (
            exec_url(&streaming, 1),
            "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v9\r\n",
            "403",
        ),
    ] {
        let (_, head) = ask(&url, headers).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {expected}")), "{url}: {head}");
    }
    assert_eq!(running.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_program_with_it() {
    let (streaming, running) = start().await;
    for is_stalled in [false, true] {
        let (mut stream, _) = ask(&exec_url(&streaming, 60_000), WEBSOCKET).await;
        while running.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if is_stalled {
            // Its own echo is not read, so that in the end nothing moves either way.
            let piece = message(0, &[7; 100]).repeat(1000);
            while let Ok(result) = tokio::time::timeout(Duration::from_millis(500), stream.write_all(&piece)).await {
                result.expect("is there");
            }
        }
        drop(stream);
        let begun = Instant::now();
        while running.load(Ordering::SeqCst) > 0 {
            assert!(begun.elapsed() < Duration::from_secs(5), "still running, stalled: {is_stalled}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
