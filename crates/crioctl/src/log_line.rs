//! One line of a CRI log file: `TIME STREAM TAGS CONTENT`.
//!
//! Source: the CRI's log format, `2016-10-06T00:17:09.669794202Z stdout F text`; tags are separated by colons, the
//! first is `P` for a part of a line that goes on, `F` for its end.

/// Which of the two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Whether what was written ends here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// The writer's line goes on in the next entry of the stream.
    Partial,
    /// The writer ended the line here.
    Full,
}

/// An entry, borrowed from the bytes it was parsed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLine<'a> {
    /// As written, RFC 3339 with nanoseconds.
    pub time: &'a str,
    /// Which output it was written to.
    pub stream: Stream,
    /// Whether it ends a line.
    pub extent: Extent,
    /// What the container wrote, without a line end.
    pub content: &'a [u8],
}

/// Makes an entry of one line without its line end; nothing if it is not of the format.
///
/// Takes any bytes: a fuzz entry point.
pub fn parse(line: &[u8]) -> Option<LogLine<'_>> {
    let mut parts = line.splitn(4, |&byte| byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    if !is_time(time) {
        return None;
    }
    let stream = match parts.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let extent = match parts.next()?.split(|&byte| byte == b':').next()? {
        b"P" => Extent::Partial,
        b"F" => Extent::Full,
        _ => return None,
    };
    // A writer that drops the blank before an empty content is still understood.
    Some(LogLine { time, stream, extent, content: parts.next().unwrap_or_default() })
}

/// Enough of RFC 3339 to know a time from a program's own words.
fn is_time(text: &str) -> bool {
    let shape = b"0000-00-00T00:00:00";
    text.len() > shape.len()
        && text.is_ascii()
        && text
            .bytes()
            .zip(shape)
            .all(|(byte, expected)| if *expected == b'0' { byte.is_ascii_digit() } else { byte == *expected })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        const TIME: &str = "2016-10-06T00:17:09.669794202Z";
        let line = |stream, extent, content| Some(LogLine { time: TIME, stream, extent, content });
        let cases: [(String, Option<LogLine<'_>>); 12] = [
            (format!("{TIME} stdout F text"), line(Stream::Stdout, Extent::Full, b"text")),
            (format!("{TIME} stderr P a b  c "), line(Stream::Stderr, Extent::Partial, b"a b  c ")),
            (format!("{TIME} stdout F "), line(Stream::Stdout, Extent::Full, b"")),
            (format!("{TIME} stdout F"), line(Stream::Stdout, Extent::Full, b"")),
            (format!("{TIME} stdout P:more x"), line(Stream::Stdout, Extent::Partial, b"x")),
            (format!("{TIME} stdin F x"), None),
            (format!("{TIME} stdout X x"), None),
            (format!("{TIME} stdout"), None),
            (TIME.to_owned(), None),
            ("yesterday stdout F x".to_owned(), None),
            ("2016-10-06T00:17:0x.6Z stdout F x".to_owned(), None),
            (String::new(), None),
        ];
        for (text, expected) in &cases {
            assert_eq!(parse(text.as_bytes()), *expected, "{text:?}");
        }
        let offset = b"2016-10-06T00:17:09.1+02:00 stdout F \xff\xfe";
        assert_eq!(parse(offset).unwrap().content, b"\xff\xfe");
        assert_eq!(parse(b"\xff\xff stdout F x"), None);
    }
}
