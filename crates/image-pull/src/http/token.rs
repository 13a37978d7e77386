//! Tokens: asking a token service, and remembering what it gave.
//!
//! Source: the distribution project's token and OAuth2 specifications.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::header::HeaderValue;
use serde::Deserialize;

use crate::auth::{Login, Secret};

/// Tokens remembered; a node pulls from few repositories at a time, a token is a few kilobytes.
const TOKENS_MAX: usize = 64;
/// What a token lives if the service does not say. Source: the token specification.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);
/// Longest life believed: the clock of the service may be wrong.
const LONGEST_LIFETIME: Duration = Duration::from_secs(3600);
/// A token about to expire is not used: a request takes time to arrive.
const EXPIRY_MARGIN: Duration = Duration::from_secs(5);
/// Largest answer of a token service; tokens with many claims reach 20 KB.
pub(super) const TOKEN_ANSWER_MAX_BYTES: usize = 256 << 10;

/// What a token was given for. The login is part of it: one pod's token never serves another's request.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct TokenKey {
    pub(super) registry: String,
    pub(super) realm: String,
    pub(super) service: String,
    pub(super) scope: String,
    pub(super) login: Option<Login>,
}

/// Tokens of all sessions of a client.
#[derive(Default)]
pub(crate) struct TokenCache(Mutex<Vec<(TokenKey, Secret, Instant)>>);

impl std::fmt::Debug for TokenCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenCache")
    }
}

impl TokenCache {
    pub(super) fn find(&self, key: &TokenKey) -> Option<Secret> {
        let tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        tokens.iter().find(|(known, _, expiry)| known == key && *expiry > now).map(|(_, token, _)| token.clone())
    }

    pub(super) fn remember(&self, key: TokenKey, answer: &TokenAnswer) {
        let lifetime = answer.lifetime();
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        tokens.retain(|(known, _, expiry)| *known != key && *expiry > now);
        if tokens.len() >= TOKENS_MAX {
            tokens.remove(0);
        }
        tokens.push((key, answer.token.clone(), now + lifetime.saturating_sub(EXPIRY_MARGIN)));
    }

    pub(super) fn forget(&self, key: &TokenKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|(known, _, _)| known != key);
    }
}

/// The answer of a token service.
pub(super) struct TokenAnswer {
    pub(super) token: Secret,
    expires_in: Option<u64>,
}

impl TokenAnswer {
    /// `token` or, from OAuth2 services, `access_token`.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Raw {
            #[serde(default)]
            token: Option<String>,
            #[serde(default)]
            access_token: Option<String>,
            #[serde(default)]
            expires_in: Option<i64>,
        }
        let raw: Raw = serde_json::from_slice(body).ok()?;
        let is_usable = |text: &String| !text.is_empty() && HeaderValue::from_str(text).is_ok();
        let token = [raw.token, raw.access_token].into_iter().flatten().find(is_usable)?;
        Some(Self { token: Secret::new(token), expires_in: raw.expires_in.and_then(|seconds| seconds.try_into().ok()) })
    }

    /// Counted from the answer's arrival: `issued_at` would need both clocks to agree.
    fn lifetime(&self) -> Duration {
        let stated = self.expires_in.filter(|seconds| *seconds > 0).map(Duration::from_secs);
        stated.map_or(DEFAULT_LIFETIME, |stated| stated.clamp(DEFAULT_LIFETIME, LONGEST_LIFETIME))
    }
}

/// Percent-encodes a value of a query or form. Source: RFC 3986 unreserved characters stay.
pub(super) fn encode_query(value: &str) -> String {
    let mut encoded = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(login: Option<Login>) -> TokenKey {
        let text = String::new;
        TokenKey { registry: text(), realm: text(), service: text(), scope: text(), login }
    }

    #[test]
    fn answers_of_token_services() {
        for (body, token, lifetime) in [
            (r#"{"token":"a","expires_in":300}"#, Some("a"), 300),
            (r#"{"access_token":"b","expires_in":1}"#, Some("b"), 60),
            (r#"{"token":"","access_token":"b"}"#, Some("b"), 60),
            (r#"{"token":"a","access_token":"b","expires_in":999999}"#, Some("a"), 3600),
            (r#"{"token":"a","expires_in":-5}"#, Some("a"), 60),
            (r#"{"token":"a\nb"}"#, None, 0),
            (r#"{}"#, None, 0),
            ("token", None, 0),
        ] {
            let answer = TokenAnswer::parse(body.as_bytes());
            assert_eq!(answer.as_ref().map(|answer| answer.token.expose()), token, "{body}");
            assert_eq!(answer.map_or(0, |answer| answer.lifetime().as_secs()), lifetime, "{body}");
        }
    }

    #[test]
    fn tokens_belong_to_a_login_and_are_few() {
        let cache = TokenCache::default();
        let answer = TokenAnswer::parse(br#"{"token":"a"}"#).unwrap();
        let login = |name: usize| key(Some(Login::Password { username: name.to_string(), password: Secret::new("p") }));
        cache.remember(login(0), &answer);
        assert!(cache.find(&login(0)).is_some());
        assert!(cache.find(&login(1)).is_none() && cache.find(&key(None)).is_none());
        for name in 1..=TOKENS_MAX {
            cache.remember(login(name), &answer);
        }
        assert!(cache.find(&login(0)).is_none(), "the oldest went");
        cache.forget(&login(1));
        assert!(cache.find(&login(1)).is_none());
        assert_eq!(encode_query("repository:a/b c:pull,ü"), "repository%3Aa%2Fb%20c%3Apull%2C%C3%BC");
    }
}
