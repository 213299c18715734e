#include "denoise/sampler.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/index_copy.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/max.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/special_entr.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "denoise/logit_rules.h"

namespace bicached {
namespace {

/// Token, probability, confidence, margin, entropy and divergence.
constexpr int64_t kColumns = 6;
constexpr float kNever = -std::numeric_limits<float>::infinity();

/// Logits of rows with guidance, from theirs and those of the rows behind them.
void guide(at::Tensor& logits, std::span<const LogitRow> rows) {
  std::vector<int64_t> guided, guides;
  std::vector<float> guidance;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].guidance == 0) continue;
    guided.push_back(static_cast<int64_t>(i));
    guides.push_back(static_cast<int64_t>(i) + 1);
    guidance.push_back(rows[i].guidance);
  }
  if (guided.empty()) return;
  const at::Tensor index = upload(guided, logits);
  const at::Tensor without = logits.index_select(0, upload(guides, logits));
  const at::Tensor difference = logits.index_select(0, index).sub_(without);
  logits.index_copy_(0, index,
                     difference.mul_(upload(guidance, logits).unsqueeze(1)).add_(without));
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

/// Takes out what is less probable than a share (log_min_p [n, 1]) of each row's most probable one.
void drop_improbable(at::Tensor& scaled, const at::Tensor& log_min_p) {
  const at::Tensor least = std::get<0>(scaled.max(1, /*keepdim=*/true)).add(log_min_p);
  scaled.masked_fill_(scaled.lt(least), kNever);
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

bool has_filter(const SamplingParams& sampling) {
  return sampling.top_p < 1.0f || sampling.top_k > 0 || sampling.min_p > 0;
}

/// What rows `which` of the logits are drawn from: float64 [which, V], after temperature (not at
/// 0), min_p, top_p and top_k.
at::Tensor shaped(const at::Tensor& logits, const std::vector<int64_t>& which,
                  std::span<const LogitRow> rows) {
  std::vector<double> temperature, top_p, log_min_p;
  std::vector<int64_t> top_k;
  bool filters = false;
  for (const int64_t i : which) {
    const SamplingParams& sampling = *rows[static_cast<size_t>(i)].sampling;
    temperature.push_back(sampling.temperature > 0 ? sampling.temperature : 1.0);
    top_p.push_back(sampling.top_p);
    log_min_p.push_back(std::log(static_cast<double>(sampling.min_p)));  // off: -infinity
    top_k.push_back(sampling.top_k > 0 ? std::min<int64_t>(sampling.top_k, logits.size(1))
                                       : logits.size(1));
    filters = filters || has_filter(sampling);
  }
  const auto column = [&](const auto& values) { return upload(values, logits).unsqueeze(1); };
  at::Tensor scaled = logits.index_select(0, upload(which, logits)).to(at::kDouble);
  scaled.div_(column(temperature));
  if (!filters) return at::softmax(scaled, 1);
  drop_improbable(scaled, column(log_min_p));
  const auto [sorted, order] = at::sort(scaled, /*stable=*/true, /*dim=*/1, /*descending=*/true);
  const at::Tensor left = filtered(sorted, column(top_p), column(top_k));
  return at::softmax(scaled.scatter_(1, order, left), 1);
}

/// Where the values of `some` stand in `all`, both ascending.
std::vector<int64_t> places_of(const std::vector<int64_t>& some, const std::vector<int64_t>& all) {
  std::vector<int64_t> places;
  for (const int64_t value : some) {
    places.push_back(std::ranges::lower_bound(all, value) - all.begin());
  }
  return places;
}

/// Draws for rows `which` from `weights` [which, V]: [which, 1]. Where nothing is left to draw from
/// it is `otherwise` [which, 1].
at::Tensor draw(const at::Tensor& weights, const std::vector<int64_t>& which,
                std::span<const LogitRow> rows, const at::Tensor& otherwise) {
  std::vector<double> uniform;
  for (const int64_t i : which) uniform.push_back(rows[static_cast<size_t>(i)].uniform);
  // Also where it is not a number: a softmax of nothing.
  const at::Tensor nothing = weights.sum(1, /*keepdim=*/true).gt(0).logical_not_();
  const at::Tensor drawn = inverse_cdf(weights, upload(uniform, weights).unsqueeze(1));
  return at::where(nothing, otherwise, drawn);
}

/// The chosen tokens [n, 1], and those that rows force in their place.
at::Tensor with_forced(const at::Tensor& token, std::span<const LogitRow> rows) {
  std::vector<int64_t> where, what;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].sampling->forced == kNoToken) continue;
    where.push_back(static_cast<int64_t>(i));
    what.push_back(rows[i].sampling->forced);
  }
  if (where.empty()) return token;
  return token.index_copy(0, upload(where, token), upload(what, token).unsqueeze(1));
}

