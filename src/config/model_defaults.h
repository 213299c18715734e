#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

namespace bicached {

/// generation_config.json of a model folder; an empty object when there is none. Everything throws
/// kInvalidModel that names file and key.
class ModelDefaults {
 public:
  explicit ModelDefaults(const std::string& folder);

  /// The number under `key`, in the range of the request field `field`; nothing: absent or null.
  std::optional<double> number(const char* key, const char* field) const;
  std::optional<bool> flag(const char* key) const;
  /// Empty: absent or null.
  std::string text(const char* key) const;
  std::string where(const char* key) const { return path_ + ": \"" + key + "\": "; }

 private:
  /// Null: absent or null. `what` the value has to be, in words.
  const nlohmann::json* find(const char* key, const char* what,
                             bool (nlohmann::json::*is_right)() const) const;

  std::string path_;
  nlohmann::json json_;
};

}  // namespace bicached
