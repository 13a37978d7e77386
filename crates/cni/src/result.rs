//! Results in every version of the specification.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use netlink::route::Prefix;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::failure::{Code, Failure};

/// Versions that are read and written.
pub(crate) const SUPPORTED: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// An address with its prefix, written `10.0.0.1/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cidr(pub(crate) Prefix);

impl Cidr {
    pub(crate) fn new(address: IpAddr, length: u8) -> Self {
        Self(Prefix { address, length })
    }

    pub(crate) fn is_v4(self) -> bool {
        self.0.address.is_ipv4()
    }

    /// The address alone as a network: `/32` or `/128`.
    pub(crate) fn host(address: IpAddr) -> Self {
        Self::new(address, if address.is_ipv4() { 32 } else { 128 })
    }

    /// The network it is in.
    pub(crate) fn network(self) -> Self {
        let Prefix { address, length } = self.0;
        let address = match address {
            IpAddr::V4(v4) => IpAddr::from((u32::from(v4) & low_mask(length, 32)).to_be_bytes()),
            IpAddr::V6(v6) => IpAddr::from((u128::from(v6) & wide_mask(length)).to_be_bytes()),
        };
        Self::new(address, length)
    }

    pub(crate) fn contains(self, address: IpAddr) -> bool {
        self.is_v4() == address.is_ipv4() && Self::new(address, self.0.length).network() == self.network()
    }

    /// The first address after that of the network: where a gateway is unless configured otherwise.
    pub(crate) fn first_host(self) -> IpAddr {
        match self.network().0.address {
            IpAddr::V4(v4) => IpAddr::from(u32::from(v4).wrapping_add(1).to_be_bytes()),
            IpAddr::V6(v6) => IpAddr::from(u128::from(v6).wrapping_add(1).to_be_bytes()),
        }
    }

    pub(crate) fn is_default(self) -> bool {
        self.0.length == 0
    }
}

fn low_mask(length: u8, bits: u8) -> u32 {
    u32::MAX.checked_shl(u32::from(bits.saturating_sub(length))).unwrap_or(0)
}

fn wide_mask(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0)
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("{text:?} is not an address with a prefix length");
        let (address, length) = text.split_once('/').ok_or_else(refused)?;
        let address: IpAddr = address.parse().map_err(|_| refused())?;
        let length: u8 = length.parse().map_err(|_| refused())?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        if length > bits { Err(refused()) } else { Ok(Self::new(address, length)) }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0.address, self.0.length)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// An address that may be given as empty text, as Go's encoder writes a missing one.
pub(crate) fn optional_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    match Option::<String>::deserialize(deserializer)?.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(serde::de::Error::custom),
    }
}

/// A list that may be given as `null`.
pub(crate) fn nullable<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::<Vec<T>>::deserialize(deserializer)?.unwrap_or_default())
}

/// A device that was made or is used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Interface {
    pub(crate) name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) mac: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) mtu: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) sandbox: String,
    #[serde(rename = "socketPath", skip_serializing_if = "String::is_empty")]
    pub(crate) socket_path: String,
    #[serde(rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub(crate) pci_id: String,
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// An address that was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IpConfig {
    /// Which of the result's interfaces has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) interface: Option<usize>,
    pub(crate) address: Cidr,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "optional_address")]
    pub(crate) gateway: Option<IpAddr>,
}

/// A route that was made, or is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RouteConfig {
    pub(crate) dst: Cidr,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "optional_address")]
    pub(crate) gw: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mtu: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) advmss: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) priority: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) table: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) scope: Option<u8>,
}

/// Name resolution. The daemon ignores it; others do not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Dns {
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub(crate) nameservers: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) domain: String,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub(crate) search: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub(crate) options: Vec<String>,
}

impl Dns {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What an attachment has, in the newest version's terms.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct CniResult {
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub(crate) interfaces: Vec<Interface>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub(crate) ips: Vec<IpConfig>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub(crate) routes: Vec<RouteConfig>,
    pub(crate) dns: Dns,
}

/// One family's part of a result of version 0.2.0 and before.
#[derive(Deserialize)]
struct OldIp {
    ip: Cidr,
    #[serde(default, deserialize_with = "optional_address")]
    gateway: Option<IpAddr>,
    #[serde(default, deserialize_with = "nullable")]
    routes: Vec<RouteConfig>,
}

impl CniResult {
    /// Reads a result of any version; the shape tells which.
    pub(crate) fn from_value(value: Value) -> Result<Self, serde_json::Error> {
        let mut old = Vec::new();
        for key in ["ip4", "ip6"] {
            if let Some(part) = value.get(key).filter(|part| !part.is_null()) {
                old.push(OldIp::deserialize(part)?);
            }
        }
        let mut result: Self = serde_json::from_value(value)?;
        for OldIp { ip, gateway, routes } in old {
            result.ips.push(IpConfig { interface: None, address: ip, gateway });
            result.routes.extend(routes);
        }
        Ok(result)
    }

    /// Writes it in a version's shape.
    ///
    /// Errors: more than one address of a family in versions that have room for one.
    pub(crate) fn to_bytes(&self, version: &str) -> Result<Vec<u8>, Failure> {
        let value = match version {
            "0.1.0" | "0.2.0" => self.oldest(version)?,
            "1.1.0" => self.newest(version),
            _ => self.middle(version),
        };
        Ok(value.to_string().into_bytes())
    }

