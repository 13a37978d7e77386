use super::*;

fn entry(digest: char, extra: &str) -> String {
    let digest = digest.to_string().repeat(64);
    format!(r#"{{"mediaType":"{OCI_MANIFEST}","digest":"sha256:{digest}","size":1{extra}}}"#)
}

fn schema1(extra: &str) -> String {
    let (digest, id) = ("a".repeat(64), "b".repeat(64));
    let history = serde_json::json!([{ "v1Compatibility": format!(r#"{{"id":"{id}"}}"#) }]);
    format!(r#"{{"schemaVersion":1,"fsLayers":[{{"blobSum":"sha256:{digest}"}}],"history":{history}{extra}}}"#)
}

fn platform(architecture: &str, variant: &str) -> String {
    format!(r#","platform":{{"os":"linux","architecture":"{architecture}","variant":"{variant}"}}"#)
}

#[test]
fn formats_are_told_apart() {
    let config = entry('c', "");
    for (document, served_as, expected) in [
        (format!(r#"{{"config":{config},"layers":[]}}"#), None, Ok(OCI_MANIFEST)),
        (format!(r#"{{"config":{config},"layers":[]}}"#), Some(DOCKER_MANIFEST), Ok(DOCKER_MANIFEST)),
        (format!(r#"{{"config":{config},"layers":[]}}"#), Some("text/plain"), Ok(OCI_MANIFEST)),
        (
            format!(r#"{{"mediaType":"{DOCKER_MANIFEST}","config":{config},"layers":[]}}"#),
            Some("application/json; charset=utf-8"),
            Ok(DOCKER_MANIFEST),
        ),
        (
            format!(r#"{{"mediaType":"{OCI_MANIFEST}","config":{config},"layers":[]}}"#),
            Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8"),
            Ok(OCI_MANIFEST),
        ),
        (r#"{"manifests":[]}"#.to_owned(), None, Ok(OCI_INDEX)),
        (r#"{"manifests":[]}"#.to_owned(), Some(DOCKER_LIST), Ok(DOCKER_LIST)),
        // What could be two things is none.
        (format!(r#"{{"manifests":[],"config":{config},"layers":[]}}"#), None, Err(ErrorKind::Malformed)),
        (format!(r#"{{"manifests":[],"config":{config},"layers":[]}}"#), Some(OCI_MANIFEST), Err(ErrorKind::Malformed)),
        (format!(r#"{{"config":{config},"layers":[],"fsLayers":[]}}"#), None, Err(ErrorKind::Malformed)),
        (format!(r#"{{"config":{config},"layers":[]}}"#), Some(OCI_INDEX), Err(ErrorKind::Malformed)),
        (
            format!(r#"{{"mediaType":"{OCI_MANIFEST}","config":{config},"layers":[]}}"#),
            Some(DOCKER_MANIFEST),
            Err(ErrorKind::Malformed),
        ),
        (r#"{"mediaType":"text/x","layers":[]}"#.to_owned(), None, Err(ErrorKind::Unsupported)),
        (r#"{"schemaVersion":1}"#.to_owned(), None, Err(ErrorKind::Malformed)),
        (schema1(""), None, Ok(SCHEMA1)),
        (schema1(""), Some("application/json"), Ok(SCHEMA1)),
        (schema1(""), Some(SCHEMA1_SIGNED), Ok(SCHEMA1)),
        (schema1(&format!(r#","mediaType":"{SCHEMA1_SIGNED}""#)), Some(SCHEMA1), Ok(SCHEMA1)),
        (schema1(""), Some(OCI_MANIFEST), Err(ErrorKind::Malformed)),
        (schema1(&format!(r#","mediaType":"{DOCKER_MANIFEST}""#)), None, Err(ErrorKind::Malformed)),
        (schema1(r#","layers":[]"#), None, Err(ErrorKind::Malformed)),
        (schema1(r#","manifests":[]"#), None, Err(ErrorKind::Malformed)),
        (r#"{"schemaVersion":2,"fsLayers":[],"history":[]}"#.to_owned(), Some(SCHEMA1), Err(ErrorKind::Unsupported)),
        (r"{}".to_owned(), None, Err(ErrorKind::Malformed)),
        (r"[]".to_owned(), None, Err(ErrorKind::Malformed)),
        (String::new(), None, Err(ErrorKind::Malformed)),
        (r#"{"layers":[],"layers":[]}"#.to_owned(), None, Err(ErrorKind::Malformed)),
        (format!(r#"{{"config":{},"layers":[]}}"#, config.replace(":1", ":-1")), None, Err(ErrorKind::Malformed)),
        (" ".repeat(MANIFEST_MAX_BYTES + 1), None, Err(ErrorKind::TooLarge)),
    ] {
        let parsed = parse_manifest(document.as_bytes(), served_as).map_err(|error| error.kind());
        let media_type = parsed.as_ref().map(|manifest| match manifest {
            Manifest::Image(image) => image.media_type.as_str(),
            Manifest::Index(index) => index.media_type.as_str(),
            Manifest::Schema1(_) => SCHEMA1,
        });
        assert_eq!(media_type.map_err(|kind| *kind), expected, "{served_as:?} {}", document.trim());
    }
}

#[test]
fn lists_are_capped_while_they_are_read() {
    let layers = |count: usize| {
        let layers = vec![entry('a', ""); count].join(",");
        format!(r#"{{"config":{},"layers":[{layers}]}}"#, entry('c', ""))
    };
    assert!(parse_manifest(layers(LAYERS_MAX).as_bytes(), None).is_ok());
    let error = parse_manifest(layers(LAYERS_MAX + 1).as_bytes(), None).unwrap_err();
    assert!(crate::error::chain(&error).contains("at most 500 elements"), "{}", crate::error::chain(&error));
}

#[test]
fn entries_are_chosen_by_platform_then_zstd_then_order() {
    let zstd = r#","annotations":{"io.github.containers.compression.zstd":"true"}"#;
    let wanted = |architecture: &str, variant: &str| Platform {
        os: "linux".into(),
        architecture: architecture.into(),
        variant: variant.into(),
    };
    let none = String::new;
    for (entries, wanted, expected) in [
        (
            vec![entry('1', &platform("arm64", "v8")), entry('2', &platform("amd64", ""))],
            wanted("amd64", ""),
            Some('2'),
        ),
        (
            vec![entry('1', &platform("arm64", "")), entry('2', &platform("arm64", "v8"))],
            wanted("arm64", "v8"),
            Some('2'),
        ),
        (vec![entry('1', &platform("arm", "v5")), entry('2', &platform("arm", "v6"))], wanted("arm", "v7"), Some('2')),
        (vec![entry('1', &platform("arm", "v7"))], wanted("arm", "v6"), None),
        (vec![entry('1', &platform("amd64", "v3"))], wanted("amd64", ""), None),
        (
            vec![entry('1', &platform("amd64", "")), entry('2', &(platform("amd64", "") + zstd))],
            wanted("amd64", ""),
            Some('2'),
        ),
        // A better variant beats better compression.
        (
            vec![entry('1', &(platform("arm", "v6") + zstd)), entry('2', &platform("arm", "v7"))],
            wanted("arm", "v7"),
            Some('2'),
        ),
        (vec![entry('1', &none()), entry('2', &platform("amd64", ""))], wanted("amd64", ""), Some('2')),
        (vec![entry('1', &none()), entry('2', &none())], wanted("amd64", ""), Some('1')),
        (vec![entry('1', &platform("unknown", ""))], wanted("amd64", ""), None),
        (vec![], wanted("amd64", ""), None),
    ] {
        let document = format!(r#"{{"manifests":[{}]}}"#, entries.join(","));
        let Ok(Manifest::Index(index)) = parse_manifest(document.as_bytes(), None) else { panic!("{document}") };
        let chosen = index.choose(&wanted).map(|entry| entry.digest.chars().last().unwrap());
        assert_eq!(chosen, expected, "{wanted:?} of {document}");
    }
}

#[test]
fn diff_ids_are_read_from_configurations() {
    let digest = format!("sha256:{}", "a".repeat(64));
    for (config, expected) in [
        (format!(r#"{{"rootfs":{{"type":"layers","diff_ids":["{digest}","{digest}"]}}}}"#), Some(2)),
        (r#"{"rootfs":{"diff_ids":null}}"#.to_owned(), Some(0)),
        (r#"{"rootfs":{}}"#.to_owned(), Some(0)),
        (r#"{"rootfs":{"diff_ids":["md5:1"]}}"#.to_owned(), None),
        (r"{}".to_owned(), None),
        ("[".repeat(100_000), None),
    ] {
        assert_eq!(parse_diff_ids(config.as_bytes()).ok().map(|ids| ids.len()), expected, "{config:.100}");
    }
}

#[test]
fn layers_are_fetched_from_the_registry_or_not_at_all() {
    let url = r#","urls":["https://elsewhere.example/layer"]"#;
    for (media_type, extra, expected) in [
        ("application/vnd.oci.image.layer.v1.tar", "", None),
        ("application/vnd.oci.image.layer.v1.tar+zstd", "", None),
        ("application/vnd.oci.image.layer.v1.tar+gzip", url, None),
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "", None),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", "", None),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip+encrypted", "", Some(ErrorKind::Unsupported)),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "", None),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", r#","urls":null"#, None),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", url, Some(ErrorKind::Unsupported)),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "", None),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", url, Some(ErrorKind::Unsupported)),
        ("application/vnd.oci.image.layer.v1.tar+lz4", "", Some(ErrorKind::Unsupported)),
        ("text/plain", "", Some(ErrorKind::Unsupported)),
        ("", "", Some(ErrorKind::Unsupported)),
    ] {
        let layer = entry('a', extra).replace(OCI_MANIFEST, media_type);
        let document = format!(r#"{{"config":{},"layers":[{layer}]}}"#, entry('c', ""));
        let Ok(Manifest::Image(image)) = parse_manifest(document.as_bytes(), None) else { panic!("{document}") };
        let kind = image.check_layers().err().map(|error| error.kind());
        assert_eq!(kind, expected, "{media_type} {extra}");
    }
}
