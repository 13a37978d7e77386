//! Bad input: requests that make no sense, registries that lie, layers that want out, disks that are full.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use cri_api::v1;
use e2e::cri::{WAIT, container_config, refused};
use e2e::image::{Archive, Compression, Format, Image, Recipe};
use e2e::liar::{Liar, Lie};
use e2e::storage::Storage;
use e2e::{Cri, Setup, World, scenario, tools};
use tonic::Code;

/// Where liars listen, one beside the other; registries.conf allows them to do without TLS.
const LIARS: u16 = 5001;
/// How long a registry may waste of the daemon's time before a scenario calls it hanging.
const LIE_LIMIT: Duration = Duration::from_secs(20);

/// Layers of the store, staged or committed, and its images.
fn stored(world: &World) -> Vec<String> {
    let overlay = tools::names(world.path("storage/overlay")).into_iter().filter(|name| name.len() == 64);
    let staging = world.path("storage/overlay/tempdirs/crio-staging");
    let staged = tools::names(&staging).into_iter().flat_map(|area| {
        let inside = tools::names(staging.join(&area)).into_iter();
        inside.filter(|name| name != "lock" && name != "pending").collect::<Vec<_>>()
    });
    let images = tools::names(world.path("storage/overlay-images")).into_iter().filter(|name| name.len() == 64);
    overlay.chain(staged).chain(images).collect()
}

/// A refused pull's other layers are dropped a moment after the answer.
async fn assert_nothing_stored(world: &World) {
    tools::becomes("nothing of a refused image is kept", || stored(world), Vec::is_empty).await;
}

/// Pulls from a liar, which must fail in time, with the text, and without a trace.
async fn assert_lie_is_noticed(world: &World, cri: &Cri, liar: &Liar, what: &str, texts: &[&str]) {
    let begun = Instant::now();
    let pull = tokio::time::timeout(LIE_LIMIT, cri.pull(&format!("{}/e2e/lie:1", liar.host()))).await;
    let error = pull.unwrap_or_else(|_| panic!("{what}: hangs")).expect_err(what);
    eprintln!("{what} ({:.1?}): {}", begun.elapsed(), error.message());
    let message = error.message().to_lowercase();
    assert!(texts.iter().any(|text| message.contains(text)), "{what}: {error:?}");
    tools::becomes(what, || stored(world), Vec::is_empty).await;
    assert_eq!(cri.list_images().await, [], "{what}");
}

fn small(format: Format) -> Image {
    let noise: Vec<u8> = (0..200_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    Recipe::new(format).layer(Archive::default().file("noise", 0o644, &noise).finish(), Compression::Gzip).build()
}

#[test]
fn a_registry_that_lies_is_not_believed() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = small(Format::Oci);
        let other = Archive::default().file("other", 0o644, b"other").finish();
        let other = Recipe::new(Format::Oci).layer(other, Compression::Gzip).build();
        let mut garbage = image.layers[0].clone();
        let middle = garbage.len() / 2;
        garbage[middle..middle + 64].fill(0xaa);
        let mut longer = image.layers[0].clone();
        longer.extend_from_slice(b"and more");
        let lies = [
            ("another layer", Lie::Bytes(other.layers[0].clone()), &["digest", "size", "declares"][..]),
            (
                "a damaged layer",
                Lie::Bytes(garbage),
                &["digest", "corrupt", "deflate", "gzip", "checksum", "invalid"][..],
            ),
            ("a longer layer", Lie::Bytes(longer), &["size", "digest", "longer", "more", "declares"][..]),
            (
                "no gzip at all",
                Lie::Bytes(vec![b'x'; image.layers[0].len()]),
                &["digest", "gzip", "archive", "tar"][..],
            ),
            ("an empty layer", Lie::Bytes(Vec::new()), &["digest", "size", "end", "declares"][..]),
            ("half a layer", Lie::HalfOnly, &["ended", "end", "closed", "incomplete", "size", "digest"][..]),
            ("an endless layer", Lie::Endless, &["size", "longer", "more", "digest", "declares"][..]),
        ];
        let mut ports = LIARS..;
        for ((what, lie, texts), port) in lies.into_iter().zip(&mut ports) {
            let liar = Liar::start(world, port, image.clone(), lie);
            assert_lie_is_noticed(world, &cri, &liar, what, texts).await;
        }
        let honest = Liar::start(world, ports.next().expect("a port"), image.clone(), Lie::Late(Duration::ZERO));
        // A manifest that is not the one asked for by digest.
        let error =
            cri.pull(&format!("{}/e2e/lie@{}", honest.host(), other.digest())).await.expect_err("a wrong manifest");
        assert!(error.message().contains("expected sha256:"), "{error:?}");
        assert_nothing_stored(world).await;
        // The very same image from somebody who does not lie.
        let pulled = cri.pull(&format!("{}/e2e/truth@{}", honest.host(), image.digest())).await;
        assert_eq!(pulled.expect("PullImage"), image.id());
    });
}

