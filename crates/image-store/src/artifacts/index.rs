//! `index.json` of an OCI image layout. Source: OCI image specification, image-layout.md.

use domain::digest::Digest;
use serde_json::{Map, Value, json};

use super::{Forget, NewArtifact, digest_of};

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// `index.json`; what other tools wrote into it survives being rewritten here.
#[derive(Debug, Default)]
pub(super) struct Index(pub(super) Map<String, Value>);

pub(super) struct Entry {
    pub(super) digest: Digest,
    pub(super) name: Option<String>,
}

fn entry_of(value: &Value) -> Option<Entry> {
    let digest = Digest::parse(value.get("digest")?.as_str()?).ok()?;
    let name = value.pointer("/annotations").and_then(|annotations| annotations.get(REF_NAME)?.as_str());
    Some(Entry { digest, name: name.filter(|name| !name.is_empty()).map(str::to_owned) })
}

fn is_named(value: &Value, name: &str) -> bool {
    entry_of(value).is_some_and(|entry| entry.name.as_deref() == Some(name))
}

fn is_of(value: &Value, digest: &Digest) -> bool {
    entry_of(value).is_some_and(|entry| entry.digest == *digest)
}

impl Index {
    /// Those entries that are of use to us.
    pub(super) fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        self.0.get("manifests").and_then(Value::as_array).into_iter().flatten().filter_map(entry_of)
    }

    fn manifests(&mut self) -> &mut Vec<Value> {
        self.0.entry("schemaVersion").or_insert(json!(2));
        self.0.entry("mediaType").or_insert(json!(INDEX_TYPE));
        let list = self.0.entry("manifests").or_insert_with(|| json!([]));
        if !list.is_array() {
            // Go writes an empty list as null.
            *list = json!([]);
        }
        match list {
            Value::Array(list) => list,
            _ => unreachable!("it was made an array"),
        }
    }

    /// Names a manifest. The one that had the name stays without it.
    pub(super) fn put(&mut self, new: &NewArtifact) {
        let mut descriptor = json!({
            "mediaType": new.media_type, "digest": new.digest.as_str(), "size": new.manifest.len(),
        });
        let manifests = self.manifests();
        if let Some(name) = &new.name {
            descriptor["annotations"] = json!({ REF_NAME: name });
            for other in manifests.iter_mut().filter(|other| is_named(other, name)) {
                if let Some(annotations) = other.get_mut("annotations").and_then(Value::as_object_mut) {
                    annotations.remove(REF_NAME);
                }
            }
        }
        let is_bare = |value: &Value| entry_of(value).is_some_and(|entry| entry.name.is_none());
        let is_known = manifests.iter().any(|value| is_of(value, &new.digest));
        match manifests.iter_mut().find(|value| is_of(value, &new.digest) && is_bare(value)) {
            Some(bare) => *bare = descriptor,
            None if new.name.is_none() && is_known => {}
            None => manifests.push(descriptor),
        }
    }

    /// Takes entries out; returns the manifests they were of.
    pub(super) fn forget(&mut self, what: Forget<'_>) -> Vec<Digest> {
        let is_meant = |value: &Value| match what {
            Forget::Name(name) => is_named(value, name),
            Forget::Artifact(digest) => is_of(value, digest),
        };
        let manifests = self.manifests();
        let gone = manifests.iter().filter(|value| is_meant(value)).filter_map(entry_of).map(|entry| entry.digest);
        let gone: Vec<Digest> = gone.collect();
        manifests.retain(|value| !is_meant(value));
        gone
    }
}

/// Entry point for fuzzing: any bytes are an index or an error, and what is named in it is found and forgotten.
pub fn fuzz_index(bytes: &[u8]) {
    let Ok(mut index) = serde_json::from_slice(bytes).map(Index) else { return };
    let digest = digest_of(bytes);
    let new = NewArtifact {
        name: Some("example.com/a:b".to_owned()),
        manifest: bytes.to_vec(),
        digest: digest.clone(),
        media_type: INDEX_TYPE.to_owned(),
    };
    index.put(&new);
    let named = index.entries().filter(|entry| entry.name == new.name).count();
    assert_eq!(named, 1, "a name is of one manifest");
    assert!(!index.forget(Forget::Artifact(&digest)).is_empty());
    assert!(index.entries().all(|entry| entry.digest != digest));
}
