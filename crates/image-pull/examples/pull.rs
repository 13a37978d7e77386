//! Reads an image to nowhere and says how fast: `pull SOURCE [PARALLEL]`. Loopback registries may speak plain HTTP.
#![forbid(unsafe_code)]

use std::time::Instant;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use image_pull::auth::{AuthFiles, EnvironmentPaths};
use image_pull::{Client, ClientOptions, Credentials, LoopbackTrust, Platform, ProxyOptions, Source};

type AnyError = Box<dyn std::error::Error>;

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), AnyError> {
    let mut arguments = std::env::args().skip(1);
    let source = Source::parse(&arguments.next().ok_or("usage: pull SOURCE [PARALLEL]")?)?;
    let parallel = arguments.next().map_or(Ok(1), |count| count.parse())?;
    let (client, warnings) = Client::new(&ClientOptions {
        loopback: LoopbackTrust::Insecure,
        proxy: ProxyOptions::from_environment(),
        ..ClientOptions::default()
    })?;
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
    let credentials = Credentials::Files(AuthFiles::standard(&EnvironmentPaths::from_environment()));
    let image = client.resolve(&source, &credentials, &Platform::host()).await?;
    println!(
        "{} {} layers {}",
        image.configuration.served().map(|blob| blob.digest.to_string()).unwrap_or_default(),
        image.media_type,
        image.layers.len()
    );
    let begun = Instant::now();
    let reads = image.layers.iter().map(|layer| async {
        let mut stream = client.open_blob(&image, layer).await?;
        let mut chunks = 0_u64;
        while let Some(chunk) = stream.next_chunk().await {
            chunk?;
            chunks += 1;
        }
        Ok::<_, image_pull::BlobError>((stream.progress().bytes(), chunks))
    });
    let done: Vec<(u64, u64)> = stream::iter(reads).buffer_unordered(parallel).try_collect().await?;
    let (bytes, chunks) = done.iter().fold((0, 0), |(bytes, chunks), more| (bytes + more.0, chunks + more.1));
    let took = begun.elapsed();
    println!("{bytes} bytes in {chunks} chunks, {took:?}, {} MB/s", u128::from(bytes) / took.as_micros().max(1));
    for line in std::fs::read_to_string("/proc/self/status")?.lines() {
        if line.starts_with("VmHWM") || line.starts_with("VmRSS") || line.starts_with("RssAnon") {
            println!("{line}");
        }
    }
    Ok(())
}
