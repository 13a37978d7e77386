//! The body of an answer that has several parts of a blob (`multipart/byteranges`, RFC 9110 section 14.6).

use std::ops::Range;

use bytes::{Buf as _, Bytes, BytesMut};

/// Longest head of one part, and longest delimiter: real ones have some hundred bytes.
const HEAD_MAX_BYTES: usize = 4 << 10;
/// Longest boundary. Source: RFC 2046 section 5.1.1.
const BOUNDARY_MAX_BYTES: usize = 70;

/// Why a body is none of several parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// What was found next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// Not enough to tell.
    Nothing,
    /// A part begins: these bytes of a blob of so many.
    Part(Range<u64>, Option<u64>),
    /// Some bytes of the part, never none.
    Bytes(Bytes),
    /// The last part has ended.
    End,
}

#[derive(Debug)]
enum State {
    /// Before a delimiter.
    Delimiter,
    Head,
    Body(u64),
    End,
}

/// A body being read.
#[derive(Debug)]
pub(crate) struct Parts {
    delimiter: Vec<u8>,
    state: State,
    buffer: BytesMut,
}

impl Parts {
    /// `None` if the media type is not that of several parts.
    pub(crate) fn new(content_type: &str) -> Option<Self> {
        let (kind, parameters) = content_type.split_once(';')?;
        if !kind.trim().eq_ignore_ascii_case("multipart/byteranges") {
            return None;
        }
        let boundary = parameters.split(';').find_map(|parameter| {
            let (key, value) = parameter.split_once('=')?;
            key.trim().eq_ignore_ascii_case("boundary").then(|| value.trim().trim_matches('"'))
        })?;
        if boundary.is_empty() || boundary.len() > BOUNDARY_MAX_BYTES {
            return None;
        }
        let delimiter = format!("--{boundary}").into_bytes();
        Some(Self { delimiter, state: State::Delimiter, buffer: BytesMut::new() })
    }

    /// Bytes of the body, as they come.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// What the bytes fed so far have next.
    pub(crate) fn next(&mut self) -> Result<Found, Malformed> {
        loop {
            match self.state {
                State::End => {
                    self.buffer.clear();
                    return Ok(Found::End);
                }
                State::Delimiter => {
                    // Empty lines before it belong to it.
                    while matches!(self.buffer.first(), Some(b'\r' | b'\n')) {
                        self.buffer.advance(1);
                    }
                    let length = self.delimiter.len();
                    if self.buffer.len() < length + 2 {
                        return Ok(Found::Nothing);
                    }
                    if !self.buffer.starts_with(&self.delimiter) {
                        return Err(Malformed);
                    }
                    self.state = match &self.buffer[length..length + 2] {
                        b"--" => State::End,
                        b"\r\n" => State::Head,
                        _ => return Err(Malformed),
                    };
                    self.buffer.advance(length + 2);
                }
                State::Head => {
                    let Some(end) = self.buffer.windows(4).take(HEAD_MAX_BYTES).position(|four| four == b"\r\n\r\n")
                    else {
                        let is_full = self.buffer.len() >= HEAD_MAX_BYTES + 3;
                        return if is_full { Err(Malformed) } else { Ok(Found::Nothing) };
                    };
                    let head = self.buffer.split_to(end + 4);
                    let (range, total) = content_range(&head).ok_or(Malformed)?;
                    self.state = State::Body(range.end - range.start);
                    return Ok(Found::Part(range, total));
                }
                State::Body(0) => self.state = State::Delimiter,
                State::Body(left) => {
                    let count = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    if count == 0 {
                        return Ok(Found::Nothing);
                    }
                    self.state = State::Body(left - count as u64);
                    return Ok(Found::Bytes(self.buffer.split_to(count).freeze()));
                }
            }
        }
    }
}

