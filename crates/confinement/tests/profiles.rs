//! Which profile a choice means, with real files.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use confinement::seccomp::{
    Availability, ConfiguredPaths, DefaultOrigin, Host, KernelVersion, LoadProfileError, Profiles, ReadProfileError,
    ResolveProfileError, built_in,
};
use domain::security::SecurityProfile;
use domain::spec::CapabilitySet;
use oci_spec::runtime::LinuxSeccomp;

const HOST: Host =
    Host { architecture: "amd64", kernel: KernelVersion { major: 6, minor: 1 }, availability: Availability::Available };

struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let files = Self { directory: tempfile::tempdir().unwrap() };
        for name in ["default", "handler", "privileged", "local"] {
            files.put(name, &profile(name));
        }
        files.put("broken", "{");
        files.put("empty", "{}");
        fs::create_dir(files.path("directory")).unwrap();
        files
    }

    fn put(&self, name: &str, text: &str) {
        File::create(self.path(name)).unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn local(&self, name: &str) -> SecurityProfile {
        SecurityProfile::Localhost(self.path(name).to_str().unwrap().to_owned())
    }

    fn profiles(&self, host: Host, default: Option<&str>, privileged: Option<&str>) -> Profiles {
        let path = |name: Option<&str>| name.map(|name| self.path(name));
        Profiles::load_on(host, ConfiguredPaths { default: path(default), privileged: path(privileged) }).unwrap()
    }
}

/// A profile that can be told by the only call it names.
fn profile(call: &str) -> String {
    format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"name":"{call}","action":"SCMP_ACT_LOG"}}]}}"#)
}

fn call(spec: Option<&Arc<LinuxSeccomp>>) -> Option<String> {
    spec.map(|spec| spec.syscalls().as_ref().unwrap()[0].names()[0].clone())
}

#[test]
fn a_choice_means_one_profile() {
    use SecurityProfile::{RuntimeDefault, Unconfined};
    let files = Files::new();
    // The first name of the built-in profile's first rule.
    let built_in = Some("open");
    for (configured, choice, is_privileged, handler, expected, reference) in [
        ((None, None), None, false, None, None, ""),
        ((None, None), Some(Unconfined), false, Some("handler"), None, "Unconfined"),
        ((None, None), Some(RuntimeDefault), false, None, built_in, "RuntimeDefault"),
        ((Some("default"), None), Some(RuntimeDefault), false, None, Some("default"), "RuntimeDefault"),
        ((Some("default"), None), Some(RuntimeDefault), false, Some("handler"), Some("handler"), "RuntimeDefault"),
        ((Some("absent"), None), Some(RuntimeDefault), false, None, built_in, "RuntimeDefault"),
        ((Some("empty"), None), Some(RuntimeDefault), false, None, None, "RuntimeDefault"),
        ((None, None), Some(files.local("local")), false, Some("handler"), Some("local"), "local"),
        ((None, None), Some(files.local("empty")), false, None, None, "empty"),
        ((Some("default"), None), Some(RuntimeDefault), true, Some("handler"), None, "Unconfined"),
        ((None, None), Some(files.local("local")), true, None, None, "Unconfined"),
        ((None, Some("privileged")), None, true, Some("handler"), Some("privileged"), "privileged"),
        ((None, Some("privileged")), Some(Unconfined), true, None, Some("privileged"), "privileged"),
        ((None, Some("absent")), Some(Unconfined), false, None, None, "Unconfined"),
    ] {
        let profiles = files.profiles(HOST, configured.0, configured.1);
        let handler = handler.map(|name| files.path(name));
        let spec = profiles.resolve(choice.as_ref(), is_privileged, CapabilitySet::EMPTY, handler.as_deref()).unwrap();
        let context = format!("{configured:?} {choice:?} {is_privileged} {handler:?}");
        assert_eq!(call(spec.as_ref()).as_deref(), expected, "{context}");
        let found = profiles.reference(choice.as_ref(), is_privileged);
        let path = files.path(reference);
        let expected = if path.is_file() { path.to_str().unwrap() } else { reference };
        assert_eq!(found, expected, "{context}");
        assert!(!profiles.take_unavailable_warning());
    }
}

#[test]
fn the_origin_of_the_default_is_told() {
    let files = Files::new();
    let origin = |default| files.profiles(HOST, default, None).default_origin().clone();
    assert_eq!(origin(None), DefaultOrigin::BuiltIn);
    assert_eq!(origin(Some("default")), DefaultOrigin::File(files.path("default")));
    assert_eq!(origin(Some("absent")), DefaultOrigin::BuiltInForMissing(files.path("absent")));
    let load =
        |path: PathBuf| Profiles::load_on(HOST, ConfiguredPaths { default: Some(path), privileged: None }).unwrap_err();
    assert!(matches!(load(files.path("broken")), LoadProfileError::Parse { .. }));
    assert!(matches!(load(files.path("directory")), LoadProfileError::Read(ReadProfileError::NotFile { .. })));
}

