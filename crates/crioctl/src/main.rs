//! The binary: hands its arguments to the library of the same name and ends with the status that comes back.
//! What it promises and must not know stands there.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    crioctl::run_process()
}
