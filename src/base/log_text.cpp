#include "base/log_text.h"

#include <cstdint>
#include <cstdio>
#include <nlohmann/json.hpp>

namespace bicached {
namespace {

struct Decoded {
  uint32_t code = 0;
  size_t num_bytes = 0;  // 0: no UTF-8
};

/// The first character (RFC 3629: no overlong forms, no surrogates).
Decoded decode_first(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  const size_t count = first < 0x80       ? 1
                       : first >> 5 == 6  ? 2
                       : first >> 4 == 14 ? 3
                       : first >> 3 == 30 ? 4
                                          : 0;
  if (count == 0 || count > text.size()) return {};
  if (count == 1) return {first, 1};
  uint32_t code = first & (0x7Fu >> count);
  for (size_t i = 1; i < count; ++i) {
    if (byte(i) >> 6 != 2) return {};
    code = code << 6 | (byte(i) & 0x3Fu);
  }
  constexpr uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
  const bool valid = code >= kLeast[count] && code <= 0x10FFFF && (code < 0xD800 || code > 0xDFFF);
  return valid ? Decoded{code, count} : Decoded{};
}

bool is_hidden(uint32_t code) {
  return code < 0x20 || (code >= 0x7F && code < 0xA0) || code == 0x200E || code == 0x200F ||
         (code >= 0x2028 && code <= 0x202E) || (code >= 0x2066 && code <= 0x2069) || code == 0xFEFF;
}

}  // namespace

std::string visible_text(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const Decoded next = decode_first(text);
    const size_t count = next.num_bytes == 0 ? 1 : next.num_bytes;
    if (next.num_bytes > 0 && !is_hidden(next.code)) {
      out += text.substr(0, count);
    } else {
      for (const char c : text.substr(0, count)) {
        char hex[8];
        std::snprintf(hex, sizeof hex, "\\x%02x",
                      static_cast<unsigned>(static_cast<unsigned char>(c)));
        out += hex;
      }
    }
    text.remove_prefix(count);
  }
  return out;
}

std::string json_text(std::string_view text) {
  const std::string quoted =
      nlohmann::json(visible_text(text)).dump(-1, ' ', /*ensure_ascii=*/true);
  return quoted.substr(1, quoted.size() - 2);
}

}  // namespace bicached
