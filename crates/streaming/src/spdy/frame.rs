//! SPDY/3.1 frames as bytes. Source: SPDY protocol draft 3.1, section 2.2 and 2.6.

use std::fmt;

/// Bytes of every frame's head.
pub(super) const HEAD_BYTES: usize = 8;
/// Longest control frame that is read. Headers of these sessions take some hundred bytes.
pub(super) const CONTROL_MAX_BYTES: usize = 32 * 1024;
/// Protocol version in control frames; 3.1 says 3 too.
const VERSION: u16 = 3;
/// The flag that ends a direction of a stream.
const FLAG_FIN: u8 = 0x01;
/// SETTINGS: the window that new streams begin with.
const SETTING_INITIAL_WINDOW: u32 = 7;

/// What begins a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    /// Bytes of a stream follow.
    Data { stream: u32, is_last: bool, length: usize },
    /// A control frame's body follows.
    Control { kind: u16, flags: u8, length: usize },
}

/// A control frame this side acts on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Control {
    SynStream {
        stream: u32,
        is_last: bool,
        block: Vec<u8>,
    },
    /// Headers of a stream's answer or later ones; read because the compression's state runs through them.
    Headers {
        block: Vec<u8>,
    },
    RstStream {
        stream: u32,
    },
    /// The window that the peer gives to new streams, if it names one.
    Settings {
        initial_window: Option<u32>,
    },
    Ping {
        id: u32,
    },
    GoAway,
    WindowUpdate {
        stream: u32,
        more: u32,
    },
    /// A kind that this version does not know; to be ignored.
    Unknown,
}

/// Why bytes are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FrameError {
    Version(u16),
    TooLong(usize),
    Short { kind: u16 },
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(f, "a frame of SPDY version {version}"),
            Self::TooLong(length) => write!(f, "a control frame of {length} bytes"),
            Self::Short { kind } => write!(f, "a control frame of kind {kind} that is too short"),
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Stream ids and deltas have 31 bits.
fn id(bytes: &[u8], at: usize) -> Option<u32> {
    word(bytes, at).map(|word| word & 0x7fff_ffff)
}

/// Reads a frame's head.
pub(super) fn parse_head(bytes: [u8; HEAD_BYTES]) -> Result<Head, FrameError> {
    let [b0, b1, b2, b3, flags, l0, l1, l2] = bytes;
    let length = (usize::from(l0) << 16) | (usize::from(l1) << 8) | usize::from(l2);
    if b0 & 0x80 == 0 {
        return Ok(Head::Data { stream: u32::from_be_bytes([b0, b1, b2, b3]), is_last: flags & FLAG_FIN != 0, length });
    }
    let version = u16::from_be_bytes([b0 & 0x7f, b1]);
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    if length > CONTROL_MAX_BYTES {
        return Err(FrameError::TooLong(length));
    }
    Ok(Head::Control { kind: u16::from_be_bytes([b2, b3]), flags, length })
}

/// Reads a control frame's body.
pub(super) fn parse_control(kind: u16, flags: u8, body: &[u8]) -> Result<Control, FrameError> {
    let short = FrameError::Short { kind };
    let is_last = flags & FLAG_FIN != 0;
    Ok(match kind {
        1 => {
            let stream = id(body, 0).ok_or(short)?;
            Control::SynStream { stream, is_last, block: body.get(10..).ok_or(short)?.to_vec() }
        }
        2 | 8 => Control::Headers { block: body.get(4..).ok_or(short)?.to_vec() },
        3 => Control::RstStream { stream: id(body, 0).ok_or(short)? },
        4 => {
            let count = word(body, 0).ok_or(short)?;
            let mut initial_window = None;
            for entry in body.get(4..).unwrap_or_default().chunks_exact(8).take(usize::try_from(count).unwrap_or(0)) {
                if word(entry, 0).is_some_and(|key| key & 0x00ff_ffff == SETTING_INITIAL_WINDOW) {
                    initial_window = id(entry, 4);
                }
            }
            Control::Settings { initial_window }
        }
        6 => Control::Ping { id: word(body, 0).ok_or(short)? },
        7 => Control::GoAway,
        9 => Control::WindowUpdate { stream: id(body, 0).ok_or(short)?, more: id(body, 4).ok_or(short)? },
        _ => Control::Unknown,
    })
}

fn control(kind: u16, flags: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEAD_BYTES + body.len());
    frame.extend_from_slice(&(0x8000 | VERSION).to_be_bytes());
    frame.extend_from_slice(&kind.to_be_bytes());
    push_length(&mut frame, flags, body.len());
    frame.extend_from_slice(body);
    frame
}

