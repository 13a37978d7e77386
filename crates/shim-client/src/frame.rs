//! ttrpc's frames: ten bytes, then a message.
//!
//! ```text
//! 0..4  length of the message    4..8  stream    8  kind    9  flags
//! ```
//! Numbers have their high byte first. Source: ttrpc's PROTOCOL.md.

use std::io::{self, Read};

use prost::Message;
use thiserror::Error;

use crate::wire;

/// Longest message either side may send. Source: ttrpc.
pub const MESSAGE_MAX_BYTES: usize = 4 << 20;
const HEADER_BYTES: usize = 10;
/// A refusal is a few lines; more is kept out of errors and logs.
const REFUSAL_MAX_CHARS: usize = 4096;

/// A question.
pub const REQUEST: u8 = 1;
/// An answer.
pub const RESPONSE: u8 = 2;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Which question it belongs to.
    pub stream: u32,
    /// [`REQUEST`], [`RESPONSE`] or what else there may be.
    pub kind: u8,
    /// The message.
    pub message: Vec<u8>,
}

/// Why there is no frame.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The message is longer than ttrpc allows; nothing of it was read or sent.
    #[error("a message of {length} bytes is longer than {MESSAGE_MAX_BYTES}")]
    TooLong {
        /// Its length, as announced.
        length: usize,
    },
    /// The other side closed between two frames.
    #[error("the connection is closed")]
    Closed,
    /// The other side closed within a frame, or the system refused.
    #[error("read a frame")]
    Read(#[source] io::Error),
}

/// Reads one frame. No more memory is taken than bytes arrive.
pub fn read(source: &mut impl Read) -> Result<Frame, FrameError> {
    let mut header = [0; HEADER_BYTES];
    let mut got = 0;
    while got < HEADER_BYTES {
        match source.read(&mut header[got..]) {
            Ok(0) if got == 0 => return Err(FrameError::Closed),
            Ok(0) => return Err(FrameError::Read(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => got += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if got == 0 && error.kind() == io::ErrorKind::ConnectionReset => return Err(FrameError::Closed),
            Err(error) => return Err(FrameError::Read(error)),
        }
    }
    let number = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let length = usize::try_from(number(0)).unwrap_or(usize::MAX);
    if length > MESSAGE_MAX_BYTES {
        return Err(FrameError::TooLong { length });
    }
    let mut message = Vec::new();
    source.take(length as u64).read_to_end(&mut message).map_err(FrameError::Read)?;
    if message.len() < length {
        return Err(FrameError::Read(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(Frame { stream: number(4), kind: header[8], message })
}

/// The bytes of one frame.
pub fn encode(frame: &Frame) -> Result<Vec<u8>, FrameError> {
    let length = frame.message.len();
    let announced = u32::try_from(length).ok().filter(|_| length <= MESSAGE_MAX_BYTES);
    let Some(announced) = announced else { return Err(FrameError::TooLong { length }) };
    let mut bytes = Vec::with_capacity(HEADER_BYTES + length);
    bytes.extend_from_slice(&announced.to_be_bytes());
    bytes.extend_from_slice(&frame.stream.to_be_bytes());
    bytes.extend_from_slice(&[frame.kind, 0]);
    bytes.extend_from_slice(&frame.message);
    Ok(bytes)
}

/// What a response says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The payload.
    Payload(Vec<u8>),
    /// gRPC's code, and words.
    Refusal { code: i32, message: String },
}

/// Reads the message of a response frame.
pub(crate) fn answer(message: &[u8]) -> Result<Answer, prost::DecodeError> {
    let response = wire::Response::decode(message)?;
    Ok(match response.status.filter(|status| status.code != 0) {
        Some(status) => {
            Answer::Refusal { code: status.code, message: status.message.chars().take(REFUSAL_MAX_CHARS).collect() }
        }
        None => Answer::Payload(response.payload),
    })
}

/// Reads frames until there are none, and says each again.
pub(crate) fn fuzz(bytes: &[u8]) {
    let mut rest = bytes;
    let mut before = rest.len();
    while let Ok(frame) = read(&mut rest) {
        let said = encode(&frame).expect("what was read can be written");
        assert_eq!(read(&mut said.as_slice()).ok(), Some(frame.clone()), "a frame survives");
        assert!(rest.len() < before, "every frame takes bytes");
        before = rest.len();
        _ = answer(&frame.message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_as_they_were_written() {
        let frame = Frame { stream: 3, kind: RESPONSE, message: b"abc".to_vec() };
        let bytes = encode(&frame).expect("is short enough");
        assert_eq!(bytes, b"\0\0\0\x03\0\0\0\x03\x02\0abc");
        let mut two = [bytes.clone(), bytes].concat();
        two.extend_from_slice(b"\0\0");
        let mut rest = two.as_slice();
        assert_eq!(read(&mut rest).expect("reads"), frame);
        assert_eq!(read(&mut rest).expect("reads"), frame);
        assert!(matches!(read(&mut rest), Err(FrameError::Read(_))), "a torn header is no end");
        assert!(matches!(read(&mut rest), Err(FrameError::Closed)));
    }

    #[test]
    fn lengths_are_believed_up_to_the_bound() {
        let long = u32::try_from(MESSAGE_MAX_BYTES + 1).expect("fits").to_be_bytes();
        let bytes = [&long[..], b"\0\0\0\x01\x02\0"].concat();
        assert!(matches!(read(&mut bytes.as_slice()), Err(FrameError::TooLong { .. })));
        let torn = b"\0\x3f\xff\xff\0\0\0\x01\x02\0abc";
        assert!(matches!(read(&mut torn.as_slice()), Err(FrameError::Read(_))));
        let message = vec![0; MESSAGE_MAX_BYTES + 1];
        assert!(matches!(encode(&Frame { stream: 1, kind: REQUEST, message }), Err(FrameError::TooLong { .. })));
    }

    #[test]
    fn a_refusal_is_told_from_a_payload() {
        let status = |code| Some(wire::Status { code, message: "x".repeat(9000) });
        let said = |status| wire::Response { status, payload: b"p".to_vec() }.encode_to_vec();
        assert_eq!(answer(&said(None)), Ok(Answer::Payload(b"p".to_vec())));
        assert_eq!(answer(&said(status(0))), Ok(Answer::Payload(b"p".to_vec())));
        let Ok(Answer::Refusal { code: 5, message }) = answer(&said(status(5))) else { panic!("is a refusal") };
        assert_eq!(message.len(), REFUSAL_MAX_CHARS);
        assert!(answer(b"\xff").is_err());
    }
}
