//! Requests to one repository of one registry: authentication, redirects, retries.
//!
//! A login belongs to the scheme and host the session was opened for. It is sent there, and to the token service that
//! host names; a redirect to any other host goes without (CVE-2020-15157).

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use domain::digest::Digest;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE};
use http::{Method, Response, StatusCode, Uri};
use hyper::body::Incoming;

use super::challenge::{self, Challenge};
use super::token::{TOKEN_ANSWER_MAX_BYTES, TokenAnswer, TokenKey, encode_query};
use super::{Channel, Http, authority_of, printable, retry};
use crate::auth::{Login, Secret, encode_basic};
use crate::error::{ErrorKind, RegistryAnswer, RequestError, TransferError};
use crate::reference::{DEFAULT_DOMAIN, Reference};
use crate::registries::Transport;

/// Where the default registry really listens.
const DEFAULT_DOMAIN_HOST: &str = "registry-1.docker.io";
/// Most redirects of one request; registries behind object stores need one or two.
const REDIRECTS_MAX: usize = 5;
/// Largest error body that is looked at.
const ERROR_BODY_MAX_BYTES: usize = 64 << 10;
/// Longest message of a registry that is shown.
const MESSAGE_MAX_CHARS: usize = 300;

/// One repository at one registry, with the login and the challenge that go with it.
pub(crate) struct Session {
    http: Arc<Http>,
    channel: Channel,
    transport: Transport,
    /// `https://host[:port]`, without a slash at the end.
    base: String,
    registry: String,
    path: String,
    reference: Reference,
    login: Option<Login>,
    challenge: Mutex<Option<Challenge>>,
    has_signatures: AtomicBool,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({}/{})", self.base, self.path)
    }
}

/// The head of an answer, and whether another host gave it.
struct Answered {
    response: Response<Incoming>,
    uri: Uri,
    is_elsewhere: bool,
}

impl Session {
    /// Finds out how the registry speaks (`/v2/`): the scheme, and what it wants to see. Any answer will do.
    pub(crate) async fn open(
        http: &Arc<Http>,
        reference: &Reference,
        transport: Transport,
        login: Option<Login>,
    ) -> Result<Self, RequestError> {
        let registry = reference.domain().to_owned();
        let host = if registry == DEFAULT_DOMAIN { DEFAULT_DOMAIN_HOST } else { &registry };
        let mut session = Self {
            http: Arc::clone(http),
            channel: http.channel(transport, host),
            transport,
            base: format!("https://{host}"),
            registry: registry.clone(),
            path: reference.path().to_owned(),
            reference: reference.clone(),
            login,
            challenge: Mutex::new(None),
            has_signatures: AtomicBool::new(false),
        };
        let first = session.ping().await;
        let Err(error) = first else { return Ok(session) };
        let is_worth_plain = transport == Transport::Insecure
            && matches!(&error, RequestError::Transfer { source, .. } if source.kind() != ErrorKind::Local);
        if !is_worth_plain {
            return Err(error);
        }
        tracing::debug!(registry, "insecure registry does not speak TLS, trying plain HTTP");
        session.base = format!("http://{host}");
        // If nobody speaks HTTP either, the first failure tells more only where it was about TLS.
        session.ping().await.map_err(|plain| match &error {
            RequestError::Transfer { source: TransferError::Tls { .. }, .. } => error,
            _ => plain,
        })?;
        Ok(session)
    }

