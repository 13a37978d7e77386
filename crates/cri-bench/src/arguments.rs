//! The command line.

use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, ValueEnum};

/// Measures container engines through their CRI sockets and prints ratios of two.
#[derive(Debug, Clone, Parser)]
#[command(version, about, max_term_width = 100)]
pub(crate) struct Arguments {
    /// Endpoint of the engine under test, unix:///path
    #[arg(long, value_name = "URL")]
    pub(crate) ours: String,
    /// Its daemon's process, for memory figures
    #[arg(long, value_name = "PID")]
    pub(crate) pid: Option<u32>,
    /// Endpoint of the engine to compare with
    #[arg(long, value_name = "URL")]
    pub(crate) peer: Option<String>,
    /// The peer's process
    #[arg(long, value_name = "PID", requires = "peer")]
    pub(crate) peer_pid: Option<u32>,
    /// Image to run; it must be present unless --pull is given
    #[arg(long, value_name = "REF")]
    pub(crate) image: String,
    /// Pull the image where it is missing
    #[arg(long)]
    pub(crate) pull: bool,
    /// How many pods are started and removed one after the other on each engine
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) rounds: u32,
    /// How many ExecSync calls each of these pods gets
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=1_000))]
    pub(crate) execs: u32,
    /// How many requests are under way at once in the throughput part; 0 leaves it out
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=512))]
    pub(crate) parallel: u32,
    /// How many pods run while memory is measured; 0 leaves it out
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=1_000))]
    pub(crate) pods: u32,
    /// Runtime handler of the engine under test
    #[arg(long, default_value = "", hide_default_value = true, value_name = "HANDLER")]
    pub(crate) handler: String,
    /// Runtime handler of the peer
    #[arg(long, default_value = "", hide_default_value = true, value_name = "HANDLER")]
    pub(crate) peer_handler: String,
    /// Use the host's network: no CNI plugin runs
    #[arg(long)]
    pub(crate) host_network: bool,
    /// Seccomp profile asked for
    #[arg(long, value_enum, default_value_t = Seccomp::Unconfined)]
    pub(crate) seccomp: Seccomp,
    /// Cgroup parent asked for
    #[arg(long, default_value = "", hide_default_value = true, value_name = "PATH")]
    pub(crate) cgroup_parent: String,
    /// Program that ExecSync runs
    #[arg(long, default_value = "true", value_name = "PROGRAM")]
    pub(crate) exec_program: String,
    /// Exit with status 3 when a ratio ours/peer of medians is higher, e.g. start=0.6,exec=0.6
    #[arg(long, value_delimiter = ',', value_name = "METRIC=RATIO", requires = "peer")]
    pub(crate) max_ratio: Vec<Limit>,
    /// Seconds that one request may take
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) timeout: u64,
    /// Form of the report
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
    /// Command for the container instead of the image's own; it should end at SIGTERM
    #[arg(last = true)]
    pub(crate) command: Vec<String>,
}

impl Arguments {
    /// The bound on one request.
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

/// How the report is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Which filter of system calls a container gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Seccomp {
    /// None, as the kubelet asks by default.
    Unconfined,
    /// The engine's own.
    RuntimeDefault,
}

/// The highest accepted ratio of one metric.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Limit {
    /// Name of a metric as reported.
    pub(crate) metric: String,
    /// Ratio ours/peer of medians.
    pub(crate) ratio: f64,
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (metric, ratio) = text.split_once('=').ok_or_else(|| format!("{text:?} is not METRIC=RATIO"))?;
        if !crate::measure::METRICS.iter().any(|known| known.name == metric) {
            let known: Vec<&str> = crate::measure::METRICS.iter().map(|known| known.name).collect();
            return Err(format!("no metric {metric:?}; there are {}", known.join(", ")));
        }
        match ratio.parse::<f64>() {
            Ok(ratio) if ratio.is_finite() && ratio > 0.0 => Ok(Self { metric: metric.to_owned(), ratio }),
            _ => Err(format!("{ratio:?} is not a positive number")),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn limits() {
        let cases = [
            ("start=0.6", Ok(Limit { metric: "start".into(), ratio: 0.6 })),
            ("pss=1", Ok(Limit { metric: "pss".into(), ratio: 1.0 })),
            ("start", Err("is not METRIC=RATIO")),
            ("begin=1", Err("no metric \"begin\"")),
            ("start=0", Err("not a positive number")),
            ("start=-1", Err("not a positive number")),
            ("start=NaN", Err("not a positive number")),
            ("start=inf", Err("not a positive number")),
            ("start=", Err("not a positive number")),
        ];
        for (text, expected) in cases {
            match (text.parse::<Limit>(), expected) {
                (Ok(got), Ok(wanted)) => assert_eq!(got, wanted),
                (Err(got), Err(wanted)) => assert!(got.contains(wanted), "{text}: {got}"),
                (got, _) => panic!("{text}: {got:?}"),
            }
        }
    }

    #[test]
    fn command_lines() {
        let good = [
            "cri-bench --ours unix:///a --image b",
            "cri-bench --ours unix:///a --peer unix:///b --peer-pid 7 --image b --max-ratio start=0.6,exec=0.7 -o json",
            "cri-bench --ours unix:///a --image b -- sleep 10",
        ];
        let bad = [
            "cri-bench --image b",
            "cri-bench --ours unix:///a",
            "cri-bench --ours unix:///a --image b --rounds 0",
            "cri-bench --ours unix:///a --image b --peer-pid 7",
            "cri-bench --ours unix:///a --image b --max-ratio start=0.6",
            "cri-bench --ours unix:///a --image b sleep",
        ];
        for line in good {
            assert!(Arguments::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        for line in bad {
            assert!(Arguments::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
