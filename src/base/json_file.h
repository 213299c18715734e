#pragma once

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "bicached/error.h"

namespace bicached {

/// Bounds of a small JSON file that people write by hand.
struct JsonLimits {
  size_t max_bytes = 1 << 20;
  int max_depth = 16;
};

/// The bytes of a file, at most `max_bytes`. Throws Error(code) naming the path and the reason.
std::string read_text_file(const std::string& path, size_t max_bytes, ErrorCode code);

/// Parses JSON (comments not allowed). Throws Error(code) naming `what` and the place for bad
/// syntax, a key given twice in one object, nesting over the limit or text over it.
nlohmann::json parse_json_text(std::string_view text, const std::string& what, ErrorCode code,
                               const JsonLimits& limits = {});

/// Both in one.
nlohmann::json read_json_file(const std::string& path, ErrorCode code,
                              const JsonLimits& limits = {});

}  // namespace bicached
