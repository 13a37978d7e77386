//! Flags and environment.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use clap::Command;
use config::cli::{Invocation, LogFormat, add_flags, invocation, normalize};
use config::{ByteCount, Config, LogLevel, MainFile, SourceFile, Sources, StorageConf, load};

fn parse(args: &[&str], env: &[(&str, &str)]) -> Invocation {
    let args = normalize(std::iter::once("crio").chain(args.iter().copied()).map(OsString::from));
    let command =
        add_flags(Command::new("crio")).subcommand(Command::new("config")).subcommand(Command::new("version"));
    let matches = command.try_get_matches_from(args).unwrap_or_else(|e| panic!("{e}"));
    let env: HashMap<_, _> = env.iter().copied().collect();
    invocation(&matches, &|name| env.get(name).map(|value| (*value).to_owned()))
}

fn sources(args: &[&str], env: &[(&str, &str)], file: &str) -> Sources {
    let file = SourceFile { path: "crio.conf".into(), bytes: file.as_bytes().to_vec() };
    Sources { files: vec![file], overrides: parse(args, env).overrides, ..Sources::default() }
}

fn loaded(args: &[&str], env: &[(&str, &str)], file: &str) -> Config {
    load(&sources(args, env, file)).unwrap_or_else(|e| panic!("{e}")).config
}

#[test]
fn clap_accepts_the_whole_command_line() {
    add_flags(Command::new("crio")).debug_assert();
}

#[test]
fn every_flag_of_cri_o_exists_with_its_environment() {
    let command = add_flags(Command::new("crio"));
    let help: HashMap<String, String> = command
        .get_arguments()
        .filter_map(|arg| {
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            let env = help.rsplit_once("[env: ").map(|(_, env)| env.trim_end_matches(']').to_owned());
            Some((arg.get_long()?.to_owned(), env.unwrap_or_default()))
        })
        .collect();
    let mut regular = 0;
    for line in include_str!("flags.txt").lines().filter(|line| !line.starts_with('#')) {
        let (flag, env) = line.split_once(' ').unwrap_or((line, ""));
        assert_eq!(help.get(flag).map(String::as_str), Some(env), "--{flag}");
        regular += 1;
    }
    assert_eq!(regular, help.len(), "flags that CRI-O does not have");
}

#[test]
fn flags_win_over_environment_and_both_over_files() {
    let file = "[crio.runtime]\nlog_level = \"error\"\nselinux = true\nallowed_devices = [\"/dev/a\"]\n";
    let env = [("CONTAINER_LOG_LEVEL", "warn"), ("CONTAINER_SELINUX", ""), ("CONTAINER_PIDS_LIMIT", "")];
    assert_eq!(loaded(&[], &[], file).runtime.log_level, LogLevel::Error);
    let config = loaded(&[], &env, file);
    assert_eq!(config.runtime.log_level, LogLevel::Warn);
    assert!(!config.runtime.selinux, "a variable that is set but empty switches off");
    assert_eq!(loaded(&["--log-level", "debug"], &env, file).runtime.log_level, LogLevel::Debug);
    assert_eq!(loaded(&["-l", "info", "--log-level=trace"], &env, file).runtime.log_level, LogLevel::Trace);
    assert_eq!(loaded(&[], &env, file).runtime.allowed_devices, [Path::new("/dev/a")]);
}

#[test]
fn forms_of_values() {
    let config = loaded(
        &[
            "--selinux",
            "--drop-infra-ctr=false",
            "--read-only=T",
            "--pids-limit",
            "-1",
            "--log-size-max=16384",
            "--hooks-dir",
            "/a, /b",
            "--hooks-dir=/c",
            "--pull-progress-timeout=1m30s",
            "--storage-opt=overlay.size=1g",
            "--cni-config-dir=/net",
            "--cni-plugin-dir=/p1,/p2",
            "--insecure-registry=x",
            "--tz",
            "Local",
            "--collection-period=5",
            "-r",
            "/root",
            "-s=vfs",
            "--metrics-collectors=crio_operations_total",
            "--nri-validator-reject-oci-hook-adjustment",
            "config",
        ],
        &[
            ("CONTAINER_CDI_SPEC_DIRS", "/x,/y"),
            ("PULL_IN_A_CGROUP", "pod"),
            ("CONTAINER_INCLUDED_POD_METRCIS", "cpu"),
            ("CONTAINER_STOP_TIMEOUT", "60"),
            ("CONTAINER_BLOCKIO_CONFIG_FILE", "/not/read"),
        ],
        "[crio]\nstorage_option = [\"dropped\"]",
    );
    assert!(config.runtime.selinux && !config.runtime.drop_infra_ctr && config.runtime.read_only);
    assert_eq!((config.runtime.pids_limit, config.runtime.log_size_max), (None, Some(ByteCount::kib(16))));
    assert_eq!(config.runtime.hooks_dir, ["/a", "/b", "/c"].map(Path::new));
    assert_eq!(config.image.pull_progress_timeout, Duration::from_secs(90));
    assert_eq!(config.root.storage_option, ["overlay.size=1g"], "a flag replaces the list");
    assert_eq!(config.network.network_dir, Path::new("/net"));
    assert_eq!(config.network.plugin_dirs, ["/p1", "/p2"].map(Path::new));
    assert_eq!(config.runtime.timezone, "Local");
    assert_eq!(config.root.root, Path::new("/root"));
    assert_eq!(config.root.storage_driver.as_str(), "vfs");
    assert_eq!(config.metrics.metrics_collectors, ["operations_total"]);
    assert!(config.nri.default_validator.nri_validator_reject_oci_hook_adjustment);
    assert_eq!(config.runtime.cdi_spec_dirs, ["/x", "/y"].map(Path::new));
    assert_eq!(config.runtime.separate_pull_cgroup.as_str(), "pod");
    assert_eq!(config.stats.included_pod_metrics, ["cpu"]);
    assert_eq!(config.runtime.ctr_stop_timeout, Duration::from_secs(60));
    assert_eq!(config.runtime.blockio_config_file, None);
}

