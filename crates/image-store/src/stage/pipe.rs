//! Between two threads of a layer: a few pieces of bounded size, whose memory goes round.

use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

/// Size of a piece.
pub(super) const PIECE_BYTES: usize = 128 << 10;
/// Pieces on their way: with their size, and one at each end, 768 KiB a pipe in the daemon's memory.
const PIECES_IN_FLIGHT: usize = 4;

enum Piece {
    Bytes(Vec<u8>),
    /// All of it was sent. Without this the pieces end because something failed.
    End,
}

/// Where pieces go in.
pub(crate) struct Inlet {
    full: SyncSender<Piece>,
    empty: Receiver<Vec<u8>>,
}

/// Whoever reads the other end has given up.
pub(crate) struct NobodyListens;

/// Where they come out, one after the other.
pub(crate) struct Outlet {
    full: Receiver<Piece>,
    used: Sender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    state: Arrival,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arrival {
    Going,
    Ended,
    Broken,
}

pub(crate) fn pipe() -> (Inlet, Outlet) {
    let (full, pieces) = sync_channel(PIECES_IN_FLIGHT);
    let (used, empty) = channel();
    (Inlet { full, empty }, Outlet { full: pieces, used, current: Vec::new(), at: 0, state: Arrival::Going })
}

impl Inlet {
    /// Sends everything `source` gives; `look` sees it before it goes. An error is that of the source.
    pub(crate) fn pump(
        self,
        source: &mut impl Read,
        mut look: impl FnMut(&[u8]),
    ) -> io::Result<Result<(), NobodyListens>> {
        loop {
            let mut piece = self.empty.try_recv().unwrap_or_default();
            piece.resize(PIECE_BYTES, 0);
            let mut have = 0;
            while have < piece.len() {
                match source.read(&mut piece[have..]) {
                    Ok(0) => break,
                    Ok(count) => have += count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            let is_last = have < piece.len();
            piece.truncate(have);
            look(&piece);
            let is_heard = (have == 0 || self.full.send(Piece::Bytes(piece)).is_ok())
                && (!is_last || self.full.send(Piece::End).is_ok());
            if !is_heard {
                return Ok(Err(NobodyListens));
            }
            if is_last {
                return Ok(Ok(()));
            }
        }
    }
}

impl Outlet {
    /// Whether the pieces ended because the other end failed.
    pub(super) fn is_broken(&self) -> bool {
        self.state == Arrival::Broken
    }

    /// The next piece, once the last one is used up; `None` after the last one, and when the other end failed.
    pub(super) fn next_piece(&mut self) -> Option<&[u8]> {
        if self.state != Arrival::Going {
            return None;
        }
        match self.full.recv() {
            Ok(Piece::Bytes(piece)) => {
                // Whoever fills pieces may have gone; then this one is simply freed.
                let _ = self.used.send(std::mem::replace(&mut self.current, piece));
                self.at = 0;
                Some(&self.current)
            }
            Ok(Piece::End) => {
                self.state = Arrival::Ended;
                None
            }
            Err(_) => {
                self.state = Arrival::Broken;
                None
            }
        }
    }

    /// What is left of the current piece.
    pub(super) fn rest(&self) -> &[u8] {
        &self.current[self.at..]
    }
}

impl Read for Outlet {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Outlet {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.rest().is_empty() {
            self.next_piece();
        }
        if self.is_broken() { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(self.rest()) }
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in() {
        let bytes: Vec<u8> = (0..u32::try_from(3 * PIECE_BYTES + 17).unwrap()).map(|at| at.to_le_bytes()[1]).collect();
        for length in [0, 1, PIECE_BYTES, PIECE_BYTES + 1, bytes.len()] {
            let (inlet, mut outlet) = pipe();
            let (mut seen, mut got) = (0, Vec::new());
            std::thread::scope(|scope| {
                let reading = scope.spawn(|| outlet.read_to_end(&mut got).map(drop));
                assert!(inlet.pump(&mut &bytes[..length], |piece| seen += piece.len()).unwrap().is_ok());
                reading.join().unwrap().unwrap();
            });
            assert_eq!((seen, &got[..]), (length, &bytes[..length]));
            assert!(!outlet.is_broken());
        }
    }

    #[test]
    fn an_end_that_is_gone_is_noticed_at_the_other() {
        let (inlet, mut outlet) = pipe();
        drop(inlet);
        assert_eq!(outlet.fill_buf().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert!(outlet.is_broken());
        let (inlet, outlet) = pipe();
        drop(outlet);
        assert!(inlet.pump(&mut io::repeat(1), |_| {}).unwrap().is_err());
    }
}
