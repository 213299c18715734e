#include "denoise/logit_rules.h"

#include <ATen/ops/full.h>
#include <ATen/ops/where.h>

#include <limits>

namespace bicached {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

/// Leaves the allowed tokens of the rows that name some.
void keep_allowed(at::Tensor& logits, std::span<const LogitRow> rows, const TokenRules& rules) {
  for (size_t i = 0; i < rows.size(); ++i) {
    const std::vector<TokenId>& allowed = rows[i].sampling->allowed_tokens;
    if (allowed.empty()) continue;
    std::vector<int64_t> kept(allowed.begin(), allowed.end());
    if (rules.mask_token >= 0) kept.push_back(rules.mask_token);
    at::Tensor row = logits.select(0, static_cast<int64_t>(i));
    const at::Tensor index = upload(kept, logits);
    const at::Tensor values = row.index_select(0, index);
    row.fill_(kNever).index_copy_(0, index, values);
  }
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
    for (const TokenId token : rows[i].never) add(token, kNever);
    for (const TokenId token : rows[i].never_here) add(token, kNever);
  }
  if (where.empty()) return;
  logits.view(-1).index_add_(0, upload(where, logits), upload(what, logits));
}

void penalize(at::Tensor& logits, std::span<const LogitRow> rows, const TokenRules& rules) {
  std::vector<int64_t> where;
  std::vector<float> repetition, off;
  for (size_t i = 0; i < rows.size(); ++i) {
    const SamplingParams& sampling = *rows[i].sampling;
    const int64_t row = static_cast<int64_t>(i) * logits.size(1);
    for (const CountedToken& counted : rows[i].counted) {
      if (counted.token >= rules.vocab_size || counted.token == rules.mask_token) continue;
      // Nothing is repeated by staying where it is.
      const int times = counted.num_decided - (counted.token == rows[i].current ? 1 : 0);
      if (times == 0 && !counted.is_given) continue;
      where.push_back(row + counted.token);
      repetition.push_back(sampling.repetition_penalty);
      off.push_back(sampling.frequency_penalty * static_cast<float>(times) +
                    (times > 0 ? sampling.presence_penalty : 0.0f));
    }
  }
  if (where.empty()) return;
  const at::Tensor index = upload(where, logits), factor = upload(repetition, logits);
  const at::Tensor values = logits.view(-1).index_select(0, index);
  const at::Tensor repeated = at::where(values.gt(0), values.div(factor), values.mul(factor));
  logits.view(-1).index_copy_(0, index, repeated.sub(upload(off, logits)));
}

}  // namespace

bool has_logit_rules(const LogitRow& row) {
  return !row.sampling->logit_bias.empty() || !row.sampling->allowed_tokens.empty() ||
         !row.never.empty() || !row.never_here.empty() || !row.counted.empty();
}

void apply_logit_rules(at::Tensor& logits, std::span<const LogitRow> rows,
                       const TokenRules& rules) {
  keep_allowed(logits, rows, rules);
  add_biases(logits, rows, rules);
  penalize(logits, rows, rules);
}

}  // namespace bicached
