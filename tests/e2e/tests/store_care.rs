//! The store under bad treatment: daemons that die between any two writes, damage, and other tools at work in it at the
//! same time.
//!
//! Short by default: `E2E_CRASH_STRIDE=1` dies before every single write, `E2E_STORM_SECONDS` is how long the tools fight.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::pin::Pin;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cri_api::v1;
use e2e::cri::{WAIT, container_config};
use e2e::image::{Archive, Compression, Format, Image, Recipe, artifact, digest};
use e2e::{Cri, Pod, Setup, World, scenario, tools};
use serde_json::{Value, json};

fn number(name: &str, default: u32) -> u32 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Bytes that do not get smaller.
fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(count).collect()
}

fn image(seed: u64, layers: usize) -> Image {
    let mut recipe = Recipe::new(Format::Oci);
    for layer in 0..layers {
        let content = noise(seed + layer as u64, 60_000);
        let archive = Archive::default()
            .directory(&format!("layer{layer}"), 0o755)
            .file(&format!("layer{layer}/noise"), 0o640, &content)
            .file("top", 0o644, layer.to_string().as_bytes());
        recipe = recipe.layer(archive.finish(), Compression::Gzip);
    }
    recipe.config(json!({ "Labels": { "seed": seed.to_string() } })).build()
}

/// `crio check` beside the daemon: what it prints, and whether the store is whole.
fn check(world: &World, arguments: &[&str]) -> (bool, String) {
    let output = tools::try_run(world.crio(&["check"]).args(arguments));
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), text)
}

fn assert_whole(world: &World, what: &str) {
    let (is_whole, text) = check(world, &[]);
    assert!(is_whole, "{what}: {text}\n{}", world.log_tail());
}

/// Compressed digests of the layers that a dead daemon had committed.
fn complete(world: &World) -> BTreeSet<String> {
    let layers = tools::read(world.path("storage/overlay-layers/layers.json"));
    let layers: Value = serde_json::from_str(&layers).unwrap_or_default();
    let committed = layers.as_array().into_iter().flatten();
    committed.filter_map(|row| Some(row["compressed-diff-digest"].as_str()?.to_owned())).collect()
}

/// Files that were on their way when the daemon died.
fn leftovers(world: &World) -> Vec<String> {
    let storage = world.path("storage");
    let mut found = tools::names(storage.join("overlay-layers"));
    found.extend(tools::names(storage.join("artifacts")));
    found.retain(|name| name.starts_with(".crio-staged") || name.starts_with(".tmp-") || name.starts_with(".staging"));
    found
}

type Done = Pin<Box<dyn Future<Output = bool> + Send>>;
type Step = fn(&Cri, &str) -> Done;

fn pull(cri: &Cri, name: &str) -> Done {
    let (cri, name) = (cri.clone(), name.to_owned());
    Box::pin(async move { cri.pull(&name).await.is_ok() })
}

fn remove(cri: &Cri, name: &str) -> Done {
    let (cri, name) = (cri.clone(), name.to_owned());
    Box::pin(async move { cri.remove_image(&name).await.is_ok() })
}

/// Lets the daemon die before every `stride`-th write of an operation.
async fn die_everywhere(world: &mut World, what: &str, name: &str, step: Step, is_pull: bool) -> u32 {
    let stride = number("E2E_CRASH_STRIDE", 11);
    let kept = world.registry().push(world, "e2e/kept:1", &image(7, 2));
    let mut deaths = 0;
    // Another offset for each operation, so that short runs see different places.
    let first = u32::try_from(what.len()).unwrap_or(0) % stride;
    for at in (first..).step_by(usize::try_from(stride).unwrap_or(1)) {
        let what = format!("{what}, step {at}");
        let cri = world.cri();
        assert!(cri.pull(&kept).await.is_ok(), "{what}");
        assert!(if is_pull { remove(&cri, name).await } else { pull(&cri, name).await }, "{what}");
        world.let_daemon_die_at(at);
        let is_done = step(&cri, name).await;
        let has_died = world.daemon_has_died();
        assert!(has_died || is_done, "{what}: failed alive: {}", world.log_tail());
        let complete = complete(world);
        let before = world.registry().fetched(world);
        world.start_daemon().await;
        let cri = world.cri();
        assert_whole(world, &what);
        assert!(cri.image(&kept).await.is_some(), "{what}");
        assert!(pull(&cri, name).await, "{what}: again: {}", world.log_tail());
        let fetched = world.registry().fetched(world);
        let again: Vec<&String> = fetched.iter().skip(before.len()).filter(|it| complete.contains(*it)).collect();
        assert!(!is_pull || again.is_empty(), "{what}: complete, and fetched again: {again:?}");
        assert_whole(world, &what);
        // What was taken over from the dead has been used up.
        assert_eq!(leftovers(world), [""; 0], "{what}");
        if !has_died {
            return deaths;
        }
        deaths += 1;
        assert!(at < 400, "{what}: never ends");
    }
    deaths
}

