//! The built-in profile: what an ordinary program needs, less what leads out of a container.
//!
//! The verdicts are those of CRI-O 1.37, that is of containers/common's default with namespaces kept from whoever has
//! no `CAP_SYS_ADMIN`. A call that is in no table does not exist for the container (`ENOSYS`), so that programs fall
//! back from what is too new; one that exists and is refused fails with `EPERM`. Many allowed calls need a capability
//! that the kernel checks itself (`mount`, `reboot`, `chown`): a filter adds nothing there.

use domain::spec::CapabilitySet;
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall};

use super::host::Host;
use super::resolve::{condition as arg, some_unless_empty, syscall};
use LinuxSeccompAction::{ScmpActAllow as Allow, ScmpActErrno as Refuse};
use LinuxSeccompOperator::{ScmpCmpEq as Is, ScmpCmpMaskedEq as Masked, ScmpCmpNe as IsNot};

/// Calls for everybody, by purpose.
#[rustfmt::skip]
const ALLOWED: &[&[&str]] = &[
    // Opening, reading and writing what the file system lets the user have.
    &[
        "open", "openat", "openat2", "creat", "close", "close_range", "read", "readv", "pread64", "preadv", "preadv2",
        "write", "writev", "pwrite64", "pwritev", "pwritev2", "lseek", "_llseek", "dup", "dup2", "dup3", "fcntl",
        "fcntl64", "ioctl", "flock", "sendfile", "sendfile64", "splice", "tee", "copy_file_range", "readahead",
        "fadvise64", "fadvise64_64", "fallocate", "truncate", "truncate64", "ftruncate", "ftruncate64", "sync",
        "fsync", "fdatasync", "syncfs", "sync_file_range",
    ],
    // Names, directories, links and attributes of files.
    &[
        "access", "faccessat", "faccessat2", "stat", "stat64", "lstat", "lstat64", "fstat", "fstat64", "fstatat64",
        "newfstatat", "statx", "statfs", "statfs64", "fstatfs", "fstatfs64", "getdents", "getdents64", "getcwd",
        "chdir", "fchdir", "mkdir", "mkdirat", "rmdir", "link", "linkat", "symlink", "symlinkat", "readlink",
        "readlinkat", "unlink", "unlinkat", "rename", "renameat", "renameat2", "chmod", "fchmod", "fchmodat",
        "fchmodat2", "chown", "chown32", "fchown", "fchown32", "fchownat", "lchown", "lchown32", "umask", "utime",
        "utimes", "utimensat", "utimensat_time64", "futimesat", "getxattr", "lgetxattr", "fgetxattr", "setxattr",
        "lsetxattr", "fsetxattr", "listxattr", "llistxattr", "flistxattr", "removexattr", "lremovexattr",
        "fremovexattr", "name_to_handle_at",
    ],
    // Device nodes and pipes: the device cgroup decides which nodes can be opened.
    &["mknod", "mknodat", "pipe", "pipe2"],
    // Mounting: the kernel asks CAP_SYS_ADMIN in the mount namespace, which a pod has only in a user namespace of its
    // own.
    &[
        "mount", "umount", "umount2", "pivot_root", "fsopen", "fsconfig", "fsmount", "fspick", "move_mount",
        "open_tree", "mount_setattr",
    ],
    // Being told of changes to files. fanotify is limited to own marks for who has no capability, since Linux 5.13.
    &["inotify_init", "inotify_init1", "inotify_add_watch", "inotify_rm_watch", "fanotify_init", "fanotify_mark"],
    // Waiting for many things at once.
    &[
        "select", "_newselect", "pselect6", "pselect6_time64", "poll", "ppoll", "ppoll_time64", "epoll_create",
        "epoll_create1", "epoll_ctl", "epoll_ctl_old", "epoll_wait", "epoll_wait_old", "epoll_pwait", "epoll_pwait2",
        "eventfd", "eventfd2", "io_setup", "io_submit", "io_getevents", "io_cancel", "io_destroy",
    ],
    // Sockets, but for making one, which depends on the family. Addresses are the network namespace's.
    &[
        "socketpair", "socketcall", "bind", "connect", "listen", "accept", "accept4", "getsockname", "getpeername",
        "getsockopt", "setsockopt", "shutdown", "send", "sendto", "sendmsg", "sendmmsg", "recv", "recvfrom",
        "recvmsg", "recvmmsg", "recvmmsg_time64",
    ],
    // Memory of one's own, and where on the machine it lies.
    &[
        "brk", "mmap", "mmap2", "munmap", "mremap", "mprotect", "madvise", "mincore", "msync", "mlock", "mlock2",
        "mlockall", "munlock", "munlockall", "remap_file_pages", "memfd_create", "memfd_secret", "pkey_alloc",
        "pkey_free", "pkey_mprotect", "membarrier", "mbind", "get_mempolicy", "set_mempolicy",
    ],
    // Memory shared with the container's other processes, and queues: the IPC namespace's.
    &[
        "ipc", "shmget", "shmat", "shmdt", "shmctl", "semget", "semop", "semctl", "semtimedop", "semtimedop_time64",
        "msgget", "msgsnd", "msgrcv", "msgctl", "mq_open", "mq_unlink", "mq_notify", "mq_getsetattr", "mq_timedsend",
        "mq_timedsend_time64", "mq_timedreceive", "mq_timedreceive_time64",
    ],
    // Processes and threads that share the container's namespaces; clone depends on its flags.
    &[
        "fork", "vfork", "execve", "execveat", "exit", "exit_group", "wait4", "waitid", "waitpid", "getpid",
        "getppid", "gettid", "getpgid", "setpgid", "getpgrp", "getsid", "setsid", "set_tid_address",
        "set_thread_area", "get_thread_area", "set_robust_list", "get_robust_list", "rseq", "futex", "futex_time64",
        "restart_syscall", "prctl",
    ],
    // Entering namespaces: the kernel asks CAP_SYS_ADMIN in the one to enter. containers/common has this call here and
    // among those of CAP_SYS_ADMIN as well; libseccomp keeps the first rule, so every runtime allows it.
    &["setns"],
    // Other processes that the kernel lets one trace or name. ptrace cannot pass by a filter since Linux 4.8.
    &[
        "ptrace", "process_vm_readv", "process_vm_writev", "process_mrelease", "pidfd_open", "pidfd_getfd",
        "pidfd_send_signal",
    ],
    // Signals.
    &[
        "kill", "tkill", "tgkill", "pause", "alarm", "signal", "signalfd", "signalfd4", "sigaltstack", "sigprocmask",
        "sigreturn", "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigqueueinfo", "rt_sigreturn",
        "rt_sigsuspend", "rt_sigtimedwait", "rt_sigtimedwait_time64", "rt_tgsigqueueinfo",
    ],
    // Reading clocks and sleeping. adjtimex and clock_adjtime only read without CAP_SYS_TIME.
    &[
        "time", "times", "gettimeofday", "clock_gettime", "clock_gettime64", "clock_getres", "clock_getres_time64",
        "clock_nanosleep", "clock_nanosleep_time64", "nanosleep", "getitimer", "setitimer", "timer_create",
        "timer_delete", "timer_getoverrun", "timer_gettime", "timer_gettime64", "timer_settime", "timer_settime64",
        "timerfd_create", "timerfd_gettime", "timerfd_gettime64", "timerfd_settime", "timerfd_settime64", "adjtimex",
        "clock_adjtime", "clock_adjtime64",
    ],
    // Priorities and processors: raising needs a capability, the cpuset is the cgroup's.
    &[
        "getpriority", "setpriority", "ioprio_get", "ioprio_set", "getcpu", "sched_yield", "sched_getaffinity",
        "sched_setaffinity", "sched_getattr", "sched_setattr", "sched_getparam", "sched_setparam",
        "sched_getscheduler", "sched_setscheduler", "sched_get_priority_max", "sched_get_priority_min",
        "sched_rr_get_interval", "sched_rr_get_interval_time64",
    ],
    // Users, groups and capabilities: giving up is free, gaining is checked.
    &[
        "getuid", "getuid32", "geteuid", "geteuid32", "getgid", "getgid32", "getegid", "getegid32", "getresuid",
        "getresuid32", "getresgid", "getresgid32", "getgroups", "getgroups32", "setuid", "setuid32", "setgid",
        "setgid32", "setreuid", "setreuid32", "setregid", "setregid32", "setresuid", "setresuid32", "setresgid",
        "setresgid32", "setfsuid", "setfsuid32", "setfsgid", "setfsgid32", "setgroups", "setgroups32", "capget",
        "capset", "keyctl",
    ],
    // Confining oneself further.
    &["seccomp", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"],
    // Limits, usage and facts of the system. reboot ends the PID namespace, syslog is checked.
    &[
        "getrlimit", "setrlimit", "prlimit64", "ugetrlimit", "getrusage", "sysinfo", "uname", "getrandom", "syslog",
        "reboot",
    ],
];

/// Calls that exist and are not for containers: they touch the whole machine, are long dead, or have been a way
/// out of confinement (`userfaultfd`, `vmsplice`). The futex and cachestat calls are too new for programs not to have
/// another way.
#[rustfmt::skip]
const REFUSED: &[&str] = &[
    "bdflush", "cachestat", "futex_requeue", "futex_wait", "futex_waitv", "futex_wake", "io_pgetevents",
    "io_pgetevents_time64", "kexec_file_load", "kexec_load", "map_shadow_stack", "migrate_pages", "move_pages",
    "nfsservctl", "nice", "oldfstat", "oldlstat", "oldolduname", "oldstat", "olduname", "pciconfig_iobase",
    "pciconfig_read", "pciconfig_write", "sgetmask", "ssetmask", "swapoff", "swapon", "syscall", "sysfs", "uselib",
    "userfaultfd", "ustat", "vm86", "vm86old", "vmsplice",
];

/// Calls with meaning on some architectures only.
const BY_ARCHITECTURE: &[(&[&str], &[&str])] = &[
    (&["amd64", "x32"], &["arch_prctl"]),
    (&["amd64", "x32", "x86"], &["modify_ldt"]),
    (
        &["arm", "arm64"],
        &["arm_fadvise64_64", "arm_sync_file_range", "breakpoint", "cacheflush", "set_tls", "sync_file_range2"],
    ),
    (&["ppc64le"], &["swapcontext", "sync_file_range2"]),
    (&["riscv64"], &["riscv_flush_icache"]),
    (&["s390", "s390x"], &["s390_pci_mmio_read", "s390_pci_mmio_write", "s390_runtime_instr"]),
];

/// Calls that belong to a capability: allowed to who has one of them, refused to others although the kernel checks too,
/// because bugs have been found behind that check.
const BY_CAPABILITY: &[(&[&str], &[&str])] = &[
    // Opens any file of a file system by number, whatever directory the container is locked into.
    (&["CAP_DAC_READ_SEARCH"], &["open_by_handle_at"]),
    (&["CAP_SYS_ADMIN"], &["lookup_dcookie", "quotactl", "quotactl_fd", "setdomainname", "sethostname"]),
    (&["CAP_SYS_ADMIN", "CAP_BPF"], &["bpf"]),
    (&["CAP_SYS_ADMIN", "CAP_PERFMON"], &["perf_event_open"]),
    (&["CAP_SYS_CHROOT"], &["chroot"]),
    (&["CAP_SYS_MODULE"], &["delete_module", "finit_module", "init_module", "query_module"]),
    (&["CAP_SYS_PACCT"], &["acct"]),
    (&["CAP_SYS_PTRACE"], &["kcmp", "process_madvise"]),
    (&["CAP_SYS_RAWIO"], &["ioperm", "iopl"]),
    (&["CAP_SYS_TIME"], &["clock_settime", "clock_settime64", "settimeofday", "stime"]),
    (&["CAP_SYS_TTY_CONFIG"], &["vhangup"]),
];

/// Calls that take a program into namespaces of its own making, where it has every capability over code of the kernel
/// that only administrators used to reach. `clone` and `clone3` have further rules.
const NAMESPACES: &[&str] = &["clone", "clone3", "unshare"];
const NAMESPACES_CAPABILITY: &str = "CAP_SYS_ADMIN";
/// Who may write to the audit log of the machine.
const AUDIT_CAPABILITY: &str = "CAP_AUDIT_WRITE";

/// Personalities that only change what a program sees of itself: Linux, 32-bit Linux, both reporting a 2.6 kernel,
/// and the question which it is. Others turn address randomisation off or make page 0 mappable. personality(2).
const PERSONALITIES: &[u64] = &[0x0, 0x8, 0x20000, 0x20008, 0xffff_ffff];

const CLONE_NEWNS: u64 = 0x0002_0000;
const CLONE_NEWCGROUP: u64 = 0x0200_0000;
const CLONE_NEWUTS: u64 = 0x0400_0000;
const CLONE_NEWIPC: u64 = 0x0800_0000;
const CLONE_NEWUSER: u64 = 0x1000_0000;
const CLONE_NEWPID: u64 = 0x2000_0000;
const CLONE_NEWNET: u64 = 0x4000_0000;
/// Flags of clone(2) that make a namespace. `CLONE_NEWTIME` is not one: its bit belongs to clone's exit signal.
const NAMESPACE_FLAGS: [u64; 7] =
    [CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET];

const AF_NETLINK: u64 = 16;
const AF_VSOCK: u64 = 40;
const NETLINK_AUDIT: u64 = 9;

const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const ENOSYS: u32 = libc::ENOSYS.cast_unsigned();

/// Further architectures whose programs a machine runs, with their own numbers of calls: leaving one out would let
/// its programs pass unfiltered on no kernel, but kill them.
const SUB_ARCHITECTURES: &[(Arch, &[Arch])] = &[
    (Arch::ScmpArchX86_64, &[Arch::ScmpArchX86, Arch::ScmpArchX32]),
    (Arch::ScmpArchAarch64, &[Arch::ScmpArchArm]),
    (Arch::ScmpArchS390x, &[Arch::ScmpArchS390]),
];

/// The architecture of this machine as libseccomp calls it, where profiles can name it in an `archMap`.
pub(super) fn native(host: &Host) -> Option<Arch> {
    match host.architecture {
        "amd64" => Some(Arch::ScmpArchX86_64),
        "arm64" => Some(Arch::ScmpArchAarch64),
        "s390x" => Some(Arch::ScmpArchS390x),
        _ => None,
    }
}

/// The capabilities that make a difference to the built-in profile.
#[must_use]
pub fn relevant_capabilities() -> CapabilitySet {
    let names = BY_CAPABILITY.iter().flat_map(|(names, _)| *names);
    set(names.chain(&[NAMESPACES_CAPABILITY, AUDIT_CAPABILITY]))
}

fn set<'a>(names: impl IntoIterator<Item = &'a &'a str>) -> CapabilitySet {
    names.into_iter().filter_map(|name| CapabilitySet::of_name(name)).fold(CapabilitySet::EMPTY, CapabilitySet::with)
}

