//! The verbs `check` and `wipe`: what an operator or a unit before the daemon's does to the store.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};
use config::Config;
use config::cli::Invocation;
use durable::Durability;
use lifecycle::{ByForce, CheckDepth, CheckReport, OnContainers, Storage, was_shutdown_unclean};

use crate::{daemon, verbs, version_files};

type Done = Result<(), Box<dyn Error>>;

/// Says that the storage directory of an unclean shutdown was wiped already. Source: CRI-O.
const WIPE_MARKER: &str = "/run/crio/crio-wipe-done";

fn flag(name: &'static str, short: char, help: &'static str) -> Arg {
    Arg::new(name).long(name).short(short).action(ArgAction::SetTrue).help(help)
}

pub(crate) fn check_command() -> Command {
    Command::new("check")
        .about("Check the storage directory for damage, and repair it")
        .long_about(
            "Check the storage directory for damage, and repair it.\n\n\
             Every layer's tar is put together again and digested, the files of every layer are compared with what its \
             tar says, and what records mention must be there. This reads everything once; --quick reads no files' \
             owners, modes and times. What is found is printed, a line each; the exit status is 0 if nothing was.\n\n\
             The daemon, podman and others may run meanwhile. --repair removes damaged images and layers and what \
             belongs to nobody; what a container is made of stays, unless --force removes the container too. What runs \
             is never removed, except by --wipe with --force.",
        )
        .arg(
            Arg::new("age")
                .long("age")
                .short('a')
                .default_value("24h")
                .help("How old a layer must be that nothing uses, to count as damage"),
        )
        .arg(flag("force", 'f', "Remove damaged containers"))
        .arg(flag("repair", 'r', "Remove damaged images and layers"))
        .arg(flag("quick", 'q', "Perform only quick checks"))
        .arg(flag("wipe", 'w', "Remove the storage directory if it cannot be repaired"))
}

pub(crate) fn wipe_command() -> Command {
    Command::new("wipe").about("Remove containers after a reboot, and images after a change of version").arg(flag(
        "force",
        'f',
        "Remove both, whatever the version files say",
    ))
}

/// A plain number is one of seconds, and a sign means nothing. Source: CRI-O.
fn parse_age(text: &str) -> Result<Duration, config::units::ParseDurationError> {
    let text = text.strip_prefix('-').unwrap_or(text);
    match text.parse() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => config::units::parse_duration(text),
    }
}

/// The counts an operator's script looks for, and what CRI-O does not count.
fn summary(report: &CheckReport) -> String {
    let mut text = format!(
        "{} layer errors, {} read-only layer errors, {} image errors, {} read-only image errors, {} container errors",
        report.layers.len(),
        report.read_only_layers.len(),
        report.images.len(),
        report.read_only_images.len(),
        report.containers.len(),
    );
    if !report.strays.is_empty() {
        text.push_str(&format!(", {} stray files", report.strays.len()));
    }
    text
}

fn load(invocation: &Invocation) -> Result<Config, Box<dyn Error>> {
    let config = verbs::load(invocation)?.config;
    daemon::start_logs(invocation, &config)?;
    Ok(config)
}

