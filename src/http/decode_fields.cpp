#include "http/decode_fields.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <random>

#include "bicached/depth_policy.h"
#include "bicached/error.h"
#include "bicached/unmasker.h"
#include "config/decode_defaults.h"
#include "config/limits.h"

namespace bicached {
namespace {

constexpr size_t kMaxStopBytes = 1024;
constexpr size_t kMaxBiases = 1024;

uint64_t random_seed() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) | device();
}

std::vector<std::pair<TokenId, float>> read_logit_bias(Fields& fields, const ModelInfo& model) {
  std::vector<std::pair<TokenId, float>> biases;
  const nlohmann::json* value = fields.find("logit_bias");
  if (!value) return biases;
  if (!value->is_object()) throw_wrong_type("logit_bias", "an object of token id: bias", *value);
  if (value->size() > kMaxBiases) {
    throw Error(ErrorCode::kInvalidRequest,
                "logit_bias has " + std::to_string(value->size()) +
                    " entries; allowed is at most " + std::to_string(kMaxBiases),
                "logit_bias");
  }
  for (const auto& [key, bias] : value->items()) {
    TokenId token = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), token);
    if (error != std::errc() || end != key.data() + key.size() || token < 0 ||
        token >= model.vocab_size) {
      throw Error(ErrorCode::kInvalidRequest,
                  "logit_bias has the key \"" + key.substr(0, 64) +
                      "\"; allowed are token ids from 0 to " + std::to_string(model.vocab_size - 1),
                  "logit_bias");
    }
    if (!bias.is_number()) throw_wrong_type("logit_bias", "an object of token id: number", bias);
    check_field("logit_bias", bias.get<double>());
    biases.emplace_back(token, bias.get<float>());
  }
  return biases;
}

void read_sampling(Fields& fields, const DecodeSettings& defaults, const ModelInfo& model,
                   CommonFields& out) {
  SamplingParams& sampling = out.request.sampling;
  sampling.temperature =
      static_cast<float>(fields.limited_number("temperature").value_or(defaults.temperature));
  sampling.top_p = static_cast<float>(fields.limited_number("top_p").value_or(1.0));
  sampling.top_k = fields.limited_integer("top_k").value_or(0);
  const std::optional<int64_t> seed = fields.integer("seed");
  sampling.seed = seed ? static_cast<uint64_t>(*seed) : random_seed();
  sampling.logit_bias = read_logit_bias(fields, model);
}

void read_decode(Fields& fields, const DecodeSettings& defaults, CommonFields& out) {
  DecodeParams& decode = out.request.decode;
  out.steps = fields.limited_integer("steps");
  decode.block_length = fields.limited_integer("block_length").value_or(defaults.block_length);
  decode.algorithm = fields.choice("algorithm", unmasker_names()).value_or(defaults.algorithm);
  decode.params = defaults.params;
  for (const UnmaskerParam& param : unmasker_params()) {
    const std::optional<double> value = fields.limited_number(param.limit.name);
    if (value) decode.params[param.limit.name] = *value;
  }
  decode.schedule = schedule_of(
      fields.choice("schedule", {"auto", "even", "timesteps"}).value_or(defaults.schedule));
  decode.cfg_scale =
      static_cast<float>(fields.limited_number("cfg_scale").value_or(defaults.cfg_scale));
  decode.logits_eos_inf = fields.boolean("logits_eos_inf").value_or(defaults.logits_eos_inf);
  decode.confidence_eos_eot_inf =
      fields.boolean("confidence_eos_eot_inf").value_or(defaults.confidence_eos_eot_inf);
  decode.eos_early_stop = fields.boolean("eos_early_stop").value_or(defaults.eos_early_stop);
  decode.ignore_eos = fields.boolean("ignore_eos").value_or(false);
  const std::optional<std::string> intra_cache =
      fields.choice("intra_cache", {"auto", "none", "prefix", "dual", "adaptive"});
  out.asks_for_intra_cache = intra_cache.has_value();
  decode.intra_cache = intra_cache_of(intra_cache.value_or(defaults.intra_cache));
}

