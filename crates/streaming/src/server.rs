//! The HTTP server: which URL leads to which session, and the upgrade.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::backend::{AttachRequest, Backend, ExecRequest, PortForwardRequest, Streams};
use crate::connection::Carrier;
use crate::port_forward::{self, Forward};
use crate::remote_command::{self, Channels, Version};
use crate::tls::{Tls, TlsError, TlsOptions};
use crate::tokens::{PrepareError, Tokens};
use crate::transport::Transport;
use crate::websocket::{self, CloseSignal, Coding};
use crate::{attach, connection, exec, spdy};

/// Connections at a time; more wait to be accepted. Each may hold 1 MiB of queues and a program.
const CONNECTIONS_MAX: usize = 1000;
/// How long a client may take to send its request.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);
/// When no descriptor is left, accepting fails at once, and would again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Silence after which the kernel asks whether a client's machine still exists, and how often it asks.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Questions without an answer before the connection is given up.
const KEEPALIVE_PROBES: u32 = 4;
/// Ports of one session over WebSocket: two channels each, and channels have numbers up to 255.
const PORTS_MAX: usize = 100;

const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// How to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where; `None` is every address of the machine.
    pub address: Option<IpAddr>,
    /// The port; 0 lets the kernel choose.
    pub port: u16,
    /// How long a session may be without a byte either way.
    pub idle_limit: Duration,
    /// How connections are encrypted; `None` leaves them plain.
    pub tls: Option<TlsOptions>,
}

/// Why the server cannot be reached.
#[derive(Debug, Error)]
pub enum BindError {
    /// Its address cannot be had.
    #[error("listen for streaming sessions on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        #[source]
        /// The system's answer.
        source: io::Error,
    },
    /// Sessions are to be encrypted and cannot be.
    #[error("encrypt streaming sessions")]
    Tls(#[from] TlsError),
}

#[derive(Debug)]
enum Session {
    Exec(ExecRequest),
    Attach(AttachRequest),
    PortForward(PortForwardRequest),
}

impl Session {
    /// The first part of its URL's path.
    const fn kind(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Attach(_) => "attach",
            Self::PortForward(_) => "portforward",
        }
    }
}

/// Prepares sessions.
pub struct Streaming {
    tokens: Tokens<Session>,
    base: String,
    backend: Arc<dyn Backend>,
    idle_limit: Duration,
    tls: Option<Arc<Tls>>,
}

/// Serves prepared sessions.
pub struct Server {
    listener: TcpListener,
    streaming: Arc<Streaming>,
}

impl Streaming {
    /// Binds the server's address. Nothing is served before [`Server::run`].
    pub async fn bind(options: &Options, backend: Arc<dyn Backend>) -> Result<(Arc<Self>, Server), BindError> {
        let tls = options.tls.clone().map(Tls::open).transpose()?.map(Arc::new);
        let listener = match options.address {
            Some(address) => listen(address, options.port).await?,
            // Both families where there are both.
            None => match listen(IpAddr::V6(Ipv6Addr::UNSPECIFIED), options.port).await {
                Ok(listener) => listener,
                Err(_) => listen(IpAddr::V4(Ipv4Addr::UNSPECIFIED), options.port).await?,
            },
        };
        let address = listener.local_addr().map_err(|source| BindError::Listen {
            address: SocketAddr::new(options.address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), options.port),
            source,
        })?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let streaming = Arc::new(Self {
            tokens: Tokens::new(),
            base: format!("{scheme}://{address}"),
            backend,
            idle_limit: options.idle_limit,
            tls,
        });
        Ok((Arc::clone(&streaming), Server { listener, streaming }))
    }

    /// Where the server is, as URLs begin.
    #[must_use]
    pub fn base_url(&self) -> &str {
        &self.base
    }

    /// Prepares an exec session; its URL.
    pub fn exec_url(&self, request: ExecRequest) -> Result<String, PrepareError> {
        self.prepare(Session::Exec(request))
    }

    /// Prepares an attach session; its URL.
    pub fn attach_url(&self, request: AttachRequest) -> Result<String, PrepareError> {
        self.prepare(Session::Attach(request))
    }

    /// Prepares a port-forward session; its URL.
    pub fn port_forward_url(&self, request: PortForwardRequest) -> Result<String, PrepareError> {
        self.prepare(Session::PortForward(request))
    }

    fn prepare(&self, session: Session) -> Result<String, PrepareError> {
        let kind = session.kind();
        let token = self.tokens.insert(session, Instant::now())?;
        Ok(format!("{}/{kind}/{token}", self.base))
    }
}