/// Takes the tokens that rows discount out of their distributions [n, V].
void discount(at::Tensor& shares, std::span<const LogitRow> rows) {
  std::vector<int64_t> where;
  std::vector<int64_t> which;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].discounted.empty()) continue;
    which.push_back(static_cast<int64_t>(i));
    for (const TokenId token : rows[i].discounted) {
      where.push_back(static_cast<int64_t>(i) * shares.size(1) + token);
    }
  }
  if (where.empty()) return;
  shares.view(-1).index_fill_(0, upload(where, shares), 0.0);
  const at::Tensor index = upload(which, shares);
  at::Tensor left = shares.index_select(0, index);
  left.div_(left.sum(1, /*keepdim=*/true).clamp_min_(std::numeric_limits<float>::min()));
  shares.index_copy_(0, index, left);
}

/// Infinite for all rows if none asks.
at::Tensor divergences(const at::Tensor& logits, std::span<const LogitRow> rows,
                       DistributionHistory* history) {
  const bool asked =
      std::ranges::any_of(rows, [](const LogitRow& row) { return row.history != kNoId; });
  if (asked) return history->divergences(logits, rows);
  return at::full({logits.size(0), 1}, std::numeric_limits<float>::infinity(), logits.options());
}

/// What kernels make of all rows, and of those that do not suit them nothing that counts.
at::Tensor by_kernels(const at::Tensor& logits, std::span<const LogitRow> rows,
                      const TokenRules& rules, const ModelKernels& kernels) {
  at::Tensor statistics = at::empty({logits.size(0), 8}, logits.options().dtype(at::kFloat));
  kernels.row_statistics(logits, statistics);
  std::vector<DrawnRow> drawn;
  for (size_t i = 0; i < rows.size(); ++i) {
    const SamplingParams& sampling = *rows[i].sampling;
    const bool draws = sampling.temperature > 0;
    if (!suits_kernels(rows[i]) ||
        (!draws && !(rules.filters_confidence && has_filter(sampling)))) {
      continue;
    }
    drawn.push_back({static_cast<int32_t>(i), sampling.top_k, draws,
                     draws ? 1 / sampling.temperature : 1.0f, sampling.top_p,
                     std::log(sampling.min_p), static_cast<float>(rows[i].uniform),
                     rules.filters_confidence});
  }
  kernels.draw(logits, drawn, statistics);
  return statistics;
}

/// Statistics of kernels as `sample_rows` has its columns: float64 [n, 6].
at::Tensor as_columns(const at::Tensor& statistics) {
  const at::Tensor tokens = statistics.narrow(1, 0, 1).contiguous().view(at::kInt);
  const at::Tensor none = at::full({statistics.size(0), 1}, std::numeric_limits<double>::infinity(),
                                   statistics.options().dtype(at::kDouble));
  return at::cat({tokens.to(at::kDouble), statistics.narrow(1, 1, 4).to(at::kDouble), none}, 1);
}

