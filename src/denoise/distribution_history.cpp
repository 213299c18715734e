#include "denoise/distribution_history.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros_like.h>

#include <limits>

namespace bicached {

at::Tensor DistributionHistory::divergences(const at::Tensor& logits,
                                            std::span<const LogitRow> rows) {
  const at::Tensor unknown =
      at::full({1, 1}, std::numeric_limits<float>::infinity(), logits.options());
  std::vector<int64_t> asked;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].history != kNoId) asked.push_back(static_cast<int64_t>(i));
  }
  const at::Tensor index = at::tensor(asked, at::kLong).to(logits.device());
  const at::Tensor now = at::log_softmax(logits.index_select(0, index), 1);
  std::vector<at::Tensor> before, moved_before, is_known;
  for (size_t k = 0; k < asked.size(); ++k) {
    const LogitRow& row = rows[static_cast<size_t>(asked[k])];
    const Rows& known = kept_[row.history];
    const auto found = known.find(row.row);
    const bool has = found != known.end();
    before.push_back(has ? found->second.logprobs : now.narrow(0, static_cast<int64_t>(k), 1));
    moved_before.push_back(has ? found->second.divergence : unknown);
    is_known.push_back(has ? at::zeros_like(unknown) : unknown);
  }
  // A token of probability 0 adds nothing.
  const at::Tensor shares = now.exp();
  const at::Tensor moved = shares.mul(now.sub(at::cat(before)))
                               .masked_fill_(shares.eq(0), 0.0)
                               .sum(1, /*keepdim=*/true)
                               .add_(at::cat(is_known));
  for (size_t k = 0; k < asked.size(); ++k) {
    const LogitRow& row = rows[static_cast<size_t>(asked[k])];
    const auto at = static_cast<int64_t>(k);
    pending_[row.history][row.row] = {now.narrow(0, at, 1), moved.narrow(0, at, 1)};
  }
  return unknown.expand({logits.size(0), 1})
      .clone()
      .index_copy_(0, index, moved.maximum(at::cat(moved_before)));
}

void DistributionHistory::keep() {
  for (auto& [slab, rows] : pending_) kept_[slab] = std::move(rows);
  pending_.clear();
}

}  // namespace bicached