/// The built-in profile for a container with this bounding set, on this machine.
#[must_use]
pub fn resolve(capabilities: CapabilitySet, host: &Host) -> LinuxSeccomp {
    let has = |names: &[&str]| !set(names).and(capabilities).is_empty();
    let mut allowed: Vec<&str> = ALLOWED.concat();
    let mut refused = REFUSED.to_vec();
    for (architectures, names) in BY_ARCHITECTURE {
        if architectures.contains(&host.architecture) {
            allowed.extend(*names);
        }
    }
    for (owners, names) in BY_CAPABILITY {
        if has(owners) { &mut allowed } else { &mut refused }.extend(*names);
    }
    let may_make_namespaces = has(&[NAMESPACES_CAPABILITY]);
    if may_make_namespaces {
        allowed.extend(NAMESPACES);
    }

    let mut calls = vec![call(&allowed, Allow, None, vec![]), call(&refused, Refuse, Some(EPERM), vec![])];
    calls.extend(PERSONALITIES.iter().map(|value| call(&["personality"], Allow, None, vec![arg(0, Is, *value, 0)])));
    calls.extend(socket(has(&[AUDIT_CAPABILITY])));
    if !may_make_namespaces {
        // clone3 hides its flags in memory that a filter cannot read; as a call that does not exist (the default) it
        // makes the C library take clone. So is unshare.
        calls.extend(clone_without_namespaces(host));
    }

    let mut spec = LinuxSeccomp::default();
    spec.set_default_action(Refuse);
    spec.set_default_errno_ret(Some(ENOSYS));
    let row = SUB_ARCHITECTURES.iter().find(|(main, _)| native(host) == Some(*main));
    let architectures = row.map(|(main, others)| std::iter::once(*main).chain(others.iter().copied()).collect());
    spec.set_architectures(architectures.and_then(some_unless_empty));
    spec.set_syscalls(Some(calls));
    spec
}

