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

/// The payload of the next message.
async fn receive(stream: &mut TcpStream) -> Vec<u8> {
    let mut head = [0; 2];
    tokio::time::timeout(LIMIT, stream.read_exact(&mut head)).await.expect("comes").expect("comes");
    let length = match head[1] {
        126 => usize::from(stream.read_u16().await.expect("comes")),
        short => usize::from(short),
    };
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await.expect("comes");
    payload
}

/// A frame with a mask of zeros, of this kind.
fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("is short");
    [&[0x80 | kind, 0x80 | length, 0, 0, 0, 0], payload].concat()
}

/// A session whose client asks for a protocol: what it says, hears, and is told at the end.
async fn speak(streaming: &Streaming, protocol: &str, kind: u8, [sent, back, end]: [&[u8]; 3]) {
    let chosen = protocol.rsplit(", ").next().filter(|name| !name.is_empty());
    let named = if protocol.is_empty() { String::new() } else { format!("Sec-WebSocket-Protocol: {protocol}\r\n") };
    let plain = WEBSOCKET.split("Sec-WebSocket-Protocol").next().expect("has a beginning").to_owned();
    let (mut stream, head) = ask(&exec_url(streaming, 100), &(plain + &named)).await;
    let told = head.lines().find_map(|line| line.strip_prefix("sec-websocket-protocol: "));
    assert_eq!(told, chosen, "{protocol}: {head}");
    assert_eq!(receive(&mut stream).await.len(), 1, "{protocol}: a greeting");
    stream.write_all(&frame(9, b"beat")).await.expect("sends");
    assert_eq!(receive(&mut stream).await, b"beat", "{protocol}: the answer to a ping");
    stream.write_all(&frame(kind, sent)).await.expect("sends");
    assert_eq!(receive(&mut stream).await, back, "{protocol}");
    let said = receive(&mut stream).await;
    assert!(said.starts_with(end), "{protocol}: {}", said.escape_ascii());
}

#[tokio::test]
async fn channels_are_bytes_or_text_as_the_client_asks() {
    let (streaming, _) = start().await;
    let (text, binary) = (1, 2);
    let sessions = [
        ("v5.channel.k8s.io", binary, [&b"\0hi"[..], &b"\x01hi"[..], &b"\x03{"[..]]),
        ("v4.channel.k8s.io", binary, [b"\0hi", b"\x01hi", b"\x03{"]),
        ("channel.k8s.io", binary, [b"\0hi", b"\x01hi", b"\x03command terminated"]),
        ("", binary, [b"\0hi", b"\x01hi", b"\x03command terminated"]),
        ("v4.base64.channel.k8s.io", text, [b"0aGk=", b"1aGk=", b"3eyJ"]),
        ("base64.channel.k8s.io", text, [b"0aGk=", b"1aGk=", b"3Y29tbWFuZC"]),
        ("v9.channel.k8s.io, v4.base64.channel.k8s.io", text, [b"0aGk=", b"1aGk=", b"3eyJ"]),
    ];
    // Their input stays open, so that each waits for children of its program.
    let sessions = sessions.map(|(protocol, kind, words)| speak(&streaming, protocol, kind, words));
    futures_util::future::join_all(sessions).await;
}

#[tokio::test]
async fn frames_that_break_the_rules_end_the_session_with_the_reason() {
    let (streaming, running) = start().await;
    for (bytes, code) in [
        (&[0x82, 3, 0, 1, 2, 3][..], 1002_u16),
        (&[0xc2, 0x80, 0, 0, 0, 0], 1002),
        (&[0x80, 0x80, 0, 0, 0, 0], 1002),
        (&[0x82, 0xff, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0], 1009),
    ] {
        let (mut stream, _) = ask(&exec_url(&streaming, 60_000), WEBSOCKET).await;
        stream.write_all(bytes).await.expect("sends");
        let mut all = Vec::new();
        tokio::time::timeout(LIMIT, stream.read_to_end(&mut all)).await.expect("ends").expect("ends well");
        assert!(all.ends_with(&[&[0x88, 2][..], &code.to_be_bytes()].concat()), "{bytes:?}: {all:?}");
    }
    assert_eq!(running.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn ports_are_forwarded_over_channels_and_through_a_tunnel() {
    let (streaming, _) = start().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("is bound").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = stream.split();
                tokio::io::copy(&mut reader, &mut writer).await
            });
        }
    });
    let prepare = |ports: &[u16]| {
        let request = streaming::PortForwardRequest { sandbox: "s".to_owned(), ports: ports.to_vec() };
        streaming.port_forward_url(request).expect("is prepared")
    };
    let protocol = |name: &str| WEBSOCKET.replace("v5.channel.k8s.io", name);

    // Two ports: each has a channel for bytes and one for errors, and both begin with its number.
    let (mut stream, head) = ask(&prepare(&[port, port]), &protocol("v4.channel.k8s.io")).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    for channel in 0..4 {
        assert_eq!(receive(&mut stream).await, [&[channel][..], &port.to_le_bytes()].concat());
    }
    for (channel, text) in [(2, &b"second"[..]), (0, b"first")] {
        stream.write_all(&message(channel, text)).await.expect("sends");
        assert_eq!(receive(&mut stream).await, [&[channel], text].concat());
    }

    // SPDY within messages, cut anywhere.
    let (mut stream, head) = ask(&prepare(&[]), &protocol("SPDY/3.1+portforward.k8s.io")).await;
    assert!(head.contains("sec-websocket-protocol: SPDY/3.1+portforward.k8s.io"), "{head}");
    let mut frames = Vec::new();
    for (id, kind) in [(1_u32, "error"), (3, "data")] {
        frames.extend(syn_stream(id, &[("streamtype", kind), ("port", &port.to_string()), ("requestid", "0")]));
    }
    frames.extend([&[0, 0, 0, 3, 0, 0, 0, 5][..], b"hello"].concat());
    for piece in frames.chunks(7) {
        stream.write_all(&frame(2, piece)).await.expect("sends");
    }
    let mut heard = Vec::new();
    while !heard.ends_with(b"\0\0\0\x03\0\0\0\x05hello") {
        heard.extend(receive(&mut stream).await);
    }
}

/// Opens a stream; its headers are packed as they are.
fn syn_stream(id: u32, headers: &[(&str, &str)]) -> Vec<u8> {
    let word = |length: usize| u32::try_from(length).expect("short").to_be_bytes();
    let mut list = word(headers.len()).to_vec();
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        list.extend(word(text.len()));
        list.extend_from_slice(text.as_bytes());
    }
    let length = u16::try_from(list.len()).expect("short");
    // The first block begins with the head of zlib.
    let zlib: &[u8] = if id == 1 { &[0x78, 0x01, 0] } else { &[0] };
    let body = [&id.to_be_bytes()[..], &[0; 6], zlib, &length.to_le_bytes(), &(!length).to_le_bytes(), &list].concat();
    [&[0x80, 3, 0, 1][..], &word(body.len()), &body].concat()
}
