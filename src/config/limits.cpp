#include "config/limits.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "bicached/unmasker.h"

namespace bicached {
namespace {

constexpr double kMaxTokens = 1 << 20;  // no model of today has a longer canvas

constexpr FieldLimit kLimits[] = {
    {"max_tokens", 1, kMaxTokens, true, true, "tokens"},
    {"steps", 1, kMaxTokens, true, true, "steps"},
    {"block_length", 1, kMaxTokens, true, true, "tokens"},
    {"temperature", 0, 2, true, false, ""},
    {"top_p", 0, 1, true, false, ""},
    {"top_k", -1, 2147483647.0, true, true, "tokens"},
    {"min_p", 0, 1, true, false, ""},
    {"frequency_penalty", -2, 2, true, false, ""},
    {"presence_penalty", -2, 2, true, false, ""},
    {"repetition_penalty", 0, 100, false, false, ""},
    {"min_tokens", 0, kMaxTokens, true, true, "tokens"},
    {"cfg_scale", 0, 100, true, false, ""},
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

std::span<const FieldLimit> field_limits() {
  static const std::vector<FieldLimit> limits = [] {
    std::vector<FieldLimit> all(std::begin(kLimits), std::end(kLimits));
    for (const UnmaskerParam& param : unmasker_params()) all.push_back(param.limit);
    return all;
  }();
  return limits;
}

const FieldLimit* find_field_limit(std::string_view name) {
  const auto found = std::ranges::find(field_limits(), name, &FieldLimit::name);
  return found == field_limits().end() ? nullptr : &*found;
}

std::string describe_limit(const FieldLimit& limit) {
  std::string text = limit.min_allowed ? number_text(limit.min) + " to " + number_text(limit.max)
                                       : "more than " + number_text(limit.min) + ", at most " +
                                             number_text(limit.max);
  if (*limit.unit) text += std::string(" ") + limit.unit;
  if (limit.is_integer) text += ", a whole number";
  return text;
}

void check_field(std::string_view name, double value, ErrorCode code, std::string_view limit_name) {
  const FieldLimit* limit = find_field_limit(limit_name.empty() ? name : limit_name);
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
  for (const auto& [name, value] : decode.params) check_field(name, value, code);
  check_field("cfg_scale", decode.cfg_scale, code);
  check_field("temperature", sampling.temperature, code);
  check_field("top_p", sampling.top_p, code);
  check_field("top_k", sampling.top_k, code);
  check_field("min_p", sampling.min_p, code);
  check_field("frequency_penalty", sampling.frequency_penalty, code);
  check_field("presence_penalty", sampling.presence_penalty, code);
  check_field("repetition_penalty", sampling.repetition_penalty, code);
  check_field("min_tokens", decode.min_tokens, code);
  if (sampling.num_top_logprobs != -1) check_field("top_logprobs", sampling.num_top_logprobs, code);
  for (const auto& [token, bias] : sampling.logit_bias) check_field("logit_bias", bias, code);
}

}  // namespace bicached
