//! Layers that were encrypted for somebody: keys of this node, the layer's own key, the plain bytes.
//!
//! Promises: a key of the node appears in no log, error or `Debug` text; a reader of plain bytes ends well only if both
//! the blob's digest and the layer's HMAC matched; whatever a registry says costs a bounded amount of work. Must not
//! know: registries, the store, what is in a layer. Blocking code.
//! What is **not** here: layers encrypted for GPG or PKCS7 recipients, key providers and PKCS11 tokens. They are
//! refused by name, and a layer with one of them besides a JWE recipient is read by way of the latter.
//!
//! Source: ocicrypt, the library of skopeo, buildah, containerd and CRI-O; RFC 7516 and RFC 7518.
//! Begin reading at [`DecryptionKeys`], then [`DecryptionKeys::unwrap_layer_key`], then [`Decrypting`].
#![forbid(unsafe_code)]

mod jwe;
mod keys;
mod layer;
mod reader;

pub use keys::{DecryptionKeys, LoadKeysError};
pub use layer::{LayerKey, UnwrapError};
pub use reader::Decrypting;

/// Entry point for fuzzing: annotations of a layer are answered with a key or an error, whatever they say.
pub fn fuzz(bytes: &[u8]) {
    use std::collections::BTreeMap;
    let keys = DecryptionKeys::parse(bytes);
    let keys = keys.unwrap_or_default();
    let text = String::from_utf8_lossy(bytes).into_owned();
    let _ = jwe::decrypt(bytes, &keys.private);
    let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes);
    for (wrapped, public) in [(&text, &text), (&encoded, &encoded)] {
        let annotations =
            BTreeMap::from([(layer::JWE.to_owned(), wrapped.clone()), (layer::PUBLIC.to_owned(), public.clone())]);
        let _ = keys.unwrap_layer_key(&annotations);
        let _ = layer::public_options(&annotations);
    }
}
