//! A registry that lies: plain sockets that answer what a scenario says, whatever HTTP or a digest would have.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use crate::image::Image;
use crate::world::World;

/// A client that neither reads nor hangs up is given up on.
const CLIENT_LIMIT: Duration = Duration::from_secs(30);
/// What an endless stream sends at a time.
const CHUNK_BYTES: usize = 64 << 10;

/// What is sent for a layer.
#[derive(Debug, Clone)]
pub enum Lie {
    /// These bytes, whatever the manifest says.
    Bytes(Vec<u8>),
    /// The length of the truth, but only its first half, then silence and the end of the connection.
    HalfOnly,
    /// The beginning of the truth and then zeros for ever, without a length.
    Endless,
    /// No lie at all, after this long.
    Late(Duration),
    /// The truth, in ten parts with this long between them.
    InParts(Duration),
}

/// A registry with one image.
#[derive(Debug)]
pub struct Liar {
    host: String,
    is_ending: Arc<AtomicBool>,
    layer_requests: Arc<AtomicU32>,
}

impl Liar {
    /// Listens in the node's network. The manifest is served as it is, under any name; layers as `lie` says.
    pub fn start(world: &World, port: u16, image: Image, lie: Lie) -> Self {
        let host = format!("127.0.0.1:{port}");
        let listener = world.in_network(|| TcpListener::bind(&host)).expect("listen");
        let (is_ending, layer_requests) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (ending, requests) = (Arc::clone(&is_ending), Arc::clone(&layer_requests));
        std::thread::spawn(move || {
            let shared = Arc::new((image, lie));
            for stream in listener.incoming().flatten() {
                if ending.load(Ordering::Relaxed) {
                    return;
                }
                let (shared, ending, requests) = (Arc::clone(&shared), Arc::clone(&ending), Arc::clone(&requests));
                // A client that hangs up is the end of the answer, not of the test.
                std::thread::spawn(move || drop(answer(stream, &shared.0, &shared.1, &ending, &requests)));
            }
        });
        Self { host, is_ending, layer_requests }
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// How often a layer was asked for.
    #[must_use]
    pub fn layer_requests(&self) -> u32 {
        self.layer_requests.load(Ordering::Relaxed)
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        // The listening thread notices with the next connection, or ends with the process.
        self.is_ending.store(true, Ordering::Relaxed);
    }
}

fn answer(
    mut stream: TcpStream,
    image: &Image,
    lie: &Lie,
    is_ending: &AtomicBool,
    layer_requests: &AtomicU32,
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(CLIENT_LIMIT))?;
    stream.set_write_timeout(Some(CLIENT_LIMIT))?;
    let mut request = String::new();
    let mut reader = BufReader::new(stream.try_clone()?);
    reader.read_line(&mut request)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let target = request.split(' ').nth(1).unwrap_or_default();
    let mut send = |kind: &str, length: Option<usize>, body: &[u8]| {
        let length = length.map(|length| format!("Content-Length: {length}\r\n")).unwrap_or_default();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{length}Connection: close\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)
    };
    if target.contains("/manifests/") {
        return send(image.format.manifest_type(), Some(image.manifest.len()), &image.manifest);
    }
    if !target.contains("/blobs/") {
        return send("application/json", Some(2), b"{}");
    }
    if target.ends_with(&crate::image::digest(&image.config)) {
        return send("application/octet-stream", Some(image.config.len()), &image.config);
    }
    layer_requests.fetch_add(1, Ordering::Relaxed);
    let layer = image.layers.iter().find(|layer| target.ends_with(&crate::image::digest(layer)));
    let layer = layer.map_or(&[][..], Vec::as_slice);
    let kind = "application/octet-stream";
    match lie {
        Lie::Bytes(bytes) => send(kind, Some(bytes.len()), bytes),
        Lie::HalfOnly => send(kind, Some(layer.len()), &layer[..layer.len() / 2]),
        Lie::Late(pause) => {
            std::thread::sleep(*pause);
            send(kind, Some(layer.len()), layer)
        }
        Lie::InParts(pause) => {
            send(kind, Some(layer.len()), &[])?;
            for part in layer.chunks(layer.len().div_ceil(10).max(1)) {
                std::thread::sleep(*pause);
                stream.write_all(part)?;
            }
            Ok(())
        }
        Lie::Endless => {
            send(kind, None, layer)?;
            let zeros = vec![0; CHUNK_BYTES];
            while !is_ending.load(Ordering::Relaxed) {
                stream.write_all(&zeros)?;
            }
            Ok(())
        }
    }
}
