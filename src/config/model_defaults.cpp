#include "config/model_defaults.h"

#include <filesystem>

#include "base/json_file.h"
#include "config/limits.h"

namespace bicached {

ModelDefaults::ModelDefaults(const std::string& folder)
    : path_(std::filesystem::path(folder) / "generation_config.json"), json_({}) {
  std::error_code ignored;
  if (!std::filesystem::exists(path_, ignored)) return;
  json_ = read_json_file(path_, ErrorCode::kInvalidModel);
  if (!json_.is_object()) throw Error(ErrorCode::kInvalidModel, path_ + ": not a JSON object");
}

std::optional<double> ModelDefaults::number(const char* key, const char* field) const {
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

std::optional<bool> ModelDefaults::flag(const char* key) const {
  const auto found = json_.find(key);
  if (found == json_.end() || found->is_null()) return std::nullopt;
  if (!found->is_boolean()) {
    throw Error(ErrorCode::kInvalidModel, where(key) + "is not true or false but " + found->dump());
  }
  return found->get<bool>();
}

std::string ModelDefaults::text(const char* key) const {
  const auto found = json_.find(key);
  if (found == json_.end() || found->is_null()) return "";
  if (!found->is_string()) {
    throw Error(ErrorCode::kInvalidModel, where(key) + "is not a string but " + found->dump());
  }
  return found->get<std::string>();
}

}  // namespace bicached
