//! The runtimes of this machine take the specs: create, start, the program sees what was asked, delete.
//! Needs root, `busybox` (static), `unshare` and a runtime; says what it skips.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use domain::container::{ContainerConfig, ContainerMetadata, ContainerSecurity};
use domain::id::{ContainerId, SandboxId};
use domain::image::ImageConfig;
use domain::resources::Resources;
use domain::sandbox::SandboxConfig;
use domain::security::{NamespaceMode, NamespaceOptions};
use domain::spec::annotations::{ContainerFacts, container_annotations};
use domain::spec::{
    CapabilitySet, CgroupManagerKind, CgroupPlacement, CgroupVersion, ContainerInputs, CpuInputs, Edits,
    GeneratedFiles, HandlerFacts, InfraInputs, MountAccess, NamespacePaths, NodeFacts, ResolvedMount, SelinuxLabels,
    SpecDefaults, container_spec, infra_spec,
};
use domain::time::Timestamp;
use domain::user::{UserRequest, resolve_user};

/// A directory, a process that holds namespaces, and what was created with runtimes; all gone at the end.
struct Bench {
    directory: PathBuf,
    holder: Child,
    created: Vec<(String, String)>,
}

fn has(program: &str) -> bool {
    Command::new("sh")
        .args(["-c", &format!("command -v {program}")])
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

fn write(path: &Path, bytes: &[u8]) {
    fs::File::create(path).and_then(|mut file| file.write_all(bytes)).expect("writes");
}

fn status_field(name: &str) -> String {
    let status = fs::read_to_string("/proc/self/status").expect("reads");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("has the field");
    line.trim_start_matches(':').trim().to_owned()
}

impl Bench {
    fn new(name: &str) -> Option<Self> {
        let is_root = status_field("Uid").starts_with("0\t");
        if !is_root || !has("busybox") || !has("unshare") {
            println!("SKIPPED: root, busybox and unshare are needed");
            return None;
        }
        let directory = std::env::temp_dir().join(format!("crio-spec-{}-{name}", std::process::id()));
        let rootfs = directory.join("rootfs");
        for below in ["bin", "etc", "proc", "sys", "dev", "run", "tmp", "data"] {
            fs::create_dir_all(rootfs.join(below)).expect("makes directories");
        }
        fs::create_dir_all(directory.join("shm")).expect("makes directories");
        let busybox = Command::new("sh").args(["-c", "command -v busybox"]).output().expect("finds busybox").stdout;
        let busybox = String::from_utf8(busybox).expect("a path");
        fs::copy(busybox.trim(), rootfs.join("bin/busybox")).expect("copies busybox");
        std::os::unix::fs::symlink("busybox", rootfs.join("bin/sh")).expect("links");
        write(&rootfs.join("etc/passwd"), b"root:x:0:0::/root:/bin/sh\nweb:x:33:34::/data:/bin/sh\n");
        write(&rootfs.join("etc/group"), b"root:x:0:\nweb:x:34:\nlogs:x:40:web\n");
        for file in ["resolv.conf", "hostname", "containerenv"] {
            write(&directory.join(file), b"from-the-daemon\n");
        }
        let holder = Command::new("unshare").args(["-n", "-i", "-u", "sleep", "120"]).spawn().expect("unshares");
        std::thread::sleep(Duration::from_millis(200));
        Some(Self { directory, holder, created: vec![] })
    }

    fn text(&self, below: &str) -> String {
        self.directory.join(below).to_str().expect("UTF-8").to_owned()
    }

    fn namespaces(&self) -> NamespacePaths {
        let pin = |kind: &str| Some(format!("/proc/{}/ns/{kind}", self.holder.id()));
        NamespacePaths {
            network: pin("net"),
            ipc: pin("ipc"),
            uts: pin("uts"),
            user: None,
            pid: None,
            target_pid: None,
        }
    }

    fn files(&self) -> GeneratedFiles {
        GeneratedFiles {
            resolv_conf: Some(self.text("resolv.conf")),
            hostname: Some(self.text("hostname")),
            containerenv: Some(self.text("containerenv")),
            shm: Some(self.text("shm")),
            ..GeneratedFiles::default()
        }
    }

    fn node() -> NodeFacts {
        let mask = u64::from_str_radix(&status_field("CapBnd"), 16).expect("a mask");
        let bounding = CapabilitySet::from_mask(mask);
        let is_v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let has_resource = CapabilitySet::of_name("SYS_RESOURCE").is_some_and(|one| !bounding.and(one).is_empty());
        let swap = ["/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes", "/sys/fs/cgroup/system.slice/memory.swap.max"];
        NodeFacts {
            cgroup_version: if is_v2 { CgroupVersion::V2 } else { CgroupVersion::V1 },
            bounding,
            lowest_oom_score_adj: if has_resource { -1000 } else { 0 },
            has_swap_accounting: swap.iter().any(|path| Path::new(path).exists()),
            ..NodeFacts::default()
        }
    }

    fn placement() -> CgroupPlacement {
        let parent = format!("/crio-test-spec-{}", std::process::id());
        CgroupPlacement { manager: CgroupManagerKind::Cgroupfs, parent }
    }

    /// Both managers where systemd runs the machine.
    fn placements() -> Vec<CgroupPlacement> {
        let mut all = vec![Self::placement()];
        if Path::new("/run/systemd/system").is_dir() {
            let parent = format!("crio_test_{}-inner.slice", std::process::id());
            all.push(CgroupPlacement { manager: CgroupManagerKind::Systemd, parent });
        }
        all
    }

    /// Creates and starts a bundle, waits for its end and returns what it wrote; `None` on a node the runtime refuses.
    fn run(&mut self, runtime: &str, manager: CgroupManagerKind, name: &str, config: &[u8]) -> Option<String> {
        let bundle = self.directory.join(format!("bundle-{runtime}-{name}"));
        fs::create_dir_all(&bundle).expect("makes the bundle");
        write(&bundle.join("config.json"), config);
        let id = format!("crio-spec-{}-{name}", std::process::id());
        let output = bundle.join("output");
        let log = fs::File::create(&output).expect("creates");
        let create = Command::new(runtime)
            .args((manager == CgroupManagerKind::Systemd).then_some("--systemd-cgroup"))
            .args(["create", "--bundle", bundle.to_str().expect("UTF-8"), &id])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("duplicates"))
            .stderr(log)
            .status()
            .expect("runs");
        self.created.push((runtime.to_owned(), id.clone()));
        let read = || fs::read_to_string(&output).unwrap_or_default();
        if read().contains("cgroups in hybrid mode not supported") {
            println!("SKIPPED: {runtime} does not work beside cgroup2 controllers");
            return None;
        }
        assert!(create.success(), "{runtime} create: {}", read());
        let start = Command::new(runtime).args(["start", &id]).output().expect("runs");
        assert!(start.status.success(), "{runtime} start: {}", String::from_utf8_lossy(&start.stderr));
        let since = Instant::now();
        while !read().contains("the end") {
            assert!(since.elapsed() < Duration::from_secs(20), "{runtime}: {}", read());
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = Command::new(runtime).args(["delete", "--force", &id]).output();
        self.created.pop();
        Some(read())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for (runtime, id) in &self.created {
            let _ = Command::new(runtime).args(["delete", "--force", id]).output();
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        let name = Self::placement().parent;
        for mount in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = fs::remove_dir(mount.path().join(name.trim_start_matches('/')));
        }
        let _ = fs::remove_dir(format!("/sys/fs/cgroup{name}"));
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn runtimes() -> Vec<&'static str> {
    let found: Vec<_> = ["crun", "runc"].into_iter().filter(|runtime| has(runtime)).collect();
    if found.is_empty() {
        println!("SKIPPED: neither crun nor runc is installed");
    }
    found
}

/// Enough for the annotations of a container with a grace period, which become properties of its scope.
fn facts(id: &ContainerId) -> ContainerFacts {
    ContainerFacts {
        id: id.clone(),
        name: "k8s_c_p_n_u_0".into(),
        sandbox_id: SandboxId::parse(&"a".repeat(64)).expect("an id"),
        sandbox_name: "k8s_p_n_u_0".into(),
        metadata: ContainerMetadata { name: "c".into(), attempt: 0 },
        labels: BTreeMap::new(),
        annotations: [("io.kubernetes.pod.terminationGracePeriod".to_owned(), "30".to_owned())].into(),
        created: Timestamp::from_nanos(0),
        log_path: "/l".into(),
        image: "i".into(),
        image_name: String::new(),
        image_id: None,
        repo_digests: vec![],
        has_tty: false,
        has_stdin: false,
        is_stdin_once: false,
        resolv_path: String::new(),
        mount_point: String::new(),
        seccomp_profile: "Unconfined".into(),
        ips: vec![],
        volumes: vec![],
        stop_signal: None,
        platform_runtime_path: String::new(),
    }
}

const LOOK: &str = "b=/bin/busybox; $b id; echo home=$HOME; echo args=$0,$1; $b pwd; $b cat /etc/hostname; \
    $b grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status; $b touch /data/x 2>&1; $b touch /x 2>&1; \
    echo host=$($b hostname); $b cat /proc/self/oom_score_adj; $b ls /proc/acpi 2>&1; echo the end";

#[test]
fn containers_are_what_was_asked() {
    let Some(mut bench) = Bench::new("ctr") else { return };
    let read = |name: &str| fs::read(bench.directory.join("rootfs/etc").join(name)).expect("reads");
    let config = ContainerConfig {
        command: vec!["/bin/sh".into(), "-c".into(), LOOK.into(), "zero".into()],
        args: vec!["one".into()],
        envs: vec![("A".into(), "b".into())],
        working_dir: "/data".into(),
        resources: Resources {
            cpu_shares: 100,
            cpu_period_us: 100_000,
            cpu_quota_us: 50_000,
            memory_limit_bytes: 64 << 20,
            oom_score_adj: -998,
            ..Resources::default()
        },
        security: ContainerSecurity {
            namespaces: NamespaceOptions { pid: NamespaceMode::Container, ..NamespaceOptions::default() },
            run_as_username: "web".into(),
            supplemental_groups: vec![77],
            readonly_rootfs: true,
            no_new_privs: true,
            masked_paths: vec!["/proc/kcore".into()],
            readonly_paths: vec!["/proc/sys".into()],
            ..ContainerSecurity::default()
        },
        ..ContainerConfig::default()
    };
    let user =
        resolve_user(&UserRequest::from(&config.security), "", &read("passwd"), &read("group")).expect("resolves");
    let node = Bench::node();
    let defaults =
        SpecDefaults { capabilities: vec!["CHOWN".into(), "KILL".into()], pids_limit: -1, ..SpecDefaults::default() };
    let id = ContainerId::parse(&"c".repeat(64)).expect("an id");
    let pairs = runtimes().into_iter().flat_map(|runtime| Bench::placements().into_iter().map(move |at| (runtime, at)));
    for (runtime, cgroup) in pairs {
        let annotations = container_annotations(&facts(&id), &BTreeMap::new(), cgroup.manager);
        let data = ResolvedMount {
            destination: "/data".into(),
            source: bench.text("shm"),
            access: MountAccess::ReadOnly,
            ..ResolvedMount::default()
        };
        let assembled = container_spec(ContainerInputs {
            id: &id,
            config: &config,
            sandbox: &SandboxConfig::default(),
            image: &ImageConfig::default(),
            user: &user,
            node: &node,
            defaults: &defaults,
            handler: &HandlerFacts::default(),
            hostname: "the-pod",
            cgroup: &cgroup,
            namespaces: &bench.namespaces(),
            id_maps: None,
            files: &bench.files(),
            rootfs: &bench.text("rootfs"),
            mounts: &[data],
            further_mounts: &[],
            devices: &[],
            edits: &Edits::default(),
            pod_annotations: &BTreeMap::new(),
            cpus: CpuInputs::default(),
            seccomp: None,
            apparmor: None,
            selinux: &SelinuxLabels::default(),
            annotations,
        })
        .expect("assembles");
        let Some(seen) = bench.run(runtime, cgroup.manager, "ctr", &assembled.to_json().expect("serialises")) else {
            continue;
        };
        println!("{runtime}, {:?}:\n{seen}", cgroup.manager);
        for expected in [
            "uid=33(web) gid=34(web) groups=34(web),40(logs),77",
            "home=/data",
            "args=zero,one",
            "\n/data\n",
            "from-the-daemon",
            "CapBnd:\t0000000000000021",
            "CapEff:\t0000000000000000",
            "NoNewPrivs:\t1",
            "/data/x: Read-only file system",
            "/x: Read-only file system",
            "host=the-pod",
        ] {
            assert!(seen.contains(expected), "{runtime}: {expected:?} in {seen}");
        }
        let score = format!("\n{}\n", node.lowest_oom_score_adj.max(-998));
        assert!(seen.contains(&score), "{runtime}: {score:?} in {seen}");
    }
}

#[test]
fn privileged_containers_start_with_what_the_machine_has() {
    let Some(mut bench) = Bench::new("priv") else { return };
    let config = ContainerConfig {
        command: vec!["/bin/sh".into(), "-c".into(), LOOK.into()],
        security: ContainerSecurity {
            namespaces: NamespaceOptions { pid: NamespaceMode::Container, ..NamespaceOptions::default() },
            privileged: true,
            ..ContainerSecurity::default()
        },
        ..ContainerConfig::default()
    };
    let user = resolve_user(&UserRequest::default(), "", b"", b"").expect("resolves");
    let node = Bench::node();
    let id = ContainerId::parse(&"d".repeat(64)).expect("an id");
    for runtime in runtimes() {
        let assembled = container_spec(ContainerInputs {
            id: &id,
            config: &config,
            sandbox: &SandboxConfig::default(),
            image: &ImageConfig::default(),
            user: &user,
            node: &node,
            defaults: &SpecDefaults::default(),
            handler: &HandlerFacts::default(),
            hostname: "the-pod",
            cgroup: &Bench::placement(),
            namespaces: &bench.namespaces(),
            id_maps: None,
            files: &bench.files(),
            rootfs: &bench.text("rootfs"),
            mounts: &[],
            further_mounts: &[],
            devices: &[],
            edits: &Edits::default(),
            pod_annotations: &BTreeMap::new(),
            cpus: CpuInputs::default(),
            seccomp: None,
            apparmor: None,
            selinux: &SelinuxLabels::default(),
            annotations: BTreeMap::new(),
        })
        .expect("assembles");
        let Some(seen) =
            bench.run(runtime, CgroupManagerKind::Cgroupfs, "priv", &assembled.to_json().expect("serialises"))
        else {
            continue;
        };
        let all = format!("CapEff:\t{:016x}", node.bounding.mask());
        assert!(seen.contains(&all), "{runtime}: {all} in {seen}");
    }
}

#[test]
fn infra_containers_start() {
    let Some(mut bench) = Bench::new("infra") else { return };
    let user = resolve_user(&UserRequest::default(), "65535:65535", b"", b"").expect("resolves");
    let id = SandboxId::parse(&"e".repeat(64)).expect("an id");
    let pause: Vec<String> = ["/bin/sh", "-c", LOOK].map(str::to_owned).into();
    for runtime in runtimes() {
        let assembled = infra_spec(InfraInputs {
            id: &id,
            config: &SandboxConfig::default(),
            image: &ImageConfig::default(),
            pause_command: &pause,
            user: &user,
            node: &Bench::node(),
            defaults: &SpecDefaults::default(),
            hostname: "the-pod",
            cgroup: &Bench::placement(),
            cpuset: "0",
            namespaces: &bench.namespaces(),
            id_maps: None,
            files: &bench.files(),
            rootfs: &bench.text("rootfs"),
            is_privileged: false,
            seccomp: None,
            apparmor: None,
            selinux: &SelinuxLabels::default(),
            annotations: BTreeMap::new(),
        })
        .expect("assembles");
        let Some(seen) =
            bench.run(runtime, CgroupManagerKind::Cgroupfs, "infra", &assembled.to_json().expect("serialises"))
        else {
            continue;
        };
        for expected in ["uid=65535 gid=65535", "CapBnd:\t0000000000000000", "host=the-pod"] {
            assert!(seen.contains(expected), "{runtime}: {expected:?} in {seen}");
        }
    }
}
