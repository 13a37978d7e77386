//! From an address to a connection: name resolution, proxy, TLS.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::proxy::Proxy;
use super::tls::{SystemRoots, Trust};
use crate::error::TransferError;
use crate::registries::Transport;

/// Largest answer of a proxy to CONNECT: a status line and a few headers.
const PROXY_ANSWER_MAX_BYTES: usize = 8 << 10;

/// Most addresses of a host that are tried.
const ADDRESSES_MAX: usize = 8;

/// Carries a [`TransferError`] through hyper, which only lends its causes.
pub(crate) struct ConnectFailure(Mutex<Option<TransferError>>);

impl ConnectFailure {
    /// The failure of the connector inside an error of hyper's client.
    pub(super) fn take(error: &(dyn std::error::Error + 'static)) -> Option<TransferError> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(failure) = error.downcast_ref::<Self>() {
                return failure.0.lock().unwrap_or_else(PoisonError::into_inner).take();
            }
            next = error.source();
        }
        None
    }
}

impl fmt::Debug for ConnectFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConnectFailure")
    }
}

impl fmt::Display for ConnectFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("connect")
    }
}

impl std::error::Error for ConnectFailure {}

/// Makes connections for one registry and whatever it refers us to.
#[derive(Clone)]
pub(crate) struct Connector(Arc<Inner>);

struct Inner {
    trust: Trust,
    proxy: Arc<Proxy>,
    limit: Duration,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

impl Connector {
    pub(super) fn new(
        transport: Transport,
        registry: String,
        directories: Vec<PathBuf>,
        roots: Arc<SystemRoots>,
        proxy: Arc<Proxy>,
        limit: Duration,
    ) -> Self {
        Self(Arc::new(Inner { trust: Trust::new(transport, registry, directories, roots), proxy, limit }))
    }
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = ConnectFailure;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            let authority = super::authority_of(&uri);
            let limit = inner.limit;
            let connected = tokio::time::timeout(limit, inner.connect(&uri, &authority)).await;
            connected
                .unwrap_or(Err(TransferError::ConnectTimeout { authority, limit }))
                .map(TokioIo::new)
                .map_err(|error| ConnectFailure(Mutex::new(Some(error))))
        })
    }
}

impl Inner {
    async fn connect(&self, uri: &Uri, authority: &str) -> Result<Stream, TransferError> {
        let is_tls = uri.scheme_str() == Some("https");
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let proxy = self.proxy.find(uri);
        let stream = match &proxy {
            Some(proxy) => dial(&proxy.host, proxy.port, self.limit).await?,
            None => dial(host, port, self.limit).await?,
        };
        if !is_tls {
            return Ok(Stream { inner: Layered::Plain(stream), is_proxied: proxy.is_some() });
        }
        let stream = match &proxy {
            Some(proxy) => tunnel(stream, host, port, proxy, authority).await?,
            None => stream,
        };
        let wrong_name = |error| TransferError::Tls {
            authority: authority.to_owned(),
            source: io::Error::new(io::ErrorKind::InvalidInput, error),
        };
        let name = ServerName::try_from(host.to_owned()).map_err(wrong_name)?;
        let config = self.trust.config_for(authority).await?;
        let stream = TlsConnector::from(config)
            .connect(name, stream)
            .await
            .map_err(|source| TransferError::Tls { authority: authority.to_owned(), source })?;
        Ok(Stream { inner: Layered::Tls(Box::new(stream)), is_proxied: false })
    }
}

/// Connects to the first address that answers. No address may use up the time of those after it.
async fn dial(host: &str, port: u16, limit: Duration) -> Result<TcpStream, TransferError> {
    let addresses: Vec<_> = tokio::net::lookup_host((host, port))
        .await
        .map_err(|source| TransferError::LookUp { host: host.to_owned(), source })?
        .take(ADDRESSES_MAX)
        .collect();
    let share = limit / u32::try_from(addresses.len().max(1)).unwrap_or(1);
    let mut last = io::Error::new(io::ErrorKind::AddrNotAvailable, "host has no address");
    for address in addresses {
        match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Without this every small request waits for the previous answer's acknowledgement. Failing to set
                // it costs time only.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("no connection to {address}")),
        }
    }
    Err(TransferError::Connect { authority: format!("{host}:{port}"), source: last })
}

/// Asks a proxy for a tunnel. Source: RFC 9110 section 9.3.6.
async fn tunnel(
    mut stream: TcpStream,
    host: &str,
    port: u16,
    proxy: &super::proxy::ProxyServer,
    authority: &str,
) -> Result<TcpStream, TransferError> {
    let refused = |reason: String| TransferError::Proxy {
        authority: authority.to_owned(),
        proxy: format!("{}:{}", proxy.host, proxy.port),
        reason,
    };
    let target = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
    if let Some(authorization) = &proxy.authorization {
        request.push_str("Proxy-Authorization: ");
        request.push_str(authorization.to_str().unwrap_or_default());
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await.map_err(|error| refused(error.to_string()))?;
    let mut answer = Vec::new();
    // Byte by byte: what follows the head belongs to the TLS handshake, which the server does not begin.
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() >= PROXY_ANSWER_MAX_BYTES {
            return Err(refused("its answer is too long".to_owned()));
        }
        answer.push(stream.read_u8().await.map_err(|error| refused(error.to_string()))?);
    }
    let status = answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let status = String::from_utf8_lossy(status);
    let is_open = status.starts_with("HTTP/1.") && status.split(' ').nth(1).is_some_and(|code| code.starts_with('2'));
    if is_open { Ok(stream) } else { Err(refused(status.chars().filter(|c| !c.is_control()).take(200).collect())) }
}

/// A connection, with or without TLS.
pub(crate) struct Stream {
    inner: Layered,
    /// Requests then name the whole address, because a proxy reads them.
    is_proxied: bool,
}

enum Layered {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.is_proxied)
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Layered::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Layered::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().inner {
            Layered::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Layered::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Layered::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Layered::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Layered::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Layered::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
