#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace bicached {

/// Bytes of the longest valid prefix, in the sense of Unicode table 3-7 (no overlong forms, no
/// surrogates): text.size() when all of it is valid.
size_t valid_utf8_prefix(std::string_view text);
inline bool is_valid_utf8(std::string_view text) { return valid_utf8_prefix(text) == text.size(); }

/// Whether a byte goes on with a character that another one began.
inline bool continues_character(char byte) {
  return (static_cast<unsigned char>(byte) & 0xC0) == 0x80;
}

/// The code point that begins at `pos` of valid text; moves `pos` behind it.
char32_t next_code_point(std::string_view text, size_t& pos);
/// The code point that ends before `pos` (> 0) of valid text; moves `pos` to its first byte.
char32_t previous_code_point(std::string_view text, size_t& pos);
void append_utf8(std::string& out, char32_t code_point);
size_t count_code_points(std::string_view text);

/// Broken bytes become one U+FFFD per maximal subpart (Unicode 3.9 D93b). Bytes at the end that can
/// still become a character go to `unfinished` when it is given (at most 3), else become U+FFFD
/// too.
std::string lossy_utf8(std::string_view bytes, std::string* unfinished = nullptr);

/// White_Space, which is the `\s` of the reference's regex engines.
bool is_white_space(char32_t c);
/// `\w`: letters, marks, decimal digits, connector punctuation, joiners.
bool is_word_character(char32_t c);

}  // namespace bicached
