//! What a plugin answers to ADD, in every version of the specification, brought to 1.1.0. No I/O.

use std::net::IpAddr;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::version::Version;

/// Why an answer is not a result.
#[derive(Debug, Error)]
pub enum ResultError {
    /// Not JSON, or a field has another type than the specification gives it.
    #[error("parse the result as JSON")]
    Json(#[source] serde_json::Error),
    /// A version that is not one of 0.1.0 to 1.1.0.
    #[error("result has the unknown version {0:?}")]
    Version(String),
    /// An address without prefix, or not an address.
    #[error("{0:?} is not an address with prefix length")]
    Address(String),
    /// A gateway that is not an address.
    #[error("{0:?} is not the address of a gateway")]
    Gateway(String),
}

// Fields in the order of their names: what is stored is compared as text by tools that sort keys.

/// An answer in the form of 1.1.0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Current {
    #[serde(rename = "cniVersion")]
    version: String,
    #[serde(skip_serializing_if = "Dns::is_empty")]
    dns: Dns,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    interfaces: Vec<Interface>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ips: Vec<IpConfig>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    routes: Vec<Route>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Dns {
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "or_default")]
    domain: String,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    nameservers: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    options: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    search: Vec<String>,
}

impl Dns {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Interface {
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "or_default")]
    mac: String,
    #[serde(skip_serializing_if = "is_zero", deserialize_with = "or_default")]
    mtu: u64,
    #[serde(deserialize_with = "or_default")]
    name: String,
    #[serde(rename = "pciID", skip_serializing_if = "String::is_empty", deserialize_with = "or_default")]
    pci_id: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "or_default")]
    sandbox: String,
    #[serde(rename = "socketPath", skip_serializing_if = "String::is_empty", deserialize_with = "or_default")]
    socket_path: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct IpConfig {
    #[serde(deserialize_with = "or_default")]
    address: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "or_default")]
    gateway: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<i64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Route {
    #[serde(skip_serializing_if = "is_zero", deserialize_with = "or_default")]
    advmss: u64,
    #[serde(deserialize_with = "or_default")]
    dst: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "or_default")]
    gw: String,
    #[serde(skip_serializing_if = "is_zero", deserialize_with = "or_default")]
    mtu: u64,
    #[serde(skip_serializing_if = "is_zero", deserialize_with = "or_default")]
    priority: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<i64>,
}

/// Since 0.3.0.
#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Lists {
    #[serde(deserialize_with = "or_default")]
    interfaces: Vec<Interface>,
    #[serde(deserialize_with = "or_default")]
    ips: Vec<IpConfig>,
    #[serde(deserialize_with = "or_default")]
    routes: Vec<Route>,
    #[serde(deserialize_with = "or_default")]
    dns: Dns,
}

/// 0.1.0 and 0.2.0.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Pair {
    ip4: Option<FamilyConfig>,
    ip6: Option<FamilyConfig>,
    #[serde(deserialize_with = "or_default")]
    dns: Dns,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct FamilyConfig {
    #[serde(deserialize_with = "or_default")]
    ip: String,
    #[serde(deserialize_with = "or_default")]
    gateway: String,
    #[serde(deserialize_with = "or_default")]
    routes: Vec<Route>,
}

fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

// By reference because serde asks for it.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A plugin's answer: as it was, for the next plugin and the cache, and in the form of 1.1.0.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    /// As printed, with its version filled in.
    pub(crate) original: Map<String, Value>,
    /// Every address in order.
    pub(crate) ips: Vec<IpAddr>,
    /// JSON of 1.1.0.
    pub(crate) current: String,
}

/// Reads an answer to ADD; one without a version has that of the configuration. Source: CNI specification, "Result".
pub(crate) fn parse_result(text: &[u8], config_version: Version) -> Result<Answer, ResultError> {
    let mut original: Map<String, Value> = serde_json::from_slice(text).map_err(ResultError::Json)?;
    let version = match original.get("cniVersion").and_then(Value::as_str).unwrap_or_default() {
        "" => config_version,
        text => Version::parse(text)
            .filter(|version| version.is_known())
            .ok_or_else(|| ResultError::Version(text.to_owned()))?,
    };
    original.insert("cniVersion".into(), version.to_string().into());
    // What becomes version 1.1.0 does so from a copy: the original keeps what only the next plugin understands.
    let value = Value::Object(original);
    let mut lists = if version >= Version::LISTS {
        Lists::deserialize(&value).map_err(ResultError::Json)?
    } else {
        from_pair(Pair::deserialize(&value).map_err(ResultError::Json)?)
    };
    let Value::Object(original) = value else { unreachable!("an object was put in") };
    let mut ips = Vec::with_capacity(lists.ips.len());
    for ip in &mut lists.ips {
        let (address, prefix) = parse_prefix(&ip.address).ok_or_else(|| ResultError::Address(ip.address.clone()))?;
        ip.address = format!("{address}/{prefix}");
        if !ip.gateway.is_empty() {
            ip.gateway.parse::<IpAddr>().map_err(|_| ResultError::Gateway(ip.gateway.clone()))?;
        }
        ips.push(address);
    }
    let Lists { interfaces, ips: configs, routes, dns } = lists;
    let current = Current { version: Version::CURRENT.to_string(), dns, interfaces, ips: configs, routes };
    let current = serde_json::to_string(&current).map_err(ResultError::Json)?;
    Ok(Answer { original, ips, current })
}

