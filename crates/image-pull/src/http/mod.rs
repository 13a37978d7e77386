//! HTTP towards registries: connections, TLS, proxies, challenges, tokens, retries.

pub(crate) mod challenge;
mod connect;
pub(crate) mod proxy;
pub(crate) mod retry;
pub(crate) mod session;
mod tls;
mod token;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{HeaderMap, HeaderValue};
use http::{Method, Request, Response, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::client::{ClientOptions, RetryPolicy, Timeouts};
use crate::error::TransferError;
use crate::registries::Transport;
use connect::{ConnectFailure, Connector};
use token::TokenCache;

/// Idle connections kept for each host: as many as layers are fetched at once.
const IDLE_CONNECTIONS_MAX: usize = 6;
/// How long an idle connection is kept: longer than the gap between two layers, shorter than servers' own limits.
const IDLE_CONNECTION_LIFETIME: Duration = Duration::from_secs(20);
/// Bytes hyper buffers for one connection: six of them stay below a megabyte.
const READ_BUFFER_BYTES: usize = 128 << 10;
/// Channels remembered; each is a few hundred bytes and its idle connections.
const CHANNELS_MAX: usize = 16;
/// How long a channel and the certificates it was built with are reused.
const CHANNEL_LIFETIME: Duration = Duration::from_secs(60);

type Channel = HyperClient<Connector, Full<Bytes>>;

/// What all sessions of a client share.
#[derive(Debug)]
pub(crate) struct Http {
    pub(crate) timeouts: Timeouts,
    pub(crate) retry: RetryPolicy,
    user_agent: HeaderValue,
    certificate_directories: Vec<PathBuf>,
    proxy: Arc<proxy::Proxy>,
    roots: Arc<tls::SystemRoots>,
    channels: Mutex<HashMap<(Transport, String), (Instant, Channel)>>,
    pub(crate) tokens: TokenCache,
}

impl Http {
    pub(crate) fn new(options: &ClientOptions) -> (Self, Vec<String>) {
        let (proxy, warnings) = proxy::Proxy::parse(&options.proxy);
        let user_agent = HeaderValue::from_str(&options.user_agent)
            .unwrap_or_else(|_| HeaderValue::from_static(concat!("cri-o/", env!("CARGO_PKG_VERSION"))));
        let http = Self {
            timeouts: options.timeouts,
            retry: options.retry,
            user_agent,
            certificate_directories: options.certificate_directories.clone(),
            proxy: Arc::new(proxy),
            roots: Arc::new(tls::SystemRoots::default()),
            channels: Mutex::default(),
            tokens: TokenCache::default(),
        };
        (http, warnings)
    }

    /// The channel for a registry. Its certs.d authorities are trusted for redirects and token services too, its
    /// client certificate is shown to itself only.
    fn channel(&self, transport: Transport, registry: &str) -> Channel {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.retain(|_, (made, _)| made.elapsed() < CHANNEL_LIFETIME);
        if let Some((_, channel)) = channels.get(&(transport, registry.to_owned())) {
            return channel.clone();
        }
        let connector = Connector::new(
            transport,
            registry.to_owned(),
            self.certificate_directories.clone(),
            Arc::clone(&self.roots),
            Arc::clone(&self.proxy),
            self.timeouts.connect,
        );
        let channel = HyperClient::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_CONNECTION_LIFETIME)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .http1_max_buf_size(READ_BUFFER_BYTES)
            .build(connector);
        if channels.len() >= CHANNELS_MAX {
            channels.clear();
        }
        channels.insert((transport, registry.to_owned()), (Instant::now(), channel.clone()));
        channel
    }

    /// One exchange, without retry, redirect or authentication. Returns when the head of the answer is there.
    async fn exchange(
        &self,
        channel: &Channel,
        method: Method,
        uri: &Uri,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>, TransferError> {
        let authority = authority_of(uri);
        let broken = |source: Box<dyn std::error::Error + Send + Sync>| TransferError::Exchange {
            authority: authority.clone(),
            source,
        };
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = uri.clone();
        *request.headers_mut() = headers;
        request.headers_mut().insert(http::header::USER_AGENT, self.user_agent.clone());
        if uri.scheme_str() == Some("http")
            && let Some(credentials) = self.proxy.authorization_for(uri)
        {
            request.headers_mut().insert(http::header::PROXY_AUTHORIZATION, credentials);
        }
        // Connecting has a limit of its own, which this one must not undercut.
        let limit = self.timeouts.connect + self.timeouts.answer;
        match tokio::time::timeout(limit, channel.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(ConnectFailure::take(&error).unwrap_or_else(|| broken(Box::new(error)))),
            Err(_) => Err(TransferError::AnswerTimeout { authority, limit }),
        }
    }

    /// Reads a whole body of at most `limit` bytes; `Ok(None)` if it is longer.
    async fn read_body(
        &self,
        authority: &str,
        mut body: Incoming,
        limit: usize,
    ) -> Result<Option<Bytes>, TransferError> {
        let mut buffer = Vec::new();
        while let Some(frame) = next_frame(authority, &mut body, self.timeouts.stall).await? {
            if buffer.len() + frame.len() > limit {
                return Ok(None);
            }
            buffer.extend_from_slice(&frame);
        }
        Ok(Some(buffer.into()))
    }
}

/// The next bytes of a body, or `None` at its end.
pub(crate) async fn next_frame(
    authority: &str,
    body: &mut Incoming,
    stall: Duration,
) -> Result<Option<Bytes>, TransferError> {
    loop {
        let frame = tokio::time::timeout(stall, body.frame())
            .await
            .map_err(|_| TransferError::Stalled { authority: authority.to_owned(), limit: stall })?;
        match frame {
            None => return Ok(None),
            Some(Err(error)) => {
                return Err(TransferError::Exchange { authority: authority.to_owned(), source: Box::new(error) });
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => return Ok(Some(data)),
                // Trailers carry nothing we want.
                Err(_) => {}
            },
        }
    }
}

/// Host and port as the address names them.
pub(crate) fn authority_of(uri: &Uri) -> String {
    let Some(authority) = uri.authority() else { return String::new() };
    // Whatever precedes an `@` would be credentials.
    authority.as_str().rsplit('@').next().unwrap_or_default().to_owned()
}

/// An address without query and credentials: both may be secrets.
pub(crate) fn printable(uri: &Uri) -> String {
    format!("{}://{}{}", uri.scheme_str().unwrap_or_default(), authority_of(uri), uri.path())
}
