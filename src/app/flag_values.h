#pragma once

#include <string>
#include <vector>

#include "base/text_list.h"
#include "bicached/error.h"

namespace bicached {

/// The number a flag of a subcommand holds. Throws kInvalidSettings naming the flag.
template <class Number>
Number parse_number(const std::string& flag, const std::string& text) {
  if (const auto number = parsed<Number>(text)) return *number;
  throw Error(ErrorCode::kInvalidSettings, flag + " is '" + text + "', which is not a number",
              flag);
}

/// A whole number from `min` to `max`. Throws kInvalidSettings naming flag and range.
int parse_count(const std::string& flag, const std::string& text, int min = 1, int max = 1 << 20);

/// "a,b" -> a, b; nothing for an empty text. Spaces around a name and empty names are dropped.
std::vector<std::string> split_names(const std::string& text);

bool contains(const std::vector<std::string>& names, const std::string& name);

}  // namespace bicached
