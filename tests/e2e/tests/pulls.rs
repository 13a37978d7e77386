//! Pulls at the same time, cut short, gone on with, in another cgroup; and who is told of them.
#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cri_api::v1;
use e2e::image::{Archive, Compression, Format, Image, Recipe};
use e2e::registry::{Access, PASSWORD, USER};
use e2e::{Cri, Setup, World, scenario, tools};
use tonic::Code;

const PORT: u16 = 5002;
/// What the registry sends at a time.
const PIECE_BYTES: usize = 64 << 10;
/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(60);

/// A registry of some images that counts who asks for what, and takes its time.
struct Slow {
    host: String,
    /// Target and, if there is one, first byte of each request for a blob.
    asked: Arc<Mutex<Vec<(String, u64)>>>,
    /// Milliseconds between two pieces.
    pause: Arc<AtomicU64>,
}

impl Slow {
    fn start(world: &World, images: Vec<(&'static str, Image)>, pause: u64) -> Self {
        let host = format!("127.0.0.1:{PORT}");
        let listener = world.in_network(|| TcpListener::bind(&host)).expect("listen");
        let (asked, pause) = (Arc::<Mutex<Vec<_>>>::default(), Arc::new(AtomicU64::new(pause)));
        let shared = Arc::new((images, Arc::clone(&asked), Arc::clone(&pause)));
        // Ends with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || drop(answer(stream, &shared.0, &shared.1, &shared.2)));
            }
        });
        Self { host, asked, pause }
    }

    fn name(&self, repository: &str) -> String {
        format!("{}/{repository}:1", self.host)
    }

    /// The first bytes that were asked for of a layer, one for each request.
    fn asked(&self, layer: &[u8]) -> Vec<u64> {
        let digest = e2e::image::digest(layer);
        let asked = self.asked.lock().expect("a log");
        asked.iter().filter(|(target, _)| target.ends_with(&digest)).map(|(_, first)| *first).collect()
    }

    fn hurry(&self) {
        self.pause.store(0, Ordering::Relaxed);
    }
}

fn answer(
    mut stream: TcpStream,
    images: &[(&'static str, Image)],
    asked: &Mutex<Vec<(String, u64)>>,
    pause: &AtomicU64,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut first = None;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        let lower = line.to_ascii_lowercase();
        first = first.or_else(|| lower.strip_prefix("range: bytes=")?.split('-').next()?.parse::<usize>().ok());
        line.clear();
    }
    let target = request.split(' ').nth(1).unwrap_or_default();
    let image = images.iter().find(|(repository, _)| target.starts_with(&format!("/v2/{repository}/")));
    let (kind, body, is_layer) = match image {
        None if target == "/v2/" => ("application/json", &b"{}"[..], false),
        None => return stream.write_all(b"HTTP/1.1 404 X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
        Some((_, image)) if target.contains("/manifests/") => {
            (image.format.manifest_type(), &image.manifest[..], false)
        }
        Some((_, image)) => {
            let layer = image.layers.iter().find(|layer| target.ends_with(&e2e::image::digest(layer)));
            ("application/octet-stream", layer.map_or(&image.config[..], Vec::as_slice), layer.is_some())
        }
    };
    if is_layer {
        asked.lock().expect("a log").push((target.to_owned(), first.unwrap_or(0) as u64));
    }
    let (status, range) = match first {
        Some(first) => ("206 X", format!("Content-Range: bytes {first}-{}/{}\r\n", body.len() - 1, body.len())),
        None => ("200 X", String::new()),
    };
    let rest = &body[first.unwrap_or(0)..];
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{range}Content-Length: {}\r\nConnection: close\r\n\r\n",
        rest.len()
    );
    stream.write_all(head.as_bytes())?;
    for piece in rest.chunks(PIECE_BYTES) {
        stream.write_all(piece)?;
        if is_layer {
            std::thread::sleep(Duration::from_millis(pause.load(Ordering::Relaxed)));
        }
    }
    Ok(())
}

/// A tar of one file whose content does not repeat.
fn noise(name: &str, bytes: u32, seed: u32) -> Vec<u8> {
    let word = |n: u32| n.wrapping_add(seed).wrapping_mul(2_654_435_761).rotate_left(n % 31).to_le_bytes();
    let content: Vec<u8> = (0..bytes / 4).flat_map(word).collect();
    Archive::default().file(name, 0o644, &content).finish()
}

fn image(layers: &[&Vec<u8>]) -> Image {
    let recipe = Recipe::new(Format::Oci);
    layers.iter().fold(recipe, |recipe, layer| recipe.layer((*layer).clone(), Compression::None)).build()
}

fn pull(cri: &Cri, name: String) -> tokio::task::JoinHandle<Result<String, tonic::Status>> {
    let cri = cri.clone();
    tokio::spawn(async move { cri.pull(&name).await })
}

fn status(world: &World, what: &str) -> String {
    let mut command = world.command(e2e::world::binary("crio"));
    tools::run(command.arg("status").arg("--socket").arg(world.path("crio.sock")).arg(what))
}

#[test]
fn equal_pulls_and_equal_layers_are_transferred_once() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let [base, top, other] = [("base", 1), ("top", 2), ("other", 3)].map(|(name, seed)| noise(name, 3 << 20, seed));
        let images = vec![
            ("one", image(&[&base, &top])),
            // The same base.
            ("two", image(&[&base, &other])),
            // The same layers on others.
            ("three", image(&[&other, &top, &base])),
        ];
        let slow = Slow::start(world, images.clone(), 20);
        let equal = (0..10).map(|_| pull(&cri, slow.name("one")));
        let mut pulls: Vec<_> = equal.collect();
        pulls.extend(["two", "three"].map(|repository| pull(&cri, slow.name(repository))));
        let mut seen = String::new();
        while !pulls.iter().all(tokio::task::JoinHandle::is_finished) {
            let now = status(world, "pulls");
            if now.contains("fetching") && now.contains("shared") {
                seen = now;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for pull in pulls {
            pull.await.expect("a task").expect("PullImage");
        }
        for layer in [&base, &top, &other] {
            assert_eq!(slow.asked(layer), [0], "each layer once");
        }
        for (repository, image) in &images {
            assert_eq!(cri.image(&slow.name(repository)).await.map(|found| found.id), Some(image.id()));
        }
        let from = format!("from {}/", slow.host);
        assert!(seen.contains(&from) && seen.contains("/s, "), "what it told while it was pulling: {seen:?}");
        assert_eq!(status(world, "pulls"), "no pulls\n");
        // What is copied is whole: another tool reads every byte of it.
        let copied = world.path("copied");
        let storage = format!(
            "containers-storage:[overlay@{}/storage+{0}/run]{}",
            world.path("").display().to_string().trim_end_matches('/'),
            slow.name("three")
        );
        tools::run(world.command("skopeo").args(["copy", "-q", &storage]).arg(format!("dir:{}", copied.display())));
        assert_eq!(tools::names(world.path("tmp/crio-partial-layers")), Vec::<String>::new());
    });
}

