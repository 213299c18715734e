#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "model/forward_plan.h"
#include "model/row_ops.h"

namespace bicached {

/// The attention sequences of a layer: each owns rows [first_row, first_row + num_rows) of the
/// packed queries and sees keys [key_begin, key_begin + num_keys) of the pool.
struct AttentionIndex {
  std::vector<AttentionSequence> sequences;
  // For the GPU kernel, int32 on the device.
  at::Tensor query_starts;  // [B + 1]
  at::Tensor key_starts;    // [B + 1], the last is not used
  at::Tensor key_counts;    // [B]
  at::Tensor tiles;  // [n, 4], for ModelKernels::attend; undefined where that is not to do it
  int64_t max_rows = 0;
  int64_t max_keys = 0;
};

/// How a layer's attention is computed.
enum class AttentionKernel {
  kVariableLength,  // all sequences in one flash attention over the pool; CUDA, bfloat16
  kProducts,        // product, softmax, product, some heads of a sequence at a time
};

/// The fastest kernel that is exact enough for tensors of this device and dtype.
AttentionKernel choose_attention(const at::TensorOptions& options, int64_t head_size);

/// Attention without a mask. queries: [N, H, D], rows may be strided; keys, values: the layer's
/// pool [pool tokens, Hkv, D]; out: [N, H D], contiguous. Scores are scaled by 1 / sqrt(D).
void attend(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values,
            const AttentionIndex& index, AttentionKernel kernel, at::Tensor& out);

}  // namespace bicached
