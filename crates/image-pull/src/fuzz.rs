//! Entry points for fuzzing: each takes bytes from outside and must return, whatever they are.

use crate::http::challenge;
use crate::local;
use crate::manifest::{parse_diff_ids, parse_manifest};
use crate::platform::Platform;
use crate::reference::{NameOrId, Reference};
use crate::registries::{Registries, parse_registries};
use crate::signatures::parse_extension;
use crate::source::Source;

/// References and sources; what parses must print to something that parses to the same.
pub fn reference(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(reference) = Reference::parse(&text) {
        let again = Reference::parse(&reference.to_string());
        assert_eq!(again.as_ref(), Ok(&reference), "printing and parsing disagree");
        assert_eq!(Reference::parse(&reference.familiar()).as_ref(), Ok(&reference), "the short form means another");
    }
    let _ = NameOrId::parse(&text);
    let _ = Source::parse(&text);
    let _ = Registries::default().candidates(&text);
}

/// Answers with several parts of a blob, behind a line with their media type.
pub fn multipart(bytes: &[u8]) {
    crate::multipart::fuzz(bytes);
}

/// Manifests, indices and configurations.
pub fn manifest(bytes: &[u8]) {
    let _ = parse_diff_ids(bytes);
    let _ = parse_extension(bytes);
    match parse_manifest(bytes, None) {
        Ok(crate::manifest::Manifest::Index(index)) => {
            let _ = index.choose(&Platform::host());
        }
        Ok(crate::manifest::Manifest::Image(image)) => {
            let _ = (image.find_artifact_type(), image.check_layers());
        }
        Ok(crate::manifest::Manifest::Schema1(_)) => domain::schema1::fuzz(bytes),
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

#[cfg(test)]
mod tests {
    /// A few thousand mutations of real inputs: what a fuzzer finds in its first seconds, on every test run.
    #[test]
    fn mutated_inputs_do_not_panic() {
        let mut archive = vec![0_u8; 512];
        archive[..5].copy_from_slice(b"a/b/c");
        archive[124..135].copy_from_slice(b"00000000010");
        archive[156] = b'0';
        archive[257..263].copy_from_slice(b"ustar\0");
        archive[148..156].fill(b' ');
        let sum: u32 = archive.iter().map(|byte| u32::from(*byte)).sum();
        archive[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        archive.resize(512 * 4, 0);
        assert_eq!(crate::local::tar::index_bytes(&archive), Some(1));
        let digest = "a".repeat(64);
        let manifest = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:{digest}","size":7,"platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#
        );
        type Target = fn(&[u8]);
        let seeds: [(Target, Vec<u8>); 7] = [
            (super::reference, format!("docker.io/library/a_b:tag@sha256:{digest}").into_bytes()),
            (super::reference, b"[::1]:5000/a/b-c.d:T".to_vec()),
            (super::manifest, manifest.into_bytes()),
            (super::www_authenticate, br#"Bearer realm="https://a/t",service="s",scope="x:y", Basic realm=q"#.to_vec()),
            (
                super::registries,
                b"[[registry]]\nprefix=\"*.example\"\nlocation=\"*.b\"\n[[registry.mirror]]\nlocation=\"c/d\"".to_vec(),
            ),
            (super::archive_index, archive),
            (super::auth_file, br#"{"auths":{"a.b/c":{"auth":"dTpw"}},"credHelpers":{"x":"y"}}"#.to_vec()),
        ];
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % below as u64).unwrap()
        };
        for (target, seed) in seeds {
            target(&seed);
            for _ in 0..2000 {
                let mut bytes = seed.clone();
                for _ in 0..=random(4) {
                    let at = random(bytes.len());
                    match random(4) {
                        0 => bytes[at] = u8::try_from(random(256)).unwrap(),
                        1 => bytes.truncate(at + 1),
                        2 => bytes.insert(at, b"@/:.*\"\\=,-_\0 {}[]"[random(17)]),
                        _ => bytes.swap(at, 0),
                    }
                }
                target(&bytes);
            }
        }
    }
}
