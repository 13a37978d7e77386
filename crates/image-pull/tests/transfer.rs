//! Parts of blobs, places that fail halfway, and what is slow told from what has stopped.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Body, Reply, Seen, TestImage, TestRegistry, client, digest_of, drain, options, resolve};
use image_pull::{BlobError, Client, ErrorKind};

fn is_layer(image: &TestImage, seen: &Seen) -> bool {
    seen.target.ends_with(digest_of(&image.layer).as_str())
}

/// First byte and, if there is one, last byte of the part asked for.
fn part(seen: &Seen) -> Option<(usize, Option<usize>)> {
    let (first, last) = seen.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
    Some((first.parse().unwrap(), last.parse().ok()))
}

/// Answers with the part asked for, of which at most `most` bytes are sent.
fn partial(layer: &[u8], seen: &Seen, most: usize) -> Reply {
    let (first, last) = part(seen).unwrap_or((0, None));
    let last = last.unwrap_or(layer.len() - 1);
    let wanted = &layer[first..=last];
    let mut reply =
        Reply::body(Body::Truncated { declared: wanted.len(), bytes: wanted[..most.min(wanted.len())].to_vec() });
    if part(seen).is_some() {
        reply.status = 206;
        reply = reply.with("Content-Range", format!("bytes {first}-{last}/{}", layer.len()));
    }
    reply
}

#[tokio::test]
async fn parts_of_a_blob_are_exact_and_resumed() {
    let image = TestImage::of_size(300_000);
    let served = image.clone();
    let registry = TestRegistry::start(move |seen| match is_layer(&served, seen) {
        true => partial(&served.layer, seen, 40_000),
        false => served.reply(seen),
    })
    .await;
    let client = client();
    let resolved = resolve(&client, &registry.name("app")).await.unwrap();
    let layer = &resolved.layers[0];
    for range in [0..1, 5..70_000, 200_000..300_000, 0..100_000] {
        let stream = client.open_range(&resolved, layer, range.clone()).await.unwrap();
        assert_eq!(stream.size(), range.end - range.start);
        let (bytes, end) = drain(stream).await;
        end.unwrap();
        let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        assert!(bytes == image.layer[range.clone()], "{range:?}");
    }
    let asked: Vec<_> = registry.seen().iter().filter_map(part).collect();
    assert!(asked.contains(&(5, Some(69_999))) && asked.contains(&(40_005, Some(69_999))), "{asked:?}");
    for range in [0..0, 5..300_001, 7..7] {
        let refused = client.open_range(&resolved, layer, range).await;
        assert!(matches!(refused, Err(BlobError::BadRange { .. })));
    }
}

#[tokio::test]
async fn a_registry_without_parts_says_so() {
    let image = TestImage::of_size(1000);
    let served = image.clone();
    let registry = TestRegistry::start(move |seen| served.reply(seen)).await;
    let client = client();
    let resolved = resolve(&client, &registry.name("app")).await.unwrap();
    let refused = client.open_range(&resolved, &resolved.layers[0], 1..10).await;
    assert!(matches!(refused, Err(BlobError::NoRanges { .. })), "{refused:?}");
}

fn client_with(registries_conf: &str, adjust: fn(&mut image_pull::ClientOptions)) -> (tempfile::TempDir, Client) {
    let directory = tempfile::tempdir().unwrap();
    std::io::Write::write_all(
        &mut std::fs::File::create(directory.path().join("registries.conf")).unwrap(),
        registries_conf.as_bytes(),
    )
    .unwrap();
    let mut options = options(directory.path());
    adjust(&mut options);
    let client = Client::new(&options).unwrap().0;
    (directory, client)
}

#[tokio::test]
async fn a_mirror_that_fails_halfway_is_left_for_the_next_place() {
    type Fails = fn(&TestImage, &Seen) -> Reply;
    // What the mirror does with a layer, how often it is asked for it, and from where on the registry is.
    let ways: [(Fails, usize, Option<usize>); 3] = [
        (|_, _| Reply::new(404, ""), 1, None),
        (|image, seen| partial(&image.layer, seen, 100_000 * usize::from(part(seen).is_none())), 4, Some(100_000)),
        (|image, _| Reply::new(200, [&image.layer[..], b"x"].concat()), 1, None),
    ];
    for (fails, times, from) in ways {
        let image = TestImage::of_size(300_000);
        let (at_mirror, at_home) = (image.clone(), image.clone());
        let mirror = TestRegistry::start(move |seen| match is_layer(&at_mirror, seen) {
            true => fails(&at_mirror, seen),
            false => at_mirror.reply(seen),
        })
        .await;
        // The first request at home breaks too: the registry has attempts of its own.
        let calls = AtomicUsize::new(0);
        let home = TestRegistry::start(move |seen| match is_layer(&at_home, seen) {
            true if calls.fetch_add(1, Ordering::SeqCst) == 0 => partial(&at_home.layer, seen, 0),
            true => partial(&at_home.layer, seen, usize::MAX),
            false => at_home.reply(seen),
        })
        .await;
        let conf = format!(
            "[[registry]]\nlocation=\"{}\"\n[[registry.mirror]]\nlocation=\"{}\"\n",
            home.address, mirror.address
        );
        let (_directory, client) = client_with(&conf, |_| {});
        let resolved = resolve(&client, &home.name("app")).await.unwrap();
        assert_eq!(home.count("manifests"), 0, "the mirror has the manifest");
        let stream = client.open_blob(&resolved, &resolved.layers[0]).await.unwrap();
        let progress = stream.progress();
        let (bytes, end) = drain(stream).await;
        end.unwrap();
        assert!(bytes == image.layer);
        assert_eq!(progress.place(), home.name("app"));
        assert_eq!(mirror.seen().iter().filter(|seen| is_layer(&image, seen)).count(), times);
        let asked: Vec<_> = home.seen().iter().filter(|seen| is_layer(&image, seen)).map(part).collect();
        assert_eq!(asked, [from.map(|from| (from, None)); 2]);
    }
}

