//! The client's side of SPDY/3.1, as far as engines use it: streams of bytes in both directions.
//!
//! Headers are sent in zlib blocks that are stored, not compressed, and those of the server are not looked into: its
//! answers to streams say nothing. Flow control is TCP's, as with kubectl. Source: SPDY protocol draft 3.1, section 2.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use super::upgrade::Upgraded;

/// Parts of a stream that wait for their reader: a slow one holds up the connection after this many.
const QUEUE: usize = 16;
/// Largest part that is handed on at once, bytes.
const PART_MAX: usize = 32 * 1024;
/// Longest control frame of a server: answers to streams have next to no headers.
const CONTROL_MAX: usize = 64 * 1024;
const HEAD: usize = 8;
const FLAG_FIN: u8 = 1;
const SYN_STREAM: u16 = 1;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;

type Writer = Arc<tokio::sync::Mutex<WriteHalf<Upgraded>>>;
type Streams = Arc<Mutex<HashMap<u32, mpsc::Sender<Vec<u8>>>>>;

/// A session. Ends when it and all its streams are dropped.
pub(super) struct Connection {
    writer: Writer,
    streams: Streams,
    last: u32,
    has_headers: bool,
    reader: tokio::task::JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// One stream of a session.
pub(super) struct Stream {
    id: u32,
    writer: Writer,
    parts: mpsc::Receiver<Vec<u8>>,
}

/// The sending side of a stream.
#[derive(Clone)]
pub(super) struct Sender {
    id: u32,
    writer: Writer,
}

impl Connection {
    /// Begins a session on an upgraded connection.
    pub(super) fn new(carrier: Upgraded) -> Self {
        let (reader, writer) = tokio::io::split(carrier);
        let (writer, streams) = (Arc::new(tokio::sync::Mutex::new(writer)), Streams::default());
        let reading = read(reader, Arc::clone(&writer), Arc::clone(&streams));
        let all = Arc::clone(&streams);
        let reader = tokio::spawn(async move {
            // However it ends, every stream has ended.
            let _ = reading.await;
            lock(&all).clear();
        });
        Self { writer, streams, last: 0, has_headers: false, reader }
    }

    /// Opens a stream.
    pub(super) async fn open(&mut self, headers: &[(&str, &str)]) -> io::Result<Stream> {
        // Streams of a client have odd numbers.
        let id = if self.last == 0 { 1 } else { self.last + 2 };
        self.last = id;
        let (sender, parts) = mpsc::channel(QUEUE);
        lock(&self.streams).insert(id, sender);
        let frame = syn_stream(id, headers, !std::mem::replace(&mut self.has_headers, true));
        self.writer.lock().await.write_all(&frame).await?;
        Ok(Stream { id, writer: Arc::clone(&self.writer), parts })
    }
}

impl Stream {
    /// The next bytes; `None` after the last.
    pub(super) async fn next(&mut self) -> Option<Vec<u8>> {
        self.parts.recv().await
    }

    pub(super) fn sender(&self) -> Sender {
        Sender { id: self.id, writer: Arc::clone(&self.writer) }
    }

    /// All there is, as text, within a bound.
    pub(super) async fn read_to_end(&mut self, limit: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(part) = self.next().await {
            all.extend(part.iter().take(limit.saturating_sub(all.len())));
        }
        all
    }
}

impl Sender {
    pub(super) async fn send(&self, bytes: &[u8]) -> io::Result<()> {
        for part in bytes.chunks(PART_MAX) {
            self.writer.lock().await.write_all(&data(self.id, 0, part)).await?;
        }
        Ok(())
    }

    /// Says that nothing more comes from this side.
    pub(super) async fn finish(&self) -> io::Result<()> {
        self.writer.lock().await.write_all(&data(self.id, FLAG_FIN, &[])).await
    }
}

fn lock(streams: &Streams) -> std::sync::MutexGuard<'_, HashMap<u32, mpsc::Sender<Vec<u8>>>> {
    streams.lock().unwrap_or_else(PoisonError::into_inner)
}

fn word(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}

/// A frame's flags and length, in one word.
fn tail(flags: u8, length: usize) -> [u8; 4] {
    let [_, l0, l1, l2] = word(length);
    [flags, l0, l1, l2]
}

fn data(id: u32, flags: u8, bytes: &[u8]) -> Vec<u8> {
    [&id.to_be_bytes()[..], &tail(flags, bytes.len()), bytes].concat()
}

fn control(kind: u16, body: &[u8]) -> Vec<u8> {
    [&[0x80, 3][..], &kind.to_be_bytes(), &tail(0, body.len()), body].concat()
}