#[test]
fn manifests_that_lie_are_refused() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = small(Format::Oci);
        let text = String::from_utf8(image.manifest.clone()).expect("JSON");
        let with = |from: &str, to: &str| {
            let changed = text.replace(from, to);
            assert_ne!(changed, text, "{from}");
            Image { manifest: changed.into_bytes(), ..image.clone() }
        };
        let wrong_diff = {
            let config = String::from_utf8(image.config.clone()).expect("JSON");
            let diff_id = e2e::image::digest(&image.archives[0]);
            let config = config.replace(&diff_id, &e2e::image::digest(b"something else")).into_bytes();
            let manifest = text.replace(&e2e::image::digest(&image.config), &e2e::image::digest(&config));
            Image { manifest: manifest.into_bytes(), config, ..image.clone() }
        };
        let digest = e2e::image::digest(&image.layers[0]);
        let size = format!("\"size\":{}", image.layers[0].len());
        let cases = [
            ("no JSON", Image { manifest: b"{".to_vec(), ..image.clone() }),
            ("an empty object", Image { manifest: b"{}".to_vec(), ..image.clone() }),
            ("a digest that is none", with(&digest, "sha256:../../../etc/passwd")),
            ("an unknown algorithm", with(&digest, &digest.replace("sha256:", "md5:"))),
            ("a negative size", with(&size, "\"size\":-1")),
            ("a smaller size", with(&size, "\"size\":10")),
            ("an unknown kind of layer", with("v1.tar+gzip", "v1.tar+magic")),
            ("another diff id than that of the layer", wrong_diff),
        ];
        for ((what, image), port) in cases.into_iter().zip(LIARS..) {
            let liar = Liar::start(world, port, image, Lie::Late(Duration::ZERO));
            assert_lie_is_noticed(world, &cri, &liar, what, &[""]).await;
        }
    });
}

/// Layers that want out of their root.
fn hostile_layers(target: &str) -> Vec<(&'static str, Archive)> {
    let plain = || Archive::default().directory("inside/", 0o755);
    let up = "../".repeat(20);
    vec![
        (
            "a file above",
            plain().file(&format!("{}{}/above", &up[..54], target.trim_start_matches('/')), 0o644, b"evil"),
        ),
        ("an absolute file", plain().file(&format!("{target}/absolute"), 0o644, b"evil")),
        ("a file through a link", plain().symlink("inside/way", target).file("inside/way/through", 0o644, b"evil")),
        (
            "a file through a relative link",
            plain().symlink("way", &format!("{}{target}", &up[..54])).file("way/relative", 0o644, b"evil"),
        ),
        ("a directory through a link", plain().symlink("way", target).directory("way/made/", 0o777)),
        ("a file over a link", plain().symlink("way", &format!("{target}/canary")).file("way", 0o644, b"evil")),
        ("a hard link out", plain().hard_link("stolen", &format!("{target}/canary")).file("stolen", 0o644, b"evil")),
        (
            "a hard link above",
            plain().hard_link("stolen", &format!("{}{target}/canary", &up[..54])).file("stolen", 0o644, b"evil"),
        ),
        (
            "a hard link through a link",
            plain().symlink("way", target).hard_link("stolen", "way/canary").file("stolen", 0o644, b"evil"),
        ),
        (
            "a whiteout above",
            plain().file(&format!("{}{}/.wh.canary", &up[..54], target.trim_start_matches('/')), 0o644, b""),
        ),
        ("a whiteout through a link", plain().symlink("way", target).file("way/.wh.canary", 0o644, b"")),
        ("an opaque directory through a link", plain().symlink("way", target).file("way/.wh..wh..opq", 0o644, b"")),
    ]
}

