//! The classes of flaw that container engines have had, kept out for good: what a hostile image, a hostile container and
//! a pod's hostile author may try, and what must not come of it. Where a class is seen elsewhere, it says so here.
//!
//! | class | tests |
//! | --- | --- |
//! | A: paths led astray by an image's links or by renames in a shared volume | [`a_hostile_image_reaches_nothing_outside`], [`a_volume_that_changes_under_our_hands_leads_nowhere`]; `hostile` for layers; `durable::beneath` |
//! | B: unpacking | `hostile::layers_do_not_reach_out_of_their_root`, `image-store/tests/hostile.rs` |
//! | C: unbounded reading | [`files_without_end_are_not_read_to_it`] |
//! | E: leaked descriptors, overwritten programs | [`a_container_gets_three_descriptors_and_no_way_to_the_nodes_programs`] |
//! | F: text that becomes more than one record | `domain/tests/sinks.rs`, `cri-service` `from_cri_sinks` |
//! | H: who a process is | `identity` |
//! | I: names that become paths | [`names_reach_nothing_outside_and_strangers_nothing_inside`] |
//! | J: loose directories and sockets | the same |
//! | K: monitors that die with their container | [`bombs_hit_nobody_else`] |
#![forbid(unsafe_code)]

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cri_api::v1;
use e2e::cri::{WAIT, container_config};
use e2e::image::{Archive, Compression, Format, Recipe};
use e2e::{Cri, Setup, World, scenario, tools};
use serde_json::json;

const RUNTIMES: [&str; 2] = ["crun", "runc"];
/// What no call about a hostile image may take, on a busy machine.
const CALL_LIMIT: Duration = Duration::from_secs(20);

