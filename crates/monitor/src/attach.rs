//! The attach socket: any client gets a copy of the output and may write input.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, chmod, openat, symlinkat, unlinkat};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, recv,
    send, socket_with,
};
use thiserror::Error;

/// Most clients at one time. People attach by hand; the bound keeps a client that connects in a loop from taking all
/// descriptors.
pub(crate) const CLIENTS_MAX: usize = 64;

/// Connections that may wait to be accepted, as conmon has it.
const BACKLOG: i32 = 10;

/// Longest packet that is read from a client. A longer one would be cut by the kernel; the daemon's are at most this long.
pub(crate) const PACKET_MAX: usize = 32768;

/// Name of the socket in the bundle.
const SOCKET_NAME: &str = "attach";

/// An attach socket that cannot be made.
#[derive(Debug, Error)]
#[error("make attach socket {}", path.display())]
pub(crate) struct BindError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// What a client may still do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// Send its first bytes. Perhaps it only watches.
    Unused,
    /// Send more bytes.
    Used,
    /// It closed its sending half.
    Ended,
}

#[derive(Debug)]
struct Client {
    fd: OwnedFd,
    input: Input,
}

/// What one attempt to read from a client gave.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// So many bytes.
    Bytes(usize),
    /// Nothing for now.
    Nothing,
    /// The client sends no more; it may still read. What it had done before.
    End(Input),
}

/// The socket and its clients. The file disappears with it.
#[derive(Debug)]
pub(crate) struct AttachSocket {
    listener: OwnedFd,
    path: PathBuf,
    clients: [Option<Client>; CLIENTS_MAX],
}

impl AttachSocket {
    /// Makes `<bundle>/attach`, and `<socket directory>/<id>` a link to the bundle unless no directory is given.
    pub(crate) fn bind(bundle: &Path, link: Option<(&Path, &OsStr)>) -> Result<Self, BindError> {
        let path = bundle.join(SOCKET_NAME);
        match Self::bind_at(bundle, link) {
            Ok(listener) => Ok(Self { listener, path, clients: [const { None }; CLIENTS_MAX] }),
            Err(source) => Err(BindError { path, source }),
        }
    }

    fn bind_at(bundle: &Path, link: Option<(&Path, &OsStr)>) -> io::Result<OwnedFd> {
        if let Some((directory, id)) = link {
            let link = directory.join(id);
            match unlinkat(CWD, &link, AtFlags::empty()) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
            symlinkat(bundle, CWD, &link)?;
        }
        let directory = openat(CWD, bundle, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        match unlinkat(&directory, SOCKET_NAME, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        // The mode of the socket before it is bound becomes the file's: it is never open to others.
        rustix::fs::fchmod(&listener, Mode::from_raw_mode(0o700))?;
        // A bundle's path may be longer than the 107 bytes an address can hold.
        let number = std::os::fd::AsRawFd::as_raw_fd(&directory);
        let short = format!("/proc/self/fd/{number}/{SOCKET_NAME}");
        bind(&listener, &SocketAddrUnix::new(&*short)?)?;
        chmod(&*short, Mode::from_raw_mode(0o700))?;
        listen(&listener, BACKLOG)?;
        Ok(listener)
    }

    pub(crate) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Accepts one connection. Its place in the table, or `None` when there was none or no place is free (it is closed then).
    pub(crate) fn accept(&mut self) -> io::Result<Option<usize>> {
        let fd = match accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let free = self.clients.iter().position(Option::is_none);
        if let Some(place) = free {
            self.clients[place] = Some(Client { fd, input: Input::Unused });
        }
        Ok(free)
    }

    /// The client at a place, while it is connected.
    pub(crate) fn client(&self, place: usize) -> Option<(BorrowedFd<'_>, Input)> {
        self.clients.get(place)?.as_ref().map(|client| (client.fd.as_fd(), client.input))
    }

    /// All connected clients.
    pub(crate) fn clients(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>, Input)> {
        let places = self.clients.iter().enumerate();
        places.filter_map(|(place, client)| client.as_ref().map(|client| (place, client.fd.as_fd(), client.input)))
    }

    /// Reads one packet. A client in error is as one that ended.
    pub(crate) fn receive(&mut self, place: usize, buffer: &mut [u8]) -> Received {
        let Some(client) = self.clients.get_mut(place).and_then(Option::as_mut) else { return Received::Nothing };
        match recv(&client.fd, buffer, RecvFlags::DONTWAIT) {
            Ok((length, _)) if length > 0 => {
                client.input = Input::Used;
                Received::Bytes(length)
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Received::Nothing,
            Ok(_) | Err(_) => {
                let before = std::mem::replace(&mut client.input, Input::Ended);
                Received::End(before)
            }
        }
    }

    pub(crate) fn drop_client(&mut self, place: usize) {
        if let Some(client) = self.clients.get_mut(place) {
            *client = None;
        }
    }

    /// Sends a packet to every client. Who does not keep up is dropped: nobody else waits for it.
    pub(crate) fn broadcast(&mut self, packet: &[u8]) {
        for place in &mut self.clients {
            if let Some(client) = place
                && send(&client.fd, packet, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).is_err()
            {
                *place = None;
            }
        }
    }
}

impl Drop for AttachSocket {
    fn drop(&mut self) {
        // Gone already if the bundle was deleted.
        let _ = unlinkat(CWD, &self.path, AtFlags::empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::connect;

    fn client(path: &Path) -> OwnedFd {
        let fd = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        connect(&fd, &SocketAddrUnix::new(path).unwrap()).unwrap();
        fd
    }

    #[test]
    fn a_bundle_of_any_depth_has_a_socket_that_the_link_leads_to() {
        let root = tempfile::tempdir().unwrap();
        let bundle = root.path().join("d".repeat(120));
        std::fs::create_dir(&bundle).unwrap();
        let mut server = AttachSocket::bind(&bundle, Some((root.path(), OsStr::new("id")))).unwrap();
        drop(server);
        server = AttachSocket::bind(&bundle, Some((root.path(), OsStr::new("id")))).unwrap();
        let client = client(&root.path().join("id/attach"));
        let place = server.accept().unwrap().unwrap();
        assert_eq!(server.accept().unwrap(), None);
        server.broadcast(b"\x02hi");
        let mut buffer = [0; 10];
        assert_eq!(recv(&client, &mut buffer, RecvFlags::empty()).unwrap().0, 3);
        drop(client);
        assert_eq!(server.receive(place, &mut buffer), Received::End(Input::Unused));
        server.broadcast(b"\x02hi");
        assert_eq!(server.clients().count(), 0);
        drop(server);
        assert!(!bundle.join("attach").exists());
    }

    #[test]
    fn a_client_that_does_not_read_is_dropped_and_too_many_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let mut server = AttachSocket::bind(root.path(), None).unwrap();
        let path = root.path().join("attach");
        let clients: Vec<OwnedFd> = (0..CLIENTS_MAX)
            .map(|_| {
                let client = client(&path);
                assert!(server.accept().unwrap().is_some());
                client
            })
            .collect();
        let surplus = client(&path);
        assert_eq!(server.accept().unwrap(), None);
        assert_eq!(recv(&surplus, &mut [0; 1], RecvFlags::empty()).unwrap().0, 0);
        let packet = [2; 8193];
        let mut buffer = [0; 9000];
        for _ in 0..1000 {
            server.broadcast(&packet);
            recv(&clients[0], &mut buffer, RecvFlags::empty()).unwrap();
        }
        assert_eq!(server.clients().map(|(place, ..)| place).collect::<Vec<_>>(), [0]);
    }
}
