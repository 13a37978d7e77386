//! Images: from registries and files into the store, listed, shared with other tools, removed.
#![forbid(unsafe_code)]

use cri_api::v1;
use e2e::cri::{WAIT, container_config, refused};
use e2e::image::{Archive, Compression, Format, Image, Recipe};
use e2e::registry::{Access, PASSWORD, USER};
use e2e::{Cri, Setup, World, scenario, tools};
use serde_json::json;
use tonic::Code;

/// A busybox and one small layer of each compression, so that a container shows whether all of them arrived in order.
fn layered(format: Format, compressions: &[Compression]) -> Image {
    let mut recipe = Recipe::busybox(format);
    for (number, compression) in compressions.iter().enumerate() {
        let archive = Archive::default()
            .directory("layers/", 0o755)
            .file("layers/top", 0o644, number.to_string().as_bytes())
            .file(&format!("layers/{number}"), 0o640, format!("layer {number} by {compression:?}").as_bytes());
        recipe = recipe.layer(archive.finish(), *compression);
    }
    recipe.config(json!({ "Labels": { "layers": compressions.len().to_string() } })).build()
}

/// Runs the image and compares what is inside with what was put there.
async fn assert_contents(world: &World, cri: &Cri, image: &str, layers: usize) {
    let pod = cri.run_pod(world.pod_config("look"), "").await.expect("RunPodSandbox");
    let script = "for file in /layers/?; do cat $file; echo; done; cat /layers/top";
    let config = container_config(image, "look", &["sh", "-c", script]);
    let (status, output) = cri.run_to_end(&pod, config).await;
    assert_eq!(status.exit_code, 0, "{status:?}");
    assert_eq!(output.len(), layers + 1, "{output:?}");
    assert_eq!(output.last().map(String::as_str), Some((layers - 1).to_string().as_str()), "the topmost layer wins");
    assert!(
        output.iter().take(layers).enumerate().all(|(n, line)| line.starts_with(&format!("layer {n} by"))),
        "{output:?}"
    );
    cri.end_pod(&pod.id).await;
}

#[test]
fn every_kind_of_manifest_and_compression_is_pulled() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let (gzip, zstd, none) = (Compression::Gzip, Compression::Zstd, Compression::None);
        let other = Recipe::new(Format::Oci).layer(Archive::default().finish(), gzip).build();
        let oci = layered(Format::Oci, &[gzip, zstd, none, zstd]);
        let docker = layered(Format::Docker, &[gzip, gzip]);
        let registry = world.registry();
        let cases = [
            (registry.push(world, "e2e/oci:1", &oci), &oci, 4),
            (registry.push(world, "e2e/docker:1", &docker), &docker, 2),
            (registry.push_index(world, "e2e/index:1", Format::Oci, &oci, &other), &oci, 4),
            (registry.push_index(world, "e2e/list:1", Format::Docker, &docker, &other), &docker, 2),
        ];
        for (name, image, layers) in &cases {
            let pulled = cri.pull(name).await.unwrap_or_else(|error| panic!("{name}: {error:?}"));
            assert_eq!(pulled, image.id(), "{name}");
            let found = cri.image(name).await.unwrap_or_else(|| panic!("{name} is not there"));
            assert_eq!(found.id, image.id());
            assert!(found.repo_tags.contains(name), "{found:?}");
            let by_digest = format!("{}@{}", name.rsplit_once(':').expect("a tag").0, image.digest());
            assert_eq!(cri.pull(&by_digest).await.expect("PullImage"), image.id(), "{by_digest}");
            assert_contents(world, &cri, name, *layers).await;
        }
        // The same configuration under several names is one image.
        let images = cri.list_images().await;
        assert_eq!(images.iter().filter(|found| found.id == oci.id()).count(), 1, "{images:#?}");
        assert_eq!(images.iter().filter(|found| found.id == docker.id()).count(), 1, "{images:#?}");
        // An image for other machines only.
        let foreign = other.index(Format::Oci, &other);
        let name = registry.push_index(world, "e2e/both:1", Format::Oci, &oci, &other);
        assert!(!foreign.is_empty() && cri.pull(&name).await.is_ok());
    });
}

