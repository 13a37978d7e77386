//! Whether a client of this machine has closed a connection that is not being read.
//!
//! What a client wrote before it closed waits in its kernel for us to read on, and the notice of its end waits behind
//! that: a program that takes no input would hide its client's end for minutes. The kernel's table of connections shows
//! the client's side, as long as it is on this machine, which is where the kubelet is.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};

/// Both sides of a connection are in the table; a line has 150 bytes, so this is some ten thousand connections.
const LINES_MAX: usize = 16 * 1024;
/// The state of a side that has closed, while its last bytes are not taken. Source: Linux, `net/tcp_states.h`.
const FIN_WAIT1: &str = "04";

/// Whether the table shows that `client` has closed its connection to `server`. Blocking.
pub(crate) fn has_closed(client: SocketAddr, server: SocketAddr) -> io::Result<bool> {
    let table = if client.ip().to_canonical().is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" };
    let (client, server) = (written(client), written(server));
    for line in BufReader::new(File::open(table)?).lines().take(LINES_MAX) {
        if let Some(state) = state_of(&line?, &client, &server) {
            return Ok(state);
        }
    }
    Ok(false)
}

/// Whether the line, if it is the connection's, shows it closed.
fn state_of(line: &str, client: &str, server: &str) -> Option<bool> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let is_it = words.next()? == client && words.next()? == server;
    is_it.then_some(words.next()? == FIN_WAIT1)
}

/// An address as the table writes it: words as the machine holds them. Source: proc(5), /proc/net/tcp.
fn written(address: SocketAddr) -> String {
    let octets = match address.ip().to_canonical() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let words = octets.chunks_exact(4).map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    let words: String = words.map(|word| format!("{word:08X}")).collect();
    format!("{words}:{:04X}", address.port())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_close_behind_bytes_that_nobody_reads_is_seen() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let mut client = TcpStream::connect(listener.local_addr().expect("is bound")).expect("connects");
            let (server, _) = listener.accept().expect("accepts");
            let ends = (client.local_addr().expect("has one"), server.local_addr().expect("has one"));
            client.set_nonblocking(true).expect("is a socket");
            let piece = vec![0; 1 << 20];
            while client.write(&piece).is_ok() {}
            assert!(!has_closed(ends.0, ends.1).expect("reads"), "it is there");
            client.shutdown(Shutdown::Write).expect("closes");
            drop(client);
            let begun = Instant::now();
            while !has_closed(ends.0, ends.1).expect("reads") {
                assert!(begun.elapsed() < Duration::from_secs(5), "never seen");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    #[test]
    fn lines_of_others_say_nothing() {
        let line = "   0: 0100007F:C544 0100007F:8D29 04 003BB851:00000000 01:00000014 00000000     0        0 0";
        for (client, server, expected) in [
            ("0100007F:C544", "0100007F:8D29", Some(true)),
            ("0100007F:C545", "0100007F:8D29", None),
            ("0100007F:C544", "0100007F:8D28", None),
        ] {
            assert_eq!(state_of(line, client, server), expected);
        }
        assert_eq!(state_of(&line.replace(" 04 ", " 01 "), "0100007F:C544", "0100007F:8D29"), Some(false));
        assert_eq!(state_of("", "a", "b"), None);
    }
}
