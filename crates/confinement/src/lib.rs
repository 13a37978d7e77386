//! What a container may do, as the kernel is told: seccomp profiles.
//!
//! Promises: nothing here changes the calling process; files of others are read whole, bounded, and refused with a
//! reason when they are not what they should be. Must not know: configuration files, runtimes, images, who asks.
//! Capabilities are `domain::spec::CapabilitySet`; AppArmor and SELinux labels are written by name and have no
//! mechanism here. Begin reading at [`seccomp::Profiles`].
#![forbid(unsafe_code)]

pub mod seccomp;
