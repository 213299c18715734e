#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bicached/depth_policy.h"

namespace bicached {

/// What probes know of one kind of canvas: of those whose prefix takes at least `min_ratio_percent`
/// of it, up to the next such share, and in which at most `gen_length` positions are generated.
struct ProbeReport {
  std::optional<int> min_ratio_percent;  // 0, 50 or 80; nothing: any share
  int gen_length = 0;                    // a power of two
  int depth = 0;                         // what `measured` would choose now
  int refresh_depth = 0;                 // the same
  std::vector<LadderStep> depths;
  std::vector<LadderStep> refresh_depths;
};

/// One stored prefix.
struct EntryReport {
  std::string id;  // hash of fingerprint, salt and ids
  /// A hash of it: who knows a tenant's salt can ask for its entries. May be empty.
  std::string salt;
  int num_tokens = 0;
  int64_t bytes = 0;
  int64_t hits = 0;
  int num_users = 0;  // requests that hold it now
  bool pinned = false;
  bool ready = false;               // false: being made
  int64_t saved_row_layers = 0;     // work not done thanks to it
  double age_s = 0;                 // since it was made
  double idle_s = 0;                // since its last use
  std::vector<int> depths;          // at which it can be entered
  std::vector<ProbeReport> probes;  // its own outcomes
};

/// The prefix cache at one moment, for GET /v1/cache.
struct CacheReport {
  std::string policy;
  int64_t budget_bytes = 0;
  int64_t bytes = 0;
  int64_t hits = 0, misses = 0, made = 0, evictions = 0, refused = 0;
  int64_t probes = 0, probes_running = 0;
  std::vector<EntryReport> entries;
  std::vector<ProbeReport> model_probes;  // over all prefixes, also those long evicted
};

}  // namespace bicached
