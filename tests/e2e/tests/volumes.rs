//! Images and artifacts as volumes, and artifacts as profiles.
#![forbid(unsafe_code)]

use std::os::unix::fs::MetadataExt;

use cri_api::v1;
use e2e::cri::{WAIT, container_config, refused};
use e2e::image::{Archive, Compression, Format, Image, Recipe, artifact};
use e2e::liar::{Liar, Lie};
use e2e::world::HANDLERS;
use e2e::{Setup, World, scenario, tools};
use serde_json::json;
use tonic::Code;

fn image_mount(image: &str, path: &str, sub_path: &str) -> v1::Mount {
    v1::Mount {
        container_path: path.to_owned(),
        readonly: true,
        image: Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() }),
        image_sub_path: sub_path.to_owned(),
        ..Default::default()
    }
}

fn with_mounts(image: &str, name: &str, mounts: Vec<v1::Mount>) -> v1::ContainerConfig {
    v1::ContainerConfig { mounts, ..container_config(image, name, WAIT) }
}

/// Two layers, of which the upper replaces a file; and links that lead wherever they can.
fn volume() -> Image {
    let lower = Archive::default().directory("data/", 0o755).file("data/file", 0o644, b"lower").file(
        "data/program",
        0o755,
        b"#!/bin/sh\necho it runs\n",
    );
    let upper = Archive::default()
        .file("data/file", 0o644, b"from the image")
        .directory("secret/", 0o755)
        .file("secret/of-image", 0o644, b"own")
        .symlink("inside", "/data")
        .symlink("up", "../../../../secret")
        .symlink("node", "/proc/self/root/etc")
        .symlink("away", "/e2e-no-such-directory/../../etc")
        .symlink("loop", "loop")
        .entry("fifo", b'6', 0o644, "", b"");
    Recipe::new(Format::Oci).layer(lower.finish(), Compression::Gzip).layer(upper.finish(), Compression::Zstd).build()
}

/// How often each layer is mounted, by the store's own record.
fn counts(world: &World) -> Vec<i64> {
    let text = tools::read(world.path("run/overlay-layers/mountpoints.json"));
    let rows: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap_or_default();
    let mut counts: Vec<i64> = rows.iter().filter_map(|row| row["count"].as_i64()).collect();
    counts.sort_unstable();
    counts
}

fn mounts(world: &World) -> usize {
    world.snapshot().of_kind("mount").len()
}

#[test]
fn an_image_is_seen_whole_and_in_part_and_never_written() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let busybox = world.busybox().await;
        let image = volume();
        let name = world.registry().push(world, "e2e/volume:1", &image);
        for handler in &HANDLERS[..2] {
            let handler = handler.name;
            let id = cri.pull(&name).await.expect("PullImage");
            let pod = cri.run_pod(world.pod_config(handler), handler).await.expect("RunPodSandbox");
            let before = mounts(world);
            let mounts_asked = vec![
                image_mount(&id, "/mnt/whole", ""),
                image_mount(&name, "/mnt/directory", "data"),
                image_mount(&id, "/mnt/file", "data/file"),
                image_mount(&id, "/mnt/link", "inside"),
                image_mount(&id, "/mnt/up", "up"),
            ];
            let container = cri.run(&pod, with_mounts(&busybox, "main", mounts_asked)).await;
            let output = async |script: &str| cri.output(&container.id, &["sh", "-c", script]).await;
            for path in ["/mnt/whole/data/file", "/mnt/directory/file", "/mnt/file", "/mnt/link/file"] {
                assert_eq!(output(&format!("cat {path}")).await, "from the image", "{handler}: {path}");
            }
            assert_eq!(output("cat /mnt/up/of-image").await, "own", "{handler}");
            assert_eq!(output("/mnt/directory/program").await, "it runs", "{handler}");
            for path in ["/mnt/whole/new", "/mnt/whole/data/file", "/mnt/directory/file", "/mnt/file", "/mnt/up/new"] {
                let script = format!("echo x > {path}");
                let answer = cri.exec(&container.id, &["sh", "-c", &script], 10).await.expect("ExecSync");
                assert!(String::from_utf8_lossy(&answer.stderr).contains("Read-only"), "{handler}: {answer:?}");
            }
            let status = cri.status(&container.id).await.expect("ContainerStatus");
            for mount in &status.mounts {
                let of = mount.image.as_ref().expect("an image");
                assert_eq!((of.image.as_str(), of.image_ref.as_str()), (id.as_str(), id.as_str()), "{handler}");
                assert!(mount.readonly && mount.image_sub_path.len() < 10);
            }
            // Held once, whatever parts of it are mounted; the other is the container's root.
            assert_eq!(counts(world).iter().sum::<i64>(), 2, "{handler}: {:?}", counts(world));

            for asked in [&id, &name] {
                let message = refused(cri.remove_image(asked).await, Code::Unknown);
                assert!(message.contains(&format!("the image is in use by {}", container.id)), "{message}");
            }
            cri.stop(&container.id, 5).await.expect("StopContainer");
            refused(cri.remove_image(&id).await, Code::Unknown);
            cri.remove(&container.id).await.expect("RemoveContainer");
            assert_eq!(mounts(world), before, "{handler}: {}", world.snapshot());
            cri.remove_image(&name).await.expect("RemoveImage");
            assert!(cri.image(&id).await.is_none());
            cri.end_pod(&pod.id).await;
        }
    });
}

