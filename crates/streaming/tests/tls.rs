//! Encrypted sessions: whom the server shows itself to and as what, and how both change while it runs.

mod common;

use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use common::spdy::{Client, Frame, Wire, parts};
use common::{Echo, exec_url, serve};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use streaming::{BindError, Options, Streaming, TlsOptions, TlsVersion};

fn openssl(directory: &Path, arguments: &str) {
    let mut command = Command::new("openssl");
    command.args(arguments.split_ascii_whitespace()).current_dir(directory).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(command.status().is_ok_and(|status| status.success()), "openssl {arguments}");
}

/// An authority, and certificates of it for a server, another one, a client, and one that is out of date. `None`, and a
/// loud word, without openssl.
fn certificates() -> Option<tempfile::TempDir> {
    if Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_err() {
        println!("\n*** SKIPPED: openssl is needed to make certificates ***\n");
        return None;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    std::fs::File::create(path.join("ext"))
        .and_then(|mut file| std::io::Write::write_all(&mut file, b"subjectAltName=DNS:localhost,IP:127.0.0.1\n"))
        .expect("writes");
    openssl(path, &format!("req -x509 {key} -keyout ca.key -out ca.crt -days 30 -subj /CN=authority"));
    for (name, days) in [("server", 30), ("other", 30), ("client", 30), ("old", -1)] {
        openssl(path, &format!("req {key} -keyout {name}.key -out {name}.csr -subj /CN={name}"));
        let sign = "-CA ca.crt -CAkey ca.key -CAcreateserial -extfile ext";
        openssl(path, &format!("x509 -req -in {name}.csr {sign} -days {days} -out {name}.crt"));
    }
    Some(directory)
}

fn options(directory: &Path, name: &str) -> TlsOptions {
    TlsOptions {
        certificate: directory.join(format!("{name}.crt")),
        key: directory.join(format!("{name}.key")),
        authorities: None,
        min_version: TlsVersion::V12,
        cipher_suites: Vec::new(),
    }
}

fn read_chain(path: &Path) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(path).expect("is there").collect::<Result<_, _>>().expect("is PEM")
}

/// Connects, with a client certificate if one is named; what both sides agreed on, and who the server is.
fn connect(
    url: &str,
    directory: &Path,
    identity: Option<&str>,
    versions: &[&'static SupportedProtocolVersion],
) -> std::io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(read_chain(&directory.join("ca.crt")));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("are known")
        .with_root_certificates(roots);
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some(name) => {
            let key = PrivateKeyDer::from_pem_file(directory.join(format!("{name}.key"))).expect("is PEM");
            builder.with_client_auth_cert(read_chain(&directory.join(format!("{name}.crt"))), key).expect("fit")
        }
    };
    let stream = TcpStream::connect(parts(url).0)?;
    stream.set_read_timeout(Some(common::LIMIT))?;
    let connection = ClientConnection::new(Arc::new(config), "localhost".try_into().expect("a name"));
    let mut stream = StreamOwned::new(connection.map_err(std::io::Error::other)?, stream);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

const BOTH: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

