//! What profiles do to real programs under real runtimes, seen through tiny programs that make one system call each.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use confinement::seccomp::{Host, Profile, built_in};
use domain::spec::CapabilitySet;
use oci_spec::runtime::LinuxSeccomp;
use serde_json::{Value, json};

const RUNTIMES: [&str; 2] = ["crun", "runc"];
const BUSYBOX: &str = "/bin/busybox";

/// Starts a runtime where the cgroup2 tree of hybrid machines cannot be seen: crun before 1.9 refuses to work beside it.
const ASIDE: &str = r#"umount -l /sys/fs/cgroup/unified 2>/dev/null; exec "$@""#;

const EPERM: i32 = 1;
const EINVAL: i32 = 22;
const ENOSYS: i32 = 38;

/// A static program of one call with three arguments, which ends with the error as its exit status, or 0.
struct Probe {
    name: &'static str,
    is_32_bit: bool,
    call: [u32; 4],
}

const fn probe(name: &'static str, call: [u32; 4]) -> Probe {
    Probe { name, is_32_bit: false, call }
}

const fn probe_32(name: &'static str, call: [u32; 4]) -> Probe {
    Probe { name, is_32_bit: true, call }
}

impl Probe {
    fn program(&self) -> Vec<u8> {
        // mov eax, edi, esi, edx and syscall; or eax, ebx, ecx, edx and int 0x80
        let (loads, enter, to_first, exit): ([u8; 4], [u8; 2], [u8; 2], u32) = match self.is_32_bit {
            false => ([0xb8, 0xbf, 0xbe, 0xba], [0x0f, 0x05], [0x89, 0xc7], 231),
            true => ([0xb8, 0xbb, 0xb9, 0xba], [0xcd, 0x80], [0x89, 0xc3], 1),
        };
        let mut code = vec![];
        for (load, value) in loads.iter().zip(self.call) {
            code.push(*load);
            code.extend(value.to_le_bytes());
        }
        code.extend(enter);
        // if eax is not negative, eax = 0; first argument = -eax; exit_group or exit
        code.extend([0x85, 0xc0, 0x78, 0x02, 0x31, 0xc0, 0xf7, 0xd8]);
        code.extend(to_first);
        code.push(0xb8);
        code.extend(exit.to_le_bytes());
        code.extend(enter);
        if self.is_32_bit { elf_32(&code) } else { elf_64(&code) }
    }
}

/// One readable and executable segment that holds the whole file; elf(5).
fn elf_64(code: &[u8]) -> Vec<u8> {
    let (base, headers) = (0x40_0000_u64, 0x78_u64);
    let size = headers + code.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    file.extend([base + headers, 0x40, 0].iter().flat_map(|word| word.to_le_bytes()));
    file.extend(b"\0\0\0\0\x40\0\x38\0\x01\0\0\0\0\0\0\0\x01\0\0\0\x05\0\0\0");
    file.extend([0, base, base, size, size, 0x1000].iter().flat_map(|word: &u64| word.to_le_bytes()));
    file.extend(code);
    file
}

fn elf_32(code: &[u8]) -> Vec<u8> {
    let (base, headers) = (0x40_0000_u32, 0x54_u32);
    let size = headers + u32::try_from(code.len()).unwrap();
    let mut file = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x03\0\x01\0\0\0".to_vec();
    file.extend([base + headers, 0x34, 0, 0].iter().flat_map(|word| word.to_le_bytes()));
    file.extend(b"\x34\0\x20\0\x01\0\0\0\0\0\0\0");
    file.extend([1, 0, base, base, size, size, 5, 0x1000].iter().flat_map(|word: &u32| word.to_le_bytes()));
    file.extend(code);
    file
}

fn put(path: &Path, bytes: &[u8]) {
    let mut file = File::create(path).unwrap();
    file.write_all(bytes).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o755)).unwrap();
}

fn can_run() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    let has = |name: &&str| Command::new(name).arg("--version").stdout(Stdio::null()).status().is_ok();
    let is_able = is_root && Path::new(BUSYBOX).exists() && RUNTIMES.iter().all(has) && has(&"unshare");
    if !is_able {
        println!("SKIPPED: needs root, {RUNTIMES:?}, unshare and {BUSYBOX}");
    }
    is_able
}

struct Bundle {
    directory: tempfile::TempDir,
}

