//! Registries that lie, dawdle, break off, never end, forbid, redirect and want tokens.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{
    Body, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Reply, Seen, TestImage, TestRegistry, client, descriptor, digest_of,
    drain, options, resolve, resolve_as,
};
use image_pull::auth::RequestAuth;
use image_pull::{BlobError, Client, Credentials, ErrorKind, RequestError, ResolveError};

fn password(username: &str, password: &str) -> Credentials {
    let auth = RequestAuth { username: username.into(), password: password.into(), ..RequestAuth::default() };
    Credentials::from(auth.parse().unwrap().unwrap())
}

/// Whether the request is for the layer of `image`.
fn is_layer(image: &TestImage, seen: &Seen) -> bool {
    seen.target.ends_with(digest_of(&image.layer).as_str())
}

fn range_start(seen: &Seen) -> Option<usize> {
    seen.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

#[tokio::test]
async fn an_image_is_resolved_and_streamed() {
    let image = TestImage::of_size(700_000);
    let served = image.clone();
    let registry = TestRegistry::start(move |seen| served.reply(seen)).await;
    let client = client();
    let resolved = resolve(&client, &registry.name("app:v1")).await.unwrap();
    assert_eq!(resolved.manifest_bytes, image.manifest);
    assert_eq!(resolved.named_digest(), &digest_of(&image.manifest));
    assert_eq!(resolved.configuration.served().unwrap().bytes, image.config);
    assert_eq!(resolved.configuration.served().unwrap().image_id().as_str(), digest_of(&image.config).hex());
    assert_eq!(resolved.names[0].to_string(), registry.name("app:v1"));
    assert_eq!(resolved.layers[0].diff_id, Some(digest_of(&image.layer)));
    let stream = client.open_blob(&resolved, &resolved.layers[0]).await.unwrap();
    assert_eq!(stream.expected_digest(), &digest_of(&image.layer));
    let (bytes, end) = drain(stream).await;
    end.unwrap();
    assert_eq!(bytes, image.layer);
    assert!(registry.seen().iter().all(|seen| seen.header("user-agent") == Some("image-pull-test")));
    let by_digest = registry.name(&format!("app@{}", digest_of(&image.manifest)));
    assert_eq!(resolve(&client, &by_digest).await.unwrap().configuration, resolved.configuration);
    let error = resolve(&client, &registry.name("other:v1")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn blocking_code_reads_the_same_bytes_and_the_same_errors() {
    use std::io::Read as _;
    let image = TestImage::of_size(300_000);
    let served = image.clone();
    let registry = TestRegistry::start(move |seen| served.reply(seen)).await;
    let lying = image.clone();
    let endless = TestRegistry::start(move |seen| match is_layer(&lying, seen) {
        true => Reply::body(Body::Endless),
        false => lying.reply(seen),
    })
    .await;
    let client = client();
    for (registry, is_good) in [(&registry, true), (&endless, false)] {
        let resolved = resolve(&client, &registry.name("app")).await.unwrap();
        let stream = client.open_blob(&resolved, &resolved.layers[0]).await.unwrap();
        let mut reader = stream.into_blocking_reader(tokio::runtime::Handle::current());
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).map(|_| bytes)
        });
        match read.await.unwrap() {
            Ok(bytes) => assert!(is_good && bytes == image.layer),
            Err(error) => {
                let error = error.into_inner().unwrap().downcast::<BlobError>().unwrap();
                assert!(!is_good && matches!(*error, BlobError::Excess { .. }), "{error:?}");
            }
        }
    }
}

