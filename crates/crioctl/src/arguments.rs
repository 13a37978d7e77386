//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::run_options::{EnvVariable, Label, Port, User, Volume};
use crate::sessions::{DetachKeys, Mapping, Trust};

/// Where CRI-O listens.
const DEFAULT_ENDPOINT: &str = "unix:///var/run/crio/crio.sock";

/// A client for container engines that speak the Kubernetes CRI.
///
/// Exit status: 0 done; 1 an error; 2 wrong usage; 125 the engine cannot be reached; run and exec end with the status
/// of the program they ran.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
pub(crate) struct Cli {
    /// Socket of the engine
    #[arg(
        short = 'r',
        long,
        global = true,
        env = "CONTAINER_RUNTIME_ENDPOINT",
        default_value = DEFAULT_ENDPOINT,
        value_name = "URL"
    )]
    pub(crate) runtime_endpoint: String,
    /// Seconds one request may take [default: 10 for questions, 240 for changes, 3600 for pulls]
    #[arg(long, global = true, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) timeout: Option<u64>,
    /// Form of the answer
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a container in a pod of its own and follow its output until it ends
    Run(Box<RunArguments>),
    /// List pods
    Pods(PodListArguments),
    /// List running containers
    Ps(ContainerListArguments),
    /// List images
    Images(ImageListArguments),
    /// Pull an image
    Pull(PullArguments),
    /// Print what a container wrote
    Logs(LogsArguments),
    /// Run a program in a running container
    Exec(ExecArguments),
    /// Follow a running container's own input and output
    Attach(AttachArguments),
    /// Lead ports of this machine into a pod
    #[command(visible_alias = "portforward")]
    PortForward(PortForwardArguments),
    /// Copy files into or out of a container, which must have tar
    Cp(CopyArguments),
    /// Stop containers; a pod made by run stops with its container
    Stop(StopArguments),
    /// Remove containers; a pod made by run goes with its container
    Rm(RemoveArguments),
    /// Stop pods
    Stopp(PodsArgument),
    /// Remove pods
    Rmp(RemoveArguments),
    /// Remove images
    Rmi(ImagesArgument),
    /// Everything the engine says about a container, pod or image, as JSON
    Inspect(InspectArguments),
    /// Versions of this client and of the engine
    Version,
    /// Conditions and features of the engine
    #[command(alias = "info")]
    Status,
    /// Pods, one request at a time
    #[command(subcommand)]
    Pod(PodCommand),
    /// Containers, one request at a time
    #[command(subcommand, alias = "container")]
    Ctr(ContainerCommand),
    /// Images, one request at a time
    #[command(subcommand)]
    Image(ImageCommand),
}

#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    /// Name of the pod and the container [default: the image's name and some random digits]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Namespace of the pod
    #[arg(long, default_value = "default")]
    pub(crate) namespace: String,
    /// Host port to lead to a container port, [IP:]HOST:CONTAINER[/tcp|udp|sctp]
    #[arg(short, long = "publish", value_name = "PORTS")]
    pub(crate) ports: Vec<Port>,
    /// Environment variable, NAME=VALUE, or NAME to pass on the client's
    #[arg(short, long = "env", value_name = "VARIABLE")]
    pub(crate) env: Vec<EnvVariable>,
    /// Host path to mount, HOST:CONTAINER[:OPTION,...] with ro, rw, z, private, rslave, rshared
    #[arg(short, long = "volume", value_name = "MOUNT")]
    pub(crate) volumes: Vec<Volume>,
    /// Label of the container and the pod, NAME=VALUE
    #[arg(short, long = "label", value_name = "LABEL")]
    pub(crate) labels: Vec<Label>,
    /// Remove pod, container and log when the container has ended
    #[arg(long)]
    pub(crate) rm: bool,
    /// Print the container's id and leave it running
    #[arg(short, long, conflicts_with = "rm")]
    pub(crate) detach: bool,
    /// Runtime handler
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    pub(crate) runtime_handler: String,
    /// Host name of the pod [default: its name]
    #[arg(long, conflicts_with = "host_network")]
    pub(crate) hostname: Option<String>,
    /// Use the host's network
    #[arg(long, conflicts_with = "ports")]
    pub(crate) host_network: bool,
    /// All capabilities and devices
    #[arg(long)]
    pub(crate) privileged: bool,
    /// Make the root file system read-only
    #[arg(long)]
    pub(crate) read_only: bool,
    /// User to run as, UID[:GID] or NAME
    #[arg(short, long)]
    pub(crate) user: Option<User>,
    /// Working directory in the container
    #[arg(short, long, default_value = "", hide_default_value = true, value_name = "PATH")]
    pub(crate) workdir: String,
    /// Program to run instead of the image's entry point
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) entrypoint: Option<String>,
    /// When to pull the image
    #[arg(long, value_enum, default_value_t = PullPolicy::Missing)]
    pub(crate) pull: PullPolicy,
    /// Directory for logs, one directory a pod
    #[arg(long, default_value = "/var/log/pods", value_name = "PATH")]
    pub(crate) log_root: PathBuf,
    /// Image to run
    pub(crate) image: String,
    /// Arguments for the image's entry point, or the program if it has none
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