void read_cache(Fields& fields, CommonFields& out) {
  const nlohmann::json* value = fields.find("cache");
  if (!value) return;
  constexpr size_t kMaxSaltBytes = 128;
  Fields inner(*value, "cache");
  CacheParams& cache = out.request.cache;
  cache.policy = inner.choice("policy", depth_policy_names()).value_or("");
  cache.depth = inner.limited_integer("depth");
  cache.refresh_interval = inner.limited_integer("refresh_interval");
  cache.refresh_commits = inner.limited_integer("refresh_commits");
  cache.refresh_depth = inner.limited_integer("refresh_depth");
  cache.prefix_len = inner.limited_integer("prefix_len");
  cache.salt = inner.text("salt").value_or("");
  if (cache.salt.size() > kMaxSaltBytes) {
    throw Error(ErrorCode::kInvalidRequest,
                "cache.salt has " + std::to_string(cache.salt.size()) +
                    " bytes; allowed is at most " + std::to_string(kMaxSaltBytes),
                "cache.salt");
  }
  if (cache.policy == "fixed" && !cache.depth) {
    throw Error(ErrorCode::kInvalidRequest, "cache.depth is missing; the policy \"fixed\" needs it",
                "cache.depth");
  }
  if (cache.depth && cache.policy != "fixed") {
    throw Error(ErrorCode::kInvalidRequest,
                "cache.depth is only for \"policy\": \"fixed\"; " +
                    (cache.policy.empty() ? "no policy is given"
                                          : "the policy given is \"" + cache.policy + "\""),
                "cache.depth");
  }
  const std::vector<std::string> unknown = inner.unknown();
  if (unknown.empty()) return;
  throw Error(ErrorCode::kInvalidRequest,
              unknown[0].substr(0, 100) +
                  " is not known; the fields of cache are policy, depth, refresh_interval, "
                  "refresh_commits, refresh_depth, prefix_len, salt",
              "cache");
}

/// Reuse that comes and goes with other traffic can change an answer: this asks for none.
void read_deterministic(Fields& fields, CommonFields& out) {
  CacheParams& cache = out.request.cache;
  cache.deterministic = fields.boolean("deterministic").value_or(false);
  if (!cache.deterministic) return;
  const bool reuses = !cache.policy.empty() && find_depth_policy(cache.policy, true).reuses;
  const bool reuses_own = out.asks_for_intra_cache && out.request.decode.intra_cache &&
                          *out.request.decode.intra_cache != IntraCache::kNone;
  if (!reuses && !reuses_own) return;
  const char* field = reuses ? "cache.policy" : "intra_cache";
  throw Error(ErrorCode::kInvalidRequest,
              std::string(field) +
                  " asks for reuse, and \"deterministic\": true for none; "
                  "leave one of them out",
              field);
}

void refuse_unless(bool asks_for_nothing, const char* name, const char* why) {
  if (asks_for_nothing) return;
  throw Error(ErrorCode::kUnsupportedParameter, std::string(name) + ": " + why, name);
}

}  // namespace

CommonFields read_common_fields(Fields& fields, const DecodeSettings& defaults,
                                const ModelInfo& model) {
  CommonFields out;
  read_sampling(fields, defaults, model, out);
  read_decode(fields, defaults, out);
  read_cache(fields, out);
  read_deterministic(fields, out);
  out.max_tokens = fields.limited_integer("max_tokens");
  return out;
}

