//! Credential files and helpers.
//!
//! Source: containers-auth.json(5), docker's config.json, and the docker-credential-helpers protocol.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::{AuthError, Login, Secret, decode_auth, password_login};
use crate::blocking;
use crate::reference::Reference;

/// Largest credentials file.
const AUTH_FILE_MAX_BYTES: u64 = 1 << 20;
/// Longest run of a credential helper: cloud helpers make a network request or two.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer of a credential helper.
const HELPER_ANSWER_MAX_BYTES: u64 = 64 << 10;
/// The pseudo user name under which helpers return refresh tokens.
const TOKEN_USERNAME: &str = "<token>";

/// Which files are asked for a login, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuthFiles {
    files: Vec<(PathBuf, Format)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// `{"auths": {...}, "credHelpers": {...}, "credsStore": "..."}`.
    Config,
    /// `~/.dockercfg`: only what is under `auths` elsewhere.
    Legacy,
}

/// The variables that say where the files of a user are; absent ones are skipped.
#[derive(Debug, Clone, Default)]
pub struct EnvironmentPaths {
    /// `REGISTRY_AUTH_FILE`.
    pub registry_auth_file: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`.
    pub xdg_runtime_dir: Option<PathBuf>,
    /// `XDG_CONFIG_HOME`.
    pub xdg_config_home: Option<PathBuf>,
    /// `HOME`.
    pub home: Option<PathBuf>,
}

impl EnvironmentPaths {
    /// Reads the variables.
    #[must_use]
    pub fn from_environment() -> Self {
        let read = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Self {
            registry_auth_file: read("REGISTRY_AUTH_FILE"),
            xdg_runtime_dir: read("XDG_RUNTIME_DIR"),
            xdg_config_home: read("XDG_CONFIG_HOME"),
            home: read("HOME"),
        }
    }
}

impl AuthFiles {
    /// One file and no other: a namespaced file, `global_auth_file`, `pause_image_auth_file`.
    ///
    /// Source: containers/image reads no default file once one is named.
    #[must_use]
    pub fn only(path: impl Into<PathBuf>) -> Self {
        Self { files: vec![(path.into(), Format::Config)] }
    }

    /// The files of the user the daemon runs as, in their order.
    #[must_use]
    pub fn standard(environment: &EnvironmentPaths) -> Self {
        if let Some(path) = &environment.registry_auth_file {
            return Self::only(path);
        }
        let mut files = Vec::new();
        if let Some(runtime) = &environment.xdg_runtime_dir {
            files.push((runtime.join("containers/auth.json"), Format::Config));
        } else {
            let uid = rustix::process::geteuid().as_raw();
            files.push((PathBuf::from(format!("/run/containers/{uid}/auth.json")), Format::Config));
        }
        let config_home =
            environment.xdg_config_home.clone().or_else(|| environment.home.as_ref().map(|home| home.join(".config")));
        files.extend(config_home.map(|home| (home.join("containers/auth.json"), Format::Config)));
        if let Some(home) = &environment.home {
            files.push((home.join(".docker/config.json"), Format::Config));
            files.push((home.join(".dockercfg"), Format::Legacy));
        }
        Self { files }
    }

    /// The login for a reference: the first of `helpers` (registries.conf `credential-helpers`) that knows one. The
    /// pseudo helper `containers-auth.json` stands for the files; in each file the longest path of the repository
    /// wins, and its own helpers come first.
    pub(crate) async fn find(&self, reference: &Reference, helpers: &[String]) -> Result<Option<Login>, AuthError> {
        for helper in helpers {
            let found = if helper == crate::registries::AUTH_FILE_HELPER {
                self.find_in_files(reference).await?
            } else {
                ask_helper(helper, reference.domain()).await?
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    async fn find_in_files(&self, reference: &Reference) -> Result<Option<Login>, AuthError> {
        for (path, format) in &self.files {
            let wrong = |source| AuthError::Read { path: path.clone(), source };
            let wanted = path.clone();
            let Some(bytes) =
                blocking::run("read credentials", move || read(&wanted)).await.and_then(|read| read).map_err(wrong)?
            else {
                continue;
            };
            if bytes.len() as u64 > AUTH_FILE_MAX_BYTES {
                return Err(AuthError::TooLarge { path: path.clone(), limit: AUTH_FILE_MAX_BYTES });
            }
            let file = parse(&bytes, *format).map_err(|line| AuthError::Parse { path: path.clone(), line })?;
            let found = match file.find(reference)? {
                Found::Login(login) => Some(login),
                Found::Helper(helper, server) => ask_helper(&helper, &server).await?,
                Found::Nothing => None,
            };
            if found.is_some() {
                tracing::debug!(file = %path.display(), registry = reference.domain(), "found credentials");
                return Ok(found);
            }
        }
        Ok(None)
    }
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(AUTH_FILE_MAX_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

#[derive(Default, Deserialize)]
struct RawFile {
    #[serde(default)]
    auths: Option<BTreeMap<String, RawEntry>>,
    #[serde(default, rename = "credHelpers")]
    helpers: Option<BTreeMap<String, String>>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawEntry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    #[serde(rename = "identitytoken")]
    identity_token: Option<String>,
    #[serde(rename = "registrytoken")]
    registry_token: Option<String>,
}

enum Found {
    Login(Login),
    /// A helper, and the server to ask it for.
    Helper(String, String),
    Nothing,
}

/// Parses a credentials file and counts its entries.
///
/// Errors: the line at which it stops being one; nothing of its content.
pub fn parse_auth_file(bytes: &[u8]) -> Result<usize, usize> {
    parse(bytes, Format::Config).map(|file| file.auths.map_or(0, |auths| auths.len()))
}

fn parse(bytes: &[u8], format: Format) -> Result<RawFile, usize> {
    let bytes = if bytes.iter().all(u8::is_ascii_whitespace) { b"{}" } else { bytes };
    match format {
        Format::Config => serde_json::from_slice(bytes),
        Format::Legacy => {
            serde_json::from_slice(bytes).map(|auths| RawFile { auths: Some(auths), ..RawFile::default() })
        }
    }
    .map_err(|error| error.line())
}

impl RawFile {
    fn find(&self, reference: &Reference) -> Result<Found, AuthError> {
        let keys = keys(reference);
        let own = self.helpers.as_ref().and_then(|helpers| {
            keys.iter().find_map(|key| helpers.get(key).map(|helper| (helper.clone(), key.clone())))
        });
        if let Some((helper, server)) = own.filter(|(helper, _)| !helper.is_empty()) {
            return Ok(Found::Helper(helper, server));
        }
        let auths = self.auths.iter().flatten();
        let exact = keys.iter().find_map(|key| self.auths.as_ref()?.get(key));
        // Docker writes addresses where we look for hosts: `https://index.docker.io/v1/`.
        let entry = exact
            .or_else(|| auths.filter(|(key, _)| host_of(key) == reference.domain()).map(|(_, entry)| entry).next());
        if let Some(login) = entry.map(RawEntry::login).transpose()?.flatten() {
            return Ok(Found::Login(login));
        }
        let server = match reference.domain() {
            "docker.io" => "https://index.docker.io/v1/",
            domain => domain,
        };
        Ok(match &self.store {
            Some(store) if !store.is_empty() => Found::Helper(store.clone(), server.to_owned()),
            _ => Found::Nothing,
        })
    }
}

