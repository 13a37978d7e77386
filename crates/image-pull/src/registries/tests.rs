use std::io::Write as _;

use super::*;

fn parse(text: &str) -> Registries {
    let (registries, warnings) = parse_registries(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!(warnings, Vec::<String>::new(), "{text}");
    registries
}

fn reference(text: &str) -> Reference {
    Reference::parse(text).unwrap()
}

#[test]
fn short_names_become_candidates() {
    let two = "unqualified-search-registries = [\"a.test\", \"docker.io\"]\n";
    let aliases = "[aliases]\n\"fedora\" = \"registry.test/fedora\"\n\"team/app\" = \"b.test/x/y\"\n";
    for (conf, name, expected) in [
        (
            format!("{two}short-name-mode = \"permissive\""),
            "app:1",
            Ok(vec!["a.test/app:1", "docker.io/library/app:1"]),
        ),
        (format!("{two}short-name-mode = \"disabled\""), "x/y", Ok(vec!["a.test/x/y:latest", "docker.io/x/y:latest"])),
        (two.to_owned(), "app", Err("short name mode is enforcing, but image name app returns ambiguous list")),
        (format!("{two}{aliases}"), "fedora:40", Ok(vec!["registry.test/fedora:40"])),
        (format!("{two}{aliases}"), "team/app", Ok(vec!["b.test/x/y:latest"])),
        (two.to_owned(), "localhost/app", Ok(vec!["localhost/app:latest"])),
        (two.to_owned(), "docker.io/app", Ok(vec!["docker.io/library/app:latest"])),
        ("unqualified-search-registries = [\"one.test/sub\"]".to_owned(), "app", Ok(vec!["one.test/sub/app:latest"])),
        (
            String::new(),
            "app",
            Err("short-name \"app\" did not resolve to an alias and no unqualified-search registries are defined in \
                 \"/etc/containers/registries.conf\""),
        ),
        (two.to_owned(), "App", Err("parse image name \"App\"")),
    ] {
        let found = parse(&conf).candidates(name).map_err(|error| error.to_string());
        let found = found.map(|found| found.iter().map(ToString::to_string).collect::<Vec<_>>());
        let expected = expected.map(|list| list.into_iter().map(str::to_owned).collect()).map_err(str::to_owned);
        assert_eq!(found, expected, "{name} with {conf}");
    }
}

#[test]
fn the_longest_match_decides() {
    let registries = parse(
        "[[registry]]\nlocation = \"a.test\"\ninsecure = true\n\
         [[registry]]\nlocation = \"a.test/deep\"\nblocked = true\n\
         [[registry]]\nprefix = \"*.b.test\"\n\
         [[registry]]\nprefix = \"*.test\"\nblocked = true\n\
         [[registry]]\nprefix = \"x.b.test\"\nlocation = \"other.example/x\"\n\
         [[registry]]\nprefix = \"c.test/app:v1\"\nlocation = \"c.test/other:v2\"\n\
         [[registry]]\nlocation = \"d.test:5000\"\n",
    );
    for (name, expected) in [
        ("a.test/app", Some("a.test")),
        ("a.test/deep/app", Some("a.test/deep")),
        ("a.test/deeper/app", Some("a.test")),
        ("a.test/deep:v1", Some("a.test/deep")),
        ("y.b.test/app", Some("*.b.test")),
        ("x.b.test/app", Some("x.b.test")),
        ("y.x.b.test/app", Some("*.b.test")),
        ("b.test/app", Some("*.test")),
        ("b.test:5000/app", Some("*.test")),
        ("c.test/app:v1", Some("c.test/app:v1")),
        ("d.test:5000/app", Some("d.test:5000")),
        ("example.com/a.test/app", None),
        ("a.test.example/app", None),
    ] {
        let found = registries.find_entry(&reference(name)).map(|entry| entry.prefix.as_str());
        assert_eq!(found, expected, "{name}");
    }
    let blocked = registries.endpoints(&reference("a.test/deep/app"));
    assert_eq!(blocked, Err(EndpointError::Blocked { prefix: "a.test/deep".to_owned() }));
    let endpoint = &registries.endpoints(&reference("x.b.test/app:1")).unwrap()[0];
    assert_eq!(endpoint.reference.to_string(), "other.example/x/app:1");
}

#[test]
fn mirrors_are_tried_for_the_references_they_serve() {
    let digest = format!("@sha256:{}", "a".repeat(64));
    let mirrors = "[[registry.mirror]]\nlocation = \"all.test\"\n\
                   [[registry.mirror]]\nlocation = \"digest.test/x\"\npull-from-mirror = \"digest-only\"\n\
                   [[registry.mirror]]\nlocation = \"tag.test\"\npull-from-mirror = \"tag-only\"\ninsecure = true\n";
    let plain = format!("[[registry]]\nlocation = \"r.test\"\n{mirrors}");
    let by_digest = "[[registry]]\nlocation = \"r.test\"\nmirror-by-digest-only = true\n\
                     [[registry.mirror]]\nlocation = \"m.test\"\n";
    let wildcard = "[[registry]]\nprefix = \"*.r.test\"\nlocation = \"*.s.test\"\n";
    for (conf, name, expected) in [
        (plain.as_str(), "r.test/a:1", vec!["all.test/a:1", "tag.test/a:1", "r.test/a:1"]),
        (plain.as_str(), &format!("r.test/a{digest}"), vec!["all.test/a@", "digest.test/x/a@", "r.test/a@"]),
        (by_digest, "r.test/a:1", vec!["r.test/a:1"]),
        (by_digest, &format!("r.test/a{digest}"), vec!["m.test/a@", "r.test/a@"]),
        (wildcard, "q.r.test/a:1", vec!["q.s.test/a:1"]),
        ("", "r.test/a:1", vec!["r.test/a:1"]),
    ] {
        let endpoints = parse(conf).endpoints(&reference(name)).unwrap();
        let found: Vec<_> = endpoints.iter().map(|endpoint| endpoint.reference.to_string()).collect();
        let is_expected = found.len() == expected.len()
            && found.iter().zip(&expected).all(|(found, expected)| found.starts_with(expected));
        assert!(is_expected, "{name}: {found:?}, not {expected:?}");
        let insecure = endpoints.iter().filter(|endpoint| endpoint.transport == Transport::Insecure);
        assert!(insecure.into_iter().all(|endpoint| endpoint.reference.domain() == "tag.test"));
    }
}

#[test]
fn version_1_tables_are_read() {
    let registries = parse(
        "[registries.search]\nregistries = [\"a.test\"]\n[registries.insecure]\nregistries = [\"b.test/\"]\n\
         [registries.block]\nregistries = [\"c.test\", \"b.test\"]\n",
    );
    assert_eq!(registries.unqualified_search(), ["a.test"]);
    let entry = registries.find_entry(&reference("b.test/x")).unwrap();
    assert_eq!((entry.transport, entry.is_blocked), (Transport::Insecure, true));
    assert!(registries.find_entry(&reference("c.test/x")).unwrap().is_blocked);
}

#[test]
fn mistakes_are_errors_that_name_them() {
    for (conf, part) in [
        ("unqualified-search-registries = [\"a.test\"]\n[registries.search]\nregistries = []", "v1/v2"),
        ("short-name-mode = \"lax\"", "invalid short-name mode"),
        ("[[registry]]\nprefix = \"a.test\"", "location is unset"),
        ("[[registry]]\nlocation = \"https://a.test\"", "scheme"),
        ("[[registry]]\nlocation = \"a.*.test\"", "another"),
        ("[[registry]]\ninsecure = true", "empty"),
        ("[[registry]]\nlocation = \"a.test\"\n[[registry.mirror]]\ninsecure = true", "mirror.location"),
        (
            "[[registry]]\nlocation = \"a\"\nmirror-by-digest-only = true\n\
             [[registry.mirror]]\nlocation = \"b\"\npull-from-mirror = \"all\"",
            "cannot set mirror usage",
        ),
        (
            "[[registry]]\nlocation = \"a\"\n[[registry.mirror]]\nlocation = \"b\"\npull-from-mirror = \"x\"",
            "unsupported pull-from-mirror",
        ),
        ("[[registry]]\nlocation = \"a\"\n[[registry]]\nlocation = \"a\"\nblocked = true", "twice"),
        ("[aliases]\n\"a.test/x\" = \"b.test/y\"", "alias"),
        ("[aliases]\n\"x\" = \"y\"", "alias"),
        ("[aliases]\n\"x\" = \"b.test/y:tag\"", "alias"),
        ("[[registry]]\nlocation = 5", "parse"),
        ("[", "parse"),
    ] {
        let error = parse_registries(conf).expect_err(conf).to_string();
        assert!(error.contains(part), "{error} lacks {part:?}");
    }
}

#[test]
fn unknown_keys_warn_by_name() {
    let (_, warnings) = parse_registries(
        "additional-layer-store-auth-helper = \"x\"\n[[registry]]\nlocation = \"a\"\nspeed = 1\n\
         [[registry.mirror]]\nlocation = \"b\"\ncolour = 2\n",
    )
    .unwrap();
    for key in ["additional-layer-store-auth-helper", "registry.speed", "registry.mirror.colour"] {
        assert!(warnings.iter().any(|warning| warning.contains(key)), "{key} not in {warnings:?}");
    }
    assert_eq!(warnings.len(), 3);
}

#[test]
fn drop_ins_are_merged_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
    };
    write("main.conf", "unqualified-search-registries = [\"a.test\"]\n[[registry]]\nlocation = \"r.test\"\n");
    write("d/20-b.conf", "[[registry]]\nlocation = \"r.test\"\nblocked = true\n[aliases]\n\"two\" = \"b.test/two\"\n");
    write("d/10-a.conf", "unqualified-search-registries = [\"b.test\"]\n[aliases]\n\"two\" = \"a.test/two\"\n");
    write("d/30-c.conf.bak", "garbage [");
    write("cache.conf", "[aliases]\n\"two\" = \"cache.test/two\"\n\"one\" = \"cache.test/one\"\n");
    let mut options = RegistriesOptions {
        main_files: vec![directory.path().join("absent.conf"), directory.path().join("main.conf")],
        drop_in_directory: Some(directory.path().join("d")),
        alias_cache: None,
        short_name_mode: Some(ShortNameMode::Disabled),
    };
    let (registries, _) = Registries::load(&options).unwrap();
    assert_eq!(registries.unqualified_search(), ["b.test"]);
    assert!(registries.find_entry(&reference("r.test/x")).unwrap().is_blocked);
    assert_eq!(registries.entries.len(), 1);
    assert_eq!(registries.candidates("two").unwrap()[0].to_string(), "b.test/two:latest");
    assert_eq!(registries.short_name_mode, ShortNameMode::Disabled);
    options.alias_cache = Some(directory.path().join("cache.conf"));
    let (registries, _) = Registries::load(&options).unwrap();
    assert_eq!(registries.candidates("two").unwrap()[0].to_string(), "cache.test/two:latest");
    write("d/40.conf", "[registries.search]\nregistries = [\"x\"]\n");
    let error = Registries::load(&options).unwrap_err().to_string();
    assert!(error.contains("40.conf") && error.contains("drop-in"), "{error}");
}
