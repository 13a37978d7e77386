//! Signature policy: who may pull what, and who may run it.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::Command;

use base64::Engine;
use cri_api::v1;
use e2e::cri::{WAIT, container_config, refused};
use e2e::image::{Format, Image, Recipe, digest};
use e2e::{Setup, World, scenario, tools};
use serde_json::{Value, json};
use tonic::Code;

const REASON: &str = "SignatureValidationFailed: ";
const HTTP_PORT: u16 = 5999;

/// A key of GnuPG in a home of its own; its public half lies beside.
fn make_gpg_key(world: &World, name: &str) {
    let home = world.path(name);
    std::fs::create_dir_all(&home).expect("a directory");
    tools::run(Command::new("chmod").arg("700").arg(&home));
    let gpg = || {
        let mut gpg = Command::new("gpg");
        gpg.env("GNUPGHOME", &home).args(["--batch", "--quiet", "--no-tty", "--passphrase", ""]);
        gpg
    };
    tools::run(gpg().args(["--quick-generate-key", name, "ed25519", "sign", "never"]));
    tools::run(gpg().arg("--output").arg(world.path(&format!("{name}.gpg"))).args(["--export", name]));
}

/// Ends what holds the private key.
fn forget_gpg_key(world: &World, name: &str) {
    tools::run(Command::new("gpgconf").arg("--homedir").arg(world.path(name)).args(["--kill", "all"]));
}

/// Signs an image under a name as skopeo does; the signature lies where a lookaside has it.
fn sign(world: &World, key: &str, name: &str, image: &Image, lookaside: &Path) {
    let home = world.path(key);
    let list = tools::run(Command::new("gpg").env("GNUPGHOME", &home).args(["--with-colons", "--list-keys", key]));
    let fingerprint = list.lines().find_map(|line| line.strip_prefix("fpr:::::::::")).expect("a fingerprint");
    let manifest = world.path("tmp/manifest.json");
    tools::write(&manifest, &image.manifest);
    let (_, path) = name.rsplit_once(':').expect("a tag").0.split_once('/').expect("a registry");
    let place = lookaside.join(format!("{path}@{}/signature-1", image.digest().replace(':', "=")));
    std::fs::create_dir_all(place.parent().expect("a directory")).expect("a directory");
    let mut skopeo = Command::new("skopeo");
    skopeo
        .env("GNUPGHOME", &home)
        .arg("standalone-sign")
        .arg(&manifest)
        .args([name, fingerprint.trim_end_matches(':')]);
    tools::run(skopeo.arg("--output").arg(&place));
}

fn make_ec_key(world: &World, name: &str) {
    let (private, public) = (world.path(&format!("{name}.pem")), world.path(&format!("{name}.pub")));
    tools::run(
        Command::new("openssl").args(["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out"]).arg(&private),
    );
    tools::run(Command::new("openssl").args(["ec", "-pubout", "-in"]).arg(private).arg("-out").arg(public));
}

/// What cosign would attach to an image: a manifest whose only layer is the signed payload.
fn attachment(world: &World, key: &str, name: &str, image: &Image) -> Image {
    let payload = json!({
        "critical": {
            "identity": { "docker-reference": name },
            "image": { "docker-manifest-digest": image.digest() },
            "type": "cosign container image signature",
        },
        "optional": null,
    });
    let payload = payload.to_string().into_bytes();
    let (file, signature) = (world.path("tmp/payload"), world.path("tmp/payload.sig"));
    tools::write(&file, &payload);
    let mut openssl = Command::new("openssl");
    openssl.args(["dgst", "-sha256", "-sign"]).arg(world.path(&format!("{key}.pem"))).arg("-out").arg(&signature);
    tools::run(openssl.arg(file));
    let signature = base64::engine::general_purpose::STANDARD.encode(std::fs::read(signature).expect("a signature"));
    let config = br#"{"architecture":"","os":"","config":{},"rootfs":{"type":"layers","diff_ids":[]}}"#.to_vec();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&config), "size": config.len() },
        "layers": [{
            "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "digest": digest(&payload),
            "size": payload.len(), "annotations": { "dev.cosignproject.cosign/signature": signature },
        }],
    });
    let manifest = manifest.to_string().into_bytes();
    Image { archives: vec![], layers: vec![payload], config, manifest, format: Format::Oci }
}

