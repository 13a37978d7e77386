//! SPDY/3.1, the server's end, as far as the clients of Kubernetes speak it.

mod dictionary;
mod frame;
mod headers;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::connection::{Protocol, Receiver};
use crate::port_forward;
use crate::queue::{self, Feeder, Input, Room, STREAM_MAX_BYTES};
use crate::stream::{Framing, Outbox, Outgoing, Output, PIECE_MAX_BYTES, Windows};
pub(crate) use frame::data;
use frame::{Control, HEAD_BYTES, Head, Reset};
pub(crate) use headers::{Headers, find};

/// Streams of one connection at a time: an exec session has five, a forwarded connection two.
const STREAMS_MAX: usize = 1024;
/// Streams that wait for their session to take them.
const OPENED_MAX: usize = 16;
/// The window of each stream, as much as its queue holds.
const WINDOW_BYTES: u32 = 256 * 1024;
const _: () = assert!(WINDOW_BYTES as usize == STREAM_MAX_BYTES);
/// The window of the whole connection: streams have their own bounds, so that this one need never be felt.
const SESSION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// The window that a peer assumes before it is told. Source: SPDY protocol draft 3.1, section 2.6.8.
const ASSUMED_WINDOW_BYTES: u32 = 64 * 1024;

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

/// The state of one SPDY connection.
pub(crate) struct Connection {
    outbox: Outbox,
    opened: mpsc::Sender<Opened>,
    windows: Arc<Windows>,
    headers: headers::Reader,
    replies: headers::Writer,
    /// Streams whose client's half is open.
    sending: HashMap<u32, Feeder>,
    room: Arc<Room>,
    received: u32,
    last_stream: u32,
}

impl Connection {
    /// A connection, and the streams that the client will open on it.
    pub(crate) fn new(outbox: Outbox, room: &Arc<Room>) -> io::Result<(Self, mpsc::Receiver<Opened>)> {
        // The queue is empty still.
        let _ = outbox.try_send(Outgoing::Frame(frame::settings(WINDOW_BYTES)));
        room.credit(0, SESSION_WINDOW_BYTES - ASSUMED_WINDOW_BYTES);
        let (opened, streams) = mpsc::channel(OPENED_MAX);
        let connection = Self {
            outbox,
            opened,
            windows: Arc::new(Windows::new()),
            headers: headers::Reader::new(),
            replies: headers::Writer::new()?,
            sending: HashMap::new(),
            room: Arc::clone(room),
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
        if stream > self.last_stream || stream.is_multiple_of(2) {
            self.send(receiver, frame::rst_stream(stream, Reset::InvalidStream)).await?;
        }
        let mut rest = length;
        while rest > 0 {
            let piece = receiver.some(rest.min(PIECE_MAX_BYTES)).await?;
            rest -= piece.len();
            let count = u32::try_from(piece.len()).unwrap_or(u32::MAX);
            if let Some(feeder) = self.sending.get(&stream)
                && receiver.while_present(feeder.send(piece)).await?.is_err()
            {
                // Nobody takes it; its sender is to come to its end all the same.
                self.room.credit(stream, count);
            }
            self.received = self.received.saturating_add(count);
            if self.received >= WINDOW_BYTES / 2 {
                self.room.credit(0, std::mem::take(&mut self.received));
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
        if self.sending.len() >= STREAMS_MAX {
            self.sending.retain(|_, feeder| !feeder.is_unwanted());
        }
        if self.sending.len().max(self.windows.len()) >= STREAMS_MAX {
            return self.send(receiver, frame::rst_stream(stream, Reset::Refused)).await;
        }
        let block = self.replies.empty()?;
        self.send(receiver, frame::syn_reply(stream, &block)).await?;
        let (feeder, input) = queue::queue(&self.room, Some(stream));
        if !is_last {
            self.sending.insert(stream, feeder);
        }
        self.windows.add(stream);
        let framing = Framing::Spdy { stream, windows: Arc::clone(&self.windows) };
        let output = Output::new(framing, self.outbox.clone());
        let opened = Opened { stream, headers, input, output };
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

/// Frames that let the peer send so much more on each stream.
pub(crate) fn grants(credits: &HashMap<u32, u32>) -> Vec<u8> {
    credits.iter().flat_map(|(stream, more)| frame::window_update(*stream, *more)).collect()
}

/// A frame that breaks a stream off.
pub(crate) fn cancel(stream: u32) -> Vec<u8> {
    frame::rst_stream(stream, Reset::Cancel)
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
            Ok(Control::SynStream { stream, block, .. }) => match reader.read(&block) {
                Ok(headers) => _ = port_forward::half_of(&headers, stream),
                Err(_) => return,
            },
            Ok(Control::Headers { block }) if reader.read(&block).is_err() => return,
            Err(_) => return,
            Ok(_) => {}
        }
    }
}
