#pragma once

#include <string>
#include <string_view>

namespace bicached {

/// Writes `text` beside `path`, as `path`.new, and renames it: who reads finds the old text or the
/// new one. 0, or the errno of what failed.
int replace_file(const std::string& path, std::string_view text);

}  // namespace bicached
