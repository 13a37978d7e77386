//! Text that stays on its line and within its quotes.

use std::fmt::{self, Write};

/// Longest message or field value written. An error that carries a whole response body must not fill the journal.
pub(crate) const MAX_VALUE_BYTES: usize = 16 * 1024;

/// How characters that cannot stand in a line are written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Escape {
    /// As in Go's `%q`, for the text format.
    Quoted,
    /// As in JSON.
    Json,
}

/// Writes text into a buffer with escapes, up to [`MAX_VALUE_BYTES`].
pub(crate) struct Escaper<'a> {
    out: &'a mut String,
    escape: Escape,
    left: usize,
}

impl<'a> Escaper<'a> {
    pub(crate) fn new(out: &'a mut String, escape: Escape) -> Self {
        Self { out, escape, left: MAX_VALUE_BYTES }
    }
}

/// Characters that are shown as escapes: controls, and those that reorder or hide text on a terminal.
fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

impl Write for Escaper<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.left == 0 {
            return Ok(());
        }
        let mut end = text.len().min(self.left);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let kept = text.get(..end).unwrap_or_default();
        self.left -= end;
        // Stretches without anything special are copied whole.
        let mut plain_from = 0;
        for (at, c) in kept.char_indices() {
            if c != '"' && c != '\\' && !is_unprintable(c) {
                continue;
            }
            self.out.push_str(kept.get(plain_from..at).unwrap_or_default());
            plain_from = at + c.len_utf8();
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                c if u32::from(c) < 0x80 && self.escape == Escape::Quoted => {
                    write!(self.out, "\\x{:02x}", u32::from(c))?
                }
                c => write!(self.out, "\\u{:04x}", u32::from(c))?,
            }
        }
        self.out.push_str(kept.get(plain_from..).unwrap_or_default());
        if end < text.len() {
            self.left = 0;
            self.out.push('…');
        }
        Ok(())
    }
}

/// Whether a value of the text format can stand without quotes. Source: logrus quotes everything else.
pub(crate) fn is_bare(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'/' | b'@' | b'^' | b'+'))
}

/// Replaces lists of numbers in brackets, such as a dump of bytes, by `[FILTERED]`.
///
/// Source: CRI-O does this to debug messages, because such dumps may hold secrets.
pub(crate) fn filter_dumps(message: &str, out: &mut String) {
    let mut rest = message;
    while let Some(open) = rest.find('[') {
        let (before, bracket) = rest.split_at(open);
        out.push_str(before);
        let inside = bracket.get(1..).unwrap_or_default();
        let end = inside.find(|c: char| !c.is_ascii_digit() && !c.is_ascii_whitespace()).unwrap_or(inside.len());
        if end > 0 && inside.get(end..).is_some_and(|tail| tail.starts_with(']')) {
            out.push_str("[FILTERED]");
            rest = inside.get(end + 1..).unwrap_or_default();
        } else {
            out.push('[');
            rest = inside;
        }
    }
    out.push_str(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn escaped(text: &str, escape: Escape) -> String {
        let mut out = String::new();
        let _ = Escaper::new(&mut out, escape).write_str(text);
        out
    }

    #[test]
    fn escapes() {
        for (text, quoted, json) in [
            ("plain ünïcode", "plain ünïcode", "plain ünïcode"),
            ("say \"x\"\\", "say \\\"x\\\"\\\\", "say \\\"x\\\"\\\\"),
            ("a\nb\r\tc", "a\\nb\\r\\tc", "a\\nb\\r\\tc"),
            ("\u{1b}[31m\0", "\\x1b[31m\\x00", "\\u001b[31m\\u0000"),
            ("\u{202e}x\u{2028}", "\\u202ex\\u2028", "\\u202ex\\u2028"),
        ] {
            assert_eq!(escaped(text, Escape::Quoted), quoted);
            assert_eq!(escaped(text, Escape::Json), json);
        }
    }

    #[test]
    fn long_values_are_cut_between_characters() {
        let text = "ü".repeat(MAX_VALUE_BYTES);
        let out = escaped(&text, Escape::Quoted);
        assert!(out.ends_with("ü…"));
        assert_eq!(out.len(), MAX_VALUE_BYTES + "…".len());
        let mut out = String::new();
        let mut escaper = Escaper::new(&mut out, Escape::Json);
        for _ in 0..3 {
            let _ = escaper.write_str(&"x".repeat(MAX_VALUE_BYTES / 2));
        }
        assert_eq!(out.len(), MAX_VALUE_BYTES, "several writes share the limit");
    }

    #[test]
    fn dumps_are_hidden() {
        for (message, expected) in [
            ("data [1 2 33]", "data [FILTERED]"),
            ("[1][ 2 ] x", "[FILTERED][FILTERED] x"),
            ("[a b] [] [1", "[a b] [] [1"),
            ("[[12]]", "[[FILTERED]]"),
            ("none", "none"),
        ] {
            let mut out = String::new();
            filter_dumps(message, &mut out);
            assert_eq!(out, expected);
        }
    }
}
