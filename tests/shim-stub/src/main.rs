//! A shim for tests: containerd's runtime v2 over ttrpc, with containers run by crun, or as plain programs of the node.
//!
//! `STUB` in its environment makes it misbehave, see `Mode`. Must not know: who asks.
#![forbid(unsafe_code)]

mod serve;
mod tasks;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// How it behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Containers by crun.
    Crun,
    /// Programs of the node, without any confinement.
    Plain,
    /// Plain, and `Create` is never answered.
    HangCreate,
    /// No question is ever answered.
    HangAll,
    /// Answers are no frames.
    Garbage,
    /// Answers announce more than a frame may hold.
    Oversize,
    /// Frames hold no messages.
    NoMessage,
    /// The connection ends in the middle of the answer to `Create`.
    Torn,
    /// Plain, and it says that it is process 1.
    LyingPid,
    /// Plain, and `Create` is refused.
    Refuse,
    /// Plain, and no signal is ever answered.
    HangKill,
}

impl Mode {
    fn of_environment() -> Self {
        match std::env::var("STUB").as_deref() {
            Ok("plain") => Self::Plain,
            Ok("hang-create") => Self::HangCreate,
            Ok("hang-all") => Self::HangAll,
            Ok("garbage") => Self::Garbage,
            Ok("oversize") => Self::Oversize,
            Ok("no-message") => Self::NoMessage,
            Ok("torn") => Self::Torn,
            Ok("lying-pid") => Self::LyingPid,
            Ok("refuse") => Self::Refuse,
            Ok("hang-kill") => Self::HangKill,
            Ok("") | Err(_) => Self::Crun,
            Ok(other) => panic!("STUB={other} is no mode"),
        }
    }
}

/// Where everything of a pod lies: the bundle of its sandbox, as the annotations name it.
fn sandbox_bundle(bundle: &Path) -> PathBuf {
    let text = std::fs::read(bundle.join("config.json")).unwrap_or_default();
    let spec: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    let annotation = |name: &str| spec["annotations"][format!("io.kubernetes.cri-o.{name}")].as_str();
    match (annotation("ContainerType"), annotation("SandboxID")) {
        (Some("container"), Some(sandbox)) => bundle.join("../..").join(sandbox).join("userdata"),
        _ => bundle.to_owned(),
    }
}

fn start(bundle: &Path) {
    let sandbox = sandbox_bundle(bundle);
    let own = sandbox == bundle;
    let address = if own {
        let exe = std::env::current_exe().expect("an executable");
        let serve = Command::new(exe).arg("serve").stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        // It outlives us.
        drop(serve.expect("starts itself"));
        let socket = bundle.join("shim.sock");
        let deadline = Instant::now() + Duration::from_secs(10);
        while !socket.exists() {
            assert!(Instant::now() < deadline, "the shim does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        format!("unix://{}", socket.display())
    } else {
        std::fs::read_to_string(sandbox.join("address")).expect("the sandbox has a shim")
    };
    let mut file = File::create(bundle.join("address")).expect("creates");
    file.write_all(address.as_bytes()).expect("writes");
    // Half of the world's shims print one form, half the other.
    if own {
        print!("{{\"version\":2,\"address\":{address:?},\"protocol\":\"ttrpc\"}}");
    } else {
        print!("{address}");
    }
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let (mut id, mut bundle) = (String::new(), std::env::current_dir().expect("a directory"));
    while let Some(word) = words.next() {
        match word.as_str() {
            "-namespace" => assert_eq!(words.next().as_deref(), Some("default")),
            "-address" => drop(words.next()),
            "-publish-binary" => {
                let publish = words.next().expect("a binary");
                assert!(Path::new(&publish).is_file(), "{publish:?} publishes nothing");
            }
            "-id" => id = words.next().expect("an id"),
            "-bundle" => bundle = words.next().expect("a bundle").into(),
            "-debug" => {}
            "-v" => println!("containerd-shim-stub-v2:\n  Version: 1"),
            "start" => start(&bundle),
            "delete" => tasks::clean_up(&id, &bundle, &sandbox_bundle(&bundle)),
            "serve" => serve::serve(Mode::of_environment(), &bundle),
            other => {
                eprintln!("{other} is nothing");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
