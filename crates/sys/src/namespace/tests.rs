use super::*;

#[test]
fn names_are_one_segment() {
    for (name, ok) in [
        ("6f1c9a2e-0b0c-4a36-8c6b-6f0f0c1c1f11", true),
        ("a", true),
        ("", false),
        (".", false),
        ("..", false),
        ("a/b", false),
        ("../x", false),
        ("a b", false),
        ("a\0", false),
        (&"x".repeat(256), false),
    ] {
        assert_eq!(check_name(name).is_ok(), ok, "{name:?}");
    }
}

/// Unpins on failure too.
struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("ns")
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        for kind in [Kind::Net, Kind::Ipc, Kind::Uts, Kind::Pid, Kind::User] {
            let _ = unpin(&self.path().join(kind.directory()).join("n"));
        }
    }
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: needs root");
    }
    root
}

fn sysctl(key: &str, value: &str) -> Sysctl {
    Sysctl::parse(key, value).unwrap()
}

#[test]
fn pinned_namespaces_are_new_set_up_and_go() {
    if !is_root() {
        return;
    }
    let dir = Dir::new();
    let sysctls =
        [sysctl("net.ipv4.ip_forward", "1"), sysctl("kernel.shm_rmid_forced", "1"), sysctl("kernel.msgmax", "4242")];
    let before = std::fs::read_to_string("/proc/sys/kernel/msgmax").unwrap();
    let wanted = Wanted { kinds: Kinds::ALL, hostname: Some("inside"), sysctls: &sysctls };
    let pins = pin(&dir.path(), "n", &wanted).unwrap();
    let (net, ipc, uts) = (pins.net.unwrap(), pins.ipc.unwrap(), pins.uts.unwrap());
    assert_eq!(net, dir.path().join("netns/n"));
    for (path, kind) in [(&net, "net"), (&ipc, "ipc"), (&uts, "uts")] {
        assert!(is_pinned(path).unwrap(), "{}", path.display());
        // The link's inode is the namespace's number.
        let own = rustix::fs::stat(format!("/proc/self/ns/{kind}").as_str()).unwrap().st_ino;
        assert_ne!(rustix::fs::stat(path).unwrap().st_ino, own, "{kind}");
    }
    let read = |file: &str| std::fs::read_to_string(file).unwrap().trim().to_owned();
    let in_net = on_fresh_thread(open(&net).unwrap().as_fd(), || {
        // Bound: works only on a device that is up.
        let lo = std::net::UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.connect("127.0.0.1:9")).is_ok();
        (read("/proc/sys/net/ipv4/ip_forward"), lo)
    });
    assert_eq!(in_net.unwrap(), ("1".to_owned(), true));
    let in_ipc = on_fresh_thread(open(&ipc).unwrap().as_fd(), || {
        (read("/proc/sys/kernel/shm_rmid_forced"), read("/proc/sys/kernel/msgmax"))
    });
    assert_eq!(in_ipc.unwrap(), ("1".to_owned(), "4242".to_owned()));
    assert_eq!(std::fs::read_to_string("/proc/sys/kernel/msgmax").unwrap(), before);
    let in_uts = on_fresh_thread(open(&uts).unwrap().as_fd(), || rustix::system::uname().nodename().to_owned());
    assert_eq!(in_uts.unwrap().to_bytes(), b"inside");
    assert_ne!(rustix::system::uname().nodename().to_bytes(), b"inside");

    // A name in use is refused, without harm to what is there.
    let again = pin(&dir.path(), "n", &wanted).unwrap_err();
    assert!(
        matches!(&again, PinError::Attach { kind: Kind::Net, source, .. } if source.kind() == io::ErrorKind::AlreadyExists)
    );
    assert!(is_pinned(&net).unwrap());

    for path in [&net, &ipc, &uts] {
        unpin(path).unwrap();
        assert!(!path.exists());
        unpin(path).unwrap();
        assert!(!is_pinned(path).unwrap());
    }
}

#[test]
fn a_failure_leaves_nothing() {
    if !is_root() {
        return;
    }
    let dir = Dir::new();
    let uts = dir.path().join("utsns");
    std::fs::create_dir_all(&uts).unwrap();
    drop(std::fs::File::create(uts.join("n")).unwrap());
    let wanted = Wanted { kinds: Kinds::ALL, ..Wanted::default() };
    let error = pin(&dir.path(), "n", &wanted).unwrap_err();
    assert!(matches!(error, PinError::Attach { kind: Kind::Uts, .. }), "{error}");
    for kind in [Kind::Net, Kind::Ipc] {
        assert_eq!(std::fs::read_dir(dir.path().join(kind.directory())).unwrap().count(), 0);
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(dir.path().to_str().unwrap()));

    let unknown = [sysctl("net.no.such.key", "1")];
    let error = pin(&dir.path(), "m", &Wanted { kinds: Kinds::ALL, sysctls: &unknown, ..Wanted::default() });
    assert!(matches!(error, Err(PinError::SetSysctl { .. })));
    assert!(!dir.path().join("netns/m").exists());
}

