#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bicached/request.h"

namespace bicached {

/// Entries that a report lists, and the most it can: the engine stops while it is put together.
inline constexpr int kListedEntries = 100, kMaxListedEntries = 1000;

/// What probes know of the plans for one kind of request, from careful to bold. Fractions: old
/// outcomes fade.
struct PlanReport {
  struct Step {
    std::optional<InsidePlan> inside;  // the part inside a request, or
    std::optional<int> depth;          // the depth of a shared prefix
    double agreed = 0;                 // probes of this very step
    double differed = 0;
    double estimate = 0;   // probability that it differs, with what the other steps say
    bool is_safe = false;  // at most max_disagreement
  };
  std::string kind;  // algorithm/block length/generation length
  std::vector<Step> steps;
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
  bool ready = false;              // false: being made
  int64_t saved_row_layers = 0;    // work not done thanks to it
  double age_s = 0;                // since it was made
  double idle_s = 0;               // since its last use
  std::vector<int> depths;         // at which it can be entered
  std::vector<PlanReport> probes;  // its own outcomes
};

/// The prefix cache at one moment, for GET /v1/cache.
struct CacheReport {
  std::string policy;
  std::string start;  // what the model starts from, and why
  int64_t budget_bytes = 0;
  int64_t bytes = 0;
  int64_t num_entries = 0;  // stored, or being made
  int64_t hits = 0, misses = 0, made = 0, evictions = 0, refused = 0;
  int64_t probes = 0, probes_running = 0;
  std::vector<EntryReport> entries;      // those worth most, the first of them first
  std::vector<PlanReport> model_probes;  // over all prefixes, also those long evicted
};

}  // namespace bicached
