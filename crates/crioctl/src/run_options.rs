//! The values of `run`'s options.

use std::net::IpAddr;
use std::str::FromStr;

use cri_api::v1::{Mount, MountPropagation, PortMapping, Protocol};

/// `[IP:]HOST:CONTAINER[/PROTOCOL]`; an IPv6 address stands in brackets.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Port(pub(crate) PortMapping);

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (ports, protocol) = match text.rsplit_once('/') {
            None => (text, Protocol::Tcp),
            Some((ports, "tcp")) => (ports, Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some((ports, "sctp")) => (ports, Protocol::Sctp),
            Some((_, other)) => return Err(format!("no protocol {other:?}; there are tcp, udp, sctp")),
        };
        let (host, container) = ports.rsplit_once(':').ok_or("it is not [IP:]HOST:CONTAINER[/PROTOCOL]")?;
        let (ip, host) = match host.rsplit_once(':') {
            None => ("", host),
            Some((ip, host)) => (ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip), host),
        };
        if !ip.is_empty() && ip.parse::<IpAddr>().is_err() {
            return Err(format!("{ip:?} is not an IP address"));
        }
        let port = |text: &str| match text.parse::<u16>() {
            Ok(port) if port > 0 => Ok(i32::from(port)),
            _ => Err(format!("{text:?} is not a port from 1 to 65535")),
        };
        Ok(Self(PortMapping {
            protocol: protocol.into(),
            container_port: port(container)?,
            host_port: port(host)?,
            host_ip: ip.to_owned(),
        }))
    }
}

/// `NAME=VALUE`, or `NAME` for the client's own value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EnvVariable {
    pub(crate) name: String,
    /// Nothing to pass on the client's, if it has one.
    pub(crate) value: Option<String>,
}

impl FromStr for EnvVariable {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        if name.is_empty() {
            return Err("the name is empty".to_owned());
        }
        Ok(Self { name: name.to_owned(), value })
    }
}

/// `NAME=VALUE`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Label {
    pub(crate) name: String,
    pub(crate) value: String,
}

impl FromStr for Label {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok(Self { name: name.to_owned(), value: value.to_owned() }),
            _ => Err("it is not NAME=VALUE".to_owned()),
        }
    }
}

/// `HOST:CONTAINER[:OPTION,...]`, both paths absolute.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Volume(pub(crate) Mount);

impl FromStr for Volume {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.splitn(3, ':');
        let (Some(host), Some(container)) = (parts.next(), parts.next()) else {
            return Err("it is not HOST:CONTAINER[:OPTION,...]".to_owned());
        };
        for path in [host, container] {
            if !path.starts_with('/') {
                return Err(format!("{path:?} is not an absolute path"));
            }
        }
        let mut mount =
            Mount { host_path: host.to_owned(), container_path: container.to_owned(), ..Default::default() };
        for option in parts.next().into_iter().flat_map(|options| options.split(',')) {
            match option {
                "ro" => mount.readonly = true,
                "rw" => mount.readonly = false,
                "z" => mount.selinux_relabel = true,
                "private" => mount.set_propagation(MountPropagation::PropagationPrivate),
                "rslave" => mount.set_propagation(MountPropagation::PropagationHostToContainer),
                "rshared" => mount.set_propagation(MountPropagation::PropagationBidirectional),
                other => return Err(format!("no option {other:?}; there are ro, rw, z, private, rslave, rshared")),
            }
        }
        Ok(Self(mount))
    }
}

/// Whom a container runs as.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum User {
    /// By number, with an optional group.
    Ids { uid: i64, gid: Option<i64> },
    /// By a name in the image.
    Name(String),
}

