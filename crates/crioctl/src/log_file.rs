//! A container's log file, read from any point to its end, and on while it grows or is rotated.
//!
//! Rotation: somebody renames the file and has the engine open a new one under the old name. What is left in the old
//! file is read to its end before the new one is begun.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::log_line::{Extent, LogLine, Stream, parse};

/// Bytes read at once.
const BLOCK_BYTES: usize = 64 << 10;
/// Engines split lines at 16 KiB; a line this long means that the file is something else.
const LINE_MAX_BYTES: usize = 16 << 20;

/// A log that cannot be read or passed on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    #[error("open log file {}", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("read log file {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("log file {} has a line longer than {LINE_MAX_BYTES} bytes", path.display())]
    LineTooLong { path: PathBuf },
    #[error("write to standard output")]
    Write(#[source] std::io::Error),
}

/// Where entries go: standard output to standard output, standard error to standard error.
pub(crate) struct LogSink<O, E> {
    stdout: O,
    stderr: E,
    timestamps: bool,
    /// Whether the stream is within a line, so that no time is put before its next part.
    is_within: [bool; 2],
    /// Lines that were not entries.
    pub(crate) skipped: u64,
}

impl<O: Write, E: Write> LogSink<O, E> {
    /// A sink that puts the time before each line if asked to.
    pub(crate) fn new(stdout: O, stderr: E, timestamps: bool) -> Self {
        Self { stdout, stderr, timestamps, is_within: [false; 2], skipped: 0 }
    }

    fn put(&mut self, line: &LogLine<'_>) -> std::io::Result<()> {
        let (writer, is_within): (&mut dyn Write, _) = match line.stream {
            Stream::Stdout => (&mut self.stdout, &mut self.is_within[0]),
            Stream::Stderr => (&mut self.stderr, &mut self.is_within[1]),
        };
        if self.timestamps && !*is_within {
            write!(writer, "{} ", line.time)?;
        }
        writer.write_all(line.content)?;
        *is_within = line.extent == Extent::Partial;
        if !*is_within {
            writer.write_all(b"\n")?;
        }
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stdout.flush()?;
        self.stderr.flush()
    }
}

/// A log file under its name, whichever file that is at the moment.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    file: File,
    inode: u64,
    /// Bytes of the file already read.
    offset: u64,
    /// The beginning of a line whose end is not written yet.
    unfinished: Vec<u8>,
}

impl LogFile {
    /// Opens the file at its beginning.
    pub(crate) fn open(path: &Path) -> Result<Self, LogError> {
        let open = |source| LogError::Open { path: path.to_owned(), source };
        let file = File::open(path).map_err(open)?;
        let inode = file.metadata().map_err(open)?.ino();
        Ok(Self { path: path.to_owned(), file, inode, offset: 0, unfinished: Vec::new() })
    }

    /// Goes to where the last `count` lines of the writer begin, counting what was split as one.
    pub(crate) fn skip_to_last(&mut self, count: usize) -> Result<(), LogError> {
        let mut begins = VecDeque::new();
        let mut is_within = [false; 2];
        let mut begin = 0;
        self.each_line(|line, length| {
            if let Some(entry) = parse(line) {
                let is_within = &mut is_within[usize::from(entry.stream == Stream::Stderr)];
                if !*is_within {
                    begins.push_back(begin);
                    if begins.len() > count {
                        begins.pop_front();
                    }
                }
                *is_within = entry.extent == Extent::Partial;
            }
            begin += length;
            Ok(())
        })?;
        // With nothing asked for, or nothing there, go on behind the last whole line.
        self.seek(begins.front().copied().unwrap_or(begin))
    }

    fn seek(&mut self, to: u64) -> Result<(), LogError> {
        self.unfinished.clear();
        self.offset = to;
        match self.file.seek(SeekFrom::Start(to)) {
            Ok(_) => Ok(()),
            Err(source) => Err(LogError::Read { path: self.path.clone(), source }),
        }
    }

    /// Passes on everything written since the last time, and says whether there was anything.
    pub(crate) fn drain<O: Write, E: Write>(&mut self, sink: &mut LogSink<O, E>) -> Result<bool, LogError> {
        let mut was_any = false;
        loop {
            self.each_line(|line, _| {
                was_any = true;
                match parse(line) {
                    Some(entry) => sink.put(&entry).map_err(LogError::Write),
                    None => {
                        sink.skipped += 1;
                        Ok(())
                    }
                }
            })?;
            if !self.follow_rotation()? {
                break;
            }
        }
        sink.flush().map_err(LogError::Write)?;
        Ok(was_any)
    }