    async fn ping(&self) -> Result<(), RequestError> {
        let uri = self.uri("/v2/")?;
        let response = self.exchange(Method::GET, &uri, HeaderMap::new(), Bytes::new()).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            self.learn(response.headers());
        }
        let says_so = response.headers().get("x-registry-supports-signatures").is_some_and(|value| value == "1");
        self.has_signatures.store(says_so, Ordering::Relaxed);
        self.discard(response).await;
        Ok(())
    }

    /// Signatures of a manifest by the registry's own extension of the protocol, if it has that: at most `limit` bytes of
    /// JSON. Source: OpenShift, `X-Registry-Supports-Signatures`.
    pub(crate) async fn extension_signatures(
        &self,
        manifest: &Digest,
        limit: usize,
    ) -> Result<Option<Bytes>, RequestError> {
        if !self.has_signatures.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let target = format!("/extensions/v2/{}/signatures/{manifest}", self.path);
        self.get_whole(&target, HeaderMap::new(), limit).await.map(|(_, bytes)| Some(bytes))
    }

    /// A manifest: its `Content-Type` and its bytes, of which there are at most `limit`.
    pub(crate) async fn manifest(&self, selector: &str, limit: usize) -> Result<(Option<String>, Bytes), RequestError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(crate::manifest::ACCEPT));
        let target = format!("/v2/{}/manifests/{selector}", self.path);
        self.get_whole(&target, headers, limit).await
    }

    /// A small blob: at most `limit` bytes.
    pub(crate) async fn small_blob(&self, digest: &Digest, limit: usize) -> Result<Bytes, RequestError> {
        let target = format!("/v2/{}/blobs/{digest}", self.path);
        self.get_whole(&target, HeaderMap::new(), limit).await.map(|(_, bytes)| bytes)
    }

    /// A blob from byte `from` on, up to `end` if given: an answer of status 200 (whole) or 206 (what was asked for).
    pub(crate) async fn blob(
        &self,
        digest: &Digest,
        from: u64,
        end: Option<u64>,
    ) -> Result<(String, Response<Incoming>), RequestError> {
        let mut headers = HeaderMap::new();
        if let Some(end) = end {
            headers.insert(RANGE, header(&format!("bytes={from}-{}", end.saturating_sub(1))));
        } else if from > 0 {
            headers.insert(RANGE, header(&format!("bytes={from}-")));
        }
        let answered = self.get(&format!("/v2/{}/blobs/{digest}", self.path), headers).await?;
        Ok((authority_of(&answered.uri), answered.response))
    }

    /// What lies at an address of another server: no login, the proxy and authorities of this registry, at most `limit`
    /// bytes.
    pub(crate) async fn foreign(&self, url: &str, limit: usize) -> Result<Bytes, RequestError> {
        let uri = url.parse().map_err(|error: http::uri::InvalidUri| RequestError::Malformed {
            url: url.to_owned(),
            reason: error.to_string(),
        })?;
        let answered = self.follow(uri, &HeaderMap::new(), None).await?;
        if !answered.response.status().is_success() {
            return Err(self.refusal(answered).await);
        }
        let Answered { response, uri, .. } = answered;
        match self.http.read_body(&authority_of(&uri), response.into_body(), limit).await {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) => Err(RequestError::TooLarge { url: printable(&uri), limit }),
            Err(source) => Err(RequestError::Transfer { url: printable(&uri), source }),
        }
    }

    /// What `ranges`, the text of a `Range` header, names of a blob: an answer of class 2xx, of whatever form.
    pub(crate) async fn blob_ranges(
        &self,
        digest: &Digest,
        ranges: &str,
    ) -> Result<(String, Response<Incoming>), RequestError> {
        let mut headers = HeaderMap::new();
        headers.insert(RANGE, header(ranges));
        let answered = self.get(&format!("/v2/{}/blobs/{digest}", self.path), headers).await?;
        Ok((authority_of(&answered.uri), answered.response))
    }

    /// The reference the session was opened for.
    pub(crate) fn reference(&self) -> &Reference {
        &self.reference
    }

    /// Limits for whoever reads a body.
    pub(crate) fn http(&self) -> &Http {
        &self.http
    }

    async fn get_whole(
        &self,
        target: &str,
        headers: HeaderMap,
        limit: usize,
    ) -> Result<(Option<String>, Bytes), RequestError> {
        let mut attempt = 0;
        loop {
            let Answered { response, uri, .. } = self.get(target, headers.clone()).await?;
            let media_type =
                response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(str::to_owned);
            match self.http.read_body(&authority_of(&uri), response.into_body(), limit).await {
                Ok(Some(bytes)) => return Ok((media_type, bytes)),
                Ok(None) => return Err(RequestError::TooLarge { url: printable(&uri), limit }),
                Err(source) => {
                    attempt += 1;
                    if attempt >= self.http.retry.attempts {
                        return Err(RequestError::Transfer { url: printable(&uri), source });
                    }
                    tokio::time::sleep(retry::backoff(&self.http.retry, attempt - 1)).await;
                }
            }
        }
    }

    /// GET with everything: a token if one is wanted, redirects, retries. Only answers of class 2xx are returned.
    async fn get(&self, target: &str, headers: HeaderMap) -> Result<Answered, RequestError> {
        let mut attempt = 0;
        let mut has_renewed = false;
        loop {
            let sent = self.get_once(target, &headers).await;
            let policy = &self.http.retry;
            let pause = match sent {
                Ok(answered) if answered.response.status().is_success() => return Ok(answered),
                Ok(answered) => {
                    let status = answered.response.status();
                    if status == StatusCode::UNAUTHORIZED && !answered.is_elsewhere && !has_renewed {
                        has_renewed = true;
                        self.forget_token();
                        self.learn(answered.response.headers());
                        // Without anything new to show, asking again would only repeat the refusal.
                        if self.has_answer_to_challenge() {
                            self.discard(answered.response).await;
                            continue;
                        }
                    }
                    let asked = retry::retry_after(answered.response.headers(), SystemTime::now());
                    let pause = asked.unwrap_or_else(|| retry::backoff(policy, attempt));
                    let is_last = !retry::is_transient(status)
                        || attempt + 1 >= policy.attempts
                        || asked.is_some_and(|asked| asked > policy.longest_retry_after);
                    if is_last {
                        return Err(self.refusal(answered).await);
                    }
                    self.discard(answered.response).await;
                    pause
                }
                Err(error) if is_broken_exchange(&error) && attempt + 1 < policy.attempts => {
                    retry::backoff(policy, attempt)
                }
                Err(error) => return Err(error),
            };
            attempt += 1;
            tracing::debug!(registry = self.registry, attempt, ?pause, "registry is busy, waiting");
            tokio::time::sleep(pause).await;
        }
    }

    /// One GET and the redirects it leads to.
    async fn get_once(&self, target: &str, headers: &HeaderMap) -> Result<Answered, RequestError> {
        let uri = self.uri(target)?;
        let authorization = self.authorization().await?;
        self.follow(uri, headers, authorization.as_ref()).await
    }

    /// GET from place to place; only the first server sees the authorization.
    async fn follow(
        &self,
        mut uri: Uri,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answered, RequestError> {
        let home = uri.clone();
        for _ in 0..=REDIRECTS_MAX {
            let is_elsewhere = origin(&uri) != origin(&home);
            let mut headers = headers.clone();
            if let Some(authorization) = authorization.filter(|_| !is_elsewhere) {
                headers.insert(AUTHORIZATION, authorization.clone());
            }
            let response = self.exchange(Method::GET, &uri, headers, Bytes::new()).await?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(Answered { response, uri, is_elsewhere });
            }
            let refused = |reason| RequestError::Redirect { url: printable(&uri), reason };
            let location = response.headers().get(LOCATION).ok_or_else(|| refused("no location"))?;
            let next = resolve(&uri, location).ok_or_else(|| refused("unusable location"))?;
            if uri.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(refused("from https to http"));
            }
            self.discard(response).await;
            uri = next;
        }
        Err(RequestError::Redirect { url: printable(&home), reason: "too many redirects" })
    }

    async fn exchange(
        &self,
        method: Method,
        uri: &Uri,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>, RequestError> {
        let sent = self.http.exchange(&self.channel, method, uri, headers, body).await;
        sent.map_err(|source| RequestError::Transfer { url: printable(uri), source })
    }

    /// Reads a short body to its end, so that the connection can be used again; a long one is dropped with it.
    async fn discard(&self, response: Response<Incoming>) {
        // The answer itself was already judged; failing to read its rest costs the connection only.
        let _ = self.http.read_body(&self.registry, response.into_body(), ERROR_BODY_MAX_BYTES).await;
    }

    async fn refusal(&self, answered: Answered) -> RequestError {
        let status = answered.response.status().as_u16();
        let authority = authority_of(&answered.uri);
        let body = self.http.read_body(&authority, answered.response.into_body(), ERROR_BODY_MAX_BYTES).await;
        let answer = parse_refusal(status, &body.ok().flatten().unwrap_or_default());
        RequestError::Answer { url: printable(&answered.uri), answer }
    }

    fn uri(&self, target: &str) -> Result<Uri, RequestError> {
        let text = format!("{}{target}", self.base);
        text.parse()
            .map_err(|error: http::uri::InvalidUri| RequestError::Malformed { url: text, reason: error.to_string() })
    }

    fn learn(&self, headers: &HeaderMap) {
        if let Some(challenge) = challenge::choose(headers) {
            *self.challenge.lock().unwrap_or_else(PoisonError::into_inner) = Some(challenge);
        }
    }

    fn challenge(&self) -> Option<Challenge> {
        self.challenge.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn has_answer_to_challenge(&self) -> bool {
        match self.challenge() {
            Some(Challenge::Bearer { .. }) => !matches!(self.login, Some(Login::RegistryToken(_))),
            Some(Challenge::Basic) => matches!(self.login, Some(Login::Password { .. })),
            Some(Challenge::Other(_)) | None => false,
        }
    }

    fn token_key(&self, realm: &str, service: &str) -> TokenKey {
        TokenKey {
            registry: self.base.clone(),
            realm: realm.to_owned(),
            service: service.to_owned(),
            scope: format!("repository:{}:pull", self.path),
            login: self.login.clone(),
        }
    }

    fn forget_token(&self) {
        if let Some(Challenge::Bearer { realm, service, .. }) = self.challenge() {
            self.http.tokens.forget(&self.token_key(&realm, &service));
        }
    }

    /// The header that answers the registry's challenge, if there is one and we can.
    async fn authorization(&self) -> Result<Option<HeaderValue>, RequestError> {
        if let Some(Login::RegistryToken(token)) = &self.login {
            return Ok(Some(secret_header("Bearer", token.expose())));
        }
        match (self.challenge(), &self.login) {
            (Some(Challenge::Basic), Some(Login::Password { username, password })) => {
                Ok(Some(secret_header("Basic", &encode_basic(username, password))))
            }
            (Some(Challenge::Bearer { realm, service, .. }), _) => {
                let token = self.token(&realm, &service).await?;
                Ok(Some(secret_header("Bearer", token.expose())))
            }
            (Some(Challenge::Other(scheme)), _) => Err(RequestError::Challenge {
                registry: self.registry.clone(),
                reason: format!("authentication scheme {scheme:?} is not supported"),
            }),
            (Some(Challenge::Basic) | None, _) => Ok(None),
        }
    }

    async fn token(&self, realm: &str, service: &str) -> Result<Secret, RequestError> {
        let key = self.token_key(realm, service);
        if let Some(token) = self.http.tokens.find(&key) {
            return Ok(token);
        }
        let wrong =
            |reason: &str| RequestError::Challenge { registry: self.registry.clone(), reason: reason.to_owned() };
        let uri: Uri = realm.parse().map_err(|_| wrong("the token service's address is malformed"))?;
        let is_encrypted = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong("the token service's address is neither http nor https")),
        };
        // A registry behind TLS must not make us send the login in the clear.
        if !is_encrypted && (self.base.starts_with("https:") && self.transport == Transport::Verified) {
            return Err(wrong("the token service is not encrypted, the registry is"));
        }
        if uri.authority().is_none_or(|authority| authority.as_str().contains('@')) {
            return Err(wrong("the token service's address is malformed"));
        }
        let answer = self
            .ask_for_token(&uri, &key)
            .await
            .map_err(|source| RequestError::Token { registry: self.registry.clone(), source: Box::new(source) })?;
        let token = answer.token.clone();
        self.http.tokens.remember(key, &answer);
        Ok(token)
    }

    async fn ask_for_token(&self, realm: &Uri, key: &TokenKey) -> Result<TokenAnswer, RequestError> {
        let mut form = format!("service={}&scope={}", encode_query(&key.service), encode_query(&key.scope));
        let mut headers = HeaderMap::new();
        let (method, uri, body) = match &self.login {
            Some(Login::IdentityToken(token)) => {
                form.push_str("&client_id=cri-o&grant_type=refresh_token&refresh_token=");
                form.push_str(&encode_query(token.expose()));
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
                (Method::POST, realm.clone(), Bytes::from(form))
            }
            login => {
                if let Some(Login::Password { username, password }) = login {
                    form.push_str("&account=");
                    form.push_str(&encode_query(username));
                    headers.insert(AUTHORIZATION, secret_header("Basic", &encode_basic(username, password)));
                }
                let separator = if realm.query().is_some() { '&' } else { '?' };
                let uri = format!("{realm}{separator}{form}");
                let uri = uri.parse().map_err(|error: http::uri::InvalidUri| RequestError::Malformed {
                    url: printable(realm),
                    reason: error.to_string(),
                })?;
                (Method::GET, uri, Bytes::new())
            }
        };
        let mut attempt = 0;
        loop {
            let sent = self.exchange(method.clone(), &uri, headers.clone(), body.clone()).await;
            attempt += 1;
            let is_last = attempt >= self.http.retry.attempts;
            let pause = retry::backoff(&self.http.retry, attempt - 1);
            match sent {
                Ok(response) if response.status().is_success() => {
                    let limit = TOKEN_ANSWER_MAX_BYTES;
                    let body = self.http.read_body(&authority_of(&uri), response.into_body(), limit).await;
                    let body = body.map_err(|source| RequestError::Transfer { url: printable(&uri), source })?;
                    let body = body.ok_or_else(|| RequestError::TooLarge { url: printable(&uri), limit })?;
                    return TokenAnswer::parse(&body).ok_or_else(|| RequestError::Malformed {
                        url: printable(&uri),
                        reason: "no token in it".to_owned(),
                    });
                }
                Ok(response) if is_last || !retry::is_transient(response.status()) => {
                    return Err(self.refusal(Answered { response, uri, is_elsewhere: true }).await);
                }
                Ok(response) => {
                    let asked = retry::retry_after(response.headers(), SystemTime::now()).unwrap_or(pause);
                    self.discard(response).await;
                    tokio::time::sleep(asked.min(self.http.retry.longest_retry_after)).await;
                }
                Err(error) if is_last || !is_broken_exchange(&error) => return Err(error),
                Err(_) => tokio::time::sleep(pause).await,
            }
        }
    }
}

