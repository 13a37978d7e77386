//! `[crio.metrics]`, `[crio.tracing]`, `[crio.nri]` and `[crio.stats]`.

use crate::codec::{AnyPath, Bool, Collectors, GoDuration, List, OptPath, PerMillion, PodMetrics, Port, Seconds, Text};
use crate::key::{Key, key};
use crate::model::Config;

pub(super) static KEYS: &[Key<Config>] = &[
    key!("crio.metrics", "enable_metrics", Bool, metrics.enable_metrics, "Whether Prometheus metrics are served."),
    key!(
        "crio.metrics",
        "metrics_collectors",
        Collectors,
        metrics.metrics_collectors,
        "Which metrics are collected. The prefixes crio_ and container_runtime_ may be left out."
    ),
    key!("crio.metrics", "metrics_host", Text, metrics.metrics_host, "Address on which metrics are served."),
    key!("crio.metrics", "metrics_port", Port, metrics.metrics_port, "Port on which metrics are served."),
    key!(
        "crio.metrics",
        "metrics_socket",
        OptPath,
        metrics.metrics_socket,
        "Unix socket on which they are served, too."
    ),
    key!(
        "crio.metrics",
        "metrics_cert",
        OptPath,
        metrics.metrics_cert,
        "Certificate of the metrics server. If neither it nor the key exist, a self-signed pair is made."
    ),
    key!("crio.metrics", "metrics_key", OptPath, metrics.metrics_key, "Key of that certificate."),
    key!("crio.tracing", "enable_tracing", Bool, tracing.enable_tracing, "Whether traces are exported."),
    key!(
        "crio.tracing",
        "tracing_endpoint",
        Text,
        tracing.tracing_endpoint,
        "Address of the OpenTelemetry collector (OTLP over gRPC)."
    ),
    key!(
        "crio.tracing",
        "tracing_sampling_rate_per_million",
        PerMillion,
        tracing.tracing_sampling_rate_per_million,
        "Of a million traces so many are kept: 0 for none, 1000000 for all."
    ),
    key!("crio.nri", "enable_nri", Bool, nri.enable_nri, "Whether NRI plugins take part in a container's life.")
        .no_env(),
    key!("crio.nri", "nri_listen", AnyPath, nri.nri_listen, "Socket on which plugins connect.").no_env(),
    key!("crio.nri", "nri_plugin_dir", AnyPath, nri.nri_plugin_dir, "Directory of plugins that the daemon starts.")
        .no_env(),
    key!(
        "crio.nri",
        "nri_plugin_config_dir",
        AnyPath,
        nri.nri_plugin_config_dir,
        "Directory with the configuration of those plugins."
    )
    .no_env(),
    key!(
        "crio.nri",
        "nri_disable_connections",
        Bool,
        nri.nri_disable_connections,
        "Whether plugins that the daemon did not start are turned away."
    )
    .no_env(),
    key!(
        "crio.nri",
        "nri_plugin_registration_timeout",
        GoDuration,
        nri.nri_plugin_registration_timeout,
        "Time a plugin has to register."
    )
    .no_env(),
    key!(
        "crio.nri",
        "nri_plugin_request_timeout",
        GoDuration,
        nri.nri_plugin_request_timeout,
        "Time a plugin has to answer a request."
    )
    .no_env(),
    key!(
        "crio.nri.default_validator",
        "nri_enable_default_validator",
        Bool,
        nri.default_validator.nri_enable_default_validator,
        "Whether the changes that plugins make are checked by the rules below."
    )
    .no_env(),
    key!(
        "crio.nri.default_validator",
        "nri_validator_reject_oci_hook_adjustment",
        Bool,
        nri.default_validator.nri_validator_reject_oci_hook_adjustment,
        "Refuse OCI hooks added by plugins."
    )
    .no_env(),
    key!(
        "crio.nri.default_validator",
        "nri_validator_reject_runtime_default_seccomp_adjustment",
        Bool,
        nri.default_validator.nri_validator_reject_runtime_default_seccomp_adjustment,
        "Refuse changes of the runtime's default seccomp profile."
    )
    .no_env(),
    key!(
        "crio.nri.default_validator",
        "nri_validator_reject_unconfined_seccomp_adjustment",
        Bool,
        nri.default_validator.nri_validator_reject_unconfined_seccomp_adjustment,
        "Refuse seccomp changes of containers that run unconfined."
    )
    .no_env(),
    key!(
        "crio.nri.default_validator",
        "nri_validator_reject_custom_seccomp_adjustment",
        Bool,
        nri.default_validator.nri_validator_reject_custom_seccomp_adjustment,
        "Refuse changes of seccomp profiles that a sandbox brought along."
    )
    .no_env(),
    key!(
        "crio.nri.default_validator",
        "nri_validator_reject_namespace_adjustment",
        Bool,
        nri.default_validator.nri_validator_reject_namespace_adjustment,
        "Refuse changes of namespaces."
    )
    .no_env(),
    key!(
        "crio.nri.default_validator",
        "nri_validator_required_plugins",
        List,
        nri.default_validator.nri_validator_required_plugins,
        "Plugins without which no container is created."
    )
    .no_env(),
    key!(
        "crio.nri.default_validator",
        "nri_validator_tolerate_missing_plugins_annotation",
        Text,
        nri.default_validator.nri_validator_tolerate_missing_plugins_annotation,
        "Annotation of sandboxes that may do without required plugins."
    )
    .no_env(),
    key!(
        "crio.stats",
        "stats_collection_period",
        Seconds,
        stats.stats_collection_period,
        "Seconds between two collections of container statistics; 0 collects when asked."
    )
    .deprecated("use collection_period"),
    key!(
        "crio.stats",
        "collection_period",
        Seconds,
        stats.collection_period,
        "Seconds between two collections of statistics and sandbox metrics; 0 collects when asked."
    )
    .env(&["COLLECTION_PERIOD"]),
    key!(
        "crio.stats",
        "included_pod_metrics",
        PodMetrics,
        stats.included_pod_metrics,
        "Groups of sandbox metrics: cpu, disk, diskIO, hugetlb, memory, network, oom, process, spec, pressure, or only \
         the word all."
    )
    .env(&["CONTAINER_INCLUDED_POD_METRCIS", "CONTAINER_INCLUDED_POD_METRICS"]),
];
