//! The protocol of exec and attach: which streams there are, in each version and on each carrier.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::backend::Streams;
use crate::queue::{Input, Room};
use crate::spdy::{self, Opened};
use crate::status::Outcome;
use crate::stream::{Gone, Outbox, Output};
use crate::websocket::{self, CloseSignal, Coding};

/// How long a client may take to open its streams. Source: CRI-O.
const OPEN_LIMIT: Duration = Duration::from_secs(30);

/// Versions of the protocol. 2 fixed half-closing, 3 brought resizing, 4 the status as JSON, 5 the close signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    V1,
    V2,
    V3,
    V4,
    V5,
}

/// Versions over SPDY, which ends streams itself and so has no use for version 5.
const SPDY: &[(&str, Version)] = &[
    ("v4.channel.k8s.io", Version::V4),
    ("v3.channel.k8s.io", Version::V3),
    ("v2.channel.k8s.io", Version::V2),
    ("channel.k8s.io", Version::V1),
];

/// Versions over WebSocket. Without any name a client speaks the first one.
const WEBSOCKET: &[(&str, Version, Coding)] = &[
    ("v5.channel.k8s.io", Version::V5, Coding::Binary),
    ("v4.channel.k8s.io", Version::V4, Coding::Binary),
    ("v4.base64.channel.k8s.io", Version::V4, Coding::Base64),
    ("v3.channel.k8s.io", Version::V3, Coding::Binary),
    ("v3.base64.channel.k8s.io", Version::V3, Coding::Base64),
    ("v2.channel.k8s.io", Version::V2, Coding::Binary),
    ("v2.base64.channel.k8s.io", Version::V2, Coding::Base64),
    ("channel.k8s.io", Version::V1, Coding::Binary),
    ("base64.channel.k8s.io", Version::V1, Coding::Base64),
];

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// The first of the client's names that we know. No name at all is the oldest version, and is not answered.
pub(crate) fn choose_spdy(offered: &[String]) -> Option<(Option<&'static str>, Version)> {
    if offered.is_empty() {
        return Some((None, Version::V1));
    }
    let known = |name: &String| SPDY.iter().find(|(known, _)| known == name);
    offered.iter().find_map(known).map(|(name, version)| (Some(*name), *version))
}

/// As [`choose_spdy`], for WebSocket.
pub(crate) fn choose_websocket(offered: &[String]) -> Option<(Option<&'static str>, Version, Coding)> {
    if offered.is_empty() {
        return Some((None, Version::V1, Coding::Binary));
    }
    let known = |name: &String| WEBSOCKET.iter().find(|(known, ..)| known == name);
    offered.iter().find_map(known).map(|(name, version, coding)| (Some(*name), *version, *coding))
}

/// The streams of one session.
#[derive(Debug)]
pub(crate) struct Channels {
    pub(crate) stdin: Option<Input>,
    pub(crate) stdout: Option<Output>,
    pub(crate) stderr: Option<Output>,
    pub(crate) resize: Option<Input>,
    error: Output,
    version: Version,
}

impl Channels {
    /// Tells how the session ended; nothing follows.
    pub(crate) async fn end(self, outcome: &Outcome) -> Result<(), Gone> {
        for output in [self.stdout, self.stderr].into_iter().flatten() {
            output.finish().await?;
        }
        let message = outcome.message(self.version);
        if !message.is_empty() {
            self.error.write(&message).await?;
        }
        self.error.finish().await
    }

    /// The channels of a WebSocket connection, and the connection's state.
    pub(crate) fn of_websocket(
        outbox: Outbox,
        room: &Arc<Room>,
        streams: Streams,
        version: Version,
        coding: Coding,
    ) -> (websocket::Connection, Self) {
        let close_signal = if version >= Version::V5 { CloseSignal::Known } else { CloseSignal::Unknown };
        let mut connection = websocket::Connection::new(outbox, room, coding, close_signal);
        let channels = Self {
            stdin: streams.has_stdin.then(|| connection.input(STDIN)),
            stdout: streams.has_stdout.then(|| connection.output(STDOUT)),
            stderr: (streams.has_stderr && !streams.has_terminal).then(|| connection.output(STDERR)),
            resize: streams.has_terminal.then(|| connection.input(RESIZE)),
            error: connection.output(ERROR),
            version,
        };
        (connection, channels)
    }

    /// Tells a WebSocket client that the session is there, by an empty message. Source: the kubelet does this.
    pub(crate) async fn greet(&self) -> Result<(), Gone> {
        self.stdout.as_ref().or(self.stderr.as_ref()).unwrap_or(&self.error).write(b"").await
    }