#[tokio::test]
async fn lies_are_found_before_anything_is_parsed() {
    let image = TestImage::of_size(10);
    let wanted = format!("app@{}", digest_of(b"something else"));
    type Lie = fn(&TestImage, &Seen, Reply) -> Reply;
    let lies: [(&str, &str, ErrorKind, Lie); 7] = [
        ("other manifest", &wanted, ErrorKind::DigestMismatch, |_, _, reply| reply),
        ("other configuration", "app", ErrorKind::DigestMismatch, |image, seen, reply| {
            let mut other = image.config.clone();
            other.reverse();
            if seen.target.contains("blobs") { Reply::new(200, other) } else { reply }
        }),
        ("longer configuration", "app", ErrorKind::TooLarge, |_, seen, reply| {
            if seen.target.contains("blobs") { Reply::body(Body::Endless) } else { reply }
        }),
        ("endless manifest", "app", ErrorKind::TooLarge, |_, seen, reply| {
            if seen.target.contains("manifests") { Reply::body(Body::Endless) } else { reply }
        }),
        ("other media type", "app", ErrorKind::Malformed, |image, seen, reply| {
            let lie = Reply::new(200, image.manifest.clone()).with("Content-Type", OCI_INDEX);
            if seen.target.contains("manifests") { lie } else { reply }
        }),
        ("schema 1 without layers", "app", ErrorKind::Malformed, |_, seen, reply| {
            let lie = Reply::new(200, r#"{"schemaVersion":1,"fsLayers":[],"history":[]}"#)
                .with("Content-Type", "application/vnd.docker.distribution.manifest.v1+prettyjws");
            if seen.target.contains("manifests") { lie } else { reply }
        }),
        ("web page", "app", ErrorKind::Malformed, |_, seen, reply| {
            let page = Reply::new(200, "<html>").with("Content-Type", "text/html");
            if seen.target.contains("manifests") { page } else { reply }
        }),
    ];
    for (what, name, kind, lie) in lies {
        let served = image.clone();
        let registry = TestRegistry::start(move |seen| lie(&served, seen, served.reply(seen))).await;
        let error = resolve(&client(), &registry.name(name)).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{what}: {error:?}");
    }
}

#[tokio::test]
async fn broken_downloads_resume_where_they_broke() {
    for does_ranges in [true, false] {
        let image = TestImage::of_size(500_000);
        let (served, calls) = (image.clone(), Arc::new(AtomicUsize::new(0)));
        let registry = TestRegistry::start(move |seen| {
            if !is_layer(&served, seen) {
                return served.reply(seen);
            }
            let from = range_start(seen).filter(|_| does_ranges).unwrap_or(0);
            let rest = &served.layer[from..];
            // The first two connections break, after 100 000 and after 250 000 bytes of what they carry.
            let kept = [100_000, 250_000].get(calls.fetch_add(1, Ordering::SeqCst)).copied();
            let bytes = rest[..kept.unwrap_or(rest.len()).min(rest.len())].to_vec();
            let mut reply = Reply::body(Body::Truncated { declared: rest.len(), bytes });
            if from > 0 {
                reply.status = 206;
                let end = served.layer.len();
                reply = reply.with("Content-Range", format!("bytes {from}-{}/{end}", end - 1));
            }
            reply
        })
        .await;
        let client = client();
        let resolved = resolve(&client, &registry.name("app")).await.unwrap();
        let (bytes, end) = drain(client.open_blob(&resolved, &resolved.layers[0]).await.unwrap()).await;
        end.unwrap();
        assert!(bytes == image.layer, "resumed bytes differ");
        let asked: Vec<_> = registry.seen().iter().filter(|seen| is_layer(&image, seen)).map(range_start).collect();
        let expected = if does_ranges { Some(350_000) } else { Some(250_000) };
        assert_eq!(asked, [None, Some(100_000), expected]);
    }
}

#[tokio::test]
async fn blobs_of_other_sizes_and_ranges_are_refused() {
    type Lie = fn(&TestImage, &Seen) -> Reply;
    type Expected = fn(&BlobError) -> bool;
    let lies: [(&str, usize, Lie, Expected); 7] = [
        ("endless", 200_000, |_, _| Reply::body(Body::Endless), |error| matches!(error, BlobError::Excess { .. })),
        (
            "announces more",
            0,
            |image, _| Reply::new(200, [&image.layer[..], b"x"].concat()),
            |error| matches!(error, BlobError::SizeMismatch { declared: 200_000, announced: 200_001, .. }),
        ),
        (
            "breaks always",
            1000,
            |image, seen| match range_start(seen) {
                None => Reply::body(Body::Truncated { declared: 200_000, bytes: image.layer[..1000].to_vec() }),
                Some(_) => {
                    let mut reply = Reply::body(Body::Truncated { declared: 199_000, bytes: vec![] });
                    reply.status = 206;
                    reply.with("Content-Range", "bytes 1000-199999/200000")
                }
            },
            |error| matches!(error, BlobError::GaveUp { attempts: 4, received: 1000, .. }),
        ),
        (
            "stalls",
            1000,
            |image, seen| match range_start(seen) {
                None => Reply::body(Body::Stalled { declared: 200_000, bytes: image.layer[..1000].to_vec() }),
                Some(_) => Reply::body(Body::Stalled { declared: 200_000, bytes: vec![] }),
            },
            |error| matches!(error, BlobError::GaveUp { .. }) && error.kind() == ErrorKind::TimedOut,
        ),
        (
            "another range",
            1000,
            |image, seen| match range_start(seen) {
                None => Reply::body(Body::Truncated { declared: 200_000, bytes: image.layer[..1000].to_vec() }),
                Some(_) => {
                    let mut reply = Reply::new(206, image.layer[999..].to_vec());
                    reply.headers.push(("Content-Range".into(), "bytes 999-199999/200000".into()));
                    reply
                }
            },
            |error| matches!(error, BlobError::Range { wanted: 1000, .. }),
        ),
        (
            "gone halfway",
            1000,
            |image, seen| match range_start(seen) {
                None => Reply::body(Body::Truncated { declared: 200_000, bytes: image.layer[..1000].to_vec() }),
                Some(_) => Reply::new(404, ""),
            },
            |error| error.kind() == ErrorKind::NotFound,
        ),
        ("never there", 0, |_, _| Reply::new(404, ""), |error| error.kind() == ErrorKind::NotFound),
    ];
    for (what, most, lie, expected) in lies {
        let image = TestImage::of_size(200_000);
        let served = image.clone();
        let registry =
            TestRegistry::start(
                move |seen| {
                    if is_layer(&served, seen) { lie(&served, seen) } else { served.reply(seen) }
                },
            )
            .await;
        let client = client();
        let resolved = resolve(&client, &registry.name("app")).await.unwrap();
        let (bytes, error) = match client.open_blob(&resolved, &resolved.layers[0]).await {
            Ok(stream) => {
                let (bytes, end) = drain(stream).await;
                (bytes, end.unwrap_err())
            }
            Err(error) => (Vec::new(), error),
        };
        assert!(expected(&error), "{what}: {error:?}");
        assert!(bytes.len() <= most, "{what}: {} bytes", bytes.len());
    }
}

#[tokio::test]
async fn busy_registries_are_waited_for_within_reason() {
    // status, Retry-After, refusals before the answer, expected: least wait or the kind of error, requests
    for (status, after, refusals, expected, requests) in [
        (429, Some("1"), 1, Ok(Duration::from_secs(1)), 2),
        (503, None, 2, Ok(Duration::from_millis(30)), 3),
        (429, Some("3600"), 1, Err(ErrorKind::RateLimited), 1),
        (503, None, 99, Err(ErrorKind::RegistryUnavailable), 4),
        (403, None, 99, Err(ErrorKind::Denied), 1),
    ] {
        let image = TestImage::of_size(10);
        let (served, calls) = (image.clone(), AtomicUsize::new(0));
        let registry = TestRegistry::start(move |seen| {
            if !seen.target.contains("manifests") || calls.fetch_add(1, Ordering::SeqCst) >= refusals {
                return served.reply(seen);
            }
            let reply = Reply::new(status, "");
            if let Some(after) = after { reply.with("Retry-After", after) } else { reply }
        })
        .await;
        let begun = Instant::now();
        let resolved = resolve(&client(), &registry.name("app")).await;
        match expected {
            Ok(least) => {
                resolved.unwrap();
                assert!(begun.elapsed() >= least, "{status} {after:?}: waited {:?}", begun.elapsed());
            }
            Err(kind) => assert_eq!(resolved.unwrap_err().kind(), kind, "{status} {after:?}"),
        }
        assert_eq!(registry.count("manifests"), requests, "{status} {after:?}");
    }
}

#[tokio::test]
async fn logins_do_not_follow_redirects_to_other_hosts() {
    let image = TestImage::of_size(1000);
    let elsewhere = image.clone();
    let store = TestRegistry::start(move |_| Reply::new(200, elsewhere.layer.clone())).await;
    let (served, target) = (image.clone(), format!("http://{}/signed?secret=1", store.address));
    let registry = TestRegistry::start(move |seen| {
        if seen.header("authorization").is_none() {
            return Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\"");
        }
        if seen.target.contains("manifests/latest") {
            return Reply::new(307, "").with("Location", "/v2/app/manifests/moved");
        }
        match is_layer(&served, seen) {
            true => Reply::new(307, "").with("Location", &*target),
            false => served.reply(seen),
        }
    })
    .await;
    let client = client();
    let resolved = resolve_as(&client, &registry.name("app"), &password("u", "p")).await.unwrap();
    let (bytes, end) = drain(client.open_blob(&resolved, &resolved.layers[0]).await.unwrap()).await;
    end.unwrap();
    assert_eq!(bytes, image.layer);
    assert_eq!(registry.count("manifests/moved"), 1, "the same host is followed with the login");
    let strangers = store.seen();
    assert_eq!(strangers.len(), 1);
    assert_eq!(strangers[0].header("authorization"), None);
    assert_eq!(strangers[0].target, "/signed?secret=1");
}

