//! The CNI plugins that come with the daemon, in one program that acts by the name it is called with.
//!
//! Promises: configuration, results, leases and rules are those of the reference plugins, so that a pod's network made
//! by either is taken down by the other; a failed ADD leaves nothing behind; nothing is executed but iptables where it
//! is the back end, and an IPAM plugin of the operator's own. Must not know: pods, the daemon.
//! Source: CNI specification 1.1.0. Begin reading at [`main`], then `bridge`.
#![forbid(unsafe_code)]

mod bandwidth;
mod bridge;
mod device;
mod failure;
mod firewall;
mod host_local;
mod interface;
mod ipam;
mod iptables;
mod loopback;
mod masquerade;
mod portmap;
mod ptp;
mod request;
mod result;
mod spoofing;
mod static_addresses;
mod tuning;

use std::io::Write as _;
use std::process::ExitCode;

use crate::failure::Failure;
use crate::request::{Request, Verb};
use crate::result::{CniResult, SUPPORTED};

pub use result::fuzz_result;

/// What a plugin does. Each gets a checked request.
pub(crate) struct Plugin {
    pub(crate) name: &'static str,
    pub(crate) add: fn(&Request) -> Result<CniResult, Failure>,
    pub(crate) del: fn(&Request) -> Result<(), Failure>,
    pub(crate) check: fn(&Request) -> Result<(), Failure>,
    pub(crate) status: fn(&Request) -> Result<(), Failure>,
    /// Gets rid of what belongs to attachments that are not in the request's list.
    pub(crate) gc: fn(&Request) -> Result<(), Failure>,
}

/// For verbs with nothing to do.
pub(crate) fn nothing(_: &Request) -> Result<(), Failure> {
    Ok(())
}

/// Every plugin.
pub(crate) const PLUGINS: &[Plugin] = &[
    bridge::PLUGIN,
    host_local::PLUGIN,
    loopback::PLUGIN,
    portmap::PLUGIN,
    firewall::PLUGIN,
    bandwidth::PLUGIN,
    tuning::PLUGIN,
    ptp::PLUGIN,
    static_addresses::PLUGIN,
];

/// Names the program can be called by.
pub fn plugin_names() -> impl Iterator<Item = &'static str> {
    PLUGINS.iter().map(|plugin| plugin.name)
}

/// Acts as the plugin whose name the program was called with, or as its first argument says.
#[must_use]
pub fn main() -> ExitCode {
    let mut arguments = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned());
    let called = arguments.next().unwrap_or_default();
    let called = called.rsplit('/').next().unwrap_or_default().to_owned();
    let asked = arguments.next();
    let find = |name: &str| PLUGINS.iter().find(|plugin| plugin.name == name);
    let Some(plugin) = find(&called).or(asked.as_deref().and_then(find)) else {
        let names: Vec<_> = plugin_names().collect();
        eprintln!("crio-cni {}: CNI plugins {}", env!("CARGO_PKG_VERSION"), names.join(", "));
        eprintln!("call it by one of these names (a link), or give the name as the first argument");
        return ExitCode::from(2);
    };
    if std::env::var_os("CNI_COMMAND").is_none() {
        eprintln!("CNI {} plugin of crio-cni {}", plugin.name, env!("CARGO_PKG_VERSION"));
        eprintln!("CNI protocol versions supported: {}", SUPPORTED.join(", "));
        return ExitCode::SUCCESS;
    }
    let mut version = "1.1.0".to_owned();
    match run(plugin, &mut version) {
        Ok(output) if write(&output) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(failure) => {
            write(failure.to_json(&version).as_bytes());
            ExitCode::FAILURE
        }
    }
}

fn write(output: &[u8]) -> bool {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(output).and_then(|()| stdout.flush()).is_ok()
}

/// Reads the request, does it and returns what is to be printed. `version` becomes that of the request.
fn run(plugin: &Plugin, version: &mut String) -> Result<Vec<u8>, Failure> {
    let verb = Verb::from_environment()?;
    if verb == Verb::Version {
        let answer = serde_json::json!({ "cniVersion": "1.1.0", "supportedVersions": SUPPORTED });
        return Ok(answer.to_string().into_bytes());
    }
    let request = Request::load(verb)?;
    request.version.clone_into(version);
    match verb {
        Verb::Add => (plugin.add)(&request)?.to_bytes(&request.version),
        Verb::Del => (plugin.del)(&request).map(|()| Vec::new()),
        Verb::Check => (plugin.check)(&request).map(|()| Vec::new()),
        Verb::Status => (plugin.status)(&request).map(|()| Vec::new()),
        Verb::Gc => (plugin.gc)(&request).map(|()| Vec::new()),
        Verb::Version => Ok(Vec::new()),
    }
}
