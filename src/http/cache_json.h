#pragma once

#include <nlohmann/json_fwd.hpp>

#include "bicached/cache_report.h"

namespace bicached {

/// The body of GET /v1/cache. `probed` and `disagreed` of an entry count its own probes, those of
/// `model_probes` all; `estimated_disagreement` is what the policy `measured` goes by.
nlohmann::ordered_json cache_json(const CacheReport& report);

/// What probes say of one kind of canvas, in the same form; `tally` chooses whose are counted.
nlohmann::ordered_json probe_json(const ProbeReport& report, Tally LadderStep::* tally);

}  // namespace bicached
