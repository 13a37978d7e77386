//! The configuration a schema 1 manifest stands for.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::{Schema1, Schema1Error};
use crate::digest::Digest;
use crate::go_json;

/// Fields of a description that are no configuration.
const DROPPED: [&str; 6] = ["id", "parent", "parent_id", "layer_id", "throwaway", "Size"];
/// Docker before this version wrote descriptions that are written anew, with every field that has no zero form.
const REWRITTEN_BEFORE: [u64; 3] = [1, 8, 3];

type Fields = BTreeMap<String, Box<RawValue>>;

impl Schema1 {
    /// The configuration, byte for byte as containers/image makes it; its digest is the image's id.
    ///
    /// `diff_ids` are those of [`Schema1::layers`], in their order.
    pub fn config(&self, diff_ids: &[Digest]) -> Result<Vec<u8>, Schema1Error> {
        let layers = self.layers().count();
        if diff_ids.len() != layers {
            return Err(Schema1Error::DiffIds { diff_ids: diff_ids.len(), layers });
        }
        let json = |source| Schema1Error::Json { what: "description of the newest layer".to_owned(), source };
        let image: Image = serde_json::from_str(&self.newest).map_err(json)?;
        let rewritten = image
            .docker_version
            .as_deref()
            .is_some_and(|version| !version.is_empty() && is_old(version))
            .then(|| image.write())
            .transpose()?;
        let fields: Fields = serde_json::from_str(rewritten.as_deref().unwrap_or(&self.newest)).map_err(json)?;
        let mut written: BTreeMap<&str, String> = fields
            .iter()
            .filter(|(key, _)| !DROPPED.contains(&key.as_str()))
            .map(|(key, value)| (key.as_str(), go_json::compact(value.get())))
            .collect();
        written.insert("rootfs", root_fs(diff_ids));
        written.insert("history", self.history());
        // Keys in the order of their bytes, as Go writes maps.
        let mut object = Object::default();
        for (key, value) in written {
            object.add(key, &value);
        }
        Ok(object.finish().into_bytes())
    }

    fn history(&self) -> String {
        let entry = |entry: &super::Entry| {
            let mut object = Object::default();
            object.add("created", &go_json::string(&entry.created));
            object.add_text("author", &entry.author);
            object.add_text("created_by", &entry.created_by);
            object.add_text("comment", &entry.comment);
            if entry.is_throwaway {
                object.add("empty_layer", "true");
            }
            object.finish()
        };
        format!("[{}]", self.entries.iter().map(entry).collect::<Vec<_>>().join(","))
    }
}

fn root_fs(diff_ids: &[Digest]) -> String {
    let mut object = Object::default();
    object.add("type", "\"layers\"");
    if !diff_ids.is_empty() {
        object.add("diff_ids", &list(&diff_ids.iter().map(ToString::to_string).collect::<Vec<_>>()));
    }
    object.finish()
}

/// Whether a version is before [`REWRITTEN_BEFORE`]. A part that is no number counts as zero.
fn is_old(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse::<u64>().unwrap_or(0));
    let version: [u64; 3] = std::array::from_fn(|_| parts.next().unwrap_or(0));
    version < REWRITTEN_BEFORE
}

/// An object being written.
#[derive(Default)]
struct Object(String);

impl Object {
    fn add(&mut self, key: &str, value: &str) {
        let comma = if self.0.is_empty() { "" } else { "," };
        // Writing to a string cannot fail.
        let _ = write!(self.0, "{comma}{}:{value}", go_json::string(key));
    }

    /// A text; nothing if it is empty.
    fn add_text(&mut self, key: &str, text: &str) {
        if !text.is_empty() {
            self.add(key, &go_json::string(text));
        }
    }

    fn finish(self) -> String {
        format!("{{{}}}", self.0)
    }
}

fn list(texts: &[String]) -> String {
    format!("[{}]", texts.iter().map(|text| go_json::string(text)).collect::<Vec<_>>().join(","))
}

fn nullable_list(texts: Option<&Vec<String>>) -> String {
    texts.map_or_else(|| "null".to_owned(), |texts| list(texts))
}

