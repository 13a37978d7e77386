//! A blob's bytes as they come: bounded by the declared size, resumed after broken connections.

mod remote;

use std::fmt;
use std::io::{self, BufRead, Read};
use std::ops::Range;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use domain::digest::Digest;
use futures_util::stream::{self, Stream, StreamExt as _};
use tokio::runtime::Handle;

use crate::error::{BlobError, LocalError};
use crate::local::{LocalImage, LocalSlice};
use crate::partial::{Keeper, Kept, Partials};
use crate::places::Place;
use remote::Remote;

/// Bytes read from a file at a time: large enough for the disk, small enough for six layers at once.
const FILE_CHUNK_BYTES: usize = 256 << 10;

/// Counts the bytes a stream has yielded; may be read from anywhere, also after the stream is gone.
#[derive(Debug, Clone, Default)]
pub struct BlobProgress {
    bytes: Arc<AtomicU64>,
    place: Arc<Mutex<String>>,
}

impl BlobProgress {
    /// Bytes yielded so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Where the bytes come from just now: the repository as asked of registry or mirror; empty for local files.
    #[must_use]
    pub fn place(&self) -> String {
        self.place.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_place(&self, place: String) {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = place;
    }
}

/// The bytes of one blob, or of a range of it, as served: exactly the declared number of them, or an error as the last
/// item.
///
/// Nothing is read ahead beyond one buffer of the connection, so a slow consumer slows the sender. Dropping the stream
/// ends the transfer. The digest is **not** checked here: the consumer hashes anyway and compares with
/// [`BlobStream::expected_digest`].
pub struct BlobStream {
    expected_digest: Digest,
    size: u64,
    kept: u64,
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
    /// What all bytes of the blob must hash to; those of a range say nothing about it.
    #[must_use]
    pub fn expected_digest(&self) -> &Digest {
        &self.expected_digest
    }

    /// Bytes that will be yielded if all goes well.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes at the beginning that were kept from an earlier attempt. If the digest does not match in the end, these may
    /// be to blame.
    #[must_use]
    pub fn kept(&self) -> u64 {
        self.kept
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

    /// A whole blob, asked for at `place` and, if that fails, at those after it. It begins with what is kept of it.
    pub(crate) async fn open_remote(
        place: &Place,
        digest: &Digest,
        size: u64,
        partials: Option<&Partials>,
    ) -> Result<Self, BlobError> {
        let progress = BlobProgress::default();
        let kept = match partials {
            Some(partials) => partials.find(digest, size).await,
            None => None,
        };
        let from = kept.as_ref().map_or(0, Kept::length);
        let keeper = match &kept {
            Some(kept) => Keeper::go_on(kept, digest),
            None => Keeper::begin(partials, digest, size),
        };
        let mut remote = Remote::new(place.clone(), digest, size, from..size, progress.clone());
        // The first answer is awaited here, so that a refused blob is refused when it is opened.
        if from < size {
            remote.begin().await?;
        }
        let chunks = stream::unfold(Some(Whole { kept, at: 0, remote, keeper }), |state| async {
            let mut whole = state?;
            match whole.next().await {
                Ok(Some(bytes)) => Some((Ok(bytes), Some(whole))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(Self { expected_digest: digest.clone(), size, kept: from, progress, chunks: Box::pin(chunks) })
    }

    /// The bytes `range` of a blob of `size` bytes.
    pub(crate) async fn open_remote_range(
        place: &Place,
        digest: &Digest,
        size: u64,
        range: Range<u64>,
    ) -> Result<Self, BlobError> {
        let progress = BlobProgress::default();
        let length = range.end.saturating_sub(range.start);
        let mut remote = Remote::new(place.clone(), digest, size, range, progress.clone());
        remote.begin().await?;
        let chunks = stream::unfold(Some(remote), |state| async {
            let mut remote = state?;
            match remote.next().await {
                Ok(Some(bytes)) => Some((Ok(bytes), Some(remote))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(Self { expected_digest: digest.clone(), size: length, kept: 0, progress, chunks: Box::pin(chunks) })
    }

    /// A stream of `length` bytes put together elsewhere.
    pub(crate) fn from_chunks(
        digest: &Digest,
        length: u64,
        chunks: impl Stream<Item = Result<Bytes, BlobError>> + Send + 'static,
    ) -> Self {
        let progress = BlobProgress::default();
        Self { expected_digest: digest.clone(), size: length, kept: 0, progress, chunks: Box::pin(chunks) }
    }

    pub(crate) fn open_local(
        image: &LocalImage,
        slice: LocalSlice,
        digest: &Digest,
        size: u64,
        range: Range<u64>,
    ) -> Result<Self, BlobError> {
        if slice.length != size {
            return Err(BlobError::SizeMismatch { digest: digest.clone(), declared: size, announced: slice.length });
        }
        let length = range.end.saturating_sub(range.start);
        let state =
            Local { slice, at: range.start, end: range.end, path: image.path().to_owned(), digest: digest.clone() };
        let chunks = stream::unfold(Some(state), |state| async {
            let mut local = state?;
            match local.next().await {
                Ok(Some(bytes)) => Some((Ok(bytes), Some(local))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        });
        let progress = BlobProgress::default();
        Ok(Self { expected_digest: digest.clone(), size: length, kept: 0, progress, chunks: Box::pin(chunks) })
    }
}

impl Stream for BlobStream {
    type Item = Result<Bytes, BlobError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.chunks.as_mut().poll_next(cx);
        if let Poll::Ready(Some(Ok(bytes))) = &polled {
            self.progress.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
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

/// A whole blob: first what is kept of it, then the rest from a registry.
struct Whole {
    kept: Option<Kept>,
    at: u64,
    remote: Remote,
    keeper: Keeper,
}

impl Whole {
    async fn next(&mut self) -> Result<Option<Bytes>, BlobError> {
        if let Some(kept) = self.kept.as_ref().filter(|kept| self.at < kept.length()) {
            let bytes = kept.read(self.at).await.and_then(|bytes| match bytes.is_empty() {
                true => Err(io::ErrorKind::UnexpectedEof.into()),
                false => Ok(bytes),
            });
            let bytes = bytes.map_err(|source| BlobError::Kept { digest: self.remote.digest().clone(), source })?;
            self.at += bytes.len() as u64;
            return Ok(Some(bytes));
        }
        let next = self.remote.next().await;
        match &next {
            Ok(Some(bytes)) => self.keeper.see(bytes).await,
            Ok(None) | Err(_) => self.keeper.end().await,
        }
        next
    }
}

/// A blob in a file of this machine.
struct Local {
    slice: LocalSlice,
    at: u64,
    end: u64,
    path: PathBuf,
    digest: Digest,
}

impl Local {
    async fn next(&mut self) -> Result<Option<Bytes>, BlobError> {
        let left = self.end - self.at;
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
