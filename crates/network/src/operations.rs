//! Attaching a sandbox and its way back.
//!
//! ADD: plugins in order, then the cache entry. A daemon that dies in between leaves an attachment without an entry;
//! the sandbox's record says `Creating`, its removal calls DEL with the present configuration, and GC of CNI 1.1.0
//! frees the rest. DEL: plugins in reverse order, then the entry goes; dying in between means DEL again, which every
//! plugin must bear.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use domain::id::SandboxId;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::attachment::{
    AddError, ArgumentError, Attachment, ChainError, CheckError, CniResult, DelError, GcError, StepError,
};
use crate::bandwidth::{self, BandwidthError};
use crate::cache::Entry;
use crate::config::{NetworkList, Plugin};
use crate::directory::chain;
use crate::network::Network;
use crate::plugin::{Environment, Verb};
use crate::result::{Answer, parse_result};
use crate::version::Version;

/// What CRI-O gives an ADD, on top of what is left of the request: long enough for a provider that is just starting,
/// short of waiting for ever.
pub const ADD_LIMIT: Duration = Duration::from_secs(300);
/// What CRI-O gives a DEL: half of the kubelet's patience with StopPodSandbox.
pub const DEL_LIMIT: Duration = Duration::from_secs(60);
/// What CRI-O gives a collection of garbage.
pub const GC_LIMIT: Duration = Duration::from_secs(30);
/// An older name of the list of GC, which plugins written to an early text of 1.1.0 read.
const GC_KEYS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];
/// The interface of an attachment of which nothing is cached.
const DEFAULT_IFNAME: &str = "eth0";

/// What a call says about an attachment besides its network.
struct Runtime {
    container_id: String,
    netns: String,
    ifname: String,
    args: Vec<(String, String)>,
    capability_args: Map<String, Value>,
}

impl Runtime {
    fn args_text(&self) -> String {
        let pairs: Vec<String> = self.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
        pairs.join(";")
    }

    /// A plugin's stdin.
    fn input(&self, list: &NetworkList, plugin: &Plugin, previous: Option<&Map<String, Value>>) -> Vec<u8> {
        let mut body = plugin.body.clone();
        body.insert("name".into(), list.name.as_str().into());
        body.insert("cniVersion".into(), list.version.to_string().into());
        let granted = plugin.capabilities.iter().filter_map(|name| self.capability_args.get_key_value(name));
        let granted: Map<String, Value> = granted.map(|(name, value)| (name.clone(), value.clone())).collect();
        if !granted.is_empty() {
            body.insert("runtimeConfig".into(), Value::Object(granted));
        }
        if let Some(previous) = previous {
            body.insert("prevResult".into(), Value::Object(previous.clone()));
        }
        Value::Object(body).to_string().into_bytes()
    }
}

/// Text of a person's or the kubelet's making, on its way into `CNI_ARGS`.
fn check_argument(key: &'static str, value: &str) -> Result<(), ArgumentError> {
    if value.contains([';', '=']) || value.chars().any(char::is_control) {
        return Err(ArgumentError { key, value: value.to_owned() });
    }
    Ok(())
}

fn check_ifname(name: &str) -> Result<(), ArgumentError> {
    let bad = name.is_empty()
        || name.len() > 15
        || matches!(name, "." | "..")
        || name.contains(|c: char| matches!(c, '/' | ':') || c.is_whitespace() || c.is_control());
    if bad { Err(ArgumentError { key: "CNI_IFNAME", value: name.to_owned() }) } else { Ok(()) }
}

fn pod(attachment: &Attachment) -> String {
    format!("{}_{}", attachment.namespace, attachment.name)
}

fn check_attachment(attachment: &Attachment) -> Result<(), ArgumentError> {
    check_argument("K8S_POD_NAMESPACE", &attachment.namespace)?;
    check_argument("K8S_POD_NAME", &attachment.name)?;
    check_argument("K8S_POD_UID", &attachment.uid)?;
    check_ifname(&attachment.ifname)
}

fn netns_text(netns: Option<&Path>) -> String {
    netns.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default()
}

impl Network {
    /// Attaches the sandbox to the default network, within [`ADD_LIMIT`].
    ///
    /// When a plugin fails, the chain is taken back before the error returns. The result is not checked again: it is
    /// what the plugins just said.
    pub async fn add(&self, attachment: &Attachment) -> Result<CniResult, AddError> {
        self.add_within(attachment, ADD_LIMIT).await
    }

