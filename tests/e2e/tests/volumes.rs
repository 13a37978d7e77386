//! Images as volumes.
#![forbid(unsafe_code)]

use std::os::unix::fs::MetadataExt;

use cri_api::v1;
use e2e::cri::{WAIT, container_config, refused};
use e2e::image::{Archive, Compression, Format, Image, Recipe};
use e2e::world::HANDLERS;
use e2e::{Setup, World, scenario, tools};
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
