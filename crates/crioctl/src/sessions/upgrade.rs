//! From a URL to a connection that speaks SPDY.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::SessionError;

/// A server on this machine answers at once.
const LIMIT: Duration = Duration::from_secs(10);
/// Longest answer to the request for an upgrade, and longest text of a refusal.
const ANSWER_MAX: usize = 64 * 1024;

/// Certificates for streaming servers that encrypt.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trust {
    /// Authorities, PEM; those of this machine if `None`.
    pub(crate) authorities: Option<PathBuf>,
    /// The client's certificate and key, PEM.
    pub(crate) own: Option<(PathBuf, PathBuf)>,
}

/// Both directions of a connection.
pub(crate) trait Carrier: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Carrier for T {}

/// A connection after its upgrade.
pub(crate) type Upgraded = Pin<Box<dyn Carrier>>;

/// A URL as the RPC answers it.
#[derive(Debug, PartialEq, Eq)]
struct Place<'a> {
    is_encrypted: bool,
    /// With the port.
    host: &'a str,
    path: &'a str,
}

impl<'a> Place<'a> {
    fn parse(url: &'a str) -> Option<Self> {
        let (is_encrypted, rest) = match url.split_once("://")? {
            ("http", rest) => (false, rest),
            ("https", rest) => (true, rest),
            _ => return None,
        };
        let at = rest.find('/').unwrap_or(rest.len());
        let (host, path) = (&rest[..at], &rest[at..]);
        let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        (host.contains(':') && is_plain(host) && is_plain(path)).then_some(Self { is_encrypted, host, path })
    }

    fn name(&self) -> &'a str {
        let name = self.host.rsplit_once(':').map_or(self.host, |(name, _)| name);
        name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name)
    }
}

/// Connects and upgrades. `protocols` are offered in this order.
///
/// Errors: what the server says instead of upgrading.
pub(super) async fn upgrade(url: &str, protocols: &[&str], trust: &Trust) -> Result<Upgraded, SessionError> {
    let place = Place::parse(url).ok_or_else(|| SessionError::Url { url: url.to_owned() })?;
    let connect = |source| SessionError::Connect { host: place.host.to_owned(), source };
    let stream = timeout(LIMIT, TcpStream::connect(place.host)).await;
    let stream = stream.map_err(|_| connect(io::ErrorKind::TimedOut.into()))?.map_err(connect)?;
    stream.set_nodelay(true).map_err(connect)?;
    let mut carrier: Upgraded = if place.is_encrypted {
        let name = ServerName::try_from(place.name().to_owned())
            .map_err(|error| SessionError::Tls(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        let connector = TlsConnector::from(Arc::new(client_config(trust)?));
        let shake = timeout(LIMIT, connector.connect(name, stream)).await;
        Box::pin(shake.map_err(|_| connect(io::ErrorKind::TimedOut.into()))?.map_err(SessionError::Tls)?)
    } else {
        Box::pin(stream)
    };
    let mut request = format!(
        "POST {} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n",
        place.path, place.host
    );
    for protocol in protocols {
        request.push_str(&format!("X-Stream-Protocol-Version: {protocol}\r\n"));
    }
    request.push_str("\r\n");
    carrier.write_all(request.as_bytes()).await.map_err(SessionError::Broken)?;
    match timeout(LIMIT, answer(&mut carrier)).await {
        Ok(answer) => answer.map(|()| carrier),
        Err(_) => Err(SessionError::Broken(io::ErrorKind::TimedOut.into())),
    }
}

/// Reads up to the end of the answer's head; a refusal to its end.
async fn answer(carrier: &mut Upgraded) -> Result<(), SessionError> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        // A byte at a time: what follows the head is SPDY's.
        let byte = match carrier.read_u8().await {
            Ok(byte) if head.len() < ANSWER_MAX => byte,
            Ok(_) => return Err(SessionError::Broken(io::ErrorKind::InvalidData.into())),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(SessionError::Closed),
            Err(error) => return Err(SessionError::Broken(error)),
        };
        head.push(byte);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let status = head.lines().next().unwrap_or_default().split_once(' ').map_or("", |(_, status)| status);
    if status.starts_with("101") {
        return Ok(());
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<u64>().ok())?
    });
    let bound = length.unwrap_or(u64::MAX).min(ANSWER_MAX as u64);
    let mut text = Vec::new();
    // As much as there is; why it ends does not matter.
    let _ = timeout(Duration::from_secs(1), carrier.take(bound).read_to_end(&mut text)).await;
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    Err(SessionError::Refused { status: status.to_owned(), text })
}

fn client_config(trust: &Trust) -> Result<rustls::ClientConfig, SessionError> {
    let read = |what, path: &Path| {
        let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        certificates.map_err(|error| SessionError::TrustFile {
            what,
            path: path.to_owned(),
            source: io::Error::new(io::ErrorKind::InvalidData, error),
        })
    };
    let mut roots = rustls::RootCertStore::empty();
    let authorities = match &trust.authorities {
        Some(path) => read("certificate authorities", path)?,
        None => rustls_native_certs::load_native_certs().certs,
    };
    roots.add_parsable_certificates(authorities);
    let builder = rustls::ClientConfig::builder().with_root_certificates(roots);
    let config = match &trust.own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = read("certificate", certificate)?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| SessionError::TrustFile {
                what: "key",
                path: key.clone(),
                source: io::Error::new(io::ErrorKind::InvalidData, error),
            })?;
            let refused = |error| SessionError::Tls(io::Error::new(io::ErrorKind::InvalidInput, error));
            builder.with_client_auth_cert(chain, key).map_err(refused)?
        }
    };
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let place = |is_encrypted, host, path| Some(Place { is_encrypted, host, path });
        let cases = [
            ("http://127.0.0.1:4000/exec/abc", place(false, "127.0.0.1:4000", "/exec/abc")),
            ("https://[::1]:4000/attach/x?y", place(true, "[::1]:4000", "/attach/x?y")),
            ("http://127.0.0.1/exec", None),
            ("ftp://h:1/x", None),
            ("h:1/x", None),
            ("http://h:1/a b", None),
            ("http://h:1/a\r\nX: y", None),
            ("", None),
        ];
        for (url, expected) in cases {
            assert_eq!(Place::parse(url), expected, "{url}");
        }
        assert_eq!(Place::parse("https://[::1]:4000/x").map(|place| place.name()), Some("::1"));
    }
}
