//! The daemon and its verbs: parse, load, wire, serve. Decides nothing.
//!
//! Promises: every problem of the configuration is printed before anything is bound or mounted; an unknown verb is an
//! error. Must not know: how anything is done. Begin reading at [`main`], then `daemon`.
#![forbid(unsafe_code)]

mod daemon;
mod listen;
mod notify;
mod pull;
mod serve;
mod sessions;
mod side_door;
mod status;
mod storage_verbs;
mod verbs;
mod version_files;

use std::process::ExitCode;

use clap::{Arg, ArgAction, Command};

fn command() -> Command {
    let command = Command::new("crio")
        .about("OCI-based implementation of Kubernetes' Container Runtime Interface")
        .disable_help_subcommand(true)
        // Refused below in CRI-O's words, which scripts look for.
        .allow_external_subcommands(true)
        .disable_version_flag(true)
        .arg(Arg::new("version").short('v').long("version").action(ArgAction::SetTrue).help("Print the version"))
        .subcommand(verbs::config_command())
        .subcommand(storage_verbs::check_command())
        .subcommand(storage_verbs::wipe_command())
        .subcommand(status::command())
        .subcommand(verbs::version_command())
        .subcommand(verbs::publish_command());
    config::cli::add_flags(command)
}

/// The mount namespace to run in, where one is kept for the kubelet and the container engine. Source: CRI-O.
const MOUNT_NAMESPACE: &str = "KUBENSMNT";

/// Before anything else: a process with threads cannot move. One that cannot be joined is left alone, as by CRI-O.
fn join_mount_namespace() {
    let Some(path) = std::env::var_os(MOUNT_NAMESPACE).filter(|path| !path.is_empty()) else { return };
    if let Err(error) = sys::mount_namespace::join(path.as_ref()) {
        eprintln!(
            "crio: warning: {MOUNT_NAMESPACE}: join mount namespace {}: {error}; staying where started",
            path.display()
        );
    }
}

fn main() -> ExitCode {
    // Another program in the same file; it is in the daemon's namespaces already.
    if std::env::args_os().next().is_some_and(|name| name == lifecycle::PULL_PROGRAM) {
        return pull::run();
    }
    join_mount_namespace();
    let arguments = config::cli::normalize(std::env::args_os());
    let matches = command().get_matches_from(arguments);
    if matches.get_flag("version") {
        println!("crio {}", verbs::version_text());
        return ExitCode::SUCCESS;
    }
    let invocation = config::cli::invocation(&matches, &|name| std::env::var(name).ok());
    let result = match matches.subcommand() {
        None => daemon::run(invocation),
        Some(("config", arguments)) => verbs::config(&invocation, arguments),
        Some(("check", arguments)) => storage_verbs::check(&invocation, arguments),
        Some(("wipe", arguments)) => storage_verbs::wipe(&invocation, arguments),
        Some(("status", arguments)) => status::run(arguments),
        Some(("version", arguments)) => verbs::version(arguments),
        Some(("publish", _)) => verbs::publish(),
        Some((other, _)) => Err(format!("command {other:?} not supported").into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("crio: {}", telemetry::chain(&*error));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        super::command().debug_assert();
    }
}
