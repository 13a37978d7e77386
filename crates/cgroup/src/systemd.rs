//! Cgroups where systemd owns the tree: scopes, made over D-Bus.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use domain::spec::{CgroupPathError, slice_path};
use thiserror::Error;

use crate::dbus::{CallError, Connection, Value};
use crate::tree::read;

/// Where systemd listens for its own tools: root may talk to it without a bus. It is there as long as systemd runs.
const PRIVATE_SOCKET: &str = "/run/systemd/private";
/// The system bus, for kernels and policies that keep the private socket away.
const BUS_SOCKET: &str = "/run/dbus/system_bus_socket";
/// How long systemd may take for one call. It answers in milliseconds unless it is reloading, which takes seconds on a
/// big node.
const CALL_TIMEOUT: Duration = Duration::from_secs(25);
/// How long the scope's process may take to arrive in it once the job is queued.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(10);
/// How often its arrival is looked at.
const ARRIVAL_POLL: Duration = Duration::from_millis(2);
/// Longest unit name systemd takes (`UNIT_NAME_MAX`).
const UNIT_NAME_MAX_BYTES: usize = 255;

/// A name or value systemd, or a reader of its files, could take for more than it is (CVE-2024-3154).
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UnitError {
    /// The name of a unit.
    #[error("{name:?} is not the name of a {kind} unit")]
    Name {
        /// As given.
        name: String,
        /// `scope` or `slice`.
        kind: &'static str,
    },
    /// The slice of a unit.
    #[error(transparent)]
    Slice(#[from] CgroupPathError),
}

/// Why a scope was not made.
#[derive(Debug, Error)]
pub enum StartScopeError {
    /// A bad name.
    #[error(transparent)]
    Unit(#[from] UnitError),
    /// systemd cannot be reached.
    #[error("connect to systemd at {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It did not do it.
    #[error("start scope {unit} with process {pid}")]
    Call {
        /// The scope.
        unit: String,
        /// The process.
        pid: i32,
        /// Why.
        #[source]
        source: CallError,
    },
    /// It said yes, and the process is elsewhere.
    #[error("process {pid} did not arrive in scope {unit} within {} s", ARRIVAL_TIMEOUT.as_secs())]
    NotArrived {
        /// The scope.
        unit: String,
        /// The process.
        pid: i32,
    },
}

/// Properties of the monitor's scope that the daemon sets. A closed list: no property comes from text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScopeProperty {
    /// Stop this unit before that one at shutdown; a unit name.
    After(String),
    /// Signal number systemd sends when it stops the scope.
    KillSignal(i32),
    /// Whether the process may make cgroups below.
    Delegate(bool),
    /// CPUs on v2, as a bit set with the lowest CPU in the lowest bit of the first byte.
    AllowedCpus(Vec<u8>),
    /// CPU weight on v1.
    CpuShares(u64),
    /// Least memory on v2, in bytes.
    MemoryMin(u64),
}

impl ScopeProperty {
    /// What CRI-O gives its monitors: they outlive the containers at shutdown, and SIGPIPE they ignore.
    #[must_use]
    pub fn of_monitors() -> Vec<Self> {
        const SIGPIPE: i32 = 13;
        vec![Self::KillSignal(SIGPIPE), Self::After("crio.service".to_owned())]
    }

    fn to_value(&self) -> Result<(&'static str, Value), UnitError> {
        Ok(match self {
            Self::After(unit) => {
                check_unit_name(unit, &[".service", ".scope", ".slice", ".target"], "ordering")?;
                ("After", Value::StringList(vec![unit.clone()]))
            }
            Self::KillSignal(number) => ("KillSignal", Value::I32(*number)),
            Self::Delegate(is_delegated) => ("Delegate", Value::Bool(*is_delegated)),
            Self::AllowedCpus(bits) => ("AllowedCPUs", Value::Bytes(bits.clone())),
            Self::CpuShares(shares) => ("CPUShares", Value::U64(*shares)),
            Self::MemoryMin(bytes) => ("MemoryMin", Value::U64(*bytes)),
        })
    }
}

fn check_unit_name(name: &str, suffixes: &[&str], kind: &'static str) -> Result<(), UnitError> {
    let stem = suffixes.iter().find_map(|suffix| name.strip_suffix(suffix));
    let is_good = name.len() <= UNIT_NAME_MAX_BYTES
        && stem.is_some_and(|stem| {
            let is_character =
                |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':' | b'\\' | b'@');
            !stem.is_empty() && stem.bytes().all(is_character)
        });
    if is_good { Ok(()) } else { Err(UnitError::Name { name: name.chars().take(100).collect(), kind }) }
}

