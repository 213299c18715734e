#include "config/decode_defaults.h"

#include <algorithm>
#include <optional>

#include "bicached/unmasker.h"
#include "config/limits.h"
#include "config/model_defaults.h"

namespace bicached {
namespace {

/// What fits a screen, and ends where a model that never ends its text would go on.
constexpr int kLongestChat = 256;

/// By IntraCache.
constexpr const char* kIntraCaches[] = {"none", "prefix", "dual", "adaptive"};
/// By Schedule.
constexpr const char* kSchedules[] = {"even", "timesteps"};

/// The setting if it is set, else the model's value, else `fallback`.
template <typename T>
T choose(T setting, std::optional<double> of_model, double fallback) {
  return setting == -1 ? static_cast<T>(of_model.value_or(fallback)) : setting;
}

/// A file that gives the parameter that is called like an algorithm means that one.
std::string choose_algorithm(const ModelDefaults& model, const ReferenceDecoder& reference) {
  for (const UnmaskerInfo& info : unmasker_table()) {
    if (find_field_limit(info.name) && model.number(info.name, info.name)) return info.name;
  }
  // As LLaDA's and as Dream's code call it.
  for (const char* key : {"remasking", "alg"}) {
    if (const std::string name = model.text(key); !name.empty()) return name;
  }
  return reference.algorithm;
}

/// As transformers does: what belongs to drawing counts only where `do_sample` does not say false,
/// and with `do_sample` the temperature is 1 unless one is named.
void resolve_sampling(const DecodeSettings& settings, const ModelDefaults& model,
                      DecodeSettings& resolved) {
  const std::optional<bool> draws = model.flag("do_sample");
  const auto number = [&](const char* name, double otherwise) {
    return model.number(name, name).value_or(otherwise);
  };
  resolved.temperature =
      choose(settings.temperature,
             draws.value_or(true) ? model.number("temperature", "temperature") : std::nullopt,
             draws.value_or(false) ? 1.0 : 0.0);
  if (draws.value_or(true)) {
    resolved.top_p = number("top_p", 1);
    resolved.top_k = static_cast<int>(std::max(0.0, number("top_k", 0)));
    resolved.min_p = number("min_p", 0);
  }
  resolved.repetition_penalty = number("repetition_penalty", 1);
  resolved.min_tokens = static_cast<int>(model.number("min_new_tokens", "min_tokens").value_or(0));
}

}  // namespace

DecodeSettings resolve_decode_defaults(const DecodeSettings& settings,
                                       const std::string& model_folder,
                                       const ReferenceDecoder& reference) {
  const ModelDefaults model(model_folder);
  DecodeSettings resolved = settings;
  // LLaDA's gen_length is how long a canvas begins, the library's max_new_tokens where a text ends.
  const std::optional<double> limit = model.number("max_new_tokens", "max_tokens");
  std::optional<double> length = model.number("gen_length", "max_tokens");
  if (!length) length = limit;
  resolved.max_tokens = choose(settings.max_tokens, length, 64);
  const bool has_limit = settings.max_tokens != -1 || limit;
  resolved.longest_chat =
      has_limit ? resolved.max_tokens : std::max(kLongestChat, resolved.max_tokens);
  resolved.steps = choose(settings.steps, model.number("steps", "steps"), 0);
  resolved.block_length = choose(
      settings.block_length, model.number("block_length", "block_length"), reference.block_length);
  resolve_sampling(settings, model, resolved);
  for (const UnmaskerParam& param : unmasker_params()) {
    const char* name = param.limit.name;
    double& value = resolved.params.try_emplace(name, -1).first->second;
    const auto of_family = reference.params.find(name);
    value = choose(value, model.number(name, name),
                   of_family == reference.params.end() ? param.default_value : of_family->second);
  }
  if (resolved.algorithm.empty()) resolved.algorithm = choose_algorithm(model, reference);

  // What is left to be wrong came from the settings: the range there has to let -1 through.
  constexpr ErrorCode kCode = ErrorCode::kInvalidSettings;
  check_field("max_tokens", resolved.max_tokens, kCode);
  if (resolved.steps != 0 || settings.steps == 0) check_field("steps", resolved.steps, kCode);
  check_field("block_length", resolved.block_length, kCode);
  for (const auto& [name, value] : resolved.params) check_field(name, value, kCode);
  check_field("temperature", resolved.temperature, kCode);
  return resolved;
}

int default_steps(const DecodeSettings& resolved, int gen_length) {
  return resolved.steps == 0 ? gen_length : std::min(resolved.steps, gen_length);
}

GenerateRequest make_request(const DecodeSettings& resolved, int gen_length) {
  GenerateRequest request;
  request.gen_length = gen_length;
  DecodeParams& decode = request.decode;
  decode.algorithm = resolved.algorithm;
  decode.steps = default_steps(resolved, gen_length);
  decode.block_length = resolved.block_length;
  decode.params = resolved.params;
  decode.schedule = schedule_of(resolved.schedule);
  decode.eos_early_stop = resolved.eos_early_stop;
  decode.logits_eos_inf = resolved.logits_eos_inf;
  decode.confidence_eos_eot_inf = resolved.confidence_eos_eot_inf;
  decode.cfg_scale = static_cast<float>(resolved.cfg_scale);
  decode.intra_cache = intra_cache_of(resolved.intra_cache);
  decode.min_tokens = std::min(resolved.min_tokens, gen_length);
  SamplingParams& sampling = request.sampling;
  sampling.temperature = static_cast<float>(resolved.temperature);
  sampling.top_p = static_cast<float>(resolved.top_p);
  sampling.top_k = resolved.top_k;
  sampling.min_p = static_cast<float>(resolved.min_p);
  sampling.repetition_penalty = static_cast<float>(resolved.repetition_penalty);
  return request;
}

std::string intra_cache_name(IntraCache intra_cache) {
  return kIntraCaches[static_cast<size_t>(intra_cache)];
}

std::optional<IntraCache> intra_cache_of(const std::string& name) {
  const auto found = std::ranges::find(kIntraCaches, name);
  if (found == std::end(kIntraCaches)) return std::nullopt;
  return static_cast<IntraCache>(found - std::begin(kIntraCaches));
}

std::string schedule_name(Schedule schedule) { return kSchedules[static_cast<size_t>(schedule)]; }

std::optional<Schedule> schedule_of(const std::string& name) {
  const auto found = std::ranges::find(kSchedules, name);
  if (found == std::end(kSchedules)) return std::nullopt;
  return static_cast<Schedule>(found - std::begin(kSchedules));
}

}  // namespace bicached