impl FromStr for User {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let id = |text: &str| text.parse::<u32>().map(i64::from);
        match text.split_once(':') {
            None if text.is_empty() => Err("it is empty".to_owned()),
            None => Ok(id(text).map_or_else(|_| Self::Name(text.to_owned()), |uid| Self::Ids { uid, gid: None })),
            Some((uid, gid)) => match (id(uid), id(gid)) {
                (Ok(uid), Ok(gid)) => Ok(Self::Ids { uid, gid: Some(gid) }),
                // CRI has run_as_group as a number and refuses it beside a user name.
                _ => Err("with a group it must be UID:GID, both numbers".to_owned()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: FromStr<Err = String>, S: PartialEq + std::fmt::Debug>(
        cases: &[(&str, Result<S, &str>)],
        show: impl Fn(T) -> S,
    ) {
        for (text, expected) in cases {
            match (text.parse::<T>().map(&show), expected) {
                (Ok(got), Ok(wanted)) => assert_eq!(&got, wanted, "{text}"),
                (Err(got), Err(wanted)) => assert!(got.contains(wanted), "{text}: {got}"),
                (got, _) => panic!("{text}: {got:?}"),
            }
        }
    }

    #[test]
    fn ports() {
        check::<Port, _>(
            &[
                ("8080:80", Ok(("".to_owned(), 8080, 80, Protocol::Tcp))),
                ("53:54/udp", Ok(("".to_owned(), 53, 54, Protocol::Udp))),
                ("1:65535/sctp", Ok(("".to_owned(), 1, 65535, Protocol::Sctp))),
                ("127.0.0.1:1:2/tcp", Ok(("127.0.0.1".to_owned(), 1, 2, Protocol::Tcp))),
                ("[::1]:1:2", Ok(("::1".to_owned(), 1, 2, Protocol::Tcp))),
                ("80", Err("it is not")),
                ("0:80", Err("\"0\" is not a port")),
                ("80:65536", Err("\"65536\" is not a port")),
                ("80:80/http", Err("no protocol")),
                ("host:80:80", Err("not an IP address")),
                (":80", Err("\"\" is not a port")),
                ("", Err("it is not")),
            ],
            |Port(p)| (p.host_ip.clone(), p.host_port, p.container_port, p.protocol()),
        );
    }

    #[test]
    fn variables() {
        let some = |name: &str, value: &str| Ok((name.to_owned(), Some(value.to_owned())));
        check::<EnvVariable, _>(
            &[
                ("A=b", some("A", "b")),
                ("A=", some("A", "")),
                ("A=b=c", some("A", "b=c")),
                ("A", Ok(("A".to_owned(), None))),
                ("=b", Err("empty")),
                ("", Err("empty")),
            ],
            |variable| (variable.name, variable.value),
        );
    }

    #[test]
    fn volumes() {
        let mount =
            |readonly, relabel, propagation| Ok(("/a".to_owned(), "/b".to_owned(), readonly, relabel, propagation));
        check::<Volume, _>(
            &[
                ("/a:/b", mount(false, false, MountPropagation::PropagationPrivate)),
                ("/a:/b:ro", mount(true, false, MountPropagation::PropagationPrivate)),
                ("/a:/b:ro,z,rslave", mount(true, true, MountPropagation::PropagationHostToContainer)),
                ("/a:/b:rw,rshared", mount(false, false, MountPropagation::PropagationBidirectional)),
                ("/a", Err("it is not")),
                ("a:/b", Err("\"a\" is not an absolute path")),
                ("/a:b", Err("\"b\" is not an absolute path")),
                ("/a:/b:rx", Err("no option \"rx\"")),
                ("/a:/b:", Err("no option \"\"")),
            ],
            |Volume(m)| (m.host_path.clone(), m.container_path.clone(), m.readonly, m.selinux_relabel, m.propagation()),
        );
    }

    #[test]
    fn users() {
        check::<User, _>(
            &[
                ("0", Ok(User::Ids { uid: 0, gid: None })),
                ("1000:100", Ok(User::Ids { uid: 1000, gid: Some(100) })),
                ("nobody", Ok(User::Name("nobody".to_owned()))),
                ("nobody:0", Err("both numbers")),
                ("1:x", Err("both numbers")),
                ("", Err("empty")),
            ],
            |user| user,
        );
    }

    #[test]
    fn labels() {
        check::<Label, _>(
            &[("a=b", Ok(("a".to_owned(), "b".to_owned()))), ("a", Err("NAME=VALUE")), ("=b", Err("NAME=VALUE"))],
            |label| (label.name, label.value),
        );
    }
}
