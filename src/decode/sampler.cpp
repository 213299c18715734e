#include "decode/sampler.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/index_copy.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/max.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/special_entr.h>
#include <ATen/ops/topk.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "bicached/error.h"

namespace bicached {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

at::ScalarType type_of(double) { return at::kDouble; }
at::ScalarType type_of(float) { return at::kFloat; }
at::ScalarType type_of(int64_t) { return at::kLong; }

/// A host vector on the device of `like`.
template <class T>
at::Tensor upload(const std::vector<T>& values, const at::Tensor& like) {
  return at::from_blob(const_cast<T*>(values.data()), {static_cast<int64_t>(values.size())},
                       at::dtype(type_of(T{})))
      .to(like.device(), type_of(T{}), /*non_blocking=*/false, /*copy=*/true);
}

void add_biases(at::Tensor& logits, std::span<const LogitRow> rows, const TokenRules& rules) {
  std::vector<int64_t> where;
  std::vector<float> what;
  for (size_t i = 0; i < rows.size(); ++i) {
    const int64_t row = static_cast<int64_t>(i) * logits.size(1);
    const auto add = [&](TokenId token, float bias) {
      if (token < 0 || token >= rules.vocab_size) return;
      where.push_back(row + token);
      what.push_back(bias);
    };
    for (const auto& [token, bias] : rows[i].sampling->logit_bias) add(token, bias);
    if (!rows[i].suppress_end_tokens) continue;
    for (const TokenId token : rules.end_tokens) add(token, kNever);
  }
  if (where.empty()) return;
  logits.view(-1).index_add_(0, upload(where, logits), upload(what, logits));
}

/// First entry of each row of `weights` [n, V] whose cumulative sum is over uniform [n, 1] times
/// the total: [n, 1]. Never an entry of weight 0.
at::Tensor inverse_cdf(const at::Tensor& weights, const at::Tensor& uniform) {
  const at::Tensor cumulative = weights.cumsum(1);
  const at::Tensor total = cumulative.narrow(1, cumulative.size(1) - 1, 1);
  // uniform < 1, but the product may round up to the total.
  const at::Tensor target = total.mul(uniform).minimum(total.mul(1.0 - 0x1.0p-52));
  return at::searchsorted(cumulative, target, /*out_int32=*/false, /*right=*/true);
}

/// What top_p, then top_k leave of `sorted` [n, V] (descending): the others get -infinity.
at::Tensor filtered(const at::Tensor& sorted, const at::Tensor& top_p, const at::Tensor& top_k) {
  const at::Tensor shares = at::softmax(sorted, 1);
  const at::Tensor before = shares.cumsum(1).sub_(shares);
  // At top_p 1 rounding of the sum must not drop anything.
  const at::Tensor dropped = before.gt(top_p).logical_and_(top_p.lt(1.0));
  const at::Tensor kept = sorted.masked_fill(dropped, kNever);
  return kept.masked_fill(kept.lt(kept.gather(1, top_k.sub(1))), kNever);
}

/// Draws for rows `which` of the allowed logits: [which, 1].
at::Tensor draw(const at::Tensor& allowed, const std::vector<int64_t>& which,
                std::span<const LogitRow> rows) {
  std::vector<double> temperature, uniform, top_p;
  std::vector<int64_t> top_k;
  bool has_filter = false;
  for (const int64_t i : which) {
    const LogitRow& row = rows[static_cast<size_t>(i)];
    const SamplingParams& sampling = *row.sampling;
    temperature.push_back(sampling.temperature);
    uniform.push_back(row.uniform);
    top_p.push_back(sampling.top_p);
    top_k.push_back(sampling.top_k > 0 ? std::min<int64_t>(sampling.top_k, allowed.size(1))
                                       : allowed.size(1));
    has_filter = has_filter || sampling.top_p < 1.0f || sampling.top_k > 0;
  }
  const auto column = [&](const auto& values) { return upload(values, allowed).unsqueeze(1); };
  at::Tensor scaled = allowed.index_select(0, upload(which, allowed)).to(at::kDouble);
  scaled.div_(column(temperature));
  if (!has_filter) return inverse_cdf(at::softmax(scaled, 1), column(uniform));
  const auto [sorted, order] = at::sort(scaled, /*stable=*/true, /*dim=*/1, /*descending=*/true);
  const at::Tensor left = filtered(sorted, column(top_p), column(top_k));
  return order.gather(1, inverse_cdf(at::softmax(left, 1), column(uniform)));
}

/// Whether the most probable token and its numbers are all that a row asks for.
bool is_plain(const LogitRow& row) {
  const SamplingParams& sampling = *row.sampling;
  return sampling.temperature == 0 && sampling.num_top_logprobs < 0 &&
         sampling.logit_bias.empty() && !row.suppress_end_tokens;
}

}  // namespace

