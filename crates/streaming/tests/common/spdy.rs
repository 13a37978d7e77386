//! A SPDY/3.1 client that blocks, over anything that reads and writes.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use flate2::{Compress, Compression, FlushCompress};

/// Nothing in these tests takes longer.
const SILENCE_LIMIT: Duration = Duration::from_secs(20);

pub(crate) const RST_STREAM: u16 = 3;
pub(crate) const SETTINGS: u16 = 4;
pub(crate) const PING: u16 = 6;
pub(crate) const GO_AWAY: u16 = 7;
pub(crate) const WINDOW_UPDATE: u16 = 9;

/// What a connection is made of.
pub(crate) trait Wire: Read + Write {}
impl<T: Read + Write> Wire for T {}

/// A frame that arrived.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    Data { stream: u32, is_last: bool, bytes: Vec<u8> },
    Control { kind: u16, body: Vec<u8> },
}

pub(crate) struct Client {
    wire: Box<dyn Wire>,
    headers: Compress,
}

/// The host and the path of a URL.
pub(crate) fn parts(url: &str) -> (&str, &str) {
    let rest = url.split_once("://").expect("a URL").1;
    rest.split_once('/').expect("a path")
}

impl Client {
    /// Upgrades a plain connection; `Err` is the head of a refusal.
    pub(crate) fn connect(url: &str, protocol: &str) -> Result<Self, String> {
        let stream = TcpStream::connect(parts(url).0).expect("connects");
        stream.set_read_timeout(Some(SILENCE_LIMIT)).expect("is a socket");
        Self::over(Box::new(stream), url, protocol).expect("answers")
    }

    /// Upgrades a connection.
    pub(crate) fn over(mut wire: Box<dyn Wire>, url: &str, protocol: &str) -> io::Result<Result<Self, String>> {
        let (host, path) = parts(url);
        let protocol =
            if protocol.is_empty() { String::new() } else { format!("X-Stream-Protocol-Version: {protocol}\r\n") };
        let request = format!(
            "POST /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n{protocol}\r\n"
        );
        wire.write_all(request.as_bytes())?;
        wire.flush()?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            wire.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).expect("is text");
        if !head.starts_with("HTTP/1.1 101") {
            return Ok(Err(head));
        }
        Ok(Ok(Self { wire, headers: Compress::new(Compression::fast(), true) }))
    }

    pub(crate) fn control(&mut self, kind: u16, flags: u8, body: &[u8]) {
        let length = u32::try_from(body.len()).expect("fits").to_be_bytes();
        let head = [0x80, 3, kind.to_be_bytes()[0], kind.to_be_bytes()[1], flags, length[1], length[2], length[3]];
        self.send(&[&head, body].concat());
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.wire.write_all(bytes).expect("sends");
        self.wire.flush().expect("sends");
    }

    /// Opens a stream.
    pub(crate) fn open(&mut self, stream: u32, headers: &[(&str, &str)]) {
        let word = |length: usize| u32::try_from(length).expect("fits").to_be_bytes();
        let mut list = word(headers.len()).to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            list.extend_from_slice(&word(text.len()));
            list.extend_from_slice(text.as_bytes());
        }
        let mut block = Vec::with_capacity(list.len() + 64);
        self.headers.compress_vec(&list, &mut block, FlushCompress::Sync).expect("packs");
        self.control(1, 0, &[&stream.to_be_bytes()[..], &[0; 6], &block].concat());
    }

    pub(crate) fn data(&mut self, stream: u32, is_last: bool, bytes: &[u8]) {
        let length = u32::try_from(bytes.len()).expect("fits").to_be_bytes();
        let head = [&stream.to_be_bytes()[..], &[u8::from(is_last), length[1], length[2], length[3]]].concat();
        self.send(&[&head, bytes].concat());
    }

    /// The next frame; `None` at the end.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 8];
        self.wire.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes([0, head[5], head[6], head[7]]);
        let mut body = vec![0; usize::try_from(length).expect("fits")];
        self.wire.read_exact(&mut body).ok()?;
        let word = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        Some(if head[0] & 0x80 == 0 {
            Frame::Data { stream: word, is_last: head[4] & 1 == 1, bytes: body }
        } else {
            Frame::Control { kind: u16::from_be_bytes([head[2], head[3]]), body }
        })
    }

    /// The body of the next frame of a kind.
    pub(crate) fn next_control(&mut self, wanted: u16) -> Vec<u8> {
        loop {
            match self.next().expect("goes on") {
                Frame::Control { kind, body } if kind == wanted => return body,
                _ => {}
            }
        }
    }

    /// What comes on each of these streams, to the end of all.
    pub(crate) fn collect(&mut self, streams: &[u32]) -> Vec<Vec<u8>> {
        let (mut all, mut open) = (vec![Vec::new(); streams.len()], streams.len());
        while open > 0 {
            let Some(Frame::Data { stream, is_last, bytes }) = self.until_data() else { break };
            if let Some(at) = streams.iter().position(|wanted| *wanted == stream) {
                all[at].extend(bytes);
                open -= usize::from(is_last);
            }
        }
        all
    }

    fn until_data(&mut self) -> Option<Frame> {
        loop {
            match self.next()? {
                data @ Frame::Data { .. } => return Some(data),
                Frame::Control { .. } => {}
            }
        }
    }
}
