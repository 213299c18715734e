#include "base/utf8.h"

#include <utf8proc.h>

#include <algorithm>

namespace bicached {
namespace {

struct Sequence {
  size_t num_bytes = 1;  // of the character, or of the maximal subpart of a broken one
  bool valid = false;
};

/// Bytes of the character that a lead byte announces; 0: no character begins with it.
size_t announced_bytes(unsigned char lead) {
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4) return 0;
  return lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

Sequence read_sequence(std::string_view text, size_t pos) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(pos);
  const size_t length = announced_bytes(lead);
  if (length == 0) return {1, false};
  // Allowed range of the second byte.
  unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (size_t i = 1; i < length; ++i) {
    if (pos + i >= text.size()) return {i, false};
    const unsigned char c = byte(pos + i);
    if (c < low || c > high) return {i, false};
    low = 0x80, high = 0xBF;
  }
  return {length, true};
}

/// Whether the text ends inside what its lead byte announces. After a lead
/// with a wrong second byte (a surrogate, an overlong form) it still waits, as the reference does.
bool ends_inside_sequence(std::string_view rest) {
  return rest.size() < announced_bytes(static_cast<unsigned char>(rest[0])) &&
         std::ranges::all_of(rest.substr(1), continues_character);
}

}  // namespace

size_t valid_utf8_prefix(std::string_view text) {
  size_t pos = 0;
  while (pos < text.size()) {
    const Sequence sequence = read_sequence(text, pos);
    if (!sequence.valid) return pos;
    pos += sequence.num_bytes;
  }
  return pos;
}

char32_t next_code_point(std::string_view text, size_t& pos) {
  const unsigned char lead = static_cast<unsigned char>(text[pos++]);
  if (lead < 0x80) return lead;
  const int more = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : 1;
  char32_t c = lead & (0x3F >> more);
  for (int i = 0; i < more; ++i) c = (c << 6) | (static_cast<unsigned char>(text[pos++]) & 0x3F);
  return c;
}

char32_t previous_code_point(std::string_view text, size_t& pos) {
  do {
    --pos;
  } while (pos > 0 && continues_character(text[pos]));
  size_t end = pos;
  return next_code_point(text, end);
}

void append_utf8(std::string& out, char32_t code_point) {
  utf8proc_uint8_t bytes[4];
  const auto count = utf8proc_encode_char(static_cast<utf8proc_int32_t>(code_point), bytes);
  out.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(count));
}

size_t count_code_points(std::string_view text) {
  return text.size() - static_cast<size_t>(std::ranges::count_if(text, continues_character));
}

std::string lossy_utf8(std::string_view bytes, std::string* unfinished) {
  std::string out;
  out.reserve(bytes.size());
  if (unfinished) unfinished->clear();
  for (size_t pos = 0; pos < bytes.size();) {
    const Sequence sequence = read_sequence(bytes, pos);
    if (sequence.valid) {
      out.append(bytes.substr(pos, sequence.num_bytes));
    } else if (unfinished && ends_inside_sequence(bytes.substr(pos))) {
      *unfinished = std::string(bytes.substr(pos));
      break;
    } else {
      out += "\xEF\xBF\xBD";
    }
    pos += sequence.num_bytes;
  }
  return out;
}

bool is_white_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool is_word_character(char32_t c) {
  if (c == 0x200C || c == 0x200D) return true;
  if ((c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
      (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189)) {
    return true;  // symbols that are Other_Alphabetic
  }
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC: return true;
    default: return false;
  }
}

}  // namespace bicached
