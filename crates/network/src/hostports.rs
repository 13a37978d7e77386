//! Ports of the node that lead into sandboxes.
//!
//! The rules are in the kernel, under names that CRI-O uses too: whichever daemon removes a sandbox finds them. Nothing
//! is remembered here. nftables is used where it works, else iptables; removal looks in both, because another version
//! or a distribution's upgrade may have chosen otherwise.
//!
//! Other than with CRI-O, host ports answer on 127.0.0.1 as well (module `nft` tells how, and how that is kept narrow).

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use domain::id::SandboxId;
use thiserror::Error;
use tokio::sync::Mutex;

use self::family::{Family, reaches_loopback};
use self::iptables::Table;
use crate::directory::chain;
use crate::port::{PortMapping, Protocol};

mod family;
mod iptables;
mod localnet;
mod name;
mod nft;
mod tool;

pub use iptables::fuzz_iptables_save;
pub use nft::fuzz_nft_listing;
pub use tool::ToolError;

/// How often a change is tried when others change the same table meanwhile: each try sees their result.
const ATTEMPTS_MAX: usize = 4;
/// What nft and iptables say when somebody else was faster; the same change may pass now.
const BUSY: [&str; 4] = ["Resource busy", "resource busy", "temporarily unavailable", "Interrupted"];
/// Seconds iptables waits for its lock, within the limit of a tool.
const IPTABLES_WAIT: [&str; 2] = ["-w", "20"];

/// Neither nftables nor iptables works for IPv4.
#[derive(Debug, Error)]
#[error("no support for host ports: nftables: {nftables}; iptables: {iptables}")]
pub struct DetectError {
    /// Why not nftables.
    pub nftables: String,
    /// Why not iptables.
    pub iptables: String,
}

/// Why ports could not be added or removed.
#[derive(Debug, Error)]
pub enum HostPortError {
    /// The sandbox has an address of a family for which no firewall works here.
    #[error("no host port support for {address} on this node")]
    Unsupported {
        /// The sandbox's address.
        address: IpAddr,
    },
    /// A tool refused the change; the message shows which rule.
    #[error("add host ports of sandbox {sandbox}")]
    Add {
        /// The sandbox.
        sandbox: SandboxId,
        /// What the tool said.
        #[source]
        source: ToolError,
    },
    /// A tool refused the removal. What could be removed is.
    #[error("remove host ports of sandbox {sandbox}")]
    Remove {
        /// The sandbox.
        sandbox: SandboxId,
        /// What the tool said.
        #[source]
        source: ToolError,
    },
}

/// iptables of one family.
#[derive(Debug)]
struct Iptables {
    save: PathBuf,
    restore: PathBuf,
    /// Whether there may be something to remove: found at the start, or added since.
    used: AtomicBool,
}

/// What works for one family.
#[derive(Debug)]
struct BackEnds {
    family: Family,
    nft: bool,
    iptables: Option<Iptables>,
}

/// The node's host ports. One per daemon: changes take turns.
#[derive(Debug)]
pub struct HostPorts {
    nft: Option<PathBuf>,
    conntrack: Option<PathBuf>,
    families: [BackEnds; 2],
    turn: Mutex<()>,
    missed_conntrack: AtomicBool,
}

impl HostPorts {
    /// Finds out what this node has; executes nft and iptables-save once for each family.
    ///
    /// Fails when nothing works for IPv4. A missing IPv6 is only logged.
    pub async fn detect() -> Result<Self, DetectError> {
        Self::detect_with(tool::find("nft")).await
    }

    /// As on a node without nftables.
    #[doc(hidden)]
    pub async fn detect_iptables() -> Result<Self, DetectError> {
        Self::detect_with(None).await
    }

    async fn detect_with(nft: Option<PathBuf>) -> Result<Self, DetectError> {
        let [(v4, why_not), (v6, _)] = {
            let probe = |family| probe(family, nft.as_ref());
            let (v4, v6) = tokio::join!(probe(Family::V4), probe(Family::V6));
            [v4, v6]
        };
        if !v4.nft && v4.iptables.is_none() {
            return Err(why_not);
        }
        if !v6.nft && v6.iptables.is_none() {
            tracing::info!("no support for IPv6 host ports");
        }
        Ok(Self {
            nft,
            conntrack: tool::find("conntrack"),
            families: [v4, v6],
            turn: Mutex::default(),
            missed_conntrack: AtomicBool::new(false),
        })
    }