#[test]
fn wishes_that_would_change_the_node_are_refused() {
    let dir = Path::new("/nonexistent");
    let net = [sysctl("net.ipv4.ip_forward", "1")];
    let ipc = [sysctl("kernel.shmmax", "1")];
    let long = "x".repeat(65);
    let cases: [(Wanted<'_>, &str); 5] = [
        (Wanted::default(), "no namespace"),
        (Wanted { kinds: Kinds { net: false, ..Kinds::ALL }, sysctls: &net, ..Wanted::default() }, "Net namespace"),
        (Wanted { kinds: Kinds { ipc: false, ..Kinds::ALL }, sysctls: &ipc, ..Wanted::default() }, "Ipc namespace"),
        (Wanted { kinds: Kinds::ALL, hostname: Some(&long), ..Wanted::default() }, "host name"),
        (Wanted { kinds: Kinds::ALL, hostname: Some("a\0b"), ..Wanted::default() }, "host name"),
    ];
    for (wanted, part) in cases {
        let error = pin(dir, "n", &wanted).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let fine = Wanted { kinds: Kinds::ALL, ..Wanted::default() };
    assert!(matches!(pin(dir, "../n", &fine), Err(PinError::Name(_))));
}

#[test]
fn a_process_lends_its_namespace() {
    if !is_root() {
        return;
    }
    let dir = Dir::new();
    let own = rustix::process::getpid();
    let path = pin_of_process(&dir.path(), "n", Kind::Pid, own).unwrap();
    assert_eq!(path, dir.path().join("pidns/n"));
    assert!(is_pinned(&path).unwrap());
    assert_eq!(rustix::fs::stat(&path).unwrap().st_ino, rustix::fs::stat("/proc/self/ns/pid").unwrap().st_ino);
    unpin(&path).unwrap();
    let gone = Pid::from_raw(i32::MAX).unwrap();
    assert!(matches!(pin_of_process(&dir.path(), "n", Kind::Pid, gone), Err(PinError::Attach { .. })));
    assert!(!path.exists());
}

#[test]
fn unpin_touches_nothing_else() {
    if !is_root() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let other = root.path().join("tmpfs");
    std::fs::create_dir(&other).unwrap();
    rustix::mount::mount("none", &other, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    let refused = unpin(&other);
    let kept = std::fs::read_to_string("/proc/self/mounts").unwrap().contains(other.to_str().unwrap());
    rustix::mount::unmount(&other, UnmountFlags::DETACH).unwrap();
    assert!(refused.is_err() && kept);

    let target = root.path().join("target");
    drop(std::fs::File::create(&target).unwrap());
    let link = root.path().join("link");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    unpin(&link).unwrap();
    assert!(target.exists() && link.symlink_metadata().is_err());
    assert!(!is_pinned(&target).unwrap());
    assert_eq!(open(&target).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    unpin(&target.join("below")).unwrap();
}

#[test]
fn threads_do_not_keep_the_namespace() {
    if !is_root() {
        return;
    }
    let dir = Dir::new();
    let wanted = Wanted { kinds: Kinds { net: true, ..Kinds::default() }, ..Wanted::default() };
    let path = pin(&dir.path(), "n", &wanted).unwrap().net.unwrap();
    let namespace = open(&path).unwrap();
    let number = || rustix::fs::stat("/proc/thread-self/ns/net").unwrap().st_ino;
    let before = number();
    let inside = on_fresh_thread(namespace.as_fd(), number).unwrap();
    assert_eq!(inside, rustix::fs::stat(&path).unwrap().st_ino);
    assert_eq!(number(), before);
    let not_one = std::fs::File::open("/dev/null").unwrap();
    assert!(on_fresh_thread(not_one.as_fd(), || ()).is_err());
}

#[test]
fn user_namespaces_own_the_others() {
    if !is_root() {
        return;
    }
    let dir = Dir::new();
    let range = |length| [IdRange { inside: 0, outside: 100_000, length }];
    let (users, groups) = (range(65536), range(1000));
    let maps = IdMaps { users: &users, groups: &groups };
    let sysctls = [sysctl("net.ipv4.ip_forward", "1"), sysctl("kernel.msgmax", "4243")];
    let wanted = Wanted { kinds: Kinds::ALL, hostname: Some("mapped"), sysctls: &sysctls };
    let (user, pins) = pin_with_user(&dir.path(), "n", &wanted, &maps).unwrap();
    let (net, ipc, uts) = (pins.net.unwrap(), pins.ipc.unwrap(), pins.uts.unwrap());
    assert_eq!(user, dir.path().join("userns/n"));
    let read = |file: &str| std::fs::read_to_string(file).unwrap().trim().to_owned();
    let in_net = on_fresh_thread(open(&net).unwrap().as_fd(), || {
        let lo = std::net::UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.connect("127.0.0.1:9")).is_ok();
        (read("/proc/sys/net/ipv4/ip_forward"), lo)
    });
    assert_eq!(in_net.unwrap(), ("1".to_owned(), true));
    let in_ipc = on_fresh_thread(open(&ipc).unwrap().as_fd(), || read("/proc/sys/kernel/msgmax"));
    assert_eq!(in_ipc.unwrap(), "4243");
    let in_uts = on_fresh_thread(open(&uts).unwrap().as_fd(), || rustix::system::uname().nodename().to_owned());
    assert_eq!(in_uts.unwrap().to_bytes(), b"mapped");
    // A process of one thread enters, is root inside, and owns the network.
    let mut command = std::process::Command::new("nsenter");
    command.arg(format!("--user={}", user.display())).arg(format!("--net={}", net.display()));
    command.args([
        "sh",
        "-ec",
        "id -u; tr -s ' ' < /proc/self/uid_map; tr -s ' ' < /proc/self/gid_map; ip link add d0 type bridge",
    ]);
    let output = command.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0\n 0 100000 65536\n 0 100000 1000\n", "{output:?}");
    assert!(output.status.success(), "{output:?}");
    for path in [&user, &net, &ipc, &uts] {
        unpin(path).unwrap();
    }

    // Failures at each step leave nothing.
    let unknown = [sysctl("net.no.such.key", "1")];
    let failing = Wanted { sysctls: &unknown, ..wanted };
    assert!(matches!(pin_with_user(&dir.path(), "n", &failing, &maps), Err(PinError::SetSysctl { .. })));
    let overlap = [users[0], users[0]];
    let bad = IdMaps { users: &overlap, groups: &groups };
    assert!(matches!(pin_with_user(&dir.path(), "n", &wanted, &bad), Err(PinError::WriteIdMap(_))));
    let rootless = [IdRange { inside: 1, outside: 100_000, length: 5 }];
    for maps in [IdMaps { users: &[], groups: &groups }, IdMaps { users: &users, groups: &rootless }] {
        assert!(matches!(pin_with_user(&dir.path(), "n", &wanted, &maps), Err(PinError::IdMap)));
    }
    drop(std::fs::File::create(dir.path().join("utsns/n")).unwrap());
    assert!(matches!(pin_with_user(&dir.path(), "n", &wanted, &maps), Err(PinError::Attach { kind: Kind::Uts, .. })));
    for kind in [Kind::User, Kind::Net, Kind::Ipc] {
        assert_eq!(std::fs::read_dir(dir.path().join(kind.directory())).unwrap().count(), 0, "{kind:?}");
    }
}

#[test]
fn directories_may_be_shared_or_private() {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change, unmount};
    if !is_root() {
        return;
    }
    for propagation in
        [MountPropagationFlags::SHARED, MountPropagationFlags::PRIVATE, MountPropagationFlags::UNBINDABLE]
    {
        let root = tempfile::tempdir().unwrap();
        mount("none", root.path(), "tmpfs", MountFlags::empty(), None).unwrap();
        mount_change(root.path(), propagation).unwrap();
        let wanted = Wanted { kinds: Kinds::ALL, ..Wanted::default() };
        let outcome = pin(root.path(), "n", &wanted).map(|pins| {
            let paths = [pins.net.unwrap(), pins.ipc.unwrap(), pins.uts.unwrap()];
            let pinned = paths.iter().all(|path| is_pinned(path).unwrap());
            paths.iter().for_each(|path| unpin(path).unwrap());
            pinned && paths.iter().all(|path| !path.exists())
        });
        unmount(root.path(), UnmountFlags::DETACH).unwrap();
        assert!(outcome.unwrap(), "{propagation:?}");
    }
}
