#include "model/attention.h"

#include <ATen/Parallel.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <atomic>
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

/// Queries and keys are filled up in such steps at least. For each shape oneDNN compiles a kernel,
/// which takes longer than a small product.
constexpr int64_t kStep = 16;

/// x [n, Hkv, S, D] head by head: [Hkv, at least S n, D], zeros behind. A batched product would
/// copy matrices that lie between those of other heads, and transpose them an element at a time.
at::Tensor by_heads(const at::Tensor& x) {
  const int64_t n = x.size(0), kv_heads = x.size(1), share = x.size(2), size = x.size(3);
  const int64_t filled = filled_size(share * n, kStep);
  const at::Tensor rows = at::empty({kv_heads, filled, size}, x.options());
  rows.narrow(1, 0, share * n).unflatten(1, {share, n}).copy_(x.permute({1, 2, 0, 3}));
  rows.narrow(1, share * n, filled - share * n).zero_();
  return rows;
}

/// Queries of a sequence with its keys and values by plain products. The query heads of one KV head
/// are further rows of it, so keys are never repeated. q, out: [n, Hkv, H / Hkv, D]; k, v: [T, Hkv,
/// D].
void attend_by_products(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const at::Tensor& out) {
  const int64_t n = q.size(0), share = q.size(2), size = q.size(3);
  at::Tensor scores = at::bmm(by_heads(q), by_heads(k.unsqueeze(2)).transpose(1, 2));
  softmax_rows(scores, k.size(0), 1.0 / std::sqrt(static_cast<double>(size)));
  const at::Tensor sums = at::bmm(scores, by_heads(v.unsqueeze(2)));
  out.copy_(sums.narrow(1, 0, share * n).unflatten(1, {share, n}).permute({2, 0, 1, 3}));
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
  std::atomic<size_t> next = 0;
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
    const c10::InferenceMode mode;  // of this thread
    for (size_t i = next++; i < parts.size(); i = next++) attend_one(parts[i]);
  });
}

}  // namespace bicached
