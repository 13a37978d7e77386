//! Seccomp profiles: from what a request chose to what a runtime spec says.
//!
//! A profile is either the [built-in one](built_in) or a JSON file in the format that Docker and containers/common
//! share ([`Profile`]). Both hold rules that depend on the container's capabilities and on the machine; [`Profiles`]
//! resolves them into a `LinuxSeccomp`, which has no conditions left, and remembers the last few.

pub mod built_in;
mod errno;
mod host;
mod notify;
mod parse;
mod profiles;
mod resolve;
mod syscalls;

pub use host::{Availability, Host, KernelVersion};
pub use notify::{
    Notifying, PROCESS_STATE_MAX_BYTES, ProcessState, ProcessStateError, fuzz_process_state, notifying,
    parse_process_state,
};
pub use parse::{PROFILE_MAX_BYTES, ParseProfileError, fuzz_profile};
pub use profiles::{ConfiguredPaths, DefaultOrigin, LoadProfileError, Profiles, ReadProfileError, ResolveProfileError};
pub use resolve::Profile;
pub use syscalls::name as syscall_name;