    /// Begins the file that now has the name, if it is another one; begins again if it was cut.
    fn follow_rotation(&mut self) -> Result<bool, LogError> {
        let read = |source| LogError::Read { path: self.path.clone(), source };
        let current = match std::fs::metadata(&self.path) {
            Ok(current) => current,
            // Between the renaming and the new file; or removed with its container.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(read(source)),
        };
        if current.ino() != self.inode {
            // The writer may have added to the old file after it was last read and before it was left.
            if self.file.metadata().map_err(read)?.len() > self.offset {
                return Ok(true);
            }
            *self = Self::open(&self.path)?;
            return Ok(true);
        }
        if current.len() < self.offset {
            self.seek(0)?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Calls `act` with each whole line not read yet, without its end, and its length with it.
    fn each_line(&mut self, mut act: impl FnMut(&[u8], u64) -> Result<(), LogError>) -> Result<(), LogError> {
        let mut block = vec![0; BLOCK_BYTES];
        loop {
            let count = match self.file.read(&mut block) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(LogError::Read { path: self.path.clone(), source }),
            };
            self.offset += count as u64;
            let mut rest = &block[..count];
            while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
                let (line, after) = (&rest[..end], &rest[end + 1..]);
                if self.unfinished.is_empty() {
                    act(line, line.len() as u64 + 1)?;
                } else {
                    self.unfinished.extend_from_slice(line);
                    let line = std::mem::take(&mut self.unfinished);
                    act(&line, line.len() as u64 + 1)?;
                }
                rest = after;
            }
            if self.unfinished.len() + rest.len() > LINE_MAX_BYTES {
                return Err(LogError::LineTooLong { path: self.path.clone() });
            }
            self.unfinished.extend_from_slice(rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: &str = "2016-10-06T00:17:09.669794202Z";

    struct Fixture {
        directory: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            Self { directory: tempfile::tempdir().unwrap() }
        }

        fn path(&self) -> PathBuf {
            self.directory.path().join("0.log")
        }

        fn append(&self, text: &str) {
            let mut file = File::options().append(true).create(true).open(self.path()).unwrap();
            file.write_all(text.replace('T', TIME).as_bytes()).unwrap();
        }

        fn rotate(&self) {
            let command =
                std::process::Command::new("mv").arg(self.path()).arg(self.path().with_extension("old")).status();
            assert!(command.unwrap().success());
        }
    }

    fn drained(file: &mut LogFile, timestamps: bool) -> (String, String) {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        file.drain(&mut LogSink::new(&mut stdout, &mut stderr, timestamps)).unwrap();
        (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap().replace(TIME, "T"))
    }

    fn stdout(file: &mut LogFile) -> String {
        drained(file, false).0
    }

    #[test]
    fn parts_are_joined() {
        let fixture = Fixture::new();
        fixture
            .append("T stdout P one \nT stderr P err \nT stdout P two \nT stderr F or\nT stdout F three\nT stdout F\n");
        let mut file = LogFile::open(&fixture.path()).unwrap();
        assert_eq!(drained(&mut file, false), ("one two three\n\n".to_owned(), "err or\n".to_owned()));
        let mut file = LogFile::open(&fixture.path()).unwrap();
        let (out, err) = drained(&mut file, true);
        assert_eq!((out.replace(TIME, "T").as_str(), err.as_str()), ("T one two three\nT \n", "T err or\n"));
    }

    #[test]
    fn last_lines() {
        let fixture = Fixture::new();
        fixture.append("T stdout F 1\nnot an entry\nT stdout P 2\nT stdout F b\nT stdout F 3\nT stdout P 4");
        let cases = [(0, ""), (1, "3\n"), (2, "2b\n3\n"), (3, "1\n2b\n3\n"), (9, "1\n2b\n3\n")];
        for (count, expected) in cases {
            let mut file = LogFile::open(&fixture.path()).unwrap();
            file.skip_to_last(count).unwrap();
            assert_eq!(stdout(&mut file), expected, "{count}");
        }
        let mut file = LogFile::open(&fixture.path()).unwrap();
        file.skip_to_last(1).unwrap();
        fixture.append("\nT stdout F c\n");
        assert_eq!(stdout(&mut file), "3\n4c\n");
    }

    #[test]
    fn growth_rotation_and_cutting() {
        let fixture = Fixture::new();
        fixture.append("T stdout F 1\nT stdo");
        let mut file = LogFile::open(&fixture.path()).unwrap();
        assert_eq!(stdout(&mut file), "1\n");
        assert_eq!(stdout(&mut file), "");
        fixture.append("ut F 2\n");
        assert_eq!(stdout(&mut file), "2\n");
        // Written to the old file after the last look, and to the new one.
        fixture.append("T stdout F 3\n");
        fixture.rotate();
        assert_eq!(stdout(&mut file), "3\n");
        fixture.append("T stdout F 4\n");
        assert_eq!(stdout(&mut file), "4\n");
        File::options().write(true).open(fixture.path()).unwrap().set_len(0).unwrap();
        assert_eq!(stdout(&mut file), "");
        fixture.append("T stdout F 5\n");
        assert_eq!(stdout(&mut file), "5\n");
    }

    #[test]
    fn odd_lines_are_counted() {
        let fixture = Fixture::new();
        fixture.append("T stdout F 1\nodd\n\nT stdout F 2\n");
        let mut out = Vec::new();
        let mut sink = LogSink::new(&mut out, std::io::sink(), false);
        LogFile::open(&fixture.path()).unwrap().drain(&mut sink).unwrap();
        assert_eq!(sink.skipped, 2);
        assert_eq!(out, b"1\n2\n");
        assert!(LogFile::open(Path::new("/nowhere/0.log")).is_err());
    }
}
