//! Verbs that print and end: `config` and `version`.

use std::error::Error;

use clap::{Arg, ArgAction, ArgMatches, Command};
use config::cli::Invocation;
use config::{Sources, Template, VersionInfo};

type Done = Result<(), Box<dyn Error>>;

pub(crate) fn config_command() -> Command {
    Command::new("config").about("Print the configuration as a commented TOML file").arg(
        Arg::new("default")
            .long("default")
            .action(ArgAction::SetTrue)
            .help("Print the built-in values, files and flags aside"),
    )
}

pub(crate) fn version_command() -> Command {
    Command::new("version")
        .about("Print the version and what it was built with")
        .arg(Arg::new("json").short('j').long("json").action(ArgAction::SetTrue).help("Print JSON"))
        .arg(
            Arg::new("verbose")
                .short('v')
                .long("verbose")
                .action(ArgAction::SetTrue)
                .help("Print the libraries it was built with too"),
        )
}

/// What shims run to tell of events. Source: containerd's runtime v2 documentation.
pub(crate) fn publish_command() -> Command {
    let option = |name: &'static str| Arg::new(name).long(name).help("Of the event");
    Command::new("publish").hide(true).about("Take an event of a shim").arg(option("topic")).arg(option("namespace"))
}

/// Takes an event and does nothing with it: what matters of a shim is asked. Source: CRI-O.
pub(crate) fn publish() -> Done {
    // The event comes on standard input; a shim must be able to write it.
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

/// Prints the effective configuration, or the built-in one.
pub(crate) fn config(invocation: &Invocation, arguments: &ArgMatches) -> Done {
    let loaded = load(invocation)?;
    if arguments.get_flag("default") {
        print!("{}", config::template(&loaded.defaults, Template::Default));
        return Ok(());
    }
    for warning in &loaded.warnings {
        eprintln!("crio: warning: {warning}");
    }
    print!("{}", config::template_over(&loaded.defaults, &loaded.config, Template::Effective));
    Ok(())
}

/// Reads and checks files, environment and flags.
pub(crate) fn load(invocation: &Invocation) -> Result<config::Loaded, Box<dyn Error>> {
    let mut sources = Sources::read(&invocation.locations)?;
    sources.overrides = invocation.overrides.clone();
    Ok(config::load(&sources)?)
}

fn version_info() -> VersionInfo {
    VersionInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        go_version: concat!("rust", env!("CARGO_PKG_RUST_VERSION")).to_owned(),
        compiler: "rustc".to_owned(),
        platform: format!("{}/{}", std::env::consts::OS, go_architecture()),
        linkmode: "dynamic".to_owned(),
        seccomp_enabled: std::path::Path::new("/proc/sys/kernel/seccomp/actions_avail").exists(),
        app_armor_enabled: std::path::Path::new("/sys/kernel/security/apparmor").is_dir(),
        ..VersionInfo::default()
    }
}

/// Architectures as the container world names them.
fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

pub(crate) fn version_text() -> String {
    format!("version {}", version_info().short_text())
}

/// Prints what was built.
pub(crate) fn version(arguments: &ArgMatches) -> Done {
    let info = version_info();
    if arguments.get_flag("json") {
        println!("{}", info.json()?);
    } else {
        print!("{}", info.text());
    }
    Ok(())
}
