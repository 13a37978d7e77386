//! `WWW-Authenticate`: what a registry wants to see.
//!
//! Source: RFC 9110 section 11.6.1, and the token specification of the distribution project.

use http::header::{HeaderMap, WWW_AUTHENTICATE};

/// Longest header that is read; real ones stay below 500 bytes.
const HEADER_MAX_BYTES: usize = 8 << 10;
/// Most challenges read from one answer: registries send one or two.
const CHALLENGES_MAX: usize = 8;

/// One way to authenticate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// User name and password with each request.
    Basic,
    /// A token of a token service.
    Bearer {
        /// The service's address.
        realm: String,
        /// The registry's name at the service; may be empty.
        service: String,
        /// What the registry thinks is needed; may be empty.
        scope: String,
    },
    /// A scheme that is not known.
    Other(String),
}

/// The challenge to answer: Bearer if it is there, then Basic, then the first of any other scheme.
pub(crate) fn choose(headers: &HeaderMap) -> Option<Challenge> {
    let mut all: Vec<Challenge> = Vec::new();
    for value in headers.get_all(WWW_AUTHENTICATE) {
        all.extend(parse(value.as_bytes()));
    }
    let is_bearer = |challenge: &Challenge| matches!(challenge, Challenge::Bearer { .. });
    let chosen = all
        .iter()
        .position(is_bearer)
        .or_else(|| all.iter().position(|challenge| *challenge == Challenge::Basic))
        .unwrap_or(0);
    (!all.is_empty()).then(|| all.swap_remove(chosen))
}

/// Parses one header value; what cannot be understood is skipped.
pub(crate) fn parse(value: &[u8]) -> Vec<Challenge> {
    let mut reader = Reader { rest: &value[..value.len().min(HEADER_MAX_BYTES)] };
    let mut challenges: Vec<(String, Vec<(String, String)>)> = Vec::new();
    loop {
        reader.skip(b" \t,");
        let word = reader.token();
        if word.is_empty() {
            // Something no token begins with: skip it, or end.
            if reader.next().is_none() {
                break;
            }
            continue;
        }
        let after_word = reader.rest;
        reader.skip(b" \t");
        // `word =` is a parameter of the current scheme; `word` followed by anything else opens a scheme.
        if reader.rest.first() == Some(&b'=') && reader.rest.get(1) != Some(&b'=') {
            reader.next();
            reader.skip(b" \t");
            let text = reader.value();
            if let Some((_, parameters)) = challenges.last_mut() {
                parameters.push((word.to_ascii_lowercase(), text));
            }
        } else {
            reader.rest = after_word;
            if challenges.len() == CHALLENGES_MAX {
                break;
            }
            challenges.push((word.to_ascii_lowercase(), Vec::new()));
        }
    }
    challenges.into_iter().map(|(scheme, parameters)| assemble(scheme, &parameters)).collect()
}

fn assemble(scheme: String, parameters: &[(String, String)]) -> Challenge {
    let find =
        |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, text)| text.clone()).unwrap_or_default();
    match scheme.as_str() {
        "basic" => Challenge::Basic,
        "bearer" => Challenge::Bearer { realm: find("realm"), service: find("service"), scope: find("scope") },
        _ => Challenge::Other(scheme),
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn skip(&mut self, bytes: &[u8]) {
        while self.rest.first().is_some_and(|byte| bytes.contains(byte)) {
            self.next();
        }
    }

    fn token(&mut self) -> String {
        let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
        let length = self.rest.iter().take_while(|byte| is_token(byte)).count();
        let (token, rest) = self.rest.split_at(length);
        self.rest = rest;
        String::from_utf8_lossy(token).into_owned()
    }

    /// A quoted string, or everything up to a comma or blank: some registries do not quote addresses.
    fn value(&mut self) -> String {
        let mut bytes = Vec::new();
        if self.rest.first() == Some(&b'"') {
            self.next();
            while let Some(byte) = self.next() {
                match byte {
                    b'"' => break,
                    b'\\' => bytes.extend(self.next()),
                    _ => bytes.push(byte),
                }
            }
        } else {
            let length = self.rest.iter().take_while(|byte| !b", \t".contains(byte)).count();
            let (value, rest) = self.rest.split_at(length);
            self.rest = rest;
            bytes.extend_from_slice(value);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: &str, scope: &str) -> Challenge {
        Challenge::Bearer { realm: realm.into(), service: service.into(), scope: scope.into() }
    }

    #[test]
    fn challenges_are_read_robustly() {
        for (value, expected) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull""#,
                vec![bearer("https://auth.docker.io/token", "registry.docker.io", "repository:a/b:pull")],
            ),
            (r#"bearer REALM = "https://a/t" , scope="x,y z""#, vec![bearer("https://a/t", "", "x,y z")]),
            ("Bearer realm=https://a/t,service=s", vec![bearer("https://a/t", "s", "")]),
            (r#"Basic realm="a \"quoted\" one""#, vec![Challenge::Basic]),
            (r#"Basic realm="x", Bearer realm="https://a""#, vec![Challenge::Basic, bearer("https://a", "", "")]),
            ("Negotiate", vec![Challenge::Other("negotiate".into())]),
            (
                "NTLM abc==, Basic",
                vec![Challenge::Other("ntlm".into()), Challenge::Other("abc".into()), Challenge::Basic],
            ),
            (r#"Bearer realm="never closed"#, vec![bearer("never closed", "", "")]),
            ("", vec![]),
            (",,, \u{1} =", vec![]),
            (r#"realm="x""#, vec![]),
        ] {
            assert_eq!(parse(value.as_bytes()), expected, "{value}");
        }
    }

    #[test]
    fn bearer_is_preferred() {
        let mut headers = HeaderMap::new();
        assert_eq!(choose(&headers), None);
        headers.append(WWW_AUTHENTICATE, "Negotiate".parse().unwrap());
        assert_eq!(choose(&headers), Some(Challenge::Other("negotiate".into())));
        headers.append(WWW_AUTHENTICATE, "Basic realm=x".parse().unwrap());
        assert_eq!(choose(&headers), Some(Challenge::Basic));
        headers.append(WWW_AUTHENTICATE, "Bearer realm=\"https://t\"".parse().unwrap());
        assert_eq!(choose(&headers), Some(bearer("https://t", "", "")));
    }
}
