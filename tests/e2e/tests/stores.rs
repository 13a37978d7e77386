//! Stores of other shapes: drivers that copy, images apart from containers, images of a store that is only read.
#![forbid(unsafe_code)]

use cri_api::v1;
use e2e::cri::container_config;
use e2e::storage::Storage;
use e2e::{Setup, World, scenario, tools};

/// A container of the image writes to its root; both outlive the daemon; and another one does not see it.
async fn live(world: &mut World, image: &str) {
    let cri = world.cri();
    let pod = cri.run_pod(world.pod_config("stores"), "").await.expect("RunPodSandbox");
    let script = "echo kept > /written; sleep 1000";
    let first = cri.run(&pod, container_config(image, "first", &["sh", "-c", script])).await;
    assert!(world.end_daemon(), "{}", world.log_tail());
    world.start_daemon().await;
    let cri = world.cri();
    assert_eq!(cri.output(&first.id, &["cat", "/written"]).await, "kept");
    let config = container_config(image, "second", &["sh", "-c", "ls /written || echo none; ls /bin/sh"]);
    let (status, output) = cri.run_to_end(&pod, config).await;
    assert_eq!(status.exit_code, 0, "{output:?}");
    assert_eq!(output.last().map(String::as_str), Some("/bin/sh"), "{output:?}");
    assert!(output.iter().any(|line| line == "none"), "{output:?}");
    let stats = v1::ContainerStatsRequest { container_id: first.id.clone() };
    let stats = cri.runtime.clone().container_stats(stats).await.expect("ContainerStats").into_inner().stats;
    assert!(stats.and_then(|stats| stats.writable_layer).is_some_and(|layer| layer.fs_id.is_some()));
    cri.remove_image(image).await.expect_err("in use");
    cri.end_pod(&pod.id).await;
}

/// How many layers lie in a directory.
fn layers(world: &World, directory: &str) -> usize {
    tools::names(world.inside(&world.path(directory))).iter().filter(|name| name.len() == 64).count()
}

#[test]
fn containers_run_on_whole_copies() {
    let drop_in = "[crio]\nstorage_driver = \"vfs\"".to_owned();
    scenario(Setup { drop_in, ..Setup::default() }, async |world| {
        let image = world.busybox().await;
        live(world, &image).await;
        assert_eq!(layers(world, "storage/vfs/dir"), 1);
        world.cri().remove_image(&image).await.expect("RemoveImage");
        assert_eq!(layers(world, "storage/vfs/dir"), 0);
    });
}

#[test]
fn containers_run_on_subvolumes() {
    if !e2e::storage::can_make_btrfs() {
        tools::say("\n*** SKIPPED: no btrfs here ***\n");
        return;
    }
    let drop_in = "[crio]\nstorage_driver = \"btrfs\"".to_owned();
    scenario(Setup { drop_in, storage: Storage::Btrfs, ..Setup::default() }, async |world| {
        let image = world.busybox().await;
        live(world, &image).await;
        assert_eq!(layers(world, "storage/btrfs/subvolumes"), 1);
        world.cri().remove_image(&image).await.expect("RemoveImage");
        assert_eq!(layers(world, "storage/btrfs/subvolumes"), 0);
    });
}

#[test]
fn images_lie_apart_from_containers() {
    let drop_in = "[crio]\nimagestore = \"@ROOT@/images\"".to_owned();
    scenario(Setup { drop_in, ..Setup::default() }, async |world| {
        let image = world.busybox().await;
        live(world, &image).await;
        assert_eq!((layers(world, "images/overlay"), layers(world, "storage/overlay")), (1, 0));
        let usage = world.cri().images.clone().image_fs_info(v1::ImageFsInfoRequest {}).await;
        let usage = usage.expect("ImageFsInfo").into_inner();
        let mountpoint = |list: &[v1::FilesystemUsage]| list[0].fs_id.clone().expect("a file system").mountpoint;
        let of = |path: &str| world.path(path).display().to_string();
        assert_eq!(mountpoint(&usage.image_filesystems), of("images/overlay-images"));
        assert_eq!(mountpoint(&usage.container_filesystems), of("storage/overlay-containers"));
        world.cri().remove_image(&image).await.expect("RemoveImage");
        assert_eq!(layers(world, "images/overlay"), 0);
    });
}

#[test]
fn images_of_an_additional_store_are_used_and_kept() {
    scenario(Setup::default(), async |world| {
        // What the store has becomes another one's, which is only read.
        let image = world.busybox().await;
        assert!(world.end_daemon());
        let (own, shared) = (world.path("storage"), world.path("shared"));
        tools::run(world.command("umount").arg(own.join("overlay")));
        tools::run(world.command("mv").arg(&own).arg(&shared));
        tools::run(world.command("mount").args(["--bind", "-o", "ro"]).arg(&shared).arg(&shared));
        let option = format!("[crio]\nstorage_option = [\"overlay.imagestore={}\"]\n", shared.display());
        tools::write(world.path("conf.d/20-shared.conf"), option);
        world.start_daemon().await;
        assert_eq!(world.cri().list_images().await.len(), 1);
        live(world, &image).await;
        assert_eq!(layers(world, "storage/overlay"), 0);
        let refused = world.cri().remove_image(&image).await.expect_err("it is another store's");
        assert!(refused.message().contains("read-only"), "{refused:?}");
        assert_eq!(world.cri().list_images().await.len(), 1);
        assert!(world.end_daemon());
        tools::run(world.command("umount").arg(&shared));
    });
}
