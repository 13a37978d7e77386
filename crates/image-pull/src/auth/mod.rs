//! Credentials: what a pull request brings, and what the files and helpers of this machine know.
//!
//! Secrets are readable inside this crate only, and print as `[redacted]`.

mod files;

use std::fmt;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use thiserror::Error;

pub use files::{AuthFiles, EnvironmentPaths, parse_auth_file};

/// Why credentials cannot be used.
#[derive(Debug, Error)]
pub enum AuthError {
    /// `auth` is not base64 of `user:password`. The text itself is a secret.
    #[error("decode auth: base64 of user:password is expected")]
    Decode,
    /// A file of credentials cannot be read.
    #[error("read credentials file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A file of credentials is not JSON of the known shape. The parser's message would quote it.
    #[error("parse credentials file {}: not a credentials file, line {line}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where parsing stopped.
        line: usize,
    },
    /// A credentials file is larger than any real one.
    #[error("credentials file {} exceeds {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// A credential helper could not be run, failed or babbled.
    #[error("run credential helper {program}: {reason}")]
    Helper {
        /// `docker-credential-X`.
        program: String,
        /// Why, without its output where that may hold secrets.
        reason: String,
    },
}

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes the text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// What proves an identity to one registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// Name and password, for Basic and for token services.
    Password {
        /// The name.
        username: String,
        /// The password.
        password: Secret,
    },
    /// A refresh token that the token service exchanges.
    IdentityToken(Secret),
    /// A bearer token that is sent as it is.
    RegistryToken(Secret),
}

/// Where the login for a pull comes from.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// No login at all; no file is read.
    Anonymous,
    /// What the request brought, for the registry the reference names. No file is read for that registry.
    Request {
        /// The login.
        login: Login,
        /// Asked for mirrors and locations on other hosts, which must not see the login. Source: containers/image.
        elsewhere: AuthFiles,
    },
    /// Files and helpers of this machine, asked for each registry and mirror by its own name.
    Files(AuthFiles),
}

impl From<Login> for Credentials {
    /// A login, and nothing for mirrors.
    fn from(login: Login) -> Self {
        Self::Request { login, elsewhere: AuthFiles::default() }
    }
}

/// The `AuthConfig` of a CRI request, field by field; empty texts mean absent.
#[derive(Clone, Default)]
pub struct RequestAuth {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// base64 of `user:password`; wins over the two.
    pub auth: String,
    /// Refresh token.
    pub identity_token: String,
    /// Bearer token.
    pub registry_token: String,
}

impl fmt::Debug for RequestAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RequestAuth([redacted])")
    }
}

impl RequestAuth {
    /// The login in the request; `None` if it says nothing, and then files are to be read.
    ///
    /// Order: `registry_token`, `identity_token`, `auth`, user name and password. Source: CRI `AuthConfig`; CRI-O
    /// treats an empty user name as no login.
    pub fn parse(&self) -> Result<Option<Login>, AuthError> {
        if !self.registry_token.is_empty() {
            return Ok(Some(Login::RegistryToken(Secret::new(&*self.registry_token))));
        }
        if !self.identity_token.is_empty() {
            return Ok(Some(Login::IdentityToken(Secret::new(&*self.identity_token))));
        }
        if !self.auth.is_empty() {
            return decode_auth(&self.auth).map(|(username, password)| password_login(username, password));
        }
        Ok(password_login(self.username.clone(), self.password.clone()))
    }
}

fn password_login(username: String, password: String) -> Option<Login> {
    (!username.is_empty()).then(|| Login::Password { username, password: Secret::new(password) })
}

/// Splits base64 of `user:password`. Trailing NULs of the password are dropped, as Docker does.
fn decode_auth(auth: &str) -> Result<(String, String), AuthError> {
    let auth = auth.trim();
    let bytes = STANDARD.decode(auth).or_else(|_| STANDARD_NO_PAD.decode(auth)).map_err(|_| AuthError::Decode)?;
    let text = String::from_utf8(bytes).map_err(|_| AuthError::Decode)?;
    let (username, password) = text.split_once(':').ok_or(AuthError::Decode)?;
    Ok((username.to_owned(), password.trim_matches('\0').to_owned()))
}

/// base64 of `user:password`, for the `Authorization` header.
pub(crate) fn encode_basic(username: &str, password: &Secret) -> String {
    STANDARD.encode(format!("{username}:{}", password.expose()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(username: &str, password: &str) -> Option<Login> {
        Some(Login::Password { username: username.to_owned(), password: Secret::new(password) })
    }

    #[test]
    fn request_auth_is_read_in_order() {
        let empty = RequestAuth::default;
        let auth = |text: &str| RequestAuth { auth: STANDARD.encode(text), ..RequestAuth::default() };
        for (request, expected) in [
            (empty(), Some(None)),
            (RequestAuth { password: "p".into(), ..empty() }, Some(None)),
            (RequestAuth { username: "u".into(), password: "p".into(), ..empty() }, Some(password("u", "p"))),
            (RequestAuth { username: "x".into(), ..auth("u:p:q") }, Some(password("u", "p:q"))),
            (auth("u:p\0\0"), Some(password("u", "p"))),
            (auth(":"), Some(None)),
            (auth("no colon"), None),
            (RequestAuth { auth: "%%%".into(), ..empty() }, None),
            (
                RequestAuth { identity_token: "t".into(), username: "u".into(), ..empty() },
                Some(Some(Login::IdentityToken(Secret::new("t")))),
            ),
            (RequestAuth { registry_token: "t".into(), ..empty() }, Some(Some(Login::RegistryToken(Secret::new("t"))))),
        ] {
            assert_eq!(request.parse().ok(), expected);
        }
    }

    #[test]
    fn secrets_do_not_print() {
        let request = RequestAuth { username: "u".into(), password: "hunter2".into(), ..RequestAuth::default() };
        let shown =
            format!("{:?} {:?} {:?}", request, request.parse(), Credentials::from(request.parse().unwrap().unwrap()));
        assert!(!shown.contains("hunter2"), "{shown}");
        let broken = RequestAuth { auth: "hunter2!".into(), ..RequestAuth::default() };
        assert!(!format!("{:?}", broken.parse()).contains("hunter2"));
    }
}
