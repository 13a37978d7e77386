//! Bytes from the client on their way into the session: a queue per stream, bounded in bytes, and a bound for all
//! streams of a connection.
//!
//! When there is no room nothing more is read from this client. Clients that keep to flow-control windows never fill a
//! queue: what a session has taken is granted again, and not before.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::stream::Gone;

/// Most bytes that wait in one stream. It is also the window that a SPDY client gets.
pub(crate) const STREAM_MAX_BYTES: usize = 256 * 1024;
/// Most bytes that wait in a connection. A stream with nothing in it has room for one piece all the same, so that one
/// that is full does not stop the others.
const CONNECTION_MAX_BYTES: usize = 4 * 1024 * 1024;
/// What a piece costs besides its bytes.
const PIECE_COST: usize = 128;
/// Shorter pieces are copied, so that a byte does not keep the buffer it arrived in.
const COPY_MAX_BYTES: usize = 4 * 1024;

/// The room of one connection.
#[derive(Debug, Default)]
pub(crate) struct Room {
    held: AtomicUsize,
    taken: Notify,
    credits: Mutex<HashMap<u32, u32>>,
    credited: Notify,
}

impl Room {
    /// What streams have taken since this was last asked for, if anything.
    pub(crate) fn take_credits(&self) -> Option<HashMap<u32, u32>> {
        let credits = std::mem::take(&mut *self.credits.lock().unwrap_or_else(PoisonError::into_inner));
        (!credits.is_empty()).then_some(credits)
    }

    /// Waits until something was taken.
    pub(crate) async fn credited(&self) {
        self.credited.notified().await;
    }

    /// Lets the peer send so much more on a stream; 0 is the connection.
    pub(crate) fn credit(&self, stream: u32, more: u32) {
        let mut credits = self.credits.lock().unwrap_or_else(PoisonError::into_inner);
        let credit = credits.entry(stream).or_default();
        *credit = credit.saturating_add(more);
        drop(credits);
        self.credited.notify_one();
    }
}

#[derive(Debug, Default)]
struct State {
    pieces: VecDeque<Bytes>,
    held: usize,
    taken: u32,
    has_ended: bool,
    is_unwanted: bool,
}

#[derive(Debug)]
struct Queue {
    room: Arc<Room>,
    state: Mutex<State>,
    arrived: Notify,
    /// The SPDY stream that is to be granted what was taken.
    granting: Option<u32>,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The connection's end of a queue. Dropping it is the end of the stream.
#[derive(Debug)]
pub(crate) struct Feeder(Arc<Queue>);

/// What the client sends on one stream; ends with its half of the stream.
#[derive(Debug)]
pub(crate) struct Input(Arc<Queue>);

/// A queue in the connection's room, whose takings are granted to a SPDY stream if there is one.
pub(crate) fn queue(room: &Arc<Room>, granting: Option<u32>) -> (Feeder, Input) {
    let queue = Arc::new(Queue { room: Arc::clone(room), state: Mutex::default(), arrived: Notify::new(), granting });
    (Feeder(Arc::clone(&queue)), Input(queue))
}

impl Feeder {
    /// Waits for room. `Err` when the session wants no more.
    pub(crate) async fn send(&self, piece: Bytes) -> Result<(), Gone> {
        let piece = if piece.len() < COPY_MAX_BYTES { Bytes::copy_from_slice(&piece) } else { piece };
        loop {
            let taken = self.0.room.taken.notified();
            tokio::pin!(taken);
            taken.as_mut().enable();
            if self.try_send(&piece)? {
                return Ok(());
            }
            taken.await;
        }
    }

    fn try_send(&self, piece: &Bytes) -> Result<bool, Gone> {
        let mut state = self.0.state();
        if state.is_unwanted {
            return Err(Gone);
        }
        let is_room = state.held < STREAM_MAX_BYTES && self.0.room.held.load(Ordering::Relaxed) < CONNECTION_MAX_BYTES;
        if !is_room && state.held > 0 {
            return Ok(false);
        }
        let cost = piece.len() + PIECE_COST;
        state.held += cost;
        self.0.room.held.fetch_add(cost, Ordering::Relaxed);
        state.pieces.push_back(piece.clone());
        drop(state);
        self.0.arrived.notify_one();
        Ok(true)
    }

