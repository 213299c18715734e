#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/hash.h"
#include "bicached/depth_policy.h"
#include "cache_index/prefix_store.h"
#include "cache_index/prefix_tree.h"
#include "cache_index/reuse_learner.h"
#include "decode/planner.h"
#include "decode/shadow.h"

namespace bicached {

class PrefixCache;

/// A hold on a stored prefix, which is not dropped meanwhile.
class PrefixHold {
 public:
  PrefixHold(PrefixCache& cache, StoredPrefix& stored);
  ~PrefixHold();
  PrefixHold(const PrefixHold&) = delete;
  PrefixHold& operator=(const PrefixHold&) = delete;

  EntryId entry() const { return stored_.entry; }

  int64_t saved = 0;  // row-layers that this use did not run

 private:
  PrefixCache& cache_;
  StoredPrefix& stored_;
};

/// Hidden states that one canvas leaves for its own refreshes: an entry that is not shared. Counts
/// in `cache_bytes`.
class OwnStates {
 public:
  OwnStates(Denoiser& denoiser, PrefixStore& store, EntryId entry, int64_t bytes);
  ~OwnStates();
  OwnStates(const OwnStates&) = delete;
  OwnStates& operator=(const OwnStates&) = delete;

  EntryId entry() const { return entry_; }

 private:
  Denoiser& denoiser_;
  PrefixStore& store_;
  const EntryId entry_;
  const int64_t bytes_;
};

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
  std::string kind;

  // From `prepare` on.
  Reuse reuse;
  StoredPrefix* offered = nullptr;  // a ready entry; until `take_up` nobody holds it
  std::optional<ReuseLearner::Trial> trial;

  // From `take_up` on.
  std::unique_ptr<PrefixHold> held;
  std::unique_ptr<OwnStates> own, shadow_own;
  std::unique_ptr<Shadow> shadow;  // with a trial

  PrefixStates states() const { return {held ? held->entry() : kNoId, own ? own->entry() : kNoId}; }
};

}  // namespace bicached