    /// [`Network::add`] with another limit for the whole chain.
    pub async fn add_within(&self, attachment: &Attachment, limit: Duration) -> Result<CniResult, AddError> {
        check_attachment(attachment)?;
        let runtime = self.runtime(attachment)?;
        let list = match self.default_list() {
            Ok(list) => list,
            // The watch may be a moment behind.
            Err(_) => {
                self.load().await;
                self.default_list()?
            }
        };
        let turn = self.turn(&pod(attachment));
        let _turn = turn.lock().await;
        let deadline = Instant::now() + limit;
        {
            let _gate = self.shared.collecting.lock().await;
            self.live().insert(runtime.container_id.clone());
        }
        let outcome = self.add_chain(&list, &runtime, deadline).await;
        let failed = |source| AddError::Plugin { pod: pod(attachment), network: list.name.clone(), source };
        let outcome = outcome.map_err(failed).and_then(|answer| {
            let entry = Entry {
                netns: runtime.netns.clone(),
                config: list.to_json(),
                args: Some(runtime.args.clone()),
                capability_args: Some(runtime.capability_args.clone()).filter(|args| !args.is_empty()),
                result: Some(answer.original),
                ..Entry::new(&list.name, &runtime.container_id, &runtime.ifname)
            };
            let dir = || self.shared.cache.dir().to_owned();
            let written = self.shared.cache.write(&entry);
            written.map_err(|source| AddError::Cache { pod: pod(attachment), dir: dir(), source })?;
            Ok(cni_result(&list.name, &runtime.ifname, answer.ips, answer.current))
        });
        if outcome.is_err() {
            let undone = self.del_chain(&list, &runtime, None, Instant::now() + DEL_LIMIT).await;
            if let Err(error) = undone {
                tracing::warn!(
                    sandbox.id = runtime.container_id,
                    error = chain(&error),
                    "undoing a failed CNI ADD failed"
                );
            }
            self.live().remove(&runtime.container_id);
        }
        outcome
    }

    fn runtime(&self, attachment: &Attachment) -> Result<Runtime, BandwidthError> {
        let id = attachment.sandbox_id.as_str();
        let mut capability_args = Map::new();
        if let Some(limits) = bandwidth::capability(&attachment.annotations)? {
            capability_args.insert("bandwidth".into(), limits);
        }
        if !attachment.cgroup_parent.is_empty() {
            capability_args.insert("cgroupPath".into(), attachment.cgroup_parent.as_str().into());
        }
        capability_args.insert("io.kubernetes.cri.pod-annotations".into(), json!(attachment.annotations));
        let fixed = [
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", &attachment.namespace),
            ("K8S_POD_NAME", &attachment.name),
            ("K8S_POD_INFRA_CONTAINER_ID", id),
            ("K8S_POD_UID", &attachment.uid),
        ];
        let mut args: Vec<_> = fixed.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        args.extend(self.shared.own_args.iter().cloned());
        Ok(Runtime {
            container_id: id.to_owned(),
            netns: netns_text(attachment.netns.as_deref()),
            ifname: attachment.ifname.clone(),
            args,
            capability_args,
        })
    }

    async fn call(
        &self,
        list: &NetworkList,
        plugin: &Plugin,
        verb: Verb,
        runtime: &Runtime,
        previous: Option<&Map<String, Value>>,
        deadline: Instant,
    ) -> Result<Vec<u8>, StepError> {
        let args = runtime.args_text();
        let environment = Environment {
            container_id: Some(&runtime.container_id),
            netns: Some(Path::new(&runtime.netns)),
            ifname: Some(&runtime.ifname),
            args: Some(&args),
        };
        let input = runtime.input(list, plugin, previous);
        Ok(self.shared.plugins.call(&plugin.kind, verb, &environment, &input, deadline).await?)
    }

    async fn add_chain(
        &self,
        list: &NetworkList,
        runtime: &Runtime,
        deadline: Instant,
    ) -> Result<Answer, Box<ChainError>> {
        let mut last: Option<Answer> = None;
        for plugin in &list.plugins {
            let previous = last.as_ref().map(|answer| &answer.original);
            let output = self.call(list, plugin, Verb::Add, runtime, previous, deadline).await;
            let answer = output.and_then(|output| Ok(parse_result(&output, list.version)?));
            last = Some(answer.map_err(|source| failed_step(plugin, "add", source))?);
        }
        Ok(last.expect("a loaded network has at least one plugin"))
    }

    async fn del_chain(
        &self,
        list: &NetworkList,
        runtime: &Runtime,
        result: Option<&Map<String, Value>>,
        deadline: Instant,
    ) -> Result<(), Box<ChainError>> {
        let previous = result.filter(|_| list.version >= Version::CHECK);
        let mut first = Ok(());
        for plugin in list.plugins.iter().rev() {
            let outcome = self.call(list, plugin, Verb::Del, runtime, previous, deadline).await;
            // One that fails does not keep the others from giving back what they hold; libcni stops here and leaks it.
            first = first.and(outcome.map(drop).map_err(|source| failed_step(plugin, "delete", source)));
        }
        first
    }