    fn newest(&self, version: &str) -> Value {
        let mut value = json!(self);
        value["cniVersion"] = json!(version);
        value
    }

    /// 0.3.0 to 1.0.0: fewer fields; before 1.0.0 each address tells its family.
    fn middle(&self, version: &str) -> Value {
        let mut value = self.newest(version);
        let strip = |list: Option<&mut Value>, kept: &[&str]| {
            for entry in list.and_then(Value::as_array_mut).into_iter().flatten() {
                if let Value::Object(fields) = entry {
                    fields.retain(|key, _| kept.contains(&key.as_str()));
                }
            }
        };
        strip(value.get_mut("interfaces"), &["name", "mac", "sandbox"]);
        strip(value.get_mut("routes"), &["dst", "gw"]);
        if version.starts_with("0.") {
            for (entry, ip) in value["ips"].as_array_mut().into_iter().flatten().zip(&self.ips) {
                entry["version"] = json!(if ip.address.is_v4() { "4" } else { "6" });
            }
        }
        value
    }

    fn oldest(&self, version: &str) -> Result<Value, Failure> {
        let mut fields = Map::new();
        fields.insert("cniVersion".to_owned(), json!(version));
        for (key, is_v4) in [("ip4", true), ("ip6", false)] {
            let mut ips = self.ips.iter().filter(|ip| ip.address.is_v4() == is_v4);
            let Some(ip) = ips.next() else { continue };
            if ips.next().is_some() {
                let text = format!("CNI version {version} does not support more than 1 address per family");
                return Err(Failure::new(Code::InvalidConfig, text));
            }
            let routes = self.routes.iter().filter(|route| route.dst.is_v4() == is_v4);
            let routes: Vec<_> = routes.map(|route| json!({ "dst": route.dst, "gw": route.gw })).collect();
            let mut part = json!({ "ip": ip.address, "routes": routes });
            if let Some(gateway) = ip.gateway {
                part["gateway"] = json!(gateway);
            }
            fields.insert(key.to_owned(), part);
        }
        if fields.len() == 1 {
            return Err(Failure::config("cannot convert: no valid IP addresses"));
        }
        fields.insert("dns".to_owned(), json!(self.dns));
        Ok(Value::Object(fields))
    }
}

/// For the fuzz table: reads a result and writes it in every version.
#[must_use]
pub fn fuzz_result(bytes: &[u8]) -> bool {
    let Ok(value) = serde_json::from_slice(bytes) else { return false };
    let Ok(result) = CniResult::from_value(value) else { return false };
    for version in SUPPORTED {
        if let Ok(bytes) = result.to_bytes(version) {
            let again = serde_json::from_slice(&bytes).map(CniResult::from_value);
            assert!(matches!(again, Ok(Ok(_))), "what is written can be read");
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks() {
        let cases = [
            ("10.1.2.3/16", "10.1.0.0/16", "10.1.0.1"),
            ("10.1.2.3/32", "10.1.2.3/32", "10.1.2.4"),
            ("0.0.0.0/0", "0.0.0.0/0", "0.0.0.1"),
            ("fd00:1::5/64", "fd00:1::/64", "fd00:1::1"),
            ("::/0", "::/0", "::1"),
        ];
        for (text, network, first) in cases {
            let cidr: Cidr = text.parse().unwrap();
            assert_eq!(cidr.network().to_string(), network);
            assert_eq!(cidr.first_host().to_string(), first);
        }
        for bad in ["", "10.0.0.1", "10.0.0.1/33", "::1/129", "x/1", "10.0.0.1/-1"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
        let network: Cidr = "10.1.0.0/16".parse().unwrap();
        assert!(network.contains("10.1.255.255".parse().unwrap()));
        assert!(!network.contains("10.2.0.0".parse().unwrap()));
        assert!(!network.contains("::1".parse().unwrap()));
    }

    #[test]
    fn every_version_comes_back() {
        let newest = json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "cni0", "mac": "0a:00:00:00:00:01", "mtu": 1500}, {"name": "eth0", "sandbox": "/x"}],
            "ips": [
                {"interface": 1, "address": "10.0.0.2/24", "gateway": "10.0.0.1"},
                {"address": "fd00::2/64"}
            ],
            "routes": [{"dst": "0.0.0.0/0", "priority": 5}, {"dst": "::/0", "gw": "fd00::1"}],
            "dns": {"nameservers": ["10.0.0.53"]},
        });
        let result = CniResult::from_value(newest.clone()).unwrap();
        let write = |version: &str| serde_json::from_slice::<Value>(&result.to_bytes(version).unwrap()).unwrap();
        assert_eq!(write("1.1.0"), newest);
        assert_eq!(write("1.0.0")["interfaces"][0].get("mtu"), None);
        assert_eq!(write("0.4.0")["ips"][1]["version"], "6");
        assert_eq!(write("0.2.0")["ip4"]["gateway"], "10.0.0.1");
        for version in SUPPORTED {
            let again = CniResult::from_value(write(version)).unwrap();
            let addresses = |result: &CniResult| result.ips.iter().map(|ip| ip.address).collect::<Vec<_>>();
            assert_eq!(addresses(&again), addresses(&result), "{version}");
            assert_eq!(again.routes.len(), 2, "{version}");
        }
    }
}