#[test]
fn what_has_come_is_not_fetched_again_after_a_restart() {
    scenario(Setup::default(), async |world| {
        let (small, big) = (noise("small", 1 << 20, 4), noise("big", 40 << 20, 5));
        let slow = Slow::start(world, vec![("app", image(&[&small, &big]))], 10);
        let cri = world.cri();
        let name = slow.name("app");
        let pulling = pull(&cri, name.clone());
        let is_half = async || {
            let progress = cri.pull_progress(&name).await.unwrap_or_default();
            progress.layers == 1 && progress.bytes > 12 << 20
        };
        let deadline = std::time::Instant::now() + LIMIT;
        while !is_half().await {
            assert!(!pulling.is_finished() && std::time::Instant::now() < deadline, "it does not come half the way");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        world.kill_daemon();
        assert!(pulling.await.expect("a task").is_err());
        world.start_daemon().await;
        slow.hurry();
        world.cri().pull(&name).await.expect("PullImage");
        assert_eq!(slow.asked(&small), [0], "a layer that was complete");
        let asked = slow.asked(&big);
        assert!(asked.len() == 2 && asked[1] > 8 << 20, "{asked:?}");
        assert_eq!(tools::names(world.path("tmp/crio-partial-layers")), Vec::<String>::new());
        // The client goes: so does the pull, and what was whole is found by the next.
        world.cri().remove_image(&name).await.expect("RemoveImage");
        slow.pause.store(10, Ordering::Relaxed);
        let pulling = pull(&cri, name.clone());
        while !is_half().await {
            assert!(!pulling.is_finished() && std::time::Instant::now() < deadline, "it does not come half the way");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        pulling.abort();
        tools::becomes("a pull nobody waits for", || status(world, "pulls"), |now| now == "no pulls\n").await;
        slow.hurry();
        let before = slow.asked(&small).len();
        world.cri().pull(&name).await.expect("PullImage");
        assert_eq!(slow.asked(&small).len(), before);
        assert!(slow.asked(&big).last().is_some_and(|first| *first > 8 << 20), "{:?}", slow.asked(&big));
    });
}

fn of_pod(config: &v1::PodSandboxConfig, image: &str, auth: Option<v1::AuthConfig>) -> v1::PullImageRequest {
    let image = Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() });
    v1::PullImageRequest { image, auth, sandbox_config: Some(config.clone()) }
}

/// The processes that pull: id, command line and environment, cgroups.
fn pullers(world: &World) -> Vec<(String, String, String)> {
    let of = |pid: String| {
        let proc = Path::new("/proc").join(&pid);
        let command = tools::read(proc.join("cmdline"));
        let cgroups = tools::read(proc.join("cgroup"));
        let is_ours = command.starts_with("crio-pull-image\0") && cgroups.contains(world.name());
        is_ours.then(|| (pid, command + &tools::read(proc.join("environ")), cgroups))
    };
    tools::names("/proc").into_iter().filter(|name| name.parse::<u32>().is_ok()).filter_map(of).collect()
}

