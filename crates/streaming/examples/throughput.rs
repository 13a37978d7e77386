//! How fast sessions are beside `socat`: bytes go out, come back and are compared, through `cat` and through a forwarded
//! connection, by turns.
//!
//! `cargo run --release -p streaming --example throughput [MiB] [rounds]`

use std::io::{BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio as Io};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flate2::{Compress, Compression, FlushCompress};
use futures_util::future::{BoxFuture, FutureExt};
use streaming::{
    AttachRequest, AttachTarget, Backend, Exec, ExecRequest, Network, Options, PortForwardRequest, Program, ProgramEnd,
    Refusal, Stdio, Streaming, Streams,
};

/// What `kubectl` sends at a time.
const PIECE_BYTES: usize = 32 * 1024;
/// No multiple of any buffer, so that a piece that is lost or doubled shows.
const PATTERN_BYTES: usize = (1 << 20) + 4093;
const READ_BYTES: usize = 256 * 1024;

/// Runs real programs on the node itself.
struct Node;

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Program for Running {
    fn wait(&mut self) -> BoxFuture<'_, std::io::Result<ProgramEnd>> {
        async {
            loop {
                if let Some(status) = self.0.try_wait()? {
                    return Ok(ProgramEnd { code: status.code().unwrap_or(-1), complaint: Vec::new() });
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        .boxed()
    }

    fn resize(&self, _: u16, _: u16) -> std::io::Result<()> {
        Ok(())
    }
}

impl Backend for Node {
    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, Result<Exec, Refusal>> {
        async move {
            let (program, arguments) = request.command.split_first().ok_or("no command")?;
            let mut child = Command::new(program).args(arguments).stdin(Io::piped()).stdout(Io::piped()).spawn()?;
            let (stdin, stdout) = (child.stdin.take().map(Into::into), child.stdout.take().map(Into::into));
            Ok(Exec { stdio: Stdio::Pipes { stdin, stdout, stderr: None }, program: Box::new(Running(child)) })
        }
        .boxed()
    }

    fn attach(&self, _: AttachRequest) -> BoxFuture<'_, Result<AttachTarget, Refusal>> {
        async { Err("nothing to attach to".into()) }.boxed()
    }

    fn port_forward(&self, _: String) -> BoxFuture<'_, Result<Network, Refusal>> {
        async { Ok(Network::Host) }.boxed()
    }
}

/// Answers every connection with what it says.
fn serve_echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = listener.local_addr().expect("is bound").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut buffer = vec![0; READ_BYTES];
                let (mut from, mut to) = (&stream, &stream);
                while let Ok(count @ 1..) = from.read(&mut buffer) {
                    if to.write_all(&buffer[..count]).is_err() {
                        return;
                    }
                }
                let _ = stream.shutdown(Shutdown::Write);
            });
        }
    });
    port
}

fn pattern() -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[0]
    };
    (0..PATTERN_BYTES).map(|_| next()).collect()
}

/// Where in the pattern a position is.
fn place(position: u64) -> usize {
    usize::try_from(position % PATTERN_BYTES as u64).expect("fits")
}

/// Compares what comes back with what was sent.
struct Checker<'a> {
    pattern: &'a [u8],
    seen: u64,
}

impl Checker<'_> {
    fn add(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let expected = &self.pattern[place(self.seen)..];
            let now = expected.len().min(bytes.len());
            assert!(bytes[..now] == expected[..now], "other bytes came back at {}", self.seen);
            self.seen += now as u64;
            bytes = &bytes[now..];
        }
    }
}

/// How bytes are put into frames and taken out.
#[derive(Clone, Copy)]
enum Wire {
    Plain,
    /// On these streams.
    Spdy {
        out: u32,
        back: u32,
    },
    WebSocket,
}

impl Wire {
    fn head(self, length: usize) -> Vec<u8> {
        let [_, l0, l1, l2] = u32::try_from(length).expect("short").to_be_bytes();
        match self {
            Self::Plain => Vec::new(),
            Self::Spdy { out, .. } => [&out.to_be_bytes()[..], &[0, l0, l1, l2]].concat(),
            Self::WebSocket => {
                let length = u16::try_from(length + 1).expect("short").to_be_bytes();
                // A mask of zeros changes nothing; the server has to apply it all the same.
                [&[0x82, 0xfe][..], &length, &[0; 4], &[0]].concat()
            }
        }
    }