/// Checks, and repairs if told to.
pub(crate) fn check(invocation: &Invocation, arguments: &ArgMatches) -> Done {
    let config = load(invocation)?;
    let age = parse_age(arguments.get_one::<String>("age").map_or("24h", String::as_str))?;
    let storage = Storage::open(&config)?;
    let root = config.root.root.display();
    tracing::info!("Checking storage directory {root} for errors");
    let depth = if arguments.get_flag("quick") { CheckDepth::Digests } else { CheckDepth::Contents };
    let report = storage.check(depth, age)?;
    report.lines().iter().for_each(|line| println!("{line}"));
    tracing::debug!("Storage directory {root} has errors: {}", !report.is_clean());
    if report.is_clean() || !arguments.get_flag("repair") {
        storage.close();
        return if report.is_clean() { Ok(()) } else { Err(summary(&report).into()) };
    }
    let by_force = if arguments.get_flag("force") { ByForce::Yes } else { ByForce::No };
    let containers = match by_force {
        ByForce::Yes => OnContainers::Remove,
        ByForce::No => OnContainers::Keep,
    };
    tracing::info!("Attempting to repair storage directory {root}");
    let errors = storage.repair(&report, containers);
    for error in &errors {
        tracing::error!("{}", telemetry::chain(error));
    }
    match errors.len() {
        0 => storage.close(),
        _ if arguments.get_flag("wipe") => {
            tracing::warn!("Wiping storage directory {root}");
            return Ok(storage.remove(by_force)?);
        }
        count => {
            storage.close();
            return Err(format!("{count} of what is damaged stays").into());
        }
    }
    let is_container_left = containers == OnContainers::Keep && !report.containers.is_empty();
    if is_container_left || !report.read_only_layers.is_empty() || !report.read_only_images.is_empty() {
        return Err(summary(&report).into());
    }
    println!("storage directory {root} is repaired");
    Ok(())
}

/// Removes what an earlier boot or version left.
pub(crate) fn wipe(invocation: &Invocation, arguments: &ArgMatches) -> Done {
    let config = load(invocation)?;
    let is_forced = arguments.get_flag("force");
    let with_containers = is_forced || version_files::is_outdated(config.root.version_file.as_deref());
    let with_images = is_forced || version_files::is_outdated(config.root.version_file_persist.as_deref());
    if with_containers && was_shutdown_unclean(&config) && wipe_unclean(&config)? {
        return Ok(());
    }
    if config.root.internal_wipe && !is_forced {
        tracing::info!("the daemon removes what is left of an earlier boot or version when it starts");
        return Ok(());
    }
    if !with_containers {
        if with_images {
            tracing::info!("another version, but the same boot: images are removed together with containers only");
        }
        tracing::info!("version unchanged and node not rebooted; no wipe needed");
        return Ok(());
    }
    let storage = Storage::open(&config)?;
    let wiped = storage.wipe(with_images)?;
    storage.close();
    println!("removed {} containers and sandboxes, {} images", wiped.containers, wiped.images);
    for failure in &wiped.failures {
        tracing::error!("{failure}");
    }
    match wiped.failures.len() {
        0 => Ok(()),
        count => Err(format!("{count} containers and images stay").into()),
    }
}

/// Removes the storage directory after an unclean shutdown, once a boot; tells whether it was done before.
fn wipe_unclean(config: &Config) -> Result<bool, Box<dyn Error>> {
    let marker = Path::new(WIPE_MARKER);
    if marker.exists() {
        tracing::info!("the unclean shutdown was dealt with by an earlier crio wipe");
        return Ok(true);
    }
    tracing::info!("Wiping storage directory {} because of suspected unclean shutdown", config.root.root.display());
    Storage::open(config)?.remove(ByForce::No)?;
    let written = marker
        .parent()
        .map_or(Ok(()), std::fs::create_dir_all)
        .map_err(Box::<dyn Error>::from)
        .and_then(|()| durable::replace(marker, b"done", 0o644, Durability::Volatile).map_err(Into::into));
    if let Err(error) = written {
        tracing::warn!(path = WIPE_MARKER, error = %telemetry::chain(&*error), "marking the wipe as done failed");
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_durations_or_seconds() {
        for (text, expected) in [
            ("24h", Some(24 * 3600)),
            ("0", Some(0)),
            ("90", Some(90)),
            ("-90", Some(90)),
            ("1m30s", Some(90)),
            ("-1m", Some(60)),
            ("", None),
            ("1 day", None),
        ] {
            assert_eq!(parse_age(text).ok(), expected.map(Duration::from_secs), "{text:?}");
        }
    }
}