#[test]
fn pulls_may_run_in_the_cgroup_of_the_pod() {
    let drop_in = "[crio.runtime]\nseparate_pull_cgroup = \"pod\"\n".to_owned();
    scenario(Setup { drop_in, ..Setup::default() }, async |world| {
        let cri = world.cri();
        let config = world.pod_config("pod");
        let pod = cri.run_pod(config.clone(), "").await.expect("RunPodSandbox");
        let big = noise("big", 6 << 20, 6);
        let slow = Slow::start(world, vec![("app", image(&[&big]))], 10);
        let name = slow.name("app");
        let auth = v1::AuthConfig { username: USER.to_owned(), password: PASSWORD.to_owned(), ..Default::default() };
        let ask = |image: &str, auth| {
            let (mut images, request) = (cri.images.clone(), of_pod(&config, image, auth));
            tokio::spawn(async move { images.pull_image(request).await })
        };
        let pulling = ask(&name, Some(auth));
        tools::becomes("a process", || pullers(world).len(), |count| *count == 1).await;
        let (pid, words, cgroups) = pullers(world).remove(0);
        assert!(words.contains(&name) && !words.contains(PASSWORD), "{words:?}");
        let place = format!("/{}/crio-pull-image-{pid}", world.name());
        assert!(cgroups.lines().any(|line| line.ends_with(&place)), "{cgroups}");
        tools::becomes("progress", || status(world, "pulls"), |now| now.contains("fetching")).await;
        pulling.await.expect("a task").expect("PullImage");
        assert!(cri.image(&name).await.is_some());
        assert_eq!(pullers(world), []);
        let refused = ask(&slow.name("none"), None).await.expect("a task").expect_err("no such image");
        assert_eq!(refused.code(), Code::NotFound, "{refused:?}");
        let down = ask("127.0.0.1:5009/app:1", None).await.expect("a task").expect_err("nobody listens");
        assert!(down.message().starts_with("RegistryUnavailable: "), "{down:?}");
        // Nobody waits: the process goes with the pull.
        cri.remove_image(&name).await.expect("RemoveImage");
        let pulling = ask(&name, None);
        tools::becomes("a process", || pullers(world).len(), |count| *count == 1).await;
        pulling.abort();
        tools::becomes("no process", || pullers(world).len(), |count| *count == 0).await;
        // Nor does it outlive the daemon.
        let pulling = ask(&name, None);
        tools::becomes("a process", || pullers(world).len(), |count| *count == 1).await;
        world.kill_daemon();
        tools::becomes("no process", || pullers(world).len(), |count| *count == 0).await;
        assert!(pulling.await.expect("a task").is_err());
        world.start_daemon().await;
        cri.end_pod(&pod.id).await;
    });
}

#[test]
fn namespaces_have_credentials_of_their_own_and_registries_conf_is_followed() {
    let drop_in = "[crio.image]\nnamespaced_auth_dir = \"@ROOT@/auth\"\nauto_reload_registries = true\n".to_owned();
    scenario(Setup { drop_in, ..Setup::default() }, async |world| {
        let cri = world.cri();
        let host = world.add_registry(5003, Access::Password);
        let small = image(&[&noise("small", 4096, 7)]);
        world.registry().push(world, "e2e/private:1", &small);
        let name = format!("{host}/e2e/private:1");
        let config = world.pod_config("pod");
        let refused = cri.images.clone().pull_image(of_pod(&config, &name, None)).await.expect_err("a stranger");
        assert!(!refused.message().contains("RegistryUnavailable"), "{refused:?}");
        let digest = e2e::image::digest(format!("{host}/e2e/private").as_bytes());
        let file = world.path("auth").join(format!("e2e-{}.json", digest.trim_start_matches("sha256:")));
        let login = base64(&format!("{USER}:{PASSWORD}"));
        tools::write(&file, format!(r#"{{"auths": {{"{host}": {{"auth": "{login}"}}}}}}"#));
        // Another namespace's pods have nothing from it.
        cri.pull(&name).await.expect_err("no namespace");
        assert!(file.exists());
        cri.images.clone().pull_image(of_pod(&config, &name, None)).await.expect("PullImage");
        assert!(!file.exists() && tools::names(world.path("auth/in-use")).is_empty(), "it served one pull");
        // A short name means nothing until a file says what.
        let conf = world.path("etc-containers/registries.conf.d/10-test.conf");
        cri.pull("tiny:1").await.expect_err("no alias");
        world.registry().push(world, "e2e/tiny:1", &small);
        tools::write(&conf, format!("[aliases]\ntiny = \"{}/e2e/tiny\"\n", world.registry().host()));
        let deadline = std::time::Instant::now() + LIMIT;
        while let Err(error) = cri.pull("tiny:1").await {
            assert!(std::time::Instant::now() < deadline, "{error:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        assert!(cri.image("tiny:1").await.is_some());
    });
}

fn base64(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}