    fn back_ends(&self, family: Family) -> &BackEnds {
        match family {
            Family::V4 => &self.families[0],
            Family::V6 => &self.families[1],
        }
    }

    /// Leads ports of the node to the sandbox's first address of each family.
    ///
    /// Mappings without host port are skipped, those with a host address of the other family too. A port that another
    /// sandbox holds is taken over: the scheduler does not plan that, so the holder is a leftover. All or nothing for a
    /// family; after an error call [`HostPorts::remove`].
    pub async fn add(
        &self,
        sandbox: &SandboxId,
        ips: &[IpAddr],
        mappings: &[PortMapping],
    ) -> Result<(), HostPortError> {
        let mut nft_work = Vec::new();
        let mut iptables_work = Vec::new();
        for family in Family::BOTH {
            let selected = family.select(mappings);
            let Some(address) = ips.iter().copied().find(|ip| Family::of(*ip) == family) else { continue };
            if selected.is_empty() {
                continue;
            }
            match self.back_ends(family) {
                BackEnds { nft: true, .. } => nft_work.push((family, address, selected)),
                BackEnds { iptables: Some(iptables), .. } => iptables_work.push((family, address, selected, iptables)),
                BackEnds { .. } => return Err(HostPortError::Unsupported { address }),
            }
        }
        let failed = |source| HostPortError::Add { sandbox: sandbox.clone(), source };
        let _turn = self.turn.lock().await;
        if !nft_work.is_empty() {
            self.nft_add(sandbox, &nft_work).await.map_err(failed)?;
        }
        for (family, address, selected, iptables) in &iptables_work {
            iptables.used.store(true, Ordering::Relaxed);
            let edit = |now: &Table| Some(iptables::add(now, sandbox.as_str(), *address, selected));
            iptables.change("nat", edit).await.map_err(failed)?;
            let device = loopback_device(*family, *address, selected);
            if let Some(device) = device.filter(|device| !localnet::is_allowed(device)) {
                iptables.change("raw", |now| iptables::guard(now, &device)).await.map_err(failed)?;
                localnet::allow(&device);
            }
        }
        let touched = nft_work.iter().map(|(family, _, selected)| (*family, selected));
        for (family, selected) in touched.chain(iptables_work.iter().map(|work| (work.0, &work.2))) {
            self.forget_udp(family, selected).await;
        }
        Ok(())
    }

