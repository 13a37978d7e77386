//! Proxies by environment, as Go's net/http reads them: HTTP_PROXY, HTTPS_PROXY, NO_PROXY.

use std::fmt;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Uri;
use http::header::HeaderValue;

/// The values of the proxy variables; empty means unset.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ProxyOptions {
    /// For plain HTTP.
    pub http: String,
    /// For HTTPS.
    pub https: String,
    /// Hosts, domains, addresses, networks to reach directly.
    pub no_proxy: String,
}

impl fmt::Debug for ProxyOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The addresses may hold a password.
        f.debug_struct("ProxyOptions").field("no_proxy", &self.no_proxy).finish_non_exhaustive()
    }
}

impl ProxyOptions {
    /// Reads the variables, the upper-case name first.
    #[must_use]
    pub fn from_environment() -> Self {
        let read = |upper: &str| {
            let value = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
            value(upper).or_else(|| value(&upper.to_ascii_lowercase())).unwrap_or_default()
        };
        Self { http: read("HTTP_PROXY"), https: read("HTTPS_PROXY"), no_proxy: read("NO_PROXY") }
    }
}

#[derive(Clone)]
pub(crate) struct ProxyServer {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) authorization: Option<HeaderValue>,
}

#[derive(Default)]
pub(crate) struct Proxy {
    http: Option<ProxyServer>,
    https: Option<ProxyServer>,
    direct: Vec<Direct>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proxy")
    }
}

/// One entry of NO_PROXY.
#[derive(Debug, PartialEq, Eq)]
enum Direct {
    Everything,
    Address(IpAddr, Option<u16>),
    Network(IpAddr, u8),
    /// A domain and its subdomains; with a leading dot only the latter.
    Domain(String, Option<u16>),
}

impl Proxy {
    /// The second value is warnings, naming variables that have no effect.
    pub(crate) fn parse(options: &ProxyOptions) -> (Self, Vec<String>) {
        let mut warnings = Vec::new();
        let mut server = |variable: &str, value: &str| {
            if value.is_empty() {
                return None;
            }
            let server = ProxyServer::parse(value);
            if server.is_none() {
                warnings.push(format!("{variable} has no effect: only http:// proxies are supported"));
            }
            server
        };
        let http = server("HTTP_PROXY", &options.http);
        let https = server("HTTPS_PROXY", &options.https);
        let direct = options.no_proxy.split(',').filter_map(Direct::parse).collect();
        (Self { http, https, direct }, warnings)
    }

    /// The proxy for an address; loopback never has one.
    pub(crate) fn find(&self, uri: &Uri) -> Option<ProxyServer> {
        let (proxy, port) = match uri.scheme_str() {
            Some("https") => (&self.https, 443),
            _ => (&self.http, 80),
        };
        let proxy = proxy.as_ref()?;
        let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let port = uri.port_u16().unwrap_or(port);
        let address = host.parse::<IpAddr>().ok();
        let is_loopback = host == "localhost" || address.is_some_and(|address| address.is_loopback());
        let is_direct = is_loopback || self.direct.iter().any(|direct| direct.covers(&host, address, port));
        (!is_direct).then(|| proxy.clone())
    }

    /// The header a plain request needs on its way through a proxy.
    pub(super) fn authorization_for(&self, uri: &Uri) -> Option<HeaderValue> {
        self.find(uri)?.authorization
    }
}

impl ProxyServer {
    fn parse(value: &str) -> Option<Self> {
        let rest = match value.split_once("://") {
            None => value,
            Some(("http", rest)) => rest,
            Some(_) => return None,
        };
        let authority = rest.split('/').next()?;
        let (login, authority) = match authority.rsplit_once('@') {
            Some((login, authority)) => (Some(login), authority),
            None => (None, authority),
        };
        let authority: http::uri::Authority = authority.parse().ok()?;
        let authorization = match login {
            None => None,
            Some(login) => {
                let mut header =
                    HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(percent_decode(login)))).ok()?;
                header.set_sensitive(true);
                Some(header)
            }
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        (!host.is_empty()).then(|| Self { host, port: authority.port_u16().unwrap_or(80), authorization })
    }
}

fn percent_decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let hex = bytes.get(at + 1..at + 3).and_then(|pair| std::str::from_utf8(pair).ok());
        match hex.filter(|_| *byte == b'%').and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(value) => {
                decoded.push(value);
                at += 3;
            }
            None => {
                decoded.push(*byte);
                at += 1;
            }
        }
    }
    decoded
}

