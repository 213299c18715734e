// Values as text: Python's str, repr and json.dumps.
#include <utf8proc.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/utf8.h"
#include "text/jinja/runtime.h"

namespace bicached::jinja {
namespace {

std::string hex(const char* prefix, int width, uint32_t c) {
  char buffer[16];
  std::snprintf(buffer, sizeof buffer, "%0*x", width, c);
  return prefix + std::string(buffer);
}

bool is_printable(char32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP: return false;
    case UTF8PROC_CATEGORY_ZS: return c == ' ';
    default: return true;
  }
}

std::string string_repr(std::string_view s) {
  const bool single =
      s.find('\'') == std::string_view::npos || s.find('"') != std::string_view::npos;
  const char quote = single ? '\'' : '"';
  constexpr std::string_view kEscaped = "\n\r\t", kLetters = "nrt";
  std::string out(1, quote);
  for (size_t pos = 0; pos < s.size();) {
    const char32_t c = next_code_point(s, pos);
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      out += {'\\', static_cast<char>(c)};
    } else if (const size_t i = kEscaped.find(static_cast<char>(c)); c < 0x80 && i < 3) {
      out += {'\\', kLetters[i]};
    } else if (is_printable(c)) {
      append_utf8(out, c);
    } else {
      out += c < 0x100 ? hex("\\x", 2, c) : c < 0x10000 ? hex("\\u", 4, c) : hex("\\U", 8, c);
    }
  }
  return out + quote;
}

std::string json_string(const std::string& s, bool ensure_ascii) {
  return nlohmann::json(s).dump(-1, ' ', ensure_ascii);
}

/// Python's repr of a float: the shortest digits that read back the same.
std::string float_repr(double d) {
  char buffer[40];
  const auto end =
      std::to_chars(buffer, buffer + sizeof buffer, d, std::chars_format::scientific).ptr;
  const std::string s(buffer, end);
  const size_t e = s.find('e');
  const int exponent = std::stoi(s.substr(e + 1));
  const std::string sign = s[0] == '-' ? "-" : "";
  std::string digits = s.substr(sign.size(), e - sign.size());
  std::erase(digits, '.');
  if (exponent < -4 || exponent >= 16) {
    const std::string fraction = digits.size() > 1 ? '.' + digits.substr(1) : "";
    const std::string size = std::to_string(std::abs(exponent));
    return sign + digits[0] + fraction + (exponent < 0 ? "e-" : "e+") +
           (size.size() < 2 ? "0" : "") + size;
  }
  if (exponent < 0)
    return sign + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  const size_t whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() <= whole) digits += std::string(whole - digits.size() + 1, '0');
  return sign + digits.substr(0, whole) + '.' + digits.substr(whole);
}

/// Collects the text of a value: shared parts are written, and charged, each time they occur.
class Writer {
 public:
  explicit Writer(Meter& meter) : meter_(meter) {}
  std::string text() { return std::move(out_); }

  void repr(const Value& v) {
    meter_.step();
    switch (v.kind()) {
      case Kind::kUndefined: return add("Undefined");
      case Kind::kNone: return add("None");
      case Kind::kBool: return add(v.as_integer() ? "True" : "False");
      case Kind::kInt: return add(std::to_string(v.as_integer()));
      case Kind::kBigInt: return add(v.text());
      case Kind::kFloat: return add(float_repr(v.as_number()));
      case Kind::kString:
        if (v.is_markup()) fail_unsupported("the repr of escaped text");
        meter_.charge(3 * v.text().size());  // character by character
        return add(string_repr(v.text()));
      case Kind::kList:
      case Kind::kTuple:
        if (v.origin() != Origin::kList)
          fail_unsupported("printing a generator, view or range (use | list)");
        add(v.is(Kind::kList) ? "[" : "(");
        for (const Value& item : v.items()) {
          if (&item != &v.items().front()) add(", ");
          repr(item);
        }
        return add(v.is(Kind::kList) ? "]" : v.items().size() == 1 ? ",)" : ")");
      case Kind::kDict:
        add("{");
        for (const auto& member : v.members()) {
          if (&member != &v.members().front()) add(", ");
          repr(member.first), add(": "), repr(member.second);
        }
        return add("}");
      default: fail_unsupported("printing a " + type_name(v));
    }
  }

  void json(const Value& v, const JsonStyle& style, int level) {
    meter_.step();
    switch (v.kind()) {
      case Kind::kNone: return add("null");
      case Kind::kBool: return add(v.as_integer() ? "true" : "false");
      case Kind::kInt:
      case Kind::kBigInt:
      case Kind::kFloat: return repr(v);  // finite: it was read from JSON
      case Kind::kString: return add(json_string(v.text(), style.ensure_ascii));
      case Kind::kList:
      case Kind::kTuple:
        if (v.origin() != Origin::kList) break;
        return json_container("[]", v.items(), style, level,
                              [&](const Value& item) { json(item, style, level + 1); });
      case Kind::kDict: {
        Members members = v.members();
        if (style.sort_keys) {
          std::stable_sort(members.begin(), members.end(), [&](const auto& a, const auto& b) {
            return less(a.first, b.first, meter_);
          });
        }
        return json_container("{}", members, style, level, [&](const auto& member) {
          json_key(member.first, style);
          add(style.key_separator);
          json(member.second, style, level + 1);
        });
      }
      default: break;
    }
    fail_runtime("Object of type " + type_name(v) + " is not JSON serializable");
  }

 private:
  void add(std::string_view text) {
    meter_.charge(text.size());
    out_ += text;
  }

  void json_key(const Value& key, const JsonStyle& style) {
    if (key.is(Kind::kString)) return json(key, style, 0);
    if (!key.is_number() && !key.is(Kind::kNone) && !key.is(Kind::kBigInt))
      fail_runtime("keys must be str, int, float, bool or None, not " + type_name(key));
    add("\""), json(key, style, 0), add("\"");
  }

  template <class Range, class Write>
  void json_container(std::string_view brackets, const Range& range, const JsonStyle& style,
                      int level, Write write) {
    const auto new_line = [&](int inner) {
      if (style.indent < 0 || range.empty()) return;
      add("\n"), add(std::string(static_cast<size_t>(style.indent * inner), ' '));
    };
    add(brackets.substr(0, 1));
    for (const auto& item : range) {
      if (&item != &range.front()) add(style.item_separator);
      new_line(level + 1);
      write(item);
    }
    new_line(level);
    add(brackets.substr(1));
  }

  Meter& meter_;
  std::string out_;
};

}  // namespace

std::string to_text(const Value& v, Meter& meter) {
  if (v.is(Kind::kUndefined)) return "";
  if (v.is(Kind::kString)) {
    meter.charge(v);
    return v.text();
  }
  Writer writer(meter);
  writer.repr(v);
  return writer.text();
}

std::string to_json(const Value& v, const JsonStyle& style, Meter& meter) {
  Writer writer(meter);
  writer.json(v, style, 0);
  return writer.text();
}

}  // namespace bicached::jinja
