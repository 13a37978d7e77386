//! What carries HTTP and, after the upgrade, the session: TCP, or TLS over it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::presence;

/// A client's connection.
#[derive(Debug)]
pub(crate) enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// The receiving half.
pub(crate) type Reading = Box<dyn AsyncRead + Send + Sync + Unpin>;
/// The sending half. What is written may wait in it until it is flushed.
pub(crate) type Writing = Box<dyn AsyncWrite + Send + Sync + Unpin>;

impl Transport {
    /// Halves that are used at the same time, and the view of the client while neither is.
    pub(crate) fn split(self) -> io::Result<(Reading, Writing, Peer)> {
        let peer = Peer::of(match &self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        })?;
        Ok(match self {
            Self::Plain(stream) => {
                let (reading, writing) = stream.into_split();
                (Box::new(reading), Box::new(writing), peer)
            }
            Self::Tls(stream) => {
                let (reading, writing) = tokio::io::split(*stream);
                (Box::new(reading), Box::new(writing), peer)
            }
        })
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// The client's end of a connection, seen without reading.
#[derive(Debug)]
pub(crate) struct Peer {
    socket: OwnedFd,
    client: SocketAddr,
    server: SocketAddr,
}

impl Peer {
    fn of(stream: &TcpStream) -> io::Result<Self> {
        let socket = stream.as_fd().try_clone_to_owned()?;
        Ok(Self { socket, client: stream.peer_addr()?, server: stream.local_addr()? })
    }

    /// Whether the client has closed its direction, also behind bytes that wait to be read.
    pub(crate) async fn has_closed(&self) -> io::Result<bool> {
        if self.is_end_received()? {
            return Ok(true);
        }
        if self.client.ip() != self.server.ip() {
            return Ok(false);
        }
        // Where the client's bytes do not fit into our kernel, its end has not arrived either.
        let (client, server) = (self.client, self.server);
        match tokio::task::spawn_blocking(move || presence::has_closed(client, server)).await {
            Ok(Ok(is_closed)) => Ok(is_closed),
            // Without the table only the connection itself tells.
            Ok(Err(_)) | Err(_) => Ok(false),
        }
    }

    fn is_end_received(&self) -> io::Result<bool> {
        let mut sockets = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        poll(&mut sockets, Some(&Timespec::default()))?;
        Ok(sockets[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL))
    }
}