async fn listen(address: IpAddr, port: u16) -> Result<TcpListener, BindError> {
    let address = SocketAddr::new(address, port);
    TcpListener::bind(address).await.map_err(|source| BindError::Listen { address, source })
}

impl Server {
    /// Accepts connections for as long as it is polled.
    pub async fn run(self) -> Infallible {
        match self.streaming.tls.clone() {
            None => self.accept().await,
            Some(tls) => {
                tracing::info!("TLS enabled for streaming server");
                tokio::select! {
                    never = self.accept() => never,
                    never = tls.watch() => never,
                }
            }
        }
    }

    async fn accept(self) -> Infallible {
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { continue };
            match self.listener.accept().await {
                Ok((stream, client)) => {
                    tokio::spawn(serve(stream, client, Arc::clone(&self.streaming), Arc::new(slot)));
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting a streaming connection failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// A machine that vanished says nothing; only asking it shows.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    Ok(())
}

async fn serve(stream: TcpStream, client: SocketAddr, streaming: Arc<Streaming>, slot: Arc<OwnedSemaphorePermit>) {
    if let Err(error) = keep_alive(&stream) {
        tracing::debug!(%error, %client, "a streaming connection was closed at once");
        return;
    }
    let transport = match encrypt(stream, streaming.tls.clone()).await {
        Ok(transport) => transport,
        Err(error) => {
            tracing::warn!(%error, %client, "a streaming connection was not encrypted, and closed");
            return;
        }
    };
    let service = service_fn(|request| {
        let answer = answer(request, client, &streaming, &slot);
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(REQUEST_LIMIT);
    if let Err(error) = server.serve_connection(TokioIo::new(transport), service).with_upgrades().await {
        tracing::debug!(%error, %client, "a streaming connection ended badly");
    }
}

async fn encrypt(stream: TcpStream, tls: Option<Arc<Tls>>) -> io::Result<Transport> {
    let Some(tls) = tls else { return Ok(Transport::Plain(stream)) };
    let stream = tokio::time::timeout(REQUEST_LIMIT, tls.accept(stream))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the client did not agree in time"))??;
    Ok(Transport::Tls(Box::new(stream)))
}

type Answer = Response<Full<Bytes>>;

fn refuse(status: StatusCode, text: &str) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(format!("{text}\n"))));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn answer(
    request: Request<Incoming>,
    client: SocketAddr,
    streaming: &Arc<Streaming>,
    slot: &Arc<OwnedSemaphorePermit>,
) -> Answer {
    match begin(request, streaming, slot) {
        Ok(response) => response,
        Err((status, text)) => {
            tracing::warn!(%client, status = status.as_u16(), reason = text, "a streaming client was refused");
            refuse(status, &text)
        }
    }
}

fn begin(
    mut request: Request<Incoming>,
    streaming: &Arc<Streaming>,
    slot: &Arc<OwnedSemaphorePermit>,
) -> Result<Answer, Refused> {
    if !matches!(*request.method(), Method::GET | Method::POST) {
        return Err((StatusCode::METHOD_NOT_ALLOWED, "only GET and POST are known here".to_owned()));
    }
    let absent = |text: &str| (StatusCode::NOT_FOUND, text.to_owned());
    let mut parts = request.uri().path().trim_start_matches('/').split('/');
    let (Some(kind), Some(token), None) = (parts.next(), parts.next(), parts.next()) else {
        return Err(absent("no such page"));
    };
    let session = streaming
        .tokens
        .take(token, Instant::now(), |session| session.kind() == kind)
        .ok_or_else(|| absent("no session waits under this address: it is unknown, used or too old"))?;
    let query = request.uri().query().unwrap_or_default().to_owned();
    let (response, upgrade) = negotiate(request.headers(), &session, &query)?;
    let (upgraded, streaming, slot) = (hyper::upgrade::on(&mut request), Arc::clone(streaming), Arc::clone(slot));
    tokio::spawn(async move {
        let kind = session.kind();
        match run(upgraded, upgrade, session, &streaming).await {
            // What the client said is no frame of its protocol.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!(%error, kind, "a streaming client broke the rules");
            }
            Err(error) => tracing::debug!(%error, kind, "a streaming session ended early"),
            Ok(()) => {}
        }
        drop(slot);
    });
    Ok(response)
}

/// What a connection becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Upgrade {
    Spdy(Version),
    WebSocket(Version, Coding),
    /// Port forwarding, with the ports that the client names.
    SpdyPorts,
    TunneledPorts,
    WebSocketPorts(Vec<u16>, Coding),
}

type Refused = (StatusCode, String);

/// Words of a header that is a list, however it is split over lines.
fn words(headers: &HeaderMap, name: HeaderName) -> Vec<String> {
    let lines = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect()
}

fn has_word(headers: &HeaderMap, name: HeaderName, wanted: &str) -> bool {
    words(headers, name).iter().any(|word| word.eq_ignore_ascii_case(wanted))
}

fn negotiate(headers: &HeaderMap, session: &Session, query: &str) -> Result<(Answer, Upgrade), Refused> {
    let is_upgrade = has_word(headers, header::CONNECTION, "upgrade");
    if is_upgrade && has_word(headers, header::UPGRADE, "websocket") {
        return negotiate_websocket(headers, session, query);
    }
    if is_upgrade && has_word(headers, header::UPGRADE, "SPDY/3.1") {
        return negotiate_spdy(headers, session);
    }
    Err((StatusCode::BAD_REQUEST, "unable to upgrade: missing upgrade headers in request".to_owned()))
}

fn switching(protocol: &'static str) -> Answer {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(protocol));
    response
}

fn negotiate_spdy(headers: &HeaderMap, session: &Session) -> Result<(Answer, Upgrade), Refused> {
    let offered = words(headers, STREAM_PROTOCOL);
    let chosen = match session {
        Session::Exec(_) | Session::Attach(_) => {
            remote_command::choose_spdy(&offered).map(|(name, version)| (name, Upgrade::Spdy(version)))
        }
        Session::PortForward(_) if offered.is_empty() => Some((None, Upgrade::SpdyPorts)),
        Session::PortForward(_) => offered
            .iter()
            .any(|name| name == port_forward::PROTOCOL)
            .then_some((Some(port_forward::PROTOCOL), Upgrade::SpdyPorts)),
    };
    let Some((name, upgrade)) = chosen else {
        let text = format!("unable to upgrade: none of the protocols {offered:?} is spoken here");
        return Err((StatusCode::FORBIDDEN, text));
    };
    let mut response = switching("SPDY/3.1");
    if let Some(name) = name {
        response.headers_mut().insert(STREAM_PROTOCOL, HeaderValue::from_static(name));
    }
    Ok((response, upgrade))
}

fn negotiate_websocket(headers: &HeaderMap, session: &Session, query: &str) -> Result<(Answer, Upgrade), Refused> {
    let bad = |text: &str| (StatusCode::BAD_REQUEST, format!("unable to upgrade: {text}"));
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version.as_bytes() != b"13") {
        return Err(bad("only version 13 of WebSocket is known"));
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).ok_or_else(|| bad("Sec-WebSocket-Key is missing"))?;
    let offered = words(headers, header::SEC_WEBSOCKET_PROTOCOL);
    let chosen = match session {
        Session::Exec(_) | Session::Attach(_) => remote_command::choose_websocket(&offered)
            .map(|(name, version, coding)| (name, Upgrade::WebSocket(version, coding))),
        Session::PortForward(_) if offered.iter().any(|name| name == port_forward::TUNNEL_PROTOCOL) => {
            Some((Some(port_forward::TUNNEL_PROTOCOL), Upgrade::TunneledPorts))
        }
        Session::PortForward(request) => {
            let known = |name: &str| match name {
                "v4.channel.k8s.io" => Some(("v4.channel.k8s.io", Coding::Binary)),
                "v4.base64.channel.k8s.io" => Some(("v4.base64.channel.k8s.io", Coding::Base64)),
                _ => None,
            };
            let chosen = match offered.iter().find_map(|name| known(name)) {
                Some((name, coding)) => Some((Some(name), coding)),
                None => offered.is_empty().then_some((None, Coding::Binary)),
            };
            let ports = ports_of(query, &request.ports).map_err(bad)?;
            chosen.map(|(name, coding)| (name, Upgrade::WebSocketPorts(ports, coding)))
        }
    };
    let Some((name, upgrade)) = chosen else {
        let text = format!("unable to upgrade: none of the protocols {offered:?} is spoken here");
        return Err((StatusCode::FORBIDDEN, text));
    };
    let mut response = switching("websocket");
    let accept = HeaderValue::try_from(websocket::accept(key.as_bytes())).map_err(|_| bad("no answer to the key"))?;
    response.headers_mut().insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if let Some(name) = name {
        response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    }
    Ok((response, upgrade))
}

