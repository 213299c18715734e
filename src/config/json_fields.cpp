#include "config/json_fields.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/json_file.h"
#include "base/log.h"
#include "base/text_list.h"
#include "bicached/error.h"
#include "config/limits.h"

namespace bicached {
namespace {

/// Clients whose language has one type of number send whole numbers as 16.0.
int64_t whole_number(const std::string& field, double value) {
  constexpr double kTooLarge = 0x1p63;
  if (value == std::floor(value) && value >= -kTooLarge && value < kTooLarge) {
    return static_cast<int64_t>(value);
  }
  throw Error(ErrorCode::kInvalidRequest,
              field + " is " + nlohmann::json(value).dump() + "; it must be an integer" +
                  (value == std::floor(value) ? " of 64 bits" : ""),
              field);
}

}  // namespace

nlohmann::json parse_body(const std::string& body) {
  constexpr JsonLimits kLimits{std::numeric_limits<size_t>::max(), 32};
  nlohmann::json json =
      parse_json_text(body, "the request body", ErrorCode::kInvalidRequest, kLimits);
  if (json.is_object()) return json;
  throw Error(ErrorCode::kInvalidRequest,
              std::string("the request body must be an object, not ") + json.type_name());
}

void throw_wrong_type(const std::string& field, const char* what, const nlohmann::json& value) {
  throw Error(
      ErrorCode::kInvalidRequest,
      field + " must be " + what + ", not " + (value.is_null() ? "null" : value.type_name()),
      field);
}

Fields::Fields(const nlohmann::json& object, std::string path)
    : object_(object), path_(std::move(path)) {
  if (object_.is_object()) return;
  if (!path_.empty()) throw_wrong_type(path_, "an object", object_);
  throw Error(ErrorCode::kInvalidRequest,
              std::string("must be an object, not ") + object_.type_name());
}

std::string Fields::path_of(std::string_view name) const {
  return path_.empty() ? std::string(name) : path_ + "." + std::string(name);
}

const nlohmann::json* Fields::find(const char* name) {
  known_.emplace(name);
  const auto it = object_.find(name);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

const nlohmann::json& Fields::require(const char* name) {
  if (const nlohmann::json* value = find(name)) return *value;
  const std::string field = path_of(name);
  throw Error(ErrorCode::kInvalidRequest, field + " is missing", field);
}

std::optional<bool> Fields::boolean(const char* name) {
  const nlohmann::json* value = find(name);
  if (!value) return std::nullopt;
  if (!value->is_boolean()) throw_wrong_type(path_of(name), "true or false", *value);
  return value->get<bool>();
}

std::optional<int64_t> Fields::integer(const char* name) {
  const nlohmann::json* value = find(name);
  if (!value) return std::nullopt;
  if (value->is_number_float()) return whole_number(path_of(name), value->get<double>());
  if (!value->is_number_integer()) throw_wrong_type(path_of(name), "an integer", *value);
  constexpr auto kMax = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  if (value->is_number_unsigned() && value->get<uint64_t>() > kMax) {
    throw Error(
        ErrorCode::kInvalidRequest,
        path_of(name) + " is " + value->dump() + "; allowed is at most " + std::to_string(kMax),
        path_of(name));
  }
  return value->get<int64_t>();
}

std::optional<int64_t> Fields::integer(const char* name, int64_t min, int64_t max) {
  const std::optional<int64_t> value = integer(name);
  if (!value || (*value >= min && *value <= max)) return value;
  throw Error(ErrorCode::kInvalidRequest,
              path_of(name) + " is " + std::to_string(*value) + "; allowed is " +
                  std::to_string(min) + " to " + std::to_string(max),
              path_of(name));
}

std::optional<int> Fields::limited_integer(const char* name, const char* limit_name) {
  const std::optional<int64_t> value = integer(name);
  if (!value) return std::nullopt;
  const FieldLimit* limit = find_field_limit(limit_name ? limit_name : name);
  if (!limit) throw Error(ErrorCode::kInternal, std::string("no limit is known for ") + name);
  return static_cast<int>(
      *integer(name, static_cast<int64_t>(limit->min), static_cast<int64_t>(limit->max)));
}

std::optional<double> Fields::limited_number(const char* name, const char* limit_name) {
  const nlohmann::json* value = find(name);
  if (!value) return std::nullopt;
  if (!value->is_number()) throw_wrong_type(path_of(name), "a number", *value);
  const double number = value->get<double>();
  check_field(name, number, ErrorCode::kInvalidRequest, limit_name ? limit_name : name);
  return number;
}

std::optional<std::string> Fields::text(const char* name) {
  const nlohmann::json* value = find(name);
  if (!value) return std::nullopt;
  if (!value->is_string()) throw_wrong_type(path_of(name), "a string", *value);
  return value->get<std::string>();
}

std::optional<std::string> Fields::choice(const char* name, const std::vector<std::string>& names) {
  std::optional<std::string> value = text(name);
  if (!value || std::ranges::find(names, *value) != names.end()) return value;
  throw Error(
      ErrorCode::kInvalidRequest,
      path_of(name) + " is \"" + log_escape(*value, 64) + "\"; allowed is one of: " + joined(names),
      path_of(name));
}

void Fields::ignore(std::initializer_list<const char*> names) {
  for (const char* name : names) known_.emplace(name);
}

std::vector<std::string> Fields::unknown() const {
  std::vector<std::string> names;
  for (const auto& [name, value] : object_.items()) {
    if (!known_.contains(name)) names.push_back(path_of(name));
  }
  return names;
}

std::vector<TokenId> read_token_ids(const nlohmann::json& list, const std::string& field,
                                    int vocab_size) {
  std::vector<TokenId> ids;
  ids.reserve(list.size());
  for (const nlohmann::json& value : list) {
    if (!value.is_number()) throw_wrong_type(field, "a list of token ids", value);
    const bool too_large =
        value.is_number_unsigned() && value.get<uint64_t>() >= static_cast<uint64_t>(vocab_size);
    const int64_t id = too_large                 ? -1
                       : value.is_number_float() ? whole_number(field, value.get<double>())
                                                 : value.get<int64_t>();
    if (id < 0 || id >= vocab_size) {
      throw Error(ErrorCode::kInvalidRequest,
                  field + " has the token id " + value.dump() + "; allowed is 0 to " +
                      std::to_string(vocab_size - 1),
                  field);
    }
    ids.push_back(static_cast<TokenId>(id));
  }
  return ids;
}

}  // namespace bicached
