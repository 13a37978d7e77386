//! SPDY/3.1, the server's end, as far as the clients of Kubernetes speak it.

mod dictionary;
mod frame;
mod headers;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::connection::{Protocol, Receiver};
use crate::stream::{Framing, INPUT_PIECES, Input, Outbox, Outgoing, Output, PIECE_MAX_BYTES, Windows};
pub(crate) use frame::data;
use frame::{Control, HEAD_BYTES, Head, Reset};
pub(crate) use headers::{Headers, find};

/// Streams of one connection at a time: an exec session has five, a forwarded connection two.
const STREAMS_MAX: usize = 256;
/// Streams that wait for their session to take them.
const OPENED_MAX: usize = 16;
/// When a peer gets back what it used of its windows: half of them.
const GRANT_BYTES: u32 = 32 * 1024;

/// A stream that the client opened.
#[derive(Debug)]
pub(crate) struct Opened {
    /// Its id.
    pub(crate) stream: u32,
    /// Its headers.
    pub(crate) headers: Headers,
    /// What the client sends.
    pub(crate) input: Input,
    /// What the client gets.
    pub(crate) output: Output,
}

struct Sending {
    /// Gone when the session does not want more.
    pieces: Option<mpsc::Sender<Bytes>>,
    /// Received since the last grant.
    received: u32,
}

/// The state of one SPDY connection.
pub(crate) struct Connection {
    outbox: Outbox,
    opened: mpsc::Sender<Opened>,
    windows: Arc<Windows>,
    headers: headers::Reader,
    replies: headers::Writer,
    sending: HashMap<u32, Sending>,
    received: u32,
    last_stream: u32,
}

impl Connection {
    /// A connection, and the streams that the client will open on it.
    pub(crate) fn new(outbox: Outbox) -> io::Result<(Self, mpsc::Receiver<Opened>)> {
        let (opened, streams) = mpsc::channel(OPENED_MAX);
        let connection = Self {
            outbox,
            opened,
            windows: Arc::new(Windows::new()),
            headers: headers::Reader::new(),
            replies: headers::Writer::new()?,
            sending: HashMap::new(),
            received: 0,
            last_stream: 0,
        };
        Ok((connection, streams))
    }

