//! Port-forward sessions: connections to ports in a sandbox's network namespace.
//!
//! The socket is made on a thread inside the namespace and stays in it; everything else happens outside.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::backend::{Backend, Network};
use crate::queue::Input;
use crate::spdy::{self, Opened};
use crate::stream::{Output, PIECE_MAX_BYTES};

/// The protocol's only version over SPDY.
pub(crate) const PROTOCOL: &str = "portforward.k8s.io";
/// SPDY with that protocol within WebSocket messages, as newer clients of Kubernetes do.
pub(crate) const TUNNEL_PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";
/// How long connecting within a namespace may take, per address. Loopback answers at once or not at all.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long one half of a pair of streams waits for the other. Source: CRI-O.
const PAIR_LIMIT: Duration = Duration::from_secs(30);

/// One connection's streams, and where they lead.
#[derive(Debug)]
pub(crate) struct Forward {
    pub(crate) port: u16,
    pub(crate) input: Input,
    pub(crate) output: Output,
    pub(crate) error: Output,
}

/// Forwards one connection to its end.
async fn forward(backend: Arc<dyn Backend>, sandbox: String, forward: Forward) {
    let Forward { port, input, output, error } = forward;
    match reach(&*backend, &sandbox, port).await {
        Ok(stream) => {
            let (reader, writer) = stream.into_split();
            // Each half ends by itself; the other one goes on.
            tokio::join!(upload(input, writer), download(reader, output));
        }
        Err(problem) => {
            tracing::warn!(sandbox.id = sandbox, port, error = problem, "forwarding a port failed");
            let text = format!("error forwarding port {port} to pod {sandbox}, uid : {problem}");
            let _ = error.write(text.as_bytes()).await;
            // Clients look at the error once the data has ended.
            let _ = output.finish().await;
        }
    }
    let _ = error.finish().await;
}

async fn reach(backend: &dyn Backend, sandbox: &str, port: u16) -> Result<TcpStream, String> {
    let network =
        backend.port_forward(sandbox.to_owned()).await.map_err(|refusal| telemetry::chain(&*refusal).to_string())?;
    connect(network, port)
        .await
        .map_err(|error| format!("failed to connect to localhost:{port} inside namespace {sandbox}: {error}"))
}

async fn upload(mut input: Input, mut writer: OwnedWriteHalf) {
    while let Some(piece) = input.next().await {
        if writer.write_all(&piece).await.is_err() {
            return;
        }
    }
    let _ = writer.shutdown().await;
}

async fn download(mut reader: OwnedReadHalf, output: Output) {
    let mut buffer = vec![0; PIECE_MAX_BYTES];
    while let Ok(count @ 1..) = reader.read(&mut buffer).await {
        if output.write(buffer.get(..count).unwrap_or_default()).await.is_err() {
            return;
        }
    }
    let _ = output.finish().await;
}

/// IPv4 first, then IPv6; the error is the first one's. Source: CRI-O dials `localhost`.
async fn connect(network: Network, port: u16) -> io::Result<TcpStream> {
    let (v4, v6) = match network {
        Network::Host => sockets()?,
        Network::Namespace(namespace) => tokio::task::spawn_blocking(move || {
            sys::namespace::on_fresh_thread(namespace.as_fd(), sockets).and_then(|result| result)
        })
        .await
        .map_err(io::Error::other)??,
    };
    let first = match dial(v4, IpAddr::V4(Ipv4Addr::LOCALHOST), port).await {
        Ok(stream) => return Ok(stream),
        Err(error) => error,
    };
    let Some(v6) = v6 else { return Err(first) };
    dial(v6, IpAddr::V6(Ipv6Addr::LOCALHOST), port).await.map_err(|_| first)
}

/// Sockets of the thread's network namespace; none for IPv6 where the kernel has it switched off.
fn sockets() -> io::Result<(OwnedFd, Option<OwnedFd>)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let v4 = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    let v6 = rustix::net::socket_with(AddressFamily::INET6, SocketType::STREAM, flags, None).ok();
    Ok((v4, v6))
}

async fn dial(socket: OwnedFd, address: IpAddr, port: u16) -> io::Result<TcpStream> {
    let socket = TcpSocket::from_std_stream(socket.into());
    tokio::time::timeout(CONNECT_LIMIT, socket.connect(SocketAddr::new(address, port)))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer"))?
}

/// Why a client's stream is no half of a forwarded connection.
pub(crate) type Malformed = &'static str;

/// What one stream of a forwarded connection carries.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Half {
    Data,
    Error,
}

/// Which half of which connection a stream is.
///
/// Old clients send no request id; their error stream comes right before its data stream.
pub(crate) fn half_of(headers: &spdy::Headers, stream: u32) -> Result<(String, Half, u16), Malformed> {
    let port = spdy::find(headers, "port").ok_or("a stream without a port")?;
    let port = port.parse().ok().filter(|port| *port > 0).ok_or("a stream whose port is no port")?;
    let (half, error_stream) = match spdy::find(headers, "streamtype") {
        Some("error") => (Half::Error, stream),
        Some("data") => (Half::Data, stream.saturating_sub(2)),
        _ => return Err("a stream that is neither data nor error"),
    };
    let request = spdy::find(headers, "requestid").map_or_else(|| error_stream.to_string(), str::to_owned);
    Ok((request, half, port))
}