    /// Waits for the client to open the streams that were agreed on.
    pub(crate) async fn of_spdy(
        mut opened: mpsc::Receiver<Opened>,
        streams: Streams,
        version: Version,
    ) -> io::Result<Self> {
        tokio::time::timeout(OPEN_LIMIT, Self::gather(&mut opened, streams, version))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the client did not open its streams"))?
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    async fn gather(opened: &mut mpsc::Receiver<Opened>, streams: Streams, version: Version) -> Option<Self> {
        let has_resize = streams.has_terminal && version >= Version::V3;
        let has_stderr = streams.has_stderr && !streams.has_terminal;
        let (mut stdin, mut stdout, mut stderr, mut error, mut resize) = (None, None, None, None, None);
        loop {
            let is_complete = error.is_some()
                && stdin.is_some() == streams.has_stdin
                && stdout.is_some() == streams.has_stdout
                && stderr.is_some() == has_stderr
                && resize.is_some() == has_resize;
            if is_complete {
                return error.map(|error| Self { stdin, stdout, stderr, resize, error, version });
            }
            let Opened { headers, input, output, .. } = opened.recv().await?;
            // The half that is not used is forgotten, not finished: clients take the end of ours for a remote side that
            // wants no more input, and end theirs.
            match spdy::find(&headers, "streamtype") {
                Some("error") => error = Some(output),
                Some("stdin") if streams.has_stdin => stdin = Some(input),
                Some("stdout") if streams.has_stdout => stdout = Some(output),
                Some("stderr") if has_stderr => stderr = Some(output),
                Some("resize") if has_resize => resize = Some(input),
                other => tracing::debug!(kind = other, "a stream that was not asked for"),
            }
        }
    }
}

/// Sizes of a terminal out of a stream of JSON objects.
#[derive(Debug, Default)]
pub(crate) struct Sizes(Vec<u8>);

/// A size is some 30 bytes; more that make no object are no sizes.
const SIZE_MAX_BYTES: usize = 1024;

impl Sizes {
    /// The last size (width, height) in what has arrived, if there is a whole one. `Err` when it is not JSON.
    pub(crate) fn add(&mut self, bytes: &[u8]) -> Result<Option<(u16, u16)>, serde_json::Error> {
        self.0.extend_from_slice(bytes);
        let mut last = None;
        let mut objects = serde_json::Deserializer::from_slice(&self.0).into_iter::<serde_json::Value>();
        let mut used = 0;
        loop {
            match objects.next() {
                Some(Ok(size)) => {
                    used = objects.byte_offset();
                    let side = |name: &str| size.get(name)?.as_u64().and_then(|side| u16::try_from(side).ok());
                    last = side("Width").zip(side("Height")).or(last);
                }
                Some(Err(error)) if error.is_eof() && self.0.len() - used <= SIZE_MAX_BYTES => break,
                Some(Err(error)) => return Err(error),
                None => {
                    used = self.0.len();
                    break;
                }
            }
        }
        self.0.drain(..used);
        Ok(last)
    }
}

/// Reads bytes as a client's resize stream would be, in two pieces. For fuzzing.
pub fn fuzz_sizes(bytes: &[u8]) {
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let mut sizes = Sizes::default();
    let _ = sizes.add(first).and_then(|_| sizes.add(second));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_first_known_protocol_is_chosen() {
        let offer = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        for (names, spdy, websocket) in [
            (&[][..], Some((None, Version::V1)), Some((None, Version::V1, Coding::Binary))),
            (
                &["v9", "v4.channel.k8s.io", "channel.k8s.io"],
                { Some((Some("v4.channel.k8s.io"), Version::V4)) },
                Some((Some("v4.channel.k8s.io"), Version::V4, Coding::Binary)),
            ),
            (
                &["v5.channel.k8s.io", "v3.channel.k8s.io"],
                { Some((Some("v3.channel.k8s.io"), Version::V3)) },
                Some((Some("v5.channel.k8s.io"), Version::V5, Coding::Binary)),
            ),
            (&["base64.channel.k8s.io"], None, Some((Some("base64.channel.k8s.io"), Version::V1, Coding::Base64))),
            (&["portforward.k8s.io"], None, None),
        ] {
            assert_eq!(choose_spdy(&offer(names)), spdy, "{names:?}");
            assert_eq!(choose_websocket(&offer(names)), websocket, "{names:?}");
        }
    }

    #[test]
    fn sizes_are_read_whole_and_the_last_one_counts() {
        let mut sizes = Sizes::default();
        for (bytes, expected) in [
            (&br#"{"Width":80,"Height":24}"#[..], Some((80, 24))),
            (br#"{"Width":81,"He"#, None),
            (br#"ight":25}{"Width":82,"Height":26}"#, Some((82, 26))),
            (b"\n\n", None),
            (br#"{"Width":70000,"Height":26}"#, None),
        ] {
            assert_eq!(sizes.add(bytes).expect("is JSON"), expected);
        }
        assert!(sizes.add(b"}").is_err());
        assert!(Sizes::default().add(&[b'['; 2000]).is_err(), "no end of it");
    }
}
