//! SELinux labels: decided with the plan of a sandbox or container, then written wherever one of them is seen.
//!
//! A sandbox has one level that nobody else has, and so have its containers unless they ask for another. The store's
//! records keep both labels, as CRI-O's do, so that a restart takes up the same levels.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use config::{Config, RuntimeType};
use confinement::selinux::{LabelsError, Machine, OpenError, RelabelError, Relabelled, Reservation, Selinux};
use domain::container::{ContainerConfig, Mount};
use domain::image::ImageConfig;
use domain::sandbox::SandboxConfig;
use domain::security::NamespaceMode;
use domain::selinux::{Label, Labels, Workload};
use domain::spec::{GeneratedFiles, ResolvedMount, SelinuxLabels};

use crate::create_container::CreateContainerError;
use crate::node::Node;
use crate::prepare_container::PrepareJob;
use crate::sandbox::Sandbox;
use crate::volumes::ImageVolume;
use crate::{blocking, mounts};

/// Its handlers run whole machines, whatever their type. Source: CRI-O.
const KATA: &str = "kata";
/// The pod annotation of volumes that may be taken at their word.
const SKIP_LABELLED: &str = "try-skip-volume-selinux-label.crio.io";

/// The labels of a sandbox; none where SELinux is off.
#[derive(Debug, Default)]
pub(crate) struct SandboxLabels {
    labels: Option<Labels>,
    /// Of its infra process, where that is a machine.
    infra: Option<Label>,
    /// Levels in use as long as the sandbox is there: its own and those its containers asked for.
    held: Mutex<Vec<Reservation>>,
}

impl SandboxLabels {
    pub(crate) fn process(&self) -> Option<&Label> {
        self.labels.as_ref().map(|labels| &labels.process)
    }

    pub(crate) fn mount(&self) -> Option<&Label> {
        self.labels.as_ref().map(|labels| &labels.mount)
    }

    /// Of the infra process and what it mounts.
    pub(crate) fn of_infra(&self) -> SelinuxLabels {
        SelinuxLabels { process: self.infra.as_ref().or(self.process()).cloned(), mount: self.mount().cloned() }
    }

    /// Keeps a level in use until the sandbox is gone.
    pub(crate) fn hold(&self, level: Reservation) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if !held.iter().any(|known| known.level() == level.level()) {
            held.push(level);
        }
    }
}

/// The labels of a container that is being made, and the hold on their level.
#[derive(Debug)]
pub(crate) struct ContainerLabels {
    pub(crate) labels: Labels,
    pub(crate) level: Reservation,
}

/// Texts of records; empty where SELinux is off.
pub(crate) fn text(label: Option<&Label>) -> String {
    label.map(ToString::to_string).unwrap_or_default()
}

/// The mount label of a sandbox as its spec and metadata have it: none where processes of the node are seen.
pub(crate) fn shown_mount_label<'a>(config: &SandboxConfig, labels: &'a SandboxLabels) -> Option<&'a Label> {
    let namespaces = &config.security.namespaces;
    labels.mount().filter(|_| namespaces.pid != NamespaceMode::Node && namespaces.ipc != NamespaceMode::Node)
}

/// Finds the policy if the configuration wants labels.
pub(crate) fn open(config: &Config) -> Result<Option<Arc<Selinux>>, OpenError> {
    if !config.runtime.selinux {
        return Ok(None);
    }
    let selinux = Selinux::open(Machine::default())?;
    tracing::info!("containers are labelled with SELinux");
    Ok(Some(Arc::new(selinux)))
}

impl Node {
    /// The labels of a sandbox to be made, known to the kernel.
    pub(crate) async fn sandbox_labels(
        &self,
        config: &SandboxConfig,
        handler: &str,
    ) -> Result<Arc<SandboxLabels>, LabelsError> {
        let Some(selinux) = self.selinux.clone() else { return Ok(Arc::default()) };
        let options = config.security.selinux.clone();
        let is_machine = self.is_machine(handler);
        blocking::run("choose SELinux labels", move || {
            let (labels, level) = selinux.labels(None, options.as_ref(), Workload::Ordinary)?;
            let infra = if is_machine { Some(selinux.machine_label(&labels.process)?) } else { None };
            Ok(Arc::new(SandboxLabels { labels: Some(labels), infra, held: Mutex::new(vec![level]) }))
        })
        .await
    }

    fn is_machine(&self, handler: &str) -> bool {
        let runtime = &self.config.runtime;
        let handler = if handler.is_empty() { &runtime.default_runtime } else { handler };
        let is_vm = runtime.runtimes.get(handler).is_some_and(|handler| handler.runtime_type == RuntimeType::Vm);
        is_vm || handler.to_ascii_lowercase().contains(KATA)
    }

    /// The labels of a container to be made, known to the kernel.
    pub(crate) async fn container_labels(
        &self,
        sandbox: &Sandbox,
        config: &ContainerConfig,
        image: &ImageConfig,
    ) -> Result<Option<ContainerLabels>, LabelsError> {
        let Some(selinux) = self.selinux.clone() else { return Ok(None) };
        let (base, options) = (sandbox.labels.process().cloned(), config.security.selinux.clone());
        let is_init = domain::spec::process_args(&config.command, &config.args, image)
            .is_ok_and(|args| domain::spec::is_systemd(&args));
        let workload = if is_init { Workload::Init } else { Workload::Ordinary };
        blocking::run("choose SELinux labels", move || {
            let (labels, level) = selinux.labels(base.as_ref(), options.as_ref(), workload)?;
            Ok(Some(ContainerLabels { labels, level }))
        })
        .await
    }