    /// Whether the session wants no more.
    pub(crate) fn is_unwanted(&self) -> bool {
        self.0.state().is_unwanted
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        self.0.state().has_ended = true;
        self.0.arrived.notify_one();
    }
}

impl Input {
    /// The next piece, or `None` at the end. Cancelling loses nothing.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        loop {
            let arrived = self.0.arrived.notified();
            let piece = {
                let mut state = self.0.state();
                let piece = state.pieces.pop_front();
                if piece.is_none() && state.has_ended {
                    return None;
                }
                piece
            };
            if let Some(piece) = piece {
                self.note_taken(piece.len());
                return Some(piece);
            }
            arrived.await;
        }
    }

    fn note_taken(&self, length: usize) {
        let room = &self.0.room;
        let mut state = self.0.state();
        state.held -= length + PIECE_COST;
        room.held.fetch_sub(length + PIECE_COST, Ordering::Relaxed);
        state.taken = state.taken.saturating_add(u32::try_from(length).unwrap_or(u32::MAX));
        // Half a window at a time: less often costs the peer waits, more often frames.
        let is_due = usize::try_from(state.taken).unwrap_or(usize::MAX) >= STREAM_MAX_BYTES / 2;
        if let (Some(stream), true, false) = (self.0.granting, is_due, state.has_ended) {
            room.credit(stream, std::mem::take(&mut state.taken));
        }
        drop(state);
        room.taken.notify_waiters();
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.is_unwanted = true;
        state.pieces.clear();
        self.0.room.held.fetch_sub(std::mem::take(&mut state.held), Ordering::Relaxed);
        drop(state);
        self.0.room.taken.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn what_does_not_fit_waits_until_something_was_taken_and_that_is_granted() {
        let room = Arc::new(Room::default());
        let (feeder, mut input) = queue(&room, Some(7));
        let piece = Bytes::from(vec![1; STREAM_MAX_BYTES / 2]);
        for _ in 0..2 {
            feeder.send(piece.clone()).await.expect("fits");
        }
        assert!(feeder.send(piece.clone()).now_or_never().is_none(), "full");
        let (_other, _) = queue(&room, None);
        assert_eq!(room.take_credits(), None, "nothing was taken");
        assert_eq!(input.next().await.expect("is there").len(), piece.len());
        let half = u32::try_from(piece.len()).expect("fits");
        room.credited().await;
        assert_eq!(room.take_credits(), Some(HashMap::from([(7, half)])));
        feeder.send(piece.clone()).await.expect("fits");
        drop(feeder);
        assert!(input.next().await.is_some() && input.next().await.is_some());
        assert_eq!(input.next().await, None);
        assert_eq!(room.take_credits(), None, "a stream that has ended needs no window");
        assert_eq!(room.held.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_connection_has_its_bound_and_an_empty_stream_its_turn() {
        let room = Arc::new(Room::default());
        let piece = Bytes::from(vec![1; STREAM_MAX_BYTES]);
        let full: Vec<_> = (0..CONNECTION_MAX_BYTES / STREAM_MAX_BYTES).map(|_| queue(&room, None)).collect();
        for (feeder, _) in &full {
            feeder.send(piece.clone()).await.expect("fits");
        }
        let (feeder, input) = queue(&room, None);
        feeder.send(piece.clone()).await.expect("its first piece always fits");
        assert!(feeder.send(piece.clone()).now_or_never().is_none());
        drop(full);
        assert!(feeder.send(piece.clone()).now_or_never().is_none(), "its own bound stays");
        drop(input);
        assert_eq!(feeder.send(piece).await, Err(Gone));
        assert_eq!(room.held.load(Ordering::Relaxed), 0);
    }
}
