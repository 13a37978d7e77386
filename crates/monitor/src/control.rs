//! The two fifos of the bundle: `ctl` (resize, reopen the logs) and `winsz` (the older way to resize).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, chmod, fstat, mkfifoat, openat};
use thiserror::Error;

/// Longest line that is kept. A command is a digit and two numbers; what is longer is no command.
const LINE_MAX: usize = 64;

/// Largest height and width taken for a terminal's, as conmon has it.
const SIDE_MAX: u16 = 1000;

/// A request read from a fifo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    /// A new size of the terminal, in characters.
    Resize { rows: u16, columns: u16 },
    /// The log files were renamed.
    ReopenLogs,
}

/// Which fifo a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fifo {
    Ctl,
    Winsz,
}

fn number(word: Option<&[u8]>) -> Option<u16> {
    let text = std::str::from_utf8(word?).ok()?;
    text.parse().ok()
}

fn resize<'a>(mut words: impl Iterator<Item = &'a [u8]>) -> Option<Control> {
    let (rows, columns) = (number(words.next())?, number(words.next())?);
    (rows <= SIDE_MAX && columns <= SIDE_MAX && words.next().is_none()).then_some(Control::Resize { rows, columns })
}

fn parse_line(fifo: Fifo, line: &[u8]) -> Option<Control> {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    match fifo {
        Fifo::Winsz => resize(words),
        Fifo::Ctl => match number(words.next())? {
            1 => resize(words),
            2 => Some(Control::ReopenLogs),
            _ => None,
        },
    }
}

/// Puts lines together from reads that end anywhere.
#[derive(Debug)]
struct Lines {
    buffer: [u8; LINE_MAX],
    length: usize,
    is_overlong: bool,
}

impl Lines {
    const fn new() -> Self {
        Self { buffer: [0; LINE_MAX], length: 0, is_overlong: false }
    }

    fn feed(&mut self, fifo: Fifo, bytes: &[u8], mut act: impl FnMut(Option<Control>)) {
        for byte in bytes {
            if *byte == b'\n' {
                let line = &self.buffer[..self.length];
                act(if self.is_overlong { None } else { parse_line(fifo, line) });
                (self.length, self.is_overlong) = (0, false);
            } else if self.length < LINE_MAX {
                self.buffer[self.length] = *byte;
                self.length += 1;
            } else {
                self.is_overlong = true;
            }
        }
    }
}

/// Feeds bytes as if they were read from either fifo, in pieces of every size up to 7; for fuzzing. The result must not
/// depend on the pieces, which is what is checked.
pub fn fuzz_control_lines(bytes: &[u8]) {
    for fifo in [Fifo::Ctl, Fifo::Winsz] {
        let mut whole = Vec::new();
        Lines::new().feed(fifo, bytes, |control| whole.push(control));
        for size in 1..8 {
            let (mut lines, mut pieces) = (Lines::new(), Vec::new());
            for piece in bytes.chunks(size) {
                lines.feed(fifo, piece, |control| pieces.push(control));
            }
            assert_eq!(whole, pieces);
        }
    }
}

/// A fifo that cannot be made.
#[derive(Debug, Error)]
#[error("make control fifo {}", path.display())]
pub(crate) struct OpenFifoError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// An open fifo of the bundle.
#[derive(Debug)]
pub(crate) struct ControlFifo {
    reader: OwnedFd,
    /// Never written: as long as a writer exists, the last real one leaving is not an end of file.
    _writer: OwnedFd,
    kind: Fifo,
    lines: Lines,
}

impl ControlFifo {
    pub(crate) fn open(bundle: &Path, kind: Fifo) -> Result<Self, OpenFifoError> {
        let path = bundle.join(match kind {
            Fifo::Ctl => "ctl",
            Fifo::Winsz => "winsz",
        });
        match Self::open_at(&path) {
            Ok((reader, writer)) => Ok(Self { reader, _writer: writer, kind, lines: Lines::new() }),
            Err(source) => Err(OpenFifoError { path, source }),
        }
    }

    fn open_at(path: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
        match mkfifoat(CWD, path, Mode::from_raw_mode(0o660)) {
            // Left by an earlier monitor of the same bundle.
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
        let reader = openat(CWD, path, OFlags::RDONLY | flags, Mode::empty())?;
        if FileType::from_raw_mode(fstat(&reader)?.st_mode) != FileType::Fifo {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no fifo is in the way"));
        }
        // Whatever the mask: the group may write.
        chmod(path, Mode::from_raw_mode(0o660))?;
        let writer = openat(CWD, path, OFlags::WRONLY | flags, Mode::empty())?;
        Ok((reader, writer))
    }

    /// Reads what is there once and acts on each line; `None` stands for a line that is no command.
    pub(crate) fn read(&mut self, act: impl FnMut(Option<Control>)) -> io::Result<()> {
        let mut buffer = [0; 256];
        match rustix::io::read(&self.reader, &mut buffer) {
            Ok(length) => self.lines.feed(self.kind, &buffer[..length], act),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

impl AsFd for ControlFifo {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_commands_or_nothing() {
        let resize = |rows, columns| Some(Control::Resize { rows, columns });
        for (fifo, text, expected) in [
            (Fifo::Ctl, "1 24 80\n", vec![resize(24, 80)]),
            (Fifo::Ctl, "2 0 0\n", vec![Some(Control::ReopenLogs)]),
            (Fifo::Ctl, "1 24 80\n2 0 0\n", vec![resize(24, 80), Some(Control::ReopenLogs)]),
            (Fifo::Ctl, "1 1001 80\n", vec![None]),
            (Fifo::Ctl, "1 -1 80\n", vec![None]),
            (Fifo::Ctl, "1 24\n", vec![None]),
            (Fifo::Ctl, "3 1 1\n", vec![None]),
            (Fifo::Ctl, "\n", vec![None]),
            (Fifo::Ctl, "2 0 0", vec![]),
            (Fifo::Winsz, "24 80\n", vec![resize(24, 80)]),
            (Fifo::Winsz, "0 0\n", vec![resize(0, 0)]),
            (Fifo::Winsz, "24 80 1\n", vec![None]),
        ] {
            let mut found = Vec::new();
            Lines::new().feed(fifo, text.as_bytes(), |control| found.push(control));
            assert_eq!(found, expected, "{text:?}");
            fuzz_control_lines(text.as_bytes());
        }
    }

    #[test]
    fn an_overlong_line_is_skipped_whole() {
        let mut found = Vec::new();
        let text = [&[b'1'; 500][..], b"\n2 0 0\n"].concat();
        Lines::new().feed(Fifo::Ctl, &text, |control| found.push(control));
        assert_eq!(found, [None, Some(Control::ReopenLogs)]);
        fuzz_control_lines(&text);
    }

    #[test]
    fn a_fifo_is_reused_and_a_plain_file_refused() {
        let root = tempfile::tempdir().unwrap();
        drop(ControlFifo::open(root.path(), Fifo::Ctl).unwrap());
        let mut fifo = ControlFifo::open(root.path(), Fifo::Ctl).unwrap();
        let writer = openat(CWD, root.path().join("ctl"), OFlags::WRONLY, Mode::empty()).unwrap();
        rustix::io::write(&writer, b"2 0 0\n").unwrap();
        let mut found = Vec::new();
        fifo.read(|control| found.push(control)).unwrap();
        fifo.read(|control| found.push(control)).unwrap();
        assert_eq!(found, [Some(Control::ReopenLogs)]);
        std::fs::File::create(root.path().join("winsz")).unwrap();
        assert!(ControlFifo::open(root.path(), Fifo::Winsz).is_err());
    }
}