#[test]
fn a_daemon_may_die_before_any_write() {
    scenario(Setup::default(), async |world| {
        let whole = world.registry().push(world, "e2e/whole:1", &image(100, 4));
        let other = artifact(&[(Some("one"), &noise(200, 90_000)), (Some("two"), &noise(300, 1000))]);
        let other = world.registry().push(world, "e2e/artifact:1", &other);
        let deaths = [
            die_everywhere(world, "pull", &whole, pull, true).await,
            die_everywhere(world, "pull artifact", &other, pull, true).await,
            die_everywhere(world, "remove", &whole, remove, false).await,
            die_everywhere(world, "remove artifact", &other, remove, false).await,
        ];
        tools::say(&format!("\n    deaths: {deaths:?}\n"));
        assert!(deaths[0] > 2 && deaths[2] > 0, "{deaths:?}");
    });
}

#[test]
fn damage_is_named_and_repaired_while_pods_run() {
    let drop_in = "[crio.image]\npinned_images = [\"*kept*\"]\n".to_owned();
    scenario(Setup { drop_in, ..Setup::default() }, async |world| {
        let cri = world.cri();
        let busybox = world.busybox().await;
        let damaged = world.registry().push(world, "e2e/damaged:1", &image(1, 3));
        let kept = world.registry().push(world, "e2e/kept:1", &image(9, 2));
        assert!(pull(&cri, &damaged).await && pull(&cri, &kept).await);
        let pod = cri.run_pod(world.pod_config("runs"), "").await.expect("RunPodSandbox");
        let running = cri.run(&pod, container_config(&busybox, "main", WAIT)).await;
        assert_whole(world, "before");

        // Two damages, in a layer of nobody who runs.
        let layers = tools::read(world.path("storage/overlay-layers/layers.json"));
        let layers: Value = serde_json::from_str(&layers).expect("JSON");
        let images = tools::read(world.path("storage/overlay-images/images.json"));
        let images: Value = serde_json::from_str(&images).expect("JSON");
        let of = |name: &str| {
            let named = |row: &&Value| row["names"].as_array().is_some_and(|names| names.iter().any(|own| own == name));
            images.as_array().and_then(|rows| rows.iter().find(named)).expect("an image").clone()
        };
        let top = of(&damaged)["layer"].as_str().expect("a layer").to_owned();
        let row =
            layers.as_array().and_then(|rows| rows.iter().find(|row| row["id"] == top.as_str())).expect("a layer");
        let below = row["parent"].as_str().expect("a parent").to_owned();
        let overlay = world.inside(&world.path("storage/overlay"));
        tools::write(overlay.join(&top).join("diff/top"), "changed");
        std::fs::remove_file(overlay.join(&below).join("diff/layer1/noise")).expect("removes");
        let (is_whole, text) = check(world, &[]);
        assert!(!is_whole);
        for expected in [
            format!("layer {top} does not give its tar back"),
            format!("layer {below} does not give its tar back"),
            format!("image {} is made of layer {top}, which is damaged", image(1, 3).id()),
            "2 layer errors, 0 read-only layer errors, 1 image errors, 0 read-only image errors, 0 container errors"
                .to_owned(),
        ] {
            assert!(text.contains(&expected), "{expected}: {text}");
        }
        let (is_repaired, text) = check(world, &["--repair"]);
        assert!(is_repaired, "{text}");
        assert_whole(world, "repaired");
        assert!(cri.image(&damaged).await.is_none() && cri.image(&kept).await.is_some());
        assert!(pull(&cri, &damaged).await, "can be pulled again");

        // Damage beneath a running container is told and stays, whatever force; so it does at the next start.
        let used = of(&busybox)["layer"].as_str().expect("a layer").to_owned();
        let manifest = world.path("storage/overlay-images").join(of(&busybox)["id"].as_str().expect("an id"));
        tools::write(overlay.join(&used).join("diff/added"), "by nobody");
        std::fs::remove_file(world.inside(&manifest.join("manifest"))).expect("removes");
        let (is_repaired, text) = check(world, &["--repair", "--force"]);
        assert!(!is_repaired && text.contains("stays, because it runs"), "{text}");
        // With --wipe, everything would have to go; but not while something runs.
        let (is_wiped, text) = check(world, &["--repair", "--wipe"]);
        assert!(!is_wiped && text.contains("runs, so the storage directory"), "{text}");
        // A layer that another pull left half made, for the quick check of the next start.
        let top = of(&damaged)["layer"].as_str().expect("a layer").to_owned();
        std::fs::remove_dir_all(overlay.join(&top)).expect("removes");
        world.kill_daemon();
        assert!(world.path("clean.shutdown.supported").exists() && !world.path("clean.shutdown").exists());
        world.start_daemon().await;
        let cri = world.cri();
        assert!(tools::read(world.path("crio.log")).contains("Attempting to repair storage directory"));
        assert!(cri.image(&damaged).await.is_none(), "what is damaged is gone");
        assert!(cri.image(&kept).await.is_some_and(|image| image.pinned));
        assert_eq!(cri.output(&running.id, &["echo", "alive"]).await, "alive");
        // Pins are read again.
        tools::write(world.path("conf.d/20-pins.conf"), "[crio.image]\npinned_images = []\n");
        let pid = i32::try_from(world.daemon_pid()).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).expect("a daemon");
        let is_unpinned = || async { cri.image(&kept).await.is_some_and(|image| !image.pinned) };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_unpinned().await {
            assert!(Instant::now() < deadline, "{}", world.log_tail());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // Without containers, what is left of the damage can be repaired.
        cri.end_pod(&pod.id).await;
        let (is_repaired, text) = check(world, &["--repair", "--force"]);
        assert!(is_repaired, "{text}");
        assert_whole(world, "in the end");
        assert!(pull(&cri, &busybox).await);
    });
}