/// The form in ATen: what `sample_rows` returns where no kernels are.
at::Tensor by_aten(at::Tensor logits, std::span<const LogitRow> rows, const TokenRules& rules,
                   DistributionHistory* history) {
  logits = logits.to(at::kFloat);
  guide(logits, rows);
  apply_logit_rules(logits, rows, rules);
  at::Tensor shares = at::softmax(logits, 1);
  at::Tensor allowed = logits.narrow(1, 0, rules.vocab_size).clone();
  if (rules.mask_token >= 0 && rules.mask_token < rules.vocab_size) {
    allowed.select(1, rules.mask_token).fill_(kNever);
  }
  const auto [greatest, best] = allowed.max(1, /*keepdim=*/true);

  std::vector<int64_t> drawn, reshaped;
  int64_t num_top = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const SamplingParams& sampling = *rows[i].sampling;
    const bool draws = sampling.temperature > 0;
    if (draws) drawn.push_back(static_cast<int64_t>(i));
    if (rules.filters_confidence && (draws || has_filter(sampling))) {
      reshaped.push_back(static_cast<int64_t>(i));
    }
    num_top = std::max<int64_t>(num_top, sampling.num_top_logprobs);
  }
  // A token that may not be chosen can take others out by top_p and top_k where the confidence is
  // that of the filtered distribution, as in the reference; else it stays out of the filters too.
  const at::Tensor of_filter = reshaped.empty() ? at::Tensor() : shaped(logits, reshaped, rows);
  at::Tensor token = best;
  if (!drawn.empty()) {
    at::Tensor weights;
    if (!rules.filters_confidence) {
      weights = shaped(allowed, drawn, rows);
    } else {
      weights = of_filter.index_select(0, upload(places_of(drawn, reshaped), of_filter))
                    .narrow(1, 0, rules.vocab_size)
                    .clone();
      weights.masked_fill_(allowed.index_select(0, upload(drawn, logits)).eq(kNever), 0.0);
    }
    const at::Tensor index = upload(drawn, logits);
    token = best.index_copy(0, index, draw(weights, drawn, rows, best.index_select(0, index)));
  }
  token = with_forced(token, rows);
  const at::Tensor probability = shares.gather(1, token);
  if (!reshaped.empty()) shares.index_copy_(0, upload(reshaped, logits), of_filter.to(at::kFloat));
  discount(shares, rows);
  const at::Tensor confidence = shares.gather(1, token);
  const at::Tensor entropy = at::special_entr(shares).sum(1, /*keepdim=*/true);
  // Against all others, the mask token too: where that one leads, the margin is negative.
  const at::Tensor first = shares.gather(1, best);
  const at::Tensor second = std::get<0>(shares.scatter_(1, best, 0.0).max(1, /*keepdim=*/true));
  const at::Tensor chosen = token.masked_fill(greatest.eq(kNever), kNoToken);
  std::vector<at::Tensor> columns{chosen,     probability,
                                  confidence, first.sub(second),
                                  entropy,    divergences(logits, rows, history)};
  if (num_top = std::min<int64_t>(num_top, rules.vocab_size); num_top > 0) {
    const auto [values, ids] = allowed.topk(num_top, 1);
    columns.push_back(ids);
    columns.push_back(values.sub(at::logsumexp(logits, 1, /*keepdim=*/true)));
  }
  for (at::Tensor& column : columns) column = column.to(at::kDouble);  // ids are exact in double
  return at::cat(columns, 1);
}

}  // namespace

bool suits_kernels(const LogitRow& row) {
  const SamplingParams& sampling = *row.sampling;
  return sampling.num_top_logprobs < 0 && !has_logit_rules(row) && sampling.forced == kNoToken &&
         row.discounted.empty() && row.guidance == 0 && row.history == kNoId;
}

at::Tensor sample_rows(at::Tensor logits, std::span<const LogitRow> rows, const TokenRules& rules,
                       DistributionHistory* history, const ModelKernels* kernels) {
  if (!kernels) return by_aten(std::move(logits), rows, rules, history);
  const at::Tensor statistics = by_kernels(logits, rows, rules, *kernels);
  std::vector<int64_t> which;
  std::vector<LogitRow> others;
  for (size_t i = 0; i < rows.size(); ++i) {
    const bool is_guide = i > 0 && rows[i - 1].guidance != 0;
    if (suits_kernels(rows[i]) && !is_guide) continue;
    which.push_back(static_cast<int64_t>(i));
    others.push_back(rows[i]);
  }
  if (others.empty()) return statistics;
  const at::Tensor index = upload(which, logits);
  const at::Tensor rest = by_aten(logits.index_select(0, index), others, rules, history);
  at::Tensor all = at::empty({logits.size(0), rest.size(1)}, rest.options());
  all.narrow(1, 0, kColumns).copy_(as_columns(statistics));
  return all.index_copy_(0, index, rest);
}

std::vector<RowResult> read_rows(const std::vector<at::Tensor>& chunks,
                                 std::span<const LogitRow> rows) {
  std::vector<RowResult> results;
  results.reserve(rows.size());
  for (const at::Tensor& chunk : chunks) {
    const at::Tensor host = chunk.cpu().contiguous();
    const bool is_statistics = host.scalar_type() == at::kFloat;
    const int64_t width = host.size(1), count = (width - kColumns) / 2;
    const auto add = [&](TokenId token, const auto* row, float divergence) {
      const auto number = [row](int column) { return static_cast<float>(row[column]); };
      results.push_back({token, number(1), number(2), number(3), number(4), divergence, {}});
    };
    for (int64_t i = 0; i < host.size(0); ++i) {
      if (is_statistics) {
        const float* row = host.const_data_ptr<float>() + i * width;
        add(std::bit_cast<TokenId>(row[0]), row, std::numeric_limits<float>::infinity());
        continue;
      }
      const double* row = host.const_data_ptr<double>() + i * width;
      const int64_t asked = rows[results.size()].sampling->num_top_logprobs;
      add(static_cast<TokenId>(row[0]), row, static_cast<float>(row[5]));
      for (int64_t k = 0; k < std::min(asked, count); ++k) {
        const auto logprob = static_cast<float>(row[kColumns + count + k]);
        results.back().top.push_back(
            {static_cast<TokenId>(row[kColumns + k]), std::max(logprob, -9999.0f)});
      }
    }
  }
  return results;
}

}  // namespace bicached