fn security(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// What the kubelet sends for every pod that does not ask for `procMount: Unmasked`.
fn masked(mut config: v1::ContainerConfig) -> v1::ContainerConfig {
    let list = |paths: &str| paths.split_whitespace().map(str::to_owned).collect();
    security(&mut config).masked_paths = list("/proc/acpi /proc/kcore /proc/keys /proc/timer_list /sys/firmware");
    security(&mut config).readonly_paths = list("/proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger");
    config
}

/// A directory of the node that everything here tries to get at.
struct Outside(PathBuf);

impl Outside {
    fn new(world: &World) -> Self {
        let directory = world.path("o");
        for name in ["canary", "passwd", "group", "mtab", "null", "console"] {
            tools::write(directory.join(name), format!("{name} of the node\n"));
        }
        std::fs::create_dir(directory.join("d")).expect("a directory");
        Self(directory)
    }

    fn assert_untouched(&self, world: &World, what: &str) {
        assert_eq!(tools::names(&self.0), ["canary", "console", "d", "group", "mtab", "null", "passwd"], "{what}");
        assert_eq!(tools::names(self.0.join("d")), Vec::<String>::new(), "{what}");
        for name in ["canary", "passwd", "group", "mtab", "null", "console"] {
            assert_eq!(tools::read(self.0.join(name)), format!("{name} of the node\n"), "{what}");
        }
        let place = self.0.display().to_string();
        let mounts = world.snapshot().of_kind("mount").join("\n");
        assert!(!mounts.contains(&place), "{what}: mounted there:\n{mounts}");
    }
}

/// A container of what was found there may run or be refused; neither touches the node.
async fn try_run(cri: &Cri, pod: &e2e::Pod, config: v1::ContainerConfig, what: &str) -> Option<e2e::Container> {
    let made = tokio::time::timeout(CALL_LIMIT, cri.create(pod, config)).await;
    let container = made.unwrap_or_else(|_| panic!("{what}: creating hangs")).ok()?;
    let started = tokio::time::timeout(CALL_LIMIT, cri.start(&container.id)).await;
    started.unwrap_or_else(|_| panic!("{what}: starting hangs")).ok()?;
    Some(container)
}

/// runc CVE-2019-19921, 2021-30465, 2023-28642, 2025-31133, 2025-52565, 2025-52881; crun CVE-2025-24965; youki
/// CVE-2025-62161, 2025-62596; CRI-O CVE-2024-5154; containerd CVE-2022-23648.
#[test]
fn a_hostile_image_reaches_nothing_outside() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let outside = Outside::new(world);
        let target = |name: &str| format!("{}/{name}", outside.0.display());
        let up = |name: &str| format!("../../../../../../../..{}", target(name));
        let link = |place: &str, to: String| Archive::default().symlink(place, &to);
        let plain = json!({});
        let corpus = [
            ("mtab", link("etc/mtab", target("mtab")), plain.clone()),
            ("mtab, relative", link("etc/mtab", up("mtab")), plain.clone()),
            ("mtab to a new file", link("etc/mtab", target("d/new")), plain.clone()),
            ("/etc", link("etc", target("d")), plain.clone()),
            ("passwd", link("etc/passwd", target("passwd")), plain.clone()),
            ("passwd, relative", link("etc/passwd", up("passwd")), plain.clone()),
            ("group", link("etc/group", target("group")), plain.clone()),
            ("passwd by magic", link("etc/passwd", "/proc/self/root/etc/passwd".to_owned()), plain.clone()),
            ("/dev", link("dev", target("d")), plain.clone()),
            (
                "/dev/null",
                Archive::default().directory("dev/", 0o755).symlink("dev/null", &target("null")),
                plain.clone(),
            ),
            (
                "/dev/console",
                Archive::default().directory("dev/", 0o755).symlink("dev/console", &target("console")),
                plain.clone(),
            ),
            ("/proc", link("proc", target("d")), plain.clone()),
            ("/sys", link("sys", target("d")), plain.clone()),
            ("hostname", link("etc/hostname", target("canary")), plain.clone()),
            ("resolv.conf", link("etc/resolv.conf", target("canary")), plain.clone()),
            ("working directory", link("wd", target("d")), json!({ "WorkingDir": "/wd/made" })),
            ("working directory itself", link("wd", target("d/new")), json!({ "WorkingDir": "/wd" })),
            ("volume", link("vol", target("d")), json!({ "Volumes": { "/vol/made": {} } })),
            ("volume that climbs", link("vol", target("d")), json!({ "Volumes": { "/vol/../../../made": {} } })),
            ("mount destination", link("mnt", target("d")), plain.clone()),
        ];
        let source = world.path("shared");
        std::fs::create_dir_all(&source).expect("a directory");
        let mut ran = 0;
        for (number, (what, archive, config)) in corpus.into_iter().enumerate() {
            let image = Recipe::busybox(Format::Oci).layer(archive.finish(), Compression::Gzip).config(config).build();
            let name = world.registry().push(world, &format!("e2e/hostile-{number}:1"), &image);
            cri.pull(&name).await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
            for handler in RUNTIMES {
                let what = format!("{what}, {handler}");
                let pod = cri.run_pod(world.pod_config("hostile"), handler).await.expect("RunPodSandbox");
                let mut config = masked(container_config(&name, "main", WAIT));
                config.mounts = vec![v1::Mount {
                    container_path: "/mnt/made".to_owned(),
                    host_path: source.display().to_string(),
                    ..Default::default()
                }];
                config.tty = number % 2 == 1;
                // Nobody the image knows: its files get lines of the daemon's.
                security(&mut config).run_as_user = Some(v1::Int64Value { value: 4711 });
                if let Some(container) = try_run(&cri, &pod, config, &what).await {
                    ran += 1;
                    let script =
                        "test -s /proc/kcore || test -s /proc/keys || cat /etc/passwd /etc/group /etc/mtab 2>/dev/null";
                    if let Ok(answer) = cri.exec(&container.id, &["sh", "-c", script], 10).await {
                        let text = String::from_utf8_lossy(&answer.stdout).into_owned();
                        assert!(!text.contains("of the node"), "{what}: {text}");
                    }
                    let unmasked =
                        cri.exec(&container.id, &["sh", "-c", "test -s /proc/kcore || test -s /proc/keys"], 10).await;
                    assert!(!unmasked.is_ok_and(|answer| answer.exit_code == 0), "{what}: a mask does not hold");
                }
                outside.assert_untouched(world, &what);
                cri.end_pod(&pod.id).await;
                outside.assert_untouched(world, &format!("{what}, removed"));
            }
        }
        tools::say(&format!("{ran} of the hostile images' containers ran"));
        assert!(ran > 10, "hardly any of them runs at all: {ran}");
    });
}

