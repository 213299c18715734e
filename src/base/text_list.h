#pragma once

#include <charconv>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace bicached {

/// The parts of `text` between separators: one more than there are separators, some may be empty.
std::vector<std::string_view> split_at(std::string_view text, char separator);

/// "a, b".
std::string joined(const std::vector<std::string>& items, std::string_view separator = ", ");

/// Without white space at both ends.
std::string_view trimmed(std::string_view text, std::string_view space = " \t\n\r\f\v");

/// The number that all of `text` is; nothing if it is none, or does not fit the type.
template <class Number>
std::optional<Number> parsed(std::string_view text) {
  Number number{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

}  // namespace bicached
