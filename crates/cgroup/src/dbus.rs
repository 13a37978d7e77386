//! As much D-Bus as one method call to systemd needs.
//!
//! A library for this brings an async executor and some sixty crates into a daemon that makes this one call; the wire
//! format of one call and its reply is two hundred lines. Little endian, protocol version 1.
//! Source: D-Bus specification 0.42.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use thiserror::Error;

/// Longest message that is read. Replies to our calls are a few hundred bytes; signals in between may be larger.
const MESSAGE_MAX_BYTES: usize = 1 << 20;
/// Most messages that are passed over while waiting for a reply: a busy systemd tells everybody about its units.
const MESSAGES_MAX: usize = 10_000;
/// Longest line of the authentication.
const AUTH_LINE_MAX_BYTES: usize = 1024;

const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
const FIELD_PATH: u8 = 1;
const FIELD_INTERFACE: u8 = 2;
const FIELD_MEMBER: u8 = 3;
const FIELD_ERROR_NAME: u8 = 4;
const FIELD_REPLY_SERIAL: u8 = 5;
const FIELD_DESTINATION: u8 = 6;
const FIELD_SIGNATURE: u8 = 8;

/// Why a call has no reply.
#[derive(Debug, Error)]
pub enum CallError {
    /// The connection broke or the time is up.
    #[error("talk to systemd")]
    Io(#[from] io::Error),
    /// What came is not the protocol.
    #[error("the answer of systemd is not D-Bus: {0}")]
    Protocol(&'static str),
    /// systemd says no.
    #[error("{name}: {message}")]
    Refused {
        /// Name of the error, as in `org.freedesktop.systemd1.UnitExists`.
        name: String,
        /// Its words.
        message: String,
    },
}

/// A property's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Bool(bool),
    I32(i32),
    U64(u64),
    String(String),
    StringList(Vec<String>),
    U32List(Vec<u32>),
    Bytes(Vec<u8>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Self::Bool(_) => "b",
            Self::I32(_) => "i",
            Self::U64(_) => "t",
            Self::String(_) => "s",
            Self::StringList(_) => "as",
            Self::U32List(_) => "au",
            Self::Bytes(_) => "ay",
        }
    }
}

/// Writes values at their natural alignment, counted from the start of the message or body, which are both multiples
/// of eight.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn pad(&mut self, alignment: usize) {
        self.0.resize(self.0.len().next_multiple_of(alignment), 0);
    }

    fn u32(&mut self, value: u32) {
        self.pad(4);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// All our texts are checked names and constants, far below four gigabytes.
    fn length(length: usize) -> u32 {
        u32::try_from(length).unwrap_or(u32::MAX)
    }

    fn string(&mut self, text: &str) {
        self.u32(Self::length(text.len()));
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, text: &str) {
        self.0.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
    }

    /// The length of an array does not count the padding before its first element.
    fn array(&mut self, alignment: usize, fill: impl FnOnce(&mut Self)) {
        self.u32(0);
        let at = self.0.len() - 4;
        self.pad(alignment);
        let start = self.0.len();
        fill(self);
        let length = Self::length(self.0.len() - start);
        self.0[at..at + 4].copy_from_slice(&length.to_le_bytes());
    }

    fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        match value {
            Value::Bool(value) => self.u32(u32::from(*value)),
            Value::I32(value) => {
                self.pad(4);
                self.0.extend_from_slice(&value.to_le_bytes());
            }
            Value::U64(value) => {
                self.pad(8);
                self.0.extend_from_slice(&value.to_le_bytes());
            }
            Value::String(text) => self.string(text),
            Value::StringList(list) => self.array(4, |out| list.iter().for_each(|text| out.string(text))),
            Value::U32List(list) => self.array(4, |out| list.iter().for_each(|value| out.u32(*value))),
            Value::Bytes(bytes) => self.array(1, |out| out.0.extend_from_slice(bytes)),
        }
    }

    fn header_field(&mut self, code: u8, kind: &str, text: &str) {
        self.pad(8);
        self.0.push(code);
        self.signature(kind);
        if kind == "g" { self.signature(text) } else { self.string(text) }
    }
}

