//! `tuning`: sysctls of the container's network and attributes of its device, put back by DEL.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use netlink::Socket;
use netlink::route::{IFF_ALLMULTI, IFF_PROMISC, Link};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::device::{self, mac_text, parse_mac};
use crate::failure::{Code, Context as _, Failure};
use crate::request::Request;
use crate::result::CniResult;
use crate::{Plugin, nothing};

pub(crate) const PLUGIN: Plugin = Plugin { name: "tuning", add, del, check, status: nothing, gc: nothing };

/// Where attributes are kept until DEL unless configured otherwise.
const DIRECTORY: &str = "/run/cni/tuning";
/// Patterns of sysctls that may be set; all may be without the file.
const ALLOWED: &str = "/etc/cni/tuning/allowlist.conf";
/// Bytes of these files.
const FILE_MAX: u64 = 64 * 1024;

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    data_dir: String,
    #[serde(flatten)]
    wishes: Wishes,
    runtime_config: RuntimeConfig,
    args: Option<Args>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RuntimeConfig {
    mac: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Args {
    cni: Option<Wishes>,
}

/// What is to be changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Wishes {
    #[serde(deserialize_with = "unique_keys")]
    sysctl: BTreeMap<String, String>,
    mac: Option<String>,
    promisc: Option<bool>,
    mtu: Option<u32>,
    allmulti: Option<bool>,
    #[serde(rename = "txQLen")]
    transmit_queue: Option<u32>,
}

/// A key that is there twice would leave to chance which value counts.
fn unique_keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    struct Unique;
    impl<'de> Visitor<'de> for Unique {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("sysctls")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(BTreeMap::new())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut keys = BTreeMap::new();
            while let Some((key, value)) = map.next_entry::<String, String>()? {
                if keys.insert(key, value).is_some() {
                    return Err(serde::de::Error::custom("duplicated sysctl keys are not allowed"));
                }
            }
            Ok(keys)
        }
    }
    deserializer.deserialize_any(Unique)
}

/// What a device was like, as the reference plugin writes it.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Backup {
    #[serde(skip_serializing_if = "String::is_empty")]
    mac: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    promisc: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allmulti: Option<bool>,
    #[serde(rename = "txQLen", skip_serializing_if = "Option::is_none")]
    transmit_queue: Option<u32>,
}

/// The wishes after everybody who may change them had a say, and where the backup is.
fn load(request: &Request) -> Result<(Wishes, PathBuf), Failure> {
    let config: Config = request.config()?;
    let mut wishes = config.wishes;
    if let Some(mac) = request.argument("MAC", &["MAC"])? {
        wishes.mac = Some(mac.to_owned());
    }
    if !config.runtime_config.mac.is_empty() {
        wishes.mac = Some(config.runtime_config.mac);
    }
    if let Some(args) = config.args.and_then(|args| args.cni) {
        wishes.sysctl.extend(args.sysctl);
        wishes.mac = args.mac.or(wishes.mac);
        wishes.promisc = args.promisc.or(wishes.promisc);
        wishes.mtu = args.mtu.or(wishes.mtu);
        wishes.allmulti = args.allmulti.or(wishes.allmulti);
        wishes.transmit_queue = args.transmit_queue.or(wishes.transmit_queue);
    }
    wishes.mac = wishes.mac.filter(|mac| !mac.is_empty());
    wishes.mtu = wishes.mtu.filter(|mtu| *mtu != 0);
    let directory = if config.data_dir.is_empty() { DIRECTORY } else { &config.data_dir };
    let name = format!("{}_{}.json", request.container_id, request.ifname);
    Ok((wishes, Path::new(directory).join(name)))
}

/// The path below `/proc/sys` of a key, in which `IFNAME` stands for the container's device.
fn sysctl_path(key: &str, ifname: &str) -> Result<String, Failure> {
    let path = key.replace('.', "/").replacen("IFNAME", ifname, 1);
    let is_plain = path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if !is_plain || !path.starts_with("net/") {
        return Err(Failure::config(format!("invalid net sysctl key: {key:?}")));
    }
    Ok(path)
}

