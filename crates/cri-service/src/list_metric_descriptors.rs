//! ListMetricDescriptors.

use cri_api::v1;
use lifecycle::Statistics;

pub(crate) fn list(statistics: &Statistics) -> Vec<v1::MetricDescriptor> {
    let message = |of: &domain::metrics::Descriptor| v1::MetricDescriptor {
        name: of.name.to_owned(),
        help: of.help.to_owned(),
        label_keys: of.label_keys().map(str::to_owned).collect(),
    };
    statistics.descriptors().map(message).collect()
}
