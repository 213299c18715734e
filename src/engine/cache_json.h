#pragma once

#include <nlohmann/json_fwd.hpp>

#include "bicached/cache_report.h"

namespace bicached {

/// The body of GET /v1/cache. Probes of an entry are its own, those of `model_probes` all.
nlohmann::ordered_json cache_json(const CacheReport& report);

/// What probes say of the plans for one kind of request, in the same form.
nlohmann::ordered_json probe_json(const PlanReport& report);

}  // namespace bicached