fn signed_by(world: &World, key: &str) -> Value {
    json!([{ "type": "signedBy", "keyType": "GPGKeys", "keyPath": world.path(&format!("{key}.gpg")) }])
}

fn sigstore_signed(world: &World, key: &str) -> Value {
    json!([{ "type": "sigstoreSigned", "keyPath": world.path(&format!("{key}.pub")) }])
}

/// Replaces the policy of the node. Nobody tells the daemon.
fn write_policy(world: &World, scopes: &Value) {
    let policy = json!({ "default": [{ "type": "insecureAcceptAnything" }], "transports": { "docker": scopes } });
    tools::write(world.path("etc-containers/policy.json"), policy.to_string());
}

fn write_registries_d(world: &World, lookaside: &str) {
    std::fs::create_dir_all(world.path("etc-containers/registries.d")).expect("a directory");
    let text = format!("default-docker:\n  lookaside: {lookaside}\n  use-sigstore-attachments: true\n");
    tools::write(world.path("etc-containers/registries.d/default.yaml"), text);
}

#[test]
fn images_are_pulled_and_run_only_as_the_policy_allows() {
    let setup =
        Setup { drop_in: "[crio.image]\nsignature_policy_dir = \"@ROOT@/policies\"\n".to_owned(), ..Setup::default() };
    scenario(setup, async |world| {
        let cri = world.cri();
        let recipe = |label: &str| Recipe::busybox(Format::Oci).config(json!({ "Labels": { "is": label } })).build();
        let (signed, keyed, plain) = (recipe("signed"), recipe("keyed"), recipe("plain"));
        let registry = world.registry();
        let signed_name = registry.push(world, "e2e/signed:1", &signed);
        let keyed_name = registry.push(world, "e2e/keyed:1", &keyed);
        let plain_name = registry.push(world, "e2e/plain:1", &plain);
        for key in ["ours", "theirs"] {
            make_gpg_key(world, key);
            make_ec_key(world, key);
        }
        let scope = |name: &str| name.rsplit_once(':').expect("a tag").0.to_owned();
        let both = |world: &World, key: &str| {
            write_policy(
                world,
                &json!({
                    scope(&signed_name): signed_by(world, key),
                    scope(&keyed_name): sigstore_signed(world, key),
                    "*.example": [{ "type": "reject" }],
                }),
            );
        };
        both(world, "ours");
        let lookaside = world.path("lookaside");
        write_registries_d(world, &format!("file://{}", lookaside.display()));

        // Nothing is signed yet.
        for name in [&signed_name, &keyed_name] {
            let text = refused(cri.pull(name).await, Code::Unknown);
            assert!(text.starts_with(REASON) && text.contains("no signature exists"), "{text}");
            assert!(cri.image(name).await.is_none());
        }
        assert_eq!(cri.pull(&plain_name).await.expect("PullImage"), plain.id());

        // Signed under another name, by another key, and then as it must be.
        sign(world, "ours", &plain_name, &signed, &lookaside);
        let place = |name: &str| lookaside.join(format!("e2e/{name}@{}", signed.digest().replace(':', "=")));
        tools::run(Command::new("mv").arg(place("plain")).arg(place("signed")));
        let text = refused(cri.pull(&signed_name).await, Code::Unknown);
        assert!(text.starts_with(REASON) && text.contains("is not accepted"), "{text}");
        sign(world, "theirs", &signed_name, &signed, &lookaside);
        let text = refused(cri.pull(&signed_name).await, Code::Unknown);
        assert!(text.starts_with(REASON) && text.contains("not a key of the policy"), "{text}");
        sign(world, "ours", &signed_name, &signed, &lookaside);
        ["ours", "theirs"].iter().for_each(|key| forget_gpg_key(world, key));
        assert_eq!(cri.pull(&signed_name).await.expect("PullImage"), signed.id());
        let tag = format!("e2e/keyed:{}.sig", keyed.digest().replace(':', "-"));
        registry.push(world, &tag, &attachment(world, "theirs", &keyed_name, &keyed));
        let text = refused(cri.pull(&keyed_name).await, Code::Unknown);
        assert!(text.starts_with(REASON) && text.contains("verification failed"), "{text}");
        registry.push(world, &tag, &attachment(world, "ours", &keyed_name, &keyed));
        assert_eq!(cri.pull(&keyed_name).await.expect("PullImage"), keyed.id());

        // Both are checked again where they are used, against what was kept with them.
        let pod = cri.run_pod(world.pod_config("trust"), "").await.expect("RunPodSandbox");
        let by_id = |name: &str, id: String| {
            let mut config = container_config(&id, "by-id", WAIT);
            config.image =
                Some(v1::ImageSpec { image: id, user_specified_image: name.to_owned(), ..Default::default() });
            config
        };
        for (name, image) in [(&signed_name, &signed), (&keyed_name, &keyed)] {
            let container = cri.create(&pod, by_id(name, image.id())).await.expect("CreateContainer");
            cri.remove(&container.id).await.expect("RemoveContainer");
            let container = cri.create(&pod, container_config(name, "by-name", WAIT)).await.expect("CreateContainer");
            cri.remove(&container.id).await.expect("RemoveContainer");
        }
        both(world, "theirs");
        for (name, image) in [(&signed_name, &signed), (&keyed_name, &keyed)] {
            for config in [by_id(name, image.id()), container_config(name, "by-name", WAIT)] {
                let text = refused(cri.create(&pod, config).await, Code::Unknown);
                assert!(text.starts_with(REASON), "{text}");
            }
            let mut config = container_config(&plain_name, "volume", WAIT);
            config.mounts.push(v1::Mount {
                container_path: "/volume".to_owned(),
                image: Some(v1::ImageSpec { image: name.clone(), ..Default::default() }),
                readonly: true,
                ..Default::default()
            });
            let text = refused(cri.create(&pod, config).await, Code::Unknown);
            assert!(text.contains(REASON), "{text}");
        }
        cri.end_pod(&pod.id).await;

        // A namespace has a policy of its own, which comes first.
        both(world, "ours");
        let strict = json!({ "default": [{ "type": "reject" }] });
        tools::write(world.path("policies/strict.json"), strict.to_string());
        let mut config = world.pod_config("strict");
        config.metadata.as_mut().expect("has metadata").namespace = "strict".to_owned();
        let text = refused(cri.pull_for(&signed_name, config.clone()).await, Code::Unknown);
        assert!(text.starts_with(REASON) && text.contains("rejected by policy"), "{text}");
        assert_eq!(cri.pull(&signed_name).await.expect("PullImage"), signed.id());
        let pod = cri.run_pod(config, "").await.expect("RunPodSandbox");
        let text = refused(cri.create(&pod, container_config(&signed_name, "no", WAIT)).await, Code::Unknown);
        assert!(text.starts_with(REASON), "{text}");
        cri.end_pod(&pod.id).await;

        // What cannot be read lets nothing pass.
        tools::write(world.path("etc-containers/policy.json"), r#"{"default": [{"type": "insecureAcceptAnythin"}]}"#);
        let text = refused(cri.pull(&plain_name).await, Code::Unknown);
        assert!(!text.starts_with(REASON) && text.contains("unknown requirement type"), "{text}");
        std::fs::remove_file(world.path("etc-containers/policy.json")).expect("remove");
        let text = refused(cri.pull(&plain_name).await, Code::Unknown);
        assert!(!text.starts_with(REASON) && text.contains("policy.json"), "{text}");
        both(world, "ours");

        // Signatures may also lie on a server; and they go with the image to whoever reads the store.
        let mut server = world.command("busybox");
        server.args(["httpd", "-f", "-p", &format!("127.0.0.1:{HTTP_PORT}"), "-h"]).arg(&lookaside);
        let mut server = server.spawn().expect("start a server");
        write_registries_d(world, &format!("http://127.0.0.1:{HTTP_PORT}"));
        cri.remove_image(&signed_name).await.expect("RemoveImage");
        let pulled = tools::eventually("the server answers", async || cri.pull(&signed_name).await.ok()).await;
        assert_eq!(pulled, signed.id());
        server.kill().and_then(|()| server.wait()).expect("end the server");
        cri.remove_image(&signed_name).await.expect("RemoveImage");
        let text = refused(cri.pull(&signed_name).await, Code::Unknown);
        assert!(text.starts_with("RegistryUnavailable: "), "{text}");
    });
}
