//! ListPodSandboxMetrics and StreamPodSandboxMetrics.

use cri_api::v1;
use domain::metrics::{BASE_LABELS, Kind, Sample};
use domain::sandbox::SandboxMetadata;
use domain::time::Timestamp;
use lifecycle::{ContainerMetrics, SandboxMetrics, Statistics};

use crate::container_stats::number;

/// What stands for a container in metrics of the whole sandbox. Source: cAdvisor.
const SANDBOX_CONTAINER: &str = "POD";

/// Values of [`BASE_LABELS`].
type BaseLabels<'a> = [&'a str; BASE_LABELS.len()];

pub(crate) async fn list(statistics: &Statistics) -> Vec<v1::PodSandboxMetrics> {
    statistics.metrics().await.iter().map(|metrics| message(metrics)).collect()
}

fn message(metrics: &SandboxMetrics) -> v1::PodSandboxMetrics {
    let SandboxMetadata { name, namespace, .. } = &metrics.sandbox.config.metadata;
    let id = metrics.sandbox.id.as_str();
    let container = |metrics: &ContainerMetrics| {
        let (container, id) = (&metrics.container, metrics.container.id.as_str());
        let labels = [id, &container.image.name, namespace, name, &container.config.metadata.name];
        v1::ContainerMetrics { container_id: id.to_owned(), metrics: told(labels, metrics.at, &metrics.samples) }
    };
    v1::PodSandboxMetrics {
        pod_sandbox_id: id.to_owned(),
        metrics: told([id, "", namespace, name, SANDBOX_CONTAINER], metrics.at, &metrics.samples),
        container_metrics: metrics.containers.iter().map(container).collect(),
    }
}

fn told(base: BaseLabels<'_>, at: Timestamp, samples: &[Sample]) -> Vec<v1::Metric> {
    let metric = |sample: &Sample| {
        let kind = match sample.of.kind {
            Kind::Counter => v1::MetricType::Counter,
            Kind::Gauge => v1::MetricType::Gauge,
        };
        v1::Metric {
            name: sample.of.name.to_owned(),
            timestamp: at.nanos(),
            metric_type: kind.into(),
            label_values: base.iter().map(|&label| label.to_owned()).chain(sample.labels.iter().cloned()).collect(),
            value: number(sample.value),
        }
    };
    samples.iter().map(metric).collect()
}

#[cfg(test)]
mod tests {
    use domain::metrics::{CPU_USAGE, LAST_SEEN};

    use super::*;

    #[test]
    fn labels_of_a_metric_follow_those_of_all() {
        let at = Timestamp::from_nanos(7);
        let metrics = told(["i", "m", "n", "p", "c"], at, &[LAST_SEEN.is(1), CPU_USAGE.at(2, ["total"])]);
        let expected = [
            ("container_last_seen", v1::MetricType::Gauge, &["i", "m", "n", "p", "c"][..], 1),
            ("container_cpu_usage_seconds_total", v1::MetricType::Counter, &["i", "m", "n", "p", "c", "total"], 2),
        ];
        assert_eq!(metrics.len(), expected.len());
        for (metric, (name, kind, labels, value)) in metrics.iter().zip(expected) {
            assert_eq!((metric.name.as_str(), metric.metric_type(), metric.timestamp), (name, kind, 7));
            assert_eq!(
                (&metric.label_values[..], metric.value),
                (&labels.iter().map(|&label| label.to_owned()).collect::<Vec<_>>()[..], number(value))
            );
        }
    }
}
