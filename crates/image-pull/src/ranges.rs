//! Many parts of one blob: several asked for at once where the registry knows how, one by one where not.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use domain::digest::Digest;
use futures_util::stream;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use hyper::body::Incoming;

use crate::blob::BlobStream;
use crate::client::{Client, Part, open_blob_of};
use crate::error::BlobError;
use crate::http::next_frame;
use crate::http::session::Session;
use crate::image::{LayerBlob, Origin, ResolvedImage};
use crate::multipart::{Found, Parts};

/// Most ranges in one request: their header stays below the 4 KiB that every server takes.
const RANGES_AT_ONCE: usize = 128;
/// Bytes between two ranges that are fetched and dropped where each range is a request of its own: what arrives in the
/// time of a round trip.
const GAP_MAX_BYTES: u64 = 64 << 10;
/// Answers of several parts that may break or be wrong before they are asked for no more.
const BAD_ANSWERS_MAX: u32 = 3;

impl Client {
    /// The bytes of several ranges of a layer's blob, one range behind the other: exactly those, or an error as the last
    /// item.
    ///
    /// Ranges are in order, do not overlap, and lie within the blob; else `BadRange`. Otherwise as
    /// [`Client::open_range`], which is also what is done for each range where several at once are not to be had.
    pub async fn open_ranges(
        &self,
        image: &ResolvedImage,
        layer: &LayerBlob,
        ranges: Vec<Range<u64>>,
    ) -> Result<BlobStream, BlobError> {
        if !image.layers.iter().any(|known| known.digest == layer.digest && known.size == layer.size) {
            return Err(BlobError::ForeignLayer { digest: layer.digest.clone() });
        }
        let mut until = 0;
        for range in &ranges {
            if range.is_empty() || range.start < until || range.end > layer.size {
                let (first, end, size) = (range.start, range.end, layer.size);
                return Err(BlobError::BadRange { digest: layer.digest.clone(), first, end, size });
            }
            until = range.end;
        }
        let length = ranges.iter().map(|range| range.end - range.start).sum();
        let mut reading = Reading {
            origin: image.origin.clone(),
            digest: layer.digest.clone(),
            size: layer.size,
            left: ranges.into(),
            current: Current::Nothing,
            bad_answers: 0,
        };
        // What the registry refuses is refused here.
        reading.ask().await?;
        let chunks = stream::unfold(Some(reading), |state| async {
            let mut reading = state?;
            match reading.next().await {
                Ok(Some(bytes)) => Some((Ok(bytes), Some(reading))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(BlobStream::from_chunks(&layer.digest, length, chunks))
    }
}

/// What is being read.
enum Current {
    Nothing,
    /// An answer with several parts.
    Several {
        authority: String,
        session: Arc<Session>,
        body: Incoming,
        parts: Parts,
        has_yielded: bool,
    },
    /// A run of ranges and the gaps between them; the first byte not yet read.
    Run {
        stream: BlobStream,
        at: u64,
    },
}

struct Reading {
    origin: Origin,
    digest: Digest,
    size: u64,
    /// What has not been yielded.
    left: VecDeque<Range<u64>>,
    current: Current,
    bad_answers: u32,
}

impl Reading {
    /// Asks for what is left, if there is nothing being read.
    async fn ask(&mut self) -> Result<(), BlobError> {
        if self.left.is_empty() || !matches!(self.current, Current::Nothing) {
            return Ok(());
        }
        if self.left.len() > 1
            && self.bad_answers < BAD_ANSWERS_MAX
            && let Origin::Registry(place) = &self.origin
        {
            let session = Arc::clone(place.session());
            match several(session, &self.digest, self.left.iter().take(RANGES_AT_ONCE)).await {
                Some(current) => {
                    self.current = current;
                    return Ok(());
                }
                // It will not learn it.
                None => self.bad_answers = BAD_ANSWERS_MAX,
            }
        }
        let run = run_of(&self.left);
        let at = run.start;
        let stream = open_blob_of(&self.origin, &self.digest, self.size, Part::Range(run)).await?;
        self.current = Current::Run { stream, at };
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<Bytes>, BlobError> {
        loop {
            self.ask().await?;
            match &mut self.current {
                Current::Nothing => return Ok(None),
                Current::Run { stream, at } => match stream.next_chunk().await {
                    None => self.current = Current::Nothing,
                    Some(chunk) => {
                        let chunk = chunk?;
                        if let Some(wanted) = take_wanted(&mut self.left, at, &chunk) {
                            return Ok(Some(wanted));
                        }
                    }
                },
                Current::Several { .. } => match self.next_of_several().await {
                    Some(bytes) => return Ok(Some(bytes)),
                    None => self.current = Current::Nothing,
                },
            }
        }
    }

    /// The next bytes of an answer with several parts; `None` when it has ended, or is of no use any more. What is still
    /// wanted is asked for again then.
    async fn next_of_several(&mut self) -> Option<Bytes> {
        let Current::Several { authority, session, body, parts, has_yielded } = &mut self.current else { return None };
        let why = loop {
            match parts.next() {
                Err(_) => break "the answer has another form",
                Ok(Found::End) if *has_yielded => return None,
                Ok(Found::End) => break "the answer has no parts",
                Ok(Found::Part(range, total)) => {
                    let is_wanted = self.left.front() == Some(&range);
                    if !is_wanted || total.is_some_and(|total| total != self.size) {
                        break "the answer has another part than was asked for";
                    }
                }
                Ok(Found::Bytes(bytes)) => {
                    let front = self.left.front_mut()?;
                    front.start += bytes.len() as u64;
                    if front.is_empty() {
                        self.left.pop_front();
                    }
                    *has_yielded = true;
                    return Some(bytes);
                }
                Ok(Found::Nothing) => match next_frame(authority, body, session.http().timeouts.stall).await {
                    Ok(Some(bytes)) => parts.feed(&bytes),
                    Ok(None) | Err(_) => break "the connection broke",
                },
            }
        };
        tracing::debug!(digest = %self.digest, why, "several parts of a blob did not all come");
        self.bad_answers += 1;
        None
    }
}

/// An answer with several parts, if the registry gives one.
async fn several<'r>(
    session: Arc<Session>,
    digest: &Digest,
    ranges: impl Iterator<Item = &'r Range<u64>>,
) -> Option<Current> {
    let list: Vec<String> = ranges.map(|range| format!("{}-{}", range.start, range.end - 1)).collect();
    let answered = session.blob_ranges(digest, &format!("bytes={}", list.join(","))).await;
    let (authority, response) = match answered {
        Ok(answered) => answered,
        Err(error) => {
            tracing::debug!(%digest, error = crate::error::chain(&error), "several parts of a blob were refused");
            return None;
        }
    };
    let kind = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let parts = kind.filter(|_| response.status() == StatusCode::PARTIAL_CONTENT).and_then(Parts::new);
    let Some(parts) = parts else {
        tracing::debug!(%digest, status = %response.status(), "the registry does not serve several parts at once");
        return None;
    };
    let body = response.into_body();
    Some(Current::Several { authority, session, body, parts, has_yielded: false })
}

/// The first ranges with the gaps between them, as far as those are small.
fn run_of(ranges: &VecDeque<Range<u64>>) -> Range<u64> {
    let mut run = ranges.front().cloned().unwrap_or_default();
    for range in ranges.iter().skip(1) {
        if range.start - run.end > GAP_MAX_BYTES {
            break;
        }
        run.end = range.end;
    }
    run
}

/// The part of `chunk`, which begins at `at`, that belongs to the ranges; those are shortened by it.
fn take_wanted(ranges: &mut VecDeque<Range<u64>>, at: &mut u64, chunk: &Bytes) -> Option<Bytes> {
    let (start, end) = (*at, *at + chunk.len() as u64);
    *at = end;
    let mut found: Vec<Bytes> = Vec::new();
    while let Some(front) = ranges.front_mut() {
        let wanted = front.start.max(start)..front.end.min(end);
        if wanted.is_empty() {
            break;
        }
        let index = |byte: u64| usize::try_from(byte - start).unwrap_or(usize::MAX);
        found.push(chunk.slice(index(wanted.start)..index(wanted.end)));
        front.start = wanted.end;
        if !front.is_empty() {
            break;
        }
        ranges.pop_front();
    }
    match found.len() {
        0 => None,
        1 => found.pop(),
        _ => Some(found.concat().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_gaps_are_read_and_dropped() {
        let mut left: VecDeque<_> = [10..20, 30..31, 35..40, 40 + GAP_MAX_BYTES + 1..40 + GAP_MAX_BYTES + 2].into();
        assert_eq!(run_of(&left), 10..40);
        let blob: Vec<u8> = (0..40).collect();
        let (mut at, mut wanted) = (10, Vec::new());
        for chunk in [10..15, 15..33, 33..36, 36..40] {
            let chunk = Bytes::copy_from_slice(&blob[chunk]);
            wanted.extend(take_wanted(&mut left, &mut at, &chunk).unwrap_or_default());
        }
        let expected: Vec<u8> = (10..20).chain(30..31).chain(35..40).collect();
        assert_eq!((wanted, left.len(), at), (expected, 1, 40));
    }
}
