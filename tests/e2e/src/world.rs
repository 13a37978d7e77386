//! A node of a scenario's own: directories, namespaces, network, registry, daemon; and the way to get rid of it all.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cri_api::v1;

use crate::cri::{Cri, own_processes};
use crate::image::{Format, Recipe};
use crate::namespace::{NODE_IP, Namespaces};
use crate::registry::{Access, Registry};
use crate::snapshot::{self, Snapshot};
use crate::storage::{BTRFS_BYTES, Storage};
use crate::tools;

/// A daemon that does not answer by then never will.
const START_LIMIT: Duration = Duration::from_secs(30);
/// What a service manager gives operations under way, and some more.
const END_LIMIT: Duration = Duration::from_secs(15);
/// How long what was killed may take to disappear: monitors notice, the kernel tidies up.
const SETTLE_LIMIT: Duration = Duration::from_secs(10);
/// Everything a scenario does; one that hangs fails while its world can still be looked at.
const SCENARIO_LIMIT: Duration = Duration::from_secs(200);
/// How every scenario's network and cgroup are called; the process follows, and a number.
const PREFIX: &str = "e2e-";
const CGROUPS: &str = "/sys/fs/cgroup";
/// How much of the daemon's log a failure shows; the rest is in the directory that is kept.
const LOG_TAIL_LINES: usize = 20;
const LOG_LINE_MAX: usize = 600;
/// Where the registry of every world listens; each has its own network.
const REGISTRY_PORT: u16 = 5000;
/// Where registries.conf allows registries without TLS.
pub const INSECURE_PORTS: std::ops::Range<u16> = 5000..5032;

/// Ids set aside for automatic user namespaces, of users and groups.
pub const FIRST_AUTO_ID: u32 = 1_000_000;
/// How many: two pods' worth.
pub const AUTO_IDS: u32 = 2 * 65536;

/// Which programs stand behind a runtime handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handler {
    /// Its name in requests.
    pub name: &'static str,
    runtime: &'static str,
    monitor: &'static str,
}

/// Every pair of runtime and monitor; the first is the default handler.
pub const HANDLERS: [Handler; 4] = [
    Handler { name: "crun", runtime: "crun", monitor: "crio-monitor" },
    Handler { name: "runc", runtime: "runc", monitor: "crio-monitor" },
    Handler { name: "crun-conmon", runtime: "crun", monitor: "conmon" },
    Handler { name: "runc-conmon", runtime: "runc", monitor: "conmon" },
];

/// What a scenario wants to be different.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// A drop-in for the daemon's configuration.
    pub drop_in: String,
    /// Lines of every runtime handler's table: a drop-in replaces a table as a whole.
    pub handler_lines: String,
    /// The CNI configuration; `None` is a bridge with host-local addresses.
    pub network: Option<String>,
    /// A further handler `vanishing`, whose runtime is a file in `tmp` that a scenario may take away.
    pub vanishing: bool,
    /// Further lines of storage.conf.
    pub storage_lines: String,
    /// What the store lies on.
    pub storage: Storage,
}