/// When `run` pulls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PullPolicy {
    /// When the engine does not have it.
    Missing,
    /// Before every run.
    Always,
    /// Not at all.
    Never,
}

#[derive(Debug, Args)]
pub(crate) struct PodListArguments {
    /// Only pods whose id begins so
    #[arg(long)]
    pub(crate) id: Option<String>,
    /// Only pods with this label, NAME=VALUE
    #[arg(short, long = "label", value_name = "LABEL")]
    pub(crate) labels: Vec<Label>,
    /// Print ids only
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ContainerListArguments {
    /// Also those that do not run
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Only containers whose id begins so
    #[arg(long)]
    pub(crate) id: Option<String>,
    /// Only containers of this pod
    #[arg(long, value_name = "POD")]
    pub(crate) pod: Option<String>,
    /// Only containers with this label, NAME=VALUE
    #[arg(short, long = "label", value_name = "LABEL")]
    pub(crate) labels: Vec<Label>,
    /// Print ids only
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ImageListArguments {
    /// Only this image
    pub(crate) image: Option<String>,
    /// Print ids only
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PullArguments {
    /// Image reference
    pub(crate) image: String,
    /// Credentials for the registry, USER:PASSWORD
    #[arg(long, env = "CRIOCTL_CREDS", hide_env_values = true, value_name = "CREDENTIALS")]
    pub(crate) creds: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArguments {
    /// Go on until the container ends
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only so many lines from the end
    #[arg(long, value_name = "LINES")]
    pub(crate) tail: Option<usize>,
    /// Put the time before each line
    #[arg(short, long)]
    pub(crate) timestamps: bool,
    /// Id, beginning of an id, or name
    pub(crate) container: String,
}

#[derive(Debug, Args)]
pub(crate) struct ExecArguments {
    /// Pass on standard input
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the program a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    #[command(flatten)]
    pub(crate) trust: TrustArguments,
    /// Id, beginning of an id, or name
    pub(crate) container: String,
    /// Program and arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

/// Certificates for streaming servers that encrypt.
#[derive(Debug, Clone, Args)]
pub(crate) struct TrustArguments {
    /// Certificate authorities of the engine's streaming server, PEM [default: those of this machine]
    #[arg(long, value_name = "FILE", help_heading = "Encrypted streaming")]
    stream_ca: Option<PathBuf>,
    /// Certificate to show to it, PEM
    #[arg(long, value_name = "FILE", requires = "stream_key", help_heading = "Encrypted streaming")]
    stream_cert: Option<PathBuf>,
    /// Key of that certificate, PEM
    #[arg(long, value_name = "FILE", requires = "stream_cert", help_heading = "Encrypted streaming")]
    stream_key: Option<PathBuf>,
}

impl TrustArguments {
    pub(crate) fn trust(&self) -> Trust {
        let own = self.stream_cert.clone().zip(self.stream_key.clone());
        Trust { authorities: self.stream_ca.clone(), own }
    }
}

#[derive(Debug, Args)]
pub(crate) struct AttachArguments {
    /// Pass on standard input
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// The container has a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Keys that leave the session and let the container go on, with -it
    #[arg(long, default_value = "ctrl-p,ctrl-q", value_name = "KEYS")]
    pub(crate) detach_keys: DetachKeys,
    #[command(flatten)]
    pub(crate) trust: TrustArguments,
    /// Id, beginning of an id, or name
    pub(crate) container: String,
}

#[derive(Debug, Args)]
pub(crate) struct PortForwardArguments {
    /// Address of this machine to listen on
    #[arg(long = "address", default_value = "127.0.0.1", value_name = "ADDRESS")]
    pub(crate) addresses: Vec<String>,
    #[command(flatten)]
    pub(crate) trust: TrustArguments,
    /// Id, beginning of an id, or name of a pod
    pub(crate) pod: String,
    /// Ports, [LOCAL:]PORT; without LOCAL, as in :80, any free one
    #[arg(required = true, value_name = "PORTS")]
    pub(crate) ports: Vec<Mapping>,
}

#[derive(Debug, Args)]
pub(crate) struct CopyArguments {
    #[command(flatten)]
    pub(crate) trust: TrustArguments,
    /// What to copy, PATH or CONTAINER:PATH
    pub(crate) from: String,
    /// Where to, CONTAINER:PATH or PATH; into it where that is a directory
    pub(crate) to: String,
}

#[derive(Debug, Args)]
pub(crate) struct StopArguments {
    /// Seconds from the stop signal to SIGKILL
    #[arg(short = 't', long = "grace", default_value_t = 10, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(0..=86_400))]
    pub(crate) grace: u32,
    /// Ids, beginnings of ids, or names
    #[arg(required = true)]
    pub(crate) containers: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RemoveArguments {
    /// Also what is running
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Ids, beginnings of ids, or names
    #[arg(required = true)]
    pub(crate) objects: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PodsArgument {
    /// Ids, beginnings of ids, or names
    #[arg(required = true)]
    pub(crate) pods: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ImagesArgument {
    /// References or ids
    #[arg(required = true)]
    pub(crate) images: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArguments {
    /// Id, beginning of an id, or name of a container or a pod; or an image
    pub(crate) object: String,
}

/// One object, as an argument or, as the first crioctl wanted it, as an option.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct OneObject {
    /// Id, beginning of an id, or name
    pub(crate) object: Option<String>,
    /// The same
    #[arg(long = "id", value_name = "OBJECT")]
    pub(crate) id: Option<String>,
}

impl OneObject {
    /// What was given; the parser sees to it that one was.
    pub(crate) fn text(&self) -> &str {
        self.object.as_deref().or(self.id.as_deref()).unwrap_or_default()
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum PodCommand {
    /// Run a pod described by a file
    Run {
        /// JSON of a PodSandboxConfig; - for standard input
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Name to use instead of the file's
        #[arg(long)]
        name: Option<String>,
        /// Runtime handler
        #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
        runtime_handler: String,
    },
    /// State of a pod
    Status(OneObject),
    /// Stop a pod
    Stop(OneObject),
    /// Remove a pod
    #[command(alias = "rm")]
    Remove(OneObject),
    /// List pods
    #[command(alias = "ls")]
    List(PodListArguments),
}

#[derive(Debug, Subcommand)]
pub(crate) enum ContainerCommand {
    /// Create a container described by a file
    Create {
        /// JSON of a ContainerConfig; - for standard input
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Pod to create it in
        #[arg(long, value_name = "POD")]
        pod: String,
        /// JSON of the pod's PodSandboxConfig; without it only what the engine tells about the pod is sent, which lacks
        /// the log directory
        #[arg(long, value_name = "FILE")]
        pod_config: Option<PathBuf>,
        /// Name to use instead of the file's
        #[arg(long)]
        name: Option<String>,
    },
    /// Start a created container
    Start(OneObject),
    /// Stop a container
    Stop {
        #[command(flatten)]
        container: OneObject,
        /// Seconds from the stop signal to SIGKILL
        #[arg(long = "grace", default_value_t = 10, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(0..=86_400))]
        grace: u32,
    },
    /// Remove a container
    #[command(alias = "rm")]
    Remove(OneObject),
    /// State of a container
    Status(OneObject),
    /// List containers in every state
    #[command(alias = "ls")]
    List(ContainerListArguments),
    /// Run a program in a container and wait for it
    Execsync(ExecSyncArguments),
}

#[derive(Debug, Args)]
pub(crate) struct ExecSyncArguments {
    /// Id, beginning of an id, or name; then nothing but the program follows
    #[arg(long = "id", value_name = "CONTAINER")]
    pub(crate) id: Option<String>,
    /// Container, unless --id names it; program and arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "WORDS")]
    pub(crate) words: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Pull an image
    Pull(PullArguments),
    /// List images
    #[command(alias = "ls")]
    List(ImageListArguments),
    /// Remove images
    #[command(alias = "rm")]
    Remove(ImagesArgument),
    /// What the engine knows about an image
    Status {
        /// Reference or id
        image: String,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn command_lines() {
        let good = [
            "run img",
            "run --name a -p 8080:80 -p 127.0.0.1:53:53/udp -e A=b -v /tmp:/t:ro --rm img sh -c true",
            "run img -x --name not-ours",
            "pods -q",
            "ps -a --pod p -o json",
            "logs -f --tail 3 --timestamps c",
            "exec c ls -l",
            "exec -it c sh",
            "attach -it --detach-keys ctrl-a,d c",
            "port-forward --address 0.0.0.0 p 8080:80 :443",
            "cp --stream-ca f c:/x y",
            "stop -t 0 a b",
            "rm -f a",
            "rmp a",
            "info",
            "pod run --config f",
            "pod status --id x",
            "pod stop x",
            "ctr create --config f --pod p",
            "ctr execsync --id c ls -l",
            "ctr execsync c ls -l",
            "image status x",
            "-r unix:///x version",
        ];
        let bad = [
            "",
            "run",
            "run -d --rm img",
            "run --host-network -p 1:1 img",
            "run -p x img",
            "exec c",
            "attach --detach-keys ctrl- c",
            "port-forward p",
            "port-forward p 0",
            "cp a",
            "cp --stream-cert f a b",
            "logs",
            "stop",
            "pod status",
            "pod status x --id x",
            "ctr create --config f",
            "ps --nonsense",
            "--timeout 0 ps",
        ];
        for line in good {
            let words = std::iter::once("crioctl").chain(line.split_whitespace());
            assert!(Cli::try_parse_from(words).is_ok(), "{line}");
        }
        for line in bad {
            let words = std::iter::once("crioctl").chain(line.split_whitespace());
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
    }

    #[test]
    fn words_after_the_image_belong_to_the_program() {
        let cli = Cli::parse_from(["crioctl", "run", "img", "-x", "--name", "theirs", "-o", "json"]);
        let Command::Run(run) = cli.command else { panic!("not run") };
        assert_eq!(run.command, ["-x", "--name", "theirs", "-o", "json"]);
        assert_eq!((run.name, cli.output), (None, Output::Table));
    }
}