#[test]
fn what_cannot_be_a_volume_is_refused_and_leaves_nothing() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let busybox = world.busybox().await;
        let id = cri.pull(&world.registry().push(world, "e2e/volume:1", &volume())).await.expect("PullImage");
        let empty = Recipe::new(Format::Oci).build();
        let empty = cri.pull(&world.registry().push(world, "e2e/empty:1", &empty)).await.expect("PullImage");
        let pod = cri.run_pod(world.pod_config("refused"), "").await.expect("RunPodSandbox");
        // The table of mounts comes with the first one and stays.
        let first = cri.create(&pod, container_config(&busybox, "first", WAIT)).await.expect("CreateContainer");
        cri.remove(&first.id).await.expect("RemoveContainer");
        let before = world.settled().await;
        let long = "a/".repeat(200) + "b";
        let cases = [
            (image_mount(&id, "/mnt", "absent"), format!("sub path \"absent\" does not exist in image volume {id:?}")),
            (image_mount(&id, "/mnt", "data/file/below"), "does not exist in image volume".to_owned()),
            (image_mount(&id, "/mnt", &long), "does not exist in image volume".to_owned()),
            (image_mount(&id, "/mnt", "node/passwd"), "does not exist in image volume".to_owned()),
            (image_mount(&id, "/mnt", "away"), "does not exist in image volume".to_owned()),
            (image_mount(&id, "/mnt", "loop"), "open sub path \"loop\"".to_owned()),
            (image_mount(&id, "/mnt", "fifo"), "neither a file nor a directory".to_owned()),
            (image_mount(&"ab".repeat(32), "/mnt", ""), "does not exist locally".to_owned()),
            (image_mount("127.0.0.1:5000/e2e/never:was", "/mnt", ""), "does not exist locally".to_owned()),
            (image_mount(&empty, "/mnt", ""), "image volume".to_owned()),
        ];
        for (mount, expected) in cases {
            let what = format!("{mount:?}");
            // A good one before it is taken back too.
            let config = with_mounts(&busybox, "main", vec![image_mount(&id, "/good", "data"), mount]);
            let error = cri.create(&pod, config).await.expect_err(&what);
            let message = error.message();
            assert!(
                message.starts_with("ImageVolumeMountFailed: ") && message.contains(&expected),
                "{what}: {message}"
            );
            world.assert_nothing_since(&before).await;
        }
        for (change, expected) in [
            (&(|mount: &mut v1::Mount| mount.readonly = false) as &dyn Fn(&mut v1::Mount), "readonly"),
            (&|mount| mount.image_sub_path = "../data".to_owned(), "image_sub_path"),
            (&|mount| mount.image_sub_path = "/data".to_owned(), "image_sub_path"),
            (&|mount| mount.image_sub_path = "data/../../x".to_owned(), "image_sub_path"),
            (&|mount| mount.propagation = v1::MountPropagation::PropagationBidirectional.into(), "two-way"),
        ] {
            let mut mount = image_mount(&id, "/mnt", "");
            change(&mut mount);
            let message =
                refused(cri.create(&pod, with_mounts(&busybox, "main", vec![mount])).await, Code::InvalidArgument);
            assert!(message.contains(expected), "{message}");
        }
        // What lies in the directory below them would be in every volume.
        let stray = world.path("image-volumes/stray");
        tools::write(&stray, "x");
        let config = || with_mounts(&busybox, "main", vec![image_mount(&id, "/mnt", "")]);
        let message = refused(cri.create(&pod, config()).await, Code::Unknown);
        assert!(message.contains("is not empty"), "{message}");
        std::fs::remove_file(stray).expect("remove");
        let container = cri.run(&pod, config()).await;
        assert_eq!(cri.output(&container.id, &["cat", "/mnt/data/file"]).await, "from the image");
        let mode = std::fs::metadata(world.path("image-volumes")).expect("is there").mode();
        assert_eq!(mode & 0o777, 0o700);
        cri.end_pod(&pod.id).await;
    });
}

