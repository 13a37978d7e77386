//! Signatures from registries and from servers beside them: whole, within bounds, and without anybody's login.
#![allow(clippy::unwrap_used)]

mod common;

use common::{OCI_MANIFEST, Reply, Seen, TestImage, TestRegistry, client, descriptor, digest_of};
use image_pull::auth::RequestAuth;
use image_pull::{
    Attachment, AttachmentError, Credentials, ErrorKind, Platform, SignatureAccess, SignatureLimits, Source,
};

const LIMITS: SignatureLimits = SignatureLimits { count: 2, bytes: 100 };

async fn access(registry: &TestRegistry, credentials: &Credentials) -> SignatureAccess {
    let source = Source::parse(&registry.name("app:v1")).unwrap();
    let resolved = client().resolve_any(&source, credentials, &Platform::host()).await.unwrap();
    resolved.signature_access().unwrap()
}

/// A registry whose image has this manifest of signatures, and these blobs.
async fn signed(
    manifest: impl Into<Vec<u8>>,
    media_type: &'static str,
    blobs: Vec<(Vec<u8>, Vec<u8>)>,
) -> (TestRegistry, TestImage) {
    let image = TestImage::of_size(100);
    let (served, manifest) = (image.clone(), manifest.into());
    let tag = format!("/sha256-{}.sig", digest_of(&image.manifest).hex());
    let registry = TestRegistry::start(move |seen: &Seen| {
        let blob = blobs.iter().find(|(named, _)| seen.target.ends_with(digest_of(named).as_str()));
        match blob {
            Some((_, bytes)) => Reply::new(200, bytes.clone()),
            None if seen.target.ends_with(&tag) => Reply::new(200, manifest.clone()).with("content-type", media_type),
            None => served.reply(seen),
        }
    });
    (registry.await, image)
}

fn manifest(blobs: &[&[u8]]) -> String {
    let layers: Vec<String> = blobs.iter().map(|blob| descriptor("text/plain", blob)).collect();
    let config = descriptor("application/vnd.oci.image.config.v1+json", b"{}");
    format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{config},"layers":[{}]}}"#, layers.join(","))
}

async fn attachments((registry, image): (TestRegistry, TestImage)) -> Result<Vec<Attachment>, AttachmentError> {
    access(&registry, &Credentials::Anonymous).await.attachments(&digest_of(&image.manifest), LIMITS).await
}

#[tokio::test]
async fn attachments_are_whole_or_refused() {
    let own = |bytes: &[u8]| (bytes.to_vec(), bytes.to_vec());
    let found = attachments(signed(manifest(&[b"one", b"two"]), OCI_MANIFEST, vec![own(b"one"), own(b"two")]).await);
    let payloads: Vec<_> = found.await.unwrap().into_iter().map(|found| (found.media_type, found.payload)).collect();
    assert_eq!(payloads, [("text/plain".to_owned(), "one".into()), ("text/plain".to_owned(), "two".into())]);

    let plain = TestImage::of_size(100);
    let served = plain.clone();
    let none = TestRegistry::start(move |seen: &Seen| match seen.target.ends_with(".sig") {
        true => Reply::new(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#),
        false => served.reply(seen),
    });
    let none = none.await;
    assert!(attachments((none, plain)).await.unwrap().is_empty());

    let swapped = vec![(b"one".to_vec(), b"eno".to_vec())];
    let long = vec![0; 101];
    for (manifest, media_type, blobs, kind) in [
        (manifest(&[b"one"]), OCI_MANIFEST, swapped, ErrorKind::DigestMismatch),
        (manifest(&[b"one"]), OCI_MANIFEST, vec![], ErrorKind::NotFound),
        (manifest(&[b"1", b"2", b"3"]), OCI_MANIFEST, vec![], ErrorKind::TooLarge),
        (manifest(&[&long]), OCI_MANIFEST, vec![own(&long)], ErrorKind::TooLarge),
        ("{".to_owned(), OCI_MANIFEST, vec![], ErrorKind::Malformed),
        (
            r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#.to_owned(),
            "application/vnd.oci.image.index.v1+json",
            vec![],
            ErrorKind::Malformed,
        ),
    ] {
        let error = attachments(signed(manifest.clone(), media_type, blobs).await).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{manifest}: {error:?}");
    }
}

#[tokio::test]
async fn a_registry_may_keep_signatures_itself() {
    for (list, expected) in [
        (
            r#"{"signatures":[{"schemaVersion":2,"type":"atomic","content":"eA=="},{"schemaVersion":1,"type":"atomic"}]}"#,
            Ok(1),
        ),
        (r#"{"signatures":[{"schemaVersion":2,"type":"other","content":"?"}]}"#, Ok(0)),
        (r#"{"signatures":[{"schemaVersion":2,"type":"atomic","content":"?"}]}"#, Err(ErrorKind::Malformed)),
        ("[", Err(ErrorKind::Malformed)),
    ] {
        let image = TestImage::of_size(100);
        let (served, digest) = (image.clone(), digest_of(&image.manifest));
        let target = format!("/extensions/v2/app/signatures/{digest}");
        let registry = TestRegistry::start(move |seen: &Seen| match &seen.target {
            asked if *asked == target => Reply::new(200, list),
            asked if asked == "/v2/" => Reply::new(200, "{}").with("x-registry-supports-signatures", "1"),
            _ => served.reply(seen),
        });
        let registry = registry.await;
        let found = access(&registry, &Credentials::Anonymous).await.extension(&digest, LIMITS).await;
        let count = found.map(|found| found.unwrap().len()).map_err(|error| error.kind());
        assert_eq!(count, expected, "{list}");
    }
    let (registry, image) = signed("{}", OCI_MANIFEST, vec![]).await;
    let access = access(&registry, &Credentials::Anonymous).await;
    assert!(access.extension(&digest_of(&image.manifest), LIMITS).await.unwrap().is_none(), "nobody said so");
}

#[tokio::test]
async fn servers_of_signatures_see_no_login() {
    let (registry, _) = signed("{}", OCI_MANIFEST, vec![]).await;
    let server = TestRegistry::start(|seen: &Seen| match seen.target.as_str() {
        "/app@sha256=00/signature-1" => Reply::new(200, "signed"),
        "/moved" => Reply::new(302, "").with("location", "/app@sha256=00/signature-1"),
        "/broken" => Reply::new(500, ""),
        _ => Reply::new(404, ""),
    });
    let server = server.await;
    let auth = RequestAuth { username: "a".into(), password: "b".into(), ..RequestAuth::default() };
    let credentials = Credentials::from(auth.parse().unwrap().unwrap());
    let access = access(&registry, &credentials).await;
    let url = |path: &str| format!("http://{}", server.name(path));
    for (path, limit, expected) in [
        ("app@sha256=00/signature-1", 6, Ok(true)),
        ("moved", 6, Ok(true)),
        ("app@sha256=00/signature-2", 6, Ok(false)),
        ("app@sha256=00/signature-1", 5, Err(ErrorKind::TooLarge)),
        ("broken", 6, Err(ErrorKind::RegistryUnavailable)),
    ] {
        let found = access.read_lookaside(&url(path), limit).await;
        assert_eq!(found.map(|found| found.is_some()).map_err(|error| error.kind()), expected, "{path}");
    }
    assert!(server.seen().iter().all(|seen| seen.header("authorization").is_none()));
}