    fn end(self, stream: &TcpStream) {
        let mut to = stream;
        let end = match self {
            Self::Plain => return stream.shutdown(Shutdown::Write).expect("is there"),
            Self::Spdy { out, .. } => [&out.to_be_bytes()[..], &[1, 0, 0, 0]].concat(),
            Self::WebSocket => vec![0x82, 0x82, 0, 0, 0, 0, 255, 0],
        };
        to.write_all(&end).expect("is there");
    }

    /// Whether a frame brings bytes of the session, and how many.
    fn frame(self, from: &mut impl Read) -> (bool, usize) {
        let mut head = [0; 10];
        let mut more = |range: std::ops::Range<usize>| from.read_exact(&mut head[range]).expect("goes on");
        match self {
            Self::Plain => unreachable!("has no frames"),
            Self::Spdy { back, .. } => {
                more(0..8);
                let stream = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
                (stream == back, number(&head[5..8]))
            }
            Self::WebSocket => {
                more(0..2);
                let long = match head[1] {
                    126 => 2,
                    127 => 8,
                    _ => 0,
                };
                let mut more = |range: std::ops::Range<usize>| from.read_exact(&mut head[range]).expect("goes on");
                more(2..2 + long);
                let length = if long == 0 { usize::from(head[1]) } else { number(&head[2..2 + long]) };
                let mut channel = [0];
                from.read_exact(&mut channel).expect("goes on");
                (channel == [1], length - 1)
            }
        }
    }

    /// Reads until everything is back.
    fn read(self, mut stream: &TcpStream, checker: &mut Checker<'_>, total: u64) {
        let mut buffer = vec![0; READ_BYTES];
        let mut from = BufReader::with_capacity(READ_BYTES, stream);
        while checker.seen < total {
            if let Self::Plain = self {
                let count = stream.read(&mut buffer).expect("goes on");
                assert_ne!(count, 0, "the end came at {}", checker.seen);
                checker.add(&buffer[..count]);
                continue;
            }
            let (is_data, length) = self.frame(&mut from);
            from.read_exact(&mut buffer[..length]).expect("goes on");
            if is_data {
                checker.add(&buffer[..length]);
            }
        }
    }
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |number, byte| (number << 8) | usize::from(*byte))
}

/// Sends `total` bytes and waits until they are back; MiB in a second.
fn measure(stream: &TcpStream, wire: Wire, pattern: &[u8], total: u64) -> f64 {
    let begun = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut to, mut sent) = (stream, 0_u64);
            let mut frame = Vec::new();
            while sent < total {
                let at = place(sent);
                let left = usize::try_from(total - sent).expect("fits");
                let piece = &pattern[at..(at + PIECE_BYTES.min(left)).min(PATTERN_BYTES)];
                frame.clear();
                frame.extend(wire.head(piece.len()));
                frame.extend_from_slice(piece);
                to.write_all(&frame).expect("is there");
                sent += piece.len() as u64;
            }
            wire.end(stream);
        });
        wire.read(stream, &mut Checker { pattern, seen: 0 }, total);
    });
    let mebibytes = u32::try_from(total >> 20).expect("fits");
    f64::from(mebibytes) / begun.elapsed().as_secs_f64()
}

fn ask(url: &str, headers: &str) -> TcpStream {
    let (host, path) = url.strip_prefix("http://").expect("is plain").split_once('/').expect("has a path");
    let mut stream = TcpStream::connect(host).expect("connects");
    stream.set_nodelay(true).expect("is a socket");
    let request = format!("POST /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).expect("sends");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("answers");
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    stream
}

/// Opens SPDY streams, numbered 1, 3, 5.
fn open_streams(mut stream: &TcpStream, lists: &[&[(&str, &str)]]) {
    let mut zlib = Compress::new(Compression::fast(), true);
    let word = |length: usize| u32::try_from(length).expect("short").to_be_bytes();
    for (at, headers) in lists.iter().enumerate() {
        let mut list = word(headers.len()).to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            list.extend(word(text.len()));
            list.extend_from_slice(text.as_bytes());
        }
        let mut block = Vec::with_capacity(1024);
        zlib.compress_vec(&list, &mut block, FlushCompress::Sync).expect("packs");
        let body = [&word(2 * at + 1)[..], &[0; 6], &block].concat();
        stream.write_all(&[&[0x80, 3, 0, 1][..], &word(body.len()), &body].concat()).expect("sends");
    }
}