    async fn read(&mut self, receiver: &mut Receiver) -> io::Result<()> {
        loop {
            let mut head = [0; HEAD_BYTES];
            receiver.exact(&mut head).await?;
            match frame::parse_head(head).map_err(broken)? {
                Head::Data { stream, is_last, length } => self.data(receiver, stream, is_last, length).await?,
                Head::Control { kind, flags, length } => {
                    let body = receiver.bytes(length).await?;
                    let control = frame::parse_control(kind, flags, &body).map_err(broken)?;
                    if !self.control(receiver, control).await? {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
            }
        }
    }

    async fn data(&mut self, receiver: &mut Receiver, stream: u32, is_last: bool, length: usize) -> io::Result<()> {
        let mut rest = length;
        while rest > 0 {
            let piece = receiver.some(rest.min(PIECE_MAX_BYTES)).await?;
            rest -= piece.len();
            let count = u32::try_from(piece.len()).unwrap_or(u32::MAX);
            if let Some(sending) = self.sending.get_mut(&stream) {
                if let Some(pieces) = &sending.pieces
                    && receiver.while_present(pieces.send(piece)).await?.is_err()
                {
                    sending.pieces = None;
                }
                sending.received = sending.received.saturating_add(count);
                if sending.received >= GRANT_BYTES {
                    let received = std::mem::take(&mut sending.received);
                    self.send(receiver, frame::window_update(stream, received)).await?;
                }
            }
            self.received = self.received.saturating_add(count);
            if self.received >= GRANT_BYTES {
                let received = std::mem::take(&mut self.received);
                self.send(receiver, frame::window_update(0, received)).await?;
            }
        }
        if is_last {
            self.sending.remove(&stream);
        }
        Ok(())
    }

    /// Whether the connection goes on.
    async fn control(&mut self, receiver: &Receiver, control: Control) -> io::Result<bool> {
        match control {
            Control::SynStream { stream, is_last, block } => self.open(receiver, stream, is_last, &block).await?,
            Control::Headers { block } => {
                self.headers.read(&block)?;
            }
            Control::RstStream { stream } => {
                self.sending.remove(&stream);
                self.windows.remove(stream);
            }
            Control::Settings { initial_window } => {
                if let Some(initial) = initial_window {
                    self.windows.set_initial(initial);
                }
            }
            // Pings of ours do not exist: an even id is an answer to nothing.
            Control::Ping { id } if id % 2 == 1 => self.send(receiver, frame::ping(id)).await?,
            Control::WindowUpdate { stream, more } => self.windows.grant(stream, more),
            Control::Ping { .. } | Control::Unknown => {}
            Control::GoAway => return Ok(false),
        }
        Ok(true)
    }

    async fn open(&mut self, receiver: &Receiver, stream: u32, is_last: bool, block: &[u8]) -> io::Result<()> {
        // Read even if refused: later blocks build on this one.
        let headers = self.headers.read(block)?;
        if stream.is_multiple_of(2) || stream <= self.last_stream {
            return self.send(receiver, frame::rst_stream(stream, Reset::ProtocolError)).await;
        }
        self.last_stream = stream;
        if self.sending.len().max(self.windows.len()) >= STREAMS_MAX {
            return self.send(receiver, frame::rst_stream(stream, Reset::Refused)).await;
        }
        let block = self.replies.empty()?;
        self.send(receiver, frame::syn_reply(stream, &block)).await?;
        let (pieces, input) = mpsc::channel(INPUT_PIECES);
        if !is_last {
            self.sending.insert(stream, Sending { pieces: Some(pieces), received: 0 });
        }
        self.windows.add(stream);
        let framing = Framing::Spdy { stream, windows: Arc::clone(&self.windows) };
        let output = Output::new(framing, self.outbox.clone());
        let opened = Opened { stream, headers, input: Input(input), output };
        // A session that wants no more streams drops them, which is their end.
        let _ = receiver.while_present(self.opened.send(opened)).await?;
        Ok(())
    }

    async fn send(&self, receiver: &Receiver, frame: Vec<u8>) -> io::Result<()> {
        // After the session's end the queue is closed, and answers are of no use any more.
        let _ = receiver.while_present(self.outbox.send(Outgoing::Frame(frame))).await?;
        Ok(())
    }
}

fn broken(error: frame::FrameError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

impl Protocol for Connection {
    async fn run(&mut self, receiver: &mut Receiver) -> io::Error {
        match self.read(receiver).await {
            Ok(()) => io::ErrorKind::UnexpectedEof.into(),
            Err(error) => error,
        }
    }

    fn farewell(&self, _: Option<&io::Error>) -> Option<Vec<u8>> {
        Some(frame::go_away(self.last_stream))
    }
}

/// Reads bytes as a client's frames would be: heads, bodies and header blocks. For fuzzing.
pub fn fuzz_frames(bytes: &[u8]) {
    let mut reader = headers::Reader::new();
    let mut rest = bytes;
    while let Some((head, after)) = rest.split_first_chunk::<HEAD_BYTES>() {
        let Ok(head) = frame::parse_head(*head) else { return };
        let (Head::Data { length, .. } | Head::Control { length, .. }) = head;
        let Some((body, after)) = after.split_at_checked(length) else { return };
        rest = after;
        let Head::Control { kind, flags, .. } = head else { continue };
        match frame::parse_control(kind, flags, body) {
            Ok(Control::SynStream { block, .. } | Control::Headers { block }) if reader.read(&block).is_ok() => {}
            Ok(Control::SynStream { .. } | Control::Headers { .. }) | Err(_) => return,
            Ok(_) => {}
        }
    }
}