    /// Detaches the sandbox from whatever it is attached to, within [`DEL_LIMIT`], and forgets the result.
    ///
    /// Idempotent as far as plugins are, which the specification demands. Uses the configuration and arguments that
    /// ADD had; the present configuration when nothing is cached. A lost namespace (`netns: None`) is no reason not to
    /// call: plugins give back addresses without it. After an error the entry is still there; who gives up calls
    /// [`Network::forget`].
    pub async fn del(&self, attachment: &Attachment) -> Result<(), DelError> {
        check_attachment(attachment)?;
        let turn = self.turn(&pod(attachment));
        let _turn = turn.lock().await;
        // Not before: whoever had the turn may have used all of its own time.
        let deadline = Instant::now() + DEL_LIMIT;
        let outcome = self.del_all(attachment, deadline).await;
        self.live().remove(attachment.sandbox_id.as_str());
        outcome
    }

    async fn del_all(&self, attachment: &Attachment, deadline: Instant) -> Result<(), DelError> {
        let id = attachment.sandbox_id.as_str();
        let failed =
            |network: &str, source| DelError::Plugin { pod: pod(attachment), network: network.to_owned(), source };
        let entries = self.shared.cache.find(Some(id));
        if entries.is_empty() {
            let list = self.default_list()?;
            let runtime = self.runtime(attachment)?;
            tracing::debug!(sandbox.id = id, "no CNI cache entry, removing with the present configuration");
            return self.del_chain(&list, &runtime, None, deadline).await.map_err(|source| failed(&list.name, source));
        }
        for entry in entries {
            let list = self.cached_list(&entry).ok_or_else(|| DelError::UnknownNetwork(entry.network.clone()))?;
            // Where the namespace is now, or that it is gone, the caller knows better than the cache.
            let runtime = Runtime { netns: netns_text(attachment.netns.as_deref()), ..cached_runtime(&entry) };
            let outcome = self.del_chain(&list, &runtime, entry.result.as_ref(), deadline).await;
            outcome.map_err(|source| failed(&list.name, source))?;
            let dir = || self.shared.cache.dir().to_owned();
            let removed = self.shared.cache.remove(&entry);
            removed.map_err(|source| DelError::Cache { pod: pod(attachment), dir: dir(), source })?;
        }
        Ok(())
    }

    /// The network as it was at ADD, else as it is now.
    fn cached_list(&self, entry: &Entry) -> Option<Arc<NetworkList>> {
        let list = NetworkList::parse(&entry.config, &entry.network).ok().filter(|list| !list.plugins.is_empty());
        // Entries of a single plugin, as other users of libcni write them, are the plugin's object itself.
        match list.or_else(|| NetworkList::parse_single(&entry.config, &entry.network).ok()) {
            Some(list) => Some(Arc::new(list)),
            None => {
                tracing::warn!(
                    sandbox.id = entry.container_id,
                    "cached CNI configuration is unusable, using the present one"
                );
                self.networks().find(&entry.network).cloned()
            }
        }
    }

    /// Removes what is cached about a sandbox without calling plugins; for who gives up on [`Network::del`].
    pub fn forget(&self, id: &SandboxId) -> std::io::Result<()> {
        self.live().remove(id.as_str());
        self.shared.cache.forget(id.as_str())
    }

    /// What ADD answered, as kept in the cache: how addresses are found again after a restart.
    #[must_use]
    pub fn cached_result(&self, id: &SandboxId) -> Option<CniResult> {
        self.shared.cache.find(Some(id.as_str())).into_iter().find_map(|entry| {
            let text = serde_json::to_vec(&entry.result?).ok()?;
            let answer = parse_result(&text, Version::FIRST).ok()?;
            Some(cni_result(&entry.network, &entry.ifname, answer.ips, answer.current))
        })
    }

    /// Asks the plugins whether the attachment is still as they made it.
    ///
    /// Before CNI 0.4.0, and with `disableCheck`, there is nobody to ask and all is well.
    pub async fn check(&self, attachment: &Attachment) -> Result<(), CheckError> {
        let turn = self.turn(&pod(attachment));
        let _turn = turn.lock().await;
        // Not before: whoever had the turn may have used all of its own time.
        let deadline = Instant::now() + DEL_LIMIT;
        let entries = self.shared.cache.find(Some(attachment.sandbox_id.as_str()));
        if entries.is_empty() {
            return Err(CheckError::NotAttached(pod(attachment)));
        }
        for entry in entries {
            let list = self.cached_list(&entry).ok_or_else(|| CheckError::UnknownNetwork(entry.network.clone()))?;
            if list.version < Version::CHECK || list.disable_check {
                continue;
            }
            let runtime = cached_runtime(&entry);
            for plugin in &list.plugins {
                let outcome = self.call(&list, plugin, Verb::Check, &runtime, entry.result.as_ref(), deadline).await;
                outcome.map_err(|source| CheckError::Plugin {
                    pod: pod(attachment),
                    network: list.name.clone(),
                    source: failed_step(plugin, "check", source),
                })?;
            }
        }
        Ok(())
    }

