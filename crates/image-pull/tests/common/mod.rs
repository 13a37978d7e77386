//! A registry that does what a test tells it, down to the bytes on the wire, and images to serve.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use domain::digest::Digest;
use image_pull::registries::RegistriesOptions;
use image_pull::{
    BlobError, BlobStream, Client, ClientOptions, Credentials, LoopbackTrust, Platform, ResolveError, ResolvedImage,
    RetryPolicy, Source, Timeouts,
};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A request as it arrived; header names in lower case.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub target: String,
    pub headers: HashMap<String, String>,
    pub body: String,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

pub enum Body {
    Full(Vec<u8>),
    /// Announces `declared` bytes, sends fewer, closes.
    Truncated {
        declared: usize,
        bytes: Vec<u8>,
    },
    /// Announces `declared` bytes, sends fewer, then nothing for ever.
    Stalled {
        declared: usize,
        bytes: Vec<u8>,
    },
    /// Sends everything, `piece` bytes at a time with a pause between.
    Slow {
        bytes: Vec<u8>,
        piece: usize,
        pause: Duration,
    },
    /// Chunks without end and without announced length.
    Endless,
}

pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Body,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: Body::Full(body.into()) }
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub fn body(body: Body) -> Self {
        Self { status: 200, headers: Vec::new(), body }
    }
}

type Handler = dyn Fn(&Seen) -> Reply + Send + Sync;

/// Listens on 127.0.0.1 until it is dropped.
pub struct TestRegistry {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for TestRegistry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl TestRegistry {
    pub async fn start(handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), handler).await
    }

    pub async fn start_at(address: SocketAddr, handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener = socket.listen(64).unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (handler, log) = (Arc::new(handler) as Arc<Handler>, Arc::clone(&seen));
        let task = tokio::spawn(async move {
            // Connections end with the registry: a set aborts its tasks when it is dropped.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (handler, log) = (Arc::clone(&handler), Arc::clone(&log));
                connections.spawn(async move { serve(stream, &*handler, &log).await });
            }
        });
        Self { address, seen, task }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub fn count(&self, part: &str) -> usize {
        self.seen().iter().filter(|seen| seen.target.contains(part)).count()
    }

    pub fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }
}

async fn serve(mut stream: TcpStream, handler: &Handler, log: &Mutex<Vec<Seen>>) -> Option<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.ok()?);
            // A TLS hello: we do not speak it.
            if head[0] == 0x16 {
                return None;
            }
        }
        let head = String::from_utf8(head).ok()?;
        let mut lines = head.split("\r\n");
        let mut first = lines.next()?.split(' ');
        let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
        let headers: HashMap<_, _> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.ok()?;
        let seen = Seen { method, target, headers, body: String::from_utf8(body).ok()? };
        log.lock().unwrap().push(seen.clone());
        let reply = handler(&seen);
        let mut head = format!("HTTP/1.1 {} X\r\n", reply.status);
        for (name, value) in &reply.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let (length, bytes) = match &reply.body {
            Body::Full(bytes) => (Some(bytes.len()), bytes.as_slice()),
            Body::Truncated { declared, bytes } | Body::Stalled { declared, bytes } => (Some(*declared), &**bytes),
            Body::Slow { bytes, .. } => (Some(bytes.len()), &b""[..]),
            Body::Endless => (None, &b""[..]),
        };
        head.push_str(&length.map_or("transfer-encoding: chunked\r\n\r\n".to_owned(), |length| {
            format!("content-length: {length}\r\n\r\n")
        }));
        stream.write_all(head.as_bytes()).await.ok()?;
        stream.write_all(bytes).await.ok()?;
        match reply.body {
            Body::Full(_) => {}
            Body::Truncated { .. } => return None,
            Body::Stalled { .. } => tokio::time::sleep(Duration::from_secs(600)).await,
            Body::Slow { bytes, piece, pause } => {
                for piece in bytes.chunks(piece) {
                    stream.write_all(piece).await.ok()?;
                    tokio::time::sleep(pause).await;
                }
            }
            Body::Endless => loop {
                let chunk = [&b"4000\r\n"[..], &[7; 0x4000], b"\r\n"].concat();
                stream.write_all(&chunk).await.ok()?;
            },
        }
    }
}

