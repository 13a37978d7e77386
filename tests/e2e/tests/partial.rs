//! Images of which only what is missing is fetched.
#![forbid(unsafe_code)]

use e2e::chunked::{Blob, How, build};
use e2e::cri::container_config;
use e2e::image::{Archive, Compression, Format, Image, Recipe, digest};
use e2e::{Setup, World, scenario, tools};
use serde_json::Value;

const PARTIAL: &str = "[storage.options.pull_options]\nenable_partial_images = \"true\"\n";
/// Sizes of the file that both versions have and of the one that differs, of bytes that do not compress.
const COMMON_BYTES: usize = 3 << 20;
const OWN_BYTES: usize = 20_000;

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

/// An image of two layers, of which the second is zstd:chunked; `change` may spoil its table.
fn image(version: u64, change: impl FnOnce(&mut Value)) -> (Image, Blob) {
    let archive = Archive::default()
        .directory("data/", 0o755)
        .file("data/common", 0o644, &noise(0, COMMON_BYTES))
        .file("data/own", 0o640, &noise(version, OWN_BYTES))
        .file("data/version", 0o644, version.to_string().as_bytes())
        .hard_link("data/link", "data/common");
    let archive = archive.finish();
    let blob = build(&archive, How::default(), change);
    let mut image = Recipe::busybox(Format::Oci).layer(archive, Compression::Zstd).build();
    let mut manifest: Value = serde_json::from_slice(&image.manifest).expect("JSON");
    let layer = &mut manifest["layers"][1];
    layer["digest"] = digest(&blob.bytes).into();
    layer["size"] = blob.bytes.len().into();
    layer["annotations"] = serde_json::to_value(&blob.annotations).expect("JSON");
    image.manifest = serde_json::to_vec(&manifest).expect("JSON");
    image.layers[1].clone_from(&blob.bytes);
    (image, blob)
}

/// The record of the layer with this archive.
fn record(world: &World, image: &Image) -> Value {
    let rows: Vec<Value> =
        serde_json::from_str(&tools::read(world.path("storage/overlay-layers/layers.json"))).expect("JSON");
    let diff = digest(&image.archives[1]);
    rows.into_iter().find(|row| row["diff-digest"] == diff.as_str()).expect("the layer is recorded")
}

#[test]
fn what_other_layers_have_is_not_fetched() {
    let setup = Setup { storage_lines: PARTIAL.to_owned(), ..Setup::default() };
    scenario(setup, async |world| {
        let cri = world.cri();
        let registry = world.registry();
        for version in [1, 2] {
            let (image, blob) = image(version, |_| {});
            let name = registry.push(world, &format!("e2e/parts:{version}"), &image);
            if version == 2 {
                // What the registry has of the common file is damaged: whoever fetched it would see.
                let hex = digest(&blob.bytes).trim_start_matches("sha256:").to_owned();
                let path = format!("registry/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]);
                let mut bytes = blob.bytes.clone();
                bytes[10_000..COMMON_BYTES / 2].fill(0);
                tools::write(world.path(&path), bytes);
            }
            assert_eq!(cri.pull(&name).await.expect("PullImage"), image.id());
            let record = record(world, &image);
            assert_eq!(record["toc-digest"], blob.annotations["io.github.containers.zstd-chunked.manifest-checksum"]);
            assert!(record.get("compressed-diff-digest").is_none(), "nobody saw the whole blob");
            let pod = cri.run_pod(world.pod_config("parts"), "").await.expect("RunPodSandbox");
            let script = "cat /data/version; echo; cmp /data/common /data/link && stat -c '%s %h' /data/common";
            let (status, output) = cri.run_to_end(&pod, container_config(&name, "look", &["sh", "-c", script])).await;
            assert_eq!(status.exit_code, 0, "{output:?}");
            assert_eq!(output, [version.to_string(), format!("{COMMON_BYTES} 2")]);
            cri.end_pod(&pod.id).await;
        }
        // A table that lies is not used; the layer comes whole, and is what its digests say.
        let (image, blob) = image(3, |table| table["entries"][1]["mode"] = 0o4777.into());
        let name = registry.push(world, "e2e/parts:3", &image);
        assert_eq!(cri.pull(&name).await.expect("PullImage"), image.id());
        let record = record(world, &image);
        assert_eq!(record["compressed-diff-digest"], digest(&blob.bytes).as_str());
        assert!(record.get("toc-digest").is_none());
    });
}
