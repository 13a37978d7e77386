//! Streams of a session, whatever carries them: SPDY streams or WebSocket channels.
//!
//! What goes to the client waits in one queue per connection; when it is full its producers wait. What comes from it:
//! see `queue`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, mpsc};

use crate::{spdy, websocket};

/// Most bytes in one piece, in either direction: as many as a pipe holds.
pub(crate) const PIECE_MAX_BYTES: usize = 64 * 1024;
/// Frames to the client that wait per connection: 512 KiB at most.
pub(crate) const OUTBOX_FRAMES: usize = 8;

/// What the connection's writer is told.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// A frame of the session's protocol.
    Frame(Vec<u8>),
    /// A frame of what carries that protocol.
    Raw(Vec<u8>),
    /// Nothing follows: flush, and close this direction.
    End,
}

/// The queue of a connection's writer.
pub(crate) type Outbox = mpsc::Sender<Outgoing>;

/// The client, or its half of the stream, is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone;

/// How bytes of a stream become a frame.
#[derive(Debug, Clone)]
pub(crate) enum Framing {
    /// A SPDY stream within its windows.
    Spdy {
        /// Its id.
        stream: u32,
        /// The connection's windows.
        windows: Arc<Windows>,
    },
    /// A WebSocket channel. It has no end of its own.
    Channel {
        /// Its number.
        channel: u8,
        /// How payloads look.
        coding: websocket::Coding,
    },
}

/// What goes to the client on one stream.
#[derive(Debug)]
pub(crate) struct Output {
    framing: Framing,
    outbox: Outbox,
}

impl Output {
    pub(crate) fn new(framing: Framing, outbox: Outbox) -> Self {
        Self { framing, outbox }
    }

    /// Sends bytes; waits for as long as the client does not take them.
    pub(crate) async fn write(&self, bytes: &[u8]) -> Result<(), Gone> {
        match &self.framing {
            Framing::Spdy { stream, windows } => {
                let mut rest = bytes;
                while !rest.is_empty() {
                    let granted = windows.take(*stream, rest.len().min(PIECE_MAX_BYTES)).await?;
                    let (piece, after) = rest.split_at(granted);
                    self.send(spdy::data(*stream, false, piece)).await?;
                    rest = after;
                }
                Ok(())
            }
            Framing::Channel { channel, coding } => self.send(websocket::message(*channel, *coding, bytes)).await,
        }
    }

    /// Breaks the stream off in both directions. A WebSocket channel just stops.
    pub(crate) async fn reset(self) -> Result<(), Gone> {
        match &self.framing {
            Framing::Spdy { stream, .. } => self.send(spdy::cancel(*stream)).await,
            Framing::Channel { .. } => Ok(()),
        }
    }

    /// Ends this direction of the stream.
    pub(crate) async fn finish(self) -> Result<(), Gone> {
        match &self.framing {
            Framing::Spdy { stream, .. } => self.send(spdy::data(*stream, true, b"")).await,
            Framing::Channel { .. } => Ok(()),
        }
    }

    async fn send(&self, frame: Vec<u8>) -> Result<(), Gone> {
        self.outbox.send(Outgoing::Frame(frame)).await.map_err(|_| Gone)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Framing::Spdy { stream, windows } = &self.framing {
            windows.remove(*stream);
        }
    }
}

/// How much may be sent: per stream and for the whole SPDY session.
///
/// They bind only once the peer has spoken of windows at all: the clients of Kubernetes use an implementation that
/// never does, and would get 64 KiB and no more (moby/spdystream); TCP is what slows those down.
#[derive(Debug)]
pub(crate) struct Windows {
    state: Mutex<WindowState>,
    changed: Notify,
}

#[derive(Debug)]
struct WindowState {
    is_binding: bool,
    initial: i64,
    session: i64,
    streams: HashMap<u32, i64>,
}

/// Source: SPDY protocol draft 3.1, section 2.6.8.
const INITIAL_WINDOW_BYTES: i64 = 64 * 1024;