    /// Detaches every cached attachment of the configured networks whose sandbox is neither in `valid` nor being
    /// added by this process, then lets plugins of 1.1.0 free what belongs to no valid one. Within [`GC_LIMIT`].
    ///
    /// Goes on after failures and reports them together.
    pub async fn gc(&self, valid: &[SandboxId]) -> Result<(), GcError> {
        let deadline = Instant::now() + GC_LIMIT;
        let keep = || -> HashSet<String> {
            let mut keep = self.live().clone();
            keep.extend(valid.iter().map(|id| id.as_str().to_owned()));
            keep
        };
        self.shared.cache.sweep();
        // Entries first: what is added after this is not among them, what was before is already live.
        let entries = self.shared.cache.find(None);
        let kept = keep();
        let networks = self.networks();
        let (mut asked, mut failed) = (0, Vec::new());
        for present in networks.iter().filter(|list| !list.disable_gc) {
            // What is not a sandbox's id was attached by somebody else.
            let is_ours =
                |entry: &&Entry| entry.network == present.name && SandboxId::parse(&entry.container_id).is_ok();
            for entry in entries.iter().filter(is_ours).filter(|entry| !kept.contains(&entry.container_id)) {
                asked += 1;
                let list = self.cached_list(entry).unwrap_or_else(|| present.clone());
                let outcome = self.del_chain(&list, &cached_runtime(entry), entry.result.as_ref(), deadline).await;
                let outcome = match outcome {
                    Ok(()) => self.shared.cache.remove(entry).map_err(|error| error.to_string()),
                    Err(error) => Err(chain(&*error)),
                };
                if let Err(reason) = outcome {
                    failed.push(format!("delete stale attachment {} {}: {reason}", entry.container_id, entry.ifname));
                }
            }
        }
        let asking = |list: &&Arc<NetworkList>| !list.disable_gc && list.version >= Version::CURRENT;
        for present in networks.iter().filter(asking) {
            // From here to the plugins' end no ADD begins: it would not be on their list.
            let _gate = self.shared.collecting.lock().await;
            let ifname = |id: &str| {
                let known = entries.iter().find(|entry| entry.container_id == id && entry.network == present.name);
                known.map_or(DEFAULT_IFNAME, |entry| entry.ifname.as_str())
            };
            let list: Vec<Value> = keep().iter().map(|id| json!({"containerID": id, "ifname": ifname(id)})).collect();
            let extra = GC_KEYS.map(|key| (key, Value::Array(list.clone())));
            asked += 1;
            if let Err((kind, error)) = self.call_each(present, Verb::Gc, &extra, deadline).await {
                failed.push(format!("collect garbage of plugin {kind}: {}", chain(&error)));
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(GcError { asked, failed }) }
    }
}

fn failed_step(plugin: &Plugin, verb: &'static str, source: StepError) -> Box<ChainError> {
    Box::new(ChainError { kind: plugin.kind.clone(), verb, source })
}

fn cached_runtime(entry: &Entry) -> Runtime {
    Runtime {
        container_id: entry.container_id.clone(),
        netns: entry.netns.clone(),
        ifname: entry.ifname.clone(),
        args: entry.args.clone().unwrap_or_default(),
        capability_args: entry.capability_args.clone().unwrap_or_default(),
    }
}

fn cni_result(network: &str, ifname: &str, ips: Vec<IpAddr>, raw: String) -> CniResult {
    CniResult { network: network.to_owned(), ifname: ifname.to_owned(), ips, raw }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_cannot_become_others() {
        for (value, ok) in [
            ("kube-system", true),
            ("", true),
            ("a;K8S_POD_UID=x", false),
            ("a=b", false),
            ("a\nb", false),
            ("a\0", false),
        ] {
            assert_eq!(check_argument("K8S_POD_NAME", value).is_ok(), ok, "{value:?}");
        }
        for (name, ok) in
            [("eth0", true), ("", false), ("0123456789abcdef", false), ("a/b", false), ("a b", false), ("..", false)]
        {
            assert_eq!(check_ifname(name).is_ok(), ok, "{name:?}");
        }
    }
}
