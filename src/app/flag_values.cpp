#include "app/flag_values.h"

#include <algorithm>

namespace bicached {

int parse_count(const std::string& flag, const std::string& text, int min, int max) {
  const std::optional<int> number = parsed<int>(text);
  if (number && *number >= min && *number <= max) return *number;
  throw Error(ErrorCode::kInvalidSettings,
              flag + " is '" + text + "'; allowed is a whole number, " + std::to_string(min) +
                  " to " + std::to_string(max),
              flag);
}

std::vector<std::string> split_names(const std::string& text) {
  std::vector<std::string> names;
  for (const std::string_view part : split_at(text, ',')) {
    const std::string_view name = trimmed(part, " ");
    if (!name.empty()) names.emplace_back(name);
  }
  return names;
}

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::ranges::find(names, name) != names.end();
}

}  // namespace bicached