#[test]
fn volumes_outlive_the_daemon() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let busybox = world.busybox().await;
        let id = cri.pull(&world.registry().push(world, "e2e/volume:1", &volume())).await.expect("PullImage");
        let pod = cri.run_pod(world.pod_config("restart"), "").await.expect("RunPodSandbox");
        let asked = || vec![image_mount(&id, "/mnt", ""), image_mount(&id, "/part", "data")];
        let first = cri.run(&pod, with_mounts(&busybox, "first", asked())).await;
        world.kill_daemon();
        world.start_daemon().await;
        let cri = world.cri();
        assert_eq!(
            cri.output(&first.id, &["cat", "/mnt/data/file", "/part/file"]).await,
            "from the imagefrom the image"
        );
        let status = cri.status(&first.id).await.expect("ContainerStatus");
        let refs: Vec<_> = status.mounts.iter().filter_map(|mount| mount.image.as_ref()).collect();
        assert!(refs.len() == 2 && refs.iter().all(|image| image.image_ref == id), "{status:?}");
        assert_eq!(status.mounts[1].image_sub_path, "data");
        let message = refused(cri.remove_image(&id).await, Code::Unknown);
        assert!(message.contains("the image is in use by"), "{message}");
        // Two containers, one mount, two counts: each goes with its container.
        let second = cri.run(&pod, with_mounts(&busybox, "second", asked())).await;
        cri.stop(&first.id, 5).await.expect("StopContainer");
        cri.remove(&first.id).await.expect("RemoveContainer");
        assert_eq!(cri.output(&second.id, &["cat", "/mnt/data/file"]).await, "from the image");
        refused(cri.remove_image(&id).await, Code::Unknown);
        cri.end_pod(&pod.id).await;
        assert!(counts(world).is_empty(), "{:?}", counts(world));
        cri.remove_image(&id).await.expect("RemoveImage");
    });
}

/// Titles and contents.
type Blobs<'a> = &'a [(Option<&'a str>, &'a [u8])];

/// The blobs of the store of artifacts.
fn blobs(world: &World) -> Vec<String> {
    tools::names(world.path("storage/artifacts/blobs/sha256"))
}