/// `a.b/c/d` → `a.b/c/d`, `a.b/c`, `a.b`.
fn keys(reference: &Reference) -> Vec<String> {
    let repository = reference.repository();
    let parents = repository.match_indices('/').map(|(at, _)| repository[..at].to_owned()).rev();
    [repository.clone()].into_iter().chain(parents).collect()
}

/// The host of an address as Docker writes it; a key with a path but no scheme is a repository, not a host.
fn host_of(key: &str) -> &str {
    let (is_address, rest) = match key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")) {
        Some(rest) => (true, rest),
        None => (false, key),
    };
    let is_old_form = ["/v1", "/v1/", "/v2", "/v2/"].iter().any(|suffix| rest.ends_with(suffix));
    let host = if is_address || is_old_form { rest.split('/').next().unwrap_or_default() } else { rest };
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

impl RawEntry {
    fn login(&self) -> Result<Option<Login>, AuthError> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = given(&self.registry_token) {
            return Ok(Some(Login::RegistryToken(Secret::new(token))));
        }
        if let Some(token) = given(&self.identity_token) {
            return Ok(Some(Login::IdentityToken(Secret::new(token))));
        }
        if let Some(auth) = given(&self.auth) {
            return decode_auth(&auth).map(|(username, password)| password_login(username, password));
        }
        Ok(password_login(self.username.clone().unwrap_or_default(), self.password.clone().unwrap_or_default()))
    }
}

/// Runs `docker-credential-<helper> get` with the server on its standard input.
async fn ask_helper(helper: &str, server: &str) -> Result<Option<Login>, AuthError> {
    let program = format!("docker-credential-{helper}");
    let failed = |reason: String| AuthError::Helper { program: program.clone(), reason };
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if helper.is_empty() || !helper.chars().all(is_name) {
        return Err(failed("its name is not a name".to_owned()));
    }
    run_helper(&program, server).await
}

async fn run_helper(program: &str, server: &str) -> Result<Option<Login>, AuthError> {
    let failed = |reason: String| AuthError::Helper { program: program.to_owned(), reason };
    let run = async {
        let mut child = Command::new(program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A helper that ends without reading is judged by what it says.
            let _ = stdin.write_all(server.as_bytes()).await;
        }
        let mut answer = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(HELPER_ANSWER_MAX_BYTES + 1).read_to_end(&mut answer).await?;
        }
        if answer.len() as u64 > HELPER_ANSWER_MAX_BYTES {
            return Err(io::Error::other("its answer is too long"));
        }
        Ok((child.wait().await?, answer))
    };
    let (status, answer) = tokio::time::timeout(HELPER_TIMEOUT, run)
        .await
        .map_err(|_| failed(format!("no answer within {HELPER_TIMEOUT:?}")))?
        .map_err(|error: io::Error| failed(error.to_string()))?;
    if !status.success() {
        // The protocol's one sentence that is no failure.
        let is_unknown = String::from_utf8_lossy(&answer).contains("credentials not found");
        return if is_unknown { Ok(None) } else { Err(failed(status.to_string())) };
    }
    #[derive(Deserialize)]
    struct Answer {
        #[serde(rename = "Username", default)]
        username: String,
        #[serde(rename = "Secret", default)]
        secret: String,
    }
    let answer: Answer =
        serde_json::from_slice(&answer).map_err(|_| failed("its answer is not what the protocol says".to_owned()))?;
    Ok(match answer.username.as_str() {
        TOKEN_USERNAME => Some(Login::IdentityToken(Secret::new(answer.secret))),
        _ => password_login(answer.username, answer.secret),
    })
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