fn read(path: &Path) -> io::Result<Option<String>> {
    let mut text = String::new();
    match std::fs::File::open(path) {
        Ok(file) => file.take(FILE_MAX).read_to_string(&mut text).map(|_| Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn check_allowed(wishes: &Wishes) -> Result<(), Failure> {
    let Some(text) = read(Path::new(ALLOWED)).context(|| format!("read {ALLOWED}"))? else { return Ok(()) };
    let patterns = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let patterns: Vec<regex::Regex> =
        patterns.map(regex::Regex::new).collect::<Result<_, _>>().context(|| format!("read {ALLOWED}"))?;
    match wishes.sysctl.keys().find(|key| !patterns.iter().any(|pattern| pattern.is_match(key))) {
        Some(key) => Err(Failure::config(format!("Sysctl {key} is not allowed by {ALLOWED}"))),
        None => Ok(()),
    }
}

fn add(request: &Request) -> Result<CniResult, Failure> {
    let (wishes, backup) = load(request)?;
    check_allowed(&wishes)?;
    let mut result = request.required_previous()?;
    let mac = wishes.mac.as_deref().map(parse_mac).transpose()?;
    let sysctls = wishes.sysctl.iter().map(|(key, value)| Ok((sysctl_path(key, &request.ifname)?, value)));
    let sysctls: Vec<(String, &String)> = sysctls.collect::<Result<_, Failure>>()?;
    let namespace = request.namespace()?;
    device::inside(namespace.as_fd(), |socket| {
        for (path, value) in &sysctls {
            device::set_sysctl(path, value).context(|| format!("set sysctl {path} to {value:?}"))?;
        }
        if wishes == (Wishes { sysctl: wishes.sysctl.clone(), ..Wishes::default() }) {
            return Ok(());
        }
        let link = device::link(socket, &request.ifname)?;
        write_backup(&backup, &link, &wishes)?;
        change(socket, &link, &wishes, mac)
    })?;
    if let Some(mac) = mac {
        for entry in result.interfaces.iter_mut().filter(|entry| entry.name == request.ifname) {
            entry.mac = mac_text(&mac);
        }
    }
    Ok(result)
}

fn write_backup(path: &Path, link: &Link, wishes: &Wishes) -> Result<(), Failure> {
    let what = || format!("failed to save file {}", path.display());
    let backup = Backup {
        mac: wishes.mac.as_ref().map(|_| mac_text(&link.address)).unwrap_or_default(),
        promisc: wishes.promisc.filter(|wish| *wish).map(|_| link.promiscuity != 0),
        mtu: wishes.mtu.map(|_| link.mtu),
        allmulti: wishes.allmulti.map(|_| link.flags & IFF_ALLMULTI != 0),
        transmit_queue: wishes.transmit_queue.map(|_| link.transmit_queue),
    };
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory).context(what)?;
    }
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path).context(what)?;
    serde_json::to_writer(&mut file, &backup).context(what)?;
    file.flush().context(what)
}

fn change(socket: &Socket, link: &Link, wishes: &Wishes, mac: Option<[u8; 6]>) -> Result<(), Failure> {
    let what = |attribute: &'static str| move || format!("set the {attribute} of {:?}", link.name);
    if let Some(mac) = mac {
        socket.set_link_address(link.index, &mac).context(what("MAC address"))?;
    }
    if wishes.promisc == Some(true) {
        socket.set_flags(link.index, IFF_PROMISC, IFF_PROMISC).context(what("promiscuous mode"))?;
    }
    if let Some(mtu) = wishes.mtu {
        socket.set_mtu(link.index, mtu).context(what("MTU"))?;
    }
    if let Some(is_on) = wishes.allmulti {
        let flags = if is_on { IFF_ALLMULTI } else { 0 };
        socket.set_flags(link.index, flags, IFF_ALLMULTI).context(what("all-multicast mode"))?;
    }
    if let Some(packets) = wishes.transmit_queue {
        socket.set_transmit_queue(link.index, packets).context(what("transmit queue length"))?;
    }
    Ok(())
}

