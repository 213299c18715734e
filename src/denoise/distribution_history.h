#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <span>
#include <vector>

#include "bicached/denoiser.h"

namespace bicached {

/// Distributions of the last forward of each slab, for rows that ask for it (`LogitRow::history`).
/// On the device: a float32 row of logits each. Engine thread only.
class DistributionHistory {
 public:
  /// For each row the greatest of the last two KL(now || a forward ago), nats, float32 [n, 1] on
  /// the device of `logits` (float32 [n, V]); infinite where fewer are known. The forward counts
  /// only from `keep` on: one that fails is run again.
  at::Tensor divergences(const at::Tensor& logits, std::span<const LogitRow> rows);
  /// The forward is over: what it had of a slab takes the place of what was kept.
  void keep();
  /// The forward failed.
  void drop() { pending_.clear(); }
  void forget(SlabId slab) { kept_.erase(slab); }

 private:
  struct Row {
    at::Tensor logprobs;    // [1, V]
    at::Tensor divergence;  // [1, 1], of this forward from the one before
  };
  using Rows = std::map<int, Row>;  // by canvas row

  std::map<SlabId, Rows> kept_, pending_;
};

}  // namespace bicached
