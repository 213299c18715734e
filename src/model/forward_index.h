#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "model/attention.h"
#include "model/forward_plan.h"
#include "model/row_ops.h"

namespace bicached {

class ModelKernels;

/// A segment's numbers on the device.
struct SegmentIndex {
  RowIndex rows;
  AttentionIndex attention;
};

/// A forward's numbers on the device.
struct ForwardIndex {
  at::Tensor tokens;  // int64, of the rows of segment 0
  std::vector<SegmentIndex> segments;
  at::Tensor wanted_rows;           // int64 [W], of the last segment
  AttentionIndex wanted_attention;  // of those rows, packed among themselves
  at::Tensor logit_rows;  // int64: LogitRow i -> row that its logits come from, of `wanted_rows` or
                          // of the last segment
};

/// Puts the numbers of forwards on a device: one buffer, one copy. On the CPU there is no copy.
class IndexUploader {
 public:
  /// `kernels`: of the device, or null; outlives it.
  IndexUploader(at::Device device, const ModelKernels* kernels)
      : device_(device), kernels_(kernels) {}

  /// What it returns is valid until the next call. With as many rows and tiles, segment 0 is at the
  /// same addresses as long as `version` is the same. `num_tiles`: of a segment at least, the last
  /// ones of no rows. `only_wanted`: the last layer leaves nothing but the wanted rows.
  ForwardIndex upload(const ForwardPlan& plan, int64_t num_tiles, bool only_wanted);
  /// Changes when the buffer moves.
  int version() const { return version_; }

 private:
  const at::Device device_;
  const ModelKernels* const kernels_;
  at::Tensor buffer_;
  int version_ = 0;
};

}  // namespace bicached