impl Windows {
    pub(crate) fn new() -> Self {
        let state = WindowState {
            is_binding: false,
            initial: INITIAL_WINDOW_BYTES,
            session: INITIAL_WINDOW_BYTES,
            streams: HashMap::new(),
        };
        Self { state: Mutex::new(state), changed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, WindowState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, stream: u32) {
        let mut state = self.state();
        let initial = state.initial;
        state.streams.insert(stream, initial);
    }

    /// Forgets a stream; who writes to it learns that it is gone.
    pub(crate) fn remove(&self, stream: u32) {
        self.state().streams.remove(&stream);
        self.changed.notify_waiters();
    }

    /// Streams that something may still be sent on.
    pub(crate) fn len(&self) -> usize {
        self.state().streams.len()
    }

    /// The peer's windows change; stream 0 is the session. Windows that were in use stay as they are counted.
    pub(crate) fn grant(&self, stream: u32, more: u32) {
        {
            let mut state = self.state();
            state.is_binding = true;
            let more = i64::from(more);
            if stream == 0 {
                state.session = state.session.saturating_add(more);
            } else if let Some(window) = state.streams.get_mut(&stream) {
                *window = window.saturating_add(more);
            }
        }
        self.changed.notify_waiters();
    }

    /// The peer names the window that streams begin with; those that exist change by the difference.
    pub(crate) fn set_initial(&self, initial: u32) {
        {
            let mut state = self.state();
            state.is_binding = true;
            let difference = i64::from(initial) - state.initial;
            state.initial = i64::from(initial);
            for window in state.streams.values_mut() {
                *window = window.saturating_add(difference);
            }
        }
        self.changed.notify_waiters();
    }

    /// Waits until something may be sent, takes up to `wanted` bytes of it.
    async fn take(&self, stream: u32, wanted: usize) -> Result<usize, Gone> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(granted) = self.try_take(stream, wanted)? {
                return Ok(granted);
            }
            changed.await;
        }
    }

    fn try_take(&self, stream: u32, wanted: usize) -> Result<Option<usize>, Gone> {
        let mut state = self.state();
        let (is_binding, session) = (state.is_binding, state.session);
        let window = state.streams.get_mut(&stream).ok_or(Gone)?;
        let granted = if is_binding {
            let open = usize::try_from((*window).min(session)).unwrap_or(0);
            wanted.min(open)
        } else {
            wanted
        };
        if granted == 0 {
            return Ok(None);
        }
        let taken = i64::try_from(granted).unwrap_or(i64::MAX);
        // Before it binds nothing is counted: what such a peer grants later is what it has consumed.
        if is_binding {
            *window = window.saturating_sub(taken);
            state.session = session.saturating_sub(taken);
        }
        Ok(Some(granted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_bind_once_the_peer_speaks_of_them() {
        let windows = Windows::new();
        windows.add(1);
        assert_eq!(windows.try_take(1, 1 << 20), Ok(Some(1 << 20)), "not yet");
        windows.set_initial(100);
        assert_eq!(windows.try_take(1, 60), Ok(Some(60)));
        assert_eq!(windows.try_take(1, 60), Ok(Some(40)));
        assert_eq!(windows.try_take(1, 60), Ok(None));
        windows.grant(1, 5);
        assert_eq!(windows.try_take(1, 60), Ok(Some(5)));
        windows.add(3);
        windows.grant(3, 1 << 20);
        let rest = usize::try_from(INITIAL_WINDOW_BYTES).expect("fits") - 105;
        assert_eq!(windows.try_take(3, 1 << 20), Ok(Some(rest)), "the session's window binds too");
        assert_eq!(windows.try_take(3, 1), Ok(None));
        windows.remove(3);
        assert_eq!(windows.try_take(3, 1), Err(Gone));
        windows.set_initial(0);
        assert_eq!(windows.try_take(1, 1), Ok(None), "a window may become negative");
    }
}
