//! A node's own mount and network namespace, held by a process that ends with the test.
//!
//! The mount namespace is shared inside, as that of a node is. cgroup2 beside cgroup v1 hierarchies with controllers of
//! its own is unmounted in it: Debian's crun refuses such a machine. A daemon that was killed can be started again in the
//! same namespaces, as they belong to the holder.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The address by which other machines would know this node; from the documentation's range, so that no route is hurt.
pub(crate) const NODE_IP: &str = "198.51.100.1";

const PREPARE: &str = r#"set -e
if [ -e /sys/fs/cgroup/memory/cgroup.procs ] && grep -q ' /sys/fs/cgroup/unified ' /proc/self/mounts; then
  umount /sys/fs/cgroup/unified
fi
mkdir -p /var/lib/cni /var/lib/kubelet
mount --bind "$1/var-lib-cni" /var/lib/cni
mount --bind "$1/kubelet" /var/lib/kubelet
mount --bind "$1/etc-containers" /etc/containers
for ids in subuid subgid; do
  if [ -e /etc/$ids ]; then mount --bind "$1/etc-$ids" /etc/$ids; fi
done
mount --make-rshared /
ip link set lo up
ip link add node0 type veth peer name node1
ip address add "$2/24" dev node0
ip link set node1 up
ip link set node0 up
echo ready
exec cat
"#;

#[derive(Debug)]
pub(crate) struct Namespaces {
    holder: Child,
    network: File,
}

impl Namespaces {
    /// Makes them. `scratch` is where the stand-ins for /etc/containers, /etc/subuid, /etc/subgid, /var/lib/cni and
    /// /var/lib/kubelet lie.
    pub(crate) fn new(scratch: &Path) -> Self {
        let mut holder = Command::new("unshare")
            .args(["--mount", "--net", "--propagation", "private", "--", "/bin/sh", "-c", PREPARE, "holder"])
            .arg(scratch)
            .arg(NODE_IP)
            .env("PATH", super::world::path_variable())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the holder of the namespaces");
        let mut line = String::new();
        let stdout = holder.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("read from the holder");
        assert_eq!(line, "ready\n", "the node's namespaces could not be prepared");
        let network = File::open(format!("/proc/{}/ns/net", holder.id())).expect("open the network namespace");
        Self { holder, network }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// A command that runs in both namespaces.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(self.pid().to_string()).args(["--mount", "--net", "--"]).arg(program);
        command
    }

    /// Does something on a thread of its own in the network namespace. Sockets made there stay there.
    pub(crate) fn in_network<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(self.network.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("enter the network namespace");
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A path as it looks in the mount namespace.
    pub(crate) fn inside(&self, path: &Path) -> PathBuf {
        let relative = path.strip_prefix("/").expect("an absolute path");
        PathBuf::from(format!("/proc/{}/root", self.pid())).join(relative)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
