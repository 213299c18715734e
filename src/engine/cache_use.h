#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/hash.h"
#include "bicached/depth_policy.h"
#include "cache_index/prefix_store.h"
#include "cache_index/reuse_learner.h"
#include "decode/leases.h"
#include "decode/planner.h"
#include "decode/shadow.h"

namespace bicached {

/// What one request does with the prefix cache. Gives everything back by ending.
struct CacheUse {
  /// A beginning of the prompt that others may share.
  struct Candidate {
    int length = 0;
    int uses = 0;  // recent prompts that have it, this one included
    Hash128 key;   // with the salt
  };

  // From arrival on.
  const DepthPolicy* policy = nullptr;
  std::vector<Candidate> candidates;  // ascending
  ReuseLearner::Subject subject;      // with the prefix that was chosen last

  // From `prepare` on.
  Reuse reuse;
  StoredPrefix* entry = nullptr;  // a ready one to take up
  std::optional<ReuseLearner::Trial> trial;

  // From `take_up` on.
  Lease held;                      // the entry
  Lease own, shadow_own;           // hidden states that a canvas leaves for its own refreshes
  std::unique_ptr<Shadow> shadow;  // with a trial

  PrefixStates states() const { return {held.id(), own.id()}; }
};

}  // namespace bicached
