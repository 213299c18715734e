#pragma once

#include <prometheus/metric_family.h>

#include <string>
#include <vector>

namespace bicached {

/// A family of one number without labels: a counter if its name says so (`_total`), else a gauge.
prometheus::MetricFamily make_metric(const std::string& name, const char* help, double value);

/// What Prometheus's own client libraries tell of a process, under their names (process_*), so that
/// common dashboards find memory, descriptors and restarts. From /proc; what can't be read is left
/// out.
std::vector<prometheus::MetricFamily> process_metrics();

}  // namespace bicached
