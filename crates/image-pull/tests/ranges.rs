//! Many parts of one blob, from registries that serve several at once, badly, one at a time, or none.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Body, Reply, Seen, TestImage, TestRegistry, client, digest_of, drain, resolve};
use image_pull::BlobError;

const SIZE: usize = 600_000;

fn asked(seen: &Seen) -> Vec<Range<usize>> {
    let Some(list) = seen.header("range").and_then(|text| text.strip_prefix("bytes=")) else { return Vec::new() };
    list.split(',')
        .map(|part| {
            let (first, last) = part.split_once('-').unwrap();
            first.parse().unwrap()..last.parse::<usize>().map_or(SIZE, |last| last + 1)
        })
        .collect()
}

fn one(layer: &[u8], range: &Range<usize>) -> Reply {
    let bytes = layer[range.clone()].to_vec();
    let mut reply = Reply::body(Body::Truncated { declared: bytes.len(), bytes });
    reply.status = 206;
    reply.with("Content-Range", format!("bytes {}-{}/{}", range.start, range.end - 1, layer.len()))
}

fn several(layer: &[u8], ranges: &[Range<usize>], most: usize) -> Reply {
    let mut body = Vec::new();
    for range in ranges {
        let (first, last) = (range.start, range.end - 1);
        body.extend(format!("\r\n--B\r\nContent-Range: bytes {first}-{last}/{}\r\n\r\n", layer.len()).into_bytes());
        body.extend_from_slice(&layer[range.clone()]);
    }
    body.extend_from_slice(b"\r\n--B--\r\n");
    let declared = body.len();
    body.truncate(most);
    let mut reply = Reply::body(Body::Truncated { declared, bytes: body });
    reply.status = 206;
    reply.with("Content-Type", "multipart/byteranges; boundary=B".to_owned())
}

/// How a registry serves parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Serves {
    Several,
    SeveralButBreaks,
    SeveralButInAnotherOrder,
    TheFirstOnly,
    One,
    OneAndRefusesMore,
    None,
}

fn reply(serves: Serves, layer: &[u8], seen: &Seen) -> Reply {
    let asked = asked(seen);
    match (serves, asked.len()) {
        (Serves::None, _) | (Serves::One, 2..) | (_, 0) => Reply::new(200, layer.to_vec()),
        (Serves::OneAndRefusesMore, 2..) => Reply::new(416, ""),
        (Serves::TheFirstOnly, 2..) | (_, 1) => one(layer, &asked[0]),
        (Serves::SeveralButBreaks, _) => several(layer, &asked, 20_000),
        (Serves::SeveralButInAnotherOrder, _) => {
            several(layer, &asked.into_iter().rev().collect::<Vec<_>>(), usize::MAX)
        }
        (_, _) => several(layer, &asked, usize::MAX),
    }
}

#[tokio::test]
async fn every_part_comes_and_nothing_else() {
    let ranges: Vec<Range<u64>> =
        (0..149).map(|index| index * 4001 + 10..index * 4001 + 900).chain(std::iter::once(599_000..599_999)).collect();
    let image = TestImage::of_size(SIZE);
    let bytes_of = |ranges: &[Range<u64>]| -> Vec<u8> {
        ranges.iter().flat_map(|range| image.layer[range.start as usize..range.end as usize].to_vec()).collect()
    };
    for (serves, most) in [
        (Serves::Several, 3),
        (Serves::SeveralButBreaks, 8),
        (Serves::SeveralButInAnotherOrder, 8),
        (Serves::TheFirstOnly, 4),
        (Serves::One, 4),
        (Serves::OneAndRefusesMore, 4),
        (Serves::None, 2),
    ] {
        let served = image.clone();
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&requests);
        let registry = TestRegistry::start(move |seen| {
            if !seen.target.ends_with(digest_of(&served.layer).as_str()) {
                return served.reply(seen);
            }
            counted.fetch_add(1, Ordering::Relaxed);
            reply(serves, &served.layer, seen)
        })
        .await;
        let client = client();
        let resolved = resolve(&client, &registry.name("app")).await.unwrap();
        let layer = &resolved.layers[0];
        let opened = client.open_ranges(&resolved, layer, ranges.clone()).await;
        if serves == Serves::None {
            assert!(matches!(opened, Err(BlobError::NoRanges { .. })), "{opened:?}");
        } else {
            let (bytes, end) = drain(opened.unwrap()).await;
            end.unwrap_or_else(|error| panic!("{serves:?}: {error:?}"));
            assert!(bytes == bytes_of(&ranges), "{serves:?}");
        }
        let requests = requests.load(Ordering::Relaxed);
        assert!(requests <= most, "{serves:?}: {requests} requests");
        let wrong = [5..5, 0..0, 7..SIZE as u64 + 1];
        for range in wrong {
            let refused = client.open_ranges(&resolved, layer, vec![range]).await;
            assert!(matches!(refused, Err(BlobError::BadRange { .. })), "{refused:?}");
        }
        let refused = client.open_ranges(&resolved, layer, vec![0..10, 9..20]).await;
        assert!(matches!(refused, Err(BlobError::BadRange { .. })), "{refused:?}");
    }
}
