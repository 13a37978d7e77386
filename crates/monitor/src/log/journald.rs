//! The journal's native protocol: one datagram an entry, fields as `NAME=value` lines, or with a length in front when the
//! value has a newline. Source: systemd's "Native Journal Protocol".

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use crate::log::Stream;
use crate::options::Options;

const JOURNAL_SOCKET: &str = "/run/systemd/journal/socket";

/// Characters of the id in `CONTAINER_ID`.
const SHORT_ID: usize = 12;

/// Writes entries. A journal that does not listen loses them; one that is slow does too, as nothing may block the monitor.
#[derive(Debug)]
pub(super) struct Journal {
    socket: Option<UnixDatagram>,
    address: PathBuf,
    /// Fields that every entry has, ready to be sent.
    constant: Vec<u8>,
    has_partial_message: bool,
    /// Reused for every entry.
    datagram: Vec<u8>,
}

fn field(datagram: &mut Vec<u8>, name: &str, value: &[u8]) {
    datagram.extend_from_slice(name.as_bytes());
    if value.contains(&b'\n') {
        datagram.push(b'\n');
        datagram.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        datagram.push(b'=');
    }
    datagram.extend_from_slice(value);
    datagram.push(b'\n');
}

impl Journal {
    pub(super) fn new(options: &Options) -> Self {
        let mut constant = Vec::new();
        let id = options.cid.as_bytes();
        field(&mut constant, "CONTAINER_ID_FULL", id);
        field(&mut constant, "CONTAINER_ID", &id[..id.len().min(SHORT_ID)]);
        field(&mut constant, "CONTAINER_NAME", options.name.as_bytes());
        if let Some(tag) = &options.log_tag {
            field(&mut constant, "CONTAINER_TAG", tag.as_bytes());
        }
        let identifier = options.log_tag.as_deref().unwrap_or(&options.name);
        field(&mut constant, "SYSLOG_IDENTIFIER", identifier.as_bytes());
        for label in &options.log_labels {
            let mut halves = label.as_bytes().splitn(2, |byte| *byte == b'=');
            let (name, value) = (halves.next().unwrap_or_default(), halves.next().unwrap_or_default());
            field(&mut constant, &OsStr::from_bytes(name).to_string_lossy(), value);
        }
        let socket = UnixDatagram::unbound().ok().filter(|socket| socket.set_nonblocking(true).is_ok());
        Self {
            socket,
            address: JOURNAL_SOCKET.into(),
            constant,
            has_partial_message: options.has_partial_message,
            datagram: Vec::new(),
        }
    }

    pub(super) fn write(&mut self, stream: Stream, data: &[u8]) -> io::Result<()> {
        let Some(socket) = &self.socket else { return Err(io::ErrorKind::NotConnected.into()) };
        let mut result = Ok(());
        for line in data.split_inclusive(|byte| *byte == b'\n') {
            let (text, is_part) = match line.strip_suffix(b"\n") {
                Some(text) => (text, false),
                None => (line, true),
            };
            let (priority, text) = priority(stream, text);
            self.datagram.clear();
            field(&mut self.datagram, "MESSAGE", text);
            field(&mut self.datagram, "PRIORITY", &[priority]);
            self.datagram.extend_from_slice(&self.constant);
            if is_part && self.has_partial_message {
                field(&mut self.datagram, "CONTAINER_PARTIAL_MESSAGE", b"true");
            }
            result = result.and(socket.send_to(&self.datagram, &self.address).map(|_| ()));
        }
        result
    }
}

/// A line may begin with its own priority, as sd-daemon(3) has it.
fn priority(stream: Stream, text: &[u8]) -> (u8, &[u8]) {
    match text {
        [b'<', digit @ b'0'..=b'7', b'>', rest @ ..] => (*digit, rest),
        text => match stream {
            Stream::Stdout => (b'6', text),
            Stream::Stderr => (b'3', text),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_carry_the_fields_of_a_container() {
        let root = tempfile::tempdir().unwrap();
        let address = root.path().join("journal");
        let listener = UnixDatagram::bind(&address).unwrap();
        let mut constant = Vec::new();
        field(&mut constant, "CONTAINER_NAME", b"two\nlines");
        let socket = UnixDatagram::unbound().unwrap();
        let mut journal =
            Journal { socket: Some(socket), address, constant, has_partial_message: true, datagram: Vec::new() };
        journal.write(Stream::Stdout, b"hello\n<2>part").unwrap();
        let constant = b"CONTAINER_NAME\n\x09\0\0\0\0\0\0\0two\nlines\n";
        let mut buffer = [0; 500];
        for expected in [
            [&b"MESSAGE=hello\nPRIORITY=6\n"[..], constant].concat(),
            [&b"MESSAGE=part\nPRIORITY=2\n"[..], constant, b"CONTAINER_PARTIAL_MESSAGE=true\n"].concat(),
        ] {
            let length = listener.recv(&mut buffer).unwrap();
            assert_eq!(String::from_utf8_lossy(&buffer[..length]), String::from_utf8_lossy(&expected));
        }
        drop(listener);
        assert!(journal.write(Stream::Stderr, b"lost\n").is_err());
    }
}