/// Runs a session over a connection.
fn echo(stream: Box<dyn Wire>, url: &str) {
    let mut client = Client::over(stream, url, "v4.channel.k8s.io").expect("is there").expect("a session");
    for (stream, kind) in [(1, "error"), (3, "stdin"), (5, "stdout")] {
        client.open(stream, &[("streamType", kind)]);
    }
    // More than one record and one window.
    let long: Vec<_> = (0_u32..300_000).flat_map(|number| number.to_le_bytes()).collect();
    let mut heard = Vec::new();
    for piece in long.chunks(100_000) {
        client.data(3, false, piece);
        while heard.len() % 100_000 != 0 || heard.len() < piece.len() {
            if let Frame::Data { stream: 5, bytes, .. } = client.next().expect("goes on") {
                heard.extend(bytes);
            }
        }
        assert!(heard.ends_with(piece));
        heard.clear();
    }
    client.data(3, true, b"");
    let end = client.collect(&[1]).remove(0);
    assert!(String::from_utf8_lossy(&end).contains("NonZeroExitCode"));
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_encrypted_and_the_certificate_changes_while_the_server_runs() {
    let Some(directory) = certificates() else { return };
    let path = directory.path();
    for name in ["crt", "key"] {
        std::os::unix::fs::symlink(format!("server.{name}"), path.join(format!("current.{name}"))).expect("links");
    }
    let streaming = serve(Echo::default(), Some(options(path, "current"))).await;
    let url = exec_url(&streaming, 300);
    assert!(url.starts_with("https://127.0.0.1:"), "{url}");
    let shown =
        |stream: &StreamOwned<ClientConnection, TcpStream>| stream.conn.peer_certificates().expect("has")[0].clone();
    let stream = connect(&url, path, None, BOTH).expect("agrees");
    let first = shown(&stream);
    assert_eq!(first, read_chain(&path.join("server.crt"))[0]);
    echo(Box::new(stream), &url);

    let relink = |name: &str| {
        for kind in ["crt", "key"] {
            std::os::unix::fs::symlink(format!("{name}.{kind}"), path.join("next")).expect("links");
            rustix::fs::rename(path.join("next"), path.join(format!("current.{kind}"))).expect("replaces");
        }
    };
    relink("old");
    let stream = connect(&url, path, None, BOTH).expect("agrees");
    assert_eq!(shown(&stream), first, "one that is out of date takes nobody's place");
    relink("other");
    let url = exec_url(&streaming, 300);
    let stream = connect(&url, path, None, &[&rustls::version::TLS12]).expect("agrees on the oldest version too");
    assert_eq!(shown(&stream), read_chain(&path.join("other.crt"))[0]);
    echo(Box::new(stream), &url);

    // Plain text to an encrypted port is closed, and the server goes on.
    let plain = tokio::task::spawn_blocking(move || {
        let stream = TcpStream::connect(parts(&url).0).expect("connects");
        stream.set_read_timeout(Some(common::LIMIT)).expect("is a socket");
        Client::over(Box::new(stream), &url, "").is_err()
    });
    assert!(plain.await.expect("ends"), "no answer in plain text");
    connect(&exec_url(&streaming, 1), path, None, BOTH).expect("agrees");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_show_a_certificate_where_there_is_an_authority_for_them() {
    let Some(directory) = certificates() else { return };
    let path = directory.path();
    let authorities = Some(path.join("ca.crt"));
    let streaming = serve(Echo::default(), Some(TlsOptions { authorities, ..options(path, "server") })).await;
    let url = exec_url(&streaming, 200);
    for (identity, is_let_in) in [(None, false), (Some("old"), false), (Some("client"), true)] {
        let outcome = connect(&url, path, identity, BOTH).and_then(|stream| Client::over(Box::new(stream), &url, ""));
        assert_eq!(outcome.is_ok(), is_let_in, "{identity:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_and_suites_are_those_that_were_named() {
    let Some(directory) = certificates() else { return };
    let path = directory.path();
    let only_13 = TlsOptions { min_version: TlsVersion::V13, ..options(path, "server") };
    let streaming = serve(Echo::default(), Some(only_13)).await;
    let url = exec_url(&streaming, 1);
    connect(&url, path, None, &[&rustls::version::TLS12]).expect_err("too old");
    connect(&url, path, None, &[&rustls::version::TLS13]).expect("agrees");

    let suite = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384";
    let one = TlsOptions { cipher_suites: vec![suite.to_owned()], ..options(path, "server") };
    let streaming = serve(Echo::default(), Some(one)).await;
    let stream = connect(&exec_url(&streaming, 1), path, None, &[&rustls::version::TLS12]).expect("agrees");
    let agreed = stream.conn.negotiated_cipher_suite().expect("agreed").suite();
    assert_eq!(format!("{agreed:?}"), suite);
}

#[tokio::test]
async fn a_server_that_cannot_encrypt_does_not_begin() {
    let Some(directory) = certificates() else { return };
    let path = directory.path();
    let good = options(path, "server");
    let suites = vec!["TLS_RSA_WITH_AES_128_CBC_SHA".to_owned()];
    for (tls, reason) in [
        (TlsOptions { certificate: path.join("missing"), ..good.clone() }, "read "),
        (TlsOptions { certificate: path.join("server.key"), ..good.clone() }, "no certificate in it"),
        (TlsOptions { key: path.join("server.crt"), ..good.clone() }, "server.crt: "),
        (TlsOptions { key: path.join("other.key"), ..good.clone() }, "encrypt with certificate"),
        (TlsOptions { authorities: Some(path.join("ext")), ..good.clone() }, "no certificate in it"),
        (TlsOptions { cipher_suites: suites, ..good.clone() }, "TLS_RSA_WITH_AES_128_CBC_SHA"),
        (options(path, "old"), "not valid any more"),
    ] {
        let address = Some(std::net::Ipv4Addr::LOCALHOST.into());
        let options = Options { address, port: 0, idle_limit: common::LIMIT, tls: Some(tls) };
        let error = Streaming::bind(&options, Arc::new(Echo::default())).await.err().expect("is refused");
        let BindError::Tls(error) = error else { panic!("another error: {error}") };
        assert!(error.to_string().contains(reason), "{error} instead of {reason}");
    }
}