#[test]
fn wipe_takes_containers_and_images_of_before() {
    let drop_in = "[crio]\nversion_file_persist = \"@ROOT@/version-persist\"\n".to_owned();
    scenario(Setup { drop_in, ..Setup::default() }, async |world| {
        let cri = world.cri();
        let busybox = world.busybox().await;
        let unused = world.registry().push(world, "e2e/unused:1", &image(3, 1));
        assert!(pull(&cri, &unused).await);
        let pod = cri.run_pod(world.pod_config("old"), "").await.expect("RunPodSandbox");
        cri.run(&pod, container_config(&busybox, "main", WAIT)).await;
        cri.stop_pod(&pod.id).await.expect("StopPodSandbox");
        // Another version: pods and the images they used go at the next start, other images stay.
        assert!(world.end_daemon());
        tools::write(world.path("version-persist"), "\"1.36.2\"");
        world.start_daemon().await;
        let cri = world.cri();
        assert!(cri.pods().await.is_empty());
        assert!(cri.image(&busybox).await.is_none() && cri.image(&unused).await.is_some());
        assert_eq!(tools::read(world.path("version-persist")), tools::read(world.path("version")));
        assert_whole(world, "after a change of version");
    });
}

/// podman and buildah on the world's store.
fn tool(world: &World, program: &str, arguments: &[&str]) -> Command {
    let (root, run) = (world.path("storage"), world.path("run"));
    let mut command = world.command(program);
    command.arg("--root").arg(root).arg("--runroot").arg(run).args(["--storage-driver", "overlay"]);
    if program == "podman" {
        command.args(["--cgroup-manager", "cgroupfs", "--events-backend", "file"]);
    }
    command.args(arguments).env("TMPDIR", world.path("tmp")).env("BUILDAH_ISOLATION", "chroot");
    command.env("CONTAINERS_CONF", world.path("containers.conf"));
    command
}

fn stored(world: &World, name: &str) -> String {
    format!("containers-storage:[overlay@{}+{}]{name}", world.path("storage").display(), world.path("run").display())
}

