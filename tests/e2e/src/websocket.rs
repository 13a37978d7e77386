//! The client's side of a streaming session over WebSocket, as `kubectl` speaks it: a byte that names the channel, then data.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::world::World;

/// Sessions of the tests end within this, or hang.
const SILENCE_LIMIT: Duration = Duration::from_secs(20);
/// A session's key; servers only hash it.
const KEY: &str = "AAAAAAAAAAAAAAAAAAAAAA==";
/// Frames are masked with it; RFC 6455 wants a mask, not a secret.
const MASK: [u8; 4] = [1, 2, 3, 4];
const BINARY: u8 = 2;
const CLOSE: u8 = 8;

/// Channels of exec and attach. Source: Kubernetes, remotecommand.
pub const STDIN: u8 = 0;
/// What the program says.
pub const STDOUT: u8 = 1;
/// What it complains about.
pub const STDERR: u8 = 2;
/// How the session ended.
pub const ERROR: u8 = 3;
/// Sizes of the terminal.
pub const RESIZE: u8 = 4;
/// Names a channel whose input is at its end, since version 5.
const CLOSE_CHANNEL: u8 = 255;

/// A session.
#[derive(Debug)]
pub struct Session(TcpStream);

impl Session {
    /// Opens the session that a URL stands for. `Err` is the status line of a refusal.
    pub fn open(world: &World, url: &str, protocol: &str) -> Result<Self, String> {
        let (host, path) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).expect("a URL");
        let mut stream = world.in_network(|| TcpStream::connect(host)).expect("connect");
        stream.set_read_timeout(Some(SILENCE_LIMIT)).expect("a limit");
        write!(
            stream,
            "GET /{path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {KEY}\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n"
        )
        .expect("send");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("an answer");
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).expect("text");
        match head.lines().next().expect("a status line") {
            line if line.contains(" 101 ") => Ok(Self(stream)),
            line => Err(line.to_owned()),
        }
    }

    /// Sends bytes into a channel.
    pub fn send(&mut self, channel: u8, bytes: &[u8]) {
        let length = bytes.len() + 1;
        assert!(length < 126, "short messages only");
        let mut frame = vec![0x80 | BINARY, 0x80 | u8::try_from(length).expect("short")];
        frame.extend(MASK);
        let payload = std::iter::once(&channel).chain(bytes);
        frame.extend(payload.zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        self.0.write_all(&frame).expect("send");
    }

    /// The connection.
    #[must_use]
    pub fn stream(&self) -> &TcpStream {
        &self.0
    }

    /// Says that a channel's input is at its end.
    pub fn close_channel(&mut self, channel: u8) {
        self.send(CLOSE_CHANNEL, &[channel]);
    }

    /// The next message, a channel and its bytes; `None` once the server has closed.
    pub fn receive(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut head = [0; 2];
        self.0.read_exact(&mut head).ok()?;
        let length = match head[1] & 0x7f {
            126 => {
                let mut long = [0; 2];
                self.0.read_exact(&mut long).expect("a length");
                usize::from(u16::from_be_bytes(long))
            }
            127 => {
                let mut long = [0; 8];
                self.0.read_exact(&mut long).expect("a length");
                usize::try_from(u64::from_be_bytes(long)).expect("a length")
            }
            short => usize::from(short),
        };
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).expect("a message");
        match head[0] & 0x0f {
            CLOSE => None,
            BINARY => payload.split_first().map(|(channel, bytes)| (*channel, bytes.to_vec())),
            other => panic!("an unexpected kind of frame: {other}"),
        }
    }

    /// Everything to the end of the session, by channel: output, complaints, end.
    pub fn finish(mut self) -> (String, String, serde_json::Value) {
        let (mut output, mut complaints, mut end) = (Vec::new(), Vec::new(), Vec::new());
        while let Some((channel, bytes)) = self.receive() {
            match channel {
                STDOUT => output.extend(bytes),
                STDERR => complaints.extend(bytes),
                ERROR => end.extend(bytes),
                other => panic!("an unexpected channel: {other}"),
            }
        }
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (text(output), text(complaints), serde_json::from_slice(&end).expect("a status"))
    }

    /// Reads one channel until it has said this.
    pub fn wait_for(&mut self, wanted: u8, text: &str) {
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains(text) {
            let Some((channel, bytes)) = self.receive() else {
                panic!("the session ended before {text:?}: {:?}", String::from_utf8_lossy(&seen))
            };
            if channel == wanted {
                seen.extend(bytes);
            }
        }
    }
}
