#pragma once

#include <string>
#include <string_view>

namespace bicached {

/// NFC of valid UTF-8, as the reference library's older Unicode has it. Time n log n in the length
/// of the longest run of combining marks.
std::string nfc(std::string_view text);

}  // namespace bicached