    /// Refuses volumes that are to be labelled and belong to the whole node, before anything is made.
    pub(crate) async fn check_volumes(
        &self,
        config: &ContainerConfig,
        labels: Option<&ContainerLabels>,
    ) -> Result<(), RelabelError> {
        if labels.is_none_or(|labels| labels.labels.process.is_super_privileged()) {
            return Ok(());
        }
        let wanted = config.mounts.iter().filter(|mount| mount.image.is_none() && mount.selinux_relabel);
        let paths: Vec<PathBuf> = wanted.map(|mount| mounts::host_path(&self.config, mount)).collect();
        blocking::run("look at volumes", move || {
            // What is absent is made later, and the node's own directories are not absent.
            paths
                .iter()
                .filter_map(|path| std::fs::canonicalize(path).ok())
                .try_for_each(|path| confinement::selinux::check_volume(&path))
        })
        .await
    }

    /// The labels of a sandbox of an earlier daemon, as the store recorded them.
    pub(crate) fn restored_labels(&self, process: &str, mount: &str) -> Arc<SandboxLabels> {
        let Some(selinux) = &self.selinux else { return Arc::default() };
        let (Ok(process), Ok(mount)) = (Label::parse(process), Label::parse(mount)) else { return Arc::default() };
        let held = Mutex::new(vec![selinux.hold(&process)]);
        Arc::new(SandboxLabels { labels: Some(Labels { process, mount }), infra: None, held })
    }

    /// Takes up the level of a container of an earlier daemon.
    pub(crate) fn hold_restored(&self, sandbox: &Sandbox, process: &str) {
        if let (Some(selinux), Ok(label)) = (&self.selinux, Label::parse(process)) {
            sandbox.labels.hold(selinux.hold(&label));
        }
    }
}

/// Labels the sandbox's files that every container of it sees.
///
/// Containers of one level keep them to themselves; where one has a level of its own, they are everybody's.
fn label_shared_files<'a>(
    files: impl IntoIterator<Item = &'a Path>,
    sandbox: Option<&Label>,
    container: &Label,
) -> io::Result<()> {
    let shared = container.shared();
    let wanted = if sandbox == Some(container) { container } else { &shared };
    let mut files = files.into_iter().filter(|path| !confinement::selinux::has_label(path, &shared));
    files.try_for_each(|path| confinement::selinux::label_file(path, wanted))
}

impl PrepareJob {
    /// Labels everything of the node that the container will see, and says what goes into its spec.
    pub(crate) fn label(
        &self,
        files: &GeneratedFiles,
        mounts: &[ResolvedMount],
        image_volumes: &[ResolvedMount],
    ) -> Result<SelinuxLabels, CreateContainerError> {
        let Some(labels) = &self.labels else { return Ok(SelinuxLabels::default()) };
        let failed = |source| CreateContainerError::Label { container: self.name.clone(), source };
        let own = [&files.passwd, &files.group, &files.localtime].into_iter().flatten();
        for path in own {
            confinement::selinux::label_file(Path::new(path), &labels.mount).map_err(failed)?;
        }
        // Source: CRI-O labels these for everybody.
        for volume in image_volumes {
            confinement::selinux::label_file(Path::new(&volume.source), &labels.mount.shared()).map_err(failed)?;
        }
        if !labels.process.is_super_privileged() {
            for blob in self.image_volumes.iter().flat_map(ImageVolume::files_to_label) {
                label_blob(blob, &labels.mount).map_err(failed)?;
            }
        }
        let of_sandbox = &self.sandbox.files;
        let shared = [&of_sandbox.resolv_conf, &of_sandbox.hostname, &of_sandbox.containerenv];
        let paths = shared.into_iter().map(PathBuf::as_path);
        label_shared_files(paths, self.sandbox.labels.mount(), &labels.mount).map_err(failed)?;
        let annotations = self.sandbox.effective_annotations();
        let skips_labelled = annotations.get(SKIP_LABELLED).is_some_and(|value| value == "true");
        relabel_volumes(&self.config.mounts, mounts, labels, skips_labelled)
            .map_err(|source| CreateContainerError::Relabel { container: self.name.clone(), source })?;
        Ok(SelinuxLabels { process: Some(labels.process.clone()), mount: Some(labels.mount.clone()) })
    }
}

/// A blob is read-only and may be in many pods, so that it is everybody's. In a store of others it is as it is.
fn label_blob(path: &Path, label: &Label) -> io::Result<()> {
    match confinement::selinux::label_file(path, &label.shared()) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(()),
        other => other,
    }
}

/// Gives the volumes of a request the label of who mounts them, where the request says so.
///
/// Those that belong to the whole node are refused before the first one is touched. With `skips_labelled`, a volume whose
/// own directory has the label is taken at its word.
fn relabel_volumes(
    mounts: &[Mount],
    resolved: &[ResolvedMount],
    labels: &Labels,
    skips_labelled: bool,
) -> Result<(), RelabelError> {
    if labels.process.is_super_privileged() {
        return Ok(());
    }
    let of_node = mounts.iter().filter(|mount| mount.image.is_none());
    let wanted: Vec<&Path> = of_node
        .zip(resolved)
        .filter(|(mount, _)| mount.selinux_relabel)
        .map(|(_, resolved)| Path::new(&resolved.source))
        .collect();
    for path in &wanted {
        confinement::selinux::check_volume(path)?;
    }
    for path in wanted {
        if skips_labelled && confinement::selinux::has_label(path, &labels.mount) {
            tracing::debug!(path = %path.display(), "a volume has its SELinux label already");
            continue;
        }
        if confinement::selinux::relabel(path, &labels.mount)? == Relabelled::Unsupported {
            tracing::debug!(path = %path.display(), "the file system of a volume has no SELinux labels");
        }
    }
    Ok(())
}
