//! The registry and the tools people run: docker-registry filled by skopeo, with a login and with TLS; archives that
//! skopeo wrote. Skipped, loudly, where they are not installed.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use common::{OCI_MANIFEST, TestImage, amd64, client, descriptor, digest_of, drain, options, resolve, resolve_as};
use image_pull::auth::{AuthFiles, RequestAuth};
use image_pull::{Client, Credentials, ErrorKind, LoopbackTrust, ResolvedImage, Source};

/// `user:secret`, hashed with bcrypt: what the registry reads.
const HTPASSWD: &str = "user:$2b$04$DQr1c4C.wcGHmgHJMt/Ure2qNGvY0RdpgdDv3kqBU0dgMqRtZyMy6\n";

fn has_tools(tools: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap();
    let missing = tools.iter().find(|tool| !std::env::split_paths(&path).any(|dir| dir.join(tool).is_file()));
    if let Some(tool) = missing {
        eprintln!("SKIPPED: {tool} is not installed");
    }
    missing.is_none()
}

fn write(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) {
    let path = path.as_ref();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    File::create(path).unwrap().write_all(bytes.as_ref()).unwrap();
}

fn run(program: &str, arguments: &[&str], directory: &Path) {
    let output = Command::new(program).args(arguments).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Writes an OCI layout that holds `image` as `name`.
fn write_layout(directory: &Path, image: &TestImage, name: &str) {
    write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#);
    for blob in [&image.layer, &image.config, &image.manifest] {
        write(directory.join("blobs/sha256").join(digest_of(blob).hex()), blob);
    }
    let entry = descriptor(OCI_MANIFEST, &image.manifest);
    let entry =
        format!("{},\"annotations\":{{\"org.opencontainers.image.ref.name\":\"{name}\"}}}}", &entry[..entry.len() - 1]);
    write(directory.join("index.json"), format!(r#"{{"schemaVersion":2,"manifests":[{entry}]}}"#));
}

/// A docker-registry of its own; ends with the test.
struct Registry {
    child: Child,
    port: u16,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    fn start(directory: &Path, more: &str, http: &str) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}/registry}}}}\n\
             http:\n  addr: 127.0.0.1:{port}\n{http}{more}",
            directory.display()
        );
        write(directory.join("registry.yml"), config);
        let child = Command::new("docker-registry")
            .args(["serve", "registry.yml"])
            .current_dir(directory)
            .stdout(Stdio::null())
            .stderr(File::create(directory.join("registry.log")).unwrap())
            .spawn()
            .unwrap();
        let registry = Self { child, port };
        for _ in 0..200 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return registry;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("docker-registry does not listen: {}", fs::read_to_string(directory.join("registry.log")).unwrap());
    }

    fn push(&self, directory: &Path, source: &str, name: &str, options: &[&str]) {
        let target = format!("docker://127.0.0.1:{}/{name}", self.port);
        let copy = ["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"];
        run("skopeo", &[&copy[..], options, &[source, &target]].concat(), directory);
    }

    fn name(&self, rest: &str) -> String {
        format!("127.0.0.1:{}/{rest}", self.port)
    }
}

async fn assert_serves(client: &Client, resolved: &ResolvedImage, image: &TestImage) {
    assert_eq!(resolved.configuration.served().unwrap().image_id().as_str(), digest_of(&image.config).hex());
    assert_eq!(resolved.layers.len(), 1);
    let (bytes, end) = drain(client.open_blob(resolved, &resolved.layers[0]).await.unwrap()).await;
    end.unwrap();
    assert_eq!(&digest_of(&bytes), &resolved.layers[0].digest);
}

