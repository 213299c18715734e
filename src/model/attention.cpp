#include "model/attention.h"

#include <ATen/Parallel.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/bmm.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
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

/// Scores at a time: as many as stay in a processor's cache, and on a card less than 256 MB.
constexpr int64_t kCpuScores = int64_t{1} << 20, kCardScores = int64_t{1} << 26;

/// Queries of a sequence with its keys and values by plain products. The query heads of one KV head
/// are further rows of it, so keys are never repeated. q, out: [n, Hkv, H / Hkv, D]; k, v: [T, Hkv,
/// D].
void attend_by_products(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const at::Tensor& out) {
  const int64_t n = q.size(0), kv_heads = q.size(1), share = q.size(2), size = q.size(3);
  const at::Tensor rows = q.permute({1, 2, 0, 3}).reshape({kv_heads, share * n, size});
  at::Tensor scores = at::bmm(rows, k.permute({1, 2, 0}));
  softmax_rows(scores, 1.0 / std::sqrt(static_cast<double>(size)));
  const at::Tensor sums = at::bmm(scores, v.transpose(0, 1));
  out.copy_(sums.view({kv_heads, share, n, size}).permute({2, 0, 1, 3}));
}

/// The sequences in parts of so many scores a head. How one is parted depends on nothing but
/// itself, so that it gives the same numbers alone and beside others.
std::vector<AttentionSequence> part(const std::vector<AttentionSequence>& sequences,
                                    int64_t most_scores) {
  std::vector<AttentionSequence> parts;
  for (AttentionSequence rest : sequences) {
    const int64_t most_rows = std::max<int64_t>(1, most_scores / rest.num_keys);
    while (rest.num_rows > 0) {
      AttentionSequence& next = parts.emplace_back(rest);
      next.num_rows = std::min(rest.num_rows, most_rows);
      rest.first_row += next.num_rows;
      rest.num_rows -= next.num_rows;
    }
  }
  return parts;
}

}  // namespace

AttentionKernel choose_attention(const at::TensorOptions& options, int64_t head_size) {
  // The flash kernel of a card takes bfloat16 and these head sizes. That of a CPU converts to
  // float32 where the processor has no AMX, and is slower than bfloat16 products.
  const bool is_flash = options.device().is_cuda() && options.dtype() == at::kBFloat16 &&
                        head_size % 8 == 0 && head_size <= 256;
  return is_flash ? AttentionKernel::kVariableLength : AttentionKernel::kProducts;
}

void attend(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values,
            const AttentionIndex& index, AttentionKernel kernel, at::Tensor& out) {
  if (kernel == AttentionKernel::kVariableLength) {
    return attend_flash(queries, keys, values, index, out);
  }
  const int64_t kv_heads = keys.size(1), share = queries.size(1) / kv_heads;
  const at::Tensor grouped = queries.unflatten(1, {kv_heads, share});
  const at::Tensor results = out.view(grouped.sizes());
  const auto attend_one = [&](const AttentionSequence& sequence) {
    const auto of_rows = [&](const at::Tensor& t) {
      return t.narrow(0, sequence.first_row, sequence.num_rows);
    };
    const auto of_keys = [&](const at::Tensor& t) {
      return t.narrow(0, sequence.key_begin, sequence.num_keys);
    };
    attend_by_products(of_rows(grouped), of_keys(keys), of_keys(values), of_rows(results));
  };
  const std::vector<AttentionSequence> parts =
      part(index.sequences, (out.is_cpu() ? kCpuScores : kCardScores) / queries.size(1));
  const auto count = static_cast<int64_t>(parts.size());
  if (!out.is_cpu() || count < at::get_num_threads()) {
    for (const AttentionSequence& sequence : parts) attend_one(sequence);
    return;
  }
  // A thread for each part rather than all for one: threads are woken once, not at every
  // operation.
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    const c10::InferenceMode mode;  // of this thread
    for (int64_t i = begin; i < end; ++i) attend_one(parts[static_cast<size_t>(i)]);
  });
}

}  // namespace bicached
