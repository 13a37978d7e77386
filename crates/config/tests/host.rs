//! Checks against a made-up host and, for look-ups, a temporary directory.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use config::{
    CheckpointRestoreLevel, Config, Host, PathKind, SourceFile, Sources, ThisHost, WarningKind, diff_reload, load,
    reload,
};

/// A host of so many paths; programs are found in /bin.
struct Fake {
    paths: BTreeMap<&'static str, PathKind>,
    own: Option<PathBuf>,
    made: RefCell<Vec<(PathBuf, u32)>>,
}

impl Fake {
    fn new(paths: &[(&'static str, PathKind)]) -> Self {
        Self { paths: paths.iter().copied().collect(), own: Some("/own".into()), made: RefCell::default() }
    }
}

impl Host for Fake {
    fn kind(&self, path: &Path) -> PathKind {
        path.to_str().and_then(|path| self.paths.get(path)).copied().unwrap_or(PathKind::Missing)
    }
    fn find_program(&self, name: &str) -> Option<PathBuf> {
        let path = Path::new("/bin").join(name);
        (self.kind(&path) == PathKind::Program).then_some(path)
    }
    fn own_directory(&self) -> Option<PathBuf> {
        self.own.clone()
    }
    fn create_directory(&self, path: &Path, mode: u32) -> io::Result<()> {
        if path.starts_with("/readonly") {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        self.made.borrow_mut().push((path.to_owned(), mode));
        Ok(())
    }
}

fn config(text: &str) -> Config {
    let file = SourceFile { path: "x".into(), bytes: text.as_bytes().to_vec() };
    load(&Sources { files: vec![file], ..Sources::default() }).unwrap_or_else(|e| panic!("{e}")).config
}

use PathKind::{Directory, File, Program};

#[test]
fn programs_are_found() {
    type Case = (&'static str, &'static [(&'static str, PathKind)], &'static str, &'static str);
    let cases: &[Case] = &[
        ("", &[("/bin/crun", Program), ("/bin/conmon", Program)], "/bin/crun", "/bin/conmon"),
        (
            "",
            &[("/bin/crun", Program), ("/bin/conmon", Program), ("/bin/crio-monitor", Program)],
            "/bin/crun",
            "/bin/crio-monitor",
        ),
        (
            "",
            &[("/bin/crun", Program), ("/bin/crio-monitor", Program), ("/own/crio-monitor", Program)],
            "/bin/crun",
            "/own/crio-monitor",
        ),
        (
            "[crio.runtime.runtimes.crun]\nruntime_path = \"/opt/crun\"\nmonitor_path = \"/opt/conmon\"",
            &[("/opt/crun", Program), ("/opt/conmon", Program), ("/own/crio-monitor", Program)],
            "/opt/crun",
            "/opt/conmon",
        ),
    ];
    for (text, paths, runtime, monitor) in cases {
        let checked = config(text).check_host(&Fake::new(paths)).unwrap_or_else(|e| panic!("{e}"));
        let handler = &checked.config.runtime.runtimes["crun"];
        assert_eq!(handler.runtime_path.as_deref(), Some(Path::new(runtime)));
        assert_eq!(handler.monitor_path.as_deref(), Some(Path::new(monitor)));
        assert_eq!(checked.config.checkpoint_restore.container_level_enabled, CheckpointRestoreLevel::None, "no criu");
    }
}

#[test]
fn shims_need_our_own_part_and_their_configuration() {
    type Case = (&'static [(&'static str, PathKind)], Option<&'static str>, &'static str);
    let cases: &[Case] = &[
        (&[("/etc/kata.toml", File), ("/own/crio-shim", Program)], Some("/own/crio-shim"), ""),
        (&[("/etc/kata.toml", File), ("/bin/crio-shim", Program)], Some("/bin/crio-shim"), ""),
        (&[("/etc/kata.toml", File)], None, "crio-shim not found in $PATH"),
        (&[("/own/crio-shim", Program)], None, "/etc/kata.toml does not exist"),
    ];
    let text = r#"
        [crio.runtime.runtimes.kata]
        runtime_type = "vm"
        runtime_path = "/opt/containerd-shim-kata-v2"
        runtime_config_path = "/etc/kata.toml"
    "#;
    for (paths, program, reason) in cases {
        let common =
            [("/bin/crun", Program), ("/opt/containerd-shim-kata-v2", Program), ("/own/crio-monitor", Program)];
        let host = Fake::new(&[&common[..], paths].concat());
        let checked = config(text).check_host(&host).unwrap_or_else(|e| panic!("{e}"));
        let handler = checked.config.runtime.runtimes.get("kata");
        let found = handler.and_then(|handler| handler.shim_program.as_deref());
        assert_eq!(found, program.map(Path::new), "{reason}");
        if let Some(handler) = handler {
            assert_eq!(handler.monitor_path.as_deref(), Some(Path::new("/own/crio-monitor")));
        } else {
            let told = |warning: &config::Warning| matches!(&warning.kind, WarningKind::HandlerDropped(what) if what == reason);
            assert!(checked.warnings.iter().any(told), "{reason}: {:?}", checked.warnings);
        }
    }
}

#[test]
fn everything_that_is_missing_is_reported_at_once_and_nothing_is_made() {
    let text = r#"
        [crio.runtime]
        additional_devices = ["/dev/nope"]
        infra_ctr_cpuset = "0"
        timezone = "Mars/Olympus"
        [crio.runtime.runtimes.crun]
        runtime_path = "/opt/plain"
        seccomp_profile = "/nope.json"
    "#;
    let host = Fake::new(&[("/opt/plain", File)]);
    let error = config(text).check_host(&host).expect_err("missing things");
    let found: Vec<_> = error.problems().iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        [
            "configuration: crio.runtime.runtimes.crun.runtime_path: /opt/plain is not an executable file",
            "configuration: crio.runtime.runtimes.crun.monitor_path: crio-monitor or conmon not found in $PATH",
            "configuration: crio.runtime.runtimes.crun.seccomp_profile: /nope.json does not exist",
            "configuration: crio.runtime.infra_ctr_cpuset: taskset not found in $PATH",
            "configuration: crio.runtime.additional_devices: /dev/nope does not exist",
            "configuration: crio.runtime.timezone: \"Mars/Olympus\" is not a time zone of this host",
        ]
    );
    assert_eq!(*host.made.borrow(), []);
}

#[test]
fn handlers_without_a_program_are_left_out_unless_default() {
    let text = "[crio.runtime.runtimes.kata]\n[crio.runtime.runtimes.like]\ninherit_default_runtime = true";
    let host = Fake::new(&[("/bin/crun", Program), ("/bin/conmon", Program), ("/bin/criu", Program)]);
    let checked = config(text).check_host(&host).expect("crun is there");
    let names: Vec<_> = checked.config.runtime.runtimes.keys().map(String::as_str).collect();
    assert_eq!(names, ["crun", "like"]);
    assert_eq!(checked.config.runtime.runtimes["like"].runtime_path.as_deref(), Some(Path::new("/bin/crun")));
    assert_eq!(checked.warnings.len(), 1);
    assert_eq!(checked.warnings[0].kind, WarningKind::HandlerDropped("kata not found in $PATH".into()));
    let level = checked.config.checkpoint_restore.container_level_enabled;
    assert_eq!(level, CheckpointRestoreLevel::CheckpointRestore);
}

#[test]
fn directories_are_made() {
    let text = "[crio.runtime]\nhooks_dir = [\"/hooks\", \"/file\", \"/readonly/hooks\"]\n\
                [crio.network]\nplugin_dirs = [\"/readonly/cni\", \"/cni\"]\n[crio]\nlog_dir = \"/logs\"";
    let mut paths = vec![("/bin/crun", Program), ("/bin/conmon", Program), ("/file", File), ("/cni", Directory)];
    let host = Fake::new(&paths);
    let checked = config(text).check_host(&host).expect("valid");
    assert_eq!(checked.config.runtime.hooks_dir, [Path::new("/hooks")]);
    assert_eq!(checked.warnings.len(), 3, "{:?}", checked.warnings);
    let made: Vec<_> = host.made.borrow().iter().map(|(path, mode)| format!("{} {mode:o}", path.display())).collect();
    assert_eq!(
        made,
        ["/logs 700", "/etc/cni/net.d/ 755", "/etc/crio/auth 755", "/etc/crio/policies 755", "/hooks 755"]
    );
    paths.push(("/logs", File));
    let error = config(text).check_host(&Fake::new(&paths)).expect_err("a file is no directory");
    assert_eq!(error.problems()[0].to_string(), "configuration: crio.log_dir: /logs is not a directory");
}

#[test]
fn this_host_looks_at_files() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let program = dir.path().join("tool");
    let plain = dir.path().join("plain");
    for (path, mode) in [(&program, 0o755), (&plain, 0o644)] {
        std::fs::File::create(path).expect("file");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("mode");
    }
    let search = std::env::join_paths(["/nonexistent".as_ref(), "relative".as_ref(), dir.path()]).expect("path");
    let host = ThisHost::new(Some(search));
    assert_eq!(host.find_program("tool"), Some(program.clone()));
    assert_eq!(host.find_program("plain"), None);
    assert_eq!(host.find_program("../tool"), None);
    assert_eq!((host.kind(&program), host.kind(&plain), host.kind(dir.path())), (Program, File, Directory));
    assert_eq!(host.kind(Path::new("/dev/null")), PathKind::Other);
    let made = dir.path().join("a/b");
    host.create_directory(&made, 0o700).expect("make");
    assert_eq!(made.metadata().expect("made").permissions().mode() & 0o777, 0o700);
    assert!(host.own_directory().is_some_and(|dir| dir.is_absolute()));
    assert_eq!(ThisHost::new(None).find_program("tool"), None);
}

fn sources(text: &str) -> Sources {
    Sources { files: vec![SourceFile { path: "x".into(), bytes: text.as_bytes().to_vec() }], ..Sources::default() }
}

#[test]
fn reload_takes_over_reloadable_keys_only() {
    let running =
        config("[crio.runtime]\nselinux = true\nlog_level = \"debug\"\n[crio.image]\npinned_images = [\"a\"]");
    let text = "[crio.runtime]\nlog_filter = \"x\"\n[crio.image]\npause_command = \"/p\"\n\
                [crio.runtime.runtimes.runc]\nruntime_path = \"/runc\"";
    let done = reload(&sources(text), &running).expect("readable");
    let changes: Vec<_> = done.changes.iter().map(|change| format!("{}={}", change.key, change.value)).collect();
    assert_eq!(
        changes,
        ["log_level=info", "log_filter=x", "pause_command=/p", "pinned_images=[]", "runtimes=crun,runc"]
    );
    assert!(done.config.runtime.selinux, "not reloadable");
    assert_eq!(done.config.runtime.log_filter, "x");
    assert!(done.config.runtime.runtimes.contains_key("runc"));
    assert_eq!(diff_reload(&done.config, &done.config), []);
    assert_eq!(reload(&sources(text), &done.config).expect("readable").changes, [], "a second time nothing changes");
}

#[test]
fn reload_keeps_what_a_bad_value_would_replace() {
    let running = config("[crio.runtime]\nlog_level = \"debug\"");
    let done = reload(
        &sources("[crio.runtime]\nlog_level = \"loud\"\nlog_filter = \"f\"\ndefault_runtime = \"nope\""),
        &running,
    )
    .expect("readable");
    assert_eq!(done.problems.len(), 2);
    assert_eq!(done.config.runtime.log_level, running.runtime.log_level);
    assert_eq!(done.config.runtime.default_runtime, "crun");
    assert_eq!(done.config.runtime.log_filter, "f");
    assert!(reload(&sources("[crio"), &running).is_err(), "what is no TOML changes nothing");
}