#[tokio::test]
async fn slow_is_waited_for_and_stopped_is_not() {
    let limit = Duration::from_millis(400);
    let adjust: fn(&mut image_pull::ClientOptions) = |options| {
        options.timeouts.progress = Some(Duration::from_millis(400));
        options.timeouts.stall = Duration::from_secs(60);
    };
    let (_directory, client) = client_with("", adjust);
    let image = TestImage::of_size(20_000);
    // Ten pieces, together far longer than the limit.
    let slow = image.clone();
    let registry = TestRegistry::start(move |seen| match is_layer(&slow, seen) {
        true => Reply::body(Body::Slow { bytes: slow.layer.clone(), piece: 2000, pause: Duration::from_millis(90) }),
        false => slow.reply(seen),
    })
    .await;
    let resolved = resolve(&client, &registry.name("app")).await.unwrap();
    let begun = Instant::now();
    let (bytes, end) = drain(client.open_blob(&resolved, &resolved.layers[0]).await.unwrap()).await;
    end.unwrap();
    assert!(bytes == image.layer && begun.elapsed() > limit * 2);
    assert_eq!(registry.seen().iter().filter(|seen| is_layer(&image, seen)).count(), 1);
    // Stopped: one more connection is tried, and then it is over.
    let (stopped, resumed) = (image.clone(), Arc::new(AtomicUsize::new(0)));
    let counter = Arc::clone(&resumed);
    let registry = TestRegistry::start(move |seen| {
        if !is_layer(&stopped, seen) {
            return stopped.reply(seen);
        }
        let bytes = if counter.fetch_add(1, Ordering::SeqCst) == 0 { stopped.layer[..5000].to_vec() } else { vec![] };
        let mut reply = Reply::body(Body::Stalled { declared: 20_000 - part(seen).map_or(0, |part| part.0), bytes });
        if let Some((first, _)) = part(seen) {
            reply.status = 206;
            reply = reply.with("Content-Range", format!("bytes {first}-19999/20000"));
        }
        reply
    })
    .await;
    let resolved = resolve(&client, &registry.name("app")).await.unwrap();
    let begun = Instant::now();
    let (bytes, end) = drain(client.open_blob(&resolved, &resolved.layers[0]).await.unwrap()).await;
    let error = end.unwrap_err();
    assert!(matches!(error, BlobError::NoProgress { received: 5000, .. }), "{error:?}");
    assert_eq!((bytes.len(), error.kind()), (5000, ErrorKind::TimedOut));
    assert!(begun.elapsed() < limit * 3, "{:?}", begun.elapsed());
    assert!(resumed.load(Ordering::SeqCst) >= 2, "a connection that may have lost its peer is tried anew");
}

#[tokio::test]
async fn what_came_slowly_is_not_fetched_again() {
    let directory = tempfile::tempdir().unwrap();
    let kept = directory.path().join("kept");
    let keeping = image_pull::PartialOptions { directory: kept.clone(), slower_than: u64::MAX, at_least: 1 << 20 };
    let mut options = options(directory.path());
    options.partial = Some(keeping);
    options.retry.attempts = 1;
    let image = TestImage::of_size(8 << 20);
    let (served, is_mended) = (image.clone(), Arc::new(AtomicUsize::new(0)));
    let mended = Arc::clone(&is_mended);
    let registry = TestRegistry::start(move |seen| match is_layer(&served, seen) {
        true => partial(&served.layer, seen, if mended.load(Ordering::SeqCst) == 0 { 5 << 20 } else { usize::MAX }),
        false => served.reply(seen),
    })
    .await;
    let digest = digest_of(&image.layer);
    let open = async || {
        // Another client each time, as after a restart.
        let client = Client::new(&options).unwrap().0;
        let resolved = resolve(&client, &registry.name("app")).await.unwrap();
        let stream = client.open_blob(&resolved, &resolved.layers[0]).await;
        (client, stream)
    };
    let (_, stream) = open().await;
    let (bytes, end) = drain(stream.unwrap()).await;
    assert!(end.is_err() && bytes.len() == 5 << 20);
    is_mended.store(1, Ordering::SeqCst);
    let (client, stream) = open().await;
    let stream = stream.unwrap();
    assert_eq!(stream.kept(), 5 << 20);
    let (bytes, end) = drain(stream).await;
    end.unwrap();
    assert!(bytes == image.layer);
    let asked: Vec<_> = registry.seen().iter().filter(|seen| is_layer(&image, seen)).map(part).collect();
    assert_eq!(asked, [None, Some((5 << 20, None))]);
    // Complete, but not yet in its place: nothing is asked for at all.
    drop(client);
    let (client, stream) = open().await;
    let stream = stream.unwrap();
    assert_eq!(stream.kept(), 8 << 20);
    let (bytes, end) = drain(stream).await;
    end.unwrap();
    assert!(bytes == image.layer && registry.seen().iter().filter(|seen| is_layer(&image, seen)).count() == 2);
    client.forget_partial(&digest).await;
    let (_, stream) = open().await;
    assert_eq!(stream.unwrap().kept(), 0);
    assert_eq!(std::fs::read_dir(&kept).unwrap().count(), 0);
}