#[test]
fn an_artifact_is_listed_like_an_image_and_seen_as_files() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let busybox = world.busybox().await;
        let files = artifact(&[
            (Some("readme"), b"hello artifact"),
            (Some("model/weights"), b"many numbers"),
            (Some("model/deep/er"), b"deeper"),
            (None, b"nameless"),
        ]);
        let name = world.registry().push(world, "e2e/files:1", &files);
        let id = cri.pull(&name).await.expect("PullImage");
        assert_eq!(format!("sha256:{id}"), files.digest());
        assert_eq!(cri.pull(&name).await.expect("PullImage"), id);
        let by_digest = format!("{}@{}", name.trim_end_matches(":1"), files.digest());
        for asked in [&name, &id, &id[..12].to_owned(), &by_digest] {
            let found = cri.image(asked).await.unwrap_or_else(|| panic!("{asked} is not there"));
            assert_eq!((&found.id, &found.repo_tags), (&id, &vec![name.clone()]));
            assert_eq!((found.repo_digests.as_slice(), found.size), (&[by_digest.clone()][..], 40));
        }
        assert_eq!(cri.list_images().await.iter().filter(|image| image.id == id).count(), 1);
        assert_eq!(cri.list_images().await.len(), 2);
        // Whoever else reads layouts reads this one.
        let layout = format!("oci:{}:{name}", world.path("storage/artifacts").display());
        let theirs = tools::run(std::process::Command::new("skopeo").args(["inspect", "--raw", &layout]));
        assert_eq!(theirs.as_bytes(), files.manifest);
        // Nothing runs from it.
        let pod = cri.run_pod(world.pod_config("none"), "").await.expect("RunPodSandbox");
        refused(cri.create(&pod, container_config(&id, "main", WAIT)).await, Code::Unknown);
        cri.end_pod(&pod.id).await;

        for handler in &HANDLERS[..2] {
            let handler = handler.name;
            let pod = cri.run_pod(world.pod_config(handler), handler).await.expect("RunPodSandbox");
            let asked = vec![
                image_mount(&id, "/mnt/all", ""),
                image_mount(&name, "/mnt/model", "model"),
                image_mount(&name, "/mnt/file", "model/weights"),
            ];
            let container = cri.run(&pod, with_mounts(&busybox, "main", asked)).await;
            let nameless = format!("/mnt/all/sha256-{}", &e2e::image::digest(b"nameless")[7..]);
            for (path, content) in [
                ("/mnt/all/readme", "hello artifact"),
                ("/mnt/all/model/weights", "many numbers"),
                (&nameless, "nameless"),
                ("/mnt/model/weights", "many numbers"),
                ("/mnt/model/deep/er", "deeper"),
                ("/mnt/file", "many numbers"),
            ] {
                assert_eq!(cri.output(&container.id, &["cat", path]).await, content, "{handler}: {path}");
                let script = format!("echo x > {path}");
                let answer = cri.exec(&container.id, &["sh", "-c", &script], 10).await.expect("ExecSync");
                assert!(String::from_utf8_lossy(&answer.stderr).contains("Read-only"), "{handler}: {answer:?}");
            }
            let status = cri.status(&container.id).await.expect("ContainerStatus");
            let paths: Vec<&str> = status.mounts.iter().map(|mount| mount.container_path.as_str()).collect();
            assert_eq!(paths, ["/mnt/all", "/mnt/model", "/mnt/file"]);
            assert!(status.mounts.iter().all(|mount| mount.image.as_ref().is_some_and(|image| image.image_ref == id)));
            let message = refused(cri.remove_image(&name).await, Code::Unknown);
            assert!(message.contains(&format!("the image is in use by {}", container.id)), "{message}");
            if handler == "runc" {
                world.kill_daemon();
                world.start_daemon().await;
                let cri = world.cri();
                assert_eq!(cri.output(&container.id, &["cat", "/mnt/file"]).await, "many numbers");
                refused(cri.remove_image(&id).await, Code::Unknown);
            }
            world.cri().end_pod(&pod.id).await;
        }
        let cri = world.cri();
        cri.remove_image(&name).await.expect("RemoveImage");
        assert!(cri.image(&id).await.is_none() && blobs(world).is_empty());
        cri.remove_image(&name).await.expect("removing again succeeds");
    });
}