/// Exchanges a directory with a link to the outside, as fast as it goes, until told to stop.
fn race(directory: &Path, outside: &Path) -> (Arc<AtomicBool>, std::thread::JoinHandle<u64>) {
    let (one, two) = (directory.join("a"), directory.join("b"));
    std::fs::create_dir_all(&one).expect("a directory");
    symlink(outside, &two).expect("a link");
    let (is_over, counter) = (Arc::new(AtomicBool::new(false)), AtomicU64::new(0));
    let told = Arc::clone(&is_over);
    let racer = std::thread::spawn(move || {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        while !told.load(Ordering::Relaxed) {
            if renameat_with(CWD, &one, CWD, &two, RenameFlags::EXCHANGE).is_ok() {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        }
        counter.into_inner()
    });
    (is_over, racer)
}

/// runc CVE-2021-30465 and its successors: a volume shared with somebody who exchanges what lies in it.
#[test]
fn a_volume_that_changes_under_our_hands_leads_nowhere() {
    const RACE: Duration = Duration::from_secs(6);
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let outside = Outside::new(world);
        let image = world.busybox().await;
        let shared = world.path("shared");
        std::fs::create_dir_all(&shared).expect("a directory");
        let (is_over, racer) = race(&shared, &outside.0.join("d"));
        let begun = Instant::now();
        let (mut tried, mut ran) = (0, 0);
        while begun.elapsed() < RACE {
            let pod = cri.run_pod(world.pod_config("race"), RUNTIMES[tried % 2]).await.expect("RunPodSandbox");
            for attempt in 0..4 {
                let mut config = masked(container_config(&image, &format!("main-{attempt}"), WAIT));
                let mount = |container_path: &str, host_path: &Path| v1::Mount {
                    container_path: container_path.to_owned(),
                    host_path: host_path.display().to_string(),
                    ..Default::default()
                };
                // One within the other, where the links are at work.
                config.mounts = vec![mount("/shared", &shared), mount("/shared/a/below", &world.path("tmp"))];
                config.working_dir = "/shared/a/work".to_owned();
                tried += 1;
                if let Some(container) = try_run(&cri, &pod, config, "race").await {
                    ran += 1;
                    let unmasked =
                        cri.exec(&container.id, &["sh", "-c", "test -s /proc/kcore || test -s /proc/keys"], 10).await;
                    assert!(!unmasked.is_ok_and(|answer| answer.exit_code == 0), "a mask does not hold");
                }
            }
            cri.end_pod(&pod.id).await;
        }
        is_over.store(true, Ordering::Relaxed);
        let exchanges = racer.join().expect("a racer");
        tools::say(&format!("{exchanges} exchanges beside {tried} containers, of which {ran} ran"));
        assert!(exchanges > 10_000 && tried > 8, "{exchanges} exchanges beside {tried} containers are no race");
        outside.assert_untouched(world, "race");
    });
}

/// The directory of an image's top layer in the store.
fn layer(world: &World, marker: &str) -> PathBuf {
    let overlay = world.path("storage/overlay");
    let layers = tools::names(&overlay).into_iter().map(|name| overlay.join(name).join("diff"));
    layers.into_iter().find(|diff| diff.join(marker).exists()).unwrap_or_else(|| panic!("no layer has {marker}"))
}