impl Bundle {
    fn new(probes: &[Probe]) -> Self {
        let bundle = Self { directory: tempfile::tempdir().unwrap() };
        let root = bundle.path("rootfs");
        for name in ["bin", "dev", "proc", "tmp", "probe"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        fs::copy(BUSYBOX, root.join("bin/busybox")).unwrap();
        std::os::unix::fs::symlink("busybox", root.join("bin/sh")).unwrap();
        for probe in probes {
            put(&root.join("probe").join(probe.name), &probe.program());
        }
        bundle
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn run(&self, runtime: &str, capabilities: &[&str], seccomp: Option<&LinuxSeccomp>, script: &str) -> Output {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let id = format!("crio-confinement-{}-{number}", std::process::id());
        let namespaces = ["pid", "mount", "ipc", "uts"].map(|kind| json!({"type": kind}));
        let mut spec = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"],
                "args": ["/bin/busybox", "sh", "-c", script],
                "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            },
            "root": {"path": "rootfs"},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {"namespaces": namespaces, "cgroupsPath": format!("/{id}")},
        });
        if let Some(seccomp) = seccomp {
            spec["linux"]["seccomp"] = serde_json::to_value(seccomp).unwrap();
        }
        put(&self.path("config.json"), spec.to_string().as_bytes());
        let aside = |arguments: &[&str]| {
            let mut command = Command::new("unshare");
            command.args(["-m", "sh", "-c", ASIDE, "sh", runtime]).args(arguments).stdin(Stdio::null());
            command.output().unwrap()
        };
        let output = aside(&["run", "--bundle", self.directory.path().to_str().unwrap(), &id]);
        if !output.status.success() {
            aside(&["delete", "--force", &id]);
        }
        output
    }

    /// Exit statuses of all probes, in the order of the list.
    fn probe(
        &self,
        runtime: &str,
        capabilities: &[&str],
        seccomp: Option<&LinuxSeccomp>,
        probes: &[Probe],
    ) -> Vec<(&'static str, i32)> {
        let output = self.run(runtime, capabilities, seccomp, "for p in /probe/*; do $p; echo ${p##*/} $?; done");
        let text = String::from_utf8(output.stdout).unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && errors.is_empty(), "{runtime}: {text} {errors}");
        let of_line = |line: &str| line.split_once(' ').map(|(name, code)| (name.to_owned(), code.parse().unwrap()));
        let codes: std::collections::BTreeMap<String, i32> = text.lines().filter_map(of_line).collect();
        probes.iter().map(|probe| (probe.name, codes[probe.name])).collect()
    }
}

fn built_in(capabilities: &[&str]) -> LinuxSeccomp {
    let set = capabilities.iter().filter_map(|name| CapabilitySet::of_name(name));
    built_in::resolve(set.fold(CapabilitySet::EMPTY, CapabilitySet::with), &Host::detect())
}

#[test]
fn the_built_in_profile_confines_as_documented() {
    if !can_run() {
        return;
    }
    let plain = &["CAP_CHOWN", "CAP_KILL"][..];
    let admin = &["CAP_SYS_ADMIN"][..];
    let (newns, newuser) = (0x20000, 0x1000_0000);
    // Arguments are senseless, so that what comes without a filter can be told from a refusal.
    let table = [
        // probe, refusal, refusal with CAP_SYS_ADMIN; none is what comes without a filter
        (probe("unshare", [272, newuser, 0, 0]), Some(ENOSYS), None),
        (probe("unshare-nothing", [272, 0, 0, 0]), Some(ENOSYS), None),
        (probe("clone3", [435, 0, 0, 0]), Some(ENOSYS), None),
        (probe("clone-namespace", [56, newns | 0x200, 0, 0]), Some(EPERM), None),
        (probe("clone-thread-alone", [56, 0x10000, 0, 0]), None, None),
        (probe("setns", [308, u32::MAX, 0, 0]), None, None),
        (probe("mount", [165, 0, 0, 0]), None, None),
        (probe("bpf", [321, 9999, 0, 0]), Some(EPERM), None),
        (probe("perf_event_open", [298, 0, 0, 0]), Some(EPERM), None),
        (probe("open_by_handle_at", [304, 0, 0, 0]), Some(EPERM), Some(EPERM)),
        (probe("chroot", [161, 0, 0, 0]), Some(EPERM), Some(EPERM)),
        (probe("kcmp", [312, 1, 1, 99]), Some(EPERM), Some(EPERM)),
        (probe("add_key", [248, 0, 0, 0]), Some(ENOSYS), Some(ENOSYS)),
        (probe("personality-ask", [135, 0xffff_ffff, 0, 0]), None, None),
        (probe("personality-no-aslr", [135, 0x4_0000, 0, 0]), Some(ENOSYS), Some(ENOSYS)),
        (probe("socket-inet", [41, 2, 2, 0]), None, None),
        (probe("socket-inet-raw-9", [41, 2, 3, 9]), None, None),
        (probe("socket-route", [41, 16, 3, 0]), None, None),
        (probe("socket-audit", [41, 16, 3, 9]), Some(EINVAL), Some(EINVAL)),
        (probe("socket-vsock", [41, 40, 1, 0]), Some(EPERM), Some(EPERM)),
        (probe("futex_waitv", [449, 0, 0, 0]), Some(EPERM), Some(EPERM)),
        (probe("no-such-call", [9999, 0, 0, 0]), None, None),
        (probe_32("32-getpid", [20, 0, 0, 0]), None, None),
        (probe_32("32-unshare", [310, newuser, 0, 0]), Some(ENOSYS), None),
        (probe_32("32-stime", [25, 0, 0, 0]), Some(EPERM), Some(EPERM)),
    ];
    let refusals = table.each_ref().map(|(_, plain, admin)| [*plain, *admin]);
    let probes = table.map(|(probe, ..)| probe);
    let bundle = Bundle::new(&probes);
    for (runtime, (column, capabilities)) in RUNTIMES.iter().flat_map(|name| [(name, (0, plain)), (name, (1, admin))]) {
        let free = bundle.probe(runtime, capabilities, None, &probes);
        let confined = bundle.probe(runtime, capabilities, Some(&built_in(capabilities)), &probes);
        let refused = refusals.iter().map(|of_probe| of_probe[column]);
        let expected: Vec<_> =
            free.iter().zip(refused).map(|((name, code), refusal)| (*name, refusal.unwrap_or(*code))).collect();
        assert_eq!(confined, expected, "{runtime} {capabilities:?}");
        // A machine may refuse some of them by itself, but not so many.
        let changed = free.iter().zip(&confined).filter(|(before, after)| before != after).count();
        assert!(changed >= [10, 5][column], "{runtime} {capabilities:?}: {free:?}");
    }
}