    /// Removes whatever leads to the sandbox, in both firewalls. Idempotent.
    ///
    /// nftables needs only the id; the chains of iptables are found by id and mapping, so give those of the sandbox.
    pub async fn remove(&self, sandbox: &SandboxId, mappings: &[PortMapping]) -> Result<(), HostPortError> {
        let _turn = self.turn.lock().await;
        let mut failure = None;
        if self.families.iter().any(|back_ends| back_ends.nft) {
            failure = self.nft_remove(sandbox).await.err();
        }
        for back_ends in &self.families {
            let Some(iptables) = back_ends.iptables.as_ref().filter(|it| it.used.load(Ordering::Relaxed)) else {
                continue;
            };
            let selected = back_ends.family.select(mappings);
            let outcome = iptables.remove(sandbox, &selected, back_ends.family).await;
            match outcome {
                Ok(()) => {}
                // What matters is where ports are added.
                Err(error) if back_ends.nft => {
                    tracing::debug!(sandbox.id = %sandbox, error = chain(&error), "removing host ports from iptables failed");
                }
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        match failure {
            None => Ok(()),
            Some(source) => Err(HostPortError::Remove { sandbox: sandbox.clone(), source }),
        }
    }

    async fn nft_run(&self, args: &[&str], input: &str) -> Result<Vec<u8>, ToolError> {
        let nft = self.nft.as_ref().expect("nft was found before any family could use it");
        tool::run(nft, args, input).await
    }

    async fn nft_add(
        &self,
        sandbox: &SandboxId,
        work: &[(Family, IpAddr, Vec<&PortMapping>)],
    ) -> Result<(), ToolError> {
        let mut text = String::new();
        let mut devices = Vec::new();
        for (family, address, selected) in work {
            text.push_str(&nft::static_objects(*family));
            text.push_str(&nft::elements(*family, sandbox.as_str(), *address, selected));
            devices.extend(loopback_device(*family, *address, selected));
        }
        // Guarded before it is opened, in the same transaction as the ports; guarded too when somebody opened it already.
        for device in &devices {
            text.push_str(&nft::guard(device, !localnet::is_allowed(device)));
        }
        let mut evictions = String::new();
        for attempt in 1.. {
            match self.nft_run(&["-f", "-"], &format!("{evictions}{text}")).await {
                Ok(_) => break,
                Err(error) if attempt < ATTEMPTS_MAX && error.says(&["File exists"]) => {
                    evictions = self.occupants(work).await;
                }
                Err(error) if attempt < ATTEMPTS_MAX && error.says(&["No such file"]) => evictions.clear(),
                Err(error) if attempt < ATTEMPTS_MAX && error.says(&BUSY) => {}
                Err(error) => return Err(error),
            }
        }
        for device in &devices {
            localnet::allow(device);
        }
        Ok(())
    }

    /// What deletes the elements that are where new ones are to be.
    async fn occupants(&self, work: &[(Family, IpAddr, Vec<&PortMapping>)]) -> String {
        let mut text = String::new();
        for (family, _, selected) in work {
            for element in self.nft_elements(*family).await.unwrap_or_default() {
                if selected.iter().any(|mapping| element.occupies(mapping)) {
                    tracing::warn!(port = element.key, holder = element.comment, "taking over a host port left behind");
                    text.push_str(&element.delete(*family));
                }
            }
        }
        text
    }

    async fn nft_elements(&self, family: Family) -> Result<Vec<nft::Element>, ToolError> {
        match self.nft_run(&["-j", "list", "table", family.nft(), nft::TABLE], "").await {
            Ok(json) => Ok(nft::parse_elements(&json)),
            Err(error) if error.says(&["No such file"]) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    async fn nft_remove(&self, sandbox: &SandboxId) -> Result<(), ToolError> {
        for attempt in 1.. {
            let list = async |family| match self.back_ends(family).nft {
                true => self.nft_elements(family).await,
                false => Ok(Vec::new()),
            };
            let (v4, v6) = tokio::join!(list(Family::V4), list(Family::V6));
            let (v4, v6) = (v4?, v6?);
            let mut text = String::new();
            for (family, elements) in [(Family::V4, &v4), (Family::V6, &v6)] {
                let own = elements.iter().filter(|element| element.is_of(sandbox.as_str()));
                own.for_each(|element| text.push_str(&element.delete(family)));
            }
            // Devices are closed again with the last mapping, or when they are gone.
            let mappings_stay = v4.iter().any(|element| element.is_mapping() && !element.is_of(sandbox.as_str()));
            for element in &v4 {
                let Some(device) = element.device() else { continue };
                let is_idle = element.is_opened_here() && !mappings_stay;
                if is_idle {
                    localnet::forbid(device);
                }
                if is_idle || !localnet::exists(device) {
                    text.push_str(&nft::unguard(device));
                }
            }
            if text.is_empty() {
                return Ok(());
            }
            match self.nft_run(&["-f", "-"], &text).await {
                Ok(_) => return Ok(()),
                // Somebody else removed an element in between: look again.
                Err(error) if attempt < ATTEMPTS_MAX && (error.says(&["No such file"]) || error.says(&BUSY)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Connections from before the ports were added would go on missing them: UDP has no end that the kernel sees.
    async fn forget_udp(&self, family: Family, mappings: &[&PortMapping]) {
        for mapping in mappings.iter().filter(|mapping| mapping.protocol == Protocol::Udp) {
            let Some(conntrack) = &self.conntrack else {
                if !self.missed_conntrack.swap(true, Ordering::Relaxed) {
                    tracing::info!(
                        "the conntrack tool is not installed: UDP flows may miss new host ports for a while"
                    );
                }
                return;
            };
            let family = if family == Family::V4 { "ipv4" } else { "ipv6" };
            let port = mapping.host_port.to_string();
            match tool::run(conntrack, &["-D", "-f", family, "-p", "udp", "--orig-port-dst", &port], "").await {
                Ok(_) => {}
                // It calls it a failure to find nothing.
                Err(error) if error.says(&["0 flow entries"]) => {}
                Err(error) => tracing::warn!(port, error = chain(&error), "cannot forget UDP flows of a host port"),
            }
        }
    }
}

impl Iptables {
    async fn table(&self, name: &str) -> Result<Table, ToolError> {
        let text = tool::run(&self.save, &["-t", name], "").await?;
        Ok(Table::parse(&String::from_utf8_lossy(&text)))
    }

    /// Reads a table and writes what follows from it; again when others changed it in between.
    async fn change(&self, name: &str, edit: impl Fn(&Table) -> Option<String>) -> Result<(), ToolError> {
        let mut attempt = 1;
        loop {
            let Some(text) = edit(&self.table(name).await?) else { return Ok(()) };
            let args = ["--noflush", IPTABLES_WAIT[0], IPTABLES_WAIT[1]];
            match tool::run(&self.restore, &args, &text).await {
                Ok(_) => return Ok(()),
                Err(error) if attempt >= ATTEMPTS_MAX => return Err(error),
                Err(_) => attempt += 1,
            }
        }
    }

    async fn remove(&self, sandbox: &SandboxId, mappings: &[&PortMapping], family: Family) -> Result<(), ToolError> {
        self.change("nat", |now| iptables::remove(now, sandbox.as_str(), mappings)).await?;
        if family == Family::V4 && !self.table("nat").await?.has_mappings() {
            for device in self.table("raw").await?.guarded() {
                localnet::forbid(&device);
                let text = iptables::unguard(&device);
                self.change("raw", |now| now.guarded().contains(&device).then(|| text.clone())).await?;
            }
        }
        Ok(())
    }
}

/// The device to open for packets from loopback, when a mapping wants that. A sandbox behind a gateway is not on this
/// node, and the way to it is not opened.
fn loopback_device(family: Family, address: IpAddr, mappings: &[&PortMapping]) -> Option<String> {
    let wanted = family == Family::V4 && mappings.iter().any(|mapping| reaches_loopback(mapping));
    if !wanted {
        return None;
    }
    match sys::link::on_link_device(address) {
        Ok(device) => device.filter(|device| device != "lo"),
        Err(error) => {
            tracing::warn!(%address, %error, "cannot tell which device leads to a sandbox: no host ports on 127.0.0.1");
            None
        }
    }
}

async fn probe(family: Family, nft: Option<&PathBuf>) -> (BackEnds, DetectError) {
    let nft_refusal = match nft {
        None => Some("nft is not installed".to_owned()),
        // Checked by the kernel, which loads what it needs, and not committed.
        Some(nft) => tool::run(nft, &["--check", "-f", "-"], &nft::static_objects(family))
            .await
            .err()
            .map(|error| error.to_string()),
    };
    let (save, restore) = iptables::commands(family);
    let (iptables, refusal) = match (tool::find(save), tool::find(restore)) {
        (Some(save), Some(restore)) => {
            let iptables = Iptables { save, restore, used: AtomicBool::new(false) };
            match iptables.table("nat").await {
                Ok(table) => {
                    iptables.used.store(table.has_mappings(), Ordering::Relaxed);
                    (Some(iptables), String::new())
                }
                Err(error) => (None, error.to_string()),
            }
        }
        _ => (None, format!("{save} and {restore} are not installed")),
    };
    let refused = DetectError { nftables: nft_refusal.clone().unwrap_or_default(), iptables: refusal };
    (BackEnds { family, nft: nft_refusal.is_none(), iptables }, refused)
}
