//! Entry points for fuzzing: each takes bytes from outside and must return, whatever they are.

use crate::http::challenge;
use crate::local;
use crate::manifest::{parse_diff_ids, parse_manifest};
use crate::platform::Platform;
use crate::reference::{NameOrId, Reference};
use crate::registries::{Registries, parse_registries};
use crate::source::Source;

/// References and sources; what parses must print to something that parses to the same.
pub fn reference(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(reference) = Reference::parse(&text) {
        let again = Reference::parse(&reference.to_string());
        assert_eq!(again.as_ref(), Ok(&reference), "printing and parsing disagree");
        assert_eq!(Reference::parse(&reference.familiar()).map(|familiar| familiar.to_string()).is_ok(), true);
    }
    let _ = NameOrId::parse(&text);
    let _ = Source::parse(&text);
    let _ = Registries::default().candidates(&text);
}

/// Manifests, indices and configurations.
pub fn manifest(bytes: &[u8]) {
    let _ = parse_diff_ids(bytes);
    match parse_manifest(bytes, None) {
        Ok(crate::manifest::Manifest::Index(index)) => {
            let _ = index.choose(&Platform::host());
        }
        Ok(crate::manifest::Manifest::Image(image)) => {
            let _ = (image.find_artifact_type(), image.check_layers());
        }
        Err(_) => {}
    }
}

/// `WWW-Authenticate` headers.
pub fn www_authenticate(bytes: &[u8]) {
    let _ = challenge::parse(bytes);
}

/// registries.conf.
pub fn registries(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok((registries, _)) = parse_registries(&text)
        && let Ok(reference) = Reference::parse("registry.example/a/b:c")
    {
        let _ = registries.endpoints(&reference);
    }
}

/// Headers of tar archives, and the `manifest.json` of docker archives.
pub fn archive_index(bytes: &[u8]) {
    let _ = local::tar::index_bytes(bytes);
    let _ = local::parse_archive_manifest(bytes);
}

/// Credential files.
pub fn auth_file(bytes: &[u8]) {
    let _ = crate::auth::parse_auth_file(bytes);
}