/// Reads values at their alignment; every step is bounds-checked.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], CallError> {
        let end = self.at.checked_add(length).ok_or(CallError::Protocol("a length overflows"))?;
        let taken = self.bytes.get(self.at..end).ok_or(CallError::Protocol("a message ends early"))?;
        self.at = end;
        Ok(taken)
    }

    fn pad(&mut self, alignment: usize) {
        self.at = self.at.next_multiple_of(alignment);
    }

    fn u32(&mut self) -> Result<u32, CallError> {
        self.pad(4);
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn text(&mut self, length: usize) -> Result<String, CallError> {
        let bytes = self.take(length)?;
        self.take(1)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| CallError::Protocol("a text is not UTF-8"))
    }

    fn string(&mut self) -> Result<String, CallError> {
        let length = usize::try_from(self.u32()?).map_err(|_| CallError::Protocol("a length overflows"))?;
        self.text(length)
    }

    fn signature(&mut self) -> Result<String, CallError> {
        let length = usize::from(self.take(1)?[0]);
        self.text(length)
    }
}

/// The parts of a message a caller looks at.
#[derive(Debug, Default, PartialEq, Eq)]
struct Message {
    kind: u8,
    reply_serial: u32,
    error_name: String,
    /// The first value of the body when it is a text.
    text: String,
}

const FIXED_HEADER_BYTES: usize = 16;

/// Lengths that follow the fixed part of a header: fields with their padding, then the body.
fn lengths(fixed: &[u8; FIXED_HEADER_BYTES]) -> Result<(usize, usize), CallError> {
    if fixed[0] != b'l' {
        return Err(CallError::Protocol("a message is not little endian"));
    }
    let number = |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
    let size = |number: u32| {
        let size = usize::try_from(number).unwrap_or(usize::MAX);
        if size > MESSAGE_MAX_BYTES { Err(CallError::Protocol("a message is too long")) } else { Ok(size) }
    };
    Ok((size(number(12))?, size(number(4))?))
}

fn parse_message(bytes: &[u8]) -> Result<Message, CallError> {
    let (fixed, _) = bytes.split_first_chunk().ok_or(CallError::Protocol("a message ends early"))?;
    let (fields, body) = lengths(fixed)?;
    let mut message = Message { kind: fixed[1], ..Message::default() };
    let mut signature = String::new();
    let mut reader = Reader { bytes, at: FIXED_HEADER_BYTES };
    let end = FIXED_HEADER_BYTES + fields;
    while reader.at < end {
        reader.pad(8);
        if reader.at >= end {
            break;
        }
        let code = reader.take(1)?[0];
        match reader.signature()?.as_str() {
            "s" | "o" => {
                let text = reader.string()?;
                if code == FIELD_ERROR_NAME {
                    message.error_name = text;
                }
            }
            "g" => {
                let text = reader.signature()?;
                if code == FIELD_SIGNATURE {
                    signature = text;
                }
            }
            "u" => {
                let number = reader.u32()?;
                if code == FIELD_REPLY_SERIAL {
                    message.reply_serial = number;
                }
            }
            _ => return Err(CallError::Protocol("a header field has an unknown type")),
        }
    }
    if body > 0 && signature.starts_with(['s', 'o']) {
        let mut reader = Reader { bytes, at: end.next_multiple_of(8) };
        message.text = reader.string()?;
    }
    Ok(message)
}

struct Call<'a> {
    destination: &'a str,
    path: &'a str,
    interface: &'a str,
    member: &'a str,
    signature: &'a str,
    body: Vec<u8>,
}

fn encode(call: &Call<'_>, serial: u32) -> Vec<u8> {
    let mut out = Writer(vec![b'l', METHOD_CALL, 0, 1]);
    out.u32(Writer::length(call.body.len()));
    out.u32(serial);
    out.array(8, |out| {
        out.header_field(FIELD_PATH, "o", call.path);
        out.header_field(FIELD_INTERFACE, "s", call.interface);
        out.header_field(FIELD_MEMBER, "s", call.member);
        out.header_field(FIELD_DESTINATION, "s", call.destination);
        if !call.signature.is_empty() {
            out.header_field(FIELD_SIGNATURE, "g", call.signature);
        }
    });
    out.pad(8);
    out.0.extend_from_slice(&call.body);
    out.0
}

/// One authenticated connection.
pub(crate) struct Connection {
    stream: UnixStream,
    serial: u32,
    deadline: Instant,
}