#[tokio::test]
async fn docker_registry_with_a_login() {
    if !has_tools(&["docker-registry", "skopeo"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let image = TestImage::of_size(300_000);
    write_layout(&directory.join("layout"), &image, "v1");
    write(directory.join("htpasswd"), HTPASSWD);
    let auth = format!("auth: {{htpasswd: {{realm: test, path: {}/htpasswd}}}}\n", directory.display());
    let registry = Registry::start(directory, &auth, "");
    let login = ["--dest-creds", "user:secret"];
    // First, while there is no plain blob that skopeo could use again.
    registry.push(directory, "oci:layout:v1", "team/docker:v1", &[&login[..], &["--format", "v2s2"]].concat());
    registry.push(directory, "oci:layout:v1", "team/app:v1", &[&login[..], &["--preserve-digests"]].concat());

    let client = client();
    let named = |username: &str, password: &str| {
        let auth = RequestAuth { username: username.into(), password: password.into(), ..RequestAuth::default() };
        Credentials::from(auth.parse().unwrap().unwrap())
    };
    let resolved = resolve_as(&client, &registry.name("team/app:v1"), &named("user", "secret")).await.unwrap();
    assert_eq!(resolved.manifest_bytes, image.manifest);
    assert_serves(&client, &resolved, &image).await;
    // skopeo compressed the layer on this way: another blob, the same diff id.
    let docker = resolve_as(&client, &registry.name("team/docker:v1"), &named("user", "secret")).await.unwrap();
    assert_eq!(docker.media_type, "application/vnd.docker.distribution.manifest.v2+json");
    assert_eq!(docker.layers[0].diff_id, Some(digest_of(&image.layer)));
    assert_ne!(Some(&docker.layers[0].digest), docker.layers[0].diff_id.as_ref());
    let (bytes, end) = drain(client.open_blob(&docker, &docker.layers[0]).await.unwrap()).await;
    end.unwrap();
    assert_eq!(digest_of(&bytes), docker.layers[0].digest);

    run(
        "skopeo",
        &[
            "login",
            "--tls-verify=false",
            "--authfile",
            "auth.json",
            "-u",
            "user",
            "-p",
            "secret",
            registry.name("").trim_end_matches('/'),
        ],
        directory,
    );
    let files = Credentials::Files(AuthFiles::only(directory.join("auth.json")));
    let by_digest = registry.name(&format!("team/app:v1@{}", digest_of(&image.manifest)));
    resolve_as(&client, &by_digest, &files).await.unwrap();
    for (name, credentials, kind) in [
        ("team/app:v1", named("user", "wrong"), ErrorKind::Unauthorized),
        ("team/app:v1", Credentials::Anonymous, ErrorKind::Unauthorized),
        ("team/app:absent", named("user", "secret"), ErrorKind::NotFound),
        ("team/absent:v1", files, ErrorKind::NotFound),
    ] {
        let error = resolve_as(&client, &registry.name(name), &credentials).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{name}: {error:?}");
    }
}

/// A certificate authority and a server certificate for 127.0.0.1 signed by it; a certificate that signs itself.
fn make_certificates(directory: &Path) {
    let new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
    let req = |arguments: &[&str]| run("openssl", &[&["req", "-x509"][..], &new, arguments].concat(), directory);
    let name = ["-addext", "subjectAltName=IP:127.0.0.1"];
    req(&["-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.crt"]);
    req(&["-subj", "/CN=self", "-keyout", "self.key", "-out", "self.crt", name[0], name[1]]);
    req(&[
        "-subj",
        "/CN=other",
        "-keyout",
        "other.key",
        "-out",
        "other.crt",
        "-addext",
        "subjectAltName=DNS:other.test",
    ]);
    for name in ["server", "client"] {
        let (key, request, out) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.crt"));
        let subject = format!("/CN={name}");
        let arguments =
            ["req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", &subject, "-keyout", &key, "-out", &request];
        run("openssl", &arguments, directory);
        write(directory.join("ext"), "subjectAltName=IP:127.0.0.1\n");
        let sign = ["x509", "-req", "-in", &request, "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"];
        run("openssl", &[&sign[..], &["-days", "2", "-extfile", "ext", "-out", &out]].concat(), directory);
    }
}

/// A client that trusts what `files` of `from` are copied to certs.d as.
fn tls_client(directory: &Path, from: &Path, host: &str, files: &[(&str, &str)]) -> Client {
    for (file, name) in files {
        write(directory.join("certs.d").join(host).join(name), fs::read(from.join(file)).unwrap());
    }
    let mut options = options(directory);
    options.loopback = LoopbackTrust::Verified;
    Client::new(&options).unwrap().0
}

#[tokio::test]
async fn docker_registry_with_tls() {
    if !has_tools(&["docker-registry", "skopeo", "openssl"]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let directory = home.path();
    make_certificates(directory);
    let image = TestImage::of_size(100_000);
    write_layout(&directory.join("layout"), &image, "v1");
    let ca = [("ca.crt", "ca.crt")];
    let with_client = [("ca.crt", "ca.crt"), ("client.crt", "me.cert"), ("client.key", "me.key")];
    let without_key = [("ca.crt", "ca.crt"), ("client.crt", "me.cert")];
    let clients = "    clientcas: [ca.crt]\n";
    type Files<'a> = &'a [(&'a str, &'a str)];
    let cases: [(&str, &str, Files, Result<(), ErrorKind>); 8] = [
        ("server", "", &ca, Ok(())),
        ("server", "", &[], Err(ErrorKind::RegistryUnavailable)),
        ("self", "", &[("self.crt", "self.crt")], Ok(())),
        ("self", "", &ca, Err(ErrorKind::RegistryUnavailable)),
        // Trusted, but for another name.
        ("other", "", &[("other.crt", "ca.crt")], Err(ErrorKind::RegistryUnavailable)),
        ("server", clients, &with_client, Ok(())),
        ("server", clients, &ca, Err(ErrorKind::RegistryUnavailable)),
        ("server", "", &without_key, Err(ErrorKind::Local)),
    ];
    for (certificate, clients, files, expected) in cases {
        let tls = format!("  tls:\n    certificate: {certificate}.crt\n    key: {certificate}.key\n{clients}");
        let registry = Registry::start(directory, "", &tls);
        if clients.is_empty() {
            registry.push(directory, "oci:layout:v1", "app:v1", &["--preserve-digests"]);
        }
        let place = tempfile::tempdir().unwrap();
        let client = tls_client(place.path(), directory, &format!("127.0.0.1:{}", registry.port), files);
        let resolved = resolve(&client, &registry.name("app:v1")).await;
        match (resolved, expected) {
            (Ok(resolved), Ok(())) => assert_serves(&client, &resolved, &image).await,
            (Err(error), Err(kind)) => assert_eq!(error.kind(), kind, "{certificate} {files:?}: {error:?}"),
            (got, _) => panic!("{certificate} {files:?}: {got:?}"),
        }
        // insecure = true does without certificates, but for one the server demands.
        let conf = format!("[[registry]]\nlocation = \"127.0.0.1:{}\"\ninsecure = true\n", registry.port);
        write(place.path().join("registries.conf"), conf);
        let mut options = options(place.path());
        options.certificate_directories.clear();
        let lax = Client::new(&options).unwrap().0;
        assert_eq!(resolve(&lax, &registry.name("app:v1")).await.is_ok(), clients.is_empty());
    }
}

#[tokio::test]
async fn redirects_do_not_leave_tls() {
    if !has_tools(&["openssl"]) {
        return;
    }
    use rustls_pki_types::pem::PemObject as _;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let home = tempfile::tempdir().unwrap();
    make_certificates(home.path());
    let chain = vec![CertificateDer::from_pem_file(home.path().join("server.crt")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(home.path().join("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let plain = common::TestRegistry::start(|_| common::Reply::new(200, "{}")).await;
    for (answer, part) in [
        (format!("307 X\r\nLocation: http://{}/x\r\n", plain.address), "from https to http"),
        (format!("401 X\r\nWWW-Authenticate: Bearer realm=\"http://{}/token\"\r\n", plain.address), "not encrypted"),
    ] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = acceptor.clone();
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let _ = stream.read(&mut [0; 4096]).await;
                let reply = format!("HTTP/1.1 {answer}content-length: 0\r\nconnection: close\r\n\r\n");
                let _ = stream.write_all(reply.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
        let place = tempfile::tempdir().unwrap();
        let client = tls_client(place.path(), home.path(), &address.to_string(), &[("ca.crt", "ca.crt")]);
        let error = resolve(&client, &format!("{address}/app")).await.unwrap_err();
        server.abort();
        assert!(format!("{error:?}").contains(part), "{error:?}");
    }
    assert_eq!(plain.seen().len(), 0);
}

async fn open(client: &Client, source: &str) -> Result<ResolvedImage, image_pull::ResolveError> {
    client.resolve(&Source::parse(source).unwrap(), &Credentials::Anonymous, &amd64()).await
}

#[tokio::test]
async fn layouts_and_archives_are_images_too() {
    if !has_tools(&["skopeo", "tar"]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let directory = home.path();
    let at = |path: &str| directory.join(path).display().to_string();
    // A tar as its only layer: docker archives are read by their content.
    write(directory.join("root/hello"), vec![b'x'; 400_000]);
    run("tar", &["-cf", "layer.tar", "-C", "root", "."], directory);
    let image = TestImage::of_layer(fs::read(directory.join("layer.tar")).unwrap());
    write_layout(&directory.join("layout"), &image, "v1");
    let copy = |target: &str| {
        run("skopeo", &["--insecure-policy", "copy", "--quiet", "oci:layout:v1", target], directory);
    };
    copy("oci-archive:oci.tar:v2");
    copy("docker-archive:docker.tar:registry.test/team/app:v3");
    run("tar", &["-cf", "long.tar", "--format=pax", "-C", "layout", "."], directory);

    let client = client();
    for (source, name) in [
        (format!("oci:{}", at("layout")), None),
        (format!("oci:{}:v1", at("layout")), None),
        (format!("oci-archive:{}", at("oci.tar")), None),
        (format!("oci-archive:{}:v2", at("oci.tar")), None),
        (format!("oci-archive:{}:v1", at("long.tar")), None),
        (format!("docker-archive:{}", at("docker.tar")), Some("registry.test/team/app:v3")),
        (format!("docker-archive:{}:registry.test/team/app:v3", at("docker.tar")), Some("registry.test/team/app:v3")),
        // What newer dockers write is a layout in a tar.
        (format!("docker-archive:{}", at("long.tar")), None),
    ] {
        let resolved = open(&client, &source).await.unwrap_or_else(|error| panic!("{source}: {error:?}"));
        assert_eq!(resolved.names.first().map(ToString::to_string).as_deref(), name, "{source}");
        assert_serves(&client, &resolved, &image).await;
    }
    run("gzip", &["-k", "oci.tar"], directory);
    write(directory.join("short.tar"), &fs::read(directory.join("oci.tar")).unwrap()[..5000]);
    for (source, kind) in [
        (format!("oci:{}:absent", at("layout")), ErrorKind::NotFound),
        (format!("oci:{}", at("absent")), ErrorKind::NotFound),
        (format!("oci:{}", at("root")), ErrorKind::NotFound),
        (format!("oci-archive:{}:absent", at("oci.tar")), ErrorKind::NotFound),
        (format!("oci-archive:{}", at("oci.tar.gz")), ErrorKind::Unsupported),
        (format!("oci-archive:{}", at("short.tar")), ErrorKind::Malformed),
        (format!("oci-archive:{}", at("root/hello")), ErrorKind::Malformed),
        (format!("oci-archive:{}", at("root")), ErrorKind::Local),
        (format!("docker-archive:{}:other.test/app", at("docker.tar")), ErrorKind::NotFound),
    ] {
        let error = open(&client, &source).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{source}: {error:?}");
    }
}

#[tokio::test]
async fn layouts_cannot_lead_outside_and_are_checked() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path();
    let image = TestImage::of_size(1000);
    let blob = |layout: &str, bytes: &[u8]| -> PathBuf {
        directory.join(layout).join("blobs/sha256").join(digest_of(bytes).hex())
    };
    let client = client();
    let source = |layout: &str| format!("oci:{}", directory.join(layout).display());
    // A configuration that lies outside, behind a link.
    write_layout(&directory.join("link"), &image, "v1");
    write(directory.join("outside"), &image.config);
    fs::remove_file(blob("link", &image.config)).unwrap();
    std::os::unix::fs::symlink("../../../outside", blob("link", &image.config)).unwrap();
    assert_eq!(open(&client, &source("link")).await.unwrap_err().kind(), ErrorKind::Local);
    // A FIFO in place of a layer.
    write_layout(&directory.join("fifo"), &image, "v1");
    fs::remove_file(blob("fifo", &image.layer)).unwrap();
    run("mkfifo", &[blob("fifo", &image.layer).to_str().unwrap()], directory);
    let resolved = open(&client, &source("fifo")).await.unwrap();
    let error = client.open_blob(&resolved, &resolved.layers[0]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Local, "{error:?}");
    // Same length, other bytes; and a layer of another length.
    write_layout(&directory.join("lie"), &image, "v1");
    let mut other = image.config.clone();
    other.reverse();
    write(blob("lie", &image.config), other);
    assert_eq!(open(&client, &source("lie")).await.unwrap_err().kind(), ErrorKind::DigestMismatch);
    write(blob("lie", &image.config), &image.config);
    write(blob("lie", &image.layer), b"short");
    let resolved = open(&client, &source("lie")).await.unwrap();
    let error = client.open_blob(&resolved, &resolved.layers[0]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DigestMismatch, "{error:?}");
}

#[tokio::test]
async fn tls_goes_through_a_proxy_by_connect() {
    if !has_tools(&["docker-registry", "skopeo", "openssl"]) {
        return;
    }
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let home = tempfile::tempdir().unwrap();
    let directory = home.path();
    make_certificates(directory);
    let image = TestImage::of_size(100_000);
    write_layout(&directory.join("layout"), &image, "v1");
    let registry = Registry::start(directory, "", "  tls: {certificate: other.crt, key: other.key}\n");
    registry.push(directory, "oci:layout:v1", "app:v1", &["--preserve-digests"]);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let port = registry.port;
    let proxy = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                assert!(head.starts_with(b"CONNECT other.test:443 HTTP/1.1\r\n"), "{head:?}");
                let mut target = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                stream.write_all(b"HTTP/1.1 200 Connection established\r\nX: y\r\n\r\n").await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut target).await;
            });
        }
    });
    write(directory.join("certs.d/other.test/ca.crt"), fs::read(directory.join("other.crt")).unwrap());
    let mut options = options(directory);
    options.proxy.https = format!("http://{address}");
    let client = Client::new(&options).unwrap().0;
    let resolved = resolve(&client, "other.test/app:v1").await.unwrap();
    assert_serves(&client, &resolved, &image).await;
    proxy.abort();
}
