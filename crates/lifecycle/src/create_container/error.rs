//! Why a container is not created.

use std::io;
use std::path::PathBuf;

use confinement::selinux::{LabelsError, RelabelError};
use confinement::{apparmor, seccomp};
use domain::id::SandboxId;
use domain::spec::SpecError;
use domain::user::ResolveUserError;
use domain::userns::UsernsError;
use runtime_client::create::CreateError;
use thiserror::Error;

use crate::devices::ResolveDeviceError;
use crate::mounts::ResolveMountError;
use crate::node_files::NodeFilesError;
use crate::objects::LookupError;
use crate::seccomp_artifact::SeccompArtifactError;
use crate::target::TargetError;
use crate::trust::TrustError;
use crate::volumes::ImageVolumeError;
/// Why a container was not created. Everything done so far has been undone.
#[derive(Debug, Error)]
pub enum CreateContainerError {
    /// No such sandbox.
    #[error("specified sandbox not found")]
    Sandbox(#[source] LookupError),
    /// Its sandbox was stopped.
    #[error("CreateContainer failed as the sandbox was stopped: {sandbox}")]
    SandboxNotReady {
        /// The sandbox.
        sandbox: SandboxId,
    },
    /// A privileged container in a pod that is not.
    #[error("no privileged container allowed in sandbox {sandbox}")]
    NotPrivileged {
        /// The sandbox.
        sandbox: SandboxId,
    },
    /// Another user namespace than that of its pod.
    #[error("user namespace of container {container}")]
    UserNamespace {
        /// The container's name.
        container: String,
        #[source]
        /// What is wrong.
        source: UsernsError,
    },
    /// The image is not here. Nothing is pulled.
    #[error("image {image:?} of container {container}")]
    Image {
        /// The container's name.
        container: String,
        /// As asked.
        image: String,
        #[source]
        /// What failed.
        source: Box<crate::image::ImagesError>,
    },
    /// The policy of the pod's namespace does not let it be used.
    #[error("{}checking signature of image {image:?}", source.reason())]
    Trust {
        /// As asked.
        image: String,
        #[source]
        /// What it says.
        source: Box<TrustError>,
    },
    /// No random bytes for an id.
    #[error("draw an id")]
    DrawId(#[source] io::Error),
    /// Another object holds its name.
    #[error("name {name} is reserved for {holder}")]
    NameReserved {
        /// The name.
        name: String,
        /// Who holds it.
        holder: String,
    },
    /// The container whose process namespace it is to join.
    #[error("target container {target:?} of container {container}")]
    Target {
        /// The container's name.
        container: String,
        /// As asked.
        target: String,
        #[source]
        /// What is wrong.
        source: TargetError,
    },
    /// The store did not take its record.
    #[error("record container {container}")]
    Store {
        /// The container's name.
        container: String,
        #[source]
        /// What failed.
        source: Box<image_store::CreateContainerError>,
    },
    /// Its root could not be mounted.
    #[error("mount the root of container {container}")]
    Mount {
        /// The container's name.
        container: String,
        #[source]
        /// What failed.
        source: Box<image_store::MountError>,
    },
    /// A file in its root could not be read or made.
    #[error("{action} {path} in the root of container {container}")]
    Root {
        /// The container's name.
        container: String,
        /// What was tried.
        action: &'static str,
        /// Path in the container.
        path: PathBuf,
        #[source]
        /// The system's answer.
        source: io::Error,
    },
    /// The user asked for does not exist or is none.
    #[error("user of container {container}")]
    User {
        /// The container's name.
        container: String,
        #[source]
        /// What is wrong.
        source: ResolveUserError,
    },
    /// A mount or device cannot be had.
    #[error("mounts of container {container}")]
    Mounts {
        /// The container's name.
        container: String,
        #[source]
        /// What is wrong.
        source: Box<ResolveMountError>,
    },
    /// Its devices cannot be had.
    #[error("devices of container {container}")]
    Devices {
        /// The container's name.
        container: String,
        #[source]
        /// What is wrong.
        source: Box<ResolveDeviceError>,
    },
    /// It cannot have the node's files.
    #[error("files of the node for container {container}")]
    NodeFiles {
        /// The container's name.
        container: String,
        #[source]
        /// What failed.
        source: Box<NodeFilesError>,
    },
    /// Its CDI devices cannot be had.
    #[error("CDI device injection failed for container {container}")]
    Cdi {
        /// The container's name.
        container: String,
        #[source]
        /// What is wrong.
        source: Box<injection::cdi::CdiError>,
    },
    /// The artifact with its seccomp profile cannot be had.
    #[error("seccomp profile of container {container}")]
    SeccompArtifact {
        /// The container's name.
        container: String,
        #[source]
        /// What failed.
        source: Box<SeccompArtifactError>,
    },
    /// A volume that is an image. The text is the CRI's name for it, which the kubelet shows as the reason.
    #[error("ImageVolumeMountFailed")]
    ImageVolume(#[source] Box<ImageVolumeError>),
    /// The stop signal is none.
    #[error("stop signal {signal:?} of container {container} is not known")]
    StopSignal {
        /// The container's name.
        container: String,
        /// As the image has it.
        signal: String,
    },
    /// Its seccomp profile cannot be had.
    #[error("seccomp profile of container {container}")]
    Seccomp {
        /// The container's name.
        container: String,
        #[source]
        /// What is wrong.
        source: Box<seccomp::ResolveProfileError>,
    },
    /// Its AppArmor profile cannot be had.
    #[error("AppArmor profile of container {container}")]
    Apparmor {
        /// The container's name.
        container: String,
        #[source]
        /// What is wrong.
        source: Box<apparmor::ResolveProfileError>,
    },
    /// The image has something else where the runtime needs a directory of its own.
    #[error("/{place} in the image of container {container} is not a directory")]
    Place {
        /// The container's name.
        container: String,
        /// A directory beneath the root.
        place: &'static str,
    },
    /// Its working directory is a door to files that another process has open.
    #[error(
        "working directory {path} of container {container} leads to {place}, which is not a place of the container's"
    )]
    WorkingDirectory {
        /// The container's name.
        container: String,
        /// As asked, or as the image has it.
        path: PathBuf,
        /// Where its links lead.
        place: PathBuf,
    },
    /// Nobody can listen for the calls its seccomp filter hands over.
    #[error("listen for the seccomp filters of container {container} at {path}")]
    Notifier {
        /// The container's name.
        container: String,
        /// The socket.
        path: PathBuf,
        #[source]
        /// The system's answer.
        source: io::Error,
    },
    /// It cannot have its SELinux labels.
    #[error("SELinux labels of container {container}")]
    Selinux {
        /// The container's name.
        container: String,
        #[source]
        /// What is wrong.
        source: Box<LabelsError>,
    },
    /// A file of the daemon's own cannot have its SELinux label.
    #[error("label files of container {container}")]
    Label {
        /// The container's name.
        container: String,
        #[source]
        /// The system's answer.
        source: io::Error,
    },
    /// A volume cannot have its SELinux label.
    #[error("volumes of container {container}")]
    Relabel {
        /// The container's name.
        container: String,
        #[source]
        /// What is wrong.
        source: RelabelError,
    },
    /// The runtime spec could not be assembled.
    #[error("assemble the runtime spec of container {container}")]
    Spec {
        /// The container's name.
        container: String,
        #[source]
        /// What is wrong.
        source: Box<SpecError>,
    },
    /// The runtime spec cannot be written as JSON.
    #[error("write the runtime spec of container {container}")]
    SpecJson {
        /// The container's name.
        container: String,
        #[source]
        /// What failed.
        source: serde_json::Error,
    },
    /// A record of it could not be written.
    #[error("record container {container}")]
    Record {
        /// The container's name.
        container: String,
        #[source]
        /// What failed.
        source: state_store::SaveError,
    },
    /// A file of it could not be written.
    #[error("write {path} of container {container}")]
    File {
        /// The container's name.
        container: String,
        /// Where.
        path: PathBuf,
        #[source]
        /// What failed.
        source: io::Error,
    },
    /// Monitor and runtime did not create it.
    #[error("create container {container}")]
    Create {
        /// The container's name.
        container: String,
        #[source]
        /// What failed.
        source: Box<CreateError>,
    },
    /// Its class of cache and memory bandwidth cannot be had.
    #[error(transparent)]
    NoRdt(crate::classes::NoRdt),
}