void refuse_unsupported_fields(Fields& fields) {
  using nlohmann::json;
  const json nothing;
  const auto value = [&](const char* name) -> const json& {
    const json* found = fields.find(name);
    return found ? *found : nothing;
  };
  const auto is_nothing = [](const json& v) {
    return v.is_null() || ((v.is_array() || v.is_object()) && v.empty());
  };
  refuse_unless(is_nothing(value("tools")), "tools", "this server has no tools; leave it empty");
  refuse_unless(is_nothing(value("functions")), "functions", "this server has no functions");
  const json& tool_choice = value("tool_choice");
  refuse_unless(tool_choice.is_null() || tool_choice == "none" || tool_choice == "auto",
                "tool_choice", "this server has no tools; only \"none\" is allowed");
  const json& function_call = value("function_call");
  refuse_unless(function_call.is_null() || function_call == "none" || function_call == "auto",
                "function_call", "this server has no functions; only \"none\" is allowed");
  const json& format = value("response_format");
  refuse_unless(format.is_null() || (format.is_object() && format.value("type", json()) == "text"),
                "response_format", "only {\"type\": \"text\"} is supported");
  for (const char* name : {"frequency_penalty", "presence_penalty"}) {
    const json& penalty = value(name);
    if (!penalty.is_null() && !penalty.is_number()) throw_wrong_type(name, "a number", penalty);
    refuse_unless(penalty.is_null() || penalty.get<double>() == 0, name,
                  "penalties are not supported; only 0 is allowed");
  }
  const json& best_of = value("best_of");
  refuse_unless(best_of.is_null() || best_of == 1, "best_of", "only 1 is supported");
  const json& modalities = value("modalities");
  refuse_unless(modalities.is_null() || modalities == json::array({"text"}), "modalities",
                "only [\"text\"] is supported");
  refuse_unless(value("audio").is_null(), "audio", "this server answers with text only");
  fields.ignore({"user", "metadata", "store", "service_tier", "parallel_tool_calls",
                 "prompt_cache_key", "safety_identifier", "reasoning_effort", "verbosity"});
}

std::vector<std::string> read_stops(Fields& fields) {
  const nlohmann::json* value = fields.find("stop");
  std::vector<std::string> stops;
  if (!value) return stops;
  const nlohmann::json list = value->is_array() ? *value : nlohmann::json::array({*value});
  if (list.size() > 4) {
    throw Error(ErrorCode::kInvalidRequest,
                "stop has " + std::to_string(list.size()) + " strings; allowed is at most 4",
                "stop");
  }
  for (const nlohmann::json& stop : list) {
    if (!stop.is_string()) throw_wrong_type("stop", "a string or a list of strings", stop);
    stops.push_back(stop.get<std::string>());
    const size_t size = stops.back().size();
    if (size >= 1 && size <= kMaxStopBytes) continue;
    throw Error(ErrorCode::kInvalidRequest,
                "stop has a string of " + std::to_string(size) + " bytes; allowed is 1 to " +
                    std::to_string(kMaxStopBytes),
                "stop");
  }
  return stops;
}

void choose_gen_length(GenerateRequest& request, const CommonFields& common,
                       const DecodeSettings& defaults, const ModelInfo& model) {
  const int64_t given = static_cast<int64_t>(request.prompt_ids.size() + request.suffix_ids.size());
  const int64_t room = model.max_length - given;
  const int64_t wanted =
      common.max_tokens ? *common.max_tokens : std::min<int64_t>(defaults.max_tokens, room);
  if (room < 1 || wanted > room) {
    const int64_t generation = std::max<int64_t>(wanted, 1);
    throw Error(ErrorCode::kContextLengthExceeded,
                "the model's longest canvas is " + std::to_string(model.max_length) +
                    " tokens; this request needs " + std::to_string(given + generation) + " (" +
                    std::to_string(given) + " in the prompt, " + std::to_string(generation) +
                    " to generate)",
                room < 1 ? "" : "max_tokens");
  }
  request.gen_length = static_cast<int>(wanted);
  request.decode.steps = common.steps.value_or(default_steps(defaults, request.gen_length));
}

}  // namespace bicached
