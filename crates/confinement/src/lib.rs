//! What a container may do, as the kernel is told: seccomp and AppArmor profiles, SELinux labels.
//!
//! Promises: nothing here changes the calling process; files of others are read whole, bounded, and refused with a
//! reason when they are not what they should be. Must not know: configuration files, runtimes, images, who asks.
//! Capabilities are `domain::spec::CapabilitySet`. Begin reading at [`seccomp::Profiles`] and [`apparmor::Profiles`].
#![forbid(unsafe_code)]

pub mod apparmor;
pub mod seccomp;
pub mod selinux;