#[test]
fn layers_do_not_reach_out_of_their_root() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        // Where each of them tries to get: a directory that is there, outside the store.
        let outside: PathBuf = world.path("o");
        tools::write(outside.join("canary"), "sings");
        let target = outside.display().to_string();
        for (number, (what, archive)) in hostile_layers(&target).into_iter().enumerate() {
            for order in ["one layer", "two layers"] {
                let mut recipe = Recipe::new(Format::Oci);
                if order == "two layers" {
                    // A link from a lower layer is as treacherous as one of the same.
                    recipe = recipe.layer(Archive::default().symlink("way", &target).finish(), Compression::Gzip);
                }
                let image = recipe.layer(archive.clone().finish(), Compression::Gzip).build();
                let name = world.registry().push(world, &format!("e2e/hostile-{number}:{}", order.len()), &image);
                // Both are fine: refused, or unpacked where it cannot hurt.
                let pulled = cri.pull(&name).await;
                eprintln!(
                    "{what}, {order}: {}",
                    pulled.as_ref().map_or_else(|error| error.message().to_owned(), |_| "pulled".to_owned())
                );
                assert_eq!(tools::names(&outside), ["canary"], "{what}, {order}");
                assert_eq!(tools::read(outside.join("canary")), "sings", "{what}, {order}");
                if pulled.is_ok() {
                    cri.remove_image(&image.id()).await.expect("RemoveImage");
                }
                assert_eq!(tools::names(&outside), ["canary"], "{what}, {order}: removing");
            }
        }
        assert_eq!(cri.list_images().await, []);
        assert_nothing_stored(world).await;
        // A link at the place of a directory that the daemon itself writes to, in a container's root.
        let treacherous =
            Archive::default().symlink("etc-link", &target).symlink("dev", &target).symlink("proc", &target);
        let image = Recipe::busybox(Format::Oci).layer(treacherous.finish(), Compression::Gzip).build();
        let name = world.registry().push(world, "e2e/treacherous:1", &image);
        cri.pull(&name).await.expect("PullImage");
        let pod = cri.run_pod(world.pod_config("treacherous"), "").await.expect("RunPodSandbox");
        let mut config = container_config(&name, "main", WAIT);
        config.working_dir = "/etc-link/made-by-daemon".to_owned();
        config.mounts = vec![v1::Mount {
            container_path: "/etc-link/mounted".to_owned(),
            host_path: world.path("tmp").display().to_string(),
            ..Default::default()
        }];
        if let Ok(container) = cri.create(&pod, config).await {
            let _ = cri.start(&container.id).await;
        }
        assert_eq!(tools::names(&outside), ["canary"], "a container's root leads out");
    });
}

#[test]
fn a_registry_that_is_not_there_is_told_as_such() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let text = refused(cri.pull("127.0.0.1:5003/e2e/nobody:1").await, Code::Unknown);
        assert!(text.contains("RegistryUnavailable") && text.contains("127.0.0.1:5003"), "{text}");
        let text = refused(cri.pull("127.0.0.1:5000/e2e/never:pushed").await, Code::NotFound);
        assert!(text.contains("e2e/never") && !text.contains("RegistryUnavailable"), "{text}");
        let begun = Instant::now();
        let pull = cri.pull("registry.invalid/e2e/nobody:1").await.expect_err("no such host");
        assert!(begun.elapsed() < LIE_LIMIT, "{:?}", begun.elapsed());
        assert!(pull.message().contains("RegistryUnavailable"), "{pull:?}");
        for bad in [
            "UPPER",
            "127.0.0.1:5000/UPPER:1",
            "a//b",
            "host:port/x:1",
            "x:y:z",
            "-start",
            "127.0.0.1:5000/e2e/x@sha256:short",
            "a b",
            "x@",
            ":tag",
            "/x",
        ] {
            let error = cri.pull(bad).await.expect_err(bad);
            assert_eq!(error.code(), Code::InvalidArgument, "{bad}: {error:?}");
        }
        assert!(cri.pull("").await.is_err());
        assert_nothing_stored(world).await;
    });
}

