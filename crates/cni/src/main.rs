//! `crio-cni`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    cni::main()
}