impl Connection {
    /// Connects and authenticates as our own uid; on a bus also says hello. `patience` covers all that follows.
    pub(crate) fn open(path: &Path, has_bus: bool, patience: Duration) -> io::Result<Self> {
        let deadline = Instant::now() + patience;
        let mut connection = Self { stream: UnixStream::connect(path)?, serial: 0, deadline };
        connection.authenticate()?;
        if has_bus {
            let hello = Call {
                destination: "org.freedesktop.DBus",
                path: "/org/freedesktop/DBus",
                interface: "org.freedesktop.DBus",
                member: "Hello",
                signature: "",
                body: vec![],
            };
            connection.call(&hello).map_err(io::Error::other)?;
        }
        Ok(connection)
    }

    fn limit_time(&self) -> io::Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.set_write_timeout(Some(left))
    }

    fn authenticate(&mut self) -> io::Result<()> {
        let uid = rustix::process::geteuid().as_raw().to_string();
        let hex: String = uid.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.limit_time()?;
        self.stream.write_all(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes())?;
        let mut line = vec![];
        while !line.ends_with(b"\r\n") {
            if line.len() > AUTH_LINE_MAX_BYTES {
                return Err(io::Error::other("an authentication line is too long"));
            }
            self.limit_time()?;
            let mut byte = [0];
            self.stream.read_exact(&mut byte)?;
            line.push(byte[0]);
        }
        if !line.starts_with(b"OK ") {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "systemd does not accept our credentials"));
        }
        self.stream.write_all(b"BEGIN\r\n")
    }

    fn read_exact(&mut self, into: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < into.len() {
            self.limit_time()?;
            match self.stream.read(&mut into[done..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn read_message(&mut self) -> Result<Message, CallError> {
        let mut fixed = [0; FIXED_HEADER_BYTES];
        self.read_exact(&mut fixed)?;
        let (fields, body) = lengths(&fixed)?;
        let mut bytes = fixed.to_vec();
        bytes.resize((FIXED_HEADER_BYTES + fields).next_multiple_of(8) + body, 0);
        self.read_exact(&mut bytes[FIXED_HEADER_BYTES..])?;
        parse_message(&bytes)
    }

    /// Sends a call and waits for its reply, passing over signals.
    fn call(&mut self, call: &Call<'_>) -> Result<(), CallError> {
        self.serial += 1;
        self.limit_time()?;
        self.stream.write_all(&encode(call, self.serial))?;
        for _ in 0..MESSAGES_MAX {
            let message = self.read_message()?;
            match message.kind {
                METHOD_RETURN if message.reply_serial == self.serial => return Ok(()),
                ERROR if message.reply_serial == self.serial => {
                    return Err(CallError::Refused { name: message.error_name, message: message.text });
                }
                _ => {}
            }
        }
        Err(CallError::Protocol("no reply among many messages"))
    }

    pub(crate) fn start_transient_unit(
        &mut self,
        unit: &str,
        mode: &str,
        properties: &[(&str, Value)],
    ) -> Result<(), CallError> {
        self.call(&Call {
            destination: "org.freedesktop.systemd1",
            path: "/org/freedesktop/systemd1",
            interface: "org.freedesktop.systemd1.Manager",
            member: "StartTransientUnit",
            signature: "ssa(sv)a(sa(sv))",
            body: transient_unit_body(unit, mode, properties),
        })
    }
}

impl Connection {
    /// Changes properties of a loaded unit until its end or the next boot.
    pub(crate) fn set_unit_properties(&mut self, unit: &str, properties: &[(&str, Value)]) -> Result<(), CallError> {
        let mut body = Writer::default();
        body.string(unit);
        // The D-Bus specification has booleans as numbers of four bytes.
        body.u32(1);
        body.array(8, |out| {
            for (name, value) in properties {
                out.pad(8);
                out.string(name);
                out.variant(value);
            }
        });
        self.call(&Call {
            destination: "org.freedesktop.systemd1",
            path: "/org/freedesktop/systemd1",
            interface: "org.freedesktop.systemd1.Manager",
            member: "SetUnitProperties",
            signature: "sba(sv)",
            body: body.0,
        })
    }
}

fn transient_unit_body(unit: &str, mode: &str, properties: &[(&str, Value)]) -> Vec<u8> {
    let mut body = Writer::default();
    body.string(unit);
    body.string(mode);
    body.array(8, |out| {
        for (name, value) in properties {
            out.pad(8);
            out.string(name);
            out.variant(value);
        }
    });
    // No units beside it.
    body.array(8, |_| {});
    body.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counted out by hand from the specification's alignment rules.
    #[test]
    fn a_body_is_aligned() {
        let body = transient_unit_body("a.scope", "fail", &[("Delegate", Value::Bool(true)), ("N", Value::U64(7))]);
        let mut expected: Vec<u8> = vec![];
        expected.extend(b"\x07\0\0\0a.scope\0"); // 0..12
        expected.extend(b"\x04\0\0\0fail\0\0\0\0"); // 12..24 with padding to the array's length
        expected.extend(b"\x30\0\0\0\0\0\0\0"); // 24..32: 48 bytes of elements, padding to the first
        expected.extend(b"\x08\0\0\0Delegate\0\x01b\0\x01\0\0\0"); // 32..52
        expected.extend(b"\0\0\0\0\x01\0\0\0N\0\x01t\0"); // padding to 56, ..65
        expected.extend(b"\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0"); // padding to 72, ..80
        expected.extend(b"\0\0\0\0\0\0\0\0"); // 80..88: nothing, and padding to an element that is not there
        assert_eq!(body, expected);
    }

    #[test]
    fn what_is_written_can_be_read() {
        let call = Call {
            destination: "d.e",
            path: "/p",
            interface: "i.j",
            member: "M",
            signature: "s",
            body: {
                let mut body = Writer::default();
                body.string("words");
                body.0
            },
        };
        let bytes = encode(&call, 9);
        let message = parse_message(&bytes).expect("parses");
        assert_eq!((message.kind, message.text.as_str()), (METHOD_CALL, "words"));
        for cut in 0..bytes.len() {
            assert!(parse_message(&bytes[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn hostile_messages_are_refused() {
        let mut big = vec![b'l', 2, 0, 1, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0, 0, 0, 0];
        assert!(parse_message(&big).is_err());
        big[0] = b'B';
        assert!(parse_message(&big).is_err());
    }

    /// A peer that behaves as systemd's private socket does, with a signal before the reply.
    #[test]
    fn a_call_gets_its_reply_or_its_refusal() {
        for (kind, expected) in [(METHOD_RETURN, "Ok(())"), (ERROR, "org.x.Busy: words")] {
            let directory = std::env::temp_dir().join(format!("crio-dbus-{}-{kind}", std::process::id()));
            let _ = std::fs::remove_file(&directory);
            let listener = std::os::unix::net::UnixListener::bind(&directory).expect("binds");
            let server = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().expect("accepts");
                let mut seen = vec![];
                while !seen.ends_with(b"\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).expect("reads");
                    seen.push(byte[0]);
                }
                stream.write_all(b"OK 1234\r\n").expect("writes");
                let mut begin = [0; 7];
                stream.read_exact(&mut begin).expect("reads");
                let mut buffer = [0; 4096];
                assert!(stream.read(&mut buffer).expect("reads the call") > FIXED_HEADER_BYTES);
                for (kind, serial) in [(4, 0), (kind, 1)] {
                    let mut out = Writer(vec![b'l', kind, 0, 1]);
                    let mut body = Writer::default();
                    body.string("words");
                    out.u32(Writer::length(body.0.len()));
                    out.u32(77);
                    out.array(8, |out| {
                        out.header_field(FIELD_ERROR_NAME, "s", "org.x.Busy");
                        out.pad(8);
                        out.0.push(FIELD_REPLY_SERIAL);
                        out.signature("u");
                        out.u32(serial);
                        out.header_field(FIELD_SIGNATURE, "g", "s");
                    });
                    out.pad(8);
                    out.0.extend_from_slice(&body.0);
                    stream.write_all(&out.0).expect("writes");
                }
                seen
            });
            let mut connection = Connection::open(&directory, false, Duration::from_secs(5)).expect("opens");
            let answer = match connection.start_transient_unit("a.scope", "fail", &[]) {
                Ok(()) => "Ok(())".to_owned(),
                Err(error) => error.to_string(),
            };
            assert_eq!(answer, expected);
            let seen = server.join().expect("ends");
            assert!(seen.starts_with(b"\0AUTH EXTERNAL "));
            std::fs::remove_file(&directory).expect("removes");
        }
    }
}