#[test]
fn requests_that_make_no_sense_change_nothing() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let pod = cri.run_pod(world.pod_config("fine"), "").await.expect("RunPodSandbox");
        let before = world.settled().await;
        let metadata = |name: &str, namespace: &str, uid: &str| {
            let mut config = world.pod_config("bad");
            config.metadata = Some(v1::PodSandboxMetadata {
                name: name.to_owned(),
                namespace: namespace.to_owned(),
                uid: uid.to_owned(),
                attempt: 0,
            });
            config
        };
        let changed = |change: &dyn Fn(&mut v1::PodSandboxConfig)| {
            let mut config = world.pod_config("bad");
            change(&mut config);
            config
        };
        let port = |container_port, host_port, host_ip: &str| v1::PortMapping {
            protocol: v1::Protocol::Tcp.into(),
            container_port,
            host_port,
            host_ip: host_ip.to_owned(),
        };
        let pods = [
            ("no metadata", changed(&|config| config.metadata = None)),
            ("no name", metadata("", "n", "u")),
            ("no namespace", metadata("n", "", "u")),
            ("no uid", metadata("n", "n", "")),
            ("a name that is a path", metadata("../../etc", "n", "u")),
            ("a relative log directory", changed(&|config| config.log_directory = "logs".to_owned())),
            ("a log directory that climbs", changed(&|config| config.log_directory = "/var/log/../../etc".to_owned())),
            ("a host name of two lines", changed(&|config| config.hostname = "a\nb".to_owned())),
            (
                "a resolver of two lines",
                changed(&|config| {
                    config.dns_config = Some(v1::DnsConfig {
                        servers: vec!["1.1.1.1\nnameserver 6.6.6.6".to_owned()],
                        ..Default::default()
                    });
                }),
            ),
            ("a port too high", changed(&|config| config.port_mappings = vec![port(80, 70_000, "")])),
            ("a port below zero", changed(&|config| config.port_mappings = vec![port(-1, 8080, "")])),
            (
                "an address that is none",
                changed(&|config| config.port_mappings = vec![port(80, 8080, "not an address")]),
            ),
            (
                "a cgroup that climbs",
                changed(&|config| {
                    config.linux.as_mut().expect("linux").cgroup_parent = "/../../escape".to_owned();
                }),
            ),
        ];
        for (what, config) in pods {
            let answer = cri.run_pod(config, "").await;
            assert_eq!(
                answer.as_ref().err().map(tonic::Status::code),
                Some(Code::InvalidArgument),
                "{what}: {answer:?}"
            );
        }
        let changed = |change: &dyn Fn(&mut v1::ContainerConfig)| {
            let mut config = container_config(&image, "bad", WAIT);
            change(&mut config);
            config
        };
        let mount = |container_path: &str, host_path: &str| v1::Mount {
            container_path: container_path.to_owned(),
            host_path: host_path.to_owned(),
            ..Default::default()
        };
        let containers = [
            ("no metadata", changed(&|config| config.metadata = None)),
            ("no name", changed(&|config| config.metadata = Some(v1::ContainerMetadata::default()))),
            ("no image", changed(&|config| config.image = None)),
            ("an absolute log path", changed(&|config| config.log_path = "/etc/passwd".to_owned())),
            ("a log path that climbs", changed(&|config| config.log_path = "../../escape.log".to_owned())),
            ("a NUL in a word", changed(&|config| config.command = vec!["a\0b".to_owned()])),
            (
                "a variable with =",
                changed(&|config| config.envs = vec![v1::KeyValue { key: "A=B".to_owned(), value: Vec::new() }]),
            ),
            ("a mount from nowhere", changed(&|config| config.mounts = vec![mount("/x", "")])),
            ("a mount from a climbing path", changed(&|config| config.mounts = vec![mount("/x", "/tmp/../etc")])),
            ("a signal that is none", changed(&|config| config.stop_signal = 4711)),
            (
                "an oom score too high",
                changed(&|config| {
                    config.linux.as_mut().expect("linux").resources =
                        Some(v1::LinuxContainerResources { oom_score_adj: 2000, ..Default::default() });
                }),
            ),
        ];
        for (what, config) in containers {
            let answer = cri.create(&pod, config).await;
            assert_eq!(
                answer.as_ref().err().map(tonic::Status::code),
                Some(Code::InvalidArgument),
                "{what}: {answer:?}"
            );
        }
        let request = v1::CreateContainerRequest { pod_sandbox_id: pod.id.clone(), config: None, sandbox_config: None };
        refused(cri.runtime.clone().create_container(request).await, Code::InvalidArgument);
        let request = v1::RunPodSandboxRequest { config: None, runtime_handler: String::new() };
        refused(cri.runtime.clone().run_pod_sandbox(request).await, Code::InvalidArgument);
        let nowhere = e2e::Pod { id: "0123456789".to_owned(), config: pod.config.clone() };
        assert!(cri.create(&nowhere, container_config(&image, "lost", WAIT)).await.is_err());
        world.assert_nothing_since(&before).await;
        assert_eq!(cri.pods().await.len(), 1);
    });
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    let setup = Setup { storage: Storage::Memory(24 << 20), ..Setup::default() };
    scenario(setup, async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let used = || {
            let root = world.inside(&world.path("storage"));
            let free = rustix::fs::statvfs(&root).expect("statvfs");
            (free.f_blocks - free.f_bfree) * free.f_frsize
        };
        let before = used();
        // More than fits, in one file of noise, so that it cannot be kept small.
        let mut seed = 1_u64;
        let noise: Vec<u8> = (0..32 << 17)
            .flat_map(|_| {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                seed.to_le_bytes()
            })
            .collect();
        let big = Recipe::new(Format::Oci)
            .layer(Archive::default().file("first", 0o644, b"fits").finish(), Compression::Gzip)
            .layer(Archive::default().file("noise", 0o644, &noise).finish(), Compression::Gzip)
            .build();
        let name = world.registry().push(world, "e2e/big:1", &big);
        for _ in 0..2 {
            let text = refused(cri.pull(&name).await, Code::ResourceExhausted);
            assert!(text.to_lowercase().contains("no space left"), "{text}");
            // What fitted may wait for the next pull, but not what did not.
            tools::becomes("the space is given back", used, |now| *now < before + (1 << 20)).await;
        }
        assert!(cri.image(&name).await.is_none());
        // The disk is full for a container, too: a clear error, and nothing of it.
        let pod = cri.run_pod(world.pod_config("pod"), "").await.expect("RunPodSandbox");
        let settled = world.settled().await;
        let filler = world.inside(&world.path("storage/filler"));
        let mut file = std::fs::File::create(&filler).expect("a file");
        while std::io::Write::write_all(&mut file, &noise[..4096]).is_ok() {}
        drop(file);
        let error = cri.create(&pod, container_config(&image, "main", WAIT)).await.expect_err("must fail");
        assert!(error.message().to_lowercase().contains("no space left"), "{error:?}");
        let error = cri.run_pod(world.pod_config("another"), "").await.expect_err("must fail");
        assert!(error.message().to_lowercase().contains("no space left"), "{error:?}");
        std::fs::remove_file(&filler).expect("removes");
        world.assert_nothing_since(&settled).await;
        let container = cri.run(&pod, container_config(&image, "main", WAIT)).await;
        assert_eq!(cri.output(&container.id, &["echo", "works again"]).await, "works again");
    });
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let pod = cri.run_pod(world.pod_config("fine"), "").await.expect("RunPodSandbox");
        let container = cri.run(&pod, container_config(&image, "kept", WAIT)).await;
        let before = world.settled().await;
        let request = v1::CheckpointContainerRequest {
            container_id: container.id,
            location: "/var/tmp/checkpoint.tar".to_owned(),
            ..Default::default()
        };
        let message = refused(cri.runtime.clone().checkpoint_container(request).await, Code::Unimplemented);
        assert!(message.contains("CheckpointContainer"), "{message}");
        world.assert_nothing_since(&before).await;
    });
}
