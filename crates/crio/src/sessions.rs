//! The streaming server's view of the node, and where the configuration puts the server.

use std::error::Error;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use config::{ApiConfig, Config, TlsMinVersion};
use futures_util::future::{BoxFuture, FutureExt};
use lifecycle::{ExecSession, Node, SessionStdio, SessionStreams};
use streaming::{
    AttachEnd, AttachRequest, AttachTarget, Backend, Exec, ExecRequest, Network, Options, Program, ProgramEnd, Refusal,
    Stdio, TlsOptions, TlsVersion,
};

/// Names of ports, one a line: name, port/protocol, aliases. Source: services(5).
const SERVICES: &str = "/etc/services";

/// Where the streaming server is to listen, and how it encrypts.
pub(crate) fn options(config: &Config) -> Result<Options, Box<dyn Error>> {
    let api = &config.api;
    let port = match api.stream_port.parse() {
        Ok(port) => port,
        Err(_) => find_service(&std::fs::read_to_string(SERVICES).unwrap_or_default(), &api.stream_port)
            .ok_or_else(|| format!("crio.api.stream_port {:?} is neither a port nor a service", api.stream_port))?,
    };
    let address = api.stream_address.parse::<IpAddr>().ok();
    Ok(Options { address, port, idle_limit: api.effective_stream_idle_timeout(), tls: tls_options(api)? })
}

fn tls_options(api: &ApiConfig) -> Result<Option<TlsOptions>, Box<dyn Error>> {
    if !api.stream_enable_tls {
        return Ok(None);
    }
    let (Some(certificate), Some(key)) = (api.stream_tls_cert.clone(), api.stream_tls_key.clone()) else {
        return Err("crio.api.stream_enable_tls needs stream_tls_cert and stream_tls_key".into());
    };
    let min_version = match api.tls_min_version {
        TlsMinVersion::Tls12 => TlsVersion::V12,
        TlsMinVersion::Tls13 => TlsVersion::V13,
    };
    let (authorities, cipher_suites) = (api.stream_tls_ca.clone(), api.tls_cipher_suites.clone());
    Ok(Some(TlsOptions { certificate, key, authorities, min_version, cipher_suites }))
}

fn find_service(services: &str, wanted: &str) -> Option<u16> {
    services.lines().find_map(|line| {
        let mut words = line.split('#').next()?.split_ascii_whitespace();
        let (name, port) = (words.next()?, words.next()?.strip_suffix("/tcp")?);
        (name == wanted || words.any(|alias| alias == wanted)).then(|| port.parse().ok())?
    })
}

/// The node, as sessions need it.
pub(crate) struct Sessions(pub(crate) Arc<Node>);

struct Running(ExecSession);

impl Program for Running {
    fn wait(&mut self) -> BoxFuture<'_, io::Result<ProgramEnd>> {
        async {
            let end = self.0.wait().await?;
            Ok(ProgramEnd { code: end.code, complaint: end.complaint })
        }
        .boxed()
    }

    fn resize(&self, width: u16, height: u16) -> io::Result<()> {
        self.0.resize(width, height)
    }
}

impl Backend for Sessions {
    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, Result<Exec, Refusal>> {
        async move {
            let wanted = request.streams;
            let streams = if wanted.has_terminal {
                SessionStreams::Terminal
            } else {
                SessionStreams::Pipes {
                    has_stdin: wanted.has_stdin,
                    has_stdout: wanted.has_stdout,
                    has_stderr: wanted.has_stderr,
                }
            };
            let mut session = self.0.exec_session(&request.container, request.command, streams).await?;
            let stdio = match session.take_stdio().ok_or("the session's streams are taken")? {
                SessionStdio::Terminal(master) => Stdio::Terminal(master),
                SessionStdio::Pipes { stdin, stdout, stderr } => Stdio::Pipes { stdin, stdout, stderr },
            };
            Ok(Exec { stdio, program: Box::new(Running(session)) })
        }
        .boxed()
    }

    fn attach(&self, request: AttachRequest) -> BoxFuture<'_, Result<AttachTarget, Refusal>> {
        async move {
            let point = self.0.attach_point(&request.container)?;
            let end = if point.is_over_with_input { AttachEnd::WithInput } else { AttachEnd::WithOutput };
            Ok(AttachTarget { bundle: point.bundle, end })
        }
        .boxed()
    }

    fn port_forward(&self, sandbox: String) -> BoxFuture<'_, Result<Network, Refusal>> {
        async move { Ok(self.0.port_forward_network(&sandbox)?.map_or(Network::Host, Network::Namespace)) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_found_by_name_and_alias() {
        let services = "# comment\nhttp\t80/tcp\twww # web\nhttp 80/udp\ndomain 53/udp\nbad line/tcp\n";
        for (name, expected) in [("http", Some(80)), ("www", Some(80)), ("web", None), ("domain", None), ("bad", None)]
        {
            assert_eq!(find_service(services, name), expected, "{name}");
        }
    }
}