/// CRI-O CVE-2025-4437, CVE-2022-1708; containers/storage CVE-2024-9676; containerd CVE-2022-31030, 2026-47262.
#[test]
fn files_without_end_are_not_read_to_it() {
    const GROWTH_MAX_KIB: u64 = 32 << 10;
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let pod = cri.run_pod(world.pod_config("endless"), "").await.expect("RunPodSandbox");
        let first = cri.run(&pod, container_config(&image, "first", WAIT)).await;
        let etc = layer(world, "etc/passwd").join("etc");
        let (passwd, group) = (etc.join("passwd"), etc.join("group"));
        let (own_passwd, own_group) = (tools::read(&passwd), tools::read(&group));
        let restore = || {
            for (path, text) in [(&passwd, &own_passwd), (&group, &own_group)] {
                let _ = std::fs::remove_file(path);
                tools::write(path, text);
            }
        };
        let sparse =
            |path: &Path| std::fs::File::create(path).and_then(|file| file.set_len(10 << 30)).expect("a sparse file");
        let node = |path: &Path, kind, device| {
            std::fs::remove_file(path).expect("remove");
            rustix::fs::mknodat(rustix::fs::CWD, path, kind, rustix::fs::Mode::from_raw_mode(0o666), device)
                .expect("mknod");
        };
        let zero = rustix::fs::makedev(1, 5);
        use rustix::fs::FileType;
        let cases: [(&str, &dyn Fn()); 9] = [
            ("a sparse passwd", &|| sparse(&passwd)),
            ("a sparse group", &|| sparse(&group)),
            ("a fifo for passwd", &|| node(&passwd, FileType::Fifo, 0)),
            ("a fifo for group", &|| node(&group, FileType::Fifo, 0)),
            ("a socket for passwd", &|| node(&passwd, FileType::Socket, 0)),
            ("zeros for passwd", &|| node(&passwd, FileType::CharacterDevice, zero)),
            ("zeros for group", &|| node(&group, FileType::CharacterDevice, zero)),
            ("a huge group", &|| tools::write(&group, "g:x:1:guest,root\n".repeat(200_000))),
            ("one huge line", &|| tools::write(&group, format!("g:x:1:{}", "guest,".repeat(500_000)))),
        ];
        let before = world.daemon_resident_kib();
        let mut highest = before;
        for (number, (what, prepare)) in cases.into_iter().enumerate() {
            prepare();
            let begun = Instant::now();
            let mut config = container_config(&image, &format!("main-{number}"), WAIT);
            security(&mut config).run_as_username = "guest".to_owned();
            let ran = try_run(&cri, &pod, config, what).await.is_some();
            highest = highest.max(world.daemon_resident_kib());
            tools::say(&format!("{what}: {} after {:.1?}", if ran { "runs" } else { "refused" }, begun.elapsed()));
            restore();
        }
        // More output than is kept, and output without an end.
        let much = ["dd", "if=/dev/zero", "bs=1M", "count=64"];
        let answer = cri.exec(&first.id, &much, 20).await.expect("ExecSync");
        assert_eq!((answer.exit_code, answer.stdout.len() + answer.stderr.len()), (0, 16 << 20));
        drop(answer);
        let answer =
            tokio::time::timeout(CALL_LIMIT, cri.exec(&first.id, &["yes"], 2)).await.expect("hangs").expect("ExecSync");
        assert_eq!((answer.exit_code, answer.stderr.as_slice()), (-1, b"command timed out".as_slice()));
        highest = highest.max(world.daemon_resident_kib());
        tools::say(&format!("the daemon grew from {before} KiB to {highest} KiB at the most"));
        assert!(highest < before + GROWTH_MAX_KIB, "from {before} KiB to {highest} KiB");
        assert_eq!(cri.output(&first.id, &["echo", "fine"]).await, "fine");
    });
}