/// Runs a scenario in a world of its own, and looks afterwards whether anything is left of it.
///
/// Skips loudly where it cannot run. The world is taken away also when the scenario panics.
pub fn scenario(setup: Setup, body: impl AsyncFnOnce(&mut World)) {
    if !rustix::process::geteuid().is_root() {
        tools::say("\n*** SKIPPED: whole-house tests need root ***\n");
        return;
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("an async runtime");
    runtime.block_on(async {
        let mut world = World::new(setup);
        world.start_daemon().await;
        let before = world.settled().await;
        let done = tokio::time::timeout(SCENARIO_LIMIT, body(&mut world)).await;
        assert!(done.is_ok(), "the scenario took longer than {SCENARIO_LIMIT:?}");
        world.end(&before).await;
    });
}

/// A node.
#[derive(Debug)]
pub struct World {
    name: String,
    scratch: PathBuf,
    subnet: String,
    setup: Setup,
    daemon: Option<Child>,
    registries: Vec<Registry>,
    namespaces: Namespaces,
    pods: AtomicU32,
    starts: u32,
}

pub(crate) fn path_variable() -> String {
    format!("{}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin", std::env::var("PATH").unwrap_or_default())
}

fn kill(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        // It may have ended by now.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// A top cgroup and all beneath it, in every hierarchy, outermost first.
fn cgroups_beneath(name: &str) -> BTreeSet<PathBuf> {
    fn descend(directory: &Path, found: &mut BTreeSet<PathBuf>) {
        let Ok(entries) = std::fs::read_dir(directory) else { return };
        found.insert(directory.to_owned());
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            descend(&entry.path(), found);
        }
    }
    let mut found = BTreeSet::new();
    let root = Path::new(CGROUPS);
    descend(&root.join(name), &mut found);
    for hierarchy in tools::names(root) {
        descend(&root.join(hierarchy).join(name), &mut found);
    }
    found
}

/// Removes a top cgroup, and ends whatever still runs in it.
fn remove_cgroups(name: &str) {
    let deadline = Instant::now() + SETTLE_LIMIT;
    while !cgroups_beneath(name).is_empty() && Instant::now() < deadline {
        for directory in cgroups_beneath(name).iter().rev() {
            let processes = tools::read(directory.join("cgroup.procs"));
            processes.lines().filter_map(|line| line.parse().ok()).for_each(kill);
            let _ = std::fs::remove_dir(directory);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Ends what runs of a test that was killed and could not tidy up: everything else of it went with its process.
fn sweep() {
    let root = Path::new(CGROUPS);
    let hierarchies = tools::names(root).into_iter().flat_map(|name| tools::names(root.join(name)));
    let names: BTreeSet<String> = tools::names(root).into_iter().chain(hierarchies).collect();
    for name in names {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            remove_cgroups(&name);
        }
    }
}

/// Where cargo put a program of ours: beside the directory of the test's own executable.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("an executable");
    let found = own.ancestors().skip(1).take(2).map(|directory| directory.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("no {name} beside {}: run `cargo build --workspace --bins` first", own.display()))
}

impl World {
    fn new(setup: Setup) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        sweep();
        let base = std::env::var("E2E_SCRATCH").unwrap_or_else(|_| "/var/tmp".to_owned());
        // Short, because sockets lie 74 characters below it and the path of one may have 107.
        let scratch = tempfile::Builder::new().prefix("e2e.").tempdir_in(base).expect("a directory").keep();
        for directory in [
            "etc-containers",
            "var-lib-cni",
            "kubelet",
            "net.d",
            "plugins",
            "ns",
            "hooks",
            "conf.d",
            "tmp",
            "logs",
            "storage",
            "home",
        ] {
            std::fs::create_dir_all(scratch.join(directory)).expect("a directory");
        }
        tools::write(
            scratch.join("etc-containers/policy.json"),
            r#"{"default": [{"type": "insecureAcceptAnything"}]}"#,
        );
        for ids in ["etc-subuid", "etc-subgid"] {
            tools::write(scratch.join(ids), format!("containers:{FIRST_AUTO_ID}:{AUTO_IDS}\n"));
        }
        let insecure: String = INSECURE_PORTS
            .map(|port| format!("[[registry]]\nlocation = \"127.0.0.1:{port}\"\ninsecure = true\n"))
            .collect();
        tools::write(scratch.join("etc-containers/registries.conf"), insecure);
        let storage = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = \"{0}/storage\"\nrunroot = \"{0}/run\"\n{1}",
            scratch.display(),
            setup.storage_lines,
        );
        tools::write(scratch.join("etc-containers/storage.conf"), storage);
        let namespaces = Namespaces::new(&scratch);
        let subnet = "10.99.0".to_owned();
        let mut world = Self {
            name,
            scratch,
            subnet,
            setup,
            daemon: None,
            registries: Vec::new(),
            namespaces,
            pods: AtomicU32::new(0),
            starts: 0,
        };
        let storage = world.path("storage");
        match world.setup.storage {
            Storage::Directory => {}
            Storage::Memory(bytes) => {
                let options = format!("size={bytes},mode=0755");
                tools::run(world.command("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(storage));
            }
            Storage::Btrfs => {
                let image = world.path("tmp/btrfs");
                std::fs::File::create(&image).and_then(|file| file.set_len(BTRFS_BYTES)).expect("a file");
                tools::run(world.command("mkfs.btrfs").arg("--quiet").arg(&image));
                tools::run(world.command("mount").args(["-o", "loop"]).arg(&image).arg(storage));
            }
        }
        world.write_config();
        let registry = Registry::start(&world, REGISTRY_PORT, Access::Open);
        world.registries.push(registry);
        world
    }

    /// The table of a runtime handler.
    fn handler_table(&self, name: &str, runtime: &Path, monitor: &str) -> String {
        let monitor = match monitor {
            "crio-monitor" => binary("crio-monitor"),
            other => tools::find_program(other).unwrap_or_else(|| panic!("{other} is not installed")),
        };
        format!(
            "[crio.runtime.runtimes.{name}]\nruntime_path = {runtime:?}\nruntime_root = \"{root}/runtime/{name}\"\n\
             monitor_path = {monitor:?}\nmonitor_cgroup = \"pod\"\n{lines}\n",
            root = self.scratch.display(),
            lines = self.setup.handler_lines,
        )
    }

    fn write_config(&self) {
        let (root, subnet) = (self.scratch.display(), &self.subnet);
        let network = self.setup.network.clone().map(|text| text.replace("@ROOT@", &root.to_string()));
        let network = network.unwrap_or_else(|| {
            format!(
                r#"{{"cniVersion": "1.0.0", "name": "{name}", "plugins": [
                     {{"type": "bridge", "bridge": "pods0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
                       "ipam": {{"type": "host-local", "dataDir": "{root}/ipam", "ranges": [[{{"subnet": "{subnet}.0/24"}}]],
                                 "routes": [{{"dst": "0.0.0.0/0"}}]}}}}]}}"#,
                name = self.name,
            )
        });
        tools::write(self.path("net.d/10-pods.conflist"), network);
        let runtime = |name: &str| tools::find_program(name).unwrap_or_else(|| panic!("{name} is not installed"));
        let mut handlers: String = HANDLERS
            .iter()
            .map(|handler| self.handler_table(handler.name, &runtime(handler.runtime), handler.monitor))
            .collect();
        if self.setup.vanishing {
            let program = self.path("tmp/vanishing");
            tools::write_program(&program, &format!("#!/bin/sh\nexec {} \"$@\"\n", runtime("crun").display()));
            handlers.push_str(&self.handler_table("vanishing", &program, "crio-monitor"));
        }
        let config = format!(
            r#"
[crio]
root = "{root}/storage"
runroot = "{root}/run"
storage_driver = "overlay"
storage_option = []
log_dir = "{root}/daemon-logs"
version_file = "{root}/version"
version_file_persist = ""
clean_shutdown_file = "{root}/clean.shutdown"

[crio.api]
listen = "{root}/crio.sock"

[crio.runtime]
default_runtime = "crun"
cgroup_manager = "cgroupfs"
container_exits_dir = "{root}/exits"
container_attach_socket_dir = "{root}/a"
namespaces_dir = "{root}/ns"
hooks_dir = ["{root}/hooks"]
cdi_spec_dirs = ["{root}/cdi"]
apparmor_profile = "unconfined"
selinux = false

{handlers}

[crio.image]
pause_image = "127.0.0.1:{REGISTRY_PORT}/e2e/busybox:latest"
pause_command = "/pause"
signature_policy = "/etc/containers/policy.json"
big_files_temporary_dir = "{root}/tmp"

[crio.network]
network_dir = "{root}/net.d"
plugin_dirs = ["{root}/plugins", "/usr/lib/cni", "/opt/cni/bin"]

[crio.nri]
enable_nri = false
"#
        );
        tools::write(self.path("crio.conf"), config);
        tools::write(self.path("conf.d/10-scenario.conf"), self.setup.drop_in.replace("@ROOT@", &root.to_string()));
    }

    /// Starts the daemon, in the same namespaces as the one before it.
    pub async fn start_daemon(&mut self) {
        assert!(self.daemon.is_none(), "a daemon runs");
        self.starts += 1;
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("crio.log")).expect("a log");
        let daemon = self
            .command(binary("crio"))
            .arg("--config")
            .arg(self.path("crio.conf"))
            .arg("--config-dir")
            .arg(self.path("conf.d"))
            .args(["--log-level", "debug"])
            .env("TMPDIR", self.path("tmp"))
            .env("CRIO_DIE_AT_STEP", self.path("die-at-step"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("start crio");
        self.daemon = Some(daemon);
        let cri = self.cri();
        let deadline = Instant::now() + START_LIMIT;
        while !cri.answers().await {
            let ended = self.daemon.as_mut().and_then(|daemon| daemon.try_wait().expect("wait"));
            assert!(ended.is_none() && Instant::now() < deadline, "crio did not start: {}", self.log_tail());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends the daemon as a power cut would.
    pub fn kill_daemon(&mut self) {
        let mut daemon = self.daemon.take().expect("a daemon runs");
        daemon.kill().expect("kill");
        daemon.wait().expect("wait");
    }

    /// Ends the daemon as a service manager would, and tells whether it ended well.
    pub fn end_daemon(&mut self) -> bool {
        let Some(mut daemon) = self.daemon.take() else { return true };
        let pid = i32::try_from(daemon.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let deadline = Instant::now() + END_LIMIT;
        while Instant::now() < deadline {
            if let Some(status) = daemon.try_wait().expect("wait") {
                return status.success();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = daemon.kill();
        let _ = daemon.wait();
        false
    }

    /// From now on the daemon kills itself before its n-th write to the store, counted from 0; for builds with debug
    /// assertions. [`World::daemon_has_died`] must follow.
    pub fn let_daemon_die_at(&self, step: u32) {
        tools::write(self.path("die-at-step"), step.to_string());
    }

    /// Whether the daemon has killed itself; a living one is ended by force.
    pub fn daemon_has_died(&mut self) -> bool {
        let mut daemon = self.daemon.take().expect("a daemon runs");
        let _ = std::fs::remove_file(self.path("die-at-step"));
        // Whoever asked it for something may learn of the end sooner than the kernel tells.
        let deadline = Instant::now() + Duration::from_millis(300);
        let mut has_died = false;
        while !has_died && Instant::now() < deadline {
            has_died = daemon.try_wait().expect("wait").is_some();
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = daemon.kill();
        let _ = daemon.wait();
        has_died
    }

    /// A verb of the daemon's program, with the daemon's configuration.
    #[must_use]
    pub fn crio(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(binary("crio"));
        command
            .arg("--config")
            .arg(self.path("crio.conf"))
            .arg("--config-dir")
            .arg(self.path("conf.d"))
            .args(arguments);
        command
    }

    /// The daemon's process.
    #[must_use]
    pub fn daemon_pid(&self) -> u32 {
        self.daemon.as_ref().expect("a daemon runs").id()
    }

    /// The daemon's own memory, KiB. Pages of its program are not counted: an unoptimised one has many, and each is
    /// there from its first use on.
    #[must_use]
    pub fn daemon_resident_kib(&self) -> u64 {
        let status = tools::read(format!("/proc/{}/status", self.daemon_pid()));
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).expect("RssAnon")
    }

    /// A connection to the daemon.
    #[must_use]
    pub fn cri(&self) -> Cri {
        Cri::new(&self.path("crio.sock"))
    }

    /// The last lines of the daemon's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = tools::read(self.path("crio.log"));
        let is_telling = |line: &&str| !line.contains("msg=\"configuration:") && !line.contains("msg=\"FLAG:");
        let cut = |line: &str| line.chars().take(LOG_LINE_MAX).collect::<String>();
        let lines: Vec<String> = log.lines().filter(is_telling).map(cut).collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }

    /// A path in the scratch directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    /// A path as it looks in the node's mount namespace.
    #[must_use]
    pub fn inside(&self, path: &Path) -> PathBuf {
        self.namespaces.inside(path)
    }

    /// The network's name, which is also the cgroup of all pods.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address of the node on a network that is not the pods'.
    #[must_use]
    pub fn node_ip(&self) -> &'static str {
        NODE_IP
    }

    /// The node's registry.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registries[0]
    }

    /// Starts another registry that lives as long as the world.
    pub fn add_registry(&mut self, port: u16, access: Access) -> String {
        let registry = Registry::start(self, port, access);
        let host = registry.host().to_owned();
        self.registries.push(registry);
        host
    }

    /// A command in the node's namespaces, with an environment of the scenario's own.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.namespaces.command(program);
        // The machine's proxies, credentials and container tools' settings are none of the scenario's business.
        command.env_clear().env("PATH", path_variable()).env("HOME", self.path("home")).env("LC_ALL", "C.UTF-8");
        command
    }

    /// Does something in the node's network namespace.
    pub fn in_network<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.namespaces.in_network(work)
    }

    /// Puts the busybox image into the registry and has the daemon pull it. Returns its name.
    pub async fn busybox(&self) -> String {
        let image = Recipe::busybox(Format::Oci).build();
        let name = self.registry().push(self, "e2e/busybox:latest", &image);
        self.cri().pull(&name).await.expect("PullImage");
        name
    }

    /// A pod in the scenario's cgroup, with a log directory of its own.
    #[must_use]
    pub fn pod_config(&self, name: &str) -> v1::PodSandboxConfig {
        let number = self.pods.fetch_add(1, Ordering::Relaxed);
        let uid = format!("uid-{number}-{}", self.name);
        v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: name.to_owned(),
                uid: uid.clone(),
                namespace: "e2e".to_owned(),
                attempt: 0,
            }),
            log_directory: self.path("logs").join(uid).display().to_string(),
            labels: HashMap::from([("pod".to_owned(), name.to_owned())]),
            linux: Some(v1::LinuxPodSandboxConfig {
                cgroup_parent: format!("/{}", self.name),
                security_context: Some(v1::LinuxSandboxSecurityContext {
                    namespace_options: Some(own_processes()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub(crate) fn holder_pid(&self) -> u32 {
        self.namespaces.pid()
    }

    /// The cgroups of the scenario, outermost first.
    pub(crate) fn cgroups(&self) -> BTreeSet<PathBuf> {
        cgroups_beneath(&self.name)
    }

    /// Every process of the scenario but those that hold it up: in its cgroups or namespaces, or naming its directory.
    pub(crate) fn processes(&self) -> Vec<(i32, String)> {
        let known: Vec<u32> = [self.holder_pid()]
            .into_iter()
            .chain(self.daemon.as_ref().map(Child::id))
            .chain(self.registries.iter().map(Registry::pid))
            .collect();
        let own = ["ns/mnt", "ns/net"];
        let ours: Vec<_> =
            own.iter().filter_map(|ns| std::fs::read_link(format!("/proc/{}/{ns}", self.holder_pid())).ok()).collect();
        let scratch = self.scratch.display().to_string();
        let mut found = Vec::new();
        for pid in tools::names("/proc").iter().filter_map(|name| name.parse::<i32>().ok()) {
            if u32::try_from(pid).is_ok_and(|pid| known.contains(&pid)) {
                continue;
            }
            let proc = PathBuf::from(format!("/proc/{pid}"));
            let command = tools::read(proc.join("cmdline")).replace('\0', " ");
            let is_ours = command.contains(&scratch)
                || tools::read(proc.join("cgroup")).contains(&self.name)
                || own.iter().filter_map(|ns| std::fs::read_link(proc.join(ns)).ok()).any(|ns| ours.contains(&ns));
            // A zombie has no command line; whoever must reap it is not always quick.
            if is_ours && !command.is_empty() {
                found.push((pid, command.trim_end().chars().take(160).collect()));
            }
        }
        found
    }

    /// What there is of the scenario.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        snapshot::take(self)
    }

    /// What there is of the scenario once two looks in a row see the same.
    pub async fn settled(&self) -> Snapshot {
        let deadline = Instant::now() + SETTLE_LIMIT;
        let mut last = self.snapshot();
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let next = self.snapshot();
            if next == last || Instant::now() > deadline {
                return next;
            }
            last = next;
        }
    }

    /// Waits until there is nothing that was not there before; fails with what there is.
    pub async fn assert_nothing_since(&self, before: &Snapshot) {
        self.assert_nothing_but(before, |_| false).await;
    }

    async fn assert_nothing_but(&self, before: &Snapshot, is_fine: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + SETTLE_LIMIT;
        loop {
            let left: Vec<String> =
                self.snapshot().since(before).lines().filter(|line| !is_fine(line)).map(str::to_owned).collect();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "this was left behind:\n  {}", left.join("\n  "));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Removes what the scenario did not, and looks whether the kernel has nothing left of it.
    async fn end(mut self, before: &Snapshot) {
        let cri = self.cri();
        if self.daemon.is_none() {
            self.start_daemon().await;
        }
        for pod in cri.pods().await {
            cri.end_pod(&pod.id).await;
        }
        let parents: Vec<PathBuf> = self.parent_cgroups();
        self.assert_nothing_but(before, |line| {
            let (kind, what) = line.split_once(' ').unwrap_or_default();
            match kind {
                // Images may stay, and what the network keeps for the next pod.
                "file" | "nft" => true,
                "link" => what == "pods0",
                // The pods' parent is the client's.
                "cgroup" => parents.iter().any(|parent| parent.as_os_str() == what),
                _ => false,
            }
        })
        .await;
        assert!(self.end_daemon(), "the daemon did not end well: {}", self.log_tail());
    }

    fn parent_cgroups(&self) -> Vec<PathBuf> {
        self.cgroups().into_iter().filter(|path| path.ends_with(&self.name)).collect()
    }

    /// The processes of the scenario that have the text in their command line.
    #[must_use]
    pub fn find_processes(&self, text: &str) -> Vec<i32> {
        self.processes().into_iter().filter(|(_, command)| command.contains(text)).map(|(pid, _)| pid).collect()
    }

    /// Ends one process of the scenario by force.
    pub fn kill_process(&self, pid: i32) {
        kill(pid);
    }

    /// Ends every pod's processes and monitors by force, as a reboot does.
    pub fn end_processes(&self) {
        let deadline = Instant::now() + SETTLE_LIMIT;
        loop {
            let processes = self.processes();
            processes.iter().for_each(|(pid, _)| kill(*pid));
            if processes.is_empty() || Instant::now() > deadline {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends everything by force.
    fn destroy(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        self.end_processes();
        remove_cgroups(&self.name);
        self.registries.clear();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let is_failure = std::thread::panicking();
        if is_failure {
            eprintln!("--- the last lines of the daemon\n{}\n---", self.log_tail());
            tools::write(self.path("left-behind"), self.snapshot().to_string());
        }
        self.destroy();
        if is_failure {
            eprintln!("logs and state are kept in {}", self.scratch.display());
        } else {
            // Mounts of the node's namespace hide nothing here: this namespace never had them.
            let _ = std::fs::remove_dir_all(&self.scratch);
        }
    }
}
