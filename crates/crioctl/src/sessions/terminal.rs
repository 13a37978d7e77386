//! The terminal on standard input: every key at once and unchanged, and put back afterwards.

use std::io;

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

use super::SessionError;

/// A terminal in raw mode. Dropping puts it back.
#[derive(Debug)]
pub(super) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Errors: standard input is no terminal.
    pub(super) fn enter() -> Result<Self, SessionError> {
        let stdin = io::stdin();
        if !isatty(&stdin) {
            return Err(SessionError::NoTerminal);
        }
        let before = tcgetattr(&stdin).map_err(|error| SessionError::Terminal(error.into()))?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).map_err(|error| SessionError::Terminal(error.into()))?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that has gone needs nothing.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// The terminal's size as the protocol writes it; `None` when it has none.
pub(super) fn size_message() -> Option<Vec<u8>> {
    let size = tcgetwinsize(io::stdin()).ok().filter(|size| size.ws_col > 0 && size.ws_row > 0)?;
    Some(format!(r#"{{"Width":{},"Height":{}}}"#, size.ws_col, size.ws_row).into_bytes())
}
