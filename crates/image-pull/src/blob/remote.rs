//! A blob at a registry: connections that break are resumed, places that fail are left for the next one.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use domain::digest::Digest;
use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::BlobProgress;
use crate::client::Timeouts;
use crate::error::{BlobError, RequestError, TransferError};
use crate::http::session::Session;
use crate::http::{next_frame, retry};
use crate::places::Place;

/// Bytes after which a connection counts as useful and the budget of attempts starts anew: a line that carries this
/// much between two breaks gets any blob through in the end.
const USEFUL_BYTES: u64 = 1 << 20;
/// Most connections of one blob at one place, however useful: a thousand breaks of one download are a fault to report.
const CONNECTIONS_MAX: u32 = 1000;

/// A blob at a registry or mirror, from some byte on.
pub(super) struct Remote {
    place: Place,
    session: Arc<Session>,
    digest: Digest,
    /// Bytes of the whole blob.
    size: u64,
    /// The next byte to yield, and the first one not to.
    at: u64,
    end: u64,
    /// Bytes to drop first, where the registry answered a range with the whole.
    skip: u64,
    body: Option<(String, Incoming)>,
    connections: u32,
    /// Connections since the last useful one.
    failures: u32,
    /// `at` when the current connection began.
    useful_from: u64,
    /// Since when there is nothing to yield.
    waiting_since: Instant,
    /// What earlier places said.
    failed: Vec<(String, BlobError)>,
    progress: BlobProgress,
}

impl Remote {
    pub(super) fn new(place: Place, digest: &Digest, size: u64, range: Range<u64>, progress: BlobProgress) -> Self {
        progress.set_place(place.name());
        Self {
            session: Arc::clone(place.session()),
            place,
            digest: digest.clone(),
            size,
            at: range.start,
            end: range.end,
            skip: 0,
            body: None,
            connections: 0,
            failures: 0,
            useful_from: range.start,
            waiting_since: Instant::now(),
            failed: Vec::new(),
            progress,
        }
    }

    pub(super) fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Awaits the first answer of the first place that has one.
    pub(super) async fn begin(&mut self) -> Result<(), BlobError> {
        loop {
            match self.connect().await {
                Ok(()) => return Ok(()),
                Err(error) => self.move_on(error).await?,
            }
        }
    }

