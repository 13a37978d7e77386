//! Where a shim listens, as its `start` command prints it.

use std::path::PathBuf;

use serde::Deserialize;
use thiserror::Error;

/// An address is a path; what is longer than this is none.
const ADDRESS_MAX_BYTES: usize = 4096;

/// What a shim's `start` printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Started {
    /// As printed, to be written down.
    pub(crate) address: String,
    /// Of the service Task.
    pub(crate) version: Version,
}

/// Which service a shim offers. The messages are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, Deserialize)]
pub(crate) enum Version {
    V2,
    V3,
}

/// A socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Path(PathBuf),
    /// In Linux' name space of its own, see unix(7).
    Abstract(String),
}

/// Why what a shim printed is no address.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum AddressError {
    #[error("it printed no address")]
    Empty,
    #[error("it printed {0} bytes, no address")]
    TooLong(usize),
    #[error("it printed no text")]
    NotText,
    #[error("its version {0} is not supported")]
    Version(u32),
    #[error("its protocol {0:?} is not supported, only ttrpc")]
    Protocol(String),
    #[error("its address {0:?} is not a unix socket")]
    NotUnix(String),
}

/// Newer shims print an object. Source: containerd's shim documentation.
#[derive(Deserialize)]
struct Parameters {
    version: u32,
    address: String,
    #[serde(default)]
    protocol: String,
}

/// Reads what `start` printed: an address, or JSON of the newer shims.
pub(crate) fn parse(printed: &[u8]) -> Result<Started, AddressError> {
    if printed.len() > ADDRESS_MAX_BYTES {
        return Err(AddressError::TooLong(printed.len()));
    }
    let text = std::str::from_utf8(printed).map_err(|_| AddressError::NotText)?.trim();
    let (address, version) = match serde_json::from_str::<Parameters>(text) {
        Ok(parameters) => {
            let version = match parameters.version {
                2 => Version::V2,
                3 => Version::V3,
                other => return Err(AddressError::Version(other)),
            };
            if !matches!(parameters.protocol.as_str(), "" | "ttrpc") {
                return Err(AddressError::Protocol(parameters.protocol));
            }
            (parameters.address, version)
        }
        Err(_) => (text.to_owned(), Version::V2),
    };
    Address::parse(&address)?;
    Ok(Started { address, version })
}

impl Address {
    /// `unix://` and a path, or a name of the abstract space.
    pub(crate) fn parse(text: &str) -> Result<Self, AddressError> {
        if text.bytes().any(|byte| byte.is_ascii_control()) {
            return Err(AddressError::NotUnix(text.to_owned()));
        }
        match text.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Path(path.into())),
            Some(_) => Err(AddressError::NotUnix(text.to_owned())),
            None if text.is_empty() => Err(AddressError::Empty),
            None if text.starts_with('/') => Ok(Self::Abstract(text.to_owned())),
            None => Err(AddressError::NotUnix(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shims_of_every_age_say_where_they_are() {
        let ok = |address: &str, version| Ok(Started { address: address.to_owned(), version });
        for (printed, expected) in [
            ("unix:///run/s/1\n", ok("unix:///run/s/1", Version::V2)),
            ("/containerd-shim/x.sock", ok("/containerd-shim/x.sock", Version::V2)),
            (r#"{"version":2,"address":"unix:///run/s/1","protocol":"ttrpc"}"#, ok("unix:///run/s/1", Version::V2)),
            (r#"{"version":3,"address":"unix:///s"}"#, ok("unix:///s", Version::V3)),
            (r#"{"version":4,"address":"unix:///s"}"#, Err(AddressError::Version(4))),
            (
                r#"{"version":2,"address":"unix:///s","protocol":"grpc"}"#,
                Err(AddressError::Protocol("grpc".to_owned())),
            ),
            ("", Err(AddressError::Empty)),
            ("vsock://3:1", Err(AddressError::NotUnix("vsock://3:1".to_owned()))),
            ("usage: shim", Err(AddressError::NotUnix("usage: shim".to_owned()))),
            ("unix://relative", Err(AddressError::NotUnix("unix://relative".to_owned()))),
        ] {
            assert_eq!(parse(printed.as_bytes()), expected, "{printed}");
        }
        assert_eq!(parse(&[b'/'; 5000]), Err(AddressError::TooLong(5000)));
        assert_eq!(parse(b"/\xff"), Err(AddressError::NotText));
    }
}