impl Direct {
    fn parse(entry: &str) -> Option<Self> {
        let entry = entry.trim().to_ascii_lowercase();
        if entry.is_empty() {
            return None;
        }
        if entry == "*" {
            return Some(Self::Everything);
        }
        if let Some((address, bits)) = entry.split_once('/') {
            let address: IpAddr = address.parse().ok()?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            return bits.parse().ok().filter(|bits| *bits <= most).map(|bits| Self::Network(address, bits));
        }
        let bare = entry.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse() {
            return Some(Self::Address(address, None));
        }
        let (host, port) = match entry.rsplit_once(':').map(|(host, port)| (host, port.parse())) {
            Some((host, Ok(port))) => (host, Some(port)),
            _ => (entry.as_str(), None),
        };
        if let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse() {
            return Some(Self::Address(address, port));
        }
        Some(Self::Domain(host.strip_prefix('*').unwrap_or(host).to_owned(), port))
    }

    fn covers(&self, host: &str, address: Option<IpAddr>, port: u16) -> bool {
        let is_port = |wanted: &Option<u16>| wanted.is_none_or(|wanted| wanted == port);
        match self {
            Self::Everything => true,
            Self::Address(wanted, wanted_port) => address == Some(*wanted) && is_port(wanted_port),
            Self::Network(network, bits) => address.is_some_and(|address| is_within(address, *network, *bits)),
            Self::Domain(domain, wanted_port) => {
                let is_subdomain = |suffix: &str| {
                    host.strip_suffix(suffix)
                        .is_some_and(|rest| !rest.is_empty() && (suffix.starts_with('.') || rest.ends_with('.')))
                };
                is_port(wanted_port) && (host == domain || is_subdomain(domain))
            }
        }
    }
}

fn is_within(address: IpAddr, network: IpAddr, bits: u8) -> bool {
    let mask = |width: u32| u128::MAX.checked_shl(width - u32::from(bits)).unwrap_or(0);
    match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            (u128::from(u32::from(address)) ^ u128::from(u32::from(network))) & mask(32) & u128::from(u32::MAX) == 0
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => (u128::from(address) ^ u128::from(network)) & mask(128) == 0,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_chosen_as_go_does() {
        let (proxy, warnings) = Proxy::parse(&ProxyOptions {
            http: "proxy.example:3128".into(),
            https: "http://us%65r:p%40ss@[2001:db8::1]:8080/".into(),
            no_proxy: "direct.example, .sub.example,10.0.0.0/8,192.0.2.1,port.example:5000,*.star.example,::1/64"
                .into(),
        });
        assert_eq!(warnings, Vec::<String>::new());
        for (uri, expected) in [
            ("http://quay.io/v2/", Some("proxy.example")),
            ("https://quay.io/v2/", Some("2001:db8::1")),
            ("https://direct.example/", None),
            ("https://a.direct.example/", None),
            ("https://indirect.example/", Some("2001:db8::1")),
            ("https://sub.example/", Some("2001:db8::1")),
            ("https://a.sub.example/", None),
            ("https://a.star.example/", None),
            ("https://10.1.2.3/", None),
            ("https://11.1.2.3/", Some("2001:db8::1")),
            ("https://192.0.2.1:5000/", None),
            ("https://port.example:5000/", None),
            ("https://port.example/", Some("2001:db8::1")),
            ("http://localhost:5000/", None),
            ("http://127.3.2.1/", None),
            ("http://[::1]:5000/", None),
        ] {
            assert_eq!(proxy.find(&uri.parse().unwrap()).map(|server| server.host).as_deref(), expected, "{uri}");
        }
        let server = proxy.find(&"https://quay.io/".parse().unwrap()).unwrap();
        assert_eq!(server.port, 8080);
        let expected = format!("Basic {}", STANDARD.encode("user:p@ss"));
        assert_eq!(server.authorization.unwrap().to_str().unwrap(), expected);
    }

    #[test]
    fn unsupported_proxies_warn_by_name() {
        let options = ProxyOptions { https: "socks5://secret@x".into(), ..ProxyOptions::default() };
        let (proxy, warnings) = Proxy::parse(&options);
        assert!(proxy.find(&"https://quay.io/".parse().unwrap()).is_none());
        assert!(warnings[0].contains("HTTPS_PROXY") && !warnings[0].contains("secret"), "{warnings:?}");
        assert!(!format!("{options:?}").contains("secret"));
    }
}
