//! A real registry (docker-registry) in a node's network namespace.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;

use crate::http;
use crate::image::{Format, Image, digest};
use crate::tools;
use crate::world::World;

/// Who may read and write where a registry asks for names.
pub const USER: &str = "alice";
/// Their password.
pub const PASSWORD: &str = "secret";
/// The same, as a registry keeps it.
const HTPASSWD: &str = "alice:$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n";
/// A registry needs a moment to start.
const START_LIMIT: Duration = Duration::from_secs(20);

/// Whom a registry answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    Open,
    /// Those who know [`USER`] and [`PASSWORD`].
    Password,
    /// Everybody, over TLS with a certificate from the given authority only (see [`Registry::start`]).
    Tls,
}

/// A registry; ends with the value.
#[derive(Debug)]
pub struct Registry {
    process: Child,
    host: String,
    access: Access,
}

impl Registry {
    /// Starts one on a port of the node. All registries of a world share their storage.
    ///
    /// With [`Access::Tls`] an authority is made, and trusted for this registry in the node's certs.d.
    pub fn start(world: &World, port: u16, access: Access) -> Self {
        let host = format!("127.0.0.1:{port}");
        let directory = world.path(&format!("registry-{port}"));
        let mut text = format!(
            "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: false}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n\
             compatibility: {{schema1: {{enabled: true}}}}\n",
            world.path("registry").display()
        );
        match access {
            Access::Open => text.push_str(&format!("http: {{addr: \"{host}\"}}\n")),
            Access::Password => {
                tools::write(directory.join("htpasswd"), HTPASSWD);
                let file = directory.join("htpasswd");
                text.push_str(&format!(
                    "http: {{addr: \"{host}\"}}\nauth: {{htpasswd: {{realm: e2e, path: {}}}}}\n",
                    file.display()
                ));
            }
            Access::Tls => {
                make_certificate(&directory);
                let trusted = world.path("etc-containers/certs.d").join(&host).join("ca.crt");
                tools::write(trusted, tools::read(directory.join("ca.crt")));
                text.push_str(&format!(
                    "http: {{addr: \"{host}\", tls: {{certificate: {0}/server.crt, key: {0}/server.key}}}}\n",
                    directory.display()
                ));
            }
        }
        let config = directory.join("config.yml");
        tools::write(&config, text);
        let log = std::fs::File::create(directory.join("log")).expect("a log");
        let program = tools::find_program("docker-registry").expect("docker-registry is installed");
        let process = world
            .command(program)
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("start the registry");
        let registry = Self { process, host, access };
        let deadline = Instant::now() + START_LIMIT;
        while world.in_network(|| std::net::TcpStream::connect(&registry.host)).is_err() {
            assert!(Instant::now() < deadline, "the registry does not answer: {}", tools::read(directory.join("log")));
            std::thread::sleep(Duration::from_millis(10));
        }
        registry
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Digests of the blobs that were asked for, each as often as it was.
    #[must_use]
    pub fn fetched(&self, world: &World) -> Vec<String> {
        let port = self.host.rsplit(':').next().unwrap_or_default();
        let log = tools::read(world.path(&format!("registry-{port}")).join("log"));
        let digest = |line: &str| {
            let (_, rest) = line.split_once("\"GET /v2/")?;
            let (path, _) = rest.split_once(' ')?;
            Some(path.split_once("/blobs/")?.1.to_owned())
        };
        log.lines().filter_map(digest).collect()
    }

    /// Stores an image; `name` is `REPOSITORY:TAG`. Returns the name by which one pulls it.
    pub fn push(&self, world: &World, name: &str, image: &Image) -> String {
        let (repository, tag) = name.split_once(':').expect("a name with a tag");
        for blob in image.layers.iter().chain([&image.config]) {
            self.push_blob(world, repository, blob);
        }
        self.push_manifest(world, repository, tag, image.format.manifest_type(), &image.manifest);
        format!("{}/{name}", self.host)
    }

    /// Stores an index that offers `image` for this machine and `other` for one that is not ours.
    pub fn push_index(&self, world: &World, name: &str, format: Format, image: &Image, other: &Image) -> String {
        let (repository, tag) = name.split_once(':').expect("a name with a tag");
        self.push(world, &format!("{repository}:{tag}-ours"), image);
        self.push(world, &format!("{repository}:{tag}-other"), other);
        self.push_manifest(world, repository, tag, format.index_type(), &image.index(format, other));
        format!("{}/{name}", self.host)
    }

    fn push_blob(&self, world: &World, repository: &str, blob: &[u8]) {
        let begun = self.send(world, "POST", &format!("/v2/{repository}/blobs/uploads/"), None, b"");
        assert_eq!(begun.status, 202, "{begun:?}");
        let location = begun.field("location").expect("a location");
        let at = location.find("/v2/").expect("a path");
        let target = format!("{}&digest={}", &location[at..], digest(blob));
        let put = self.send(world, "PUT", &target, Some("application/octet-stream"), blob);
        assert_eq!(put.status, 201, "{put:?}");
    }

    fn push_manifest(&self, world: &World, repository: &str, tag: &str, kind: &str, manifest: &[u8]) {
        let put = self.send(world, "PUT", &format!("/v2/{repository}/manifests/{tag}"), Some(kind), manifest);
        assert_eq!(put.status, 201, "{}", String::from_utf8_lossy(&put.body));
    }

    fn send(&self, world: &World, method: &str, target: &str, kind: Option<&str>, body: &[u8]) -> http::Answer {
        assert_ne!(self.access, Access::Tls, "fill it through another registry of the same world");
        let login = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"));
        let login = format!("Basic {login}");
        let mut fields = vec![("Authorization", login.as_str())];
        if let Some(kind) = kind {
            fields.push(("Content-Type", kind));
        }
        world
            .in_network(|| http::send(&self.host, method, target, &fields, body))
            .unwrap_or_else(|error| panic!("{method} {target}: {error}"))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An authority and a server certificate of it for 127.0.0.1.
pub fn make_certificate(directory: &Path) {
    let openssl = |arguments: &str| {
        let mut command = Command::new("openssl");
        tools::run(command.args(arguments.split_whitespace()).current_dir(directory));
    };
    tools::write(directory.join("san"), "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n");
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {key} -keyout ca.key -out ca.crt -days 30 -subj /CN=e2e-authority"));
    openssl(&format!("req {key} -keyout server.key -out server.csr -subj /CN=127.0.0.1"));
    openssl("x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.crt -days 30 -extfile san");
}
