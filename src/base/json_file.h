#pragma once

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "base/descriptor.h"
#include "bicached/error.h"

namespace bicached {

/// Bounds of a small JSON file that people write by hand.
struct JsonLimits {
  size_t max_bytes = 1 << 20;
  int max_depth = 16;
  bool unique_keys = true;  // in one object
};

/// Why these first bytes of a file can't be what they should be; empty: nothing is known against
/// them. Downloads that went wrong leave pointers of Git LFS or web pages behind.
std::string foreign_content(std::string_view first_bytes);
/// A regular file, opened for reading. Throws Error(code) naming the path and what it is: a
/// named pipe would keep the program waiting for ever.
Descriptor open_regular_file(const std::string& path, ErrorCode code);

/// The bytes of a regular file, at most `max_bytes`. Throws Error(code) naming the path and the
/// reason.
std::string read_text_file(const std::string& path, size_t max_bytes, ErrorCode code);

/// Parses JSON (comments not allowed). Throws Error(code) naming `what` and the place for bad
/// syntax, a key given twice in one object, nesting over the limit or text over it. Takes a time
/// that grows with the text's length.
nlohmann::json parse_json_text(std::string_view text, const std::string& what, ErrorCode code,
                               const JsonLimits& limits = {});

/// Both in one.
nlohmann::json read_json_file(const std::string& path, ErrorCode code,
                              const JsonLimits& limits = {});

}  // namespace bicached
