#include <utf8proc.h>

#include <algorithm>

#include "text/jinja/runtime.h"
#include "text/utf8.h"

namespace bicached::jinja {
namespace {

using Category = utf8proc_category_t;

bool in_ranges(char32_t c, std::initializer_list<std::pair<char32_t, char32_t>> ranges) {
  return std::any_of(ranges.begin(), ranges.end(),
                     [&](const auto& r) { return c >= r.first && c <= r.second; });
}

/// Characters whose upper case is several characters (SpecialCasing), beside U+00DF.
bool has_special_upper(char32_t c) {
  return in_ranges(c, {{0x149, 0x149},
                       {0x1F0, 0x1F0},
                       {0x390, 0x390},
                       {0x3B0, 0x3B0},
                       {0x587, 0x587},
                       {0x1E96, 0x1E9A},
                       {0x1F50, 0x1F56},
                       {0x1F80, 0x1FFC},
                       {0xFB00, 0xFB17}});
}

void append_upper(std::string& out, char32_t c, bool title) {
  if (c == 0xDF) {
    out += title ? "Ss" : "SS";
  } else if (has_special_upper(c)) {
    fail_unsupported("the upper case of a character with several upper-case letters");
  } else {
    const auto i = static_cast<utf8proc_int32_t>(c);
    append_utf8(out, static_cast<char32_t>(title ? utf8proc_totitle(i) : utf8proc_toupper(i)));
  }
}

void append_lower(std::string& out, char32_t c) {
  if (c == 0x130) {
    out += "i\xCC\x87";
  } else if (c == 0x3A3) {
    fail_unsupported("the lower case of sigma, which depends on its place");
  } else {
    append_utf8(out, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
  }
}

bool is_line_end(char32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
         c == 0x2029;
}

}  // namespace

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
  std::string out;
  for (size_t pos = 0; pos < s.size();) {
    const bool first = pos == 0;
    const char32_t c = next_code_point(s, pos);
    if (first) {
      append_upper(out, c, true);
    } else {
      append_lower(out, c);
    }
  }
  return out;
}

std::string strip(std::string_view s, const Value& characters, bool left, bool right) {
  const bool spaces = characters.is(Kind::kNone) || characters.is(Kind::kUndefined);
  if (!spaces && !characters.is(Kind::kString)) fail_runtime("strip arg must be None or str");
  const auto goes = [&](char32_t c) {
    if (spaces) return is_white_space(c) || (c >= 0x1C && c <= 0x1F);
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

std::vector<std::string> split_lines(std::string_view s) {
  std::vector<std::string> lines;
  size_t begin = 0;
  for (size_t pos = 0; pos < s.size();) {
    const size_t at = pos;
    const char32_t c = next_code_point(s, pos);
    if (!is_line_end(c)) continue;
    if (c == '\r' && pos < s.size() && s[pos] == '\n') ++pos;
    lines.emplace_back(s.substr(begin, at - begin));
    begin = pos;
  }
  if (begin < s.size()) lines.emplace_back(s.substr(begin));
  return lines;
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

std::string percent_format(const std::string& format, const Items& values) {
  std::string out;
  size_t next = 0;
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%') {
      out += format[i];
      continue;
    }
    const char type = ++i < format.size() ? format[i] : '\0';
    if (type == '%') {
      out += '%';
      continue;
    }
    if (type != 's' && type != 'd') fail_unsupported("a format other than %s, %d and %%");
    if (next >= values.size()) fail_runtime("not enough arguments for format string");
    const Value& value = values[next++];
    if (type == 'd' && !value.is_integer()) fail_unsupported("%d with a " + type_name(value));
    out += type == 'd' ? std::to_string(value.as_integer()) : to_text(value);
  }
  if (next < values.size()) fail_runtime("not all arguments converted during string formatting");
  return out;
}

}  // namespace bicached::jinja
