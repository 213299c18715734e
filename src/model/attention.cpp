#include "model/attention.h"

#include <ATen/Parallel.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

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

/// What is computed at a time.
struct Limits {
  int64_t scores;  // as many as stay in a processor's cache, and on a card less than 256 MB
  int64_t rows;    // query rows of a KV head that share one copy of its keys and values
  int64_t step;    // of filled_size, for rows and keys; a card reads them as they are
};
/// For each shape of a product oneDNN compiles a kernel, which takes longer than a small product.
constexpr Limits kCpu{int64_t{1} << 20, 512, 16};
constexpr Limits kCard{int64_t{1} << 26, std::numeric_limits<int64_t>::max(), 1};

/// x [n, Hkv, S, D] head by head: [Hkv, at least S n, D], zeros behind. A batched product of a
/// processor would copy matrices that lie between those of other heads, and transpose them an
/// element at a time.
at::Tensor by_heads(const at::Tensor& x, const Limits& limits) {
  const int64_t n = x.size(0), kv_heads = x.size(1), share = x.size(2), size = x.size(3);
  const at::Tensor ordered = x.permute({1, 2, 0, 3});
  if (!x.is_cpu()) return ordered.reshape({kv_heads, share * n, size});
  const int64_t filled = filled_size(share * n, limits.step);
  const at::Tensor rows = at::empty({kv_heads, filled, size}, x.options());
  rows.narrow(1, 0, share * n).unflatten(1, {share, n}).copy_(ordered);
  rows.narrow(1, share * n, filled - share * n).zero_();
  return rows;
}

/// Queries with their keys and values by plain products. The query heads of one KV head are further
/// rows of it, so keys are never repeated. q, out: [n, Hkv, H / Hkv, D]; k, v: [T, Hkv, D].
void attend_by_products(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const Limits& limits, const at::Tensor& out) {
  const int64_t n = q.size(0), share = q.size(2), num_keys = k.size(0);
  const double scale = 1.0 / std::sqrt(static_cast<double>(q.size(3)));
  const at::Tensor keys = by_heads(k.unsqueeze(2), limits).transpose(1, 2);
  const at::Tensor values = by_heads(v.unsqueeze(2), limits);
  const int64_t rows = limits.scores / (keys.size(0) * keys.size(2)) / limits.step * limits.step;
  const int64_t most = std::max<int64_t>(1, std::max(rows, limits.step) / share);
  for (int64_t begin = 0; begin < n; begin += most) {
    const int64_t count = std::min(most, n - begin);
    at::Tensor scores = at::bmm(by_heads(q.narrow(0, begin, count), limits), keys);
    softmax_rows(scores, num_keys, scale);
    const at::Tensor sums = at::bmm(scores, values).narrow(1, 0, share * count);
    out.narrow(0, begin, count).copy_(sums.unflatten(1, {share, count}).permute({2, 0, 1, 3}));
  }
}

/// Some rows and KV heads of a sequence.
struct AttentionPart {
  AttentionSequence sequence;  // with these rows
  int64_t first_head = 0;
  int64_t num_heads = 0;
};

/// The sequences in parts within the limits; the scores of a head's rows may be more, and are then
/// computed some at a time. How a sequence is parted depends on nothing but itself, so that it
/// gives the same numbers alone and beside others.
std::vector<AttentionPart> split(const std::vector<AttentionSequence>& sequences, int64_t kv_heads,
                                 int64_t share, const Limits& limits) {
  std::vector<AttentionPart> parts;
  const int64_t most_rows = std::max<int64_t>(1, limits.rows / share);
  for (AttentionSequence rest : sequences) {
    while (rest.num_rows > 0) {
      AttentionSequence rows = rest;
      rows.num_rows = std::min(rest.num_rows, most_rows);
      rest.first_row += rows.num_rows;
      rest.num_rows -= rows.num_rows;
      const int64_t of_head =
          filled_size(share * rows.num_rows, limits.step) * filled_size(rows.num_keys, limits.step);
      const int64_t most_heads = std::clamp<int64_t>(limits.scores / of_head, 1, kv_heads);
      const int64_t num_parts = (kv_heads + most_heads - 1) / most_heads;
      const int64_t heads = (kv_heads + num_parts - 1) / num_parts;
      for (int64_t head = 0; head < kv_heads; head += heads) {
        parts.push_back({rows, head, std::min(heads, kv_heads - head)});
      }
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
  const Limits& limits = out.is_cpu() ? kCpu : kCard;
  const auto attend_one = [&](const AttentionPart& part) {
    const auto of_part = [&](const at::Tensor& t, int64_t first, int64_t count) {
      return t.narrow(0, first, count).narrow(1, part.first_head, part.num_heads);
    };
    const AttentionSequence& sequence = part.sequence;
    const int64_t first = sequence.first_row, num_rows = sequence.num_rows;
    const int64_t begin = sequence.key_begin, num_keys = sequence.num_keys;
    attend_by_products(of_part(grouped, first, num_rows), of_part(keys, begin, num_keys),
                       of_part(values, begin, num_keys), limits, of_part(results, first, num_rows));
  };
  const std::vector<AttentionPart> parts = split(index.sequences, kv_heads, share, limits);
  if (!out.is_cpu() || static_cast<int>(parts.size()) < at::get_num_threads()) {
    for (const AttentionPart& part : parts) attend_one(part);
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