/// runc CVE-2019-5736, CVE-2024-21626.
#[test]
fn a_container_gets_three_descriptors_and_no_way_to_the_nodes_programs() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let programs: Vec<PathBuf> = ["crun", "runc", "conmon"]
            .into_iter()
            .filter_map(tools::find_program)
            .chain(["crio", "crio-monitor"].map(e2e::world::binary))
            .collect();
        let digests =
            || programs.iter().map(|path| e2e::image::digest(&std::fs::read(path).expect("read"))).collect::<Vec<_>>();
        let before = digests();
        for handler in e2e::world::HANDLERS {
            let name = handler.name;
            let pod = cri.run_pod(world.pod_config(name), name).await.expect("RunPodSandbox");
            // The shell's own, as the shell has them before it opens anything.
            let script = "ls /proc/$$/fd; true";
            let (_, output) = cri.run_to_end(&pod, container_config(&image, "list", &["sh", "-c", script])).await;
            assert_eq!(output, ["0", "1", "2"], "{name}: of a container's program");
            let container = cri.run(&pod, container_config(&image, "main", WAIT)).await;
            assert_eq!(cri.output(&container.id, &["sh", "-c", script]).await, "0\n1\n2", "{name}: of an executed one");

            if !RUNTIMES.contains(&name) {
                cri.end_pod(&pod.id).await;
                continue;
            }
            // Opened for appending only: a hit is seen, and nothing is written.
            let watch = "while :; do for exe in /proc/[0-9]*/exe; do case $(readlink $exe) in */busybox|'') ;; *) \
                (: >> $exe) 2>/dev/null && echo hit $(readlink $exe);; esac; done; done";
            let hunter = cri.run(&pod, container_config(&image, "hunter", &["sh", "-c", watch])).await;
            for _ in 0..6 {
                let _ = cri.exec(&hunter.id, &["true"], 5).await.expect("ExecSync");
            }
            let hits = e2e::log::texts(&e2e::log::read(&hunter.log), "stdout");
            assert_eq!(hits, Vec::<String>::new(), "{name}: programs of the node can be opened for writing");
            cri.end_pod(&pod.id).await;
        }
        assert!(digests() == before, "a program of the node was changed");

        // A working directory that is somebody's open directory: by the request, by the image, through a link.
        let mut places: Vec<String> = (3..9).chain([31, 255]).map(|number| format!("/proc/self/fd/{number}")).collect();
        places.extend(
            [
                "/proc/1/fd/7",
                "/proc/thread-self/fd/7",
                "/proc/self/cwd",
                "/proc/self/root/x",
                "/proc/./self//fd/7/../8",
                "/dev/fd/7",
            ]
            .map(str::to_owned),
        );
        let links = Archive::default().symlink("way", "/proc/self/fd/7").symlink("proc-link", "proc");
        let linked = Recipe::busybox(Format::Oci).layer(links.finish(), Compression::Gzip).build();
        let linked = world.registry().push(world, "e2e/linked:1", &linked);
        cri.pull(&linked).await.expect("PullImage");
        places.extend(["/way", "/way/below", "/proc-link/self/fd/7"].map(str::to_owned));
        let asking = Recipe::busybox(Format::Oci).config(json!({ "WorkingDir": "/proc/self/fd/7" })).build();
        let asking = world.registry().push(world, "e2e/asking:1", &asking);
        cri.pull(&asking).await.expect("PullImage");
        let pod = cri.run_pod(world.pod_config("cwd"), "").await.expect("RunPodSandbox");
        let refused = async |config| {
            let error = cri.create(&pod, config).await.expect_err("a working directory of the kernel's");
            assert_eq!(error.code(), tonic::Code::InvalidArgument, "{error:?}");
            assert!(error.message().contains("working directory"), "{error:?}");
        };
        for place in places {
            let mut config = container_config(&linked, "main", WAIT);
            config.working_dir = place;
            refused(config).await;
        }
        refused(container_config(&asking, "main", WAIT)).await;
        // An ordinary one through an ordinary link is fine.
        let mut config = container_config(&linked, "fine", &["pwd"]);
        config.working_dir = "/work/new/./place".to_owned();
        assert_eq!(cri.run_to_end(&pod, config).await.1, ["/work/new/place"]);
    });
}

/// Texts that mean something to some path, file, command line or terminal.
const NASTY: [&str; 14] = [
    "..",
    "../../o/canary",
    "/o/canary",
    "a/../../o",
    "a\nb",
    "a\0b",
    "a\u{2028}b",
    "-rf",
    "$(touch o/canary)",
    "a:b",
    "a=b+c",
    "%n%s",
    "\u{1b}[31m",
    " ",
];