/// Whether systemd runs this machine. Source: sd_booted(3).
#[must_use]
pub fn is_running() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Asks systemd for a transient scope with one process in it, and returns when the process is in it.
///
/// `unit` ends in `.scope`, `slice` in `.slice`. Blocks for up to 35 seconds, usually for some milliseconds. The scope
/// goes away with its last process. Source: org.freedesktop.systemd1(5), `StartTransientUnit`.
pub fn start_scope(unit: &str, slice: &str, pid: i32, properties: &[ScopeProperty]) -> Result<(), StartScopeError> {
    check_unit_name(unit, &[".scope"], "scope")?;
    slice_path(slice).map_err(UnitError::Slice)?;
    let pid_number = u32::try_from(pid)
        .ok()
        .filter(|pid| *pid > 0)
        .ok_or(StartScopeError::NotArrived { unit: unit.to_owned(), pid })?;
    let mut values = vec![
        ("Description", Value::String("monitor of a container".to_owned())),
        ("Slice", Value::String(slice.to_owned())),
        ("PIDs", Value::U32List(vec![pid_number])),
        ("DefaultDependencies", Value::Bool(true)),
        // Otherwise a scope whose process was killed stays as failed, and its name is taken.
        ("CollectMode", Value::String("inactive-or-failed".to_owned())),
    ];
    for property in properties {
        values.push(property.to_value()?);
    }
    let call_error = |source| StartScopeError::Call { unit: unit.to_owned(), pid, source };
    let mut connection = connect()?;
    // "fail": a unit of that name with other processes is an error, not something to replace.
    connection.start_transient_unit(unit, "fail", &values).map_err(call_error)?;
    wait_for_arrival(unit, pid)
}

/// Sets the CPU time a slice or scope may use, in microseconds a second; `None` is no limit. Until the next boot.
///
/// Source: org.freedesktop.systemd1(5), `SetUnitProperties` and `CPUQuotaPerSecUSec`.
pub fn set_cpu_quota(unit: &str, micros_a_second: Option<u64>) -> Result<(), StartScopeError> {
    check_unit_name(unit, &[".slice", ".scope"], "slice or scope")?;
    let value = Value::U64(micros_a_second.unwrap_or(u64::MAX));
    connect()?.set_unit_properties(unit, &[("CPUQuotaPerSecUSec", value)]).map_err(|source| StartScopeError::Call {
        unit: unit.to_owned(),
        pid: 0,
        source,
    })
}

fn connect() -> Result<Connection, StartScopeError> {
    let mut last = None;
    for (path, has_bus) in [(PRIVATE_SOCKET, false), (BUS_SOCKET, true)] {
        match Connection::open(Path::new(path), has_bus, CALL_TIMEOUT) {
            Ok(connection) => return Ok(connection),
            Err(source) => last = Some(StartScopeError::Connect { path: path.into(), source }),
        }
    }
    Err(last.unwrap_or(StartScopeError::Connect { path: BUS_SOCKET.into(), source: io::ErrorKind::NotFound.into() }))
}

