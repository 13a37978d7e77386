//! One upgraded connection: its socket, its writer, its idle limit, and the watch for a client that has left.

use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::queue::Room;
use crate::spdy;
use crate::stream::{OUTBOX_FRAMES, Outbox, Outgoing, PIECE_MAX_BYTES};
use crate::transport::{Peer, Reading, Transport, Writing};
use crate::websocket::{self, Tunnel};

/// How often a connection that is not being read is asked whether its client still exists.
const PRESENCE_PERIOD: Duration = Duration::from_secs(1);
/// How long a client may take to close after the session's end; closing earlier could cost it the last bytes.
const LINGER: Duration = Duration::from_secs(3);
/// Bytes the socket is read in: a piece, and the heads of some frames.
const READ_BUFFER_BYTES: usize = PIECE_MAX_BYTES + 1024;

/// When bytes last went either way.
#[derive(Debug, Clone)]
struct Activity(Arc<Mutex<Instant>>);

impl Activity {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Returns when nothing has happened for `limit`.
    async fn idle_for(&self, limit: Duration) {
        loop {
            let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // A limit beyond the clock's end is no limit.
            let Some(end) = last.checked_add(limit) else { return std::future::pending().await };
            if end <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

/// The receiving half of a connection.
pub(crate) struct Receiver {
    half: Reading,
    peer: Peer,
    /// Read already, not yet used.
    ready: Bytes,
    /// Within WebSocket messages, and where answers to pings go.
    tunnel: Option<(Tunnel, Outbox)>,
    activity: Activity,
}

impl Receiver {
    async fn fill(&mut self) -> io::Result<()> {
        while self.ready.is_empty() {
            let mut buffer = Vec::with_capacity(READ_BUFFER_BYTES);
            if self.half.read_buf(&mut buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.activity.note();
            self.ready = self.unwrap(buffer)?;
        }
        Ok(())
    }

    /// What arrived, without what carries it.
    fn unwrap(&mut self, arrived: Vec<u8>) -> io::Result<Bytes> {
        let Some((tunnel, outbox)) = &mut self.tunnel else { return Ok(arrived.into()) };
        let (bytes, pongs) = tunnel.unwrap(&arrived)?;
        for pong in pongs {
            // A queue that is full is a sign of life too.
            let _ = outbox.try_send(Outgoing::Raw(pong));
        }
        Ok(bytes.into())
    }

    /// Between one and `most` bytes.
    pub(crate) async fn some(&mut self, most: usize) -> io::Result<Bytes> {
        self.fill().await?;
        let count = self.ready.len().min(most);
        Ok(self.ready.split_to(count))
    }

    /// Fills `target`.
    pub(crate) async fn exact(&mut self, mut target: &mut [u8]) -> io::Result<()> {
        while !target.is_empty() {
            self.fill().await?;
            let (now, after) = target.split_at_mut(self.ready.len().min(target.len()));
            self.ready.copy_to_slice(now);
            target = after;
        }
        Ok(())
    }

    /// `count` bytes; the caller bounds them.
    pub(crate) async fn bytes(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(count);
        while bytes.len() < count {
            self.fill().await?;
            let now = self.ready.len().min(count - bytes.len());
            bytes.extend_from_slice(&self.ready.split_to(now));
        }
        Ok(bytes)
    }

    /// Reads to the client's end, for nobody.
    async fn discard(&mut self) {
        while self.fill().await.is_ok() {
            self.ready.clear();
        }
    }

    /// Waits for something that is no reading, but not for longer than the client is there.
    pub(crate) async fn while_present<T>(&self, work: impl Future<Output = T>) -> io::Result<T> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                () = tokio::time::sleep(PRESENCE_PERIOD) => {
                    if self.peer.has_closed().await? {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
            }
        }
    }
}

/// The sending half. Stopping it in the middle of a frame loses nothing.
struct Sender {
    half: Writing,
    queue: mpsc::Receiver<Outgoing>,
    room: Arc<Room>,
    frame: Bytes,
    carrier: Carrier,
    activity: Activity,
}

impl Sender {
    /// Sends until told that nothing follows.
    async fn run(&mut self) -> io::Result<()> {
        loop {
            while !self.frame.is_empty() {
                self.half.write_buf(&mut self.frame).await?;
                self.activity.note();
            }
            let outgoing = if let Some(credits) = self.room.take_credits() {
                Some(Outgoing::Frame(spdy::grants(&credits)))
            } else if let Ok(outgoing) = self.queue.try_recv() {
                Some(outgoing)
            } else {
                // Nothing follows at once: what encryption holds back goes out.
                self.half.flush().await?;
                tokio::select! {
                    outgoing = self.queue.recv() => outgoing,
                    () = self.room.credited() => continue,
                }
            };
            match (outgoing, self.carrier) {
                (Some(Outgoing::Frame(frame)), Carrier::Tunnel) => self.frame = websocket::wrap(&frame).into(),
                (Some(Outgoing::Frame(frame) | Outgoing::Raw(frame)), _) => self.frame = frame.into(),
                (Some(Outgoing::End) | None, _) => return self.half.shutdown().await,
            }
        }
    }
}

/// What a protocol's bytes travel in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// The connection itself.
    Connection,
    /// Binary messages of a WebSocket connection.
    Tunnel,
}

/// Reads what the client sends and hands it to the session's streams.
pub(crate) trait Protocol {
    /// Runs until the client has left or breaks the rules; then the reason.
    fn run(&mut self, receiver: &mut Receiver) -> impl Future<Output = io::Error> + Send;
    /// What to send last; after `error` if that is what ended the session.
    fn farewell(&self, error: Option<&io::Error>) -> Option<Vec<u8>>;
}

/// Serves a connection until its session has ended or its client is gone. Then nothing of it is left.
///
/// `begin` gets the queue of the connection's writer and the room for what arrives; it makes what reads the connection, and the session.
pub(crate) async fn serve<P, S>(
    stream: Transport,
    leftover: Bytes,
    carrier: Carrier,
    idle_limit: Duration,
    begin: impl FnOnce(Outbox, &Arc<Room>) -> io::Result<(P, S)>,
) -> io::Result<()>
where
    P: Protocol,
    S: Future<Output = ()>,
{
    let activity = Activity::new();
    let (reading, writing, peer) = stream.split()?;
    let room = Arc::new(Room::default());
    let (outbox, queue) = mpsc::channel(OUTBOX_FRAMES);
    let tunnel = (carrier == Carrier::Tunnel).then(|| (Tunnel::default(), outbox.clone()));
    let mut receiver = Receiver { half: reading, peer, ready: Bytes::new(), tunnel, activity: activity.clone() };
    receiver.ready = receiver.unwrap(leftover.into())?;
    let mut sender = Sender {
        half: writing,
        queue,
        room: Arc::clone(&room),
        frame: Bytes::new(),
        carrier,
        activity: activity.clone(),
    };
    let (mut protocol, session) = begin(outbox.clone(), &room)?;
    let error = {
        tokio::pin!(session);
        tokio::select! {
            () = &mut session => None,
            error = protocol.run(&mut receiver) => Some(error),
            result = sender.run() => {
                result?;
                None
            }
            () = activity.idle_for(idle_limit) => Some(io::ErrorKind::TimedOut.into()),
        }
    };
    // The session is dropped, and with it whatever it ran; what is queued still goes out.
    let farewell = protocol.farewell(error.as_ref());
    let ending = async {
        if let Some(frame) = farewell {
            let _ = outbox.send(Outgoing::Frame(frame)).await;
        }
        if carrier == Carrier::Tunnel {
            let _ = outbox.send(Outgoing::Raw(websocket::close())).await;
        }
        let _ = outbox.send(Outgoing::End).await;
    };
    let sending = async { tokio::join!(ending, sender.run()).1 };
    if let Some(error) = error {
        // The client left, or does not deserve to be waited for.
        let _ = tokio::time::timeout(PRESENCE_PERIOD, sending).await;
        return Err(error);
    }
    // A client that reads slowly gets everything that the session gave out, for as long as it is there.
    let closing = async {
        tokio::select! {
            biased;
            () = receiver.discard() => {}
            result = sending => {
                if result.is_ok() {
                    let _ = tokio::time::timeout(LINGER, receiver.discard()).await;
                }
            }
        }
    };
    tokio::select! {
        () = closing => {}
        () = activity.idle_for(idle_limit) => {}
    }
    Ok(())
}
