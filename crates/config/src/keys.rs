//! The table of keys: every key of `crio.conf`, in the order in which the configuration is printed.
//!
//! Files, flags, environment, the printed template and reloading are all driven by it; a key is added here and
//! nowhere else (and to the list in `effect` as long as nothing uses it).

mod handler;
mod image;
mod runtime;
mod services;

use std::path::PathBuf;
use std::sync::LazyLock;

pub(crate) use handler::{HANDLER, WORKLOAD, WORKLOAD_RESOURCES};

use crate::codec::{self, Bool, Codec, List, OptDuration, OptPath, Path, Text, Word};
use crate::key::{Key, key};
use crate::model::Config;
use crate::value::{StorageDriver, TlsMinVersion};

/// All keys outside of handlers and workloads.
pub(crate) fn all() -> impl Iterator<Item = &'static Key<Config>> {
    ROOT.iter().chain(API).chain(runtime::KEYS).chain(image::KEYS).chain(services::KEYS)
}

/// A key that has a flag, with the names worked out.
pub(crate) struct KeyFlag {
    pub(crate) key: &'static Key<Config>,
    /// Long name of the flag.
    pub(crate) name: String,
    /// Environment variables that stand for it.
    pub(crate) env: Vec<String>,
}

/// The keys that have a flag. Static, because the command line parser borrows the names.
pub(crate) static FLAGS: LazyLock<Vec<KeyFlag>> = LazyLock::new(|| {
    all().filter_map(|key| Some(KeyFlag { key, name: key.flag_name()?, env: key.env_names() })).collect()
});

/// The tables, in the order in which they are printed.
pub(crate) const TABLES: [&str; 11] = [
    "crio",
    "crio.api",
    "crio.runtime",
    "crio.checkpoint_restore",
    "crio.image",
    "crio.network",
    "crio.metrics",
    "crio.tracing",
    "crio.nri",
    "crio.nri.default_validator",
    "crio.stats",
];

/// Keys that documents of 2017 to 2021 mention and that nothing reads any more.
pub(crate) const OBSOLETE: [&str; 7] = [
    "runtime",
    "manage_ns_lifecycle",
    "manage_network_ns_lifecycle",
    "default_mounts",
    "registries",
    "file_locking",
    "file_locking_path",
];

static ROOT: &[Key<Config>] = &[
    key!("crio", "root", Path, root.root, "Directory in which images and containers are kept.").alias("r"),
    key!("crio", "runroot", Path, root.runroot, "Directory for storage state that need not survive a reboot."),
    key!(
        "crio",
        "imagestore",
        OptPath,
        root.imagestore,
        "If set, images are kept here and only containers in the root directory."
    ),
    key!(
        "crio",
        "storage_driver",
        Word<StorageDriver>,
        root.storage_driver,
        "How layers are stored. Without a value here that of storage.conf counts."
    )
    .alias("s"),
    key!(
        "crio",
        "storage_option",
        List,
        root.storage_option,
        "Options of the storage driver, as driver.key=value. They are added to those of storage.conf."
    )
    .flag("storage-opt"),
    key!(
        "crio",
        "log_dir",
        codec::AbsolutePath,
        root.log_dir,
        "Where container logs go if the kubelet does not name a directory."
    ),
    key!(
        "crio",
        "version_file",
        OptPath,
        root.version_file,
        "A version file on a file system that a reboot empties. If it is missing or names another minor version, \
         containers are wiped. Empty turns this off."
    ),
    key!(
        "crio",
        "version_file_persist",
        OptPath,
        root.version_file_persist,
        "A version file that survives reboots. If it names another minor version, images are wiped. Empty turns this \
         off."
    ),
    key!(
        "crio",
        "internal_wipe",
        Bool,
        root.internal_wipe,
        "Whether the daemon itself wipes at start. If not, run `crio wipe` before it."
    )
    .deprecated("leave it at true"),
    key!(
        "crio",
        "internal_repair",
        Bool,
        root.internal_repair,
        "Whether storage is checked, and repaired where needed, after an unclean shutdown."
    ),
    key!(
        "crio",
        "clean_shutdown_file",
        OptPath,
        root.clean_shutdown_file,
        "Written once everything is on disk at shutdown; its absence at the next start tells of an unclean one."
    ),
];

static API: &[Key<Config>] = &[
    key!("crio.api", "listen", Path, api.listen, "The socket on which the kubelet finds the daemon."),
    key!(
        "crio.api",
        "stream_address",
        Text,
        api.stream_address,
        "Address on which exec, attach and port-forward sessions are served."
    ),
    key!(
        "crio.api",
        "stream_port",
        Text,
        api.stream_port,
        "Port of that server. With 0 the kernel chooses a free one."
    ),
    key!("crio.api", "stream_enable_tls", Bool, api.stream_enable_tls, "Whether these sessions are encrypted.")
        .env(&["CONTAINER_ENABLE_TLS"]),
    key!(
        "crio.api",
        "stream_idle_timeout",
        OptDuration,
        api.stream_idle_timeout,
        "After so much time without traffic a session ends. Empty means four hours."
    )
    .env(&["STREAM_IDLE_TIMEOUT"]),
    key!(
        "crio.api",
        "stream_tls_cert",
        OptPath,
        api.stream_tls_cert,
        "Certificate of the streaming server. It is read again when the file changes."
    )
    .env(&["CONTAINER_TLS_CERT"]),
    key!(
        "crio.api",
        "stream_tls_key",
        OptPath,
        api.stream_tls_key,
        "Key of that certificate. It is read again when the file changes."
    )
    .env(&["CONTAINER_TLS_KEY"]),
    key!(
        "crio.api",
        "stream_tls_ca",
        OptPath,
        api.stream_tls_ca,
        "If set, clients must show a certificate signed by one of these authorities. Read again when the file changes."
    )
    .env(&["CONTAINER_TLS_CA"]),
    key!(
        "crio.api",
        "tls_min_version",
        Word<TlsMinVersion>,
        api.tls_min_version,
        "Oldest TLS version for streaming and metrics: VersionTLS12 or VersionTLS13."
    ),
    key!(
        "crio.api",
        "tls_cipher_suites",
        codec::CipherSuites,
        api.tls_cipher_suites,
        "IANA names of the cipher suites offered with TLS 1.2. Has no effect on TLS 1.3."
    ),
    key!(
        "crio.api",
        "grpc_max_send_msg_size",
        codec::MessageSize,
        api.grpc_max_send_msg_size,
        "Largest message sent, in bytes. Zero and below mean 83886080."
    ),
    key!(
        "crio.api",
        "grpc_max_recv_msg_size",
        codec::MessageSize,
        api.grpc_max_recv_msg_size,
        "Largest message accepted, in bytes. Zero and below mean 83886080."
    ),
];

/// `plugin_dir`: one more entry at the end of `plugin_dirs`, which precedes it in the table.
const fn plugin_dir() -> Key<Config> {
    Key {
        encode: |_| codec::Raw::Text(String::new()),
        decode: |c: &mut Config, raw| {
            let dir: Option<PathBuf> = OptPath::decode(raw)?;
            c.network.plugin_dirs.extend(dir);
            Ok(())
        },
        ..key!(
            "crio.network",
            "plugin_dir",
            Text,
            network.cni_default_network,
            "One more directory of CNI plugins, searched last."
        )
    }
    .no_flag()
    .no_env()
    .input_only()
    .deprecated("use plugin_dirs")
}
