//! SELinux: labels that the kernel knows and nobody else has, and volumes that get them.
//!
//! What a label is made of is `domain::selinux`; here is what has to be looked up or done: the policy's file, the
//! kernel's opinion of a label, levels that are in use, and the extended attribute of every file in a volume.

mod kernel;
mod levels;
mod relabel;

pub use kernel::{CheckLabelError, Machine};
pub use levels::Reservation;
pub use relabel::{RelabelError, Relabelled, check_volume, has_label, label_file, relabel};

use std::io;
use std::path::PathBuf;

use domain::security::SelinuxOptions;
use domain::selinux::{BadLabel, Label, Labels, Policy, PolicyError, Workload};
use thiserror::Error;

use levels::Levels;

/// Why labels cannot be used.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The kernel does not enforce any policy.
    #[error("selinux is enabled in the configuration, but not on this host")]
    NotEnabled,
    /// The policy has no file about containers, or it cannot be read.
    #[error("read the labels of containers from {path}")]
    Contexts {
        /// Where.
        path: PathBuf,
        #[source]
        /// The system's answer.
        source: io::Error,
    },
    /// The policy's file is of no use.
    #[error("labels of containers in {path}")]
    Policy {
        /// Where.
        path: PathBuf,
        #[source]
        /// What is wrong.
        source: PolicyError,
    },
}

/// Why a sandbox or container cannot have the labels it asks for. Nothing has been made when it is returned.
#[derive(Debug, Error)]
pub enum LabelsError {
    /// Its parts make no label.
    #[error(transparent)]
    Bad(#[from] BadLabel),
    /// The kernel does not know it.
    #[error(transparent)]
    Check(#[from] CheckLabelError),
    /// No random bytes.
    #[error("draw an SELinux level")]
    Draw(#[source] io::Error),
    /// Half a million pods.
    #[error("every SELinux level is in use")]
    NoLevel,
}

/// The node's policy and the levels in use.
#[derive(Debug)]
pub struct Selinux {
    machine: Machine,
    policy: Policy,
    levels: Levels,
    /// Never given to a pod.
    _reserved: Reservation,
}

impl Selinux {
    /// Finds the policy of a kernel that has one.
    pub fn open(machine: Machine) -> Result<Self, OpenError> {
        if !machine.is_enabled() {
            return Err(OpenError::NotEnabled);
        }
        let (path, read) = machine.contexts();
        let text = match read {
            Ok(text) => text,
            Err(source) => return Err(OpenError::Contexts { path, source }),
        };
        let policy = Policy::parse(&text).map_err(|source| OpenError::Policy { path, source })?;
        let levels = Levels::default();
        let reserved = levels.hold(&Policy::reserved_level());
        Ok(Self { machine, policy, levels, _reserved: reserved })
    }

    /// The labels of a sandbox, or of a container in the sandbox whose process label is `base`, in the kernel's spelling,
    /// and the hold on their level. A level is drawn when neither `base` nor `options` brings one.
    pub fn labels(
        &self,
        base: Option<&Label>,
        options: Option<&SelinuxOptions>,
        workload: Workload,
    ) -> Result<(Labels, Reservation), LabelsError> {
        let is_given = base.is_some() || options.is_some_and(|options| !options.level.is_empty());
        let drawn = if is_given || !self.policy.has_levels() { None } else { Some(self.levels.draw()?) };
        let fresh = drawn.as_ref().map_or("", Reservation::level);
        let wanted = self.policy.labels(base, options, fresh, workload)?;
        let labels =
            Labels { process: self.machine.check(&wanted.process)?, mount: self.machine.check(&wanted.mount)? };
        let reservation = drawn.unwrap_or_else(|| self.levels.hold(labels.process.level()));
        Ok((labels, reservation))
    }

    /// Holds the level of a label that is in use already.
    #[must_use]
    pub fn hold(&self, label: &Label) -> Reservation {
        self.levels.hold(label.level())
    }

    /// The label of a process that is a whole machine.
    pub fn machine_label(&self, process: &Label) -> Result<Label, LabelsError> {
        Ok(self.machine.check(&self.policy.machine(process))?)
    }
}
