//! Ports of this machine that lead into a pod. Each connection has a session of its own, so that none waits for another.

use std::io;
use std::str::FromStr;

use cri_api::v1::PortForwardRequest;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::SessionError;
use super::spdy::Connection;
use super::upgrade::{Trust, upgrade};
use crate::client::Client;
use crate::error::{CommandError, chain};

const PROTOCOLS: [&str; 1] = ["portforward.k8s.io"];
const ERROR_MAX: usize = 64 * 1024;
const PART: usize = 32 * 1024;

/// `[LOCAL:]PORT`; a local port of 0, or an empty one, is any free one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mapping {
    local: u16,
    remote: u16,
}

impl FromStr for Mapping {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |text: &str| text.parse::<u16>().map_err(|_| format!("{text:?} is not a port from 1 to 65535"));
        let (local, remote) = match text.split_once(':') {
            None => (port(text)?, port(text)?),
            Some(("", remote)) => (0, port(remote)?),
            Some((local, remote)) => (port(local)?, port(remote)?),
        };
        if remote == 0 { Err("0 is no port of a pod".to_owned()) } else { Ok(Self { local, remote }) }
    }
}

/// Forwards until interrupted.
///
/// Errors: a local port that is taken; everything later is told and ends only its connection.
pub(crate) async fn forward(
    client: &Client,
    pod_id: &str,
    addresses: &[String],
    mappings: &[Mapping],
    trust: &Trust,
) -> Result<(), CommandError> {
    let mut listeners = Vec::new();
    for mapping in mappings {
        for address in addresses {
            let listen = |source| SessionError::Listen { address: format!("{address}:{}", mapping.local), source };
            let listener = TcpListener::bind((address.as_str(), mapping.local)).await.map_err(listen)?;
            let local = listener.local_addr().map_err(listen)?;
            println!("Forwarding from {local} -> {}", mapping.remote);
            listeners.push((listener, mapping.remote));
        }
    }
    let mut tasks = tokio::task::JoinSet::new();
    for (listener, port) in listeners {
        let (client, pod_id, trust) = (client.clone(), pod_id.to_owned(), trust.clone());
        tasks.spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => {
                        let (client, pod_id, trust) = (client.clone(), pod_id.clone(), trust.clone());
                        tokio::spawn(async move {
                            if let Err(error) = carry(&client, pod_id, port, stream, &trust).await {
                                eprintln!("crioctl: port {port}: {}", chain(&error));
                            }
                        });
                    }
                    // Out of descriptors: others close theirs.
                    Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
                }
            }
        });
    }
    tokio::signal::ctrl_c().await.map_err(CommandError::Signals)
}

/// One connection to its end.
async fn carry(
    client: &Client,
    pod_id: String,
    port: u16,
    local: TcpStream,
    trust: &Trust,
) -> Result<(), CommandError> {
    let order = PortForwardRequest { pod_sandbox_id: pod_id, port: vec![i32::from(port)] };
    let url = client.port_forward(order).await?.url;
    let mut connection = Connection::new(upgrade(&url, &PROTOCOLS, trust).await?);
    let port = port.to_string();
    let broken = SessionError::Broken;
    let mut open = async |kind: &str| {
        connection.open(&[("streamtype", kind), ("port", &port), ("requestid", "0")]).await.map_err(broken)
    };
    let mut error = open("error").await?;
    error.sender().finish().await.map_err(broken)?;
    let mut data = open("data").await?;
    let sender = data.sender();
    let (mut reader, mut writer) = local.into_split();
    let up = async {
        let mut part = vec![0; PART];
        loop {
            match reader.read(&mut part).await? {
                0 => return sender.finish().await,
                read => sender.send(&part[..read]).await?,
            }
        }
    };
    let down = async {
        while let Some(part) = data.next().await {
            writer.write_all(&part).await?;
        }
        writer.shutdown().await
    };
    // A client that has gone is nobody to complain to; one half may end before the other.
    let mut down = std::pin::pin!(down);
    let is_over = tokio::select! {
        _ = &mut down => true,
        ended = up => ended.is_err(),
    };
    if !is_over {
        let _: io::Result<()> = down.await;
    }
    let said = error.read_to_end(ERROR_MAX).await;
    if said.is_empty() {
        return Ok(());
    }
    Err(SessionError::Failed(String::from_utf8_lossy(&said).trim().to_owned()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings() {
        let cases = [
            ("80", Some((80, 80))),
            ("8080:80", Some((8080, 80))),
            (":80", Some((0, 80))),
            ("0:80", Some((0, 80))),
            ("80:0", None),
            ("0", None),
            ("", None),
            ("x:80", None),
            ("1:2:3", None),
            ("65536", None),
        ];
        for (text, expected) in cases {
            let found = text.parse::<Mapping>().ok().map(|mapping| (mapping.local, mapping.remote));
            assert_eq!(found, expected, "{text}");
        }
    }
}
