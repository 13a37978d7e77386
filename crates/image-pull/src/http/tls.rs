//! Whom to trust: the system's authorities, those of certs.d, or anybody where the operator says so.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::sync::OnceCell;

use crate::blocking;
use crate::error::TransferError;
use crate::registries::Transport;

/// Largest certificate file: a bundle of all public authorities is 250 KB.
const CERTIFICATE_FILE_MAX_BYTES: u64 = 1 << 20;
/// Most files looked at in a certs.d directory.
const CERTIFICATE_FILES_MAX: usize = 64;

/// The system's authorities, read when first needed.
#[derive(Default)]
pub(crate) struct SystemRoots(OnceCell<Arc<RootCertStore>>);

impl fmt::Debug for SystemRoots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SystemRoots")
    }
}

/// Whom connections made for one registry trust.
pub(super) struct Trust {
    transport: Transport,
    registry: String,
    directories: Vec<PathBuf>,
    roots: Arc<SystemRoots>,
    configs: OnceCell<Configs>,
}

struct Configs {
    /// For the registry itself: shows the client certificate.
    own: Arc<ClientConfig>,
    /// For hosts it refers us to.
    others: Arc<ClientConfig>,
}

impl Trust {
    pub(super) fn new(
        transport: Transport,
        registry: String,
        directories: Vec<PathBuf>,
        roots: Arc<SystemRoots>,
    ) -> Self {
        Self { transport, registry, directories, roots, configs: OnceCell::new() }
    }

    pub(super) async fn config_for(&self, authority: &str) -> Result<Arc<ClientConfig>, TransferError> {
        let wrong = |reason| TransferError::Certificates { authority: authority.to_owned(), reason };
        let roots = self
            .roots
            .0
            .get_or_try_init(|| async {
                blocking::run("load the system's certificate authorities", load_system_roots)
                    .await
                    .map_err(|error| wrong(error.to_string()))
            })
            .await?;
        let configs = self
            .configs
            .get_or_try_init(|| async {
                let (roots, transport) = (Arc::clone(roots), self.transport);
                let directories: Vec<_> = self.directories.iter().map(|dir| dir.join(&self.registry)).collect();
                blocking::run("load certs.d", move || build(transport, &roots, &directories))
                    .await
                    .map_err(|error| wrong(error.to_string()))?
                    .map_err(wrong)
            })
            .await?;
        Ok(Arc::clone(if authority == self.registry { &configs.own } else { &configs.others }))
    }
}

fn load_system_roots() -> Arc<RootCertStore> {
    let loaded = rustls_native_certs::load_native_certs();
    for error in &loaded.errors {
        tracing::warn!(%error, "part of the system's certificate authorities could not be read");
    }
    let mut roots = RootCertStore::empty();
    let (added, ignored) = roots.add_parsable_certificates(loaded.certs);
    tracing::debug!(added, ignored, "loaded the system's certificate authorities");
    Arc::new(roots)
}

/// What a certs.d directory holds. Source: containers-certs.d(5).
#[derive(Default)]
struct HostCertificates {
    authorities: Vec<CertificateDer<'static>>,
    client: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

fn build(transport: Transport, system: &Arc<RootCertStore>, directories: &[PathBuf]) -> Result<Configs, String> {
    let host = match directories.iter().find(|directory| directory.is_dir()) {
        Some(directory) => load_host(directory)?,
        None => HostCertificates::default(),
    };
    let mut roots = Arc::clone(system);
    if !host.authorities.is_empty() {
        let own = Arc::make_mut(&mut roots);
        for authority in &host.authorities {
            own.add(authority.clone()).map_err(|error| format!("certificate authority: {error}"))?;
        }
    }
    let others = Arc::new(config(transport, &roots, &host.authorities, None)?);
    let own = match host.client {
        Some(client) => Arc::new(config(transport, &roots, &host.authorities, Some(client))?),
        None => Arc::clone(&others),
    };
    Ok(Configs { own, others })
}

fn config(
    transport: Transport,
    roots: &Arc<RootCertStore>,
    pinned: &[CertificateDer<'static>],
    client: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = match transport {
        Transport::Verified if pinned.is_empty() => builder.with_root_certificates(Arc::clone(roots)),
        Transport::Verified => {
            let chained = WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), provider)
                .build()
                .map_err(|error| error.to_string())?;
            let verifier = TrustChainOrPinned { chained, pinned: pinned.to_vec() };
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        }
        Transport::Insecure => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(TrustAnybody { provider }))
        }
    };
    let mut config = match client {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            builder.with_client_auth_cert(chain, key).map_err(|error| format!("client certificate: {error}"))?
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn load_host(directory: &Path) -> Result<HostCertificates, String> {
    let shown = |path: &Path, error: &dyn fmt::Display| format!("{}: {error}", path.display());
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(|error| shown(directory, &error))? {
        names.push(entry.map_err(|error| shown(directory, &error))?.path());
        if names.len() > CERTIFICATE_FILES_MAX {
            return Err(shown(directory, &format!("more than {CERTIFICATE_FILES_MAX} files")));
        }
    }
    names.sort();
    let mut host = HostCertificates::default();
    for path in &names {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => host.authorities.extend(read_chain(path)?),
            Some("cert") => {
                let key_path = path.with_extension("key");
                if !key_path.is_file() {
                    return Err(format!("{}: missing key {}", path.display(), key_path.display()));
                }
                let key = PrivateKeyDer::from_pem_slice(&read(&key_path)?).map_err(|error| shown(&key_path, &error))?;
                host.client = Some((read_chain(path)?, key));
            }
            Some("key") if !path.with_extension("cert").is_file() => {
                let chain = path.with_extension("cert");
                return Err(format!("{}: missing client certificate {}", path.display(), chain.display()));
            }
            _ => {}
        }
    }
    Ok(host)
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("{}: {error}", path.display()))?;
    if chain.is_empty() { Err(format!("{}: no certificate in it", path.display())) } else { Ok(chain) }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let shown = |error: &dyn fmt::Display| format!("{}: {error}", path.display());
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| shown(&error))?;
    file.take(CERTIFICATE_FILE_MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|error| shown(&error))?;
    if bytes.len() as u64 > CERTIFICATE_FILE_MAX_BYTES { Err(shown(&"too large")) } else { Ok(bytes) }
}

/// Accepts what chains to an authority, and a server whose very certificate the operator put into certs.d.
///
/// Many private registries serve one self-signed certificate, marked as an authority or not. Go accepts it as its own
/// root, webpki does not (`CaUsedAsEndEntity`, `UnknownIssuer`). Name and validity are checked all the same.
#[derive(Debug)]
struct TrustChainOrPinned {
    chained: Arc<WebPkiServerVerifier>,
    pinned: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for TrustChainOrPinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use rustls::CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
        let error = match self.chained.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            Ok(verified) => return Ok(verified),
            Err(error) => error,
        };
        // webpki looks at the dates before it looks for an issuer: any other complaint means they are in order.
        let is_about_dates = matches!(
            error,
            rustls::Error::InvalidCertificate(
                Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. }
            )
        );
        if is_about_dates || !self.pinned.iter().any(|pinned| pinned == certificate) {
            return Err(error);
        }
        rustls::client::verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chained.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chained.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chained.supported_verify_schemes()
    }
}

/// Accepts any certificate: `insecure = true` in registries.conf. The handshake's signatures still hold.
#[derive(Debug)]
struct TrustAnybody {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for TrustAnybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
