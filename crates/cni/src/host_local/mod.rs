//! `host-local`: addresses from ranges, remembered in a directory of this node.

use std::net::IpAddr;

use crate::failure::{Code, Context as _, Failure};
use crate::request::Request;
use crate::result::{CniResult, Dns, IpConfig};
use crate::{Plugin, nothing};

mod config;
mod leases;
mod ranges;

use self::config::Config;
use self::leases::{Leases, Owner};
use self::ranges::RangeSet;

pub(crate) const PLUGIN: Plugin = Plugin { name: "host-local", add, del, check, status: nothing, gc };

/// Bytes of a resolv.conf that are read.
const RESOLV_CONF_MAX: u64 = 64 * 1024;

fn owner(request: &Request) -> Owner {
    Owner { container_id: request.container_id.clone(), ifname: request.ifname.clone() }
}

fn add(request: &Request) -> Result<CniResult, Failure> {
    let config = Config::load(request)?;
    let dns = match &config.resolv_conf {
        Some(path) => read_resolv_conf(path)?,
        None => Dns::default(),
    };
    let leases = Leases::open(&config.directory).context(|| format!("open {}", config.directory.display()))?;
    let owner = owner(request);
    let mut requested = config.requested.clone();
    let mut ips = Vec::new();
    for (index, set) in config.sets.iter().enumerate() {
        let wanted = requested.iter().position(|address| set.contains(*address)).map(|at| requested.remove(at));
        match allocate(&leases, &owner, set, index, wanted) {
            Ok(ip) => ips.push(ip),
            Err(failure) => {
                give_back(&leases, &ips);
                let text = format!("failed to allocate for range {index}: {failure}");
                return Err(Failure::new(Code::Internal, text));
            }
        }
    }
    if !requested.is_empty() {
        give_back(&leases, &ips);
        let list = requested.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" ");
        return Err(Failure::config(format!("failed to allocate all requested IPs: {list}")));
    }
    Ok(CniResult { ips, routes: config.routes, dns, ..CniResult::default() })
}

/// Those of this call only: what the container had before stays.
fn give_back(leases: &Leases, ips: &[IpConfig]) {
    for ip in ips {
        leases.remove(ip.address.0.address);
    }
}

fn allocate(
    leases: &Leases,
    owner: &Owner,
    set: &RangeSet,
    index: usize,
    wanted: Option<IpAddr>,
) -> Result<IpConfig, Failure> {
    let failed = |text: String| Failure::new(Code::Internal, text);
    let config = |address, (network, gateway): (crate::result::Cidr, IpAddr)| IpConfig {
        interface: None,
        address: crate::result::Cidr::new(address, network.0.length),
        gateway: Some(gateway),
    };
    let reserve = |address| {
        let reserved = leases.reserve(address, owner, index);
        reserved.context(|| format!("reserve {address}"))
    };
    if let Some(address) = wanted {
        let range = set.range_of(address).ok_or_else(|| failed(format!("{address} not in range set {set}")))?;
        if range.gateway == address {
            return Err(failed(format!("requested ip {address} is subnet's gateway")));
        }
        if !reserve(address)? {
            return Err(failed(format!("requested IP address {address} is not available in range set {set}")));
        }
        return Ok(config(address, (range.subnet, range.gateway)));
    }
    let taken = leases.list().context(|| "list leases".to_owned())?;
    if let Some(lease) = taken.iter().find(|lease| lease.is_of(owner) && set.contains(lease.address)) {
        let text = format!(
            "{} has been allocated to {}, duplicate allocation is not allowed",
            lease.address, owner.container_id
        );
        return Err(failed(text));
    }
    let taken = taken.iter().map(|lease| lease.address).collect();
    for (address, range) in set.free_after(leases.last_reserved(index), &taken) {
        if reserve(address)? {
            return Ok(config(address, (range.subnet, range.gateway)));
        }
    }
    Err(failed(format!("no IP addresses available in range set: {set}")))
}

fn del(request: &Request) -> Result<(), Failure> {
    let config = Config::load(request)?;
    let Some(leases) = Leases::open_if_there(&config.directory).context(|| "open leases".to_owned())? else {
        return Ok(());
    };
    let owner = owner(request);
    for lease in leases.list().context(|| "list leases".to_owned())?.iter().filter(|lease| lease.is_of(&owner)) {
        leases.remove(lease.address);
    }
    Ok(())
}

fn check(request: &Request) -> Result<(), Failure> {
    let config = Config::load(request)?;
    let leases = Leases::open(&config.directory).context(|| "open leases".to_owned())?;
    let owner = owner(request);
    let has_one = leases.list().context(|| "list leases".to_owned())?.iter().any(|lease| lease.is_of(&owner));
    if has_one {
        return Ok(());
    }
    let text = format!("host-local: Failed to find address added by container {}", request.container_id);
    Err(Failure::new(Code::Internal, text))
}

fn gc(request: &Request) -> Result<(), Failure> {
    let config = Config::load(request)?;
    let valid: Vec<Owner> =
        request.valid_attachments()?.into_iter().map(|(container_id, ifname)| Owner { container_id, ifname }).collect();
    let Some(leases) = Leases::open_if_there(&config.directory).context(|| "open leases".to_owned())? else {
        return Ok(());
    };
    for lease in leases.list().context(|| "list leases".to_owned())? {
        if !valid.iter().any(|owner| lease.is_of(owner)) {
            leases.remove(lease.address);
        }
    }
    Ok(())
}

fn read_resolv_conf(path: &std::path::Path) -> Result<Dns, Failure> {
    use std::io::Read as _;
    let what = || format!("read {}", path.display());
    let mut text = String::new();
    std::fs::File::open(path).context(what)?.take(RESOLV_CONF_MAX).read_to_string(&mut text).context(what)?;
    Ok(parse_resolv_conf(&text))
}

fn parse_resolv_conf(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        let mut words = line.split_whitespace().map(str::to_owned);
        let (Some(keyword), Some(first)) = (words.next(), words.next()) else { continue };
        match keyword.as_str() {
            "nameserver" => dns.nameservers.push(first),
            "domain" => dns.domain = first,
            "search" => dns.search.extend(std::iter::once(first).chain(words)),
            "options" => dns.options.extend(std::iter::once(first).chain(words)),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf() {
        let dns = parse_resolv_conf(
            "# x\nnameserver 10.0.0.1 extra\n;\nsearch a b\nsearch c\noptions ndots:5\ndomain d\njunk\n",
        );
        assert_eq!(dns.nameservers, ["10.0.0.1"]);
        assert_eq!(dns.search, ["a", "b", "c"]);
        assert_eq!((dns.options.len(), dns.domain.as_str()), (1, "d"));
    }
}
