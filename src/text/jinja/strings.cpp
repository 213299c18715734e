// Python's functions of strings.
#include <utf8proc.h>

#include <algorithm>

#include "base/utf8.h"
#include "text/jinja/runtime.h"

namespace bicached::jinja {
namespace {

void append_upper(std::string& out, char32_t c, bool as_title) {
  const auto i = static_cast<utf8proc_int32_t>(c);
  const auto big = as_title ? utf8proc_totitle(i) : utf8proc_toupper(i);
  const bool is_small = utf8proc_category(i) == UTF8PROC_CATEGORY_LL;
  if ((is_small && big == i) || c == 0xDF || (c >= 0x1F80 && c <= 0x1FFC))
    fail_unsupported("the upper case of a character with several upper-case letters");
  append_utf8(out, static_cast<char32_t>(big));
}

void append_lower(std::string& out, char32_t c) {
  if (c == 0x130 || c == 0x3A3)
    fail_unsupported("the lower case of a letter that depends on its place or is two");
  append_utf8(out, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
}

}  // namespace

bool is_space(char32_t c) { return is_white_space(c) || (c >= 0x1C && c <= 0x1F); }

bool has_case(char32_t c) {
  const auto i = static_cast<utf8proc_int32_t>(c);
  return utf8proc_tolower(i) != i || utf8proc_toupper(i) != i ||
         utf8proc_category(i) == UTF8PROC_CATEGORY_LL;
}

std::string upper(std::string_view s) {
  std::string out;
  for (size_t pos = 0; pos < s.size();) append_upper(out, next_code_point(s, pos), false);
  return out;
}

std::string lower(std::string_view s) {
  std::string out;
  for (size_t pos = 0; pos < s.size();) append_lower(out, next_code_point(s, pos));
  return out;
}

std::string capitalize(std::string_view s) {
  return title(s, [](char32_t) { return false; }, true);
}

std::string title(std::string_view s, bool (*ends_word)(char32_t), bool as_title) {
  std::string out;
  bool begins = true;
  for (size_t pos = 0; pos < s.size();) {
    const char32_t c = next_code_point(s, pos);
    if (begins) {
      append_upper(out, c, as_title);
    } else {
      append_lower(out, c);
    }
    begins = ends_word(c);
  }
  return out;
}

std::string strip(std::string_view s, const Value& characters, bool left, bool right) {
  const bool spaces = characters.is(Kind::kNone) || characters.is(Kind::kUndefined);
  if (!spaces && !characters.is(Kind::kString)) fail_runtime("strip arg must be None or str");
  const auto goes = [&](char32_t c) {
    if (spaces) return is_space(c);
    for (size_t pos = 0; pos < characters.text().size();) {
      if (next_code_point(characters.text(), pos) == c) return true;
    }
    return false;
  };
  size_t begin = 0, end = s.size();
  for (size_t pos = 0; left && pos < end && goes(next_code_point(s, pos));) begin = pos;
  for (size_t pos = end; right && pos > begin && goes(previous_code_point(s, pos));) end = pos;
  return std::string(s.substr(begin, end - begin));
}

std::string replace(std::string_view s, const std::string& from, const std::string& to,
                    int64_t count, Meter& meter) {
  if (from.empty()) fail_unsupported("replacing an empty text");
  std::string out;
  size_t done = 0;
  for (size_t at; count != 0 && (at = s.find(from, done)) != std::string_view::npos; --count) {
    meter.charge(at - done + to.size());
    out.append(s.substr(done, at - done)).append(to);
    done = at + from.size();
  }
  return out.append(s.substr(done));
}

}  // namespace bicached::jinja