/// The range in the head of a part, never empty, and the length of the whole where it is stated.
fn content_range(head: &[u8]) -> Option<(Range<u64>, Option<u64>)> {
    let head = std::str::from_utf8(head).ok()?;
    let value = head.split("\r\n").find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.trim().eq_ignore_ascii_case("content-range").then_some(value.trim())
    })?;
    let (range, total) = value.strip_prefix("bytes")?.trim_start().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let end = last.checked_add(1).filter(|end| *end > first)?;
    Some((first..end, total.trim().parse().ok()))
}

/// Reads a body; an entry point for fuzzing. The first line is the media type. Law: how the bytes arrive changes nothing.
pub(crate) fn fuzz(bytes: &[u8]) {
    let mut halves = bytes.splitn(2, |byte| *byte == b'\n');
    let (kind, body) = (halves.next().unwrap_or_default(), halves.next().unwrap_or_default());
    let Ok(kind) = std::str::from_utf8(kind) else { return };
    let read = |step: usize| {
        let mut parts = Parts::new(kind)?;
        let (mut ranges, mut content) = (Vec::new(), Vec::new());
        for piece in body.chunks(step) {
            parts.feed(piece);
            loop {
                match parts.next() {
                    Ok(Found::Nothing) => break,
                    Ok(Found::Part(range, total)) => ranges.push((range, total)),
                    Ok(Found::Bytes(bytes)) => content.extend_from_slice(&bytes),
                    Ok(Found::End) => return Some((ranges, content, true)),
                    Err(Malformed) => return Some((ranges, content, false)),
                }
            }
        }
        Some((ranges, content, false))
    };
    assert_eq!(read(1), read(body.len().max(1)), "pieces make no difference");
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: &str = "multipart/byteranges; boundary=\"xyz\"";

    fn read(kind: &str, body: &str) -> Result<Vec<(Range<u64>, String)>, Malformed> {
        let mut parts = Parts::new(kind).ok_or(Malformed)?;
        parts.feed(body.as_bytes());
        let mut found: Vec<(Range<u64>, String)> = Vec::new();
        loop {
            match parts.next()? {
                Found::Nothing => return Err(Malformed),
                Found::Part(range, _) => found.push((range, String::new())),
                Found::Bytes(bytes) => {
                    let last = found.last_mut().unwrap();
                    last.1.push_str(std::str::from_utf8(&bytes).unwrap());
                }
                Found::End => return Ok(found),
            }
        }
    }

    #[test]
    fn parts_are_told_by_their_lengths() {
        let body = "--xyz\r\nContent-Type: x\r\nContent-Range: bytes 2-5/90\r\n\r\n--xy\r\n--xyz\r\n\
                    content-range: bytes 9-9/*\r\n\r\nz\r\n--xyz--\r\n";
        let expected = vec![(2..6, "--xy".to_owned()), (9..10, "z".to_owned())];
        assert_eq!(read(KIND, body), Ok(expected));
        for (kind, body) in [
            ("text/plain; boundary=xyz", "--xyz--\r\n"),
            ("multipart/byteranges", "--xyz--\r\n"),
            (KIND, "--abc--\r\n"),
            (KIND, "--xyz\r\n\r\n\r\n"),
            (KIND, "--xyz\r\nContent-Range: bytes 5-2/90\r\n\r\n"),
            (KIND, "--xyz\r\nContent-Range: bytes 0-18446744073709551615/*\r\n\r\n"),
            (KIND, "--xyz\r\nContent-Range: bytes 2-5/90\r\n\r\nab"),
            (KIND, "--xyz\r\nContent-Range: bytes 2-5/90\r\n\r\nabcdefgh\r\n--xyz--"),
        ] {
            assert_eq!(read(kind, body), Err(Malformed), "{kind} {body}");
        }
        let long = format!("--xyz\r\nX: {}\r\n\r\n", "x".repeat(HEAD_MAX_BYTES));
        assert_eq!(read(KIND, &long), Err(Malformed));
    }
}
