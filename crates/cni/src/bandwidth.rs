//! `bandwidth`: limits what comes out of and goes into the container.
//!
//! Into it: a token bucket on the node's end of its pair. Out of it: what comes in there is sent through a device of its
//! own (`bwp<hash>`), which has the token bucket.

use std::io;
use std::os::fd::AsFd as _;

use netlink::route::{Link, NewLink};
use netlink::{Socket, TokenBucket};
use serde::Deserialize;

use crate::device::{self, hashed_name, mac_text};
use crate::failure::{Code, Context as _, Failure};
use crate::request::Request;
use crate::result::{CniResult, Interface};
use crate::{Plugin, nothing};

pub(crate) const PLUGIN: Plugin = Plugin { name: "bandwidth", add, del, check, status: nothing, gc: nothing };

/// Ticks of the scheduler's clock to a microsecond on every kernel since 2.6.31, if it does not say.
const TICKS: f64 = 15.625;

#[derive(Debug, Deserialize)]
struct Config {
    #[serde(flatten)]
    own: Limits,
    #[serde(default, rename = "runtimeConfig")]
    runtime: RuntimeConfig,
}

#[derive(Debug, Default, Deserialize)]
struct RuntimeConfig {
    #[serde(default)]
    bandwidth: Option<Limits>,
}

/// Rates in bits a second, bursts in bits; zero is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Limits {
    ingress_rate: u64,
    ingress_burst: u64,
    egress_rate: u64,
    egress_burst: u64,
}

fn bucket(rate: u64, burst: u64) -> Result<Option<TokenBucket>, Failure> {
    match (rate, burst) {
        (0, 0) => Ok(None),
        (_, 0) => Err(Failure::config("if rate is set, burst must also be set")),
        (0, _) => Err(Failure::config("if burst is set, rate must also be set")),
        (rate, burst) => match u32::try_from(burst / 8) {
            Ok(bytes) if bytes < u32::MAX && rate >= 8 => Ok(Some(TokenBucket::new(rate / 8, bytes, ticks()))),
            Ok(bytes) if bytes < u32::MAX => Err(Failure::config(format!("invalid rate: {rate} bits a second"))),
            _ => Err(Failure::config("burst cannot be more than 4GB")),
        },
    }
}

/// `/proc/net/psched`: nanoseconds of a microsecond, nanoseconds of a tick, in hexadecimal.
fn ticks() -> f64 {
    let text = std::fs::read_to_string("/proc/net/psched").unwrap_or_default();
    let mut words = text.split_whitespace().map(|word| u32::from_str_radix(word, 16).ok());
    match (words.next().flatten(), words.next().flatten()) {
        (Some(microsecond), Some(tick)) if tick > 0 => f64::from(microsecond) / f64::from(tick),
        _ => TICKS,
    }
}

/// The buckets into and out of the container. What the daemon passes on yields to what the configuration says.
fn load(request: &Request) -> Result<[Option<TokenBucket>; 2], Failure> {
    let config: Config = request.config()?;
    let limits =
        if config.own == Limits::default() { config.runtime.bandwidth.unwrap_or_default() } else { config.own };
    Ok([bucket(limits.ingress_rate, limits.ingress_burst)?, bucket(limits.egress_rate, limits.egress_burst)?])
}

fn shaper_name(request: &Request) -> String {
    hashed_name(15, "bwp", &format!("{}{}", request.network, request.container_id))
}

/// The node's end of the container's pair.
fn host_end(request: &Request, socket: &Socket, result: &CniResult) -> Result<Link, Failure> {
    let failed = |text: String| Failure::new(Code::Internal, text);
    let namespace = request.namespace()?;
    let own = device::inside(namespace.as_fd(), |socket| device::link(socket, &request.ifname))?;
    let peer = own.peer.filter(|_| own.kind.as_deref() == Some("veth"));
    let peer = peer.ok_or_else(|| failed(format!("container interface {} has no veth peer", own.name)))?;
    let link = socket.find_link_by_index(peer).context(|| format!("look up device {peer}"))?;
    let link = link.ok_or_else(|| failed(format!("veth peer with index {peer} is not in host ns")))?;
    let is_known = result.interfaces.iter().any(|entry| entry.sandbox.is_empty() && entry.name == link.name);
    if is_known { Ok(link) } else { Err(failed("no veth peer of container interface found in host ns".to_owned())) }
}

fn add(request: &Request) -> Result<CniResult, Failure> {
    let [ingress, egress] = load(request)?;
    let mut result = request.required_previous()?;
    if ingress.is_none() && egress.is_none() {
        return Ok(result);
    }
    let socket = Socket::route().context(|| "open a netlink socket".to_owned())?;
    let host = host_end(request, &socket, &result)?;
    if let Some(bucket) = ingress {
        socket.add_token_bucket(host.index, &bucket).context(|| format!("create qdisc on {}", host.name))?;
    }
    if let Some(bucket) = egress {
        let name = shaper_name(request);
        let shaper = add_shaper(&socket, &host, &name, &bucket);
        if shaper.is_err() {
            let _ = del(request);
        }
        let shaper = shaper?;
        result.interfaces.push(Interface { name, mac: mac_text(&shaper.address), ..Interface::default() });
    }
    Ok(result)
}

fn add_shaper(socket: &Socket, host: &Link, name: &str, bucket: &TokenBucket) -> Result<Link, Failure> {
    let new = NewLink { name, mtu: host.mtu, is_up: true };
    match socket.add_ifb(&new) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(error).context(|| format!("add {name}"));
        }
        _ => {}
    }
    let shaper = device::link(socket, name)?;
    let redirected = socket.redirect_ingress(host.index, shaper.index);
    redirected.context(|| format!("redirect what comes in through {} to {name}", host.name))?;
    socket.add_token_bucket(shaper.index, bucket).context(|| format!("create qdisc on {name}"))?;
    Ok(shaper)
}

fn del(request: &Request) -> Result<(), Failure> {
    let name = shaper_name(request);
    let socket = Socket::route().context(|| "open a netlink socket".to_owned())?;
    crate::interface::remove(&socket, &name)
}

fn check(request: &Request) -> Result<(), Failure> {
    let [ingress, egress] = load(request)?;
    let result = request.required_previous()?;
    if ingress.is_none() && egress.is_none() {
        return Ok(());
    }
    let socket = Socket::route().context(|| "open a netlink socket".to_owned())?;
    let host = host_end(request, &socket, &result)?;
    let verify = |link: &Link, wanted: Option<TokenBucket>| {
        let found = socket.token_bucket(link.index).context(|| format!("read the qdisc of {}", link.name))?;
        if wanted.is_none() || found == wanted {
            return Ok(());
        }
        let text = format!("limits of {} do not match: {found:?} instead of {wanted:?}", link.name);
        Err(Failure::new(Code::Internal, text))
    };
    verify(&host, ingress)?;
    if egress.is_some() { verify(&device::link(&socket, &shaper_name(request))?, egress) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets() {
        // One megabit a second and a burst of 256 KiB take 2097152 microseconds to fill.
        let bucket_of = |rate, burst| bucket(rate, burst).unwrap().unwrap();
        let found = bucket_of(1_000_000, 2_097_152);
        assert_eq!((found.rate, found.limit), (125_000, 3125 + 262_144));
        assert_eq!(found.buffer, 32_768_000);
        assert_eq!(bucket(0, 0).unwrap(), None);
        for (rate, burst) in [(1, 0), (0, 1), (8, u64::MAX), (1, 8)] {
            assert!(bucket(rate, burst).is_err(), "{rate} {burst}");
        }
    }
}
