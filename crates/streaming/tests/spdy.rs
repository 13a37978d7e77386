//! SPDY sessions, as `kubectl` and others that keep to the protocol more closely have them.

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use common::spdy::{Client, Frame, GO_AWAY, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE};
use common::{Echo, exec_url, serve, terminal_url};
use streaming::PortForwardRequest;

const ERROR: u32 = 1;
const STDIN: u32 = 3;
const STDOUT: u32 = 5;
const RESIZE: u32 = 7;
const V4: &str = "v4.channel.k8s.io";

fn open_streams(client: &mut Client) {
    for (stream, kind) in [(ERROR, "error"), (STDIN, "stdin"), (STDOUT, "stdout")] {
        client.open(stream, &[("streamType", kind)]);
    }
}

fn session(url: &str) -> Client {
    let mut client = Client::connect(url, V4).expect("a session");
    open_streams(&mut client);
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn each_version_tells_the_end_in_its_own_way() {
    let streaming = serve(Echo::default(), None).await;
    for (protocol, end) in [
        ("", "command terminated with non-zero exit code: exit status 3"),
        ("channel.k8s.io", "command terminated with non-zero exit code: exit status 3"),
        ("v2.channel.k8s.io", "command terminated with non-zero exit code: exit status 3"),
        ("v3.channel.k8s.io", "command terminated with non-zero exit code: exit status 3"),
        (V4, r#""causes":[{"message":"3","reason":"ExitCode"}]"#),
        ("v5.channel.k8s.io, v4.channel.k8s.io", r#""reason":"NonZeroExitCode""#),
    ] {
        let mut client = Client::connect(&exec_url(&streaming, 100), protocol).expect("a session");
        open_streams(&mut client);
        client.data(STDIN, false, b"hello");
        client.data(STDIN, true, b" there");
        let streams = client.collect(&[STDOUT, ERROR]);
        assert_eq!(streams[0], b"hello there", "{protocol}");
        let said = String::from_utf8_lossy(&streams[1]).into_owned();
        assert!(said.contains(end), "{protocol}: {said}");
        assert_eq!(client.next_control(GO_AWAY).len(), 8, "{protocol}");
    }
    let refusal = Client::connect(&exec_url(&streaming, 100), "v5.channel.k8s.io").err().expect("not over SPDY");
    assert!(refusal.starts_with("HTTP/1.1 403"), "{refusal}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_keeps_to_windows_is_granted_what_was_taken_and_not_overrun() {
    let streaming = serve(Echo::default(), None).await;
    let mut client = Client::connect(&exec_url(&streaming, 3000), V4).expect("a session");
    let settings = client.next_control(SETTINGS);
    assert_eq!(settings[4..8], [0, 0, 0, 7], "the initial window");
    let mut window = u32::from_be_bytes(settings[8..12].try_into().expect("a word"));
    // Ours is small; it binds from then on.
    client.control(SETTINGS, 0, &[[0, 0, 0, 1], [0, 0, 0, 7], 1000_u32.to_be_bytes()].concat());
    open_streams(&mut client);
    let (total, mut sent, mut seen, mut granted) = (600_000_usize, 0, 0, 1000);
    while seen < total {
        while sent < total && window > 0 {
            let now = usize::try_from(window).expect("fits").min(16_384).min(total - sent);
            client.data(STDIN, false, &vec![7; now]);
            sent += now;
            window -= u32::try_from(now).expect("fits");
        }
        match client.next().expect("goes on") {
            Frame::Data { stream: STDOUT, bytes, .. } => {
                seen += bytes.len();
                assert!(seen <= granted, "{seen} bytes came, {granted} were granted");
                if seen == granted {
                    for stream in [STDOUT, 0] {
                        client.control(WINDOW_UPDATE, 0, &[stream.to_be_bytes(), 50_000_u32.to_be_bytes()].concat());
                    }
                    granted += 50_000;
                }
            }
            Frame::Control { kind: WINDOW_UPDATE, body } if body[..4] == STDIN.to_be_bytes() => {
                window += u32::from_be_bytes(body[4..8].try_into().expect("a word"));
            }
            _ => {}
        }
    }
    assert_eq!(sent, total);
}

#[tokio::test(flavor = "multi_thread")]
async fn control_frames_do_what_they_say() {
    let echo = Echo::default();
    let streaming = serve(echo.clone(), None).await;
    let mut client = session(&exec_url(&streaming, 60_000));
    client.control(PING, 0, &77_u32.to_be_bytes());
    assert_eq!(client.next_control(PING), 77_u32.to_be_bytes());
    // A stream that nobody has opened, and one that only we may open.
    client.data(99, false, b"lost");
    assert_eq!(client.next_control(RST_STREAM), [0, 0, 0, 99, 0, 0, 0, 2]);
    client.open(100, &[("streamType", "stdout")]);
    assert_eq!(client.next_control(RST_STREAM), [0, 0, 0, 100, 0, 0, 0, 1]);
    client.data(STDIN, false, b"still here");
    while client.next() != Some(Frame::Data { stream: STDOUT, is_last: false, bytes: b"still here".to_vec() }) {}
    // Broken off, an input is at its end, and so is what echoes it; the program runs on.
    client.control(RST_STREAM, 0, &[STDIN.to_be_bytes(), 5_u32.to_be_bytes()].concat());
    assert_eq!(echo.running.load(std::sync::atomic::Ordering::SeqCst), 1);
    client.control(GO_AWAY, 0, &[0; 8]);
    while client.next().is_some() {}
    assert_eq!(echo.running.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_are_none_end_the_session() {
    let echo = Echo::default();
    let streaming = serve(echo.clone(), None).await;
    let bad_block = [&STDOUT.to_be_bytes()[..], &[0; 6], b"garbage"].concat();
    for frame in [
        // Another version; longer than control frames are; shorter than this one must be.
        &[0x80, 2, 0, 1, 0, 0, 0, 0][..],
        &[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff],
        &[0x80, 3, 0, 9, 0, 0, 0, 2, 0, 0],
        &[&[0x80, 3, 0, 1, 0, 0, 0, 17][..], &bad_block].concat(),
    ] {
        let mut client = session(&exec_url(&streaming, 60_000));
        client.send(frame);
        let begun = Instant::now();
        while client.next().is_some() {}
        assert!(begun.elapsed() < Duration::from_secs(5), "{frame:?}");
    }
    assert_eq!(echo.running.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn terminals_get_the_clients_sizes_since_version_3() {
    let echo = Echo::default();
    let streaming = serve(echo.clone(), None).await;
    let mut client = session(&terminal_url(&streaming, 60_000));
    client.open(RESIZE, &[("streamType", "resize")]);
    client.data(RESIZE, false, br#"{"Width":80,"Hei"#);
    client.data(RESIZE, false, br#"ght":24}"#);
    let begun = Instant::now();
    while echo.sizes.lock().expect("is whole").last() != Some(&(80, 24)) {
        assert!(begun.elapsed() < common::LIMIT);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Many at once are as good as the last one.
    for width in 1..2000_u16 {
        client.data(RESIZE, false, format!(r#"{{"Width":{width},"Height":9}}"#).as_bytes());
    }
    while echo.sizes.lock().expect("is whole").last() != Some(&(1999, 9)) {
        assert!(begun.elapsed() < common::LIMIT);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // What is no size is the end of sizes, not of the session.
    client.data(RESIZE, false, b"garbage");
    client.data(STDIN, false, b"on");
    while client.next() != Some(Frame::Data { stream: STDOUT, is_last: false, bytes: b"on".to_vec() }) {}
    // Version 2 has no sizes: its session begins without that stream.
    let mut client = Client::connect(&terminal_url(&streaming, 60_000), "v2.channel.k8s.io").expect("a session");
    open_streams(&mut client);
    client.data(STDIN, false, b"on");
    while client.next() != Some(Frame::Data { stream: STDOUT, is_last: false, bytes: b"on".to_vec() }) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn many_connections_are_forwarded_and_each_half_ends_by_itself() {
    const CONNECTIONS: u32 = 100;
    let streaming = serve(Echo::default(), None).await;
    // Hears everything to the end first, then answers: both halves of each connection end, one after the other.
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = listener.local_addr().expect("is bound").port();
    let server = std::thread::spawn(move || {
        let connections: Vec<_> = (0..CONNECTIONS).map(|_| listener.accept().expect("accepts").0).collect();
        for mut connection in connections {
            let mut heard = Vec::new();
            connection.read_to_end(&mut heard).expect("ends");
            connection.write_all(&heard).expect("is there");
        }
    });
    let request = PortForwardRequest { sandbox: "s".to_owned(), ports: Vec::new() };
    let url = streaming.port_forward_url(request).expect("is prepared");
    let mut client = Client::connect(&url, "portforward.k8s.io").expect("a session");
    let port = port.to_string();
    let stream = |number: u32| 4 * number + 3;
    for number in 0..CONNECTIONS {
        let id = number.to_string();
        client.open(stream(number) - 2, &[("streamType", "error"), ("port", &port), ("requestID", &id)]);
        client.open(stream(number), &[("streamType", "data"), ("port", &port), ("requestID", &id)]);
    }
    for number in 0..CONNECTIONS {
        client.data(stream(number), true, format!("connection {number}").as_bytes());
    }
    let streams: Vec<_> = (0..CONNECTIONS).flat_map(|number| [stream(number), stream(number) - 2]).collect();
    for (number, answer) in client.collect(&streams).chunks(2).enumerate() {
        assert_eq!(String::from_utf8_lossy(&answer[0]), format!("connection {number}"));
        assert_eq!(String::from_utf8_lossy(&answer[1]), "");
    }
    server.join().expect("ends well");

    // Nobody listens: the error stream says so, and the session goes on.
    let closed = TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("is bound").port().to_string();
    let (error, data) = (4 * CONNECTIONS + 1, 4 * CONNECTIONS + 3);
    client.open(error, &[("streamType", "error"), ("port", &closed), ("requestID", "x")]);
    client.open(data, &[("streamType", "data"), ("port", &closed), ("requestID", "x")]);
    let said = client.collect(&[error, data]).remove(0);
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(said.contains(&format!("failed to connect to localhost:{closed} inside namespace s")), "{said}");
    // A stream without a port is refused.
    client.open(data + 2, &[("streamType", "data")]);
    assert_eq!(client.next_control(RST_STREAM), [&(data + 2).to_be_bytes()[..], &[0, 0, 0, 5]].concat());
}