/// A description as old Docker wrote it. Source: the image type of Docker 1.x.
#[derive(Deserialize)]
struct Image {
    comment: Option<String>,
    created: Option<String>,
    container: Option<String>,
    container_config: Option<Config>,
    docker_version: Option<String>,
    author: Option<String>,
    config: Option<Config>,
    architecture: Option<String>,
    variant: Option<String>,
    os: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct Config {
    hostname: Option<String>,
    domainname: Option<String>,
    user: Option<String>,
    attach_stdin: Option<bool>,
    attach_stdout: Option<bool>,
    attach_stderr: Option<bool>,
    exposed_ports: Option<BTreeMap<String, IgnoredAny>>,
    tty: Option<bool>,
    open_stdin: Option<bool>,
    stdin_once: Option<bool>,
    env: Option<Vec<String>>,
    cmd: Option<Words>,
    healthcheck: Option<Health>,
    args_escaped: Option<bool>,
    image: Option<String>,
    volumes: Option<BTreeMap<String, IgnoredAny>>,
    working_dir: Option<String>,
    entrypoint: Option<Words>,
    network_disabled: Option<bool>,
    mac_address: Option<String>,
    on_build: Option<Vec<String>>,
    labels: Option<BTreeMap<String, String>>,
    stop_signal: Option<String>,
    stop_timeout: Option<i64>,
    shell: Option<Words>,
}

/// A command as words, or as one text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    Several(Vec<String>),
    One(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Health {
    test: Option<Vec<String>>,
    start_period: Option<i64>,
    start_interval: Option<i64>,
    interval: Option<i64>,
    timeout: Option<i64>,
    retries: Option<i64>,
}

impl Words {
    fn write(words: Option<&Self>) -> String {
        match words {
            None => "null".to_owned(),
            Some(Self::Several(words)) => list(words),
            Some(Self::One(word)) => list(std::slice::from_ref(word)),
        }
    }

    fn is_empty(&self) -> bool {
        matches!(self, Self::Several(words) if words.is_empty())
    }
}

impl Image {
    /// The description written anew. What is dropped afterwards is left out.
    fn write(&self) -> Result<String, Schema1Error> {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let created = match &self.created {
            Some(text) => go_json::time(text).ok_or(Schema1Error::Entries { reason: "a time that is none" })?,
            None => go_json::ZERO_TIME.to_owned(),
        };
        let mut object = Object::default();
        object.add_text("comment", &text(&self.comment));
        object.add("created", &go_json::string(&created));
        object.add_text("container", &text(&self.container));
        object.add("container_config", &self.container_config.as_ref().unwrap_or(&Config::default()).write());
        object.add_text("docker_version", &text(&self.docker_version));
        object.add_text("author", &text(&self.author));
        if let Some(config) = &self.config {
            object.add("config", &config.write());
        }
        object.add_text("architecture", &text(&self.architecture));
        object.add_text("variant", &text(&self.variant));
        object.add_text("os", &text(&self.os));
        Ok(object.finish())
    }
}

fn keys(map: &BTreeMap<String, IgnoredAny>) -> String {
    let mut object = Object::default();
    map.keys().for_each(|key| object.add(key, "{}"));
    object.finish()
}

impl Config {
    fn write(&self) -> String {
        let text = |text: &Option<String>| go_json::string(text.as_deref().unwrap_or_default());
        let flag = |flag: Option<bool>| flag.unwrap_or_default().to_string();
        let mut object = Object::default();
        object.add("Hostname", &text(&self.hostname));
        object.add("Domainname", &text(&self.domainname));
        object.add("User", &text(&self.user));
        object.add("AttachStdin", &flag(self.attach_stdin));
        object.add("AttachStdout", &flag(self.attach_stdout));
        object.add("AttachStderr", &flag(self.attach_stderr));
        if let Some(ports) = self.exposed_ports.as_ref().filter(|ports| !ports.is_empty()) {
            object.add("ExposedPorts", &keys(ports));
        }
        object.add("Tty", &flag(self.tty));
        object.add("OpenStdin", &flag(self.open_stdin));
        object.add("StdinOnce", &flag(self.stdin_once));
        object.add("Env", &nullable_list(self.env.as_ref()));
        object.add("Cmd", &Words::write(self.cmd.as_ref()));
        if let Some(health) = &self.healthcheck {
            object.add("Healthcheck", &health.write());
        }
        if self.args_escaped == Some(true) {
            object.add("ArgsEscaped", "true");
        }
        object.add("Image", &text(&self.image));
        object.add("Volumes", &self.volumes.as_ref().map_or_else(|| "null".to_owned(), keys));
        object.add("WorkingDir", &text(&self.working_dir));
        object.add("Entrypoint", &Words::write(self.entrypoint.as_ref()));
        if self.network_disabled == Some(true) {
            object.add("NetworkDisabled", "true");
        }
        object.add_text("MacAddress", self.mac_address.as_deref().unwrap_or_default());
        object.add("OnBuild", &nullable_list(self.on_build.as_ref()));
        object.add("Labels", &self.labels());
        object.add_text("StopSignal", self.stop_signal.as_deref().unwrap_or_default());
        if let Some(timeout) = self.stop_timeout {
            object.add("StopTimeout", &timeout.to_string());
        }
        if let Some(shell) = self.shell.as_ref().filter(|shell| !shell.is_empty()) {
            object.add("Shell", &Words::write(Some(shell)));
        }
        object.finish()
    }

    fn labels(&self) -> String {
        let Some(labels) = &self.labels else { return "null".to_owned() };
        let mut object = Object::default();
        labels.iter().for_each(|(key, value)| object.add(key, &go_json::string(value)));
        object.finish()
    }
}

impl Health {
    fn write(&self) -> String {
        let mut object = Object::default();
        if let Some(test) = self.test.as_ref().filter(|test| !test.is_empty()) {
            object.add("Test", &list(test));
        }
        let times = [
            ("StartPeriod", self.start_period),
            ("StartInterval", self.start_interval),
            ("Interval", self.interval),
            ("Timeout", self.timeout),
            ("Retries", self.retries),
        ];
        for (key, value) in times {
            if let Some(value) = value.filter(|value| *value != 0) {
                object.add(key, &value.to_string());
            }
        }
        object.finish()
    }
}
