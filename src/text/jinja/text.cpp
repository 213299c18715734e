// Python's functions of strings, and values as text: str, repr and json.dumps.
#include <utf8proc.h>

#include <charconv>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/utf8.h"
#include "text/jinja/run.h"

namespace bicached::jinja {
namespace {

void append_upper(std::string& out, char32_t c, bool as_title) {
  const auto i = static_cast<utf8proc_int32_t>(c);
  const auto big = as_title ? utf8proc_totitle(i) : utf8proc_toupper(i);
  const bool is_small = utf8proc_category(i) == UTF8PROC_CATEGORY_LL;
  if ((is_small && big == i) || c == 0xDF || (c >= 0x1F80 && c <= 0x1FFC))
    refuse("the upper case of a character with several upper-case letters");
  append_utf8(out, static_cast<char32_t>(big));
}

void append_lower(std::string& out, char32_t c) {
  if (c == 0x130 || c == 0x3A3) refuse("the lower case of a letter like \u0130 or \u03A3");
  append_utf8(out, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
}

bool has_case(char32_t c) {
  const auto i = static_cast<utf8proc_int32_t>(c);
  return utf8proc_tolower(i) != i || utf8proc_toupper(i) != i ||
         utf8proc_category(i) == UTF8PROC_CATEGORY_LL;
}

/// Not: what separates, controls, or is no character.
bool is_printable(char32_t c) {
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return c == ' ' || (category != UTF8PROC_CATEGORY_CN && category < UTF8PROC_CATEGORY_ZS);
}

std::string string_repr(std::string_view s) {
  const char quote = s.find('\'') < s.size() && s.find('"') == s.npos ? '"' : '\'';
  constexpr std::string_view kEscaped = "\n\r\t", kLetters = "nrt";
  std::string out(1, quote);
  for (size_t pos = 0; pos < s.size();) {
    const char32_t c = next_code_point(s, pos);
    char hex[16];
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      out += {'\\', static_cast<char>(c)};
    } else if (const size_t i = kEscaped.find(static_cast<char>(c)); c < 0x80 && i < 3) {
      out += {'\\', kLetters[i]};
    } else if (is_printable(c)) {
      append_utf8(out, c);
    } else {
      const char* format = c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x";
      out.append(hex, static_cast<size_t>(std::snprintf(hex, sizeof hex, format, unsigned{c})));
    }
  }
  return out + quote;
}

/// Python's repr of a float: the shortest digits that read back the same.
std::string float_repr(double d) {
  const bool is_plain = d == 0 || (std::abs(d) >= 1e-4 && std::abs(d) < 1e16);
  char buffer[64];
  const auto format = is_plain ? std::chars_format::fixed : std::chars_format::scientific;
  std::string text(buffer, std::to_chars(buffer, buffer + sizeof buffer, d, format).ptr);
  if (is_plain && text.find('.') == std::string::npos) text += ".0";
  return text;
}

/// Writes a value: shared parts are written, and charged, each time they occur.
struct Writer {
  const Style& style;
  Meter& meter;
  std::string out;

  void write(const Value& v, int level) {
    constexpr const char* kBools[2][2] = {{"False", "True"}, {"false", "true"}};
    meter.step();
    switch (v.kind()) {
      case kNone: return add(style.json ? "null" : "None");
      case kBool: return add(kBools[style.json][v.as_integer()]);
      case kInt: return add(std::to_string(v.as_integer()));
      case kBigInt: return add(v.text());
      case kFloat: return add(float_repr(v.as_number()));  // finite: it was read from JSON
      case kString: return write_string(v);
      case kTuple:
        if (style.json) return write_all("[", "]", v.items(), level);
        return write_all("(", v.items().size() == 1 ? ",)" : ")", v.items(), level);
      case kList: return write_all("[", "]", v.items(), level);
      case kDict: return write_all("{", "}", v.members(), level);
      default:
        if (v.is(kUndefined) && !style.json) return add("Undefined");
        if (style.json) fail_runtime("a " + type_name(v) + " is not JSON serializable");
        refuse("printing a " + type_name(v) + " (use | list)");
    }
  }

  void add(std::string_view text) {
    meter.make(text.size());
    out += text;
  }

  void write_string(const Value& v) {
    if (style.json) return add(nlohmann::json(v.text()).dump(-1, ' ', style.ensure_ascii));
    if (v.is_markup()) refuse("the repr of escaped text");
    meter.charge(3 * v.text().size());  // character by character
    add(string_repr(v.text()));
  }

  void write_item(const Value& item, int level) { write(item, level); }
  void write_item(const std::pair<Value, Value>& member, int level) {
    const Value& key = member.first;
    const char* quote = style.json && !key.is(kString) ? "\"" : "";
    if (key.has_items() || key.is(kDict)) fail_runtime("a key must not be a " + type_name(key));
    add(quote);
    write(key, level);
    add(quote + style.key_separator);
    write(member.second, level);
  }

  template <class Range>
  void write_all(const char* open, const char* close, const Range& range, int level) {
    const auto new_line = [&](int inner) {
      if (style.indent < 0 || range.empty()) return;
      add("\n" + std::string(static_cast<size_t>(style.indent * inner), ' '));
    };
    add(open);
    for (const auto& item : range) {
      if (&item != &range.front()) add(style.item_separator);
      new_line(level + 1);
      write_item(item, level + 1);
    }
    new_line(level);
    add(close);
  }
};

bool is_space(char32_t c) { return is_white_space(c) || (c >= 0x1C && c <= 0x1F); }

}  // namespace

std::string in_case(Case which, std::string_view s) {
  constexpr std::u32string_view kBeforeWord = U"-({[<";  // in Jinja's filter
  std::string out;
  bool begins = true;  // a word
  for (size_t pos = 0; pos < s.size();) {
    const char32_t c = next_code_point(s, pos);
    if (which == Case::kUpper || (begins && which != Case::kLower)) {
      append_upper(out, c, which == Case::kCapitalized || which == Case::kTitleOfMethod);
    } else {
      append_lower(out, c);
    }
    begins = false;
    if (which == Case::kTitleOfMethod) begins = !has_case(c);
    if (which == Case::kTitleOfFilter)
      begins = is_space(c) || kBeforeWord.find(c) < kBeforeWord.size();
  }
  return out;
}

std::string_view strip(std::string_view s, const Value& characters, Side side) {
  const bool spaces = characters.is_missing();
  if (!spaces && !characters.is(kString)) fail_runtime("strip arg must be None or str");
  const auto goes = [&](char32_t c) {
    if (spaces) return is_space(c);
    for (size_t pos = 0; pos < characters.text().size();) {
      if (next_code_point(characters.text(), pos) == c) return true;
    }
    return false;
  };
  const bool left = side != Side::kRight, right = side != Side::kLeft;
  size_t begin = 0, end = s.size();
  for (size_t pos = 0; left && pos < end && goes(next_code_point(s, pos));) begin = pos;
  for (size_t pos = end; right && pos > begin && goes(previous_code_point(s, pos));) end = pos;
  return s.substr(begin, end - begin);
}

std::string to_text(const Value& v, Meter& meter) {
  if (v.is(kUndefined)) return "";
  if (!v.is(kString)) return written(v, {.json = false}, meter);
  meter.make(v.text().size());
  return v.text();
}

std::string written(const Value& v, const Style& style, Meter& meter) {
  Writer writer{style, meter, {}};
  writer.write(v, 0);
  return std::move(writer.out);
}

}  // namespace bicached::jinja
