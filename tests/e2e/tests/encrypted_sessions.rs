//! Sessions with the daemon that are encrypted.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use cri_api::v1;
use e2e::cri::{WAIT, container_config};
use e2e::registry::make_certificate;
use e2e::{Setup, World, scenario};

/// What the server answers to a request, and who it says it is, as openssl sees it.
fn ask(world: &World, url: &str, authority: &Path, options: &[&str]) -> String {
    let (host, path) = url.strip_prefix("https://").and_then(|rest| rest.split_once('/')).expect("an encrypted URL");
    let mut command = world.command("openssl");
    command.args(["s_client", "-connect", host, "-verify_return_error", "-ign_eof", "-CAfile"]).arg(authority);
    command.args(options).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut client = command.spawn().expect("openssl");
    let request = format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    // A client that was refused has ended already.
    let _ = client.stdin.take().expect("a pipe").write_all(request.as_bytes());
    String::from_utf8_lossy(&client.wait_with_output().expect("ends").stdout).into_owned()
}

#[test]
fn sessions_are_encrypted_for_clients_with_a_certificate() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path();
    make_certificate(path);
    let drop_in = format!(
        "[crio.api]\nstream_enable_tls = true\nstream_tls_cert = \"{0}/server.crt\"\nstream_tls_key = \"{0}/server.key\"\n\
         stream_tls_ca = \"{0}/ca.crt\"\ntls_min_version = \"VersionTLS13\"\n",
        path.display()
    );
    scenario(Setup { drop_in, ..Setup::default() }, async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let pod = cri.run_pod(world.pod_config("encrypted"), "crun").await.expect("RunPodSandbox");
        let container = cri.run(&pod, container_config(&image, "main", WAIT)).await;
        let request = v1::ExecRequest {
            container_id: container.id.clone(),
            cmd: vec!["true".to_owned()],
            stdout: true,
            ..Default::default()
        };
        let url = cri.runtime.clone().exec(request).await.expect("Exec").into_inner().url;
        let (authority, certificate, key) = (path.join("ca.crt"), path.join("server.crt"), path.join("server.key"));
        let identity = ["-cert", certificate.to_str().expect("text"), "-key", key.to_str().expect("text")];
        assert!(!ask(world, &url, &authority, &[]).contains("HTTP/1.1"), "no answer for whom nobody knows");
        let older = [&["-tls1_2"][..], &identity].concat();
        assert!(!ask(world, &url, &authority, &older).contains("HTTP/1.1"), "no answer in an older version");
        // The session still waits for its client: those were none.
        let answer = ask(world, &url, &authority, &identity);
        assert!(answer.contains("HTTP/1.1 400") && answer.contains("missing upgrade headers"), "{answer}");
        assert!(answer.contains("TLSv1.3") && answer.contains("Verify return code: 0 (ok)"), "{answer}");
        assert!(ask(world, &url, &authority, &identity).contains("HTTP/1.1 404"), "a token works once");
        cri.end_pod(&pod.id).await;
    });
}