#[test]
fn hostile_artifacts_are_refused() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let busybox = world.busybox().await;
        let pod = cri.run_pod(world.pod_config("hostile"), "").await.expect("RunPodSandbox");
        let cases: [(Blobs<'_>, &str, &str); 7] = [
            (&[(Some("../../../etc/passwd"), b"a")], "", "is not a plain relative path"),
            (&[(Some("/etc/passwd"), b"a")], "", "is not a plain relative path"),
            (&[(Some("ok"), b"b"), (Some("a/../../b"), b"a")], "ok", "is not a plain relative path"),
            (&[(Some("a\nb"), b"a")], "", "is not a plain relative path"),
            (&[(Some("a"), b"a"), (Some("a/b"), b"b")], "", "two blobs on one path"),
            (&[(Some("a"), b"a")], "b", "does not exist in OCI artifact volume"),
            (&[], "", "has no blobs"),
        ];
        for (number, (files, sub_path, expected)) in cases.into_iter().enumerate() {
            let name = world.registry().push(world, &format!("e2e/hostile:{number}"), &artifact(files));
            let id = cri.pull(&name).await.expect("PullImage");
            let before = world.settled().await;
            let config = with_mounts(&busybox, "main", vec![image_mount(&id, "/mnt", sub_path)]);
            let error = cri.create(&pod, config).await.expect_err(expected);
            let message = error.message();
            assert!(message.starts_with("ImageVolumeMountFailed: ") && message.contains(expected), "{message}");
            world.assert_nothing_since(&before).await;
            cri.remove_image(&id).await.expect("RemoveImage");
        }
        // A volume that leads out of the container by a link of its image stays inside.
        let trap = Recipe::busybox(Format::Oci).layer(
            Archive::default().directory("var/", 0o755).symlink("trap", "/../../../../var").finish(),
            Compression::Gzip,
        );
        let trap = cri.pull(&world.registry().push(world, "e2e/trap:1", &trap.build())).await.expect("PullImage");
        let good = artifact(&[(Some("e2e-inside"), b"inside")]);
        let good = cri.pull(&world.registry().push(world, "e2e/good:1", &good)).await.expect("PullImage");
        let config = with_mounts(&trap, "trap", vec![image_mount(&good, "/trap", "")]);
        let container = cri.run(&pod, config).await;
        assert_eq!(cri.output(&container.id, &["cat", "/var/e2e-inside"]).await, "inside");
        assert!(!std::path::Path::new("/var/e2e-inside").exists());
        cri.end_pod(&pod.id).await;

        // Bytes that are not what the manifest says leave nothing, neither do those that stop coming.
        let before = blobs(world);
        let large = artifact(&[(Some("a"), &[7; 200_000]), (Some("b"), b"small")]);
        for (port, lie) in [(5020, Lie::Bytes(vec![8; 200_000])), (5021, Lie::HalfOnly), (5022, Lie::Endless)] {
            let liar = Liar::start(world, port, large.clone(), lie);
            let error = cri.pull(&format!("{}/e2e/lie:1", liar.host())).await.expect_err("a lie");
            assert!(!error.message().is_empty() && blobs(world) == before, "{error:?}");
            // Another blob may still be on its way when the first one fails.
            let staged = || tools::names(world.path("storage/artifacts")).iter().any(|name| name.starts_with('.'));
            tools::becomes("nothing is left of the attempt", staged, |is_staged| !is_staged).await;
        }
    });
}

#[test]
fn artifacts_of_additional_stores_are_read_and_kept_and_mounting_can_be_off() {
    let drop_in = "[crio.runtime]\nadditional_artifact_stores = [\"@ROOT@/more\"]\n\
                   [crio.image]\noci_artifact_mount_support = false\n";
    scenario(Setup { drop_in: drop_in.to_owned(), ..Setup::default() }, async |world| {
        let cri = world.cri();
        let name = world.registry().push(world, "e2e/files:1", &artifact(&[(Some("a"), b"first")]));
        let id = cri.pull(&name).await.expect("PullImage");
        assert!(!cri.image(&id).await.expect("is there").pinned);
        let (own, more) = (world.path("storage/artifacts"), world.path("more/artifacts"));
        std::fs::create_dir_all(world.path("more")).expect("a directory");
        tools::run(std::process::Command::new("cp").arg("-a").arg(own).arg(&more));
        cri.remove_image(&id).await.expect("RemoveImage");
        let found = cri.image(&name).await.expect("is there");
        assert!(found.pinned && found.id == id);
        let message = refused(cri.remove_image(&name).await, Code::Unknown);
        assert!(message.contains("additional store"), "{message}");
        // What the other store has is not fetched again, even if the tag has moved.
        world.registry().push(world, "e2e/files:1", &artifact(&[(Some("a"), b"second")]));
        assert_eq!(cri.pull(&name).await.expect("PullImage"), id);
        assert!(blobs(world).is_empty());

        let busybox = world.busybox().await;
        let pod = cri.run_pod(world.pod_config("off"), "").await.expect("RunPodSandbox");
        let message = refused(
            cri.create(&pod, with_mounts(&busybox, "main", vec![image_mount(&id, "/mnt", "")])).await,
            Code::InvalidArgument,
        );
        assert!(message.contains("oci_artifact_mount_support is off"), "{message}");
        let container = cri.run(&pod, with_mounts(&busybox, "main", vec![image_mount(&busybox, "/mnt", "")])).await;
        cri.output(&container.id, &["test", "-x", "/mnt/bin/busybox"]).await;
        cri.end_pod(&pod.id).await;
    });
}

