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
#include "decode/request_rules.h"

namespace bicached {
namespace {

constexpr size_t kMaxTextBytes = 1024;  // of a stop string or a bad word
constexpr size_t kMaxBadWords = 128;
constexpr size_t kMaxBiases = 1024;

uint64_t random_seed() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) | device();
}

void check_most(const std::string& field, size_t count, const char* unit, size_t most) {
  if (count <= most) return;
  throw Error(ErrorCode::kInvalidRequest,
              field + " has " + std::to_string(count) + " " + unit + "; allowed is at most " +
                  std::to_string(most),
              field);
}

std::vector<std::pair<TokenId, float>> read_logit_bias(Fields& fields, const ModelInfo& model) {
  std::vector<std::pair<TokenId, float>> biases;
  const nlohmann::json* value = fields.find("logit_bias");
  if (!value) return biases;
  if (!value->is_object()) throw_wrong_type("logit_bias", "an object of token id: bias", *value);
  check_most("logit_bias", value->size(), "entries", kMaxBiases);
  for (const auto& [key, bias] : value->items()) {
    if (bias.is_number() && bias.get<double>() == 0) continue;  // says nothing of any key
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

/// A list of token ids; nothing for null.
std::vector<TokenId> read_id_list(Fields& fields, const char* name, const ModelInfo& model) {
  const nlohmann::json* value = fields.find(name);
  if (!value) return {};
  if (!value->is_array()) throw_wrong_type(name, "a list of token ids", *value);
  return read_token_ids(*value, name, model.vocab_size);
}

/// `bad_words`, each as tokens with and without a space before it, as vLLM has them.
std::vector<std::vector<TokenId>> read_bad_words(Fields& fields, const Tokenizer& tokenizer) {
  std::vector<std::vector<TokenId>> words;
  for (const std::string& text : read_texts(fields, "bad_words", kMaxBadWords)) {
    const size_t begin = text.find_first_not_of(' ');
    if (begin == std::string::npos) continue;
    const std::string word = text.substr(begin);
    for (const std::string& form : {word, " " + word}) {
      std::vector<TokenId> ids = tokenizer.encode(form, false);
      if (!ids.empty()) words.push_back(std::move(ids));
    }
  }
  return words;
}

void read_sampling(Fields& fields, const Backend& backend, CommonFields& out) {
  const DecodeSettings& defaults = backend.defaults;
  const ModelInfo& model = backend.engine->model();
  SamplingParams& sampling = out.request.sampling;
  const auto number = [&](const char* name, double otherwise) {
    return static_cast<float>(fields.limited_number(name).value_or(otherwise));
  };
  sampling.temperature = number("temperature", defaults.temperature);
  sampling.top_p = number("top_p", defaults.top_p);
  sampling.min_p = number("min_p", defaults.min_p);
  sampling.top_k = std::max(0, fields.limited_integer("top_k").value_or(defaults.top_k));
  sampling.frequency_penalty = number("frequency_penalty", 0);
  sampling.presence_penalty = number("presence_penalty", 0);
  // llama.cpp's name of it.
  const double repetition = fields.limited_number("repeat_penalty", "repetition_penalty")
                                .value_or(defaults.repetition_penalty);
  sampling.repetition_penalty = number("repetition_penalty", repetition);
  std::optional<int64_t> seed = fields.integer("seed");
  if (!seed) seed = fields.integer("random_seed");  // Mistral's
  // -1 is llama.cpp's "any".
  sampling.seed = seed && *seed != -1 ? static_cast<uint64_t>(*seed) : random_seed();
  sampling.logit_bias = read_logit_bias(fields, model);
  sampling.allowed_tokens = read_id_list(fields, "allowed_token_ids", model);
  const nlohmann::json* allowed = fields.find("allowed_token_ids");
  if (allowed && sampling.allowed_tokens.empty()) {
    throw Error(ErrorCode::kInvalidRequest, "allowed_token_ids is empty; name at least one token",
                "allowed_token_ids");
  }
}

/// What of the text's end a request decides, and which words it may not have.
void read_text_rules(Fields& fields, const Backend& backend, CommonFields& out) {
  const ModelInfo& model = backend.engine->model();
  DecodeParams& decode = out.request.decode;
  decode.ignore_eos = fields.boolean("ignore_eos").value_or(false);
  decode.stop_tokens = read_id_list(fields, "stop_token_ids", model);
  decode.min_tokens = fields.limited_integer("min_tokens").value_or(backend.defaults.min_tokens);
  decode.bad_words = read_bad_words(fields, *backend.tokenizer);
}

/// Something must be left to choose from at every position.
void check_allowed_tokens(const CommonFields& common, const ModelInfo& model) {
  const std::vector<TokenId>& allowed = common.request.sampling.allowed_tokens;
  const DecodeParams& decode = common.request.decode;
  const auto is_in = [](const std::vector<TokenId>& list, TokenId token) {
    return std::ranges::find(list, token) != list.end();
  };
  const std::vector<TokenId> never = never_chosen(decode, model);
  const auto can_stand = [&](TokenId token) {
    if (token == model.mask_token || is_in(never, token)) return false;
    const bool is_end = is_in(model.end_tokens, token) || is_in(decode.stop_tokens, token);
    if (is_end && decode.min_tokens > 0) return false;
    return std::ranges::find(decode.bad_words, std::vector{token}) == decode.bad_words.end();
  };
  if (allowed.empty() || std::ranges::any_of(allowed, can_stand)) return;
  throw Error(ErrorCode::kInvalidRequest,
              "allowed_token_ids leaves no token to choose from: the mask token, and what "
              "ignore_eos, logits_eos_inf, min_tokens and bad_words take away, don't count",
              "allowed_token_ids");
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
  check_most("cache.salt", cache.salt.size(), "bytes", kMaxSaltBytes);
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

}  // namespace

CommonFields read_common_fields(Fields& fields, const Backend& backend) {
  CommonFields out;
  read_sampling(fields, backend, out);
  read_decode(fields, backend.defaults, out);
  read_text_rules(fields, backend, out);
  check_allowed_tokens(out, backend.engine->model());
  read_cache(fields, out);
  read_deterministic(fields, out);
  return out;
}

std::vector<std::string> read_texts(Fields& fields, const char* name, size_t most) {
  const nlohmann::json* value = fields.find(name);
  std::vector<std::string> texts;
  if (!value) return texts;
  const nlohmann::json list = value->is_array() ? *value : nlohmann::json::array({*value});
  for (const nlohmann::json& text : list) {
    if (text.is_null()) continue;
    if (!text.is_string()) throw_wrong_type(name, "a string or a list of strings", text);
    const std::string one = text.get<std::string>();
    if (one.size() > kMaxTextBytes) {
      throw Error(ErrorCode::kInvalidRequest,
                  std::string(name) + " has a string of " + std::to_string(one.size()) +
                      " bytes; allowed is at most " + std::to_string(kMaxTextBytes),
                  name);
    }
    if (!one.empty()) texts.push_back(one);
  }
  check_most(name, texts.size(), "strings", most);
  return texts;
}

}  // namespace bicached