/// CRI-O CVE-2025-0750; containerd CVE-2022-23648, 2024-25621, 2020-15257, 2021-41103.
#[test]
fn names_reach_nothing_outside_and_strangers_nothing_inside() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let outside = Outside::new(world);
        let image = world.busybox().await;
        let pod = cri.run_pod(world.pod_config("plain"), "").await.expect("RunPodSandbox");
        let kept = cri.run(&pod, container_config(&image, "kept", WAIT)).await;
        let tops = tools::names(world.path("."));
        let mounts = || world.snapshot().of_kind("mount").into_iter().map(str::to_owned).collect::<Vec<_>>();
        let before = mounts();
        let mut taken = 0;
        for nasty in NASTY {
            for field in 0..6 {
                let mut config = world.pod_config("nasty");
                let metadata = config.metadata.as_mut().expect("metadata");
                match field {
                    0 => metadata.name = nasty.to_owned(),
                    1 => metadata.namespace = nasty.to_owned(),
                    2 => metadata.uid = nasty.to_owned(),
                    3 => config.hostname = nasty.to_owned(),
                    4 => config.log_directory = format!("{}/{nasty}", world.path("logs").display()),
                    _ => {}
                }
                let handler = if field == 5 { nasty } else { "" };
                if let Ok(pod) = cri.run_pod(config, handler).await {
                    taken += 1;
                    cri.end_pod(&pod.id).await;
                }
            }
            for field in 0..2 {
                let mut config = container_config(&image, "nasty", &["true"]);
                match field {
                    0 => config.metadata.as_mut().expect("metadata").name = nasty.to_owned(),
                    _ => config.log_path = nasty.to_owned(),
                }
                if let Some(container) = try_run(&cri, &pod, config, nasty).await {
                    taken += 1;
                    cri.remove(&container.id).await.expect("RemoveContainer");
                }
            }
            for (call, answer) in [
                ("ContainerStatus", cri.status(nasty).await.is_err()),
                ("ExecSync", cri.exec(nasty, &["true"], 1).await.is_err()),
                ("PodSandboxStatus", cri.pod_status(nasty).await.is_err()),
                ("ReopenContainerLog", cri.reopen_log(nasty).await.is_err()),
            ] {
                assert!(answer, "{call} {nasty:?}");
            }
            // What does not exist is removed already.
            let _ = (
                cri.remove(nasty).await,
                cri.remove_pod(nasty).await,
                cri.stop(nasty, 0).await,
                cri.stop_pod(nasty).await,
            );
            outside.assert_untouched(world, nasty);
        }
        tools::say(&format!("{taken} of the nasty names were taken as names"));
        assert_eq!(mounts(), before);
        assert_eq!(tools::names(world.path(".")), tops);
        assert_eq!(cri.output(&kept.id, &["echo", "fine"]).await, "fine");

        // A daemon closes what an older one left open.
        let own = ["storage", "run", "exits", "daemon-logs", "a", "ns"];
        assert!(world.end_daemon());
        let open =
            |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
        own.iter().for_each(|name| open(&world.path(name), 0o777));
        open(&world.path("."), 0o755);
        world.start_daemon().await;
        let cri = world.cri();
        let mode = |name: &str| std::fs::metadata(world.path(name)).expect("is there").permissions().mode() & 0o7777;
        for (name, at_most) in
            [("storage", 0o711), ("run", 0o711), ("exits", 0o700), ("daemon-logs", 0o700), ("a", 0o755), ("ns", 0o755)]
        {
            assert_eq!(mode(name) & !at_most, 0, "{name}: {:o}", mode(name));
        }
        assert_eq!(mode("crio.sock"), 0o660);

        // Somebody with no rights looks at everything and finds nothing to read, to write or to talk to.
        let script = "for top in storage run exits daemon-logs a runtime logs crio.sock; do find \"$0/$top\" \\( -type f -readable \
            -o -type f -writable -o -type s -writable -o -type p -writable -o -type d -writable \\) 2>/dev/null; done";
        let stranger = |script: &str| {
            let mut command = world.command("setpriv");
            command
                .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--", "/bin/sh", "-c", script])
                .arg(world.path(""));
            tools::run(&mut command)
        };
        assert_eq!(stranger("id -u").trim(), "65534");
        assert_eq!(stranger("test -r \"$0/crio.conf\" && echo seen").trim(), "seen", "the stranger sees what is open");
        assert_eq!(stranger(script), "");
        let connect = "busybox nc -h >/dev/null 2>&1; printf x | busybox nc local:\"$0/crio.sock\" 2>&1 | head -n1";
        assert!(!stranger(connect).contains("HTTP"), "a stranger may talk to the daemon");

        // No socket without a file: those belong to whoever shares the network namespace.
        let programs: Vec<i32> =
            world.find_processes("crio-monitor").into_iter().chain(i32::try_from(world.daemon_pid())).collect();
        assert!(programs.len() >= 2, "{programs:?}");
        for pid in programs {
            let sockets: Vec<String> = tools::names(format!("/proc/{pid}/fd"))
                .into_iter()
                .filter_map(|fd| std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok())
                .filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']').map(str::to_owned))
                .collect();
            let table = tools::read(format!("/proc/{pid}/net/unix"));
            for line in table.lines().filter(|line| line.contains(" @")) {
                let inode = line.split_whitespace().nth(6).unwrap_or_default();
                assert!(!sockets.iter().any(|socket| socket == inode), "{pid}: {line}");
            }
        }
        cri.end_pod(&pod.id).await;
    });
}

