#include "model/attention.h"

#include <ATen/Parallel.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/softmax.h>
#include <c10/core/InferenceMode.h>

#include <cmath>

namespace bicached {
namespace {

/// One call for all of them: sequences of any length whose keys lie anywhere in the pool.
void attend_flash(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values,
                  const AttentionIndex& index, at::Tensor& out) {
  const auto result = at::_flash_attention_forward(
      queries, keys, values, index.query_starts, index.key_starts, index.max_rows, index.max_keys,
      /*dropout_p=*/0.0, /*is_causal=*/false, /*return_debug_mask=*/false,
      /*scale=*/std::nullopt, /*window_size_left=*/std::nullopt,
      /*window_size_right=*/std::nullopt, index.key_counts);
  out.copy_(std::get<0>(result).view(out.sizes()));
}

/// A sequence's queries, keys and values by plain products. The query heads of one KV head are
/// further rows of it, so keys are never repeated. q: [n, H, D]; k, v: [T, Hkv, D]; returns [n, H,
/// D].
at::Tensor attend_by_products(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  const int64_t n = q.size(0), heads = q.size(1), size = q.size(2), kv_heads = k.size(1);
  const int64_t share = heads / kv_heads;
  const at::Tensor rows = q.mul(1.0 / std::sqrt(static_cast<double>(size)))

                              .view({n, kv_heads, share, size})
                              .permute({1, 2, 0, 3})
                              .reshape({kv_heads, share * n, size});
  const at::Tensor scores = at::bmm(rows, k.permute({1, 2, 0}));
  const at::Tensor shares = at::softmax(scores, -1, at::kFloat).to(v.scalar_type());
  return at::bmm(shares, v.transpose(0, 1))
      .view({kv_heads, share, n, size})
      .permute({2, 0, 1, 3})
      .reshape({n, heads, size});
}

at::Tensor attend_fused(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  const auto sequence = [](const at::Tensor& t) { return t.transpose(0, 1).unsqueeze(0); };
  return at::scaled_dot_product_attention(sequence(q), sequence(k), sequence(v), std::nullopt, 0.0,
                                          false, std::nullopt, q.size(1) != k.size(1))
      .squeeze(0)
      .transpose(0, 1);
}

}  // namespace

AttentionKernel choose_attention(const at::TensorOptions& options, int64_t head_size) {
  const bool float32 = options.dtype() == at::kFloat;
  if (options.device().is_cuda()) {
    // The fused float32 kernels of a GPU may round to TF32; the flash kernel knows these head
    // sizes.
    return !float32 && head_size % 8 == 0 && head_size <= 256 ? AttentionKernel::kVariableLength
                                                              : AttentionKernel::kProducts;
  }
  return AttentionKernel::kFused;
}

void attend(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values,
            const AttentionIndex& index, AttentionKernel kernel, at::Tensor& out) {
  if (kernel == AttentionKernel::kVariableLength) {
    return attend_flash(queries, keys, values, index, out);
  }
  const auto attend_one = [&](const AttentionSequence& sequence) {
    const at::Tensor q = queries.narrow(0, sequence.first_row, sequence.num_rows);
    const at::Tensor k = keys.narrow(0, sequence.key_begin, sequence.num_keys);
    const at::Tensor v = values.narrow(0, sequence.key_begin, sequence.num_keys);
    const at::Tensor result =
        kernel == AttentionKernel::kFused ? attend_fused(q, k, v) : attend_by_products(q, k, v);
    out.narrow(0, sequence.first_row, sequence.num_rows).view(q.sizes()).copy_(result);
  };
  const auto count = static_cast<int64_t>(index.sequences.size());
  if (!out.is_cpu() || count < at::get_num_threads()) {
    for (const AttentionSequence& sequence : index.sequences) attend_one(sequence);
    return;
  }
  // A thread for each sequence rather than all for one: threads are woken once, not at every
  // operation.
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    const c10::InferenceMode mode;  // of this thread
    for (int64_t i = begin; i < end; ++i) attend_one(index.sequences[static_cast<size_t>(i)]);
  });
}

}  // namespace bicached