fn exec_url(streaming: &Streaming) -> String {
    let streams = Streams { has_terminal: false, has_stdin: true, has_stdout: true, has_stderr: false };
    let request = ExecRequest { container: "node".to_owned(), command: vec!["cat".to_owned()], streams };
    streaming.exec_url(request).expect("is prepared")
}

const SPDY: &str = "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n";
const FORWARD: &str = "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: portforward.k8s.io\r\n";
const WEBSOCKET: &str = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n";

/// `socat` between a port and something else; one connection.
fn through_socat(target: &str, pattern: &[u8], total: u64) -> f64 {
    let port = TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("is bound").port();
    let listen = format!("TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr");
    let mut socat = Running(Command::new("socat").args([&listen, target]).spawn().expect("socat is needed"));
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = loop {
        match TcpStream::connect(address) {
            Ok(stream) => break stream,
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let speed = measure(&stream, Wire::Plain, pattern, total);
    drop(stream);
    let _ = socat.0.wait();
    speed
}

fn median(mut speeds: Vec<f64>) -> f64 {
    speeds.sort_by(f64::total_cmp);
    speeds[speeds.len() / 2]
}

fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u64>().expect("a number"));
    let total = arguments.next().unwrap_or(1024) << 20;
    let rounds = arguments.next().unwrap_or(5);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("an async runtime");
    let options =
        Options { address: Some(Ipv4Addr::LOCALHOST.into()), port: 0, idle_limit: Duration::from_secs(60), tls: None };
    let (streaming, server) = runtime.block_on(Streaming::bind(&options, Arc::new(Node))).expect("binds");
    runtime.spawn(server.run());
    let (pattern, echo) = (pattern(), serve_echo());
    let (echo_target, echo) = (format!("TCP:127.0.0.1:{echo}"), echo.to_string());

    let spdy_exec = || {
        let stream = ask(&exec_url(&streaming), SPDY);
        open_streams(&stream, &[&[("streamtype", "error")], &[("streamtype", "stdin")], &[("streamtype", "stdout")]]);
        measure(&stream, Wire::Spdy { out: 3, back: 5 }, &pattern, total)
    };
    let websocket_exec = || measure(&ask(&exec_url(&streaming), WEBSOCKET), Wire::WebSocket, &pattern, total);
    let spdy_forward = || {
        let request = PortForwardRequest { sandbox: "node".to_owned(), ports: Vec::new() };
        let stream = ask(&streaming.port_forward_url(request).expect("is prepared"), FORWARD);
        let headers = |kind| [("streamtype", kind), ("port", echo.as_str()), ("requestid", "0")];
        open_streams(&stream, &[&headers("error"), &headers("data")]);
        measure(&stream, Wire::Spdy { out: 3, back: 3 }, &pattern, total)
    };
    type Way<'a> = (&'static str, Box<dyn Fn() -> f64 + 'a>);
    let ways: [Way<'_>; 5] = [
        ("socat cat", Box::new(|| through_socat("EXEC:cat,pipes", &pattern, total))),
        ("exec cat, SPDY", Box::new(spdy_exec)),
        ("exec cat, WebSocket", Box::new(websocket_exec)),
        ("socat connection", Box::new(|| through_socat(&echo_target, &pattern, total))),
        ("port-forward, SPDY", Box::new(spdy_forward)),
    ];
    let mut speeds = vec![Vec::new(); ways.len()];
    for _ in 0..rounds {
        for ((_, way), speeds) in ways.iter().zip(&mut speeds) {
            speeds.push(way());
        }
    }
    let medians: Vec<_> = speeds.into_iter().map(median).collect();
    for (at, (name, _)) in ways.iter().enumerate() {
        let beside = if at < 3 { medians[0] } else { medians[3] };
        println!("{name:22} {:8.0} MiB/s  {:.2}", medians[at], medians[at] / beside);
    }
}
