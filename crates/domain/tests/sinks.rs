//! Text of a pod's author or an image that ends up in lines of files, paths and names: whatever it is, it becomes one
//! record or none. One law for each sink, over texts made of what the sinks' grammars are made of.
//!
//! CRI-O CVE-2022-0811 (`+` in a sysctl), CVE-2022-4318 and 2026-15809 (a line break in HOME), CVE-2024-3154 (a systemd
//! property by annotation), CVE-2023-6476 (an annotation's prefix), CVE-2025-0750 (a log path).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use domain::name::{check_part, container_name, sandbox_name};
use domain::spec::annotations::filter_annotations;
use domain::spec::{CgroupManagerKind, CgroupParent, Sysctl};
use domain::user::{ResolvedUser, UserRequest, resolve_user};
use proptest::prelude::*;

/// What ends a field, a line, a segment or a word somewhere, and what is harmless.
const PIECES: &[&str] = &[
    "+",
    "\n",
    "\r",
    ":",
    "=",
    "\0",
    "\u{2028}",
    "\u{2029}",
    "\u{85}",
    "/",
    "..",
    ".",
    ",",
    ";",
    " ",
    "\t",
    "-",
    "@",
    "%",
    "\\",
    "\"",
    "'",
    "x",
    "root",
    "0",
    "net",
    "kernel",
    "shm_rmid_forced",
    "ipv4",
    "slice",
    ".slice",
    "umask.crio.io",
    "io.kubernetes.cri-o.umask",
    "org.systemd.property.",
    "run.oci.",
    "ExecStart",
    "unified-cgroup.crio.io",
    "ü",
];

fn hostile() -> impl Strategy<Value = String> {
    proptest::collection::vec(proptest::sample::select(PIECES), 0..8).prop_map(|pieces| pieces.concat())
}

fn is_one_line(text: &str) -> bool {
    !text.contains(['\n', '\r', '\0', '\u{2028}', '\u{2029}', '\u{85}'])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_passwd_line_is_one_entry_of_seven_fields(home in hostile(), uid in 0..u32::MAX, gid in 0..u32::MAX) {
        let user = ResolvedUser { uid, gid, ..ResolvedUser::default() };
        for home in [home.clone(), format!("/{home}")] {
            let line = user.missing_passwd_line(&home).expect("a line");
            let lines: Vec<&str> = line.lines().collect();
            prop_assert!(line.ends_with('\n') && lines.len() == 1 && is_one_line(lines[0]), "{line:?}");
            prop_assert_eq!(lines[0].split(':').count(), 7, "{:?}", line);
            // Read again by the parser of images' files, it is the user it was written for and nobody else.
            let file = format!("root:x:0:0::/root:/bin/sh\n{line}");
            let request = UserRequest { run_as_user: Some(i64::from(uid)), ..UserRequest::default() };
            let again = resolve_user(&request, "", file.as_bytes(), b"").expect("a user");
            prop_assert_eq!(again.uid, uid);
            prop_assert!(again.is_uid_known);
        }
        let line = user.missing_group_line().expect("a line");
        prop_assert_eq!((line.lines().count(), line.trim_end().split(':').count()), (1, 4));
    }

    #[test]
    fn a_user_of_the_image_is_an_id_or_refused(user in hostile(), passwd in hostile(), group in hostile()) {
        let passwd = format!("{passwd}\nroot:x:0:0::/root:/bin/sh\n0:x:0:0::/:\n");
        if let Ok(resolved) = resolve_user(&UserRequest::default(), &user, passwd.as_bytes(), group.as_bytes()) {
            let asked = user.split(':').next().unwrap_or_default();
            prop_assert!(is_one_line(asked), "{user:?}");
            if !asked.is_empty() && asked.bytes().all(|byte| byte.is_ascii_digit()) {
                prop_assert_eq!(Ok(resolved.uid), asked.parse());
            }
            prop_assert!(resolved.home.is_none_or(|home| is_one_line(&home) && home.starts_with('/') && !home.contains(':')));
        }
    }

    #[test]
    fn a_sysctl_is_one_namespaced_file_and_one_line(name in hostile(), value in hostile()) {
        for name in [name.clone(), format!("net.{name}"), format!("kernel.shm{name}"), format!("net/{name}")] {
            let Ok(sysctl) = Sysctl::parse(&name, &value) else { continue };
            let path = sysctl.path();
            prop_assert!(["net/", "kernel/sem", "kernel/shm", "kernel/msg", "fs/mqueue/"].iter().any(|top| path.starts_with(top)), "{path}");
            prop_assert!(path.split('/').all(|part| !part.is_empty() && part != "." && part != ".."), "{path}");
            prop_assert!(is_one_line(&path) && is_one_line(sysctl.value()) && !sysctl.value().contains('+'), "{sysctl:?}");
        }
    }

    #[test]
    fn a_cgroup_stays_below_its_parent(parent in hostile(), prefix in prop::sample::select(vec!["", "/", "/kubepods/", "a-"])) {
        for manager in [CgroupManagerKind::Cgroupfs, CgroupManagerKind::Systemd] {
            for text in [format!("{prefix}{parent}"), format!("{prefix}{parent}.slice")] {
                let Ok(parsed) = CgroupParent::parse(manager, &text) else { continue };
                let directory = parsed.container_directory("0123abcd");
                prop_assert!(directory.starts_with('/') && is_one_line(&directory), "{text:?}: {directory:?}");
                prop_assert!(directory[1..].split('/').all(|part| !part.is_empty() && part != "." && part != ".."), "{text:?}: {directory:?}");
                prop_assert!(directory.contains("0123abcd"));
            }
        }
    }

    #[test]
    fn a_name_is_one_segment(part in hostile()) {
        if check_part("name", &part).is_ok() {
            let sandbox = domain::sandbox::SandboxMetadata { name: part.clone(), namespace: part.clone(), uid: part.clone(), attempt: 0 };
            let container = domain::container::ContainerMetadata { name: part.clone(), attempt: 0 };
            for name in [sandbox_name(&sandbox), container_name(&container, &sandbox)] {
                prop_assert!(!name.contains(['/', '\n', '\0', '\r']) && name != ".." && name != ".", "{name:?}");
            }
        }
    }

    #[test]
    fn an_annotation_takes_effect_only_by_its_whole_name(key in hostile(), allowed in hostile()) {
        let keys = [key.clone(), format!("umask.crio.io{key}"), format!("org.systemd.property.{key}"), format!("{key}umask.crio.io")];
        let annotations: BTreeMap<String, String> = keys.into_iter().map(|key| (key, "v".to_owned())).collect();
        let nothing = filter_annotations(&annotations, &[]);
        prop_assert!(nothing.effective.is_empty(), "{nothing:?}");
        prop_assert!(nothing.kept.keys().all(|key| !key.starts_with("org.systemd.property.") && !key.starts_with("run.oci.")), "{nothing:?}");
        // One permission is no other: neither by a prefix nor by what looks alike.
        let some = filter_annotations(&annotations, std::slice::from_ref(&allowed));
        for key in some.effective.keys() {
            let name = key.split('/').next().unwrap_or_default();
            let is_it = allowed == name || allowed == *key || annotations.contains_key(&allowed)
                || (name == "umask.crio.io" && allowed == "io.kubernetes.cri-o.umask");
            prop_assert!(is_it, "{key:?} by {allowed:?}");
        }
        for key in some.kept.keys().filter(|key| key.starts_with("org.systemd.property.")) {
            prop_assert!(allowed == "org.systemd.property." || allowed == *key, "{key:?} by {allowed:?}");
        }
    }
}