/// Any socket, but: none to the hypervisor or sibling machines (vsock has no namespaces), and the audit log's only for
/// who may write to it; others hear that there is no such protocol, which PAM takes for a machine without audit.
///
/// vsock is not netlink either, so that two rules match it where the audit log is closed. "Neither of the two" cannot
/// be said: runtimes make an "or" of two conditions on one argument. libseccomp asks what is equal before what is not.
fn socket(may_audit: bool) -> Vec<LinuxSyscall> {
    let (family, protocol) = (0, 2);
    let mut calls = vec![call(&["socket"], Refuse, Some(EPERM), vec![arg(family, Is, AF_VSOCK, 0)])];
    if may_audit {
        calls.push(call(&["socket"], Allow, None, vec![arg(family, IsNot, AF_VSOCK, 0)]));
        return calls;
    }
    let netlink = arg(family, Is, AF_NETLINK, 0);
    let audit = vec![netlink, arg(protocol, Is, NETLINK_AUDIT, 0)];
    calls.push(call(&["socket"], Refuse, Some(EINVAL), audit));
    calls.push(call(&["socket"], Allow, None, vec![netlink, arg(protocol, IsNot, NETLINK_AUDIT, 0)]));
    calls.push(call(&["socket"], Allow, None, vec![arg(family, IsNot, AF_NETLINK, 0)]));
    calls
}