fn from_pair(pair: Pair) -> Lists {
    let mut lists = Lists { dns: pair.dns, ..Lists::default() };
    for family in [pair.ip4, pair.ip6].into_iter().flatten() {
        lists.ips.push(IpConfig { address: family.ip, gateway: family.gateway, interface: None });
        lists.routes.extend(family.routes);
    }
    lists
}

fn parse_prefix(text: &str) -> Option<(IpAddr, u8)> {
    let (address, prefix) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let prefix: u8 = prefix.parse().ok()?;
    (prefix <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, prefix))
}

/// Entry point for fuzzing: any bytes are a result or an error, and a result is one again.
pub fn fuzz_result(bytes: &[u8]) {
    if let Ok(answer) = parse_result(bytes, Version::CURRENT) {
        let again = parse_result(answer.current.as_bytes(), Version::CURRENT);
        assert!(again.is_ok_and(|again| again.ips == answer.ips && again.current == answer.current), "{answer:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_every_version() {
        let lists = r#"{"cniVersion":"VERSION","interfaces":[{"name":"cni0","mac":"aa:bb"},{"name":"eth0","sandbox":"/n","mtu":1400}],
            "ips":[{"version":"4","address":"10.88.0.5/16","gateway":"10.88.0.1","interface":1},
                   {"version":"6","address":"fd00::5/64","interface":1}],
            "routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0","gw":"fd00::1","priority":7,"table":0}],"dns":{}}"#;
        let current = concat!(
            r#"{"cniVersion":"1.1.0","interfaces":[{"mac":"aa:bb","name":"cni0"},"#,
            r#"{"mtu":1400,"name":"eth0","sandbox":"/n"}],"#,
            r#""ips":[{"address":"10.88.0.5/16","gateway":"10.88.0.1","interface":1},{"address":"fd00::5/64","interface":1}],"#,
            r#""routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0","gw":"fd00::1","priority":7,"table":0}]}"#
        );
        for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            let answer = parse_result(lists.replace("VERSION", version).as_bytes(), Version::FIRST).unwrap();
            assert_eq!(answer.current, current, "{version}");
            assert_eq!(answer.original["cniVersion"], version);
            assert_eq!(answer.ips, ["10.88.0.5".parse::<IpAddr>().unwrap(), "fd00::5".parse().unwrap()]);
        }
        let pair = r#"{"ip4":{"ip":"10.1.0.2/24","gateway":"10.1.0.1","routes":[{"dst":"0.0.0.0/0"}]},
            "ip6":{"ip":"fd01::2/64"},"dns":{"nameservers":["10.1.0.1"],"domain":"d"}}"#;
        let current = concat!(
            r#"{"cniVersion":"1.1.0","dns":{"domain":"d","nameservers":["10.1.0.1"]},"#,
            r#""ips":[{"address":"10.1.0.2/24","gateway":"10.1.0.1"},{"address":"fd01::2/64"}],"#,
            r#""routes":[{"dst":"0.0.0.0/0"}]}"#
        );
        for version in ["0.1.0", "0.2.0"] {
            let answer = parse_result(pair.as_bytes(), Version::parse(version).unwrap()).unwrap();
            assert_eq!(answer.current, current, "{version}");
            assert_eq!(answer.original["cniVersion"], version);
        }
    }

    #[test]
    fn empty_parts_and_errors() {
        for (text, expected) in [
            ("{}", r#"{"cniVersion":"1.1.0"}"#),
            (r#"{"ips":null,"interfaces":null,"dns":null}"#, r#"{"cniVersion":"1.1.0"}"#),
            (r#"{"cniVersion":"0.2.0","ip4":null}"#, r#"{"cniVersion":"1.1.0"}"#),
            (
                r#"{"interfaces":[{}],"routes":[{"dst":"x"}]}"#,
                r#"{"cniVersion":"1.1.0","interfaces":[{"name":""}],"routes":[{"dst":"x"}]}"#,
            ),
            ("", "parse the result as JSON"),
            ("null", "parse the result as JSON"),
            ("{} {}", "parse the result as JSON"),
            (r#"{"ips":{}}"#, "parse the result as JSON"),
            (r#"{"cniVersion":"0.9.9"}"#, r#"result has the unknown version "0.9.9""#),
            (r#"{"ips":[{"address":"10.0.0.1"}]}"#, r#""10.0.0.1" is not an address with prefix length"#),
            (r#"{"ips":[{"address":"10.0.0.1/33"}]}"#, r#""10.0.0.1/33" is not an address with prefix length"#),
            (r#"{"ips":[{"address":"10.0.0.1/8","gateway":"g"}]}"#, r#""g" is not the address of a gateway"#),
        ] {
            let got = match parse_result(text.as_bytes(), Version::CURRENT) {
                Ok(answer) => answer.current,
                Err(error) => error.to_string(),
            };
            assert_eq!(got, expected, "{text}");
        }
    }

    #[test]
    fn what_only_plugins_understand_reaches_them() {
        let answer = parse_result(br#"{"kubevirt":{"a":[1]},"ips":[]}"#, Version::CHECK).unwrap();
        assert_eq!(
            Value::Object(answer.original).to_string(),
            r#"{"cniVersion":"0.4.0","ips":[],"kubevirt":{"a":[1]}}"#
        );
    }
}
