#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <utility>

#include "base/lru_map.h"
#include "model/cuda/cuda_runtime.h"

namespace bicached {

/// What one captured forward serves.
struct PaddedSize {
  int64_t num_rows = 0;
  int64_t num_tiles = 0;
};

/// CUDA graphs of whole forwards, by their padded size: one launch in place of hundreds. A size
/// runs step by step the first time, which lets libraries make what they keep; it is captured the
/// second time, and launched from then on. Engine thread only.
class ForwardGraphs {
 public:
  explicit ForwardGraphs(const CudaStream& stream) : stream_(stream) {}

  /// Runs `work`, which puts the same operations at the same addresses on the stream each time that
  /// it is called with this size. What can't be captured runs step by step for ever, and the log
  /// says so.
  void run(const PaddedSize& size, const std::function<void()>& work);
  /// How many were captured so far.
  int num_captured() const { return num_captured_; }
  /// Addresses have changed.
  void clear() { graphs_.clear(); }

 private:
  struct Graph {
    bool was_run = false;
    std::shared_ptr<void> executable;
  };
  /// Some hundred kernels each, of a kilobyte or so on the card.
  static constexpr size_t kMaxGraphs = 128;

  const CudaStream& stream_;
  bool works_ = true;
  int num_captured_ = 0;
  LruMap<std::pair<int64_t, int64_t>, Graph> graphs_{kMaxGraphs};
};

/// The size that a forward of so many rows and tiles is padded to: few different ones, and little
/// wasted.
PaddedSize padded_size(int64_t num_rows, int64_t num_tiles);

}  // namespace bicached
