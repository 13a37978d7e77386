//! One function a verb: ask the engine, print the answer.

mod containers;
mod images;
mod inspect;
mod logs;
mod node;
mod pods;
mod sessions;

use std::io::Write;

use serde_json::Value;

pub(crate) use containers::exit_status;
pub(crate) use images::{is_present, pull_with_progress};
pub(crate) use logs::follow;
pub(crate) use pods::remove_pod_of_run;

use crate::arguments::{Cli, Command, ContainerCommand, ImageCommand, Output, PodCommand};
use crate::client::Client;
use crate::error::{CommandError, chain};
use crate::run;

/// A connection and the form in which to answer.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) output: Output,
}

/// Does what the command line says; the exit status is that of the program run, or 0.
pub(crate) async fn execute(cli: Cli) -> Result<u8, CommandError> {
    let client = Client::connect(&cli.runtime_endpoint, cli.timeout).await?;
    let session = Session { client, output: cli.output };
    match cli.command {
        Command::Run(arguments) => return run::run(&session, *arguments).await,
        Command::Exec(arguments) => return sessions::exec(&session, arguments).await,
        Command::Attach(arguments) => sessions::attach(&session, &arguments).await?,
        Command::PortForward(arguments) => sessions::port_forward(&session, &arguments).await?,
        Command::Cp(arguments) => sessions::copy(&session, &arguments).await?,
        Command::Ctr(ContainerCommand::Execsync(arguments)) => return containers::exec_sync(&session, arguments).await,
        Command::Pods(arguments) | Command::Pod(PodCommand::List(arguments)) => {
            pods::list(&session, &arguments).await?;
        }
        Command::Ps(arguments) => containers::list(&session, &arguments, arguments.all).await?,
        Command::Images(arguments) | Command::Image(ImageCommand::List(arguments)) => {
            images::list(&session, &arguments).await?;
        }
        Command::Pull(arguments) | Command::Image(ImageCommand::Pull(arguments)) => {
            images::pull(&session, &arguments).await?;
        }
        Command::Rmi(arguments) | Command::Image(ImageCommand::Remove(arguments)) => {
            images::remove(&session, &arguments.images).await?;
        }
        Command::Image(ImageCommand::Status { image }) => images::status(&session, &image).await?,
        Command::Logs(arguments) => logs::logs(&session, &arguments).await?,
        Command::Stop(arguments) => containers::stop(&session, &arguments.containers, arguments.grace).await?,
        Command::Rm(arguments) => containers::remove(&session, &arguments.objects, arguments.force).await?,
        Command::Stopp(arguments) => pods::stop(&session, &arguments.pods).await?,
        Command::Rmp(arguments) => pods::remove(&session, &arguments.objects, arguments.force).await?,
        Command::Inspect(arguments) => inspect::inspect(&session, &arguments.object).await?,
        Command::Version => node::version(&session).await?,
        Command::Status => node::status(&session).await?,
        Command::Pod(PodCommand::Run { config, name, runtime_handler }) => {
            pods::run(&session, &config, name.as_deref(), runtime_handler).await?;
        }
        Command::Pod(PodCommand::Status(pod)) => pods::status(&session, pod.text()).await?,
        Command::Pod(PodCommand::Stop(pod)) => pods::stop(&session, &[pod.text().to_owned()]).await?,
        // As the request of that name does: whatever runs in it is stopped first.
        Command::Pod(PodCommand::Remove(pod)) => pods::remove(&session, &[pod.text().to_owned()], true).await?,
        Command::Ctr(ContainerCommand::Create { config, pod, pod_config, name }) => {
            containers::create(&session, &config, &pod, pod_config.as_deref(), name.as_deref()).await?;
        }
        Command::Ctr(ContainerCommand::Start(container)) => containers::start(&session, container.text()).await?,
        Command::Ctr(ContainerCommand::Stop { container, grace }) => {
            containers::stop_only(&session, container.text(), grace).await?;
        }
        Command::Ctr(ContainerCommand::Remove(container)) => {
            containers::remove_only(&session, container.text()).await?;
        }
        Command::Ctr(ContainerCommand::Status(container)) => containers::status(&session, container.text()).await?,
        Command::Ctr(ContainerCommand::List(arguments)) => containers::list(&session, &arguments, true).await?,
    }
    Ok(0)
}

impl Session {
    /// Prints text as it is.
    pub(crate) fn print(&self, text: &str) -> Result<(), CommandError> {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(CommandError::Output)
    }

    /// Prints a document, indented.
    pub(crate) fn print_json(&self, value: &Value) -> Result<(), CommandError> {
        self.print(&format!("{value:#}\n"))
    }

    /// Prints the id of what was made or changed.
    pub(crate) fn print_id(&self, id: &str) -> Result<(), CommandError> {
        match self.output {
            Output::Table => self.print(&format!("{id}\n")),
            Output::Json => self.print_json(&serde_json::json!({"id": id})),
        }
    }

    /// Does the same to each, going on after a failure, and prints those it was done to.
    async fn each(
        &self,
        wanted: &[String],
        act: impl AsyncFn(&str) -> Result<(), CommandError>,
    ) -> Result<(), CommandError> {
        let mut done = Vec::new();
        let mut failed = 0;
        for one in wanted {
            match act(one).await {
                Ok(()) => done.push(one),
                Err(error) if wanted.len() == 1 => return Err(error),
                Err(error) => {
                    eprintln!("crioctl: {}", chain(&error));
                    failed += 1;
                }
            }
        }
        match self.output {
            Output::Table => self.print(&done.iter().map(|one| format!("{one}\n")).collect::<String>())?,
            Output::Json => self.print_json(&serde_json::json!(done))?,
        }
        if failed > 0 { Err(CommandError::Several { failed, asked: wanted.len() }) } else { Ok(()) }
    }
}
