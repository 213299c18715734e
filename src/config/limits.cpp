#include "config/limits.h"

#include <cmath>
#include <cstdio>

namespace bicached {
namespace {

constexpr double kMaxTokens = 1 << 20;  // no model of today has a longer canvas

constexpr FieldLimit kLimits[] = {
    {"max_tokens", 1, kMaxTokens, true, true, "tokens"},
    {"steps", 1, kMaxTokens, true, true, "steps"},
    {"block_length", 1, kMaxTokens, true, true, "tokens"},
    {"temperature", 0, 2, true, false, ""},
    {"top_p", 0, 1, false, false, ""},
    {"top_k", 0, 2147483647.0, true, true, "tokens"},
    {"threshold", 0, 1, false, false, ""},
    {"factor", 0, 100, false, false, ""},
    {"top_logprobs", 0, 20, true, true, "tokens"},
    {"logit_bias", -100, 100, true, false, ""},
    {"refresh_interval", 1, kMaxTokens, true, true, "forwards"},
    {"refresh_commits", 1, kMaxTokens, true, true, "tokens"},
    {"refresh_depth", 0, 4096, true, true, "layers"},
    {"depth", 0, 4096, true, true, "layers"},
    {"prefix_len", 0, kMaxTokens, true, true, "tokens"},
};

std::string number_text(double value) {
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, "%.15g", value);
  return buffer;
}

}  // namespace

std::span<const FieldLimit> field_limits() { return kLimits; }

const FieldLimit* find_field_limit(std::string_view name) {
  for (const FieldLimit& limit : kLimits) {
    if (name == limit.name) return &limit;
  }
  return nullptr;
}

std::string describe_limit(const FieldLimit& limit) {
  std::string text = limit.min_allowed ? number_text(limit.min) + " to " + number_text(limit.max)
                                       : "more than " + number_text(limit.min) + ", at most " +
                                             number_text(limit.max);
  if (*limit.unit) text += std::string(" ") + limit.unit;
  if (limit.is_integer) text += ", a whole number";
  return text;
}

void check_field(std::string_view name, double value, ErrorCode code) {
  const FieldLimit* limit = find_field_limit(name);
  if (!limit) throw Error(ErrorCode::kInternal, "no limit is known for " + std::string(name));
  const bool high_enough = limit->min_allowed ? value >= limit->min : value > limit->min;
  const bool whole = !limit->is_integer || value == std::floor(value);
  if (high_enough && value <= limit->max && whole) return;
  throw Error(
      code,
      std::string(name) + " is " + number_text(value) + "; allowed is " + describe_limit(*limit),
      std::string(name));
}

void check_params(const DecodeParams& decode, const SamplingParams& sampling, int gen_length,
                  ErrorCode code) {
  check_field("max_tokens", gen_length, code);
  check_field("steps", decode.steps, code);
  check_field("block_length", decode.block_length, code);
  check_field("threshold", decode.threshold, code);
  check_field("factor", decode.factor, code);
  check_field("temperature", sampling.temperature, code);
  check_field("top_p", sampling.top_p, code);
  check_field("top_k", sampling.top_k, code);
  if (sampling.num_top_logprobs != -1) check_field("top_logprobs", sampling.num_top_logprobs, code);
  for (const auto& [token, bias] : sampling.logit_bias) check_field("logit_bias", bias, code);
}

}  // namespace bicached