/// The kernel says where a process is; that is what counts, whatever became of the job.
fn wait_for_arrival(unit: &str, pid: i32) -> Result<(), StartScopeError> {
    let start = Instant::now();
    loop {
        let text = read(Path::new(&format!("/proc/{pid}/cgroup"))).unwrap_or_default();
        // On v1 systemd moves it in its own hierarchy first and in the others with it.
        if text.lines().any(|line| line.rsplit('/').next() == Some(unit)) {
            return Ok(());
        }
        if text.is_empty() || start.elapsed() > ARRIVAL_TIMEOUT {
            return Err(StartScopeError::NotArrived { unit: unit.to_owned(), pid });
        }
        std::thread::sleep(ARRIVAL_POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sleeper(std::process::Child);

    impl Sleeper {
        fn start() -> (Self, i32) {
            let child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep starts");
            let pid = i32::try_from(child.id()).expect("a pid");
            (Self(child), pid)
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn property(unit: &str, name: &str) -> String {
        let shown =
            std::process::Command::new("systemctl").args(["show", "-P", name, unit]).output().expect("systemctl runs");
        String::from_utf8_lossy(&shown.stdout).trim().to_owned()
    }

    /// On a node with systemd; elsewhere it says that it was skipped.
    #[test]
    fn systemd_makes_scopes_and_takes_them_away() {
        if !is_running() {
            println!("SKIPPED: systemd does not run this machine");
            return;
        }
        let unit = format!("crio-test-{}.scope", std::process::id());
        let slice = format!("crio_test_{}-inner.slice", std::process::id());
        let (sleeper, pid) = Sleeper::start();
        let mut properties = ScopeProperty::of_monitors();
        properties.extend([ScopeProperty::Delegate(true), ScopeProperty::AllowedCpus(vec![1])]);
        properties.push(ScopeProperty::MemoryMin(1 << 20));
        let start = Instant::now();
        start_scope(&unit, &slice, pid, &properties).expect("starts");
        println!("the process was in its scope after {:?}", start.elapsed());
        let cgroup = read(Path::new(&format!("/proc/{pid}/cgroup"))).expect("reads");
        assert!(cgroup.contains(&format!("{}/{unit}", slice_path(&slice).expect("valid"))), "{cgroup}");
        for (name, expected) in [
            ("KillSignal", "13"),
            ("Delegate", "yes"),
            ("AllowedCPUs", "0"),
            ("MemoryMin", "1048576"),
            ("Slice", &slice),
        ] {
            assert_eq!(property(&unit, name), expected, "{name}");
        }
        assert!(property(&unit, "After").contains("crio.service"));

        let (_second, other) = Sleeper::start();
        let again = start_scope(&unit, &slice, other, &[]);
        let Err(StartScopeError::Call { source: CallError::Refused { name, .. }, .. }) = again else {
            panic!("a name in use was accepted: {again:?}")
        };
        assert_eq!(name, "org.freedesktop.systemd1.UnitExists");

        drop(sleeper);
        let since = Instant::now();
        while property(&unit, "LoadState") != "not-found" {
            assert!(since.elapsed() < Duration::from_secs(20), "the scope goes with its last process");
            std::thread::sleep(Duration::from_millis(50));
        }
        let mut bus = Connection::open(Path::new(BUS_SOCKET), true, CALL_TIMEOUT).expect("the bus accepts us");
        let values = [("PIDs", Value::U32List(vec![u32::try_from(other).expect("a pid")]))];
        bus.start_transient_unit(&unit, "fail", &values).expect("starts over the bus");
        wait_for_arrival(&unit, other).expect("arrives");
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        if !is_running() {
            println!("SKIPPED: systemd does not run this machine");
            return;
        }
        let (sleeper, pid) = Sleeper::start();
        drop(sleeper);
        let unit = format!("crio-test-gone-{}.scope", std::process::id());
        assert!(start_scope(&unit, "system.slice", pid, &[]).is_err());
    }

    #[test]
    fn units_have_plain_names() {
        for (name, ok) in [
            ("crio-conmon-abc.scope", true),
            ("a.b@c.scope", true),
            (".scope", false),
            ("a.service", false),
            ("a b.scope", false),
            ("a/b.scope", false),
            ("a\nExecStart=x.scope", false),
            (&format!("{}.scope", "x".repeat(250)), false),
        ] {
            assert_eq!(check_unit_name(name, &[".scope"], "scope").is_ok(), ok, "{name:?}");
        }
        assert!(ScopeProperty::After("crio.service\nExecStart=x".into()).to_value().is_err());
        assert!(matches!(start_scope("a.scope", "a--b.slice", 1, &[]), Err(StartScopeError::Unit(_))));
    }
}
