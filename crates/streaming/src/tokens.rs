//! Sessions that were prepared and wait for their client.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use thiserror::Error;

/// How long a client has. Source: CRI-O.
const LIFE: Duration = Duration::from_secs(60);
/// Most sessions that may wait. Source: CRI-O.
const WAITING_MAX: usize = 1000;
/// Six random bytes are eight characters. Source: CRI-O.
const TOKEN_BYTES: usize = 6;

/// Why a session was not prepared.
#[derive(Debug, Error)]
pub enum PrepareError {
    /// Too many wait already.
    #[error("maximum number of in-flight requests exceeded: {WAITING_MAX} sessions wait for their clients")]
    TooManyWaiting,
    /// No token can be made.
    #[error("read random bytes for a token")]
    Random(#[source] io::Error),
}

/// Tokens, each good for one use within [`LIFE`].
#[derive(Debug)]
pub(crate) struct Tokens<T> {
    waiting: Mutex<HashMap<String, (Instant, T)>>,
}

impl<T> Tokens<T> {
    pub(crate) fn new() -> Self {
        Self { waiting: Mutex::default() }
    }

    /// Keeps `session` for whoever brings the token.
    pub(crate) fn insert(&self, session: T, now: Instant) -> Result<String, PrepareError> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, (made, _)| now.duration_since(*made) < LIFE);
        if waiting.len() >= WAITING_MAX {
            return Err(PrepareError::TooManyWaiting);
        }
        let mut source = std::fs::File::open("/dev/urandom").map_err(PrepareError::Random)?;
        loop {
            let mut bytes = [0; TOKEN_BYTES];
            source.read_exact(&mut bytes).map_err(PrepareError::Random)?;
            let token = URL_SAFE_NO_PAD.encode(bytes);
            if !waiting.contains_key(&token) {
                waiting.insert(token.clone(), (now, session));
                return Ok(token);
            }
        }
    }

    /// Takes the session if `is_wanted`; its token is used up then.
    pub(crate) fn take(&self, token: &str, now: Instant, is_wanted: impl Fn(&T) -> bool) -> Option<T> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (made, session) = waiting.get(token)?;
        if now.duration_since(*made) >= LIFE || !is_wanted(session) {
            return None;
        }
        waiting.remove(token).map(|(_, session)| session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_works_once_for_a_minute_and_there_are_not_too_many() {
        let (tokens, now) = (Tokens::new(), Instant::now());
        let token = tokens.insert(1, now).expect("fits");
        assert_eq!(token.len(), 8);
        assert_eq!(tokens.take(&token, now, |_| false), None, "of another kind");
        assert_eq!(tokens.take(&token, now, |_| true), Some(1));
        assert_eq!(tokens.take(&token, now, |_| true), None, "used");
        let token = tokens.insert(2, now).expect("fits");
        assert_eq!(tokens.take(&token, now + LIFE, |_| true), None, "too late");
        for number in 1..WAITING_MAX {
            tokens.insert(number, now).expect("fits");
        }
        assert!(matches!(tokens.insert(0, now), Err(PrepareError::TooManyWaiting)));
        tokens.insert(0, now + LIFE).expect("the old ones are forgotten");
    }
}
