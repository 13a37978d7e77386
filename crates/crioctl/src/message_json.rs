//! Messages as JSON, by the descriptor of the protobuf text: protobuf's canonical mapping, so that no message has to be
//! written down a second time.
//!
//! Reading takes field names as in protobuf (`log_directory`) and in lowerCamelCase, enums as names or numbers, and
//! refuses unknown names. Writing gives lowerCamelCase, enums as names, 64-bit numbers as strings, and fields with
//! default values too, which is what other CRI clients print.

use std::sync::LazyLock;

use cri_api::v1;
use prost::Message;
use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde_json::Value;

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(include_bytes!(concat!(env!("OUT_DIR"), "/cri_v1.bin")).as_slice())
        .expect("the build script wrote a descriptor")
});

/// A message that can be JSON.
pub(crate) trait Described: Message + Default {
    /// Its name in package `runtime.v1`.
    const NAME: &'static str;
}

macro_rules! described {
    ($($name:ident),* $(,)?) => {
        $(impl Described for v1::$name {
            const NAME: &'static str = stringify!($name);
        })*
    };
}

described!(
    PodSandboxConfig,
    ContainerConfig,
    ListPodSandboxResponse,
    ListContainersResponse,
    ListImagesResponse,
    PodSandboxStatusResponse,
    ContainerStatusResponse,
    ImageStatusResponse,
    StatusResponse,
    VersionResponse,
);

fn descriptor<M: Described>() -> MessageDescriptor {
    POOL.get_message_by_name(&format!("runtime.v1.{}", M::NAME)).expect("the descriptor holds every message")
}

/// The message as JSON.
pub(crate) fn to_json<M: Described>(message: &M) -> Value {
    let mut dynamic = DynamicMessage::new(descriptor::<M>());
    dynamic.transcode_from(message).expect("a message fits its own descriptor");
    let options = SerializeOptions::new().skip_default_fields(false);
    dynamic
        .serialize_with_options(serde_json::value::Serializer, &options)
        .expect("a message without maps of odd keys is JSON")
}

/// The message that JSON describes. Errors name the unknown or wrong key.
pub(crate) fn from_json<M: Described>(value: Value) -> Result<M, serde_json::Error> {
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let dynamic = DynamicMessage::deserialize_with_options(descriptor::<M>(), value, &options)?;
    dynamic.transcode_to().map_err(<serde_json::Error as serde::de::Error>::custom)
}

/// A status answer as JSON, with the engine's verbose `info`, which holds JSON as text, opened up.
pub(crate) fn to_json_with_info<M: Described>(message: &M) -> Value {
    let mut value = to_json(message);
    if let Some(Value::Object(info)) = value.get_mut("info") {
        for entry in info.values_mut() {
            if let Some(Ok(inner)) = entry.as_str().map(serde_json::from_str::<Value>)
                && (inner.is_object() || inner.is_array())
            {
                *entry = inner;
            }
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_message_is_in_the_descriptor() {
        descriptor::<v1::PodSandboxConfig>();
        descriptor::<v1::ContainerConfig>();
        descriptor::<v1::ListPodSandboxResponse>();
        descriptor::<v1::ListContainersResponse>();
        descriptor::<v1::ListImagesResponse>();
        descriptor::<v1::PodSandboxStatusResponse>();
        descriptor::<v1::ContainerStatusResponse>();
        descriptor::<v1::ImageStatusResponse>();
        descriptor::<v1::StatusResponse>();
        descriptor::<v1::VersionResponse>();
    }

    #[test]
    fn info_is_opened() {
        let message = v1::ContainerStatusResponse {
            status: Some(v1::ContainerStatus { id: "x".into(), created_at: 5, ..Default::default() }),
            info: [("info".to_owned(), r#"{"pid":7}"#.to_owned()), ("text".to_owned(), "plain".to_owned())].into(),
        };
        let value = to_json_with_info(&message);
        assert_eq!(value["info"], json!({"info": {"pid": 7}, "text": "plain"}));
        assert_eq!(value["status"]["id"], "x");
        assert_eq!(value["status"]["createdAt"], "5");
        assert_eq!(value["status"]["state"], "CONTAINER_CREATED");
        assert_eq!(value["status"]["exitCode"], 0);
    }
}
