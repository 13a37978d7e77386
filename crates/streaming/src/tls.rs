//! Encryption: the certificate, whom to let in, and how both change while the server runs.

mod validity;

use std::convert::Infallible;
use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{cipher_suite, default_provider};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, SupportedCipherSuite};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use validity::Validity;

/// Largest file of certificates: a bundle of all public authorities has 250 KB.
const FILE_MAX_BYTES: u64 = 1 << 20;
/// How often the files are looked at while no client comes. A look is three calls of stat(2).
const WATCH_PERIOD: Duration = Duration::from_secs(5);

/// The oldest version of TLS that is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2.
    V12,
    /// TLS 1.3.
    V13,
}

/// How connections are encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsOptions {
    /// The server's certificate and those that lead to its authority, PEM.
    pub certificate: PathBuf,
    /// The certificate's key, PEM.
    pub key: PathBuf,
    /// Authorities, PEM: a client must show a certificate of one of them. `None` lets every client in.
    pub authorities: Option<PathBuf>,
    /// The oldest version.
    pub min_version: TlsVersion,
    /// IANA names of the suites for TLS 1.2; none at all is all that are known. TLS 1.3 has its own.
    pub cipher_suites: Vec<String>,
}

/// Why connections cannot be encrypted.
#[derive(Debug, Error)]
pub enum TlsError {
    /// Suites without a safe implementation, or of no name known.
    #[error("cipher suites that this build does not have: {}", .0.join(", "))]
    CipherSuites(Vec<String>),
    /// A file cannot be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        #[source]
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{path}: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The parts do not fit together.
    #[error("encrypt with certificate {certificate} and key {key}: {reason}")]
    Unfit {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's.
        key: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Suites of TLS 1.2 by IANA name; two of them have an older name besides. The others that Go has are no more safe: CBC
/// modes, RC4, 3DES, and keys that RSA transports.
const SUITES: [(&str, SupportedCipherSuite); 8] = [
    ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305", cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305", cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
];

/// Suites of TLS 1.3, which may be in the list too and change nothing. Source: Go, `tls.Config.CipherSuites`.
const FIXED_SUITES: [&str; 3] = ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];

/// Suites to offer: those of TLS 1.3, and for TLS 1.2 those that are named, or all.
fn choose_suites(min_version: TlsVersion, names: &[String]) -> Result<Vec<SupportedCipherSuite>, TlsError> {
    let all = default_provider().cipher_suites;
    if min_version == TlsVersion::V13 || names.is_empty() {
        return Ok(all);
    }
    let find = |name: &str| SUITES.iter().find(|(known, _)| *known == name).map(|(_, suite)| *suite);
    let unknown: Vec<_> =
        names.iter().filter(|name| find(name).is_none() && !FIXED_SUITES.contains(&name.as_str())).cloned().collect();
    if !unknown.is_empty() {
        return Err(TlsError::CipherSuites(unknown));
    }
    let fixed = all.into_iter().filter(|suite| suite.tls13().is_some());
    Ok(fixed.chain(names.iter().filter_map(|name| find(name))).collect())
}

/// What tells one content of a file from another without reading it: its place on disk, size and time of change.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

fn stamp(path: &Path) -> Stamp {
    let of = |file: Metadata| (file.dev(), file.ino(), file.size(), file.ctime(), file.ctime_nsec());
    std::fs::metadata(path).ok().map(of)
}

#[derive(Debug)]
struct Loaded {
    stamps: Vec<Stamp>,
    config: Arc<ServerConfig>,
}

/// Encrypts connections with what the files hold when they arrive.
#[derive(Debug)]
pub(crate) struct Tls {
    options: TlsOptions,
    suites: Vec<SupportedCipherSuite>,
    loaded: Mutex<Loaded>,
}

impl Tls {
    /// Reads the files. Blocking.
    pub(crate) fn open(options: TlsOptions) -> Result<Self, TlsError> {
        let suites = choose_suites(options.min_version, &options.cipher_suites)?;
        let stamps = stamps(&options);
        let config = load(&options, &suites)?;
        Ok(Self { options, suites, loaded: Mutex::new(Loaded { stamps, config }) })
    }