/// Opens a stream; the first block of a connection begins zlib's stream.
fn syn_stream(id: u32, headers: &[(&str, &str)], is_first: bool) -> Vec<u8> {
    let mut list = word(headers.len()).to_vec();
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        list.extend(word(text.len()));
        list.extend_from_slice(text.as_bytes());
    }
    let length = u16::try_from(list.len()).expect("headers of sessions take some hundred bytes");
    let mut body = [&id.to_be_bytes()[..], &[0; 6]].concat();
    if is_first {
        body.extend([0x78, 0x01]);
    }
    body.push(0);
    body.extend(length.to_le_bytes());
    body.extend((!length).to_le_bytes());
    body.extend(list);
    control(SYN_STREAM, &body)
}

/// Hands on what comes until the connection ends.
async fn read(mut reader: ReadHalf<Upgraded>, writer: Writer, streams: Streams) -> io::Result<()> {
    loop {
        let mut head = [0; HEAD];
        reader.read_exact(&mut head).await?;
        let [b0, b1, b2, b3, flags, l0, l1, l2] = head;
        let length = usize::from(l0) << 16 | usize::from(l1) << 8 | usize::from(l2);
        if b0 & 0x80 == 0 {
            let id = u32::from_be_bytes([b0, b1, b2, b3]);
            let sender = lock(&streams).get(&id).cloned();
            let mut left = length;
            while left > 0 {
                let mut part = vec![0; left.min(PART_MAX)];
                reader.read_exact(&mut part).await?;
                left -= part.len();
                if let Some(sender) = &sender {
                    // A stream that nobody reads any more is read to its end all the same.
                    let _ = sender.send(part).await;
                }
            }
            if flags & FLAG_FIN != 0 {
                lock(&streams).remove(&id);
            }
            continue;
        }
        if length > CONTROL_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).await?;
        let first = body.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
        match (u16::from_be_bytes([b2, b3]), first) {
            _ if b0 != 0x80 || b1 != 3 => return Err(io::ErrorKind::InvalidData.into()),
            (RST_STREAM, Some(id)) => drop(lock(&streams).remove(&(id & 0x7fff_ffff))),
            // A ping with an even number is the server's, and wants an answer.
            (PING, Some(id)) if id % 2 == 0 => {
                writer.lock().await.write_all(&control(PING, &id.to_be_bytes())).await?;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a server would send, against streams opened on the other end.
    async fn session(frames: &[Vec<u8>]) -> (Vec<Vec<u8>>, Vec<u8>) {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let mut connection = Connection::new(Box::pin(near));
        let mut streams = Vec::new();
        for name in ["error", "stdout"] {
            streams.push(connection.open(&[("streamtype", name)]).await.unwrap());
        }
        streams[0].sender().finish().await.unwrap();
        for frame in frames {
            far.write_all(frame).await.unwrap();
        }
        far.shutdown().await.unwrap();
        let mut read = Vec::new();
        for stream in &mut streams {
            read.push(stream.read_to_end(1 << 20).await);
        }
        connection.writer.lock().await.shutdown().await.unwrap();
        let mut sent = Vec::new();
        far.read_to_end(&mut sent).await.unwrap();
        (read, sent)
    }

    #[tokio::test]
    async fn streams_carry_bytes_to_their_end() {
        let long = vec![7; 100_000];
        let frames = [
            control(2, &[0, 0, 0, 1]),
            data(3, 0, b"ab"),
            data(3, 0, &long),
            data(99, 0, b"nobody"),
            control(PING, &2_u32.to_be_bytes()),
            data(3, FLAG_FIN, b"c"),
            data(1, FLAG_FIN, b"done"),
        ];
        let (read, sent) = session(&frames).await;
        assert_eq!(read[0], b"done");
        assert_eq!(read[1], [b"ab", &long[..], b"c"].concat());
        assert!(sent.starts_with(&syn_stream(1, &[("streamtype", "error")], true)));
        assert!(sent.ends_with(&control(PING, &2_u32.to_be_bytes())));
    }

    #[tokio::test]
    async fn a_server_that_breaks_off_ends_every_stream() {
        let cases = [
            vec![data(3, 0, b"ab")],
            vec![data(3, 0, b"ab"), control(RST_STREAM, &[0, 0, 0, 3, 0, 0, 0, 5]), data(3, 0, b"cd")],
            vec![data(3, 0, b"ab"), vec![0x80, 2, 0, 1, 0, 0, 0, 0], data(3, 0, b"cd")],
            vec![data(3, 0, b"ab"), vec![0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff], data(3, 0, b"cd")],
        ];
        for frames in cases {
            let (read, _) = session(&frames).await;
            assert_eq!(read, [b"".to_vec(), b"ab".to_vec()], "{frames:?}");
        }
    }
}
