//! The JSON records of containers/storage, as every tool of the field writes them.
//!
//! Keys unknown to us are kept, so that a record made by a newer tool survives being rewritten here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::ids::MapRecord;
use crate::types::Sizes;

/// Go writes absent lists as `null` in places; both mean empty.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// One record of a file.
pub(crate) trait Record: Clone + Serialize + for<'de> Deserialize<'de> {
    fn id(&self) -> &str;
    fn names(&self) -> &[String];
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct LayerRecord {
    pub(crate) id: String,
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub(crate) names: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) parent: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) metadata: String,
    #[serde(rename = "mountlabel", skip_serializing_if = "String::is_empty")]
    pub(crate) mount_label: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) created: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) compressed_diff_digest: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) compressed_size: i64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) diff_digest: String,
    /// Digest of the table of contents it was made by.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) toc_digest: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) diff_size: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) compression: i64,
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub(crate) uidset: Vec<u32>,
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub(crate) gidset: Vec<u32>,
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Map::is_empty")]
    pub(crate) flags: Map<String, Value>,
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub(crate) uidmap: Vec<MapRecord>,
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub(crate) gidmap: Vec<MapRecord>,
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub(crate) big_data_names: Vec<String>,
    #[serde(flatten)]
    pub(crate) others: Map<String, Value>,
}

impl LayerRecord {
    /// Whether whoever made it had not finished; such a layer counts for nothing.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.flags.get("incomplete").is_some_and(|value| value == &Value::Bool(true))
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct ImageRecord {
    pub(crate) id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) digest: String,
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub(crate) names: Vec<String>,
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub(crate) names_history: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) layer: String,
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub(crate) mapped_layers: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) metadata: String,
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub(crate) big_data_names: Vec<String>,
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) big_data_sizes: Sizes,
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) big_data_digests: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) created: String,
    #[serde(flatten)]
    pub(crate) others: Map<String, Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct ContainerRecord {
    pub(crate) id: String,
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub(crate) names: Vec<String>,
    // Always written: the format has no omitempty for these two.
    pub(crate) image: String,
    pub(crate) layer: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) metadata: String,
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub(crate) big_data_names: Vec<String>,
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) big_data_sizes: Sizes,
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) big_data_digests: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) created: String,
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub(crate) uidmap: Vec<MapRecord>,
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub(crate) gidmap: Vec<MapRecord>,
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Map::is_empty")]
    pub(crate) flags: Map<String, Value>,
    #[serde(flatten)]
    pub(crate) others: Map<String, Value>,
}

impl ContainerRecord {
    pub(crate) fn flag_text(&self, name: &str) -> String {
        self.flags.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct MountRecord {
    pub(crate) id: String,
    pub(crate) path: String,
    pub(crate) count: i64,
    #[serde(flatten)]
    pub(crate) others: Map<String, Value>,
}

macro_rules! record {
    ($type:ty, $self:ident => $names:expr) => {
        impl Record for $type {
            fn id(&self) -> &str {
                &self.id
            }
            fn names(&$self) -> &[String] {
                $names
            }
        }
    };
}
record!(LayerRecord, self => &self.names);
record!(ImageRecord, self => &self.names);
record!(ContainerRecord, self => &self.names);
record!(MountRecord, self => &[]);

/// Parses a whole record file; an entry point for fuzzing.
pub fn parse_records(bytes: &[u8]) -> bool {
    let layers = serde_json::from_slice::<Vec<LayerRecord>>(bytes).is_ok();
    let images = serde_json::from_slice::<Vec<ImageRecord>>(bytes).is_ok();
    let containers = serde_json::from_slice::<Vec<ContainerRecord>>(bytes).is_ok();
    let mounts = serde_json::from_slice::<Vec<MountRecord>>(bytes).is_ok();
    layers || images || containers || mounts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unchanged<R: Record + PartialEq + std::fmt::Debug>(text: &str) {
        let records: Vec<R> = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&records).unwrap(), text);
    }

    #[test]
    fn records_of_other_tools_are_rewritten_as_they_were() {
        // As written by podman 4.3.
        unchanged::<LayerRecord>(
            r#"[{"id":"27","names":["c1-layer"],"parent":"90","created":"2026-11-20T09:02:35.458401968Z","compressed-diff-digest":"sha256:27","compressed-size":1996800,"diff-digest":"sha256:27","diff-size":1996800,"compression":2,"uidset":[0],"gidset":[0,42],"uidmap":[{"container_id":0,"host_id":1,"size":2}]}]"#,
        );
        // As written by containers/storage 1.62.
        unchanged::<LayerRecord>(
            r#"[{"id":"27","created":"2026-11-20T09:02:35.458401968Z","toc-digest":"sha256:28","diff-size":-1,"uidset":[0],"gidset":[0],"flags":{"expected-layer-diffid":"sha256:29"},"big-data-names":["zstd-chunked-layer-data","zstd-chunked-manifest"]}]"#,
        );
        unchanged::<ImageRecord>(
            r#"[{"id":"82","digest":"sha256:49","names":["localhost/a:1"],"names-history":["localhost/a:1"],"layer":"27","metadata":"{}","big-data-names":["manifest"],"big-data-sizes":{"manifest":343},"big-data-digests":{"manifest":"sha256:49"},"created":"2026-11-20T09:02:35.058629427Z"}]"#,
        );
        unchanged::<ContainerRecord>(
            r#"[{"id":"75","names":["c1"],"image":"","layer":"90","metadata":"{\"name\":\"c1\"}","created":"2026-11-20T09:03:09.415620706Z","uidmap":[{"container_id":0,"host_id":100000,"size":65536}],"gidmap":[{"container_id":0,"host_id":-1,"size":4294967297}],"flags":{"MountLabel":"","ProcessLabel":""},"from-the-future":{"a":[1]}}]"#,
        );
        unchanged::<MountRecord>(r#"[{"id":"90","path":"/x/merged","count":1}]"#);
        let nulls: Vec<LayerRecord> = serde_json::from_str(r#"[{"id":"a","names":null,"flags":null}]"#).unwrap();
        assert_eq!(nulls[0].id, "a");
    }
}