/// The ports of a query (`port=80&port=81,82`), or else those that the session was prepared with.
fn ports_of(query: &str, prepared: &[u16]) -> Result<Vec<u16>, &'static str> {
    let mut ports = Vec::new();
    let values = query.split('&').filter_map(|pair| pair.strip_prefix("port="));
    // A comma arrives percent-encoded from most clients.
    for value in values.flat_map(|value| value.split(',').flat_map(|part| part.split("%2C"))) {
        ports.push(value.parse().ok().filter(|port| *port > 0).ok_or("a port that is no port")?);
    }
    if ports.is_empty() {
        ports = prepared.to_vec();
    }
    match ports.len() {
        0 => Err("query parameter \"port\" is required"),
        1..=PORTS_MAX => Ok(ports),
        _ => Err("too many ports"),
    }
}

async fn run(upgraded: OnUpgrade, upgrade: Upgrade, session: Session, streaming: &Streaming) -> io::Result<()> {
    let parts = upgraded
        .await
        .map_err(io::Error::other)?
        .downcast::<TokioIo<Transport>>()
        .map_err(|_| io::Error::other("the connection is none of ours"))?;
    let (stream, leftover, idle) = (parts.io.into_inner(), parts.read_buf, streaming.idle_limit);
    let carrier = if upgrade == Upgrade::TunneledPorts { Carrier::Tunnel } else { Carrier::Connection };
    let backend = Arc::clone(&streaming.backend);
    match (session, upgrade) {
        (Session::PortForward(request), Upgrade::WebSocketPorts(ports, coding)) => {
            connection::serve(stream, leftover, carrier, idle, |outbox, room| {
                let mut connection = websocket::Connection::new(outbox, room, coding, CloseSignal::Unknown);
                let connections = (0_u8..).step_by(2).zip(ports).map(|(channel, port)| Forward {
                    port,
                    input: connection.input(channel),
                    output: connection.output(channel),
                    error: connection.output(channel + 1),
                });
                let connections = connections.collect();
                Ok((connection, port_forward::run_fixed(backend, request.sandbox, connections)))
            })
            .await
        }
        (Session::PortForward(request), _) => {
            connection::serve(stream, leftover, carrier, idle, |outbox, room| {
                let (connection, opened) = spdy::Connection::new(outbox, room)?;
                Ok((connection, port_forward::run_spdy(backend, request.sandbox, opened)))
            })
            .await
        }
        (session, Upgrade::WebSocket(version, coding)) => {
            connection::serve(stream, leftover, carrier, idle, |outbox, room| {
                let (connection, channels) =
                    Channels::of_websocket(outbox, room, streams_of(&session), version, coding);
                Ok((connection, async move {
                    if channels.greet().await.is_ok() {
                        run_command(backend, session, channels).await;
                    }
                }))
            })
            .await
        }
        (session, upgrade) => {
            let version = if let Upgrade::Spdy(version) = upgrade { version } else { Version::V1 };
            connection::serve(stream, leftover, carrier, idle, |outbox, room| {
                let (connection, opened) = spdy::Connection::new(outbox, room)?;
                Ok((connection, async move {
                    match Channels::of_spdy(opened, streams_of(&session), version).await {
                        Ok(channels) => run_command(backend, session, channels).await,
                        Err(error) => tracing::debug!(%error, "a streaming session did not begin"),
                    }
                }))
            })
            .await
        }
    }
}