#[tokio::test]
async fn redirects_end_and_errors_hide_signed_addresses() {
    for (location, reason) in [("/v2/app/manifests/latest?again=secret", "too many"), ("nowhere", "unusable")] {
        let registry = TestRegistry::start(move |seen| match seen.target.contains("manifests") {
            true => Reply::new(302, "").with("Location", location),
            false => Reply::new(200, ""),
        })
        .await;
        let error = resolve(&client(), &registry.name("app")).await.unwrap_err();
        let ResolveError::Registry { source: source @ RequestError::Redirect { .. }, .. } = &error else {
            panic!("{error:?}")
        };
        assert!(source.to_string().contains(reason) && !format!("{error:?}").contains("secret"), "{error:?}");
    }
}

/// A registry and its token service in one: tokens for whoever `accepts`.
async fn token_registry(image: &TestImage, accepts: fn(&Seen) -> bool) -> TestRegistry {
    let served = image.clone();
    TestRegistry::start(move |seen| {
        let host = seen.header("host").unwrap_or_default();
        if seen.target.starts_with("/token") {
            return match accepts(seen) {
                true => Reply::new(200, r#"{"token":"good","expires_in":300}"#),
                false => Reply::new(401, r#"{"details":"incorrect username or password"}"#),
            };
        }
        match seen.header("authorization") {
            Some("Bearer good") => served.reply(seen),
            _ => Reply::new(401, "").with(
                "WWW-Authenticate",
                format!("Bearer realm=\"http://{host}/token\",service=\"reg\",scope=\"repository:app:pull\""),
            ),
        }
    })
    .await
}

#[tokio::test]
async fn tokens_are_asked_for_once() {
    let scope = "service=reg&scope=repository%3Aapp%3Apull";
    let image = TestImage::of_size(1000);
    let identity = RequestAuth { identity_token: "idt&x".into(), ..RequestAuth::default() }.parse().unwrap().unwrap();
    type Accepts = fn(&Seen) -> bool;
    let accepts: [(Credentials, Accepts); 3] = [
        (Credentials::Anonymous, |seen| seen.header("authorization").is_none()),
        (password("u", "p"), |seen| {
            seen.header("authorization") == Some("Basic dTpw") && seen.target.ends_with("&account=u")
        }),
        (Credentials::from(identity), |seen| {
            seen.method == "POST" && seen.body.ends_with("grant_type=refresh_token&refresh_token=idt%26x")
        }),
    ];
    for (credentials, accepts) in accepts {
        let registry = token_registry(&image, accepts).await;
        let client = client();
        for _ in 0..2 {
            let resolved = resolve_as(&client, &registry.name("app"), &credentials).await.unwrap();
            let (_, end) = drain(client.open_blob(&resolved, &resolved.layers[0]).await.unwrap()).await;
            end.unwrap();
        }
        let asked: Vec<_> = registry.seen().into_iter().filter(|seen| seen.target.starts_with("/token")).collect();
        assert_eq!(asked.len(), 1, "{credentials:?}");
        assert!(asked[0].target.contains(scope) || asked[0].body.contains(scope), "{:?}", asked[0]);
        // The token of one login does not serve another.
        let other = resolve_as(&client, &registry.name("app"), &password("u", "wrong")).await;
        assert_eq!(other.unwrap_err().kind(), ErrorKind::Unauthorized);
    }
}

#[tokio::test]
async fn a_registry_token_is_sent_as_it_is_and_expired_ones_are_renewed() {
    let image = TestImage::of_size(10);
    let registry = token_registry(&image, |_| true).await;
    for (token, is_good) in [("good", true), ("bad", false)] {
        let login = RequestAuth { registry_token: token.into(), ..RequestAuth::default() }.parse().unwrap().unwrap();
        let resolved = resolve_as(&client(), &registry.name("app"), &Credentials::from(login)).await;
        assert_eq!(resolved.is_ok(), is_good);
    }
    assert_eq!(registry.count("/token"), 0);
    // Tokens of this registry serve one request each.
    let (served, uses) = (image.clone(), AtomicUsize::new(0));
    let registry = TestRegistry::start(move |seen| {
        let host = seen.header("host").unwrap_or_default();
        if seen.target.starts_with("/token") {
            return Reply::new(200, format!(r#"{{"token":"t{}"}}"#, uses.load(Ordering::SeqCst)));
        }
        if seen.header("authorization") == Some(&format!("Bearer t{}", uses.load(Ordering::SeqCst))) {
            uses.fetch_add(1, Ordering::SeqCst);
            return served.reply(seen);
        }
        Reply::new(401, "").with("WWW-Authenticate", format!("Bearer realm=\"http://{host}/token\""))
    })
    .await;
    resolve(&client(), &registry.name("app")).await.unwrap();
    assert_eq!(registry.count("/token"), 2, "manifest and configuration");
}

#[tokio::test]
async fn wrong_passwords_are_refused_at_once() {
    let registry = TestRegistry::start(|_| Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"r\"")).await;
    let error = resolve_as(&client(), &registry.name("app"), &password("u", "hunter2")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(!format!("{error:?}").contains("hunter2"));
    assert!(registry.seen().len() <= 3, "{:?}", registry.seen());
    let registry = TestRegistry::start(|_| Reply::new(401, "").with("WWW-Authenticate", "Negotiate")).await;
    let error = resolve_as(&client(), &registry.name("app"), &password("u", "p")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
}

/// Serves documents by digest, and the first of them under every tag.
async fn documents(documents: Vec<(&'static str, Vec<u8>)>) -> TestRegistry {
    TestRegistry::start(move |seen| {
        let by_digest = documents.iter().find(|(_, bytes)| seen.target.ends_with(digest_of(bytes).as_str()));
        match by_digest.or(documents.first()).filter(|_| seen.target.contains("app")) {
            Some((media_type, bytes)) => Reply::new(200, bytes.clone()).with("Content-Type", *media_type),
            None => Reply::new(200, ""),
        }
    })
    .await
}

fn entry(media_type: &str, bytes: &[u8], platform: &str, more: &str) -> String {
    let descriptor = descriptor(media_type, bytes);
    format!("{},\"platform\":{{{platform}}}{more}}}", &descriptor[..descriptor.len() - 1])
}

fn index(entries: &[String]) -> Vec<u8> {
    format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{}]}}"#, entries.join(",")).into_bytes()
}

#[tokio::test]
async fn indices_are_followed_to_the_platform() {
    let (plain, zstd, arm) = (TestImage::of_size(10), TestImage::of_size(20), TestImage::of_size(30));
    let amd64 = r#""os":"linux","architecture":"amd64""#;
    let inner = index(&[
        entry(OCI_MANIFEST, &arm.manifest, r#""os":"linux","architecture":"arm64""#, ""),
        entry(OCI_MANIFEST, &plain.manifest, amd64, ""),
        entry(
            OCI_MANIFEST,
            &zstd.manifest,
            amd64,
            r#","annotations":{"io.github.containers.compression.zstd":"true"}"#,
        ),
        entry(OCI_MANIFEST, b"x", r#""os":"unknown","architecture":"unknown""#, ""),
    ]);
    let outer = index(&[entry(OCI_INDEX, &inner, "", "")]);
    let all = vec![
        (OCI_INDEX, outer.clone()),
        (OCI_INDEX, inner),
        (OCI_MANIFEST, zstd.manifest.clone()),
        ("application/octet-stream", zstd.config.clone()),
    ];
    let registry = documents(all).await;
    let resolved = resolve(&client(), &registry.name("app")).await.unwrap();
    assert_eq!(resolved.manifest_bytes, zstd.manifest, "the zstd entry is preferred");
    assert_eq!(resolved.named_digest(), &digest_of(&outer));
    assert_eq!(resolved.index.unwrap().bytes, outer);
    let only_arm = index(&[entry(OCI_MANIFEST, &arm.manifest, r#""os":"linux","architecture":"arm64""#, "")]);
    let registry = documents(vec![(OCI_INDEX, only_arm)]).await;
    assert_eq!(resolve(&client(), &registry.name("app")).await.unwrap_err().kind(), ErrorKind::NoPlatform);
}

#[tokio::test]
async fn descriptor_graphs_have_bounds() {
    // An index in an index in an index ...
    let mut deep = vec![(OCI_INDEX, index(&[]))];
    for _ in 0..8 {
        let next = index(&[entry(OCI_INDEX, &deep[0].1, "", "")]);
        deep.insert(0, (OCI_INDEX, next));
    }
    let registry = documents(deep).await;
    let error = resolve(&client(), &registry.name("app")).await.unwrap_err();
    assert!(matches!(error, ResolveError::TooDeep { .. }), "{error:?}");
    assert!(registry.count("manifests") <= 6);

    let wide = index(&vec![entry(OCI_INDEX, b"x", r#""os":"o","architecture":"a""#, ""); 2000]);
    let registry = documents(vec![(OCI_INDEX, wide)]).await;
    assert_eq!(resolve(&client(), &registry.name("app")).await.unwrap_err().kind(), ErrorKind::Malformed);

    let huge = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":99999999999}},"layers":[]}}"#,
        digest_of(b"x")
    );
    let registry = documents(vec![(OCI_MANIFEST, huge.into_bytes())]).await;
    assert_eq!(resolve(&client(), &registry.name("app")).await.unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(registry.count("blobs"), 0, "what is declared too large is not asked for");
}

#[tokio::test]
async fn what_is_no_runnable_image_is_told_by_type() {
    let with = |config_type: &str, layer_type: &str, more: &str| {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}"{more},"config":{},"layers":[{}]}}"#,
            descriptor(config_type, b"{}"),
            descriptor(layer_type, b"layer")
        )
        .into_bytes()
    };
    let config = "application/vnd.oci.image.config.v1+json";
    for (manifest, kind) in [
        (with("application/vnd.cncf.helm.config.v1+json", OCI_LAYER, ""), ErrorKind::Artifact),
        (with(config, OCI_LAYER, r#","artifactType":"application/x""#), ErrorKind::Artifact),
        (with(config, "text/plain", ""), ErrorKind::Unsupported),
        // A configuration without diff ids for a manifest with one layer.
        (with(config, OCI_LAYER, ""), ErrorKind::Malformed),
    ] {
        let registry = documents(vec![(OCI_MANIFEST, manifest), ("text/plain", b"{}".to_vec())]).await;
        let error = resolve(&client(), &registry.name("app")).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error:?}");
    }
}

fn client_with(registries_conf: &str) -> (tempfile::TempDir, Client) {
    use std::io::Write as _;
    let directory = tempfile::tempdir().unwrap();
    let mut file = std::fs::File::create(directory.path().join("registries.conf")).unwrap();
    file.write_all(registries_conf.as_bytes()).unwrap();
    let (client, warnings) = Client::new(&options(directory.path())).unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    (directory, client)
}

#[tokio::test]
async fn mirrors_come_first_and_see_no_login() {
    let image = TestImage::of_size(10);
    let served = image.clone();
    let mirror = TestRegistry::start(move |seen| match seen.header("authorization") {
        None if seen.target.starts_with("/v2/cache") => {
            served.reply(&Seen { target: seen.target.replace("/v2/cache/team/", "/v2/"), ..seen.clone() })
        }
        _ => Reply::new(404, ""),
    })
    .await;
    let served = image.clone();
    let registry = TestRegistry::start(move |seen| match seen.header("authorization") {
        Some("Basic dTpw") => served.reply(seen),
        _ => Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\""),
    })
    .await;
    let conf = |mirror: &str| {
        format!(
            "[[registry]]\nprefix = \"example.test/team\"\nlocation = \"{}\"\ninsecure = true\n\
             [[registry.mirror]]\nlocation = \"{mirror}/cache/team\"\ninsecure = true\n",
            registry.address
        )
    };
    // The login is for example.test; the location that stands for it is another host and does not get it either.
    let (_directory, client) = client_with(&conf(&mirror.address.to_string()));
    let resolved = resolve_as(&client, "example.test/team/app:v1", &password("u", "p")).await.unwrap();
    assert_eq!(resolved.names[0].to_string(), "example.test/team/app:v1");
    let (_, end) = drain(client.open_blob(&resolved, &resolved.layers[0]).await.unwrap()).await;
    end.unwrap();
    assert!(mirror.count("/v2/cache/team/app") >= 3 && registry.seen().is_empty());
    assert!(mirror.seen().iter().all(|seen| seen.header("authorization").is_none()));

    let error = resolve_as(&client, "example.test/team/absent:v1", &password("u", "p")).await.unwrap_err();
    let ResolveError::WithMirrors { mirrors, source } = &error else { panic!("{error:?}") };
    assert_eq!((mirrors[0].1.kind(), source.kind()), (ErrorKind::NotFound, ErrorKind::Unauthorized));
    assert!(registry.seen().iter().all(|seen| seen.header("authorization").is_none()));

    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (_directory, client) = client_with(&format!(
        "[[registry]]\nlocation = \"{}\"\ninsecure = true\n[[registry.mirror]]\nlocation = \"{closed}\"\n",
        registry.address
    ));
    resolve_as(&client, &registry.name("app"), &password("u", "p")).await.unwrap();
}

#[tokio::test]
async fn unreachable_and_blocked_registries_are_told_apart() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = resolve(&client(), &format!("{closed}/app")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error:?}");
    assert!(error.kind().is_registry_unavailable());
    let (_directory, client) = client_with("[[registry]]\nlocation = \"bad.test\"\nblocked = true\n");
    let error = resolve(&client, "bad.test/app").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Blocked);
    assert!(error.to_string().contains("blocked"), "{error}");
    let silent = TestRegistry::start(|_| Reply::body(Body::Stalled { declared: 5, bytes: vec![] })).await;
    let error = resolve(&client_quick(), &silent.name("app")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error:?}");
}

fn client_quick() -> Client {
    let mut options = options(std::path::Path::new("/nonexistent"));
    options.retry.attempts = 1;
    Client::new(&options).unwrap().0
}

#[tokio::test]
async fn plain_http_needs_permission() {
    let image = TestImage::of_size(10);
    let registry = TestRegistry::start(move |seen| image.reply(seen)).await;
    let mut options = options(std::path::Path::new("/nonexistent"));
    options.loopback = image_pull::LoopbackTrust::Verified;
    let client = Client::new(&options).unwrap().0;
    let error = resolve(&client, &registry.name("app")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RegistryUnavailable, "{error:?}");
    assert_eq!(registry.seen().len(), 0, "no request in the clear");
}

#[tokio::test]
async fn a_registry_that_restarts_is_waited_for() {
    let image = TestImage::of_size(200_000);
    let served = image.clone();
    let first = TestRegistry::start(move |seen| match is_layer(&served, seen) {
        true => Reply::body(Body::Stalled { declared: 200_000, bytes: served.layer[..50_000].to_vec() }),
        false => served.reply(seen),
    })
    .await;
    let mut patient = options(std::path::Path::new("/nonexistent"));
    patient.retry.attempts = 40;
    let client = Client::new(&patient).unwrap().0;
    let resolved = resolve(&client, &first.name("app")).await.unwrap();
    let mut stream = client.open_blob(&resolved, &resolved.layers[0]).await.unwrap();
    let mut bytes = stream.next_chunk().await.unwrap().unwrap().to_vec();
    let address = first.address;
    drop(first);
    let (served, restart) = (image.clone(), async {
        tokio::time::sleep(Duration::from_millis(700)).await;
    });
    let second = async move {
        restart.await;
        TestRegistry::start_at(address, move |seen| {
            let from = range_start(seen).unwrap();
            let mut reply = Reply::new(206, served.layer[from..].to_vec());
            reply.headers.push(("Content-Range".into(), format!("bytes {from}-199999/200000")));
            reply
        })
        .await
    };
    let second = tokio::spawn(second);
    while let Some(chunk) = stream.next_chunk().await {
        bytes.extend_from_slice(&chunk.unwrap());
    }
    assert!(bytes == image.layer, "resumed bytes differ");
    assert_eq!(second.await.unwrap().seen().len(), 1);
}

#[tokio::test]
async fn plain_requests_go_through_a_proxy_with_its_login() {
    let image = TestImage::of_size(1000);
    let served = image.clone();
    let proxy = TestRegistry::start(move |seen| {
        if seen.header("proxy-authorization") != Some("Basic cDpx") {
            return Reply::new(407, "");
        }
        match seen.target.strip_prefix("http://registry.test") {
            Some(target) => served.reply(&Seen { target: target.to_owned(), ..seen.clone() }),
            None => Reply::new(405, ""),
        }
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    std::io::Write::write_all(
        &mut std::fs::File::create(directory.path().join("registries.conf")).unwrap(),
        b"[[registry]]\nlocation = \"registry.test\"\ninsecure = true\n",
    )
    .unwrap();
    let mut options = options(directory.path());
    options.proxy.http = format!("http://p:q@{}", proxy.address);
    options.proxy.https = options.proxy.http.clone();
    let client = Client::new(&options).unwrap().0;
    let resolved = resolve(&client, "registry.test/app").await.unwrap();
    let (bytes, end) = drain(client.open_blob(&resolved, &resolved.layers[0]).await.unwrap()).await;
    end.unwrap();
    assert_eq!(bytes, image.layer);
    assert_eq!(proxy.seen()[0].target, "registry.test:443", "TLS was tried first, by CONNECT");
    options.proxy.https = format!("http://wrong@{}", proxy.address);
    options.proxy.http.clear();
    std::fs::remove_file(directory.path().join("registries.conf")).unwrap();
    let client = Client::new(&options).unwrap().0;
    let error = resolve(&client, "registry.test/app").await.unwrap_err();
    assert!(format!("{error:?}").contains("407") && error.kind().is_registry_unavailable(), "{error:?}");
}
