#include "decode/sampler.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cumsum.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <limits>

namespace bicached {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

/// A host vector on the device of `like`.
template <typename T>
at::Tensor upload(const std::vector<T>& values, const at::Tensor& like, at::ScalarType stored,
                  at::ScalarType wanted) {
  return at::from_blob(const_cast<T*>(values.data()), {static_cast<int64_t>(values.size())}, stored)
      .to(like.device(), wanted, /*non_blocking=*/false, /*copy=*/true);
}

void add_biases(at::Tensor& logits, std::span<const LogitRow> rows, int vocab_size) {
  std::vector<int64_t> at_rows, at_ids;
  std::vector<float> values;
  for (size_t i = 0; i < rows.size(); ++i) {
    for (const auto& [token, bias] : rows[i].sampling->logit_bias) {
      if (token < 0 || token >= vocab_size) continue;
      at_rows.push_back(static_cast<int64_t>(i));
      at_ids.push_back(token);
      values.push_back(bias);
    }
  }
  if (values.empty()) return;
  logits.index_put_(
      {upload(at_rows, logits, at::kLong, at::kLong), upload(at_ids, logits, at::kLong, at::kLong)},
      upload(values, logits, at::kFloat, at::kFloat), /*accumulate=*/true);
}

/// The logits with -inf for ids that may not be chosen.
at::Tensor allowed_logits(const at::Tensor& logits, std::span<const LogitRow> rows,
                          const TokenRules& rules) {
  at::Tensor allowed = logits.clone();
  if (rules.vocab_size < logits.size(1)) {
    allowed.narrow(1, rules.vocab_size, logits.size(1) - rules.vocab_size).fill_(kNever);
  }
  if (rules.mask_token >= 0) allowed.select(1, rules.mask_token).fill_(kNever);
  std::vector<int64_t> no_end;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].suppress_end_tokens) no_end.push_back(static_cast<int64_t>(i));
  }
  if (!no_end.empty()) {
    const at::Tensor at_rows = upload(no_end, logits, at::kLong, at::kLong);
    for (const TokenId end : rules.end_tokens)
      allowed.select(1, end).index_fill_(0, at_rows, kNever);
  }
  return allowed;
}

/// Draws for the rows with a temperature. `logits`: their allowed logits [n, V].
at::Tensor draw(const at::Tensor& logits, const std::vector<const LogitRow*>& rows) {
  std::vector<double> temperature, top_p, uniform;
  std::vector<int64_t> top_k;
  for (const LogitRow* row : rows) {
    temperature.push_back(row->sampling->temperature);
    top_p.push_back(row->sampling->top_p);
    const int64_t k = row->sampling->top_k;
    top_k.push_back((k <= 0 || k > logits.size(1) ? logits.size(1) : k) - 1);
    uniform.push_back(row->uniform);
  }
  const auto column = [&](const std::vector<double>& values) {
    return upload(values, logits, at::kDouble, at::kDouble).unsqueeze(1);
  };
  // Sorted once, so that both filters keep a leading part and the draw is one search.
  const at::Tensor scaled = logits.to(at::kDouble) / column(temperature);
  const auto [sorted, ids] = at::sort(scaled, /*stable=*/true, /*dim=*/1, /*descending=*/true);
  at::Tensor probabilities = sorted.softmax(1);
  const at::Tensor before = at::cumsum(probabilities, 1) - probabilities;
  const at::Tensor kth = sorted.gather(1, upload(top_k, logits, at::kLong, at::kLong).unsqueeze(1));
  at::Tensor kept = before.le(column(top_p)).logical_and_(sorted.ge(kth));
  kept.select(1, 0).fill_(true);
  probabilities = probabilities * kept;
  const at::Tensor cumulative = at::cumsum(probabilities, 1);
  const at::Tensor target = column(uniform) * cumulative.narrow(1, cumulative.size(1) - 1, 1);
  // The first place where the cumulative probability passes the target; a place without probability
  // never does first.
  const at::Tensor place =
      cumulative.le(target).sum(1, /*keepdim=*/true).clamp_max_(logits.size(1) - 1);
  return ids.gather(1, place).squeeze(1);
}

}  // namespace

std::vector<RowResult> sample_rows(at::Tensor logits, std::span<const LogitRow> rows,
                                   const TokenRules& rules) {
  if (rows.empty()) return {};
  add_biases(logits, rows, static_cast<int>(logits.size(1)));
  const at::Tensor log_probabilities = at::log_softmax(logits, 1);
  const at::Tensor probabilities = log_probabilities.exp();
  const at::Tensor allowed = allowed_logits(logits, rows, rules);
  at::Tensor token = allowed.argmax(1);

  std::vector<int64_t> drawn;
  std::vector<const LogitRow*> drawn_rows;
  int num_top = 2;  // for the margin
  for (size_t i = 0; i < rows.size(); ++i) {
    num_top = std::max(num_top, rows[i].sampling->num_top_logprobs);
    if (rows[i].sampling->temperature > 0) {
      drawn.push_back(static_cast<int64_t>(i));
      drawn_rows.push_back(&rows[i]);
    }
  }
  if (!drawn.empty()) {
    const at::Tensor at_rows = upload(drawn, logits, at::kLong, at::kLong);
    token.index_copy_(0, at_rows, draw(allowed.index_select(0, at_rows), drawn_rows));
  }

  num_top = static_cast<int>(std::min<int64_t>(num_top, logits.size(1)));
  const auto [top, top_ids] = at::topk(log_probabilities, num_top, 1);
  const at::Tensor chosen = probabilities.gather(1, token.unsqueeze(1));
  const at::Tensor best = top.narrow(1, 0, 1).exp();
  const at::Tensor margin = num_top > 1 ? best - top.narrow(1, 1, 1).exp() : best;
  // p ln p is 0 where p is 0.
  const at::Tensor entropy =
      (probabilities * log_probabilities).nan_to_num_(0.0).sum(1, /*keepdim=*/true).neg_();
  // One transfer: ids are exact in double.
  const at::Tensor all =
      at::cat({token.unsqueeze(1).to(at::kDouble), chosen.to(at::kDouble), margin.to(at::kDouble),
               entropy.to(at::kDouble), top.to(at::kDouble), top_ids.to(at::kDouble)},
              1)
          .cpu();
  const double* values = all.const_data_ptr<double>();
  std::vector<RowResult> results(rows.size());
  for (size_t i = 0; i < rows.size(); ++i, values += 4 + 2 * num_top) {
    results[i] = {static_cast<TokenId>(values[0]),
                  static_cast<float>(values[1]),
                  static_cast<float>(values[2]),
                  static_cast<float>(values[3]),
                  {}};
    for (int j = 0; j < std::min(rows[i].sampling->num_top_logprobs, num_top); ++j) {
      results[i].top.push_back({static_cast<TokenId>(values[4 + num_top + j]),
                                std::max(static_cast<float>(values[4 + j]), -9999.0f)});
    }
  }
  return results;
}

}  // namespace bicached