#[test]
fn a_profile_that_cannot_be_had_is_an_error() {
    let files = Files::new();
    rustix::fs::mknodat(rustix::fs::CWD, files.path("pipe"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();
    File::create(files.path("large")).unwrap().set_len((1 << 20) + 1).unwrap();
    let profiles = files.profiles(HOST, None, Some("absent"));
    let resolve = |choice: &SecurityProfile, is_privileged, handler: Option<&Path>| {
        profiles.resolve(Some(choice), is_privileged, CapabilitySet::EMPTY, handler).unwrap_err()
    };
    let path = |name: &str| format!("{:?}", files.path(name));
    for (choice, is_privileged, handler, expected) in [
        (files.local("absent"), false, None, format!("seccomp profile {}: no such file or directory", path("absent"))),
        (
            SecurityProfile::Localhost("wontwork".into()),
            false,
            None,
            "seccomp profile \"wontwork\": no such file or directory, an absolute path is expected".into(),
        ),
        (files.local("pipe"), false, None, format!("seccomp profile {} is not a regular file", path("pipe"))),
        (files.local("broken"), false, None, format!("load seccomp profile {}", path("broken"))),
        (files.local("large"), false, None, format!("load seccomp profile {}", path("large"))),
        (
            SecurityProfile::RuntimeDefault,
            false,
            Some(files.path("absent")),
            format!("seccomp profile {}: no such file or directory", path("absent")),
        ),
        (
            SecurityProfile::RuntimeDefault,
            true,
            None,
            format!("seccomp profile {}: no such file or directory", path("absent")),
        ),
    ] {
        assert_eq!(resolve(&choice, is_privileged, handler.as_deref()).to_string(), expected);
    }
    let bytes = profiles.resolve_bytes(b"{", CapabilitySet::EMPTY).unwrap_err();
    assert!(matches!(bytes, ResolveProfileError::ParseBytes(_)));
}

#[test]
fn a_kernel_without_seccomp_degrades_what_it_may() {
    let files = Files::new();
    let host = Host { availability: Availability::Unavailable, ..HOST };
    // Not even looked at, so that a node does not fail over what it cannot use.
    let profiles = files.profiles(host, Some("broken"), Some("privileged"));
    assert_eq!(profiles.default_origin(), &DefaultOrigin::Unavailable);
    let resolve = |choice, is_privileged| profiles.resolve(choice, is_privileged, CapabilitySet::EMPTY, None);
    assert!(resolve(None, false).unwrap().is_none());
    assert!(!profiles.take_unavailable_warning(), "nobody wanted one");
    assert!(resolve(Some(&SecurityProfile::RuntimeDefault), false).unwrap().is_none());
    assert!(profiles.take_unavailable_warning());
    assert!(resolve(Some(&SecurityProfile::RuntimeDefault), false).unwrap().is_none());
    assert!(resolve(None, true).unwrap().is_none());
    assert!(!profiles.take_unavailable_warning(), "once is enough");
    assert_eq!(profiles.reference(Some(&SecurityProfile::RuntimeDefault), false), "Unconfined");
    let refused = resolve(Some(&files.local("local")), false).unwrap_err();
    assert!(matches!(refused, ResolveProfileError::Unavailable { .. }), "{refused}");
    assert!(profiles.resolve_bytes(b"{}", CapabilitySet::EMPTY).is_err());
}

#[test]
fn results_are_shared_between_containers_that_agree() {
    let files = Files::new();
    let profiles = files.profiles(HOST, None, None);
    let default = |capabilities| {
        profiles.resolve(Some(&SecurityProfile::RuntimeDefault), false, capabilities, None).unwrap().unwrap()
    };
    let set = |name| CapabilitySet::of_name(name).unwrap();
    let first = default(CapabilitySet::EMPTY);
    assert!(Arc::ptr_eq(&first, &default(set("NET_RAW"))), "a capability without rules");
    let admin = default(set("SYS_ADMIN"));
    assert_eq!(*admin, built_in::resolve(set("SYS_ADMIN"), &HOST));
    assert_ne!(first, admin);

    let local = || profiles.resolve(Some(&files.local("local")), false, CapabilitySet::ALL, None).unwrap().unwrap();
    let before = local();
    assert!(Arc::ptr_eq(&before, &local()));
    files.put("local", &profile("changed"));
    assert_eq!(call(Some(&local())).as_deref(), Some("changed"), "files are never older than the request");

    // Others push out what was not used for longest.
    for number in 0..7 {
        assert!(Arc::ptr_eq(&first, &default(CapabilitySet::EMPTY)));
        profiles.resolve_bytes(profile(&format!("call{number}")).as_bytes(), CapabilitySet::EMPTY).unwrap();
    }
    assert!(Arc::ptr_eq(&first, &default(CapabilitySet::EMPTY)), "in use");
    assert!(!Arc::ptr_eq(&admin, &default(set("SYS_ADMIN"))), "forgotten");
}

#[test]
fn the_profile_of_the_distribution_is_understood() {
    let path = Path::new("/usr/share/containers/seccomp.json");
    if !path.exists() {
        println!("SKIPPED: no {path:?} on this machine");
        return;
    }
    let profiles =
        Profiles::load_on(HOST, ConfiguredPaths { default: Some(path.to_owned()), privileged: None }).unwrap();
    let resolve = |capabilities| {
        profiles.resolve(Some(&SecurityProfile::RuntimeDefault), false, capabilities, None).unwrap().unwrap()
    };
    let allows = |spec: &LinuxSeccomp, name: &str| {
        let allow = oci_spec::runtime::LinuxSeccompAction::ScmpActAllow;
        spec.syscalls().iter().flatten().any(|call| call.action() == allow && call.names().iter().any(|n| n == name))
    };
    let (none, all) = (resolve(CapabilitySet::EMPTY), resolve(CapabilitySet::ALL));
    assert!(allows(&none, "read") && allows(&none, "arch_prctl"));
    assert!(!allows(&none, "open_by_handle_at") && allows(&all, "open_by_handle_at"));
    assert_eq!(none.architectures().as_ref().unwrap().len(), 3);
}
