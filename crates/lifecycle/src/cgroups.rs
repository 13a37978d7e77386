//! cgroups of sandboxes and monitors.

use config::{CgroupManager, MonitorCgroup};
use domain::id::SandboxId;
use domain::spec::{CgroupManagerKind, CgroupPlacement, CgroupVersion};

use crate::undo::Undone;

/// temporary
pub(crate) struct Cgroups {
    kind: CgroupManagerKind,
}

impl Cgroups {
    pub(crate) fn detect(manager: CgroupManager) -> Result<Self, std::io::Error> {
        Ok(Self {
            kind: match manager {
                CgroupManager::Systemd => CgroupManagerKind::Systemd,
                CgroupManager::Cgroupfs => CgroupManagerKind::Cgroupfs,
            },
        })
    }
    pub(crate) fn kind(&self) -> CgroupManagerKind {
        self.kind
    }
    pub(crate) fn version(&self) -> CgroupVersion {
        CgroupVersion::V1
    }
    pub(crate) fn placement(&self, parent: &str) -> CgroupPlacement {
        CgroupPlacement { manager: self.kind, parent: parent.to_owned() }
    }
    pub(crate) async fn create_sandbox(&self, _parent: &str, _id: &SandboxId) -> Undone {
        Ok(())
    }
    pub(crate) async fn remove_sandbox(&self, _parent: &str, _id: &SandboxId) -> Undone {
        Ok(())
    }
    pub(crate) fn place_monitor(&self, _cgroup: &MonitorCgroup, _parent: &str, _id: &str, _pid: i32) {}
}