#[test]
fn runtimes() {
    let flag = "runc:/usr/bin/runc:/run/runc,kata:/bin/containerd-shim-kata-v2:/run/vc:vm:true:/etc/kata.toml:20MiB";
    let config = loaded(&["--runtimes", flag, "--default-runtime=runc"], &[], "");
    let runc = &config.runtime.runtimes["runc"];
    assert_eq!(runc.runtime_path.as_deref(), Some(Path::new("/usr/bin/runc")));
    assert_eq!(runc.runtime_root, Path::new("/run/runc"));
    let kata = &config.runtime.runtimes["kata"];
    assert_eq!(kata.runtime_type.as_str(), "vm");
    assert!(kata.privileged_without_host_devices);
    assert_eq!(kata.runtime_config_path.as_deref(), Some(Path::new("/etc/kata.toml")));
    assert_eq!(kata.container_min_memory, ByteCount::mib(20));
    assert!(config.runtime.runtimes.contains_key("crun"));
    for bad in ["runc:/x", "a:b:c:d:e:f:g:h", "a:b:c:oci:false::much", ":b:c"] {
        assert!(load(&sources(&["--runtimes", bad], &[], "")).is_err(), "{bad}");
    }
}

#[test]
fn mistakes_are_reported_with_those_of_files() {
    let sources = sources(
        &["--pids-limit=many", "--log-level=loud", "--log-format=xml"],
        &[("CONTAINER_READ_ONLY", "maybe"), ("CONTAINER_PROFILE_PORT", "70000")],
        "[crio.runtime]\nselinux = 1",
    );
    let error = load(&sources).expect_err("mistakes");
    let mut found: Vec<_> = error.problems().iter().map(ToString::to_string).collect();
    found.sort();
    assert_eq!(
        found,
        [
            "$CONTAINER_PROFILE_PORT: profile-port: 70000 is not a port",
            "$CONTAINER_READ_ONLY: crio.runtime.read_only: \"maybe\" is neither true nor false",
            "--log-format: log-format: \"xml\" is neither \"text\" nor \"json\"",
            "--log-level: crio.runtime.log_level: not a valid logrus Level: \"loud\", use fatal, panic, error, warn, info, \
             debug or trace",
            "--pids-limit: crio.runtime.pids_limit: \"many\" is not an integer",
            "crio.conf:2: crio.runtime.selinux: expected true or false, found integer",
        ]
    );
}

#[test]
fn files_and_options() {
    let found = parse(&[], &[]);
    assert_eq!(found.locations, config::Locations::default());
    assert_eq!(found.used, []);
    let found = parse(
        &["-c", "", "--config-dir=/d", "--log=/l", "--log-format", "json", "--profile", "-profile-port=7000"],
        &[
            ("CONTAINERS_STORAGE_CONF", "/s"),
            ("STORAGE_DRIVER", "vfs"),
            ("STORAGE_OPTS", ""),
            ("ENABLE_PROFILE_UNIX_SOCKET", "true"),
            ("CONTAINER_REGISTRIES_CONF", "/registries"),
        ],
    );
    assert_eq!(found.locations.config, MainFile::Skip);
    assert_eq!(found.locations.drop_ins.as_deref(), Some(Path::new("/d")));
    assert_eq!(found.locations.storage, StorageConf::Only("/s".into()));
    assert_eq!(found.locations.storage_driver.as_deref(), Some("vfs"));
    assert_eq!(found.locations.storage_options, None);
    let options = &found.options;
    assert_eq!((options.log.as_deref(), options.log_format), (Some(Path::new("/l")), LogFormat::Json));
    assert_eq!((options.profile, options.profile_port), (true, Some(7000)));
    assert!(options.enable_profile_unix_socket);
    assert_eq!(options.registries_conf.as_deref(), Some(Path::new("/registries")));
    let named = parse(&[], &[("CONTAINER_CONFIG", "/x"), ("CONTAINER_CONFIG_DIR", "")]).locations;
    assert_eq!((named.config, named.drop_ins), (MainFile::Required("/x".into()), None));
    let used: Vec<_> =
        parse(&["--pids-limit=5", "--hooks-dir=/a", "--hooks-dir=/b"], &[("CONTAINER_LOG_LEVEL", "warn")])
            .used
            .into_iter()
            .map(|flag| format!("{}={}", flag.name, flag.value))
            .collect();
    assert_eq!(used, ["hooks-dir=/a,/b", "pids-limit=5", "log-level=warn"]);
}

#[test]
fn one_dash_is_enough_for_long_flags_only() {
    let words = |words: &[&str]| normalize(words.iter().map(OsString::from));
    assert_eq!(
        words(&["crio", "-log-level", "debug", "-root=/x", "-l", "-1", "-unknown", "--config", "-"]),
        words(&["crio", "--log-level", "debug", "--root=/x", "-l", "-1", "-unknown", "--config", "-"])
    );
    assert_eq!(words(&["-log-level"]), [OsString::from("--log-level")]);
}

#[test]
fn global_flags_come_before_the_subcommand() {
    let command = add_flags(Command::new("crio")).subcommand(Command::new("config"));
    assert!(command.clone().try_get_matches_from(["crio", "--root=/x", "config"]).is_ok());
    assert!(command.try_get_matches_from(["crio", "config", "--root=/x"]).is_err());
}
