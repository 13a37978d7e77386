//! Images of schema 1, whose manifests have neither lengths nor a configuration.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Body, Reply, Seen, TestRegistry, client, digest_of, drain, resolve};
use image_pull::ErrorKind;

const SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
const LAYER: &[u8] = b"not really a layer";

/// Two entries, of which the newer changed no files.
fn payload() -> String {
    let (base, top) = ("1".repeat(64), "2".repeat(64));
    let history = serde_json::json!([
        { "v1Compatibility": format!(r#"{{"id":"{top}","parent":"{base}","throwaway":true,"os":"linux"}}"#) },
        { "v1Compatibility": format!(r#"{{"id":"{base}"}}"#) },
    ]);
    let layer = serde_json::json!({ "blobSum": digest_of(LAYER).to_string() });
    format!(r#"{{"schemaVersion":1,"fsLayers":[{layer},{layer}],"history":{history}}}"#)
}

/// The payload with a signature nobody can verify: nobody does.
fn signed() -> String {
    let payload = payload();
    let head = &payload[..payload.len() - 1];
    let protected = format!(r#"{{"formatLength":{},"formatTail":"fQ"}}"#, head.len());
    let protected = base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, protected);
    format!(r#"{head},"signatures":[{{"protected":"{protected}"}}]}}"#)
}

fn reply(seen: &Seen, manifest: &str, layer: fn() -> Body) -> Reply {
    if seen.target.contains("/manifests/") {
        Reply::new(200, manifest).with("Content-Type", SIGNED)
    } else if seen.target.contains("/blobs/") {
        Reply::body(layer())
    } else {
        Reply::new(200, "{}")
    }
}

#[tokio::test]
async fn lengths_come_from_the_registry_and_the_configuration_from_the_layers() {
    let registry = TestRegistry::start(|seen| reply(seen, &signed(), || Body::Full(LAYER.to_vec()))).await;
    let client = client();
    let name = registry.name(&format!("app@{}", digest_of(payload().as_bytes())));
    let image = resolve(&client, &name).await.unwrap();
    assert_eq!(
        (image.manifest_digest.clone(), &image.manifest_bytes[..]),
        (digest_of(payload().as_bytes()), signed().as_bytes())
    );
    let [layer] = &image.layers[..] else { panic!("{:?}", image.layers) };
    assert_eq!((layer.size, &layer.diff_id, &layer.digest), (LAYER.len() as u64, &None, &digest_of(LAYER)));
    let (bytes, end) = drain(client.open_blob(&image, layer).await.unwrap()).await;
    assert!(end.is_ok() && bytes == LAYER);
    assert!(image.configuration.served().is_none() && image.configuration.clone().complete(&[]).is_err());
    let config = image.configuration.complete(&[digest_of(b"tar")]).unwrap();
    let parsed: serde_json::Value = serde_json::from_slice(&config.bytes).unwrap();
    assert_eq!(parsed["rootfs"]["diff_ids"][0], digest_of(b"tar").to_string());
    assert_eq!((parsed["history"].as_array().unwrap().len(), &parsed["os"]), (2, &serde_json::json!("linux")));
    assert_eq!(config.digest, digest_of(&config.bytes));
}

#[tokio::test]
async fn what_cannot_be_known_is_refused() {
    let whole = digest_of(signed().as_bytes());
    type Layer = fn() -> Body;
    let cases: [(String, String, Layer, ErrorKind); 3] = [
        // The digest of all bytes is not that of the payload.
        (format!("app@{whole}"), signed(), || Body::Full(LAYER.to_vec()), ErrorKind::DigestMismatch),
        ("app".to_owned(), signed(), || Body::Endless, ErrorKind::Malformed),
        (
            "app".to_owned(),
            signed().replace("protected", "unprotected"),
            || Body::Full(LAYER.to_vec()),
            ErrorKind::Malformed,
        ),
    ];
    for (name, manifest, layer, kind) in cases {
        let registry = TestRegistry::start(move |seen| reply(seen, &manifest, layer)).await;
        let error = resolve(&client(), &registry.name(&name)).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{name}: {error:?}");
    }
}
