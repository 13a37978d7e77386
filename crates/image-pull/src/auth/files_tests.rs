use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;

fn auth(text: &str) -> String {
    format!(r#"{{"auth":"{}"}}"#, STANDARD.encode(text))
}

fn found(json: &str, name: &str) -> String {
    let file = parse(json.as_bytes(), Format::Config).unwrap();
    match file.find(&Reference::parse(name).unwrap()).unwrap() {
        Found::Login(Login::Password { username, password }) => format!("{username}:{}", password.expose()),
        Found::Login(Login::IdentityToken(token)) => format!("identity {}", token.expose()),
        Found::Login(Login::RegistryToken(token)) => format!("registry {}", token.expose()),
        Found::Helper(helper, server) => format!("{helper} for {server}"),
        Found::Nothing => String::new(),
    }
}

#[test]
fn the_longest_path_of_a_file_wins() {
    let json = format!(
        r#"{{"auths":{{"q.test":{},"q.test/a":{},"q.test/a/b":{},"https://index.docker.io/v1/":{},
            "https://old.test/v2/":{},"http://plain.test":{},"t.test":{{"identitytoken":"tok","auth":"dTpw"}},
            "empty.test":{{}},"f.test":{{"username":"u","password":"p"}}}}}}"#,
        auth("host:1"),
        auth("a:2"),
        auth("b:3"),
        auth("hub:4"),
        auth("old:5"),
        auth("plain:6")
    );
    for (name, expected) in [
        ("q.test/x", "host:1"),
        ("q.test/a/x", "a:2"),
        ("q.test/ab", "host:1"),
        ("q.test/a/b", "b:3"),
        ("q.test/a/b/c:tag", "b:3"),
        ("busybox", "hub:4"),
        ("old.test/x", "old:5"),
        ("plain.test/x", "plain:6"),
        ("t.test/x", "identity tok"),
        ("f.test/x", "u:p"),
        ("empty.test/x", ""),
        ("q.test:5000/x", ""),
        ("evil-q.test/x", ""),
    ] {
        assert_eq!(found(&json, name), expected, "{name}");
    }
}

#[test]
fn helpers_of_a_file_are_named() {
    let json =
        r#"{"auths":{"a.test":{"auth":"dTpw"}},"credHelpers":{"h.test":"own","a.test/x":"deep"},"credsStore":"store"}"#;
    for (name, expected) in [
        ("h.test/x", "own for h.test"),
        ("a.test/x/y", "deep for a.test/x"),
        ("a.test/y", "u:p"),
        ("other.test/y", "store for other.test"),
        ("busybox", "store for https://index.docker.io/v1/"),
    ] {
        assert_eq!(found(json, name), expected, "{name}");
    }
}

#[test]
fn broken_files_are_refused_without_quoting_them() {
    for (bytes, expected) in [
        (&b"{\"auths\":{\"a\":{\"auth\":\"x\"}}}"[..], Ok(1)),
        (b"  \n", Ok(0)),
        (b"{}", Ok(0)),
        (b"{\"auths\":null}", Ok(0)),
        (b"{\n\"auths\": [\"hunter2\"]}", Err(2)),
        (b"\xff", Err(1)),
    ] {
        assert_eq!(parse_auth_file(bytes), expected);
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("auth.json");
    std::fs::File::create(&path).unwrap().write_all(b"{\"auths\": \"hunter2\"}").unwrap();
    let reference = Reference::parse("a.test/x").unwrap();
    let helpers = [crate::registries::AUTH_FILE_HELPER.to_owned()];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let error = runtime.block_on(AuthFiles::only(&path).find(&reference, &helpers)).unwrap_err();
    assert!(matches!(error, AuthError::Parse { line: 1, .. }) && !format!("{error:?}").contains("hunter2"));
    let absent = AuthFiles::only(directory.path().join("absent"));
    assert_eq!(runtime.block_on(absent.find(&reference, &helpers)).unwrap(), None);
}

#[test]
fn the_standard_files_are_those_of_the_user() {
    let environment = EnvironmentPaths {
        home: Some("/h".into()),
        xdg_config_home: Some("/c".into()),
        xdg_runtime_dir: Some("/r".into()),
        registry_auth_file: None,
    };
    let paths = |environment: &EnvironmentPaths| -> Vec<String> {
        AuthFiles::standard(environment).files.iter().map(|(path, _)| path.display().to_string()).collect()
    };
    let rest = ["/c/containers/auth.json", "/h/.docker/config.json", "/h/.dockercfg"];
    assert_eq!(paths(&environment), [&["/r/containers/auth.json"][..], &rest].concat());
    let explicit = EnvironmentPaths { registry_auth_file: Some("/x".into()), ..environment };
    assert_eq!(paths(&explicit), ["/x"]);
}

#[test]
fn helpers_are_run_and_judged() {
    let directory = tempfile::tempdir().unwrap();
    let helper = |script: &str| {
        let path = directory.path().join("docker-credential-t");
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(format!("#!/bin/sh\n{script}\n").as_bytes()).unwrap();
        file.set_permissions(std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    let login = |username: &str, password: &str| {
        Some(Login::Password { username: username.to_owned(), password: Secret::new(password) })
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (script, expected) in [
        (r#"read server; echo "{\"Username\":\"$server\",\"Secret\":\"s\"}""#, Ok(login("a.test", "s"))),
        (r#"echo '{"Username":"<token>","Secret":"t"}'"#, Ok(Some(Login::IdentityToken(Secret::new("t"))))),
        ("echo credentials not found in native keychain; exit 1", Ok(None)),
        ("echo hunter2; exit 3", Err(())),
        ("echo hunter2", Err(())),
        ("yes hunter2", Err(())),
    ] {
        let program = helper(script);
        let got = runtime.block_on(run_helper(program.to_str().unwrap(), "a.test\n"));
        assert!(!format!("{got:?}").contains("hunter2"), "{got:?}");
        assert_eq!(got.map_err(drop), expected, "{script}");
    }
    for name in ["", "../x", "a b", "no-such-helper-anywhere"] {
        assert!(runtime.block_on(ask_helper(name, "a.test")).is_err(), "{name}");
    }
}