/// Whether a connection that stood broke: worth another attempt, unlike one that could not be made.
fn is_broken_exchange(error: &RequestError) -> bool {
    matches!(
        error,
        RequestError::Transfer { source: TransferError::Exchange { .. } | TransferError::Stalled { .. }, .. }
    )
}

fn header(text: &str) -> HeaderValue {
    // Only called with texts made of digits and fixed words.
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// An `Authorization` value that hyper does not print. Texts a header cannot hold become an empty one, and the
/// registry refuses it.
fn secret_header(scheme: &str, secret: &str) -> HeaderValue {
    let mut value = header(&format!("{scheme} {secret}"));
    value.set_sensitive(true);
    value
}

/// Scheme, host and port: what a login belongs to.
fn origin(uri: &Uri) -> (bool, String, u16) {
    let is_tls = uri.scheme_str() == Some("https");
    let host = uri.host().unwrap_or_default().to_ascii_lowercase();
    (is_tls, host, uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 }))
}

/// The address a `Location` means. Source: RFC 3986 section 5.2, the forms servers send.
fn resolve(base: &Uri, location: &HeaderValue) -> Option<Uri> {
    let location = location.to_str().ok()?;
    let location = location.split('#').next()?;
    let scheme = base.scheme_str()?;
    let text = if location.starts_with("https://") || location.starts_with("http://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{}{location}", authority_of(base))
    } else {
        return None;
    };
    let uri: Uri = text.parse().ok()?;
    let is_clean = uri.authority().is_some_and(|authority| !authority.as_str().contains('@') && uri.host() != Some(""));
    is_clean.then_some(uri)
}

