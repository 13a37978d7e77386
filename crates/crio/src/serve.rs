//! Connections: one listener, each connection a task, HTTP/2 for gRPC, HTTP/1 for the side door.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tonic::body::Body;
use tonic::service::Routes;
use tower::ServiceExt;
use tracing::Instrument;

use crate::side_door::SideDoor;

/// Calls under way on one connection. The kubelet, its probes and crictl together stay far below.
const STREAMS_MAX: u32 = 1000;
/// What may be sent before the receiver says go on: a large list in one go, 500 connections in 500 MiB.
const WINDOW_BYTES: u32 = 1 << 20;
/// When no descriptor is left, accepting fails at once, and would again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long the head of an HTTP/1 request may take, and the first byte of any. Source: CRI-O.
const READ_LIMIT: Duration = Duration::from_secs(5);
/// The head of an HTTP/1 request: a path with an id and what clients add by themselves.
const HEAD_MAX_BYTES: usize = 16 << 10;
const HEADERS_MAX: usize = 64;

/// Accepts connections for as long as it is polled.
pub(crate) async fn accept(listener: UnixListener, routes: Routes, side_door: Arc<SideDoor>) -> Infallible {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(connection(stream, routes.clone(), Arc::clone(&side_door)));
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: UnixStream, routes: Routes, side_door: Arc<SideDoor>) {
    if !matches!(tokio::time::timeout(READ_LIMIT, first_byte(&stream)).await, Ok(Ok(()))) {
        return;
    }
    let mut server = auto::Builder::new(TokioExecutor::new());
    server
        .http2()
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    server
        .http1()
        // Who has said everything and closes that way still wants the answer, as socat does.
        .half_close(true)
        .timer(TokioTimer::new())
        .header_read_timeout(READ_LIMIT)
        .max_buf_size(HEAD_MAX_BYTES)
        .max_headers(HEADERS_MAX);
    let service = service_fn(move |request| answer(request, routes.clone(), Arc::clone(&side_door)));
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a connection ended badly");
    }
}

/// Waits for the first byte, and leaves it there: clients of either protocol speak first.
async fn first_byte(stream: &UnixStream) -> io::Result<()> {
    loop {
        stream.readable().await?;
        let look = || Ok(rustix::net::recv(stream, &mut [0_u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT)?);
        match stream.try_io(Interest::READABLE, look) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
            Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => return Ok(()),
        }
    }
}

/// Answers one request. The deadline a gRPC client sends along is the client's: it gives up by itself and reports its
/// own timeout, while what it asked for goes on.
async fn answer(
    request: Request<Incoming>,
    routes: Routes,
    side_door: Arc<SideDoor>,
) -> Result<Response<Body>, Infallible> {
    let span = tracing::info_span!("request", id = %request_id(), name = request.uri().path());
    if request.version() != Version::HTTP_2 {
        return Ok(side_door.answer(request.method(), request.uri().path()).instrument(span).await);
    }
    routes.oneshot(as_v1(request).map(Body::new)).instrument(span).await
}

/// Nodes of the first CRI-O years speak `runtime.v1alpha2`. Its messages are those of `runtime.v1` by another name, number
/// for number, so that only the path tells them apart.
fn as_v1<B>(mut request: Request<B>) -> Request<B> {
    let renamed = request.uri().path().strip_prefix("/runtime.v1alpha2.").map(|rest| format!("/runtime.v1.{rest}"));
    if let Some(uri) = renamed.and_then(|path| path.parse().ok()) {
        *request.uri_mut() = uri;
    }
    request
}

/// A random UUID (version 4), which every log line of a request carries.
fn request_id() -> String {
    use std::io::Read;
    let mut bytes = [0_u8; 16];
    // Without random bytes requests all have the same id; they are answered all the same.
    let _ = std::fs::File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut bytes));
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_name_of_the_interface_is_understood() {
        for (path, expected) in [
            ("/runtime.v1alpha2.RuntimeService/Version", "/runtime.v1.RuntimeService/Version"),
            ("/runtime.v1alpha2.ImageService/PullImage", "/runtime.v1.ImageService/PullImage"),
            ("/runtime.v1.RuntimeService/Version", "/runtime.v1.RuntimeService/Version"),
            ("/info", "/info"),
        ] {
            let request = Request::builder().uri(path).body(()).expect("a request");
            assert_eq!(as_v1(request).uri().path(), expected);
        }
    }

    #[test]
    fn request_ids_are_uuids_and_differ() {
        let (one, two) = (request_id(), request_id());
        assert_ne!(one, two);
        assert_eq!((one.len(), one.as_bytes()[14], one.matches('-').count()), (36, b'4', 4));
    }
}
