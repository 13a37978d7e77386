//! A layer's bytes as they come: bounded by the declared size, resumed after broken connections.

use std::fmt;
use std::io::{self, BufRead, Read};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use domain::digest::Digest;
use futures_util::stream::{self, Stream, StreamExt as _};
use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap};
use hyper::body::Incoming;
use tokio::runtime::Handle;

use crate::error::{BlobError, LocalError, RequestError, TransferError};
use crate::http::session::Session;
use crate::http::{next_frame, retry};
use crate::local::{LocalImage, LocalSlice};

/// Bytes after which a connection counts as useful and the budget of attempts starts anew: a line that carries this
/// much between two breaks gets any blob through in the end.
const USEFUL_BYTES: u64 = 1 << 20;
/// Most connections of one blob, however useful: a thousand breaks of one download are a fault to report.
const CONNECTIONS_MAX: u32 = 1000;
/// Bytes read from a file at a time: large enough for the disk, small enough for six layers at once.
const FILE_CHUNK_BYTES: usize = 256 << 10;

/// Counts the bytes a stream has yielded; may be read from anywhere, also after the stream is gone.
#[derive(Debug, Clone, Default)]
pub struct BlobProgress(Arc<AtomicU64>);

impl BlobProgress {
    /// Bytes yielded so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The bytes of one layer as served: exactly the declared number of them, or an error as the last item.
///
/// Nothing is read ahead beyond one buffer of the connection, so a slow consumer slows the sender. Dropping the stream
/// ends the transfer. The digest is **not** checked here: the consumer hashes anyway and compares with
/// [`BlobStream::expected_digest`].
pub struct BlobStream {
    expected_digest: Digest,
    size: u64,
    progress: BlobProgress,
    chunks: Pin<Box<dyn Stream<Item = Result<Bytes, BlobError>> + Send>>,
}

impl fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobStream")
            .field("expected_digest", &self.expected_digest)
            .field("size", &self.size)
            .field("progress", &self.progress)
            .finish_non_exhaustive()
    }
}

impl BlobStream {
    /// What all yielded bytes must hash to.
    #[must_use]
    pub fn expected_digest(&self) -> &Digest {
        &self.expected_digest
    }

    /// Bytes that will be yielded if all goes well.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// A counter to watch from elsewhere.
    #[must_use]
    pub fn progress(&self) -> BlobProgress {
        self.progress.clone()
    }

    /// The next bytes; `None` after the last one. Safe to cancel: no bytes are lost.
    pub async fn next_chunk(&mut self) -> Option<Result<Bytes, BlobError>> {
        self.next().await
    }

    /// The same bytes for blocking code, which must run outside the runtime's worker threads.
    ///
    /// An error of the stream becomes an [`io::Error`] whose inner error is the [`BlobError`].
    #[must_use]
    pub fn into_blocking_reader(self, runtime: Handle) -> BlockingBlobReader {
        BlockingBlobReader { stream: self, runtime, chunk: Bytes::new() }
    }

    pub(crate) async fn open_remote(session: Arc<Session>, digest: &Digest, size: u64) -> Result<Self, BlobError> {
        let mut remote = Remote {
            session,
            digest: digest.clone(),
            size,
            yielded: 0,
            skip: 0,
            body: None,
            connections: 0,
            failures: 0,
            useful_from: 0,
        };
        // The first answer is awaited here, so that a refused blob is refused when it is opened.
        remote.connect().await?;
        Ok(Self::new(
            digest,
            size,
            stream::unfold(Some(remote), |state| async {
                let mut remote = state?;
                match remote.next().await {
                    Ok(Some(bytes)) => Some((Ok(bytes), Some(remote))),
                    Ok(None) => None,
                    Err(error) => Some((Err(error), None)),
                }
            }),
        ))
    }

    pub(crate) fn open_local(
        image: &LocalImage,
        slice: LocalSlice,
        digest: &Digest,
        size: u64,
    ) -> Result<Self, BlobError> {
        if slice.length != size {
            return Err(BlobError::SizeMismatch { digest: digest.clone(), declared: size, announced: slice.length });
        }
        let state = Local { slice, at: 0, path: image.path().to_owned(), digest: digest.clone() };
        Ok(Self::new(
            digest,
            size,
            stream::unfold(Some(state), |state| async {
                let mut local = state?;
                match local.next().await {
                    Ok(Some(bytes)) => Some((Ok(bytes), Some(local))),
                    Ok(None) => None,
                    Err(error) => Some((Err(error), None)),
                }
            }),
        ))
    }

    fn new(digest: &Digest, size: u64, chunks: impl Stream<Item = Result<Bytes, BlobError>> + Send + 'static) -> Self {
        Self { expected_digest: digest.clone(), size, progress: BlobProgress::default(), chunks: Box::pin(chunks) }
    }
}

impl Stream for BlobStream {
    type Item = Result<Bytes, BlobError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.chunks.as_mut().poll_next(cx);
        if let Poll::Ready(Some(Ok(bytes))) = &polled {
            self.progress.0.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        polled
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, None)
    }
}

