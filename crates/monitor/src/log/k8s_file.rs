//! The kubelet's log format: `<time> <stream> <F|P> <text>`, a line each; `P` when the line goes on in the next.

use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, fstat, ftruncate, openat, renameat};

use crate::clock::STAMP_LENGTH;
use crate::log::Stream;
use crate::options::{OnLogFull, Options};

/// Lines written with one system call. A read is 8192 bytes, mostly a few long lines; thousands of short ones take more
/// calls, not more memory.
const LINES_AT_ONCE: usize = 32;

/// Prefix, text and perhaps a newline.
const SLICES_PER_LINE: usize = 3;

/// `<time> stdout F `
const PREFIX_LENGTH: usize = STAMP_LENGTH + 10;

/// One log file. Everything is appended with whole lines; a line that was cut short by a full disk is taken back.
#[derive(Debug)]
pub(super) struct K8sFile {
    path: PathBuf,
    fd: OwnedFd,
    size_bytes: u64,
    /// Over all files that were at this path.
    total_bytes: u64,
    size_max_bytes: Option<u64>,
    total_max_bytes: Option<u64>,
    on_full: OnLogFull,
    /// Per stream: the beginning of the line under way was lost, so its rest is no line.
    is_torn: [bool; 2],
}

fn open(path: &Path, extra: OFlags) -> io::Result<(OwnedFd, u64)> {
    // Not blocking matters only if the path is a fifo or a terminal: a reader that stops must not stop the monitor.
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NONBLOCK | extra;
    let fd = openat(CWD, path, flags, Mode::from_raw_mode(0o640))?;
    let size_bytes = u64::try_from(fstat(&fd)?.st_size).unwrap_or(0);
    Ok((fd, size_bytes))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

impl K8sFile {
    pub(super) fn open(path: PathBuf, options: &Options) -> io::Result<Self> {
        let (fd, size_bytes) = open(&path, OFlags::empty())?;
        Ok(Self {
            path,
            fd,
            size_bytes,
            total_bytes: 0,
            size_max_bytes: options.log_size_max_bytes,
            total_max_bytes: options.log_global_size_max_bytes,
            on_full: options.on_log_full,
            is_torn: [false; 2],
        })
    }

    /// Appends what one read gave. On an error what was not written is lost, in whole lines.
    pub(super) fn write(&mut self, stream: Stream, data: &[u8], stamp: &[u8; STAMP_LENGTH]) -> io::Result<()> {
        let at = match stream {
            Stream::Stdout => 0,
            Stream::Stderr => 1,
        };
        let data = match data.iter().position(|byte| *byte == b'\n') {
            _ if !self.is_torn[at] => data,
            Some(end) => &data[end + 1..],
            None => return Ok(()),
        };
        let written = self.write_lines(stream, data, stamp);
        self.is_torn[at] = written.is_err() && data.last().is_some_and(|byte| *byte != b'\n');
        written
    }

    fn write_lines(&mut self, stream: Stream, data: &[u8], stamp: &[u8; STAMP_LENGTH]) -> io::Result<()> {
        let whole = prefix(stream, b'F', stamp);
        let part = prefix(stream, b'P', stamp);
        let mut batch = Batch::new();
        for line in data.split_inclusive(|byte| *byte == b'\n') {
            let (prefix, end) = if line.ends_with(b"\n") { (&whole, &b""[..]) } else { (&part, &b"\n"[..]) };
            let length = (PREFIX_LENGTH + line.len() + end.len()) as u64;
            if self.total_max_bytes.is_some_and(|max| self.total_bytes >= max) {
                break;
            }
            let is_full = self.size_max_bytes.is_some_and(|max| self.size_bytes.saturating_add(length) > max);
            if is_full || batch.lines == LINES_AT_ONCE {
                batch.flush(&self.fd)?;
            }
            if is_full {
                self.make_room()?;
            }
            batch.push([prefix, line, end]);
            self.size_bytes += length;
            self.total_bytes += length;
        }
        batch.flush(&self.fd)
    }

    fn make_room(&mut self) -> io::Result<()> {
        let replaced = match self.on_full {
            OnLogFull::StartAnew => self.start_anew(),
            OnLogFull::Rotate(files) => self.rotate(files),
        };
        if replaced.is_err() {
            // No room for another file, perhaps: then this one is emptied, which always gives room.
            ftruncate(&self.fd, 0)?;
            self.size_bytes = 0;
        }
        Ok(())
    }

    /// A new file rather than an emptied one: who reads the old one can finish.
    fn start_anew(&mut self) -> io::Result<()> {
        let temporary = with_suffix(&self.path, ".tmp");
        let (fd, size_bytes) = open(&temporary, OFlags::TRUNC | OFlags::NOFOLLOW)?;
        renameat(CWD, &temporary, CWD, &self.path)?;
        (self.fd, self.size_bytes) = (fd, size_bytes);
        Ok(())
    }

    fn rotate(&mut self, files: u32) -> io::Result<()> {
        for number in (1..files).rev() {
            let older = with_suffix(&self.path, &format!(".{}", number + 1));
            match renameat(CWD, with_suffix(&self.path, &format!(".{number}")), CWD, older) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        renameat(CWD, &self.path, CWD, with_suffix(&self.path, ".1"))?;
        self.reopen()
    }

    /// Goes on in the file that is at the path now, or a new one.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        (self.fd, self.size_bytes) = open(&self.path, OFlags::empty())?;
        Ok(())
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        match rustix::fs::fsync(&self.fd) {
            // A fifo or a device cannot be synced and need not be.
            Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn prefix(stream: Stream, tag: u8, stamp: &[u8; STAMP_LENGTH]) -> [u8; PREFIX_LENGTH] {
    let mut text = [b' '; PREFIX_LENGTH];
    text[..STAMP_LENGTH].copy_from_slice(stamp);
    let name = match stream {
        Stream::Stdout => b"stdout",
        Stream::Stderr => b"stderr",
    };
    text[STAMP_LENGTH + 1..STAMP_LENGTH + 7].copy_from_slice(name);
    text[STAMP_LENGTH + 8] = tag;
    text
}

/// Lines that wait to be written together.
struct Batch<'a> {
    slices: [IoSlice<'a>; LINES_AT_ONCE * SLICES_PER_LINE],
    lines: usize,
}

impl<'a> Batch<'a> {
    fn new() -> Self {
        Self { slices: [IoSlice::new(&[]); LINES_AT_ONCE * SLICES_PER_LINE], lines: 0 }
    }

    fn push(&mut self, line: [&'a [u8]; SLICES_PER_LINE]) {
        let at = self.lines * SLICES_PER_LINE;
        for (slice, part) in self.slices[at..].iter_mut().zip(line) {
            *slice = IoSlice::new(part);
        }
        self.lines += 1;
    }

    /// Writes all lines. On an error those that were written whole stay, and the piece of the next is taken back.
    fn flush(&mut self, fd: &OwnedFd) -> io::Result<()> {
        let used = self.lines * SLICES_PER_LINE;
        let mut ends = [0_usize; LINES_AT_ONCE];
        let mut total = 0;
        for (line, end) in self.slices[..used].chunks(SLICES_PER_LINE).zip(&mut ends) {
            total += line.iter().map(|slice| slice.len()).sum::<usize>();
            *end = total;
        }
        let mut rest = &mut self.slices[..used];
        let mut written = 0;
        let mut result = Ok(());
        while written < total {
            match rustix::io::writev(fd, rest) {
                Ok(0) => result = Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    written += count;
                    IoSlice::advance_slices(&mut rest, count);
                    continue;
                }
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => result = Err(error.into()),
            }
            break;
        }
        let whole = ends[..self.lines].iter().copied().filter(|end| *end <= written).max().unwrap_or(0);
        if result.is_err() && whole < written {
            take_back(fd, written - whole);
        }
        self.lines = 0;
        result
    }
}

/// Cuts bytes off the end of the file, if it is one. The write has failed already, so a further failure says nothing new.
fn take_back(fd: &OwnedFd, count: usize) {
    if let Ok(status) = fstat(fd) {
        let size = u64::try_from(status.st_size).unwrap_or(0);
        let _ = ftruncate(fd, size.saturating_sub(count as u64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::read_to_string;

    const STAMP: &[u8; STAMP_LENGTH] = b"2026-11-20T09:04:02.304460994+00:00";

    fn file(path: &Path, size_max_bytes: Option<u64>, total_max_bytes: Option<u64>, on_full: OnLogFull) -> K8sFile {
        let (fd, size_bytes) = open(path, OFlags::empty()).unwrap();
        K8sFile {
            path: path.to_owned(),
            fd,
            size_bytes,
            total_bytes: 0,
            size_max_bytes,
            total_max_bytes,
            on_full,
            is_torn: [false; 2],
        }
    }

    #[test]
    fn the_rest_of_a_line_whose_beginning_was_lost_is_lost_too() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = file(&path, None, None, OnLogFull::StartAnew);
        // What cannot be written fails like a full disk.
        let writable = std::mem::replace(&mut log.fd, std::fs::File::open(&path).unwrap().into());
        assert!(log.write(Stream::Stdout, b"whole\nbegin", STAMP).is_err());
        log.fd = writable;
        log.write(Stream::Stdout, b"ning, middle", STAMP).unwrap();
        log.write(Stream::Stderr, b"another stream\n", STAMP).unwrap();
        log.write(Stream::Stdout, b" and end\nnext\n", STAMP).unwrap();
        assert_eq!(text(&path), "T stderr F another stream\nT stdout F next\n");
    }

    /// Time masked.
    fn text(path: &Path) -> String {
        read_to_string(path).unwrap().replace(std::str::from_utf8(STAMP).unwrap(), "T")
    }

    #[test]
    fn lines_and_parts_are_told_apart() {
        let many: String = (0..100).map(|number| format!("{number}\n")).collect();
        let many_logged: String = (0..100).map(|number| format!("T stdout F {number}\n")).collect();
        for (reads, expected) in [
            (&["a\n"][..], "T stdout F a\n"),
            (&["a\nb"], "T stdout F a\nT stdout P b\n"),
            (&["a", "b\n"], "T stdout P a\nT stdout F b\n"),
            (&["\n\n"], "T stdout F \nT stdout F \n"),
            (&[""], ""),
            (&["a\r\n"], "T stdout F a\r\n"),
            (&[&many], &many_logged),
        ] {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join("log");
            let mut log = file(&path, None, None, OnLogFull::StartAnew);
            for read in reads {
                log.write(Stream::Stdout, read.as_bytes(), STAMP).unwrap();
            }
            assert_eq!(text(&path), expected);
            assert_eq!(log.size_bytes, log.total_bytes);
            assert_eq!(log.size_bytes, std::fs::metadata(&path).unwrap().len());
        }
    }

    #[test]
    fn limits_are_kept() {
        // A line "aN" takes 48 bytes.
        let five = b"a1\na2\na3\na4\na5\n";
        for (size, total, on_full, expected, first_rotated) in [
            (Some(100), None, OnLogFull::StartAnew, "T stderr F a5\n", None),
            (Some(10), None, OnLogFull::StartAnew, "T stderr F a5\n", None),
            (Some(100), None, OnLogFull::Rotate(2), "T stderr F a5\n", Some("T stderr F a3\nT stderr F a4\n")),
            (None, Some(100), OnLogFull::StartAnew, "T stderr F a1\nT stderr F a2\nT stderr F a3\n", None),
        ] {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join("log");
            file(&path, size, total, on_full).write(Stream::Stderr, five, STAMP).unwrap();
            assert_eq!(text(&path), expected);
            let rotated = root.path().join("log.1");
            assert_eq!(rotated.exists().then(|| text(&rotated)).as_deref(), first_rotated);
            assert!(!root.path().join("log.tmp").exists());
            assert!(!root.path().join("log.3").exists());
        }
    }

    #[test]
    fn a_reopened_log_goes_on_where_the_path_is() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("log");
        let mut log = file(&path, None, None, OnLogFull::StartAnew);
        log.write(Stream::Stdout, b"old\n", STAMP).unwrap();
        renameat(CWD, &path, CWD, root.path().join("moved")).unwrap();
        log.write(Stream::Stdout, b"late\n", STAMP).unwrap();
        log.reopen().unwrap();
        log.write(Stream::Stdout, b"new\n", STAMP).unwrap();
        log.reopen().unwrap();
        log.write(Stream::Stdout, b"more\n", STAMP).unwrap();
        assert_eq!(text(&root.path().join("moved")), "T stdout F old\nT stdout F late\n");
        assert_eq!(text(&path), "T stdout F new\nT stdout F more\n");
    }

    #[test]
    fn a_fifo_that_nobody_reads_does_not_block() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("fifo");
        rustix::fs::mkfifoat(CWD, &path, Mode::from_raw_mode(0o600)).unwrap();
        assert!(open(&path, OFlags::empty()).is_err());
        let _reader = openat(CWD, &path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
        let mut log = file(&path, None, None, OnLogFull::StartAnew);
        let line = [b'x'; 8191].iter().chain(b"\n").copied().collect::<Vec<u8>>();
        let results: Vec<bool> = (0..32).map(|_| log.write(Stream::Stdout, &line, STAMP).is_ok()).collect();
        assert!(results[0] && !results[31]);
    }
}