/// What cannot be put back goes with the namespace, so failing is only told.
fn del(request: &Request) -> Result<(), Failure> {
    let (_, path) = load(request)?;
    let what = || format!("restore from {}", path.display());
    let Some(text) = read(&path).context(what)? else { return Ok(()) };
    let restored = restore(request, &text);
    if let Err(failure) = restored {
        eprintln!("{failure}");
    }
    std::fs::remove_file(&path).context(what)
}

fn restore(request: &Request, text: &str) -> Result<(), Failure> {
    let backup: Backup = serde_json::from_str(text).context(|| "read the backup".to_owned())?;
    let Some(namespace) = request.namespace_if_there() else { return Ok(()) };
    device::inside(namespace.as_fd(), |socket| {
        let Some(link) = socket.find_link(&request.ifname).context(|| "look up the device".to_owned())? else {
            return Ok(());
        };
        if backup.promisc == Some(false) {
            socket.set_flags(link.index, 0, IFF_PROMISC).context(|| "restore promiscuous mode".to_owned())?;
        }
        let wishes = Wishes {
            mtu: backup.mtu,
            allmulti: backup.allmulti,
            transmit_queue: backup.transmit_queue,
            ..Wishes::default()
        };
        let mac = (!backup.mac.is_empty()).then(|| parse_mac(&backup.mac)).transpose()?;
        change(socket, &link, &wishes, mac)
    })
}

fn check(request: &Request) -> Result<(), Failure> {
    let (wishes, _) = load(request)?;
    request.required_previous()?;
    let namespace = request.namespace()?;
    device::inside(namespace.as_fd(), |socket| {
        for (key, value) in &wishes.sysctl {
            let path = Path::new("/proc/sys").join(sysctl_path(key, &request.ifname)?);
            let now = read(&path).context(|| format!("read {}", path.display()))?.unwrap_or_default();
            differs(&path.display().to_string(), value.as_str(), now.trim_end_matches('\n'))?;
        }
        let link = device::link(socket, &request.ifname)?;
        if let Some(mac) = &wishes.mac {
            differs("Ethernet", &mac_text(&parse_mac(mac)?), &mac_text(&link.address))?;
        }
        differs("promisc", &wishes.promisc.unwrap_or_default(), &(link.promiscuity != 0))?;
        differs("MTU", &wishes.mtu.unwrap_or(link.mtu), &link.mtu)?;
        let allmulti = link.flags & IFF_ALLMULTI != 0;
        differs("all-multicast mode", &wishes.allmulti.unwrap_or(allmulti), &allmulti)?;
        let queue = link.transmit_queue;
        differs("Transmit Queue Length", &wishes.transmit_queue.unwrap_or(queue), &queue)
    })
}

fn differs<T: PartialEq + std::fmt::Display + ?Sized>(what: &str, wanted: &T, found: &T) -> Result<(), Failure> {
    if wanted == found {
        return Ok(());
    }
    let text = format!("Error: Tuning configured {what} is {wanted}, current value is {found}");
    Err(Failure::new(Code::Internal, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_stay_below_net() {
        let cases = [
            ("net.ipv4.conf.IFNAME.arp_filter", Some("net/ipv4/conf/eth0/arp_filter")),
            ("net/core/somaxconn", Some("net/core/somaxconn")),
            ("kernel.hostname", None),
            ("net/../kernel/core_pattern", None),
            ("net", None),
            ("net..x", None),
            ("/net/x", None),
        ];
        for (key, expected) in cases {
            assert_eq!(sysctl_path(key, "eth0").ok().as_deref(), expected, "{key}");
        }
    }

    #[test]
    fn keys_are_unique() {
        let parse = |text| serde_json::from_str::<Wishes>(text);
        assert_eq!(parse(r#"{"sysctl":{"a":"1","b":"2"}}"#).unwrap().sysctl.len(), 2);
        assert!(parse(r#"{"sysctl":null}"#).unwrap().sysctl.is_empty());
        assert!(parse(r#"{"sysctl":{"a":"1","a":"2"}}"#).is_err());
    }
}