/// A [`BlobStream`] as a blocking reader. Holds one chunk; nothing is copied until it is read.
#[derive(Debug)]
pub struct BlockingBlobReader {
    stream: BlobStream,
    runtime: Handle,
    chunk: Bytes,
}

impl BlockingBlobReader {
    /// What all bytes must hash to.
    #[must_use]
    pub fn expected_digest(&self) -> &Digest {
        self.stream.expected_digest()
    }
}

impl BufRead for BlockingBlobReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.chunk.is_empty() {
            match self.runtime.block_on(self.stream.next_chunk()) {
                Some(Ok(chunk)) => self.chunk = chunk,
                Some(Err(error)) => return Err(io::Error::other(error)),
                None => break,
            }
        }
        Ok(&self.chunk)
    }

    fn consume(&mut self, amount: usize) {
        self.chunk.advance(amount);
    }
}

impl Read for BlockingBlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(buffer.len());
        buffer[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

/// A blob at a registry.
struct Remote {
    session: Arc<Session>,
    digest: Digest,
    size: u64,
    yielded: u64,
    /// Bytes to drop first, where the registry answered a range with the whole.
    skip: u64,
    body: Option<(String, Incoming)>,
    connections: u32,
    /// Connections since the last useful one.
    failures: u32,
    /// `yielded` when the current connection began.
    useful_from: u64,
}

impl Remote {
    async fn next(&mut self) -> Result<Option<Bytes>, BlobError> {
        loop {
            if self.body.is_none() {
                if self.yielded == self.size {
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
            let Some((authority, body)) = &mut self.body else { continue };
            let stall = self.session.http().timeouts.stall;
            match next_frame(authority, body, stall).await {
                Ok(Some(bytes)) => {
                    if let Some(bytes) = self.accept(bytes)? {
                        return Ok(Some(bytes));
                    }
                }
                Ok(None) if self.yielded == self.size => self.body = None,
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
        let room = self.size - self.yielded;
        if useful.len() as u64 > room {
            self.body = None;
            return Err(BlobError::Excess { digest: self.digest.clone(), declared: self.size });
        }
        if useful.is_empty() {
            return Ok(None);
        }
        self.yielded += useful.len() as u64;
        Ok(Some(useful))
    }

    /// Counts a broken connection and waits, or gives up.
    async fn after_break(&mut self, source: Option<TransferError>) -> Result<(), BlobError> {
        self.body = None;
        let policy = self.session.http().retry;
        if self.yielded - self.useful_from >= USEFUL_BYTES {
            self.failures = 0;
        }
        self.failures += 1;
        tracing::debug!(
            digest = %self.digest, received = self.yielded, failures = self.failures,
            error = source.as_ref().map(|error| crate::error::chain(error)), "connection broke while reading a blob"
        );
        if self.failures >= policy.attempts || self.connections >= CONNECTIONS_MAX {
            return Err(BlobError::GaveUp {
                digest: self.digest.clone(),
                received: self.yielded,
                declared: self.size,
                attempts: self.connections,
                source: source.map(Box::new),
            });
        }
        tokio::time::sleep(retry::backoff(&policy, self.failures - 1)).await;
        Ok(())
    }

    /// Asks for the rest, and checks that the answer is the rest.
    async fn connect(&mut self) -> Result<(), BlobError> {
        self.connections += 1;
        self.useful_from = self.yielded;
        let wrong = |source| BlobError::Request { digest: self.digest.clone(), source };
        let (authority, response) = self.session.blob(&self.digest, self.yielded).await.map_err(wrong)?;
        let total = if response.status() == StatusCode::PARTIAL_CONTENT {
            let (first, total) = content_range(response.headers()).unwrap_or((u64::MAX, None));
            if first != self.yielded {
                let shown = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
                return Err(BlobError::Range {
                    digest: self.digest.clone(),
                    wanted: self.yielded,
                    got: shown.unwrap_or_default().chars().take(100).collect(),
                });
            }
            self.skip = 0;
            total
        } else {
            self.skip = self.yielded;
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

/// A blob in a file of this machine.
struct Local {
    slice: LocalSlice,
    at: u64,
    path: PathBuf,
    digest: Digest,
}

impl Local {
    async fn next(&mut self) -> Result<Option<Bytes>, BlobError> {
        let left = self.slice.length - self.at;
        if left == 0 {
            return Ok(None);
        }
        let wrong = |source| BlobError::Local { digest: self.digest.clone(), path: self.path.clone(), source };
        let io = |source| LocalError::Io { action: "read", file: self.digest.to_string(), source };
        let length = usize::try_from(left).unwrap_or(FILE_CHUNK_BYTES).min(FILE_CHUNK_BYTES);
        let (slice, at) = (self.slice.clone(), self.at);
        let bytes = crate::blocking::run("read a blob", move || slice.read_at(at, length))
            .await
            .and_then(|read| read)
            .map_err(|source| wrong(io(source)))?;
        if bytes.is_empty() {
            let reason = "file is shorter than it was".to_owned();
            return Err(wrong(LocalError::Malformed { file: self.digest.to_string(), reason }));
        }
        self.at += bytes.len() as u64;
        Ok(Some(bytes))
    }
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
