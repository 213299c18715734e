#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "bicached/request.h"

namespace bicached {

/// A request's JSON body: an object. Throws kInvalidRequest for bad syntax, text that is not UTF-8,
/// a key given twice, nesting over 32 levels.
nlohmann::json parse_body(const std::string& body);

/// Reads the fields of one JSON object by name, type and range; null counts as absent. Every
/// message names the field with its path ("cache.depth"). Remembers which fields were asked for.
class Fields {
 public:
  /// `object` must outlive this. Throws kInvalidRequest when it is no object.
  explicit Fields(const nlohmann::json& object, std::string path = "");

  const nlohmann::json* find(const char* name);
  const nlohmann::json& require(const char* name);
  std::optional<bool> boolean(const char* name);
  /// Whole numbers, also written as 16.0.
  std::optional<int64_t> integer(const char* name);
  std::optional<int64_t> integer(const char* name, int64_t min, int64_t max);
  /// Numbers whose range is in config/limits under `limit` (the field's own name when null).
  std::optional<int> limited_integer(const char* name, const char* limit = nullptr);
  std::optional<double> limited_number(const char* name, const char* limit = nullptr);
  std::optional<std::string> text(const char* name);
  /// One of `names`; the message lists them.
  std::optional<std::string> choice(const char* name, const std::vector<std::string>& names);

  /// Accepted and not used.
  void ignore(std::initializer_list<const char*> names);
  /// Names that are in the object and were not asked for.
  std::vector<std::string> unknown() const;
  /// Names that were asked for.
  std::vector<std::string> known() const { return {known_.begin(), known_.end()}; }
  std::string path_of(std::string_view name) const;

 private:
  const nlohmann::json& object_;
  const std::string path_;
  std::set<std::string, std::less<>> known_;
};

/// Throws kInvalidRequest: "<field> must be <what>, not <type of value>".
[[noreturn]] void throw_wrong_type(const std::string& field, const char* what,
                                   const nlohmann::json& value);

/// A JSON array of token ids below `vocab_size`. Throws kInvalidRequest naming the wrong one.
std::vector<TokenId> read_token_ids(const nlohmann::json& list, const std::string& field,
                                    int vocab_size);

}  // namespace bicached
