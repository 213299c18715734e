#include "config/decode_defaults.h"

#include <algorithm>
#include <optional>

#include "bicached/unmasker.h"
#include "config/limits.h"
#include "config/model_defaults.h"

namespace bicached {
namespace {

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

}  // namespace

DecodeSettings resolve_decode_defaults(const DecodeSettings& settings,
                                       const std::string& model_folder,
                                       const ReferenceDecoder& reference) {
  const ModelDefaults model(model_folder);
  DecodeSettings resolved = settings;
  std::optional<double> length = model.number("gen_length", "max_tokens");
  if (!length) length = model.number("max_new_tokens", "max_tokens");
  resolved.max_tokens = choose(settings.max_tokens, length, 64);
  resolved.steps = choose(settings.steps, model.number("steps", "steps"), 0);
  resolved.block_length = choose(
      settings.block_length, model.number("block_length", "block_length"), reference.block_length);
  resolved.temperature =
      choose(settings.temperature, model.number("temperature", "temperature"), 0.0);
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
