#pragma once

#include <cstdint>
#include <map>
#include <optional>

#include "bicached/denoiser.h"

namespace bicached {

/// Cuts contiguous token ranges out of the KV pool: best fit, neighbours merged when given back.
/// Numbers only. Where memory runs out nothing has changed, and to close needs none. Engine thread
/// only.
class SlabAllocator {
 public:
  struct Range {
    int64_t begin = 0;
    int64_t num_tokens = 0;
  };

  explicit SlabAllocator(int64_t capacity_tokens);

  /// Nothing when no free range is long enough.
  std::optional<SlabId> open(int64_t num_tokens);
  void close(SlabId slab);
  const Range& range(SlabId slab) const;

  int64_t capacity_tokens() const { return capacity_; }
  int64_t free_tokens() const { return free_; }
  /// Throws kInternal unless used and free ranges tile the pool.
  void check_integrity() const;

 private:
  using Holes = std::map<int64_t, int64_t>;  // begin -> length
  struct Used {
    Range range;
    Holes::node_type hole;  // that it leaves
  };

  int64_t capacity_;
  int64_t free_;
  SlabId next_ = 0;
  Holes holes_;
  std::map<SlabId, Used> used_;
};

}  // namespace bicached