    /// The current files' meaning; the former one where they are damaged, until they change again. Blocking.
    ///
    /// Looking at the files for every connection finds also what a watch on them misses: links that come to lead to
    /// other files, which is how Kubernetes changes mounted secrets.
    fn current(&self) -> Arc<ServerConfig> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamps(&self.options);
        if now != loaded.stamps {
            loaded.stamps = now;
            tracing::info!(certificate = %self.options.certificate.display(), "reloading certificates");
            match load(&self.options, &self.suites) {
                Ok(config) => loaded.config = config,
                Err(error) => {
                    let error = telemetry::chain(&error);
                    tracing::warn!(%error, "certificates have changed for the worse, the former ones stay");
                }
            }
        }
        Arc::clone(&loaded.config)
    }

    async fn look(self: Arc<Self>) -> std::io::Result<Arc<ServerConfig>> {
        tokio::task::spawn_blocking(move || self.current()).await.map_err(std::io::Error::other)
    }

    /// Looks at the files from time to time, so that who changes them reads at once in the log what came of it.
    pub(crate) async fn watch(self: Arc<Self>) -> Infallible {
        loop {
            tokio::time::sleep(WATCH_PERIOD).await;
            let _ = Arc::clone(&self).look().await;
        }
    }

    /// Agrees with a client on how to encrypt.
    pub(crate) async fn accept(self: Arc<Self>, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        TlsAcceptor::from(self.look().await?).accept(stream).await
    }
}

fn stamps(options: &TlsOptions) -> Vec<Stamp> {
    let files = [Some(&options.certificate), Some(&options.key), options.authorities.as_ref()];
    files.into_iter().flatten().map(|path| stamp(path)).collect()
}

fn load(options: &TlsOptions, suites: &[SupportedCipherSuite]) -> Result<Arc<ServerConfig>, TlsError> {
    let unfit =
        |reason: String| TlsError::Unfit { certificate: options.certificate.clone(), key: options.key.clone(), reason };
    let chain = read_certificates(&options.certificate)?;
    check_validity(&options.certificate, &chain)?;
    let key = PrivateKeyDer::from_pem_slice(&read(&options.key)?).map_err(|error| damaged(&options.key, error))?;
    let provider = Arc::new(CryptoProvider { cipher_suites: suites.to_vec(), ..default_provider() });
    let versions: &[_] = match options.min_version {
        TlsVersion::V12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
        TlsVersion::V13 => &[&rustls::version::TLS13],
    };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .map_err(|error| unfit(error.to_string()))?;
    let builder = match &options.authorities {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for authority in read_certificates(path)? {
                roots.add(authority).map_err(|error| damaged(path, error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| damaged(path, error))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    builder.with_single_cert(chain, key).map(Arc::new).map_err(|error| unfit(error.to_string()))
}

/// A certificate outside its time is refused at once: no client would accept it. Source: CRI-O.
fn check_validity(path: &Path, chain: &[CertificateDer<'static>]) -> Result<(), TlsError> {
    let first = chain.first().ok_or_else(|| damaged(path, "no certificate in it"))?;
    let validity = Validity::of(first).ok_or_else(|| damaged(path, "its certificate has no readable time"))?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    if now < validity.first {
        return Err(damaged(path, "its certificate is not valid yet"));
    }
    if now > validity.last {
        return Err(damaged(path, "its certificate is not valid any more"));
    }
    Ok(())
}

fn damaged(path: &Path, reason: impl ToString) -> TlsError {
    TlsError::Damaged { path: path.to_owned(), reason: reason.to_string() }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    let certificates = certificates.map_err(|error| damaged(path, error))?;
    if certificates.is_empty() { Err(damaged(path, "no certificate in it")) } else { Ok(certificates) }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(FILE_MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_MAX_BYTES { Err(damaged(path, "too large")) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_are_found_by_name_or_refused_by_name() {
        let names = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let all = default_provider().cipher_suites.len();
        for (version, list, expected) in [
            (TlsVersion::V12, &[][..], Ok(all)),
            (TlsVersion::V12, &["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"], Ok(4)),
            (TlsVersion::V12, &["TLS_AES_128_GCM_SHA256"], Ok(3)),
            (TlsVersion::V12, &["TLS_RSA_WITH_AES_128_CBC_SHA", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "X"], {
                Err("cipher suites that this build does not have: TLS_RSA_WITH_AES_128_CBC_SHA, X".to_owned())
            }),
            (TlsVersion::V13, &["X"], Ok(all)),
        ] {
            let found = choose_suites(version, &names(list)).map(|suites| suites.len()).map_err(|e| e.to_string());
            assert_eq!(found, expected, "{list:?}");
        }
    }
}