/// Flags and length share a word. No frame of ours is longer than 64 KiB.
fn push_length(frame: &mut Vec<u8>, flags: u8, length: usize) {
    let [_, l0, l1, l2] = u32::try_from(length).unwrap_or(0).to_be_bytes();
    frame.extend_from_slice(&[flags, l0, l1, l2]);
}

/// Bytes of a stream, the last ones with `is_last`.
pub(crate) fn data(stream: u32, is_last: bool, bytes: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEAD_BYTES + bytes.len());
    frame.extend_from_slice(&stream.to_be_bytes());
    push_length(&mut frame, if is_last { FLAG_FIN } else { 0 }, bytes.len());
    frame.extend_from_slice(bytes);
    frame
}

/// Accepts a stream; `block` is compressed.
pub(super) fn syn_reply(stream: u32, block: &[u8]) -> Vec<u8> {
    control(2, 0, &[&stream.to_be_bytes()[..], block].concat())
}

/// Why a stream is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reset {
    ProtocolError = 1,
    InvalidStream = 2,
    Refused = 3,
    Cancel = 5,
}

/// Resets a stream.
pub(super) fn rst_stream(stream: u32, reset: Reset) -> Vec<u8> {
    let mut body = stream.to_be_bytes().to_vec();
    body.extend_from_slice(&(reset as u32).to_be_bytes());
    control(3, 0, &body)
}

/// Answers a ping.
pub(super) fn ping(id: u32) -> Vec<u8> {
    control(6, 0, &id.to_be_bytes())
}

/// Names the window that new streams begin with.
pub(super) fn settings(initial_window: u32) -> Vec<u8> {
    let words = [1, SETTING_INITIAL_WINDOW, initial_window];
    control(4, 0, &words.map(u32::to_be_bytes).concat())
}

/// Says that this connection ends as intended; `last` is the last stream that was served.
pub(super) fn go_away(last: u32) -> Vec<u8> {
    let mut body = last.to_be_bytes().to_vec();
    body.extend_from_slice(&0_u32.to_be_bytes());
    control(7, 0, &body)
}

/// Lets the peer send so many bytes more; stream 0 is the session.
pub(super) fn window_update(stream: u32, more: u32) -> Vec<u8> {
    let mut body = stream.to_be_bytes().to_vec();
    body.extend_from_slice(&more.to_be_bytes());
    control(9, 0, &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Result<Head, Control>, FrameError> {
        let head = parse_head(bytes[..HEAD_BYTES].try_into().expect("a head"))?;
        match head {
            Head::Data { .. } => Ok(Ok(head)),
            Head::Control { kind, flags, length } => {
                assert_eq!(length, bytes.len() - HEAD_BYTES);
                parse_control(kind, flags, &bytes[HEAD_BYTES..]).map(Err)
            }
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for (bytes, expected) in [
            (data(5, true, b"abc"), Ok(Ok(Head::Data { stream: 5, is_last: true, length: 3 }))),
            (syn_reply(7, b"zz"), Ok(Err(Control::Headers { block: b"zz".to_vec() }))),
            (rst_stream(9, Reset::Refused), Ok(Err(Control::RstStream { stream: 9 }))),
            (ping(77), Ok(Err(Control::Ping { id: 77 }))),
            (go_away(1), Ok(Err(Control::GoAway))),
            (settings(77), Ok(Err(Control::Settings { initial_window: Some(77) }))),
            (window_update(3, 65536), Ok(Err(Control::WindowUpdate { stream: 3, more: 65536 }))),
            (control(99, 0, b""), Ok(Err(Control::Unknown))),
            (control(1, 1, b"\0\0\0\x01\0\0\0\0\0\0XY"), {
                Ok(Err(Control::SynStream { stream: 1, is_last: true, block: b"XY".to_vec() }))
            }),
            (control(1, 0, b"\0\0\0\x01"), Err(FrameError::Short { kind: 1 })),
            (control(4, 0, b"\0\0\0\x01\0\0\0\x07\0\x01\0\0"), {
                Ok(Err(Control::Settings { initial_window: Some(65536) }))
            }),
            (control(4, 0, b"\xff\xff\xff\xff"), Ok(Err(Control::Settings { initial_window: None }))),
            (vec![0x80, 2, 0, 1, 0, 0, 0, 0], Err(FrameError::Version(2))),
            (vec![0x80, 3, 0, 1, 0, 0xff, 0, 0], Err(FrameError::TooLong(0xff_0000))),
        ] {
            assert_eq!(read(&bytes), expected, "{bytes:?}");
        }
    }
}