/// clone without a namespace flag, and EPERM with one.
fn clone_without_namespaces(host: &Host) -> Vec<LinuxSyscall> {
    // s390 has the stack first; clone(2).
    let flags = usize::from(host.architecture == "s390x");
    let all = NAMESPACE_FLAGS.iter().fold(0, |all, flag| all | flag);
    let mut calls = vec![call(&["clone"], Allow, None, vec![arg(flags, Masked, all, 0)])];
    let refused = NAMESPACE_FLAGS.iter().map(|flag| vec![arg(flags, Masked, *flag, *flag)]);
    calls.extend(refused.map(|args| call(&["clone"], Refuse, Some(EPERM), args)));
    calls
}

fn call(names: &[&str], action: LinuxSeccompAction, errno: Option<u32>, args: Vec<LinuxSeccompArg>) -> LinuxSyscall {
    syscall(names.iter().map(|name| (*name).to_owned()).collect(), action, errno, args)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::host::{Availability, KernelVersion};
    use super::*;

    fn host(architecture: &'static str) -> Host {
        Host { architecture, kernel: KernelVersion { major: 5, minor: 10 }, availability: Availability::Available }
    }

    /// What the profile says to a call with these arguments: the first rule that matches, as the rules of a profile
    /// never contradict each other.
    fn verdict(spec: &LinuxSeccomp, name: &str, args: [u64; 3]) -> &'static str {
        let holds = |condition: &LinuxSeccompArg| match condition.op() {
            Is => args[condition.index()] == condition.value(),
            IsNot => args[condition.index()] != condition.value(),
            Masked => args[condition.index()] & condition.value() == condition.value_two().unwrap_or(0),
            other => panic!("{other} is not used"),
        };
        let matching = |call: &&LinuxSyscall| {
            call.names().iter().any(|known| known == name) && call.args().iter().flatten().all(holds)
        };
        let verdicts: BTreeSet<_> = spec
            .syscalls()
            .iter()
            .flatten()
            .filter(matching)
            .map(|call| match (call.action(), call.errno_ret()) {
                (Allow, None) => "yes",
                (Refuse, Some(EPERM)) => "EPERM",
                (Refuse, Some(EINVAL)) => "EINVAL",
                other => panic!("{other:?}"),
            })
            .collect();
        assert!(verdicts.len() <= 1, "{name} {args:x?} has {verdicts:?}");
        verdicts.into_iter().next().unwrap_or("ENOSYS")
    }

    #[test]
    fn verdicts_are_those_of_the_reference() {
        const NONE: [u64; 3] = [0; 3];
        for (capabilities, name, args, expected) in [
            (&[][..], "read", NONE, "yes"),
            (&[], "mount", NONE, "yes"),
            (&[], "fchmodat2", NONE, "yes"),
            (&[], "setns", NONE, "yes"),
            (&[], "fanotify_init", NONE, "yes"),
            (&[], "vmsplice", NONE, "EPERM"),
            (&[], "io_uring_setup", NONE, "ENOSYS"),
            (&[], "add_key", NONE, "ENOSYS"),
            (&[], "frobnicate", NONE, "ENOSYS"),
            (&[], "clone", [0x1200011, 0, 0], "yes"),
            (&[], "clone", [CLONE_NEWUSER | 17, 0, 0], "EPERM"),
            (&[], "clone", [CLONE_NEWUSER | CLONE_NEWNET | 17, 0, 0], "EPERM"),
            (&[], "clone3", NONE, "ENOSYS"),
            (&[], "unshare", NONE, "ENOSYS"),
            (&["SYS_ADMIN"], "clone", [CLONE_NEWUSER | 17, 0, 0], "yes"),
            (&["SYS_ADMIN"], "clone3", NONE, "yes"),
            (&["SYS_ADMIN"], "unshare", NONE, "yes"),
            (&["SYS_ADMIN"], "chroot", NONE, "EPERM"),
            (&[], "chroot", NONE, "EPERM"),
            (&["SYS_CHROOT"], "chroot", NONE, "yes"),
            (&[], "bpf", NONE, "EPERM"),
            (&["BPF"], "bpf", NONE, "yes"),
            (&["SYS_ADMIN"], "bpf", NONE, "yes"),
            (&["BPF"], "perf_event_open", NONE, "EPERM"),
            (&["PERFMON"], "perf_event_open", NONE, "yes"),
            (&["SYS_MODULE"], "finit_module", NONE, "yes"),
            (&["SYS_TIME"], "clock_settime64", NONE, "yes"),
            (&["DAC_OVERRIDE"], "open_by_handle_at", NONE, "EPERM"),
            (&["DAC_READ_SEARCH"], "open_by_handle_at", NONE, "yes"),
            (&[], "personality", [0x20008, 0, 0], "yes"),
            (&[], "personality", [0xffff_ffff, 0, 0], "yes"),
            (&["SYS_ADMIN"], "personality", [0x0004_0000, 0, 0], "ENOSYS"),
            (&[], "socket", [2, 1, 0], "yes"),
            (&[], "socket", [2, 3, NETLINK_AUDIT], "yes"),
            (&[], "socket", [AF_NETLINK, 3, 0], "yes"),
            (&[], "socket", [AF_NETLINK, 3, NETLINK_AUDIT], "EINVAL"),
            (&["AUDIT_WRITE"], "socket", [AF_NETLINK, 3, NETLINK_AUDIT], "yes"),
            (&["AUDIT_WRITE"], "socket", [2, 1, 0], "yes"),
            (&["AUDIT_WRITE"], "socket", [AF_VSOCK, 1, 0], "EPERM"),
            (&[], "arch_prctl", NONE, "yes"),
            (&[], "swapcontext", NONE, "ENOSYS"),
        ] {
            let spec = resolve(set(capabilities), &host("amd64"));
            assert_eq!(verdict(&spec, name, args), expected, "{name} {args:x?} {capabilities:?}");
        }
    }

    #[test]
    fn every_call_has_one_place() {
        let by_architecture = BY_ARCHITECTURE.iter().flat_map(|(_, names)| *names).collect::<BTreeSet<_>>();
        let mut seen: BTreeSet<&str> = by_architecture.into_iter().copied().collect();
        let lists = ALLOWED.iter().copied().chain([REFUSED, NAMESPACES, &["personality", "socket"]]);
        for name in lists.chain(BY_CAPABILITY.iter().map(|(_, names)| *names)).flatten() {
            assert!(seen.insert(name), "{name} is there twice");
            assert!(name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_')), "{name}");
        }
    }

    #[test]
    fn every_capability_of_the_tables_is_known() {
        let names = BY_CAPABILITY.iter().flat_map(|(names, _)| *names).copied();
        for name in names.chain([NAMESPACES_CAPABILITY, AUDIT_CAPABILITY]) {
            assert!(CapabilitySet::of_name(name).is_some(), "{name}");
        }
        let relevant = relevant_capabilities();
        assert_eq!(relevant.names().count(), 12);
        for capabilities in [CapabilitySet::ALL, CapabilitySet::from_mask(0xa804_25fb), CapabilitySet::EMPTY] {
            let host = host("amd64");
            assert_eq!(resolve(capabilities, &host), resolve(capabilities.and(relevant), &host));
        }
    }

    #[test]
    fn architectures_have_their_own_parts() {
        for (architecture, others, own) in [
            ("amd64", Some(&["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"][..]), "modify_ldt"),
            ("arm64", Some(&["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]), "set_tls"),
            ("s390x", Some(&["SCMP_ARCH_S390X", "SCMP_ARCH_S390"]), "s390_runtime_instr"),
            ("ppc64le", None, "swapcontext"),
            ("riscv64", None, "riscv_flush_icache"),
        ] {
            let spec = resolve(CapabilitySet::EMPTY, &host(architecture));
            let names = |archs: &Vec<Arch>| archs.iter().map(ToString::to_string).collect::<Vec<_>>();
            let expected = others.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
            assert_eq!(spec.architectures().as_ref().map(names), expected, "{architecture}");
            assert_eq!(verdict(&spec, own, [0; 3]), "yes", "{architecture}");
        }
        let spec = resolve(CapabilitySet::EMPTY, &host("s390x"));
        assert_eq!(verdict(&spec, "clone", [0, CLONE_NEWNET, 0]), "EPERM");
        assert_eq!(verdict(&spec, "clone", [CLONE_NEWNET, 0, 0]), "yes", "the stack is no flag");
    }

    #[test]
    fn it_stays_small_in_a_runtime_spec() {
        for capabilities in [CapabilitySet::EMPTY, CapabilitySet::ALL] {
            let size = serde_json::to_vec(&resolve(capabilities, &host("amd64"))).expect("serialises").len();
            assert!((5_000..8_000).contains(&size), "{size} bytes");
        }
    }
}
