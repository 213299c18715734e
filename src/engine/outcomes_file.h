#pragma once

#include <cstdint>

#include "base/state_file.h"
#include "bicached/settings.h"
#include "cache_index/reuse_learner.h"

namespace bicached {

/// What a learner knows, in `state_dir` from one start to the next; nothing where there is none.
/// Engine thread only.
class OutcomesFile {
 public:
  /// Reads it into the learner. A file that can't be read is set aside, but one that the operator
  /// says is only read has to be there and right: throws kInvalidSettings. All outlives it.
  OutcomesFile(const CacheSettings& settings, const std::string& fingerprint,
               ReuseLearner& learner);

  /// The learner forgets, and with the next `save` the file does; one that is only read stays.
  void forget();
  bool has_unsaved() const;
  void save();
  /// The last time: another server may take the state_dir over.
  void close();

 private:
  void load();

  const CacheSettings& settings_;
  ReuseLearner& learner_;
  StateFile file_;
  bool is_locked_out_ = false;  // by another server
  int64_t saved_version_ = 0;
};

}  // namespace bicached
