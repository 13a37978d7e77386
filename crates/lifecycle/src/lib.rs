//! The life of sandboxes, containers and images on this node: the order of steps, their undoing, and what a restart
//! repairs.
//!
//! Promises: every change is one operation keyed by its object and owned here, not by whoever asked; asking again joins
//! it; hanging up tears nothing. What fails is undone, newest step first. A daemon that starts up finishes or undoes what
//! an earlier one left. No lock is held across anything that can block others for long.
//! Must not know: protobuf, gRPC codes, how adapters do their work.
//! Begin reading at [`Node`], then `run_sandbox`, `create_container`, `ends` and `restore`.
#![forbid(unsafe_code)]

mod apparmor;
mod artifacts;
mod blocking;
mod cgroups;
mod claims;
mod classes;
mod clock;
mod container;
mod cpus;
mod create_container;
mod devices;
mod encrypted;
mod ends;
mod events;
mod exec_session;
mod exec_sync;
mod facts;
mod fips;
mod handler;
mod image;
mod in_flight;
mod infra;
mod injected;
mod inspect;
mod limits;
mod linked_logs;
mod monitors;
mod mounts;
mod node;
mod node_files;
mod objects;
mod pause;
mod prepare_container;
mod pull_auth;
mod pull_image;
mod pull_layers;
mod pull_parts;
mod pull_process;
mod pull_progress;
mod puller;
mod reach;
mod registries_watch;
mod remove_container;
mod remove_sandbox;
mod reopen_log;
mod restore;
mod run_sandbox;
mod sandbox;
mod sandbox_files;
mod sandbox_namespaces;
mod seccomp_artifact;
mod seccomp_notifier;
mod secrets;
mod selinux;
mod shim;
mod start_container;
mod stats;
mod stop_container;
mod stop_sandbox;
mod storage;
mod target;
mod timezone;
mod trust;
mod tune_container;
mod tuning;
mod undelivered;
mod undo;
mod update_container;
mod user_files;
mod userns;
mod volumes;
mod wanted;
mod working_directory;

pub use classes::NoRdt;
pub use container::{Container, ContainerImage, ContainerUser};
pub use create_container::CreateContainerError;
pub use devices::ResolveDeviceError;
pub use ends::ReleaseError;
pub use events::{Event, EventKind, SandboxSnapshot, Subscription};
pub use exec_session::{AttachPoint, ExecSession, SessionEnd, SessionError, SessionStdio, SessionStreams};
pub use exec_sync::{ExecSyncEnd, ExecSyncError};
pub use image::{ImageFsUsage, ImageLookup, ImageStatus, ImagesError, RemoveImageError, ResolveNameError};
pub use image_pull::ErrorKind as RegistryErrorKind;
pub use image_pull::auth::RequestAuth;
pub use image_store::{Depth as CheckDepth, OnContainers, RepairError, Report as CheckReport};
pub use inspect::Inspection;
pub use mounts::ResolveMountError;
pub use node::{HandlerStatus, Node, NodeStatus, OpenNodeError, RegistryFiles, Wipe};
pub use node_files::NodeFilesError;
pub use objects::LookupError;
pub use pause::PauseError;
pub use pull_image::{PullFailure, PullImageError, PullOrder, PullPurpose};
pub use pull_process::{PULL_PROGRAM, pull_for_parent};
pub use pull_progress::{LayerProgress, LayerState, PullProgress};
pub use remove_container::RemoveContainerError;
pub use remove_sandbox::RemoveSandboxError;
pub use reopen_log::ReopenLogError;
pub use run_sandbox::RunSandboxError;
pub use sandbox::Sandbox;
pub use seccomp_artifact::SeccompArtifactError;
pub use start_container::StartContainerError;
pub use stats::{
    CgroupStats, ContainerMetrics, ContainerStats, Interface, NetworkStats, Pressure, SandboxMetrics, SandboxStats,
    Stall, Statistics, Usage, WritableLayer, fuzz_interfaces,
};
pub use stop_container::{Grace, StopContainerError};
pub use stop_sandbox::StopSandboxError;
pub use storage::{ByForce, Storage, StorageError, Wiped, was_shutdown_unclean};
pub use trust::TrustError;
pub use tuning::TuneError;
pub use update_container::UpdateContainerError;
pub use userns::UserNamespaceError;
pub use volumes::ImageVolumeError;
