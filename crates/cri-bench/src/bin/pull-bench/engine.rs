//! The engines: what one pull is, and how its image goes away again.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cri_api::v1::image_service_client::ImageServiceClient;
use cri_api::v1::{ImageSpec, PullImageRequest, RemoveImageRequest};
use tonic::transport::{Channel, Endpoint};

use crate::Failure;
use crate::process::{self, Watch};

/// No engine needs half an hour from the same machine.
const TIMEOUT: Duration = Duration::from_secs(1800);
/// How exactly the end of a program is noticed.
const POLL: Duration = Duration::from_millis(1);

/// One pull.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
    pub(crate) peak_kib: u64,
    /// How long it took to write out what the pull left in memory only.
    pub(crate) flush: Duration,
}

/// Somebody who pulls images.
pub(crate) enum Engine {
    /// Through its socket.
    Cri { name: &'static str, pid: u32, service: Box<ImageServiceClient<Channel>>, runtime: tokio::runtime::Runtime },
    /// A program, into a store below a directory.
    Skopeo { store: PathBuf },
}

impl Engine {
    pub(crate) fn connect(name: &'static str, endpoint: &str, pid: u32) -> Result<Self, Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure(format!("{name}: connect to {endpoint}: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Failure::new("start the runtime"))?;
        let endpoint = Endpoint::from_shared(endpoint.to_owned()).map_err(|error| failed(&error))?;
        let channel = runtime.block_on(endpoint.connect()).map_err(|error| failed(&error))?;
        Ok(Self::Cri { name, pid, service: Box::new(ImageServiceClient::new(channel)), runtime })
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Cri { name, .. } => name,
            Self::Skopeo { .. } => "skopeo",
        }
    }

    /// Pulls an image that is not there, and takes it away again.
    pub(crate) fn measure(&mut self, image: &str) -> Result<Sample, Failure> {
        // What others have written must not be waited for by whoever comes next.
        rustix::fs::sync();
        let (wall, cpu, peak_kib) = match self {
            Self::Cri { name, pid, service, runtime } => {
                process::reset_peak(*pid)?;
                let before = process::cpu(*pid)?;
                let watch = Watch::start(*pid);
                let mut request =
                    tonic::Request::new(PullImageRequest { image: Some(spec(image)), ..Default::default() });
                request.set_timeout(TIMEOUT);
                let begun = Instant::now();
                let pulled = runtime.block_on(service.pull_image(request));
                let wall = begun.elapsed();
                let peak = watch.finish();
                pulled.map_err(|status| Failure(format!("{name}: pull {image}: {}", status.message())))?;
                (wall, process::cpu(*pid)?.saturating_sub(before), peak)
            }
            Self::Skopeo { store } => copy(store, image)?,
        };
        let begun = Instant::now();
        rustix::fs::sync();
        let flush = begun.elapsed();
        self.remove(image)?;
        Ok(Sample { wall, cpu, peak_kib, flush })
    }

    /// Takes an image away; none is fine.
    pub(crate) fn remove(&mut self, image: &str) -> Result<(), Failure> {
        match self {
            Self::Cri { name, service, runtime, .. } => runtime
                .block_on(service.remove_image(RemoveImageRequest { image: Some(spec(image)) }))
                .map(drop)
                .map_err(|status| Failure(format!("{name}: remove {image}: {}", status.message()))),
            Self::Skopeo { store } => match std::fs::remove_dir_all(&*store) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Failure::new(store.display())(error)),
                _ => Ok(()),
            },
        }
    }
}

fn spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.to_owned(), ..Default::default() }
}

fn copy(store: &Path, image: &str) -> Result<(Duration, Duration, u64), Failure> {
    let (root, run) = (store.join("root"), store.join("run"));
    let target = format!("containers-storage:[overlay@{}+{}]{image}", root.display(), run.display());
    let begun = Instant::now();
    let mut child = Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"])
        .arg(format!("docker://{image}"))
        .arg(target)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(Failure::new("start skopeo"))?;
    let watch = Watch::start(child.id());
    // Not waited for at once: what it has used is known only as long as it is there.
    while !process::has_ended(child.id()) {
        std::thread::sleep(POLL);
    }
    let wall = begun.elapsed();
    let peak = watch.finish();
    let cpu = process::cpu(child.id())?;
    let status = child.wait().map_err(Failure::new("wait for skopeo"))?;
    // The overlay driver keeps a mount on its directory.
    if let Err(error) = rustix::mount::unmount(root.join("overlay"), rustix::mount::UnmountFlags::DETACH)
        && error != rustix::io::Errno::INVAL
        && error != rustix::io::Errno::NOENT
    {
        return Err(Failure::new(root.display())(error.into()));
    }
    if !status.success() {
        return Err(Failure(format!("skopeo: pull {image}: {status}")));
    }
    Ok((wall, cpu, peak))
}
