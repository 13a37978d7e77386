//! Texts of requests that end in lines and paths: whatever is accepted stays one word, one line, one place.

use std::collections::HashMap;

use cri_api::v1;
use proptest::prelude::*;

use super::*;

const PIECES: &[&str] = &[
    "+",
    "\n",
    "\r",
    ":",
    "=",
    "\0",
    "\u{2028}",
    "\u{85}",
    "/",
    "..",
    ".",
    " ",
    "\t",
    "-",
    "#",
    "a",
    "1.1.1.1",
    "nameserver",
    "options",
    "x.log",
    "\u{1b}[2J",
    "ü",
];

fn hostile() -> impl Strategy<Value = String> {
    proptest::collection::vec(proptest::sample::select(PIECES), 0..6).prop_map(|pieces| pieces.concat())
}

fn sandbox() -> v1::PodSandboxConfig {
    let [name, uid, namespace] = ["web", "u1", "default"].map(str::to_owned);
    let metadata = Some(v1::PodSandboxMetadata { name, uid, namespace, attempt: 0 });
    v1::PodSandboxConfig { metadata, ..Default::default() }
}

fn container() -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "nginx".into(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: "nginx".into(), ..Default::default() }),
        ..Default::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn resolvers_and_hostnames_are_words(text in hostile(), other in hostile()) {
        let lists = || vec![text.clone(), other.clone()];
        let dns = v1::DnsConfig { servers: lists(), searches: lists(), options: lists() };
        if let Ok(config) = sandbox_config(v1::PodSandboxConfig { dns_config: Some(dns), ..sandbox() }) {
            let dns = config.dns.expect("given");
            // As resolv.conf has them: a line a server, a line of searches, a line of options.
            let file = format!("search {}\n{}options {}\n", dns.searches.join(" "),
                dns.servers.iter().map(|server| format!("nameserver {server}\n")).collect::<String>(), dns.options.join(" "));
            prop_assert_eq!(file.lines().count(), 2 + 2, "{:?}", file);
            prop_assert!(file.lines().all(|line| line.split_whitespace().count() <= 3), "{file:?}");
        }
        if let Ok(config) = sandbox_config(v1::PodSandboxConfig { hostname: text.clone(), ..sandbox() }) {
            prop_assert!(config.hostname.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)));
        }
    }

    #[test]
    fn paths_stay_where_they_say(text in hostile()) {
        if let Ok(config) = container_config(v1::ContainerConfig { log_path: text.clone(), ..container() }) {
            let whole = format!("/var/log/pods/{}", config.log_path);
            prop_assert!(!whole.split('/').any(|segment| segment == "..") && !config.log_path.starts_with('/'), "{whole:?}");
            prop_assert!(!whole.chars().any(char::is_control), "{whole:?}");
        }
        if let Ok(config) = sandbox_config(v1::PodSandboxConfig { log_directory: format!("/{text}"), ..sandbox() }) {
            prop_assert!(!config.log_directory.split('/').any(|segment| segment == ".."));
            prop_assert!(!config.log_directory.contains('\0'));
        }
        let mount = v1::Mount { container_path: text.clone(), host_path: format!("/{text}"), ..Default::default() };
        if let Ok(config) = container_config(v1::ContainerConfig { mounts: vec![mount], ..container() }) {
            for path in [&config.mounts[0].container_path, &config.mounts[0].host_path] {
                prop_assert!(path.starts_with('/') && !path.split('/').any(|segment| segment == "..") && !path.contains('\0'), "{path:?}");
            }
        }
    }

    #[test]
    fn variables_words_and_names_are_what_programs_can_receive(text in hostile(), value in hostile()) {
        let envs = vec![v1::KeyValue { key: text.clone(), value: value.clone().into_bytes() }];
        if let Ok(config) = container_config(v1::ContainerConfig { envs, ..container() }) {
            for (key, value) in &config.envs {
                prop_assert!(!key.is_empty() && !key.contains(['=', '\0']) && !value.contains('\0'));
            }
        }
        let command = vec![text.clone()];
        if let Ok(config) = container_config(v1::ContainerConfig { command, ..container() }) {
            prop_assert!(config.command.iter().all(|word| !word.contains('\0')));
        }
        let mut named = sandbox();
        named.metadata.as_mut().expect("metadata").name = text.clone();
        if let Ok(config) = sandbox_config(named) {
            prop_assert!(!config.metadata.name.contains('/') && !config.metadata.name.chars().any(char::is_control));
        }
        // Annotations are kept as they are: nothing but JSON ever holds them whole.
        let annotations = HashMap::from([(text.clone(), value.clone())]);
        let config = sandbox_config(v1::PodSandboxConfig { annotations, ..sandbox() }).expect("any annotation");
        prop_assert_eq!(config.annotations.get(&text), Some(&value));
    }
}
