//! The program `crio-pull-image`: pulls an image for a daemon that runs it in another cgroup.

use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;

use tokio::net::unix::pipe::{Receiver, Sender};

/// Threads that carry tasks; unpacking has threads of its own.
const WORKERS: usize = 2;
/// Allocator arenas, see [`sys::memory::limit_arenas`].
const ARENAS: u32 = 2;

/// Does what standard input says. Standard input and output are the daemon's pipes.
pub(crate) fn run() -> ExitCode {
    sys::memory::limit_arenas(ARENAS);
    match answer() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", lifecycle::PULL_PROGRAM);
            ExitCode::FAILURE
        }
    }
}

fn answer() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()?;
    let answered = runtime.block_on(async {
        let input = Receiver::from_owned_fd(io::stdin().as_fd().try_clone_to_owned()?)?;
        let mut output = Sender::from_owned_fd(io::stdout().as_fd().try_clone_to_owned()?)?;
        lifecycle::pull_for_parent(input, &mut output).await
    });
    runtime.shutdown_background();
    answered
}
