//! Interfaces of network namespaces, as the kernel lists them for a process.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use domain::time::Timestamp;

/// Most bytes of a list of interfaces: some two thousand, more than a node with a thousand pods has.
const INTERFACES_MAX_BYTES: u64 = 256 << 10;
/// The interface every namespace has, which leads nowhere.
const LOOPBACK: &str = "lo";

/// Interfaces of a network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkStats {
    /// When they were read.
    pub at: Timestamp,
    /// In the kernel's order.
    pub interfaces: Vec<Interface>,
}

impl NetworkStats {
    /// The first that leads somewhere.
    #[must_use]
    pub fn default_interface(&self) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.name != LOOPBACK)
    }
}

/// Counters of one interface, since it was made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Interface {
    /// As seen in the namespace.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Errors in receiving.
    pub rx_errors: u64,
    /// Received and dropped.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Errors in sending.
    pub tx_errors: u64,
    /// Dropped instead of sent.
    pub tx_dropped: u64,
}

pub(super) fn read_interfaces(process: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(process.join("net/dev"))?.take(INTERFACES_MAX_BYTES).read_to_end(&mut text)?;
    Ok(text)
}

/// The interfaces a process sees, if it still is in the pinned namespace: no thread has to enter it. The process may
/// have ended or moved, and its number may be another's.
pub(super) fn read_interfaces_of(pid: i32, namespace: &Path) -> Option<Vec<u8>> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let identity = |path: &Path| std::fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    let text = read_interfaces(&process).ok()?;
    let pinned = identity(namespace)?;
    (identity(&process.join("ns/net"))? == pinned).then_some(text)
}

pub(super) fn read_interfaces_inside(namespace: &Path) -> io::Result<Vec<u8>> {
    let namespace = sys::namespace::open(namespace)?;
    sys::namespace::on_fresh_thread(namespace.as_fd(), || read_interfaces(Path::new("/proc/thread-self")))?
}

/// `/proc/net/dev`, proc(5): two lines of headings, then a name, a colon and sixteen numbers. Names are up to whoever
/// may change interfaces in the pod, so that they need not be UTF-8.
pub(super) fn parse_interfaces(text: &[u8]) -> Vec<Interface> {
    String::from_utf8_lossy(text)
        .lines()
        .filter_map(|line| {
            let (name, numbers) = line.split_once(':')?;
            let numbers: Vec<u64> = numbers.split_ascii_whitespace().map_while(|number| number.parse().ok()).collect();
            let [
                rx_bytes,
                rx_packets,
                rx_errors,
                rx_dropped,
                _,
                _,
                _,
                _,
                tx_bytes,
                tx_packets,
                tx_errors,
                tx_dropped,
                ..,
            ] = *numbers.as_slice()
            else {
                return None;
            };
            let name = name.trim().to_owned();
            Some(Interface {
                name,
                rx_bytes,
                rx_packets,
                rx_errors,
                rx_dropped,
                tx_bytes,
                tx_packets,
                tx_errors,
                tx_dropped,
            })
        })
        .collect()
}

/// Feeds arbitrary bytes to the parser of interface lists. Law: a line is one interface at the most.
pub fn fuzz_interfaces(bytes: &[u8]) {
    let lines = bytes.split(|byte| *byte == b'\n').count();
    assert!(parse_interfaces(bytes).len() <= lines, "no interface without a line");
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: &str = "Inter-|   Receive                                                |  Transmit\n \
        face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
        lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0\n  \
        eth0: 34476     475    1    2    0     0          0       439    15838     237    3    4    0     0       0          0\n";

    #[test]
    fn interfaces_are_read_from_the_kernel_s_table() {
        let interfaces = parse_interfaces(DEV.as_bytes());
        assert_eq!(interfaces.iter().map(|found| found.name.as_str()).collect::<Vec<_>>(), ["lo", "eth0"]);
        let eth0 = Interface {
            name: "eth0".to_owned(),
            rx_bytes: 34476,
            rx_packets: 475,
            rx_errors: 1,
            rx_dropped: 2,
            tx_bytes: 15838,
            tx_packets: 237,
            tx_errors: 3,
            tx_dropped: 4,
        };
        let network = NetworkStats { at: Timestamp::from_nanos(0), interfaces };
        assert_eq!(network.default_interface(), Some(&eth0));
        for (text, count) in [
            (&b""[..], 0),
            (b"x: 1 2 3\n", 0),
            (b"\xffx: 1 2 3 4 5 6 7 8 9 10 11 12\n", 1),
            (b"x: 1 2 3 4 5 6 7 8 9 10 11 99999999999999999999\n", 0),
        ] {
            assert_eq!(parse_interfaces(text).len(), count, "{text:?}");
        }
        for cut in 0..DEV.len() {
            fuzz_interfaces(&DEV.as_bytes()[..cut]);
        }
    }

    #[test]
    fn the_node_s_own_interfaces_are_found() {
        let text = read_interfaces(Path::new("/proc/thread-self")).expect("readable");
        assert!(parse_interfaces(&text).iter().any(|interface| interface.name == LOOPBACK));
        let own = i32::try_from(std::process::id()).expect("a process id");
        assert!(read_interfaces_of(own, Path::new("/proc/self/ns/net")).is_some());
        assert!(read_interfaces_of(own, Path::new("/proc/self/ns/ipc")).is_none(), "not that namespace");
    }
}
