//! Images as the oldest registries and the rarest builders have them.
#![forbid(unsafe_code)]

use e2e::cri::container_config;
use e2e::image::{Archive, Compression, Format, Recipe};
use e2e::{Setup, World, scenario, tools};

/// Runs skopeo in the network of the node, on a store of its own.
fn skopeo(world: &World, arguments: &[&str]) -> String {
    let mut command = world.command("skopeo");
    tools::run(command.args(["--insecure-policy", "--tmpdir", "/tmp"]).args(arguments))
}

/// The image as another tool unpacks it: its id.
fn id_by_skopeo(world: &World, name: &str) -> String {
    let (root, run) = (world.path("other-root"), world.path("other-run"));
    let target = format!("containers-storage:[vfs@{}+{}]", root.display(), run.display());
    skopeo(world, &["copy", "--src-tls-verify=false", &format!("docker://{name}"), &format!("{target}{name}")]);
    let records = tools::read(root.join("vfs-images/images.json"));
    let records: serde_json::Value = serde_json::from_str(&records).expect("records");
    let is_it =
        |image: &&serde_json::Value| image["names"].as_array().is_some_and(|names| names.iter().any(|it| it == name));
    let found = records.as_array().expect("a list").iter().find(is_it).expect("the image");
    found["id"].as_str().expect("an id").to_owned()
}

#[test]
fn schema_1_is_pulled_as_others_see_it() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let archive = Archive::default().directory("old/", 0o755).file("old/file", 0o644, b"from schema 1");
        let image = Recipe::busybox(Format::Docker).layer(archive.finish(), Compression::Gzip).build();
        let source = world.registry().push(world, "e2e/schema2:1", &image);
        let host = world.registry().host().to_owned();
        let name = format!("{host}/e2e/schema1:1");
        let copy = ["copy", "--src-tls-verify=false", "--dest-tls-verify=false", "--format", "v2s1"];
        skopeo(world, &[&copy[..], &[&format!("docker://{source}"), &format!("docker://{name}")]].concat());
        let expected = id_by_skopeo(world, &name);
        assert_eq!(cri.pull(&name).await.expect("PullImage"), expected);
        assert_ne!(expected, image.id(), "the configuration is another");
        let digest =
            skopeo(world, &["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &format!("docker://{name}")]);
        let found = cri.image(&name).await.expect("the image");
        let by_digest = format!("{host}/e2e/schema1@{}", digest.trim());
        assert_eq!((&found.repo_tags, &found.repo_digests), (&vec![name.clone()], &vec![by_digest.clone()]));
        assert_eq!(cri.pull(&by_digest).await.expect("PullImage"), expected);
        let pod = cri.run_pod(world.pod_config("old"), "").await.expect("RunPodSandbox");
        let (status, output) = cri.run_to_end(&pod, container_config(&name, "old", &["cat", "/old/file"])).await;
        assert_eq!((status.exit_code, output.join("")), (0, "from schema 1".to_owned()));
        cri.end_pod(&pod.id).await;
    });
}

#[test]
fn encrypted_layers_open_for_who_has_the_key() {
    let drop_in = "[crio.runtime]\ndecryption_keys_path = \"/etc/containers/keys\"\n".to_owned();
    scenario(Setup { drop_in, ..Setup::default() }, async |world| {
        let cri = world.cri();
        let archive = Archive::default().directory("secret/", 0o755).file("secret/file", 0o644, b"for us alone");
        let image = Recipe::busybox(Format::Oci).layer(archive.finish(), Compression::Gzip).build();
        let host = world.registry().host().to_owned();
        let keys = world.path("etc-containers/keys");
        std::fs::create_dir(&keys).expect("a directory");
        for (key, curve) in [("rsa", None), ("p256", Some("prime256v1"))] {
            let source = world.registry().push(world, &format!("e2e/plain-{key}:1"), &image);
            let (private, public) = (world.path(&format!("{key}.pem")), world.path(&format!("{key}.pub")));
            let kind = if curve.is_some() { "EC" } else { "RSA" };
            let mut generate = world.command("openssl");
            generate.args(["genpkey", "-algorithm", kind]).arg("-out").arg(&private);
            generate.args(curve.iter().flat_map(|curve| ["-pkeyopt".to_owned(), format!("ec_paramgen_curve:{curve}")]));
            tools::run(&mut generate);
            tools::run(
                world.command("openssl").args(["pkey", "-pubout", "-in"]).arg(&private).arg("-out").arg(&public),
            );
            let name = format!("{host}/e2e/encrypted-{key}:1");
            let recipient = format!("jwe:{}", public.display());
            let copy = ["copy", "--src-tls-verify=false", "--dest-tls-verify=false", "--encryption-key", &recipient];
            skopeo(world, &[&copy[..], &[&format!("docker://{source}"), &format!("docker://{name}")]].concat());

            let before = cri.list_images().await;
            let refusal = cri.pull(&name).await.expect_err("there is no key");
            assert!(refusal.message().contains("missing private key"), "{refusal:?}");
            assert_eq!(cri.list_images().await, before);
            std::fs::copy(&private, keys.join("key.pem")).expect("copy");
            assert_eq!(cri.pull(&name).await.expect("PullImage"), image.id());
            let pod = cri.run_pod(world.pod_config(key), "").await.expect("RunPodSandbox");
            let (status, output) = cri.run_to_end(&pod, container_config(&name, key, &["cat", "/secret/file"])).await;
            assert_eq!((status.exit_code, output.join("")), (0, "for us alone".to_owned()));
            cri.end_pod(&pod.id).await;

            // The store has what the field's tools would have put there, and gives it back plain.
            let other = world.path(&format!("other-{key}"));
            let decrypt = ["copy", "--src-tls-verify=false", "--decryption-key", private.to_str().expect("a path")];
            let (from, to) = (format!("docker://{name}"), format!("dir:{}", other.display()));
            skopeo(world, &[&decrypt[..], &[&from, &to]].concat());
            let manifest = tools::read(other.join("manifest.json"));
            let plain = format!("{host}/e2e/encrypted-{key}@{}", e2e::image::digest(manifest.as_bytes()));
            let found = cri.image(&name).await.expect("the image");
            assert!(found.repo_digests.contains(&plain), "{found:?} {plain}");
            let store = format!("[overlay@{}+{}]", world.path("storage").display(), world.path("run").display());
            let back = world.path(&format!("back-{key}"));
            skopeo(world, &["copy", &format!("containers-storage:{store}{name}"), &format!("dir:{}", back.display())]);
            assert!(!tools::read(back.join("manifest.json")).contains("encrypted"));

            // That its layers are there helps nobody who has no key.
            std::fs::remove_file(keys.join("key.pem")).expect("remove");
            let refusal = cri.pull(&name).await.expect_err("the key is gone");
            assert!(refusal.message().contains("missing private key"), "{refusal:?}");
            cri.remove_image(&name).await.expect("RemoveImage");
            cri.remove_image(&image.id()).await.expect("RemoveImage");
        }
    });
}