async fn ends(cri: &Cri, pod: &Pod, config: v1::ContainerConfig) -> Vec<String> {
    let (status, lines) = cri.run_to_end(pod, config).await;
    assert_eq!(status.exit_code, 0, "{status:?} {lines:?}");
    lines
}

#[test]
fn tools_build_run_and_remove_in_the_same_store() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        // The machine may not let limits be raised.
        let limits = "[containers]\ndefault_ulimits = []\n[engine]\nruntime = \"crun\"\n";
        tools::write(world.path("containers.conf"), limits);
        let busybox = world.busybox().await;
        let run = |program: &str, arguments: &[&str]| tools::run(&mut tool(world, program, arguments));

        // Their container from our pull.
        let ulimit = ["--ulimit", "host", "--network", "none", "--cgroups", "disabled"];
        let of_podman = [&["run", "--rm"][..], &ulimit, &[&busybox, "echo", "from podman"]].concat();
        assert_eq!(run("podman", &of_podman).trim(), "from podman");

        // Our pod from their builds: several layers, empty ones, and squashed.
        tools::write(
            world.path("build/Dockerfile"),
            format!(
                "FROM {busybox}\nCOPY file /copied\nRUN echo made > /made && mkdir /gone\nENV A=b\nRUN rmdir /gone\nCMD [\"cat\", \"/copied\", \"/made\"]\n"
            ),
        );
        tools::write(world.path("build/file"), "copied\n");
        let context = world.path("build");
        let context = context.to_str().expect("a path");
        for (name, options) in [("layers", &["--layers"][..]), ("flat", &["--squash"])] {
            let name = format!("localhost/built:{name}");
            let arguments = [&["bud", "--network", "host"][..], options, &["-t", &name, context]].concat();
            run("buildah", &arguments);
            let pod = cri.run_pod(world.pod_config("built"), "").await.expect("RunPodSandbox");
            let mut config = container_config(&name, "main", &[]);
            config.command.clear();
            assert_eq!(ends(&cri, &pod, config).await, ["copied", "made"], "{name}");
            if options == ["--squash"] {
                cri.end_pod(&pod.id).await;
                continue;
            }

            // Whoever uses an image keeps it from the other.
            let main = cri.run(&pod, container_config(&name, "user", &["sleep", "1000"])).await;
            let refused = tools::try_run(&mut tool(world, "podman", &["rmi", &name]));
            if refused.status.success() {
                // Podman knows of volatile containers from version 4.4 on; what an older one takes away is told.
                let (is_whole, text) = check(world, &["--quick"]);
                assert!(!is_whole && text.contains(&format!("container {} is made", main.id)), "{name}: {text}");
            } else {
                assert_eq!(cri.output(&main.id, &["cat", "/made"]).await, "made");
            }
            cri.end_pod(&pod.id).await;
            if refused.status.success() {
                let _ = check(world, &["--repair", "--force"]);
            }
            assert_whole(world, &name);
        }
        let holder = [&["create", "--name", "holder"][..], &ulimit, &[&busybox, "true"]].concat();
        run("podman", &holder);
        let refused = cri.remove_image(&busybox).await.expect_err("podman uses it");
        assert!(refused.message().contains("in use"), "{refused:?}");
        run("podman", &["rm", "holder"]);

        // Out of the store comes what went in.
        let built = image(42, 3);
        let name = world.registry().push(world, "e2e/exact:1", &built);
        assert!(pull(&cri, &name).await);
        let out = world.path("copied");
        let mut copy = world.command("skopeo");
        tools::run(copy.args(["copy", "--quiet", &stored(world, &name)]).arg(format!("dir:{}", out.display())));
        assert_eq!(
            digest(&std::fs::read(out.join(built.id())).expect("a configuration")),
            format!("sha256:{}", built.id())
        );
        let config: Value =
            serde_json::from_slice(&std::fs::read(out.join(built.id())).expect("a file")).expect("JSON");
        for diff_id in config["rootfs"]["diff_ids"].as_array().expect("layers") {
            let diff_id = diff_id.as_str().expect("a digest");
            let bytes = std::fs::read(out.join(diff_id.trim_start_matches("sha256:"))).expect("a layer");
            assert_eq!(digest(&bytes), diff_id);
        }
        assert_whole(world, "in the end");
    });
}

