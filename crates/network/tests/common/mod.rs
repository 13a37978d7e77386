//! A node of its own for each test: a network namespace in which plugins, firewalls and the test itself run, so that
//! nothing outside changes and everything vanishes with it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::future::Future;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use domain::id::SandboxId;
use network::{Attachment, Network, NetworkOptions};
use sys::namespace::{self, Kinds, Wanted};

/// The reference plugins of the distribution.
pub(crate) const PLUGINS: &str = "/usr/lib/cni";

/// Directories and namespaces of a test. Unpins when dropped, also by a panic.
pub(crate) struct Node {
    dir: tempfile::TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        for pin in std::fs::read_dir(self.path("ns/netns")).into_iter().flatten().flatten() {
            let _ = namespace::unpin(&pin.path());
        }
    }
}

/// Runs a test on its own node; skips loudly without root or plugins.
pub(crate) fn on_node<F: Future<Output = ()>>(test: impl FnOnce(NodeRef) -> F + Send) {
    if !rustix::process::geteuid().is_root() || !Path::new(PLUGINS).join("bridge").exists() {
        eprintln!("SKIPPED: needs root and the reference CNI plugins in {PLUGINS}");
        return;
    }
    let node = Node { dir: tempfile::tempdir().unwrap() };
    let reference = NodeRef { root: node.dir.path().to_owned() };
    for dir in ["conf", "bin", "cache", "ipam", "log"] {
        std::fs::create_dir(node.path(dir)).unwrap();
    }
    let home = reference.open(&reference.new_netns("node"));
    namespace::on_fresh_thread(home.as_fd(), || {
        // One thread: children start on it and thereby in its namespace.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test(reference));
    })
    .unwrap();
}

impl Node {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// What a test sees of its node.
#[derive(Clone)]
pub(crate) struct NodeRef {
    pub(crate) root: PathBuf,
}

impl NodeRef {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn new_netns(&self, name: &str) -> PathBuf {
        let wanted = Wanted { kinds: Kinds { net: true, ..Kinds::default() }, ..Wanted::default() };
        namespace::pin(&self.path("ns"), name, &wanted).unwrap().net.unwrap()
    }

    pub(crate) fn open(&self, netns: &Path) -> OwnedFd {
        namespace::open(netns).unwrap()
    }

    /// Runs blocking work in another namespace.
    pub(crate) fn inside<T: Send>(&self, netns: &Path, work: impl FnOnce() -> T + Send) -> T {
        namespace::on_fresh_thread(self.open(netns).as_fd(), work).unwrap()
    }

    /// A file below the node, written whole.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        sh(&format!("cat > '{}.new' && mv '{0}.new' '{0}'", path.display()), text);
    }

    /// An executable plugin below `bin`.
    pub(crate) fn plugin(&self, name: &str, script: &str) {
        let path = self.path("bin").join(name);
        sh(
            &format!("cat > '{0}.new' && chmod 755 '{0}.new' && mv '{0}.new' '{0}'", path.display()),
            &format!("#!/bin/sh\n{script}\n"),
        );
    }

    pub(crate) fn options(&self) -> NetworkOptions {
        NetworkOptions {
            conf_dir: self.path("conf"),
            plugin_dirs: vec![self.path("bin"), PLUGINS.into()],
            cache_dir: self.path("cache/results"),
            ..NetworkOptions::default()
        }
    }

    pub(crate) async fn network(&self) -> Network {
        let network = Network::new(self.options());
        network.load().await;
        network
    }

    /// A bridge network with addresses 10.N.0.0/24 and fd00:N::/64.
    pub(crate) fn bridge_conf(&self, version: &str, number: u8) -> String {
        let ipam = self.path("ipam");
        let ranges = if version < "0.3.0" {
            format!(r#""subnet":"10.{number}.0.0/24","routes":[{{"dst":"0.0.0.0/0"}}]"#)
        } else {
            format!(
                r#""ranges":[[{{"subnet":"10.{number}.0.0/24"}}],[{{"subnet":"fd00:{number}::/64"}}]],
                   "routes":[{{"dst":"0.0.0.0/0"}},{{"dst":"::/0"}}]"#
            )
        };
        format!(
            r#""type":"bridge","bridge":"tb{number}","isGateway":true,"ipMasq":true,"hairpinMode":true,
               "ipam":{{"type":"host-local","dataDir":"{}",{ranges}}}"#,
            ipam.display()
        )
    }

    pub(crate) fn cache_files(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.path("cache/results"))
            .into_iter()
            .flatten()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Addresses that host-local has given out.
    pub(crate) fn leases(&self, network: &str) -> Vec<String> {
        let listing = std::fs::read_dir(self.path("ipam").join(network)).into_iter().flatten();
        let names = listing.map(|file| file.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(|c: char| c.is_ascii_hexdigit()) && name.contains(['.', ':'])).collect()
    }
}

/// Runs a shell script with input and returns what it printed.
pub(crate) fn sh(script: &str, input: &str) -> String {
    use std::io::Write as _;
    use std::process::Stdio;
    let mut command = Command::new("/bin/sh");
    command.arg("-ec").arg(script).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{script}: {}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn id(number: u8) -> SandboxId {
    SandboxId::from_bytes([number; 32])
}

pub(crate) fn attachment(number: u8, netns: Option<PathBuf>) -> Attachment {
    Attachment {
        sandbox_id: id(number),
        name: format!("pod{number}"),
        namespace: "default".to_owned(),
        uid: format!("uid-{number}"),
        netns,
        ifname: "eth0".to_owned(),
        annotations: BTreeMap::new(),
        cgroup_parent: String::new(),
    }
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
