#include "config/decode_defaults.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/json_file.h"
#include "config/limits.h"

namespace bicached {
namespace {

/// generation_config.json of a model folder; an empty object when there is none.
class ModelDefaults {
 public:
  explicit ModelDefaults(const std::string& folder)
      : path_(std::filesystem::path(folder) / "generation_config.json"), json_({}) {
    std::error_code ignored;
    if (!std::filesystem::exists(path_, ignored)) return;
    json_ = read_json_file(path_, ErrorCode::kInvalidModel);
    if (!json_.is_object()) throw Error(ErrorCode::kInvalidModel, path_ + ": not a JSON object");
  }

  /// The number under `key`, in the range of the request field `field`; nothing: absent or null.
  std::optional<double> number(const char* key, const char* field) const {
    const auto found = json_.find(key);
    if (found == json_.end() || found->is_null()) return std::nullopt;
    if (!found->is_number()) {
      throw Error(ErrorCode::kInvalidModel, where(key) + "is not a number but " + found->dump());
    }
    const double value = found->get<double>();
    try {
      check_field(field, value);
    } catch (const Error& error) {
      throw Error(ErrorCode::kInvalidModel, where(key) + error.what());
    }
    return value;
  }

  std::string text(const char* key) const {
    const auto found = json_.find(key);
    if (found == json_.end() || found->is_null()) return "";
    if (!found->is_string()) {
      throw Error(ErrorCode::kInvalidModel, where(key) + "is not a string but " + found->dump());
    }
    return found->get<std::string>();
  }

 private:
  std::string where(const char* key) const { return path_ + ": \"" + key + "\": "; }

  std::string path_;
  nlohmann::json json_;
};

/// The setting if it is set, else the model's value, else `fallback`.
template <typename T>
T choose(T setting, std::optional<double> of_model, double fallback) {
  return setting == -1 ? static_cast<T>(of_model.value_or(fallback)) : setting;
}

std::string choose_algorithm(const ModelDefaults& model) {
  if (model.number("threshold", "threshold")) return "threshold";
  const std::string remasking = model.text("remasking");
  return remasking.empty() ? "low_confidence" : remasking;
}

}  // namespace

DecodeSettings resolve_decode_defaults(const DecodeSettings& settings,
                                       const std::string& model_folder) {
  const ModelDefaults model(model_folder);
  DecodeSettings resolved = settings;
  std::optional<double> length = model.number("gen_length", "max_tokens");
  if (!length) length = model.number("max_new_tokens", "max_tokens");
  resolved.max_tokens = choose(settings.max_tokens, length, 64);
  resolved.steps = choose(settings.steps, model.number("steps", "steps"), 0);
  resolved.block_length =
      choose(settings.block_length, model.number("block_length", "block_length"), 32);
  resolved.threshold = choose(settings.threshold, model.number("threshold", "threshold"), 0.9);
  resolved.temperature =
      choose(settings.temperature, model.number("temperature", "temperature"), 0.0);
  if (resolved.algorithm.empty()) resolved.algorithm = choose_algorithm(model);

  // What is left to be wrong came from the settings: the range there has to let -1 through.
  constexpr ErrorCode kCode = ErrorCode::kInvalidSettings;
  check_field("max_tokens", resolved.max_tokens, kCode);
  if (resolved.steps != 0 || settings.steps == 0) check_field("steps", resolved.steps, kCode);
  check_field("block_length", resolved.block_length, kCode);
  check_field("threshold", resolved.threshold, kCode);
  check_field("factor", resolved.factor, kCode);
  check_field("temperature", resolved.temperature, kCode);
  return resolved;
}

int default_steps(const DecodeSettings& resolved, int gen_length) {
  return resolved.steps == 0 ? gen_length : std::min(resolved.steps, gen_length);
}

std::optional<IntraCache> intra_cache_of(const std::string& name) {
  if (name == "none") return IntraCache::kNone;
  if (name == "prefix") return IntraCache::kPrefix;
  if (name == "dual") return IntraCache::kDual;
  if (name == "adaptive") return IntraCache::kAdaptive;
  return std::nullopt;
}

}  // namespace bicached
