//! Address management by another plugin: the operator's own if the plugin path has it, else ours, without a process.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;
use serde_json::Value;

use crate::PLUGINS;
use crate::failure::{Code, Context as _, Failure};
use crate::request::{Request, Verb};
use crate::result::CniResult;

/// Most bytes taken from a plugin's output.
const OUTPUT_MAX: usize = 1024 * 1024;

/// An error object.
#[derive(Deserialize)]
struct Report {
    code: u32,
    msg: String,
    #[serde(default)]
    details: String,
}

/// The first file of that name on the plugin path that is not this program.
fn find_foreign(request: &Request, kind: &str) -> Option<PathBuf> {
    let identity = |path: &Path| path.metadata().ok().map(|data| (data.dev(), data.ino()));
    let ours = identity(Path::new("/proc/self/exe"));
    let found = request.path.iter().map(|dir| dir.join(kind)).find(|path| path.is_file())?;
    (identity(&found) != ours).then_some(found)
}

/// Does the request's verb, or another of the same attachment.
fn delegate(request: &Request, kind: &str, verb: Verb) -> Result<Option<CniResult>, Failure> {
    if kind.is_empty() || kind.contains('/') {
        return Err(Failure::config(format!("invalid IPAM plugin type {kind:?}")));
    }
    if let Some(path) = find_foreign(request, kind) {
        let output = execute(&path, request, verb)?;
        if verb != Verb::Add {
            return Ok(None);
        }
        let value: Value = serde_json::from_slice(&output)
            .map_err(|error| Failure::new(Code::Decode, format!("result of IPAM plugin {kind}: {error}")))?;
        let result = CniResult::from_value(value)
            .map_err(|error| Failure::new(Code::Decode, format!("result of IPAM plugin {kind}: {error}")))?;
        return Ok(Some(result));
    }
    let ours = PLUGINS.iter().find(|plugin| plugin.name == kind && matches!(kind, "host-local" | "static"));
    let Some(plugin) = ours else {
        let text = format!("failed to find plugin {kind:?} in path {:?}", request.path);
        return Err(Failure::config(text));
    };
    match verb {
        Verb::Add => (plugin.add)(request).map(Some),
        Verb::Del => (plugin.del)(request).map(|()| None),
        Verb::Check => (plugin.check)(request).map(|()| None),
        Verb::Status => (plugin.status)(request).map(|()| None),
        Verb::Gc => (plugin.gc)(request).map(|()| None),
        Verb::Version => Ok(None),
    }
}

/// Runs a plugin with this one's environment and input. The daemon bounds the time of both.
fn execute(path: &Path, request: &Request, verb: Verb) -> Result<Vec<u8>, Failure> {
    let what = || format!("execute IPAM plugin {}", path.display());
    let mut command = Command::new(path);
    command.env("CNI_COMMAND", verb.name()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = command.spawn().context(what)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends without reading says why by other means.
        let _ = stdin.write_all(&request.stdin);
    }
    let output = child.wait_with_output().context(what)?;
    if output.stdout.len() > OUTPUT_MAX {
        return Err(Failure::new(Code::Decode, format!("IPAM plugin {} printed too much", path.display())));
    }
    if output.status.success() {
        return Ok(output.stdout);
    }
    match serde_json::from_slice::<Report>(&output.stdout) {
        Ok(Report { code, msg, details }) if details.is_empty() => Err(Failure::reported(code, msg)),
        Ok(Report { code, msg, details }) => Err(Failure::reported(code, format!("{msg}; {details}"))),
        Err(_) => Err(Failure::new(Code::Internal, format!("{} ended with {}", path.display(), output.status))),
    }
}

/// Gets addresses. Errors: the plugin's, and a result without any address.
pub(crate) fn add(request: &Request, kind: &str) -> Result<CniResult, Failure> {
    let result = delegate(request, kind, Verb::Add)?.unwrap_or_default();
    if result.ips.is_empty() {
        let _ = del(request, kind);
        return Err(Failure::new(Code::Internal, "IPAM plugin returned missing IP config"));
    }
    Ok(result)
}

/// Gives addresses back.
pub(crate) fn del(request: &Request, kind: &str) -> Result<(), Failure> {
    delegate(request, kind, Verb::Del).map(drop)
}

/// Does what the request asks of an attachment or a network: CHECK, STATUS or GC.
pub(crate) fn pass_on(request: &Request, kind: &str) -> Result<(), Failure> {
    delegate(request, kind, request.verb).map(drop)
}