#[derive(Debug)]
struct Pair {
    since: Instant,
    data: Option<(Input, Output)>,
    error: Option<Output>,
}

/// Serves the pairs of streams that a SPDY client opens, for as long as it stays.
pub(crate) async fn run_spdy(backend: Arc<dyn Backend>, sandbox: String, mut opened: mpsc::Receiver<Opened>) {
    let mut pairs: HashMap<String, Pair> = HashMap::new();
    let mut running = FuturesUnordered::new();
    let mut cleaning = tokio::time::interval(PAIR_LIMIT);
    loop {
        let stream = tokio::select! {
            stream = opened.recv() => stream,
            Some(()) = running.next() => continue,
            _ = cleaning.tick() => {
                for (_, pair) in pairs.extract_if(|_, pair| pair.since.elapsed() >= PAIR_LIMIT) {
                    give_up(pair).await;
                }
                continue;
            }
        };
        let Some(Opened { stream, headers, input, output }) = stream else { break };
        let (request, half, port) = match half_of(&headers, stream) {
            Ok(found) => found,
            Err(problem) => {
                tracing::warn!(sandbox.id = sandbox, problem, "a client's stream is refused");
                let _ = output.reset().await;
                continue;
            }
        };
        let empty = Pair { since: Instant::now(), data: None, error: None };
        let mut pair = pairs.remove(&request).unwrap_or(empty);
        let twice = match half {
            Half::Data => pair.data.replace((input, output)).map(|(_, output)| output),
            Half::Error => pair.error.replace(output),
        };
        if let Some(output) = twice {
            tracing::warn!(sandbox.id = sandbox, request, "a client's stream came twice, the former one is refused");
            let _ = output.reset().await;
        }
        match pair {
            Pair { data: Some((input, output)), error: Some(error), .. } => {
                let connection = Forward { port, input, output, error };
                running.push(forward(Arc::clone(&backend), sandbox.clone(), connection));
            }
            waiting => {
                pairs.insert(request, waiting);
            }
        }
    }
    while running.next().await.is_some() {}
}

/// Ends a half that was left alone.
async fn give_up(pair: Pair) {
    tracing::warn!("a client opened one stream of two, and is waited for no longer");
    if let Some(error) = pair.error {
        let _ = error.write(b"timed out waiting for streams").await;
        let _ = error.finish().await;
    }
    if let Some((_, output)) = pair.data {
        let _ = output.reset().await;
    }
}

/// Serves connections that were agreed on beforehand, as over WebSocket, each after the announcement of its port.
pub(crate) async fn run_fixed(backend: Arc<dyn Backend>, sandbox: String, connections: Vec<Forward>) {
    let mut running = FuturesUnordered::new();
    for connection in connections {
        let port = connection.port.to_le_bytes();
        if connection.output.write(&port).await.is_err() || connection.error.write(&port).await.is_err() {
            return;
        }
        running.push(forward(Arc::clone(&backend), sandbox.clone(), connection));
    }
    while running.next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_find_each_other_with_and_without_request_ids() {
        let headers = |list: &[(&str, &str)]| list.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        for (list, stream, expected) in [
            (&[("streamtype", "error"), ("port", "80"), ("requestid", "4")][..], 1, Ok(("4".into(), Half::Error, 80))),
            (&[("streamtype", "data"), ("port", "80"), ("requestid", "4")], 9, Ok(("4".into(), Half::Data, 80))),
            (&[("streamtype", "error"), ("port", "80")], 5, Ok(("5".into(), Half::Error, 80))),
            (&[("streamtype", "data"), ("port", "80")], 7, Ok(("5".into(), Half::Data, 80))),
            (&[("streamtype", "data")], 7, Err("a stream without a port")),
            (&[("streamtype", "data"), ("port", "0")], 7, Err("a stream whose port is no port")),
            (&[("streamtype", "data"), ("port", "65536")], 7, Err("a stream whose port is no port")),
            (&[("streamtype", "stdin"), ("port", "1")], 7, Err("a stream that is neither data nor error")),
        ] {
            assert_eq!(half_of(&headers(list), stream), expected);
        }
    }

    #[tokio::test]
    async fn ipv4_comes_first_and_ipv6_is_reached_too() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = tokio::net::TcpListener::bind(address).await else { continue };
            let local = listener.local_addr().expect("is bound");
            let stream = connect(Network::Host, local.port()).await.expect("connects");
            assert_eq!(stream.peer_addr().expect("is connected"), local);
        }
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("is bound").port();
        let error = connect(Network::Host, free).await.expect_err("nobody listens");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
