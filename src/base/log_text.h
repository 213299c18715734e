#pragma once

#include <string>
#include <string_view>

namespace bicached {

/// `text` as one line of valid UTF-8 that shows what it says: control characters (C0, DEL, C1, line
/// and paragraph separators), marks of writing direction and bytes that are no UTF-8 as \xNN.
std::string visible_text(std::string_view text);

/// The same as the inside of a JSON string, ASCII only.
std::string json_text(std::string_view text);

}  // namespace bicached