    /// The next bytes, from wherever they can be had; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, BlobError> {
        self.waiting_since = Instant::now();
        loop {
            match self.next_here().await {
                Err(error) if self.at < self.end => self.move_on(error).await?,
                result => return result,
            }
        }
    }

    /// Goes on to the next place, with a budget of its own; the error if there is none.
    async fn move_on(&mut self, error: BlobError) -> Result<(), BlobError> {
        self.body = None;
        let mut error = error;
        loop {
            tracing::debug!(
                digest = %self.digest, place = self.place.name(), received = self.at,
                error = crate::error::chain(&error), "a blob cannot be had here"
            );
            let Some(next) = self.place.next() else {
                return Err(match self.failed.is_empty() {
                    true => error,
                    false => BlobError::WithMirrors { mirrors: std::mem::take(&mut self.failed), source: error.into() },
                });
            };
            self.failed.push((self.place.name(), error));
            match next.open().await {
                Ok(place) => {
                    self.session = Arc::clone(place.session());
                    self.place = place;
                    break;
                }
                Err((place, source)) => {
                    self.place = place;
                    error = BlobError::Place { digest: self.digest.clone(), source };
                }
            }
        }
        self.progress.set_place(self.place.name());
        (self.connections, self.failures) = (0, 0);
        self.waiting_since = Instant::now();
        Ok(())
    }

    async fn next_here(&mut self) -> Result<Option<Bytes>, BlobError> {
        loop {
            if self.body.is_none() {
                if self.at == self.end {
                    return Ok(None);
                }
                match self.connect().await {
                    Ok(()) => {}
                    // A registry that restarts refuses connections for a while: part of the same break.
                    Err(BlobError::Request { source: RequestError::Transfer { source, .. }, .. }) => {
                        self.after_break(Some(source)).await?;
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            }
            let patience = self.patience();
            let Some((authority, body)) = &mut self.body else { continue };
            match next_frame(authority, body, patience).await {
                Ok(Some(bytes)) => {
                    if let Some(bytes) = self.accept(bytes)? {
                        return Ok(Some(bytes));
                    }
                }
                Ok(None) if self.at == self.end => self.body = None,
                // The sender closed early without a word: treated as a break.
                Ok(None) => self.after_break(None).await?,
                Err(error) => self.after_break(Some(error)).await?,
            }
        }
    }

    /// Drops what is to be skipped and refuses what is too much.
    fn accept(&mut self, mut bytes: Bytes) -> Result<Option<Bytes>, BlobError> {
        let length = bytes.len() as u64;
        let skipped = self.skip.min(length);
        self.skip -= skipped;
        let useful = usize::try_from(skipped).map_or_else(|_| Bytes::new(), |skipped| bytes.split_off(skipped));
        let room = self.end - self.at;
        if useful.len() as u64 > room {
            self.body = None;
            return Err(BlobError::Excess { digest: self.digest.clone(), declared: self.size });
        }
        if useful.is_empty() {
            return Ok(None);
        }
        self.at += useful.len() as u64;
        Ok(Some(useful))
    }

    fn timeouts(&self) -> &Timeouts {
        &self.session.http().timeouts
    }

    /// How long a connection may be silent: half of what the blob may be, so that a line that lost its peer is tried
    /// anew before the blob is given up.
    fn patience(&self) -> Duration {
        let timeouts = self.timeouts();
        timeouts.progress.map_or(timeouts.stall, |limit| timeouts.stall.min(limit / 2)).min(self.time_left())
    }

    fn time_left(&self) -> Duration {
        let limit = self.timeouts().progress;
        limit.map_or(Duration::MAX, |limit| limit.saturating_sub(self.waiting_since.elapsed()))
    }

    fn no_progress(&self, limit: Duration) -> BlobError {
        BlobError::NoProgress { digest: self.digest.clone(), received: self.at, declared: self.size, limit }
    }

    /// Counts a broken connection and waits, or gives up.
    async fn after_break(&mut self, source: Option<TransferError>) -> Result<(), BlobError> {
        self.body = None;
        let policy = self.session.http().retry;
        if self.at - self.useful_from >= USEFUL_BYTES {
            self.failures = 0;
        }
        self.failures += 1;
        tracing::debug!(
            digest = %self.digest, received = self.at, failures = self.failures,
            error = source.as_ref().map(|error| crate::error::chain(error)), "connection broke while reading a blob"
        );
        if let Some(limit) = self.timeouts().progress.filter(|_| self.time_left().is_zero()) {
            return Err(self.no_progress(limit));
        }
        if self.failures >= policy.attempts || self.connections >= CONNECTIONS_MAX {
            return Err(BlobError::GaveUp {
                digest: self.digest.clone(),
                received: self.at,
                declared: self.size,
                attempts: self.connections,
                source: source.map(Box::new),
            });
        }
        tokio::time::sleep(retry::backoff(&policy, self.failures - 1).min(self.time_left())).await;
        Ok(())
    }

    /// Asks for the rest, and checks that the answer is the rest.
    async fn connect(&mut self) -> Result<(), BlobError> {
        self.connections += 1;
        self.useful_from = self.at;
        let wrong = |source| BlobError::Request { digest: self.digest.clone(), source };
        let until = Some(self.end).filter(|end| *end < self.size);
        let asking = self.session.blob(&self.digest, self.at, until);
        let (authority, response) = match self.timeouts().progress {
            None => asking.await,
            Some(limit) => match tokio::time::timeout(self.time_left(), asking).await {
                Ok(answered) => answered,
                Err(_) => return Err(self.no_progress(limit)),
            },
        }
        .map_err(wrong)?;
        let total = if response.status() == StatusCode::PARTIAL_CONTENT {
            let (first, total) = content_range(response.headers()).unwrap_or((u64::MAX, None));
            if first != self.at {
                let shown = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
                return Err(BlobError::Range {
                    digest: self.digest.clone(),
                    wanted: self.at,
                    got: shown.unwrap_or_default().chars().take(100).collect(),
                });
            }
            self.skip = 0;
            total
        } else if until.is_some() {
            // Whoever wants a part has no use for all that follows it.
            return Err(BlobError::NoRanges { digest: self.digest.clone() });
        } else {
            self.skip = self.at;
            let length = response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
            length.and_then(|length| length.parse().ok())
        };
        if let Some(announced) = total.filter(|total| *total != self.size) {
            return Err(BlobError::SizeMismatch { digest: self.digest.clone(), declared: self.size, announced });
        }
        self.body = Some((authority, response.into_body()));
        Ok(())
    }
}

/// First byte and, if stated, total of `bytes 5-9/10`. Source: RFC 9110 section 14.4.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let value = headers.get(CONTENT_RANGE)?.to_str().ok()?.trim();
    let (range, total) = value.strip_prefix("bytes")?.trim_start().split_once('/')?;
    let (first, _) = range.split_once('-')?;
    Some((first.trim().parse().ok()?, total.trim().parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        for (value, expected) in [
            ("bytes 5-9/10", Some((5, Some(10)))),
            ("bytes 5-9/*", Some((5, None))),
            ("bytes */10", None),
            ("items 5-9/10", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_RANGE, value.parse().unwrap());
            assert_eq!(content_range(&headers), expected, "{value}");
        }
    }
}
