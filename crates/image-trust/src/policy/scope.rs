//! Which list of a policy is for an image. Source: containers-policy.json(5), "Supported transports and their scopes".

use std::path::{Component, Path};

use super::{Policy, Requirement};
use crate::name::Name;

/// Where an image comes from, as far as policies tell places apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A registry. The name has a tag or a digest, not both.
    Docker(Name),
    /// `oci:` and `oci-archive:`: an absolute path without links. Such images have no name and no signatures.
    Path {
        /// `oci` or `oci-archive`.
        transport: &'static str,
        /// The directory or file.
        path: String,
    },
    /// `docker-archive:`, whose files are not told apart.
    DockerArchive,
}

impl Place {
    pub(crate) fn transport(&self) -> &'static str {
        match self {
            Self::Docker(_) => "docker",
            Self::Path { transport, .. } => transport,
            Self::DockerArchive => "docker-archive",
        }
    }

    /// Scopes that mean this place, the narrowest first; without the empty one.
    fn scopes(&self) -> Vec<String> {
        match self {
            Self::Docker(name) => docker_scopes(name),
            Self::Path { path, .. } => path_scopes(path),
            Self::DockerArchive => Vec::new(),
        }
    }

    /// For people.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Docker(name) => format!("docker://{name}"),
            Self::Path { transport, path } => format!("{transport}:{path}"),
            Self::DockerArchive => "docker-archive:".to_owned(),
        }
    }
}

/// The name itself, its repository, that one's parents, the host, and wildcards over the host's domains.
pub(crate) fn docker_scopes(name: &Name) -> Vec<String> {
    let mut scopes = vec![name.to_string()];
    let mut prefix = name.repository();
    loop {
        scopes.push(prefix.to_owned());
        match prefix.rfind('/') {
            Some(slash) => prefix = &prefix[..slash],
            None => break,
        }
    }
    let mut host = prefix.split(':').next().unwrap_or_default();
    while let Some((_, rest)) = host.split_once('.') {
        scopes.push(format!("*.{rest}"));
        host = rest;
    }
    scopes.dedup();
    scopes
}

fn path_scopes(path: &str) -> Vec<String> {
    let mut scopes = Vec::new();
    let mut path = path;
    while let Some(slash) = path.rfind('/').filter(|_| path != "/") {
        scopes.push(path.to_owned());
        path = &path[..slash];
    }
    scopes
}

/// Whether a transport can have such a scope. Of transports that are not known here anything is let pass: they never
/// match, and other tools read the same file.
pub(super) fn check_scope(transport: &str, scope: &str) -> Result<(), String> {
    match (transport, scope) {
        (_, "") => Ok(()),
        ("docker-archive" | "tarball", _) => Err("only the scope \"\" is supported".to_owned()),
        ("dir" | "oci" | "oci-archive" | "sif", "/") => Err("use the scope \"\" instead".to_owned()),
        ("dir" | "oci" | "oci-archive" | "sif", path) if !path.starts_with('/') => {
            Err("must be an absolute path".to_owned())
        }
        ("dir" | "oci" | "oci-archive" | "sif", path) if !is_clean(path) => {
            Err("must be a path without \".\", \"..\" and empty parts".to_owned())
        }
        ("docker-daemon", digest) if digest.starts_with("sha256:") => Err("a digest cannot be a scope".to_owned()),
        _ => Ok(()),
    }
}

fn is_clean(path: &str) -> bool {
    let is_plain = |component| matches!(component, Component::RootDir | Component::Normal(_));
    let parts = Path::new(path).components();
    let rebuilt: std::path::PathBuf = parts.clone().collect();
    parts.clone().all(is_plain) && rebuilt.as_os_str() == path
}

impl Policy {
    /// The list for a place: the narrowest scope's, else the transport's, else the default.
    pub(crate) fn requirements(&self, place: &Place) -> &[Requirement] {
        let Some(scopes) = self.transports.get(place.transport()) else { return &self.default };
        let narrow = place.scopes().into_iter().find_map(|scope| scopes.get(&scope));
        narrow.or_else(|| scopes.get("")).unwrap_or(&self.default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_of_a_name_go_from_narrow_to_wide() {
        let hex = "ab".repeat(32);
        for (name, expected) in [
            (
                "busybox:1",
                vec![
                    "docker.io/library/busybox:1",
                    "docker.io/library/busybox",
                    "docker.io/library",
                    "docker.io",
                    "*.io",
                ],
            ),
            (
                "a.b.example.com:5000/x/y:t",
                vec![
                    "a.b.example.com:5000/x/y:t",
                    "a.b.example.com:5000/x/y",
                    "a.b.example.com:5000/x",
                    "a.b.example.com:5000",
                    "*.b.example.com",
                    "*.example.com",
                    "*.com",
                ],
            ),
            ("localhost/a:t", vec!["localhost/a:t", "localhost/a", "localhost"]),
            (&format!("q.io/a@sha256:{hex}"), vec![&format!("q.io/a@sha256:{hex}"), "q.io/a", "q.io", "*.io"]),
        ] {
            assert_eq!(docker_scopes(&Name::parse(name).expect("parses")), expected, "{name}");
        }
        assert_eq!(path_scopes("/a/b/c"), ["/a/b/c", "/a/b", "/a"]);
    }

    #[test]
    fn the_narrowest_scope_wins() {
        let list = |kind: &str| format!(r#"[{{"type": "{kind}"}}]"#);
        let (yes, no) = (list("insecureAcceptAnything"), list("reject"));
        let policy = format!(
            r#"{{"default": {no}, "transports": {{
                "docker": {{"q.io/a/b:1": {yes}, "q.io/a": {no}, "*.example.com": {yes}, "x.example.com": {no}, "w.io/a": {yes}}},
                "oci": {{"/srv": {yes}, "/srv/no": {no}}},
                "docker-archive": {{"": {yes}}}}}}}"#
        );
        let policy = Policy::parse(policy.as_bytes()).expect("parses");
        let docker = |name: &str| Place::Docker(Name::parse(name).expect("parses"));
        let oci = |path: &str| Place::Path { transport: "oci", path: path.to_owned() };
        for (place, expected) in [
            (docker("q.io/a/b:1"), true),
            (docker("q.io/a/b:2"), false),
            (docker("q.io/c:1"), false),
            (docker("y.example.com:5000/c:1"), true),
            (docker("x.example.com/c:1"), false),
            (docker("example.com/c:1"), false),
            (docker("w.io/a:1"), true),
            (docker("w.io/ab:1"), false),
            (oci("/srv/image"), true),
            (oci("/srv/no/image"), false),
            (oci("/srvx"), false),
            (Place::DockerArchive, true),
            (Place::Path { transport: "oci-archive", path: "/srv/a".to_owned() }, false),
        ] {
            let found = policy.requirements(&place);
            assert_eq!(matches!(found, [Requirement::InsecureAcceptAnything]), expected, "{place:?}");
        }
    }

    #[test]
    fn scopes_fit_their_transport() {
        for (transport, scope, expected) in [
            ("docker", "anything", true),
            ("dir", "/a/b", true),
            ("dir", "a", false),
            ("oci", "/", false),
            ("oci", "/a/../b", false),
            ("oci", "/a/", false),
            ("oci-archive", "/a//b", false),
            ("docker-archive", "/a", false),
            ("docker-archive", "", true),
            ("docker-daemon", "sha256:ab", false),
            ("containers-storage", "[overlay@/x]", true),
            ("atomic", "host/ns", true),
        ] {
            assert_eq!(check_scope(transport, scope).is_ok(), expected, "{transport} {scope}");
        }
    }
}