at::Tensor sample_rows(at::Tensor logits, std::span<const LogitRow> rows, const TokenRules& rules,
                       const ModelKernels* kernels) {
  if (kernels && std::ranges::all_of(rows, is_plain)) {
    at::Tensor statistics = at::empty({logits.size(0), 4}, logits.options().dtype(at::kFloat));
    kernels->row_statistics(logits, statistics);
    return statistics;
  }
  logits = logits.to(at::kFloat);
  add_biases(logits, rows, rules);
  at::Tensor shares = at::softmax(logits, 1);
  const at::Tensor entropy = at::special_entr(shares).sum(1, /*keepdim=*/true);
  at::Tensor allowed = logits.narrow(1, 0, rules.vocab_size).clone();
  if (rules.mask_token >= 0 && rules.mask_token < rules.vocab_size) {
    allowed.select(1, rules.mask_token).fill_(kNever);
  }
  const at::Tensor best = std::get<1>(allowed.max(1, /*keepdim=*/true));

  std::vector<int64_t> drawn;
  int64_t num_top = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].sampling->temperature > 0) drawn.push_back(static_cast<int64_t>(i));
    num_top = std::max<int64_t>(num_top, rows[i].sampling->num_top_logprobs);
  }
  const at::Tensor token =
      drawn.empty() ? best : best.index_copy(0, upload(drawn, logits), draw(allowed, drawn, rows));
  std::vector<at::Tensor> columns{token, shares.gather(1, token)};
  if (num_top = std::min<int64_t>(num_top, rules.vocab_size); num_top > 0) {
    const auto [values, ids] = allowed.topk(num_top, 1);
    columns.push_back(ids);
    columns.push_back(values.sub(at::logsumexp(logits, 1, /*keepdim=*/true)));
  }
  // Against all others, the mask token too: where that one leads, the margin is negative.
  const at::Tensor first = shares.gather(1, best);
  const at::Tensor second = std::get<0>(shares.scatter_(1, best, 0.0).max(1, /*keepdim=*/true));
  columns.insert(columns.begin() + 2, {first.sub(second), entropy});
  for (at::Tensor& column : columns) column = column.to(at::kDouble);  // ids are exact in double
  return at::cat(columns, 1);
}

std::vector<RowResult> read_rows(const std::vector<at::Tensor>& chunks,
                                 std::span<const LogitRow> rows) {
  std::vector<RowResult> results;
  results.reserve(rows.size());
  for (const at::Tensor& chunk : chunks) {
    const at::Tensor host = chunk.cpu().contiguous();
    const bool is_statistics = host.scalar_type() == at::kFloat;
    const int64_t width = host.size(1), count = (width - 4) / 2;
    for (int64_t i = 0; i < host.size(0); ++i) {
      RowResult result;
      const double* row = nullptr;
      if (is_statistics) {
        const float* four = host.const_data_ptr<float>() + i * width;
        result = {std::bit_cast<TokenId>(four[0]), four[1], four[2], four[3], {}};
      } else {
        row = host.const_data_ptr<double>() + i * width;
        result = {static_cast<TokenId>(row[0]),
                  static_cast<float>(row[1]),
                  static_cast<float>(row[2]),
                  static_cast<float>(row[3]),
                  {}};
      }
      if (!std::isfinite(result.probability) || !std::isfinite(result.entropy)) {
        throw Error(ErrorCode::kInternal, "the model's logits are not finite numbers");
      }
      const int64_t asked = rows[results.size()].sampling->num_top_logprobs;
      for (int64_t k = 0; k < std::min(asked, count); ++k) {
        const auto logprob = static_cast<float>(row[4 + count + k]);
        result.top.push_back({static_cast<TokenId>(row[4 + k]), std::max(logprob, -9999.0f)});
      }
      results.push_back(std::move(result));
    }
  }
  return results;
}

}  // namespace bicached
