#include "text/normalize.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "base/utf8.h"

namespace bicached {
namespace {

int combining_class(utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; }

/// Characters of a composition that came after the reference's Unicode version (12): there neither
/// composes nor decomposes, so they stand for themselves and end a run.
bool is_unknown_to_reference(char32_t c) { return c == 0x11930 || c == 0x11938; }

void append_decomposed(std::vector<utf8proc_int32_t>& out, char32_t c) {
  utf8proc_int32_t buffer[32];  // the longest canonical decomposition has 4
  const auto count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), buffer, 32,
                                             UTF8PROC_DECOMPOSE, nullptr);
  if (count < 0 || count > 32) {
    out.push_back(static_cast<utf8proc_int32_t>(c));
  } else {
    out.insert(out.end(), buffer, buffer + count);
  }
}

/// utf8proc's own canonical ordering swaps neighbours, quadratic in a run of marks; so sort here.
void order_marks(std::vector<utf8proc_int32_t>& points) {
  for (size_t i = 0; i < points.size();) {
    if (combining_class(points[i]) == 0) {
      ++i;
      continue;
    }
    size_t end = i;
    while (end < points.size() && combining_class(points[end]) != 0) ++end;
    std::stable_sort(points.begin() + static_cast<std::ptrdiff_t>(i),
                     points.begin() + static_cast<std::ptrdiff_t>(end),
                     [](auto a, auto b) { return combining_class(a) < combining_class(b); });
    i = end;
  }
}

void compose_into(std::string& out, std::vector<utf8proc_int32_t>& points) {
  if (points.empty()) return;
  order_marks(points);
  const auto count =
      utf8proc_normalize_utf32(points.data(), static_cast<utf8proc_ssize_t>(points.size()),
                               static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  for (utf8proc_ssize_t i = 0; i < count; ++i) {
    append_utf8(out, static_cast<char32_t>(points[static_cast<size_t>(i)]));
  }
  points.clear();
}

}  // namespace

std::string nfc(std::string_view text) {
  // Nothing below U+0300 changes under NFC: bytes below 0xCC are only leads of such characters.
  if (std::all_of(text.begin(), text.end(),
                  [](char c) { return static_cast<unsigned char>(c) < 0xCC; })) {
    return std::string(text);
  }
  std::string out;
  out.reserve(text.size());
  std::vector<utf8proc_int32_t> points;
  for (size_t pos = 0; pos < text.size();) {
    const char32_t c = next_code_point(text, pos);
    if (is_unknown_to_reference(c)) {
      compose_into(out, points);
      append_utf8(out, c);
    } else {
      append_decomposed(points, c);
    }
  }
  compose_into(out, points);
  return out;
}

}  // namespace bicached
