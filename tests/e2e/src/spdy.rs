//! The client's side of a SPDY session, as far as a client goes that means no good: streams are opened, frames are sent.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::world::World;

/// Sessions of the tests end within this, or hang.
const SILENCE_LIMIT: Duration = Duration::from_secs(20);
const SYN_STREAM: u8 = 1;

/// A connection that was upgraded.
#[derive(Debug)]
pub struct Spdy {
    stream: TcpStream,
    has_headers: bool,
}

impl Spdy {
    /// Opens the session that a URL stands for.
    #[must_use]
    pub fn open(world: &World, url: &str, protocol: &str) -> Self {
        let (host, path) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).expect("a URL");
        let mut stream = world.in_network(|| TcpStream::connect(host)).expect("connect");
        stream.set_read_timeout(Some(SILENCE_LIMIT)).expect("a limit");
        write!(
            stream,
            "POST /{path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: SPDY/3.1\r\nConnection: Upgrade\r\n\
             X-Stream-Protocol-Version: {protocol}\r\n\r\n"
        )
        .expect("send");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("an answer");
            head.push(byte[0]);
        }
        assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
        Self { stream, has_headers: false }
    }

    /// Opens a stream. Its headers travel as they are: zlib knows blocks that are not compressed.
    pub fn open_stream(&mut self, id: u32, headers: &[(&str, &str)]) {
        let word = |length: usize| u32::try_from(length).expect("short").to_be_bytes();
        let mut list = word(headers.len()).to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            list.extend(word(text.len()));
            list.extend_from_slice(text.as_bytes());
        }
        let length = u16::try_from(list.len()).expect("short");
        let mut body = [&id.to_be_bytes()[..], &[0; 6]].concat();
        if !std::mem::replace(&mut self.has_headers, true) {
            body.extend([0x78, 0x01]);
        }
        body.push(0);
        body.extend(length.to_le_bytes());
        body.extend((!length).to_le_bytes());
        body.extend(list);
        self.send(&[&[0x80, 3, 0, SYN_STREAM][..], &word(body.len()), &body].concat());
    }

    /// Sends bytes on a stream.
    pub fn data(&mut self, id: u32, bytes: &[u8]) {
        let length = u32::try_from(bytes.len()).expect("short").to_be_bytes();
        self.send(&[&id.to_be_bytes()[..], &length, bytes].concat());
    }

    /// Sends bytes as they are. A server that has closed is none of this client's business.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// The connection.
    #[must_use]
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }
}