#[test]
fn images_are_found_by_every_name_and_removed() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = layered(Format::Oci, &[Compression::Gzip]);
        let one = world.registry().push(world, "e2e/one:a", &image);
        let two = world.registry().push(world, "e2e/two:b", &image);
        let other = layered(Format::Oci, &[Compression::Gzip, Compression::Zstd]);
        let third = world.registry().push(world, "e2e/three:c", &other);
        assert!(cri.image(&one).await.is_none());
        for name in [&one, &two, &third] {
            cri.pull(name).await.expect("PullImage");
        }
        let by_digest = format!("{}@{}", one.trim_end_matches(":a"), image.digest());
        let id = image.id();
        for name in [&one, &two, &by_digest, &id, &id[..12].to_owned(), &format!("sha256:{id}")] {
            let found = cri.image(name).await.unwrap_or_else(|| panic!("{name} is not there"));
            assert_eq!(found.id, id, "{name}");
            let mut tags = found.repo_tags.clone();
            tags.sort();
            assert_eq!(tags, [one.clone(), two.clone()]);
            assert!(found.repo_digests.contains(&by_digest), "{found:?}");
            assert!(found.size > 1_000_000, "{found:?}");
        }
        let request = v1::ListImagesRequest {
            filter: Some(v1::ImageFilter { image: Some(v1::ImageSpec { image: third.clone(), ..Default::default() }) }),
        };
        let listed = cri.images.clone().list_images(request).await.expect("ListImages").into_inner().images;
        assert_eq!(listed.iter().map(|found| found.id.as_str()).collect::<Vec<_>>(), [other.id()]);

        let usage =
            cri.images.clone().image_fs_info(v1::ImageFsInfoRequest {}).await.expect("ImageFsInfo").into_inner();
        let usage = &usage.image_filesystems[0];
        assert!(usage.used_bytes.is_some_and(|bytes| bytes.value > 0), "{usage:?}");
        let mountpoint = &usage.fs_id.as_ref().expect("a file system").mountpoint;
        assert!(mountpoint.starts_with(&world.path("storage").display().to_string()), "{usage:?}");

        // An image in use stays usable; by one name only the name goes.
        cri.remove_image(&one).await.expect("RemoveImage");
        assert!(cri.image(&one).await.is_none_or(|found| !found.repo_tags.contains(&one)));
        cri.remove_image(&id).await.expect("RemoveImage");
        assert!(cri.image(&id).await.is_none() && cri.image(&two).await.is_none());
        cri.remove_image(&id).await.expect("removing again succeeds");
        cri.remove_image("127.0.0.1:5000/e2e/never:was").await.expect("removing what never was succeeds");
        assert_contents(world, &cri, &third, 2).await;
        cri.remove_image(&third).await.expect("RemoveImage");
        assert_eq!(cri.list_images().await, []);
        let layers = tools::names(world.path("storage/overlay"));
        let layers: Vec<_> = layers.iter().filter(|name| name.len() == 64).collect();
        assert!(layers.is_empty(), "layers without an image: {layers:?}");
    });
}

#[test]
fn images_come_from_files() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = layered(Format::Oci, &[Compression::Gzip, Compression::Zstd]);
        let layout = world.path("layout");
        image.write_layout(&layout, "v1");
        let archive = world.path("layout.tar");
        tools::run(std::process::Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&layout).arg("."));
        let docker = layered(Format::Docker, &[Compression::Gzip]);
        let saved = world.path("saved.tar");
        docker.write_docker_archive(&saved, "example.com/e2e/saved:v2");
        for (source, id) in [
            (format!("oci:{}:v1", layout.display()), image.id()),
            (format!("oci-archive:{}:v1", archive.display()), image.id()),
            (format!("docker-archive:{}", saved.display()), docker.id()),
        ] {
            assert_eq!(cri.pull(&source).await.unwrap_or_else(|error| panic!("{source}: {error:?}")), id, "{source}");
            assert_eq!(cri.image(&id).await.map(|found| found.id), Some(id.clone()), "{source}");
            cri.remove_image(&id).await.expect("RemoveImage");
        }
        cri.pull(&format!("docker-archive:{}", saved.display())).await.expect("PullImage");
        assert_contents(world, &cri, "example.com/e2e/saved:v2", 1).await;
        for missing in ["oci:/no/such/layout:v1", "oci-archive:/no/such.tar", "docker-archive:/no/such.tar"] {
            assert!(cri.pull(missing).await.is_err(), "{missing}");
        }
    });
}

#[test]
fn a_registry_asks_who_we_are() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let host = world.add_registry(5001, Access::Password);
        let image = layered(Format::Oci, &[Compression::Gzip]);
        world.registry().push(world, "e2e/private:1", &image);
        let name = format!("{host}/e2e/private:1");
        let auth = |password: &str| {
            Some(v1::AuthConfig { username: USER.to_owned(), password: password.to_owned(), ..Default::default() })
        };
        let text = refused(cri.pull(&name).await, Code::Unknown);
        assert!(text.contains("401") || text.to_lowercase().contains("unauthorized"), "{text}");
        let text = refused(cri.pull_as(&name, auth("wrong")).await, Code::Unknown);
        assert!(!text.contains("wrong"), "a password in an error: {text}");
        assert!(cri.image(&name).await.is_none());
        assert_eq!(cri.pull_as(&name, auth(PASSWORD)).await.expect("PullImage"), image.id());
        cri.remove_image(&image.id()).await.expect("RemoveImage");
        // "user:password" in base64, as clients that read Docker's files send it.
        let encoded = v1::AuthConfig { auth: "YWxpY2U6c2VjcmV0".to_owned(), ..Default::default() };
        assert_eq!(cri.pull_as(&name, Some(encoded)).await.expect("PullImage"), image.id());
        let log = tools::read(world.path("crio.log"));
        assert!(!log.contains(PASSWORD) && !log.contains("YWxpY2U6c2VjcmV0"), "credentials in the log");
    });
}

