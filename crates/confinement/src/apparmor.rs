//! AppArmor: which profile a container gets, and the default one, loaded into the kernel.
//!
//! The kernel keeps profiles by name; a runtime spec only names one. So a name is looked up before anything is made,
//! and the [built-in profile](built_in) is loaded through `apparmor_parser`, which knows the kernel's binary form.

mod built_in;
mod kernel;
mod parser;
mod profiles;

pub use built_in::DEFAULT_NAME;
pub use kernel::{Availability, KernelError, Machine, fuzz_profiles};
pub use parser::ParserError;
pub use profiles::{DefaultOrigin, LoadProfileError, Profiles, ResolveProfileError};