/// CRI-O CVE-2019-14891.
#[test]
fn bombs_hit_nobody_else() {
    let drop_in = "[crio.runtime]\npids_limit = 64\n".to_owned();
    scenario(Setup { drop_in, ..Setup::default() }, async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        for handler in e2e::world::HANDLERS {
            let name = handler.name;
            let pod = cri.run_pod(world.pod_config(name), name).await.expect("RunPodSandbox");
            let limited = |name: &str, script: &str| {
                let mut config = container_config(&image, name, &["sh", "-c", script]);
                config.linux.as_mut().expect("linux").resources = Some(v1::LinuxContainerResources {
                    memory_limit_in_bytes: 32 << 20,
                    memory_swap_limit_in_bytes: 32 << 20,
                    ..Default::default()
                });
                config
            };
            // A child is the victim, and the program goes on to its own end.
            let (status, output) =
                cri.run_to_end(&pod, limited("child", "tail /dev/zero; echo survived; exit 3")).await;
            assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"), "{name}: {status:?}");
            assert_eq!(output, ["survived"], "{name}");
            // The program itself is.
            let (status, _) = cri.run_to_end(&pod, limited("itself", "exec tail /dev/zero")).await;
            assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{name}: {status:?}");
            // Processes and memory at once.
            let bomb = cri
                .run(&pod, limited("bomb", "echo lit; bomb() { bomb | bomb & }; bomb; while :; do sleep 1; done"))
                .await;
            let monitors = || world.find_processes(&bomb.id).len();
            assert_eq!(monitors(), 1, "{name}");
            tokio::time::sleep(Duration::from_millis(1500)).await;
            // The kernel chooses its victims; where the program itself was one, the monitor has ended as it should.
            if monitors() == 0 {
                let status = cri.exit(&bomb.id).await;
                assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{name}: {status:?}");
                cri.end_pod(&pod.id).await;
                continue;
            }
            let begun = Instant::now();
            cri.stop(&bomb.id, 1).await.expect("StopContainer");
            assert!(begun.elapsed() < Duration::from_secs(10), "{name}: {:?}", begun.elapsed());
            let status = cri.status(&bomb.id).await.expect("ContainerStatus");
            assert_eq!(status.exit_code, 137, "{name}: {status:?}");
            assert_eq!(
                e2e::log::texts(&e2e::log::read(&bomb.log), "stdout").first().map(String::as_str),
                Some("lit"),
                "{name}"
            );
            cri.end_pod(&pod.id).await;
        }
    });
}
