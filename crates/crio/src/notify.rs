//! Telling systemd that the daemon is ready and alive: sd_notify(3), one datagram a message.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

/// Shorter watchdogs than this would have us do nothing else. Source: CRI-O.
const WATCHDOG_MIN: Duration = Duration::from_secs(1);

/// Sends a message to whoever started us, if he asked for it.
pub(crate) fn notify(message: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let sent = match path.to_str().and_then(|path| path.strip_prefix('@')) {
        Some(name) => send_abstract(name, message),
        None => UnixDatagram::unbound().and_then(|socket| socket.send_to(message.as_bytes(), &path)).map(|_| ()),
    };
    if let Err(error) = sent {
        tracing::warn!(%error, "notifying the service manager failed");
    }
}

fn send_abstract(name: &str, message: &str) -> std::io::Result<()> {
    use std::os::linux::net::SocketAddrExt;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
    UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address).map(|_| ())
}

/// How often the service manager wants to hear from us: half of what it allows.
pub(crate) fn watchdog_period() -> Option<Duration> {
    let allowed = Duration::from_micros(std::env::var("WATCHDOG_USEC").ok()?.parse().ok()?);
    (allowed > WATCHDOG_MIN).then_some(allowed / 2)
}
