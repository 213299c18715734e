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

const nlohmann::json* ModelDefaults::find(const char* key, const char* what,
                                          bool (nlohmann::json::*is_right)() const) const {
  const auto found = json_.find(key);
  if (found == json_.end() || found->is_null()) return nullptr;
  if (((*found).*is_right)()) return &*found;
  throw Error(ErrorCode::kInvalidModel, where(key) + "is not " + what + " but " + found->dump());
}

std::optional<double> ModelDefaults::number(const char* key, const char* field) const {
  const nlohmann::json* found = find(key, "a number", &nlohmann::json::is_number);
  if (!found) return std::nullopt;
  const double value = found->get<double>();
  try {
    check_field(field, value);
  } catch (const Error& error) {
    throw Error(ErrorCode::kInvalidModel, where(key) + error.what());
  }
  return value;
}

std::optional<bool> ModelDefaults::flag(const char* key) const {
  const nlohmann::json* found = find(key, "true or false", &nlohmann::json::is_boolean);
  return found ? std::optional(found->get<bool>()) : std::nullopt;
}

std::string ModelDefaults::text(const char* key) const {
  const nlohmann::json* found = find(key, "a string", &nlohmann::json::is_string);
  return found ? found->get<std::string>() : "";
}

}  // namespace bicached