#[test]
fn a_seccomp_profile_may_be_an_artifact() {
    const KEY: &str = "seccomp-profile.crio.io";
    let handler_lines = format!("allowed_annotations = [{KEY:?}]");
    scenario(Setup { handler_lines, ..Setup::default() }, async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let denying = |call: &str| {
            let rule = format!(r#"{{"names": ["{call}", "{call}at"], "action": "SCMP_ACT_ERRNO"}}"#);
            artifact(&[(None, format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{rule}]}}"#).as_bytes())])
        };
        let push = |name: &str, image: &Image| world.registry().push(world, name, image);
        let no_mkdir = push("e2e/profile:mkdir", &denying("mkdir"));
        let no_unlink = push("e2e/profile:unlink", &denying("unlink"));
        // Another configuration, and so another image: annotations are those of an image's latest manifest.
        let annotated = Recipe::busybox(Format::Oci).annotation(KEY, &no_mkdir).config(json!({ "StopSignal": "15" }));
        let annotated = annotated.build();
        let annotated = push("e2e/annotated:1", &annotated);
        cri.pull(&annotated).await.expect("PullImage");
        use v1::security_profile::ProfileType;
        let (own, all) = (format!("{KEY}/main"), format!("{KEY}/POD"));
        // Annotations of the pod, image, profile of the request; whether directories can be made, and removed files.
        type Case<'a> = (&'a [(&'a str, &'a str)], &'a str, Option<ProfileType>, (bool, bool));
        let cases: [Case<'_>; 7] = [
            (&[], &image, None, (true, true)),
            (&[(&own, &no_mkdir), (&all, &no_unlink)], &image, None, (false, true)),
            (&[(&all, &no_mkdir)], &image, Some(ProfileType::Unconfined), (false, true)),
            (&[(&all, &no_mkdir)], &image, Some(ProfileType::RuntimeDefault), (true, true)),
            (&[(KEY, &no_unlink)], &image, None, (true, true)),
            (&[], &annotated, None, (false, true)),
            (&[(&all, &no_unlink)], &annotated, None, (true, false)),
        ];
        for (annotations, image, profile, expected) in cases {
            let what = format!("{annotations:?} {image} {profile:?}");
            let mut pod = world.pod_config("profile");
            pod.annotations.extend(annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
            let pod = cri.run_pod(pod, "").await.expect("RunPodSandbox");
            let mut config = container_config(image, "main", WAIT);
            let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
            security.seccomp =
                profile.map(|kind| v1::SecurityProfile { profile_type: kind.into(), localhost_ref: String::new() });
            let container = cri.run(&pod, config).await;
            let works = async |script: &str| {
                cri.exec(&container.id, &["sh", "-c", script], 10).await.expect("ExecSync").exit_code == 0
            };
            let seen = (works("mkdir /tmp/d").await, works(": > /tmp/f && rm /tmp/f").await);
            assert_eq!(seen, expected, "{what}");
            cri.end_pod(&pod.id).await;
        }
        let large = artifact(&[(None, &vec![b' '; (1 << 20) + 1])]);
        let nothing = artifact(&[]);
        for (reference, expected) in [
            (push("e2e/profile:large", &large), "bytes, which is not between"),
            (push("e2e/profile:nothing", &nothing), "bytes, which is not between"),
            (push("e2e/profile:text", &artifact(&[(None, b"no profile")])), "load seccomp profile"),
            (image.clone(), "is an image, not an artifact"),
            ("127.0.0.1:5000/e2e/profile:absent".to_owned(), "seccomp profile 127.0.0.1:5000/e2e/profile:absent"),
            ("oci:/etc/passwd".to_owned(), "is no full reference"),
            ("profile".to_owned(), "is no full reference"),
        ] {
            let mut pod = world.pod_config("refused");
            pod.annotations.insert(own.clone(), reference);
            let pod = cri.run_pod(pod, "").await.expect("RunPodSandbox");
            let error = cri.create(&pod, container_config(&image, "main", WAIT)).await.expect_err(expected);
            assert!(error.message().contains(expected), "{error:?}");
            cri.end_pod(&pod.id).await;
        }
    });
    // Whoever may not use the annotation does not.
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let mut pod = world.pod_config("not-allowed");
        pod.annotations.insert(format!("{KEY}/POD"), "127.0.0.1:5000/e2e/profile:absent".to_owned());
        let pod = cri.run_pod(pod, "").await.expect("RunPodSandbox");
        let container = cri.run(&pod, container_config(&image, "main", WAIT)).await;
        cri.output(&container.id, &["mkdir", "/tmp/d"]).await;
        cri.end_pod(&pod.id).await;
    });
}
