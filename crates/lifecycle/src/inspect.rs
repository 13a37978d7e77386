//! What tools beside the kubelet ask about one container: cAdvisor above all, over the HTTP side door.

use std::collections::BTreeMap;

use domain::id::ContainerId;
use domain::name;
use domain::spec::annotations::{LOG_PATH, MOUNT_POINT};

use crate::blocking;
use crate::container::Container;
use crate::node::Node;
use crate::sandbox::Sandbox;

/// A container or infra container, in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// Reserved name.
    pub name: String,
    /// Its first process; 0 when it has none. For a sandbox without infra process, one of its containers' instead, since
    /// whoever asks wants the pod's network.
    pub pid: i32,
    /// A name of its image.
    pub image: String,
    /// `repository@digest` if known, else the id of the image.
    pub image_ref: String,
    /// When it was made, in nanoseconds since the epoch.
    pub created_nanos: i64,
    /// Labels of the request.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the request.
    pub annotations: BTreeMap<String, String>,
    /// Annotations of its runtime spec.
    pub spec_annotations: BTreeMap<String, String>,
    /// Its log.
    pub log_path: String,
    /// Where its root file system is mounted.
    pub root: String,
    /// Its sandbox.
    pub sandbox: String,
    /// Addresses of its sandbox.
    pub ips: Vec<String>,
    /// The sandbox uses the node's network.
    pub is_on_host_network: bool,
}

impl Node {
    /// The container, infra container or sandbox with exactly this id. Source: CRI-O, which takes no abbreviation here.
    pub async fn inspect(&self, id: &str) -> Option<Inspection> {
        let id = ContainerId::parse(id).ok()?;
        let container = self.objects.container(&id);
        let sandbox = match &container {
            Some(container) => self.objects.sandbox(&container.sandbox)?,
            None => self.objects.find_sandbox(id.as_str()).ok().filter(|sandbox| sandbox.id.as_str() == id.as_str())?,
        };
        let directory = self.store.container_dir(&id);
        let spec = blocking::run("read spec", move || state_store::spec::load_spec(&directory)).await;
        let spec_annotations = spec.ok().flatten().unwrap_or_default().annotations;
        let mut inspection = match container.filter(|container| !container.is_infra()) {
            Some(container) => of_container(&container, spec_annotations),
            None => self.of_sandbox(&sandbox, spec_annotations),
        };
        inspection.ips = sandbox.ips.iter().map(ToString::to_string).collect();
        inspection.is_on_host_network = sandbox.is_on_host_network();
        Some(inspection)
    }

    fn of_sandbox(&self, sandbox: &Sandbox, spec_annotations: BTreeMap<String, String>) -> Inspection {
        let pid_of = |container: &Container| container.state().init().map(|init| init.pid);
        let infra_pid = sandbox.infra.as_deref().and_then(pid_of);
        let any_pid = || self.objects.containers_of(&sandbox.id).iter().find_map(|container| pid_of(container));
        let text = |key: &str| spec_annotations.get(key).cloned().unwrap_or_default();
        Inspection {
            name: name::infra_name(&sandbox.config.metadata),
            pid: infra_pid.or_else(any_pid).unwrap_or(0),
            image: sandbox.infra.as_ref().map(|infra| infra.image.name.clone()).unwrap_or_default(),
            image_ref: sandbox.infra.as_ref().map(|infra| infra.image.reference.clone()).unwrap_or_default(),
            created_nanos: sandbox.created.nanos(),
            labels: sandbox.config.labels.clone(),
            annotations: sandbox.config.annotations.clone(),
            log_path: text(LOG_PATH),
            root: text(MOUNT_POINT),
            sandbox: sandbox.id.to_string(),
            ips: Vec::new(),
            is_on_host_network: false,
            spec_annotations,
        }
    }
}

fn of_container(container: &Container, spec_annotations: BTreeMap<String, String>) -> Inspection {
    Inspection {
        name: container.name.clone(),
        pid: container.state().init().map_or(0, |init| init.pid),
        image: container.image.name.clone(),
        image_ref: container.image.reference.clone(),
        created_nanos: container.created.nanos(),
        labels: container.config.labels.clone(),
        annotations: container.config.annotations.clone(),
        log_path: container.log.display().to_string(),
        root: spec_annotations.get(MOUNT_POINT).cloned().unwrap_or_default(),
        sandbox: container.sandbox.to_string(),
        ips: Vec::new(),
        is_on_host_network: false,
        spec_annotations,
    }
}