#[test]
fn a_registry_with_its_own_authority_is_trusted_by_certs_d() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        // Not among the insecure ones of registries.conf: nothing but TLS will do.
        let host = world.add_registry(5443, Access::Tls);
        let image = layered(Format::Oci, &[Compression::Gzip]);
        world.registry().push(world, "e2e/tls:1", &image);
        assert_eq!(cri.pull(&format!("{host}/e2e/tls:1")).await.expect("PullImage"), image.id());
        // Without the authority nobody is trusted.
        std::fs::remove_dir_all(world.path("etc-containers/certs.d")).expect("removes");
        world.end_daemon();
        world.start_daemon().await;
        cri.remove_image(&image.id()).await.expect("RemoveImage");
        let text = refused(cri.pull(&format!("{host}/e2e/tls:1")).await, Code::Unknown);
        assert!(text.to_lowercase().contains("certificate"), "{text}");
    });
}

#[test]
fn other_tools_see_and_copy_the_images() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = layered(Format::Oci, &[Compression::Gzip, Compression::Zstd]);
        let name = world.registry().push(world, "e2e/shared:1", &image);
        cri.pull(&name).await.expect("PullImage");
        let (root, run) = (world.path("storage"), world.path("run"));
        let podman = |arguments: &[&str]| {
            let mut command = world.command("podman");
            command.arg("--root").arg(&root).arg("--runroot").arg(&run).args(["--storage-driver", "overlay"]);
            tools::run(command.args(arguments))
        };
        let listed = podman(&["images", "--no-trunc", "--format", "{{.ID}} {{.Repository}}:{{.Tag}}"]);
        assert_eq!(listed.trim(), format!("sha256:{} {name}", image.id()));
        let inspected: serde_json::Value = serde_json::from_str(&podman(&["inspect", &name])).expect("JSON");
        assert_eq!(inspected[0]["Digest"], image.digest());
        assert_eq!(inspected[0]["Labels"]["layers"], "2");

        let out = world.path("copied");
        let source = format!("containers-storage:[overlay@{}+{}]{name}", root.display(), run.display());
        let mut skopeo = world.command("skopeo");
        skopeo.args(["copy", "--quiet", &source]).arg(format!("dir:{}", out.display()));
        tools::run(&mut skopeo);
        let manifest: serde_json::Value = serde_json::from_str(&tools::read(out.join("manifest.json"))).expect("JSON");
        let config = manifest["config"]["digest"].as_str().expect("a digest");
        assert_eq!(config, format!("sha256:{}", image.id()));
        let layers: Vec<&str> =
            manifest["layers"].as_array().expect("layers").iter().filter_map(|l| l["digest"].as_str()).collect();
        assert_eq!(layers.len(), 3);

        // The other way round: what podman brings is there for pods, and what it removes is gone.
        let local = Recipe::busybox(Format::Oci).config(json!({ "Labels": { "made": "elsewhere" } })).build();
        let layout = world.path("elsewhere");
        local.write_layout(&layout, "v1");
        let target =
            format!("containers-storage:[overlay@{}+{}]example.com/elsewhere:v1", root.display(), run.display());
        let mut skopeo = world.command("skopeo");
        tools::run(skopeo.args(["copy", "--quiet", &format!("oci:{}:v1", layout.display()), &target]));
        assert_eq!(cri.image("example.com/elsewhere:v1").await.map(|found| found.id), Some(local.id()));
        let pod = cri.run_pod(world.pod_config("shared"), "").await.expect("RunPodSandbox");
        let container = cri.run(&pod, container_config("example.com/elsewhere:v1", "main", WAIT)).await;
        assert_eq!(cri.output(&container.id, &["cat", "/etc/group"]).await.lines().count(), 3);
        cri.end_pod(&pod.id).await;
        podman(&["rmi", "example.com/elsewhere:v1"]);
        assert!(cri.image("example.com/elsewhere:v1").await.is_none());
        assert_contents(world, &cri, &name, 2).await;
    });
}