const NO_STREAMS: Streams = Streams { has_terminal: false, has_stdin: false, has_stdout: false, has_stderr: false };

fn streams_of(session: &Session) -> Streams {
    match session {
        Session::Exec(request) => request.streams,
        Session::Attach(request) => request.streams,
        Session::PortForward(_) => NO_STREAMS,
    }
}

async fn run_command(backend: Arc<dyn Backend>, session: Session, channels: Channels) {
    match session {
        Session::Exec(request) => exec::run(backend, request, channels).await,
        Session::Attach(request) => attach::run(backend, request, channels).await,
        Session::PortForward(_) => {}
    }
}

/// Reads bytes as a client's request would be: a query, then headers, a line each. For fuzzing.
pub fn fuzz_requests(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (query, lines) = text.split_once('\n').unwrap_or((&text, ""));
    let mut headers = HeaderMap::new();
    for (name, value) in lines.lines().filter_map(|line| line.split_once(':')).take(100) {
        if let (Ok(name), Ok(value)) = (name.trim().parse::<HeaderName>(), value.trim().parse()) {
            headers.append(name, value);
        }
    }
    let streams = Streams { has_terminal: true, ..NO_STREAMS };
    for session in [
        Session::Exec(ExecRequest { container: String::new(), command: Vec::new(), streams }),
        Session::PortForward(PortForwardRequest { sandbox: String::new(), ports: vec![80] }),
    ] {
        if let Ok((answer, Upgrade::WebSocketPorts(ports, _))) = negotiate(&headers, &session, query) {
            assert!(!ports.is_empty() && ports.len() <= PORTS_MAX, "channels have numbers up to 255");
            assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS, "what is agreed on is told");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_come_from_the_query_or_from_the_request() {
        for (query, prepared, expected) in [
            ("port=80", &[][..], Ok(vec![80])),
            ("a=b&port=80&port=81%2C82,83", &[9], Ok(vec![80, 81, 82, 83])),
            ("", &[9], Ok(vec![9])),
            ("port=0", &[9], Err("a port that is no port")),
            ("port=65536", &[9], Err("a port that is no port")),
            ("", &[], Err("query parameter \"port\" is required")),
        ] {
            assert_eq!(ports_of(query, prepared), expected, "{query}");
        }
    }

    #[test]
    fn upgrades_are_negotiated() {
        let session = Session::Exec(ExecRequest { container: "c".into(), command: vec![], streams: NO_STREAMS });
        let websocket = &[("sec-websocket-version", "13"), ("sec-websocket-key", "k")];
        for (headers, expected) in [
            (
                &[
                    ("connection", "Upgrade"),
                    ("upgrade", "SPDY/3.1"),
                    ("x-stream-protocol-version", "v4.channel.k8s.io"),
                ][..],
                { Ok(Upgrade::Spdy(Version::V4)) },
            ),
            (&[("connection", "Upgrade"), ("upgrade", "SPDY/3.1")], Ok(Upgrade::Spdy(Version::V1))),
            (&[("connection", "upgrade"), ("upgrade", "spdy/3.1"), ("x-stream-protocol-version", "v9")], Err(403)),
            (&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket"), websocket[0], websocket[1]], {
                Ok(Upgrade::WebSocket(Version::V1, Coding::Binary))
            }),
            (
                &[
                    ("connection", "upgrade"),
                    ("upgrade", "websocket"),
                    websocket[0],
                    websocket[1],
                    ("sec-websocket-protocol", "v5.channel.k8s.io, v4.channel.k8s.io"),
                ],
                { Ok(Upgrade::WebSocket(Version::V5, Coding::Binary)) },
            ),
            (&[("connection", "upgrade"), ("upgrade", "websocket"), websocket[0]], Err(400)),
            (&[("upgrade", "websocket")], Err(400)),
            (&[], Err(400)),
        ] {
            let map: HeaderMap = headers
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
                .collect();
            let found =
                negotiate(&map, &session, "").map(|(_, upgrade)| upgrade).map_err(|(status, _)| status.as_u16());
            assert_eq!(found, expected, "{headers:?}");
        }
    }
}
