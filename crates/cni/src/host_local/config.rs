//! What host-local is told: the ranges, the addresses somebody asks for, the directory.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::ranges::{RangeSet, RawRange};
use crate::failure::Failure;
use crate::request::Request;
use crate::result::{Cidr, RouteConfig, nullable};

/// Where leases are kept unless configured otherwise.
const DIRECTORY: &str = "/var/lib/cni/networks";

#[derive(Deserialize)]
struct Raw {
    ipam: Option<RawIpam>,
    #[serde(default, rename = "runtimeConfig")]
    runtime: Option<RawRuntime>,
    #[serde(default)]
    args: Option<RawArgs>,
}

#[derive(Deserialize)]
struct RawIpam {
    /// With the range of old configurations beside it, which had one only.
    #[serde(flatten)]
    fields: Value,
    #[serde(default, deserialize_with = "nullable")]
    routes: Vec<RouteConfig>,
    #[serde(default, rename = "dataDir")]
    data_dir: String,
    #[serde(default, rename = "resolvConf")]
    resolv_conf: String,
    #[serde(default, deserialize_with = "nullable")]
    ranges: Vec<Vec<RawRange>>,
}

#[derive(Deserialize)]
struct RawRuntime {
    #[serde(default, rename = "ipRanges", deserialize_with = "nullable")]
    ranges: Vec<Vec<RawRange>>,
    #[serde(default, deserialize_with = "nullable")]
    ips: Vec<String>,
}

#[derive(Deserialize)]
struct RawArgs {
    #[serde(default)]
    cni: Option<RawIps>,
}

#[derive(Deserialize)]
struct RawIps {
    #[serde(default, deserialize_with = "nullable")]
    ips: Vec<String>,
}

/// Everything, checked.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) sets: Vec<RangeSet>,
    pub(crate) routes: Vec<RouteConfig>,
    pub(crate) directory: PathBuf,
    pub(crate) resolv_conf: Option<PathBuf>,
    /// Addresses that are to be among those given.
    pub(crate) requested: Vec<IpAddr>,
}

/// With or without prefix.
fn parse_address(text: &str) -> Result<IpAddr, Failure> {
    let address = text.parse().or_else(|_| text.parse::<Cidr>().map(|cidr| cidr.0.address));
    address.map_err(|_| Failure::config(format!("cannot understand ip: {text:?}")))
}

impl Config {
    pub(crate) fn load(request: &Request) -> Result<Self, Failure> {
        let raw: Raw = request.config()?;
        let ipam = raw.ipam.ok_or_else(|| Failure::config("IPAM config missing 'ipam' key"))?;
        let mut requested = Vec::new();
        if let Some(text) = request.argument("IP", &["IP"])? {
            requested.push(parse_address(text)?);
        }
        let args = raw.args.and_then(|args| args.cni).map(|cni| cni.ips).unwrap_or_default();
        let (runtime_ranges, runtime_ips) =
            raw.runtime.map(|runtime| (runtime.ranges, runtime.ips)).unwrap_or_default();
        for text in args.iter().chain(&runtime_ips) {
            requested.push(parse_address(text)?);
        }
        let mut ranges = runtime_ranges;
        if ipam.fields.get("subnet").and_then(Value::as_str).is_some_and(|subnet| !subnet.is_empty()) {
            let range = RawRange::deserialize(ipam.fields)
                .map_err(|error| Failure::config(format!("invalid range: {error}")))?;
            ranges.push(vec![range]);
        }
        ranges.extend(ipam.ranges);
        let directory = if ipam.data_dir.is_empty() { DIRECTORY } else { &ipam.data_dir };
        Ok(Self {
            sets: parse_sets(&ranges, &request.version)?,
            routes: ipam.routes,
            directory: Path::new(directory).join(&request.network),
            resolv_conf: (!ipam.resolv_conf.is_empty()).then(|| PathBuf::from(ipam.resolv_conf)),
            requested,
        })
    }
}

fn parse_sets(raw: &[Vec<RawRange>], version: &str) -> Result<Vec<RangeSet>, Failure> {
    if raw.is_empty() {
        return Err(Failure::config("no IP ranges specified"));
    }
    let mut sets: Vec<RangeSet> = Vec::new();
    for (at, raw) in raw.iter().enumerate() {
        let set = RangeSet::parse(raw).map_err(|error| Failure::config(format!("invalid range set {at}: {error}")))?;
        if let Some(other) = sets.iter().position(|other| other.overlaps(&set)) {
            return Err(Failure::config(format!("range set {other} overlaps with {at}")));
        }
        sets.push(set);
    }
    let of_v4 = sets.iter().filter(|set| set.is_v4()).count();
    if of_v4.max(sets.len() - of_v4) > 1 && matches!(version, "0.1.0" | "0.2.0") {
        let text = format!("CNI version {version} does not support more than 1 address per family");
        return Err(Failure::config(text));
    }
    Ok(sets)
}
