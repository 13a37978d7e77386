//! `[crio.checkpoint_restore]`, `[crio.image]` and `[crio.network]`.

use crate::codec::{
    AbsolutePath, Bool, GoDuration, ImageReference, List, NonEmptyList, OptPath, Path, Paths, Text, Word,
};
use crate::key::{Key, key};
use crate::model::Config;
use crate::value::{CheckpointRestoreLevel, ImageVolumes, ShortNameMode};

pub(super) static KEYS: &[Key<Config>] = &[
    key!(
        "crio.checkpoint_restore",
        "container_level_enabled",
        Word<CheckpointRestoreLevel>,
        checkpoint_restore.container_level_enabled,
        "Whether containers may be checkpointed and restored: checkpoint_restore, checkpoint_only or none. Needs \
         criu."
    )
    .flag("checkpoint-restore-container-level-enabled"),
    key!(
        "crio.image",
        "default_transport",
        Text,
        image.default_transport,
        "Put in front of image names that do not say how they are fetched."
    ),
    key!(
        "crio.image",
        "global_auth_file",
        OptPath,
        image.global_auth_file,
        "Registry credentials in the form of docker's config.json, used where the kubelet gives none."
    ),
    key!(
        "crio.image",
        "namespaced_auth_dir",
        AbsolutePath,
        image.namespaced_auth_dir,
        "Absolute directory with registry credentials per Kubernetes namespace."
    )
    .hidden(),
    key!("crio.image", "pause_image", ImageReference, image.pause_image, "Image of infra containers.").reload(),
    key!(
        "crio.image",
        "pause_image_auth_file",
        OptPath,
        image.pause_image_auth_file,
        "Credentials with which that image is pulled, in the same form as global_auth_file."
    )
    .reload(),
    key!(
        "crio.image",
        "pause_command",
        Text,
        image.pause_command,
        "Command of infra containers. Empty for the one the image names."
    )
    .reload(),
    key!(
        "crio.image",
        "pinned_images",
        NonEmptyList,
        image.pinned_images,
        "Images the kubelet must not collect: whole names, beginnings that end in *, or words between two *."
    )
    .reload(),
    key!(
        "crio.image",
        "signature_policy",
        OptPath,
        image.signature_policy,
        "Signature policy (policy.json). Empty for the one of the system."
    ),
    key!(
        "crio.image",
        "signature_policy_dir",
        AbsolutePath,
        image.signature_policy_dir,
        "Absolute directory with a policy <namespace>.json per Kubernetes namespace."
    ),
    key!(
        "crio.image",
        "insecure_registries",
        List,
        image.insecure_registries,
        "Without effect: registries.conf says which registries are spoken to without TLS."
    )
    .flag("insecure-registry")
    .deprecated("use registries.conf"),
    key!(
        "crio.image",
        "image_volumes",
        Word<ImageVolumes>,
        image.image_volumes,
        "What becomes of volumes that an image declares: mkdir makes a directory in the root file system, bind mounts \
         a directory of the host, ignore does nothing."
    ),
    key!(
        "crio.image",
        "big_files_temporary_dir",
        OptPath,
        image.big_files_temporary_dir,
        "Directory of large temporary files."
    ),
    key!(
        "crio.image",
        "auto_reload_registries",
        Bool,
        image.auto_reload_registries,
        "Whether changes in registries.conf.d are noticed without a signal."
    )
    .env(&["AUTO_RELOAD_REGISTRIES"]),
    key!(
        "crio.image",
        "pull_progress_timeout",
        GoDuration,
        image.pull_progress_timeout,
        "A pull that makes no progress for this long is given up. 0s never gives up."
    ),
    key!(
        "crio.image",
        "oci_artifact_mount_support",
        Bool,
        image.oci_artifact_mount_support,
        "Whether OCI artifacts can be mounted as volumes."
    )
    .env(&["CONTAINER_OCI_ARTIFACT_SUPPORT"]),
    key!(
        "crio.image",
        "short_name_mode",
        Word<ShortNameMode>,
        image.short_name_mode,
        "How image names without a registry are completed: enforcing accepts only unambiguous ones, disabled tries \
         every search registry."
    ),
    key!(
        "crio.network",
        "cni_default_network",
        Text,
        network.cni_default_network,
        "Name of the CNI network sandboxes join. Empty for the first one found."
    ),
    key!("crio.network", "network_dir", Path, network.network_dir, "Directory with CNI network configurations.")
        .flag("cni-config-dir"),
    key!(
        "crio.network",
        "plugin_dirs",
        Paths,
        network.plugin_dirs,
        "Directories with CNI plugins, in order of search."
    )
    .flag("cni-plugin-dir"),
    super::plugin_dir(),
    key!(
        "crio.network",
        "cni_status_grace_period",
        GoDuration,
        network.cni_status_grace_period,
        "For this long after the network was last ready, a failing STATUS of the plugin is not reported."
    )
    .env(&["CNI_STATUS_GRACE_PERIOD"]),
];