/// Reads the first error of the protocol's error body. Source: distribution specification, "Error Codes".
fn parse_refusal(status: u16, body: &[u8]) -> RegistryAnswer {
    #[derive(serde::Deserialize)]
    struct Body {
        #[serde(default)]
        errors: Vec<Entry>,
        // Token services: {"details": "..."} (Docker), {"error_description": "..."} (OAuth2).
        #[serde(default)]
        details: Option<String>,
        #[serde(default)]
        error_description: Option<String>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(body) = serde_json::from_slice::<Body>(body) else {
        return RegistryAnswer { status, code: String::new(), message: String::new() };
    };
    let (code, message) = match body.errors.into_iter().next() {
        Some(entry) => (entry.code, entry.message),
        None => (String::new(), body.details.or(body.error_description).unwrap_or_default()),
    };
    let is_code = |c: &char| c.is_ascii_uppercase() || c.is_ascii_digit() || *c == '_';
    RegistryAnswer {
        status,
        code: code.chars().filter(is_code).take(MESSAGE_MAX_CHARS).collect(),
        message: message.chars().filter(|c| !c.is_control()).take(MESSAGE_MAX_CHARS).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_resolved_and_judged() {
        let base: Uri = "https://reg.example:5000/v2/a/blobs/x?y".parse().unwrap();
        for (location, expected) in [
            ("https://cdn.example/x?sig=1", Some("https://cdn.example/x?sig=1")),
            ("http://cdn.example/x", Some("http://cdn.example/x")),
            ("//cdn.example/x", Some("https://cdn.example/x")),
            ("/other?z#f", Some("https://reg.example:5000/other?z")),
            ("relative", None),
            ("ftp://cdn.example/x", None),
            ("https://user:pw@cdn.example/x", None),
            ("https:///x", None),
            ("", None),
        ] {
            let resolved = resolve(&base, &HeaderValue::from_str(location).unwrap());
            assert_eq!(resolved.map(|uri| uri.to_string()).as_deref(), expected, "{location}");
        }
    }

    #[test]
    fn logins_belong_to_scheme_host_and_port() {
        let origin = |text: &str| origin(&text.parse().unwrap());
        assert_eq!(origin("https://A.example/x"), origin("https://a.example:443/y"));
        assert_ne!(origin("https://a.example/"), origin("http://a.example/"));
        assert_ne!(origin("https://a.example/"), origin("https://a.example:5000/"));
        assert_ne!(origin("https://a.example/"), origin("https://a.example.evil/"));
    }

    #[test]
    fn refusals_are_read_and_cleaned() {
        for (body, code, message) in [
            (r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no\nsuch"}]}"#, "MANIFEST_UNKNOWN", "nosuch"),
            (r#"{"errors":[]}"#, "", ""),
            (r#"{"details":"incorrect username or password"}"#, "", "incorrect username or password"),
            ("<html>", "", ""),
        ] {
            let answer = parse_refusal(404, body.as_bytes());
            assert_eq!((answer.code.as_str(), answer.message.as_str()), (code, message));
        }
    }
}
