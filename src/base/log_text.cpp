#include "base/log_text.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/utf8.h"

namespace bicached {
namespace {

bool is_hidden(char32_t code) {
  return code < 0x20 || (code >= 0x7F && code < 0xA0) || code == 0x200E || code == 0x200F ||
         (code >= 0x2028 && code <= 0x202E) || (code >= 0x2066 && code <= 0x2069) || code == 0xFEFF;
}

void append_bytes(std::string& out, std::string_view bytes) {
  for (const char c : bytes) {
    char hex[8];
    std::snprintf(hex, sizeof hex, "\\x%02x", static_cast<unsigned>(static_cast<unsigned char>(c)));
    out += hex;
  }
}

}  // namespace

std::string visible_text(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const size_t num_valid = valid_utf8_prefix(text);
    for (size_t begin = 0, end = 0; begin < num_valid; begin = end) {
      if (is_hidden(next_code_point(text, end))) {
        append_bytes(out, text.substr(begin, end - begin));
      } else {
        out += text.substr(begin, end - begin);
      }
    }
    append_bytes(out, text.substr(num_valid, 1));
    text.remove_prefix(std::min(num_valid + 1, text.size()));
  }
  return out;
}

std::string json_text(std::string_view text) {
  const std::string quoted =
      nlohmann::json(visible_text(text)).dump(-1, ' ', /*ensure_ascii=*/true);
  return quoted.substr(1, quoted.size() - 2);
}

}  // namespace bicached