#[test]
fn everybody_at_once_breaks_nothing() {
    scenario(Setup::default(), async |world| {
        let seconds = u64::from(number("E2E_STORM_SECONDS", 4));
        let end = Instant::now() + Duration::from_secs(seconds);
        tools::write(world.path("containers.conf"), "[containers]\ndefault_ulimits = []\n");
        let busybox = world.busybox().await;
        // Images that share layers: each begins with those of the one before.
        let names: Vec<String> = (1..=4)
            .map(|layers| world.registry().push(world, &format!("e2e/storm:{layers}"), &image(500, layers)))
            .collect();
        let (done, failures) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let is_over = AtomicBool::new(false);
        let world_ref: &World = world;
        let pick = |state: &mut u64, count: usize| {
            *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(*state >> 33).unwrap_or(0) % count
        };
        let tools_at_work = |seed: u64| {
            let (names, done, failures, is_over) = (&names, &done, &failures, &is_over);
            move || {
                let mut state = seed;
                while Instant::now() < end && !is_over.load(Ordering::SeqCst) {
                    let name = &names[pick(&mut state, names.len())];
                    let mut command = match pick(&mut state, 5) {
                        0 => tool(world_ref, "podman", &["pull", "--quiet", "--tls-verify=false", name]),
                        1 => tool(world_ref, "podman", &["rmi", name]),
                        2 => tool(world_ref, "buildah", &["images", "--quiet"]),
                        3 => tool(world_ref, "podman", &["ps", "--all", "--external"]),
                        _ => {
                            let mut command = world_ref.command("skopeo");
                            let target = world_ref.path(&format!("tmp/out-{seed}"));
                            command.args(["copy", "--quiet", &stored(world_ref, name)]);
                            command.arg(format!("dir:{}", target.display()));
                            command
                        }
                    };
                    let output = tools::try_run(&mut command);
                    done.fetch_add(1, Ordering::SeqCst);
                    // An image that another one has removed is nobody's fault; damage is.
                    if !output.status.success() {
                        failures.fetch_add(1, Ordering::SeqCst);
                        let text = String::from_utf8_lossy(&output.stderr).into_owned();
                        let bad =
                            ["corrupt", "invalid character", "unexpected end of JSON", "integrity checksum", "panic"];
                        assert!(!bad.iter().any(|word| text.contains(word)), "{command:?}: {text}");
                    }
                }
            }
        };
        let cri = world.cri();
        let ours = async {
            let mut state = 99;
            let mut count = 0_u32;
            while Instant::now() < end {
                let name = &names[pick(&mut state, names.len())];
                match pick(&mut state, 4) {
                    0 | 1 => drop(cri.pull(name).await.map_err(|error| {
                        assert!(!error.message().contains("parse"), "{error:?}");
                    })),
                    2 => drop(cri.remove_image(name).await),
                    _ => {
                        let pod = cri.run_pod(world_ref.pod_config("storm"), "").await.expect("RunPodSandbox");
                        let config = container_config(&busybox, "main", &["cat", "/etc/group"]);
                        assert_eq!(ends(&cri, &pod, config).await.len(), 3);
                        cri.end_pod(&pod.id).await;
                    }
                }
                count += 1;
                tokio::task::yield_now().await;
            }
            is_over.store(true, Ordering::SeqCst);
            count
        };
        let count = std::thread::scope(|scope| {
            let others = [11, 22].map(|seed| scope.spawn(tools_at_work(seed)));
            let count = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(ours));
            others.into_iter().for_each(|other| other.join().expect("no damage is told by a tool"));
            count
        });
        tools::say(&format!(
            "\n    {count} operations of ours, {} of the tools, {} of which did not find an image\n",
            done.load(Ordering::SeqCst),
            failures.load(Ordering::SeqCst),
        ));
        assert_whole(world, "afterwards");
        // Both sides tell of the same images.
        let listed = tools::run(&mut tool(world, "podman", &["images", "--all", "--no-trunc", "--quiet"]));
        let theirs: BTreeSet<String> =
            listed.lines().map(|line| line.trim_start_matches("sha256:").to_owned()).collect();
        let ours: BTreeSet<String> = cri.list_images().await.into_iter().map(|image| image.id).collect();
        assert_eq!(theirs, ours);
        for name in &names {
            assert!(cri.pull(name).await.is_ok(), "{name}");
            cri.remove_image(name).await.expect("RemoveImage");
        }
        assert_whole(world, "in the end");
    });
}
