// Python's functions of strings, and values as text: str, repr and json.dumps.
#include <utf8proc.h>

#include <algorithm>
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
    fail_unsupported("the upper case of a character with several upper-case letters");
  append_utf8(out, static_cast<char32_t>(big));
}

void append_lower(std::string& out, char32_t c) {
  if (c == 0x130 || c == 0x3A3)
    fail_unsupported("the lower case of a letter that depends on its place or is two");
  append_utf8(out, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
}

/// Every word with a capital, else lower case; a word begins behind what ends one.
std::string title(std::string_view s, bool (*ends_word)(char32_t), bool as_title) {
  std::string out;
  bool begins = true;
  for (size_t pos = 0; pos < s.size();) {
    const char32_t c = next_code_point(s, pos);
    begins ? append_upper(out, c, as_title) : append_lower(out, c);
    begins = ends_word(c);
  }
  return out;
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
  const bool single =
      s.find('\'') == std::string_view::npos || s.find('"') != std::string_view::npos;
  const char quote = single ? '\'' : '"';
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

/// Collects the text of a value: shared parts are written, and charged, each time they occur.
class Writer {
 public:
  /// `style` null: Python's repr, else JSON.
  Writer(const JsonStyle* style, Meter& meter) : style_(style), meter_(meter) {}
  std::string text() { return std::move(out_); }

  void write(const Value& v, int level) {
    meter_.step();
    switch (v.kind()) {
      case Kind::kNone: return add(style_ ? "null" : "None");
      case Kind::kBool:
        return add(style_ ? (v.as_integer() ? "true" : "false")
                          : (v.as_integer() ? "True" : "False"));
      case Kind::kInt: return add(std::to_string(v.as_integer()));
      case Kind::kBigInt: return add(v.text());
      case Kind::kFloat: return add(float_repr(v.as_number()));  // finite: it was read from JSON
      case Kind::kString: return write_string(v);
      case Kind::kList:
        if (v.is(Origin::kTuple) && !style_)
          return write_all("(", v.items().size() == 1 ? ",)" : ")", v.items(), level);
        if (!v.is(Origin::kList) && !v.is(Origin::kTuple)) break;
        return write_all("[", "]", v.items(), level);
      case Kind::kDict: return write_all("{", "}", v.members(), level);
      case Kind::kUndefined:
        if (!style_) return add("Undefined");
        break;
      default: break;
    }
    if (!style_) fail_unsupported("printing a " + type_name(v) + " (use | list)");
    fail_runtime("Object of type " + type_name(v) + " is not JSON serializable");
  }

 private:
  void add(std::string_view text) {
    meter_.make(text.size());
    out_ += text;
  }

  void write_string(const Value& v) {
    if (style_) return add(nlohmann::json(v.text()).dump(-1, ' ', style_->ensure_ascii));
    if (v.is_markup()) fail_unsupported("the repr of escaped text");
    meter_.charge(3 * v.text().size());  // character by character
    add(string_repr(v.text()));
  }

  void write_item(const Value& item, int level) { write(item, level); }
  void write_item(const std::pair<Value, Value>& member, int level) {
    const Value& key = member.first;
    const bool quoted = style_ && !key.is(Kind::kString);
    if (quoted && !key.is_number() && !key.is(Kind::kNone) && !key.is(Kind::kBigInt))
      fail_runtime("keys must be str, int, float, bool or None, not " + type_name(key));
    if (quoted) add("\"");
    write(key, level);
    add((quoted ? "\"" : "") + (style_ ? style_->key_separator : ": "));
    write(member.second, level);
  }

  template <class Range>
  void write_all(const char* open, const char* close, const Range& range, int level) {
    const auto new_line = [&](int inner) {
      if (!style_ || style_->indent < 0 || range.empty()) return;
      add("\n" + std::string(static_cast<size_t>(style_->indent * inner), ' '));
    };
    add(open);
    for (const auto& item : range) {
      if (&item != &range.front()) add(style_ ? style_->item_separator : ", ");
      new_line(level + 1);
      write_item(item, level + 1);
    }
    new_line(level);
    add(close);
  }

  const JsonStyle* style_;
  Meter& meter_;
  std::string out_;
};

}  // namespace

bool is_space(char32_t c) { return is_white_space(c) || (c >= 0x1C && c <= 0x1F); }

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

std::string title_of_words(std::string_view s) {
  const auto ends_word = [](char32_t c) {
    return is_space(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
  };
  return title(s, ends_word, false);
}

std::string title_of_letters(std::string_view s) {
  return title(s, [](char32_t c) { return !has_case(c); }, true);
}

std::string strip(std::string_view s, const Value& characters, bool left, bool right) {
  const bool spaces = characters.is_missing();
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

std::string to_text(const Value& v, Meter& meter) {
  if (v.is(Kind::kUndefined)) return "";
  if (v.is(Kind::kString)) {
    meter.make(v.text().size());
    return v.text();
  }
  Writer writer(nullptr, meter);
  writer.write(v, 0);
  return writer.text();
}

std::string to_json(const Value& v, const JsonStyle& style, Meter& meter) {
  Writer writer(&style, meter);
  writer.write(v, 0);
  return writer.text();
}

}  // namespace bicached::jinja
