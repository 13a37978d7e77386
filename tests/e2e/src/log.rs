//! Log files as the CRI defines them: time, stream, tag, text.

use std::path::Path;

/// One line of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// When, RFC 3339 with nanoseconds.
    pub time: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// `F` for a whole line, `P` for a part of one.
    pub tag: String,
    /// What was written, without its newline.
    pub text: String,
}

/// Reads a log; a line that is not of the format fails the test.
pub fn read(path: impl AsRef<Path>) -> Vec<Line> {
    let bytes = std::fs::read(&path).unwrap_or_default();
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    String::from_utf8_lossy(&bytes[..whole]).lines().map(parse).collect()
}

fn parse(line: &str) -> Line {
    let mut parts = line.splitn(4, ' ').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_else(|| panic!("not a line of a CRI log: {line:?}"));
    let line = Line { time: next(), stream: next(), tag: next(), text: next() };
    assert!(matches!(line.stream.as_str(), "stdout" | "stderr"), "{line:?}");
    assert!(matches!(line.tag.as_str(), "F" | "P"), "{line:?}");
    assert!(line.time.len() >= "2006-01-02T15:04:05.999999999Z".len() && line.time.as_bytes()[10] == b'T', "{line:?}");
    line
}

/// The whole lines of one stream, parts joined.
#[must_use]
pub fn texts(lines: &[Line], stream: &str) -> Vec<String> {
    let mut texts = Vec::new();
    let mut text = String::new();
    for line in lines.iter().filter(|line| line.stream == stream) {
        text.push_str(&line.text);
        if line.tag == "F" {
            texts.push(std::mem::take(&mut text));
        }
    }
    if !text.is_empty() {
        texts.push(text);
    }
    texts
}