#[test]
fn ordinary_programs_work_and_confined_ones_are_refused() {
    if !can_run() {
        return;
    }
    let bundle = Bundle::new(&[]);
    let ordinary = "set -e; cd /tmp; busybox seq 1 1000 | busybox sort -n | busybox wc -l; echo x > a; \
        busybox mv a b; busybox ln -s b c; busybox cat c; busybox rm b c; busybox mkdir d; busybox rmdir d; \
        busybox touch o; busybox chown 1:1 o; busybox rm -f o; busybox sleep 0.01 & wait; busybox id -u; busybox date +%Y > /dev/null || true; \
        busybox ps > ps; busybox grep -c Name: /proc/self/status; busybox tar cf t ps; busybox gzip t; \
        busybox rm ps t.gz; busybox grep Seccomp: /proc/self/status | busybox tr -d '\\t'";
    let plain = &["CAP_CHOWN"][..];
    let admin = &["CAP_SYS_ADMIN"][..];
    for runtime in RUNTIMES {
        let run = |capabilities: &[&str], script: &str| {
            let output = bundle.run(runtime, capabilities, Some(&built_in(capabilities)), script);
            let text = [output.stdout, output.stderr].concat();
            (output.status.success(), String::from_utf8(text).unwrap())
        };
        assert_eq!(run(plain, ordinary), (true, "1000\nx\n0\n1\nSeccomp:2\n".to_owned()), "{runtime}");
        for (script, refusal) in [
            ("busybox unshare -U true", "Function not implemented"),
            ("busybox unshare -m true", "Function not implemented"),
            ("busybox mount -t tmpfs none /tmp", "ermission denied"),
            ("busybox chroot / true", "Operation not permitted"),
        ] {
            let (is_success, text) = run(plain, script);
            assert!(!is_success && text.contains(refusal), "{runtime} {script}: {text}");
        }
        let script = "busybox unshare -m busybox mount -t tmpfs none /tmp && echo done";
        assert_eq!(run(admin, script), (true, "done\n".to_owned()), "{runtime}");
    }
}

#[test]
fn runtimes_take_what_the_parser_takes() {
    if !can_run() {
        return;
    }
    // Calls nobody knows, a rule that repeats the default, one call with two actions, conditions on one argument.
    let profile: Value = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]}],
        "syscalls": [
            {"names": ["frobnicate", "sethostname"], "action": "SCMP_ACT_ERRNO", "errno": "EUCLEAN"},
            {"names": ["read", "sethostname"], "action": "SCMP_ACT_ALLOW"},
            {"name": "personality", "action": "SCMP_ACT_ERRNO", "errnoRet": 99, "args": [
                {"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 9, "op": "SCMP_CMP_EQ"}]},
        ],
    });
    let host = Host::detect();
    let profile = Profile::parse(profile.to_string().as_bytes(), &host).unwrap();
    let spec = profile.resolve(CapabilitySet::EMPTY, &host).unwrap();
    let probes = [
        probe("sethostname", [170, 0, u32::MAX, 0]),
        probe("personality-8", [135, 8, 0, 0]),
        probe("personality-9", [135, 9, 0, 0]),
        probe("personality-0", [135, 0, 0, 0]),
    ];
    let bundle = Bundle::new(&probes);
    for runtime in RUNTIMES {
        let codes = bundle.probe(runtime, &["CAP_SYS_ADMIN"], Some(&spec), &probes);
        let expected = [("sethostname", 117), ("personality-8", 99), ("personality-9", 99), ("personality-0", 0)];
        assert_eq!(codes, expected, "{runtime}");
    }
}
