//! What the machine is, read once at start: the facts the runtime spec depends on.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use domain::cpus::CpuSet;
use domain::spec::{CapabilitySet, CgroupVersion, DeviceKind, HostDevice, NodeFacts};

/// Directories of `/dev` whose contents are not devices of the machine. Source: CRI-O.
const NOT_DEVICES: [&str; 5] = ["pts", "shm", "fd", "mqueue", ".lxc"];
/// Deeper than any driver's directory; a bound against loops of bind mounts.
const DEV_DEPTH_MAX: usize = 6;

/// Reads the facts. `cgroups` says which hierarchy carries the controllers.
pub(crate) fn gather(version: CgroupVersion) -> NodeFacts {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bounding = field(&status, "CapBnd:").and_then(|mask| u64::from_str_radix(mask, 16).ok());
    let bounding = bounding.map_or(CapabilitySet::EMPTY, CapabilitySet::from_mask);
    let memory = match version {
        CgroupVersion::V1 => "/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes",
        CgroupVersion::V2 => "/sys/fs/cgroup/memory.swap.max",
    };
    // The root of a v2 hierarchy has no limits; the accounting shows in any child.
    let has_swap_accounting = Path::new(memory).exists()
        || (version == CgroupVersion::V2 && Path::new("/sys/fs/cgroup/system.slice/memory.swap.max").exists());
    let has_pids_controller = match version {
        CgroupVersion::V1 => Path::new("/sys/fs/cgroup/pids").is_dir(),
        CgroupVersion::V2 => fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
            .is_ok_and(|list| list.split_ascii_whitespace().any(|name| name == "pids")),
    };
    NodeFacts {
        cgroup_version: version,
        bounding,
        lowest_oom_score_adj: lowest_oom_score_adj(bounding),
        hugepage_sizes: hugepage_sizes(version),
        has_swap_accounting,
        has_pids_controller,
        has_systemd_hierarchy: Path::new("/sys/fs/cgroup/systemd").is_dir(),
        thermal_throttle_paths: thermal_throttle_paths(),
        thread_siblings: thread_siblings(Path::new("/sys/devices/system/cpu")),
        host_devices: host_devices(),
    }
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// Without `CAP_SYS_RESOURCE` a process can only raise the value, so its own is the lowest.
fn lowest_oom_score_adj(bounding: CapabilitySet) -> i32 {
    let resource = CapabilitySet::of_name("CAP_SYS_RESOURCE");
    if resource.is_some_and(|resource| bounding.and(resource) == resource) {
        return -1000;
    }
    fs::read_to_string("/proc/self/oom_score_adj").ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn hugepage_sizes(version: CgroupVersion) -> Vec<String> {
    let has_controller = match version {
        CgroupVersion::V1 => Path::new("/sys/fs/cgroup/hugetlb").is_dir(),
        CgroupVersion::V2 => fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
            .is_ok_and(|list| list.split_ascii_whitespace().any(|name| name == "hugetlb")),
    };
    let Ok(entries) = fs::read_dir("/sys/kernel/mm/hugepages") else { return Vec::new() };
    if !has_controller {
        return Vec::new();
    }
    let kib = entries.flatten().filter_map(|entry| {
        entry.file_name().to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok()
    });
    let mut sizes: Vec<String> = kib.map(size_word).collect();
    sizes.sort();
    sizes
}

fn size_word(kib: u64) -> String {
    match kib {
        _ if kib.is_multiple_of(1 << 20) => format!("{}GB", kib >> 20),
        _ if kib.is_multiple_of(1 << 10) => format!("{}MB", kib >> 10),
        _ => format!("{kib}KB"),
    }
}

/// What tells containers how warm each processor is, and with it what its neighbours do.
fn thermal_throttle_paths() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/devices/system/cpu") else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path().join("thermal_throttle")).filter(|path| path.is_dir());
    let mut paths: Vec<String> = paths.filter_map(|path| path.to_str().map(str::to_owned)).collect();
    paths.sort();
    paths
}

/// The threads of each CPU's core, for those that have more than one.
fn thread_siblings(cpus: &Path) -> BTreeMap<u32, CpuSet> {
    let Ok(entries) = fs::read_dir(cpus) else { return BTreeMap::new() };
    let siblings = entries.flatten().filter_map(|entry| {
        let cpu = entry.file_name().to_str()?.strip_prefix("cpu")?.parse::<u32>().ok()?;
        let list = fs::read_to_string(entry.path().join("topology/thread_siblings_list")).ok()?;
        let list = CpuSet::parse(&list).ok()?;
        (list.len() > 1).then_some((cpu, list))
    });
    siblings.collect()
}

/// Every device node below `/dev`, for privileged containers.
fn host_devices() -> Vec<HostDevice> {
    let mut devices = Vec::new();
    collect_devices(Path::new("/dev"), 0, &mut devices);
    devices.sort_by(|left, right| left.path.cmp(&right.path));
    devices
}

pub(crate) fn collect_devices(directory: &Path, depth: usize, devices: &mut Vec<HostDevice>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            if depth < DEV_DEPTH_MAX && !name.to_str().is_some_and(|name| NOT_DEVICES.contains(&name)) {
                collect_devices(&entry.path(), depth + 1, devices);
            }
        } else if let Some(device) = device_at(&entry.path()) {
            devices.push(device);
        }
    }
}

/// The device node at a path of the node; `None` for anything else, symbolic links included.
pub(crate) fn device_at(path: &Path) -> Option<HostDevice> {
    let metadata = fs::symlink_metadata(path).ok()?;
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => DeviceKind::Char,
        kind if kind.is_block_device() => DeviceKind::Block,
        _ => return None,
    };
    Some(HostDevice {
        path: path.to_str()?.to_owned(),
        kind,
        major: rustix::fs::major(metadata.rdev()),
        minor: rustix::fs::minor(metadata.rdev()),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_sizes_read_as_the_cri_spells_them() {
        for (kib, word) in [(2048, "2MB"), (1 << 20, "1GB"), (64, "64KB"), (32768, "32MB")] {
            assert_eq!(size_word(kib), word);
        }
    }

    #[test]
    fn threads_of_a_core_find_each_other() {
        let root = tempfile::tempdir().expect("a directory");
        for (cpu, list) in [("cpu0", "0,4\n"), ("cpu4", "0,4\n"), ("cpu1", "1\n"), ("cpufreq", "0-9\n")] {
            let directory = root.path().join(cpu).join("topology");
            fs::create_dir_all(&directory).expect("a directory");
            let mut file = fs::File::create(directory.join("thread_siblings_list")).expect("a file");
            std::io::Write::write_all(&mut file, list.as_bytes()).expect("written");
        }
        let found = thread_siblings(root.path());
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), [0, 4]);
        assert_eq!(found[&4].to_string(), "0,4");
    }

    #[test]
    fn the_machine_has_a_null_device_and_some_capabilities() {
        let facts = gather(CgroupVersion::V1);
        let null = facts.host_devices.iter().find(|device| device.path == "/dev/null").expect("there is one");
        assert_eq!((null.kind, null.major, null.minor), (DeviceKind::Char, 1, 3));
        assert!(!facts.bounding.is_empty());
    }
}