pub fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(&Sha256::digest(bytes).into())
}

/// An image of one layer, ready to be served.
#[derive(Clone)]
pub struct TestImage {
    pub layer: Vec<u8>,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
}

pub fn descriptor(media_type: &str, bytes: &[u8]) -> String {
    format!(r#"{{"mediaType":"{media_type}","digest":"{}","size":{}}}"#, digest_of(bytes), bytes.len())
}

impl TestImage {
    /// `length` bytes that do not repeat.
    pub fn of_size(length: usize) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut layer = Vec::with_capacity(length + 8);
        while layer.len() < length {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            layer.extend_from_slice(&state.to_le_bytes());
        }
        layer.truncate(length);
        Self::of_layer(layer)
    }

    pub fn of_layer(layer: Vec<u8>) -> Self {
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
            digest_of(&layer)
        )
        .into_bytes();
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{},"layers":[{}]}}"#,
            descriptor("application/vnd.oci.image.config.v1+json", &config),
            descriptor(OCI_LAYER, &layer)
        )
        .into_bytes();
        Self { layer, config, manifest }
    }

    /// Serves manifest (under any tag and its digest) and blobs, all of repository `app`.
    pub fn reply(&self, seen: &Seen) -> Reply {
        let is = |bytes: &[u8]| seen.target.ends_with(digest_of(bytes).as_str());
        if seen.target == "/v2/" {
            Reply::new(200, "{}")
        } else if seen.target.starts_with("/v2/app/manifests/") {
            Reply::new(200, self.manifest.clone()).with("Content-Type", OCI_MANIFEST)
        } else if is(&self.config) {
            Reply::new(200, self.config.clone())
        } else if is(&self.layer) {
            Reply::new(200, self.layer.clone())
        } else {
            Reply::new(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#)
        }
    }
}

/// A client that reads no file of this machine but those of `directory`, and is impatient.
pub fn options(directory: &Path) -> ClientOptions {
    ClientOptions {
        registries: RegistriesOptions {
            main_files: vec![directory.join("registries.conf")],
            drop_in_directory: Some(directory.join("registries.conf.d")),
            alias_cache: None,
            short_name_mode: None,
        },
        certificate_directories: vec![directory.join("certs.d")],
        user_agent: "image-pull-test".to_owned(),
        timeouts: Timeouts {
            connect: Duration::from_secs(5),
            answer: Duration::from_secs(2),
            stall: Duration::from_millis(300),
            progress: None,
        },
        retry: RetryPolicy {
            attempts: 4,
            first_delay: Duration::from_millis(10),
            longest_delay: Duration::from_millis(50),
            longest_retry_after: Duration::from_secs(2),
        },
        proxy: image_pull::ProxyOptions::default(),
        loopback: LoopbackTrust::Insecure,
        partial: None,
    }
}

pub fn client() -> Client {
    Client::new(&options(Path::new("/nonexistent"))).unwrap().0
}

pub fn amd64() -> Platform {
    Platform { os: "linux".into(), architecture: "amd64".into(), variant: String::new() }
}

pub async fn resolve(client: &Client, name: &str) -> Result<ResolvedImage, ResolveError> {
    resolve_as(client, name, &Credentials::Anonymous).await
}

pub async fn resolve_as(client: &Client, name: &str, credentials: &Credentials) -> Result<ResolvedImage, ResolveError> {
    client.resolve(&Source::parse(name).unwrap(), credentials, &amd64()).await
}

/// Everything a stream yields, and how it ended.
pub async fn drain(mut stream: BlobStream) -> (Vec<u8>, Result<(), BlobError>) {
    let mut bytes = Vec::new();
    loop {
        match stream.next_chunk().await {
            None => return (bytes, Ok(())),
            Some(Ok(chunk)) => {
                bytes.extend_from_slice(&Bytes::clone(&chunk));
                assert_eq!(stream.progress().bytes(), bytes.len() as u64);
                assert!(bytes.len() as u64 <= stream.size(), "more than was declared");
            }
            Some(Err(error)) => {
                assert!(stream.next_chunk().await.is_none(), "an error is the last item");
                return (bytes, Err(error));
            }
        }
    }
}
