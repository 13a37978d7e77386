//! The server over real sockets, with programs that are a pipe each.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Echo, LIMIT, exec_url};
use streaming::Streaming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn start() -> (Arc<Streaming>, Arc<AtomicUsize>) {
    let backend = Echo::default();
    let running = Arc::clone(&backend.running);
    (common::serve(backend, None).await, running)
}

const WEBSOCKET: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n";

/// Sends a request; the connection, and the answer's head.
async fn ask(url: &str, headers: &str) -> (TcpStream, String) {
    let rest = url.strip_prefix("http://").expect("is plain");
    let (host, path) = rest.split_once('/').expect("has a path");
    let mut stream = TcpStream::connect(host).await.expect("connects");
    let request = format!("POST /{path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.expect("sends");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tokio::time::timeout(LIMIT, stream.read_u8()).await.expect("answers").expect("answers"));
    }
    (stream, String::from_utf8(head).expect("is text"))
}

/// A client's message with a mask of zeros, which changes nothing.
fn message(channel: u8, text: &[u8]) -> Vec<u8> {
    let length = u8::try_from(text.len() + 1).expect("is short");
    [&[0x82, 0x80 | length, 0, 0, 0, 0, channel], text].concat()
}

#[tokio::test]
async fn a_session_echoes_and_tells_its_exit_code_and_its_token_is_used_up() {
    let (streaming, running) = start().await;
    let url = exec_url(&streaming, 300);
    let (mut stream, head) = ask(&url, WEBSOCKET).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert!(head.to_lowercase().contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
    stream.write_all(&message(0, b"hello")).await.expect("sends");
    stream.write_all(&message(255, &[0])).await.expect("ends standard input");
    let mut all = Vec::new();
    tokio::time::timeout(LIMIT, stream.read_to_end(&mut all)).await.expect("ends").expect("ends well");
    assert!(all.starts_with(b"\x82\x01\x01\x82\x06\x01hello\x82"), "a greeting, the echo: {all:?}");
    let text = String::from_utf8_lossy(&all);
    assert!(text.contains(r#""reason":"NonZeroExitCode""#) && text.contains(r#""message":"3""#), "{text}");
    assert!(all.ends_with(b"\x88\x02\x03\xe8"), "closed as intended");
    assert_eq!(running.load(Ordering::SeqCst), 0);
    let (_, head) = ask(&url, WEBSOCKET).await;
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");
}

#[tokio::test]
async fn what_is_no_session_is_refused() {
    let (streaming, running) = start().await;
    let base = streaming.base_url().to_owned();
    let other_kind = exec_url(&streaming, 1).replace("/exec/", "/attach/");
    for (url, headers, expected) in [
        (format!("{base}/exec/AAAAAAAA"), WEBSOCKET, "404"),
        (format!("{base}/"), WEBSOCKET, "404"),
        (other_kind, WEBSOCKET, "404"),
        (exec_url(&streaming, 1), "", "400"),
        (
            exec_url(&streaming, 1),
            "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v9\r\n",
            "403",
        ),
    ] {
        let (_, head) = ask(&url, headers).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {expected}")), "{url}: {head}");
    }
    assert_eq!(running.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_program_with_it() {
    let (streaming, running) = start().await;
    for is_stalled in [false, true] {
        let (mut stream, _) = ask(&exec_url(&streaming, 60_000), WEBSOCKET).await;
        while running.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if is_stalled {
            // Its own echo is not read, so that in the end nothing moves either way.
            let piece = message(0, &[7; 100]).repeat(1000);
            while let Ok(result) = tokio::time::timeout(Duration::from_millis(500), stream.write_all(&piece)).await {
                result.expect("is there");
            }
        }
        drop(stream);
        let begun = Instant::now();
        while running.load(Ordering::SeqCst) > 0 {
            assert!(begun.elapsed() < Duration::from_secs(5), "still running, stalled: {is_stalled}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
