#include "text/jinja/value.h"

#include <utf8proc.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "text/utf8.h"

namespace bicached::jinja {
namespace {

constexpr int kMaxValueDepth = 100;

void check_depth(int depth) {
  if (depth > kMaxValueDepth) fail(Failure::kLimit, "a value is nested too deep");
}

std::string hex(const char* prefix, int width, uint32_t c) {
  char buffer[16];
  std::snprintf(buffer, sizeof buffer, "%0*x", width, c);
  return prefix + std::string(buffer);
}

bool is_printable(char32_t c) {
  if (c == ' ') return true;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS: return false;
    default: return true;
  }
}

std::string string_repr(std::string_view s) {
  const bool single =
      s.find('\'') == std::string_view::npos || s.find('"') != std::string_view::npos;
  const char quote = single ? '\'' : '"';
  std::string out(1, quote);
  for (size_t pos = 0; pos < s.size();) {
    const char32_t c = next_code_point(s, pos);
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      out += '\\';
      out += static_cast<char>(c);
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (is_printable(c)) {
      append_utf8(out, c);
    } else if (c < 0x100) {
      out += hex("\\x", 2, c);
    } else {
      out += c < 0x10000 ? hex("\\u", 4, c) : hex("\\U", 8, c);
    }
  }
  return out + quote;
}

std::string json_string(std::string_view s, bool ensure_ascii) {
  std::string out = "\"";
  for (size_t pos = 0; pos < s.size();) {
    const char32_t c = next_code_point(s, pos);
    switch (c) {
      case '"': out += "\\\""; continue;
      case '\\': out += "\\\\"; continue;
      case '\n': out += "\\n"; continue;
      case '\r': out += "\\r"; continue;
      case '\t': out += "\\t"; continue;
      case '\f': out += "\\f"; continue;
      case '\b': out += "\\b"; continue;
      default: break;
    }
    if (c < 0x20 || (ensure_ascii && c >= 0x7F && c < 0x10000)) {
      out += hex("\\u", 4, c);
    } else if (ensure_ascii && c >= 0x10000) {
      out += hex("\\u", 4, 0xD800 + ((c - 0x10000) >> 10));
      out += hex("\\u", 4, 0xDC00 + ((c - 0x10000) & 0x3FF));
    } else {
      append_utf8(out, c);
    }
  }
  return out + '"';
}

std::string json_key(const Value& key, bool ensure_ascii) {
  switch (key.kind()) {
    case Kind::kString: return json_string(key.text(), ensure_ascii);
    case Kind::kInt:
    case Kind::kBigInt:
    case Kind::kFloat:
    case Kind::kBool:
    case Kind::kNone: return '"' + to_json(key, {}) + '"';
    default: fail_runtime("keys must be str, int, float, bool or None, not " + type_name(key));
  }
}

template <class Range, class Write>
std::string json_container(const char* brackets, const Range& range, const JsonStyle& style,
                           int depth, Write write) {
  if (range.empty()) return brackets;
  const auto new_line = [&](int level) {
    return style.indent < 0 ? std::string()
                            : '\n' + std::string(static_cast<size_t>(style.indent * level), ' ');
  };
  std::string out(1, brackets[0]);
  out += new_line(depth + 1);
  bool first = true;
  for (const auto& item : range) {
    if (!first) out += style.item_separator + new_line(depth + 1);
    first = false;
    out += write(item);
  }
  return out + new_line(depth) + brackets[1];
}

/// Builds values while nlohmann's parser reads; it keeps the digits of integers that fit no int64.
class Builder : public nlohmann::json_sax<nlohmann::json> {
 public:
  Value result;

  bool null() override { return add(Value::none()); }
  bool boolean(bool b) override { return add(Value::boolean(b)); }
  bool number_integer(int64_t i) override { return add(Value::integer(i)); }
  bool number_unsigned(uint64_t u) override {
    return add(u <= INT64_MAX ? Value::integer(static_cast<int64_t>(u))
                              : Value::big_integer(std::to_string(u)));
  }
  bool number_float(double d, const std::string& digits) override {
    return add(digits.find_first_of(".eE") == std::string::npos ? Value::big_integer(digits)
                                                                : Value::number(d));
  }
  bool string(std::string& s) override { return add(Value::string(s)); }
  bool binary(binary_t&) override { return false; }
  bool start_object(size_t) override { return open(true); }
  bool start_array(size_t) override { return open(false); }
  bool key(std::string& k) override {
    stack_.back().keys.push_back(Value::string(k));
    return true;
  }
  bool end_object() override {
    Level level = std::move(stack_.back());
    stack_.pop_back();
    Members members;
    for (size_t i = 0; i < level.items.size(); ++i) {
      members.emplace_back(std::move(level.keys[i]), std::move(level.items[i]));
    }
    return add(Value::dict(std::move(members)));
  }
  bool end_array() override {
    Level level = std::move(stack_.back());
    stack_.pop_back();
    return add(Value::list(std::move(level.items)));
  }
  bool parse_error(size_t, const std::string&, const nlohmann::json::exception& e) override {
    fail_runtime(e.what());
  }

 private:
  struct Level {
    Items keys, items;
  };
  bool open(bool) {
    check_depth(static_cast<int>(stack_.size()));
    stack_.emplace_back();
    return true;
  }
  bool add(Value v) {
    if (stack_.empty()) {
      result = std::move(v);
    } else {
      stack_.back().items.push_back(std::move(v));
    }
    return true;
  }
  std::vector<Level> stack_;
};

}  // namespace

void fail(Failure failure, const std::string& message) { throw TemplateError(failure, message); }

const Value* Arguments::find(size_t index, std::string_view name) const {
  if (index < positional.size()) return &positional[index];
  for (const auto& [key, value] : named) {
    if (key == name) return &value;
  }
  return nullptr;
}

Value Arguments::get(size_t index, std::string_view name, Value otherwise) const {
  const Value* found = find(index, name);
  return found ? *found : otherwise;
}

void Arguments::check(const std::string& function, size_t max_positional,
                      std::initializer_list<std::string_view> names) const {
  if (positional.size() > max_positional) fail_runtime(function + " got too many arguments");
  for (const auto& [key, value] : named) {
    if (std::find(names.begin(), names.end(), key) == names.end()) {
      fail_unsupported("argument " + key + " of " + function);
    }
  }
}

const Value* Value::member(std::string_view key) const {
  for (const auto& [k, v] : *members_) {
    if (k.is(Kind::kString) && k.text() == key) return &v;
  }
  return nullptr;
}

const Value* Value::member(const Value& key) const {
  if (key.is(Kind::kString)) return member(std::string_view(key.text()));
  for (const auto& [k, v] : *members_) {
    if (equal(k, key)) return &v;
  }
  return nullptr;
}

void Value::set_member(const std::string& key, Value value) const {
  if (value.is(Kind::kNamespace)) fail_unsupported("a namespace inside a namespace");
  for (auto& [k, v] : *members_) {
    if (k.is(Kind::kString) && k.text() == key) {
      v = std::move(value);
      return;
    }
  }
  members_->emplace_back(Value::string(key), std::move(value));
}

bool truthy(const Value& v) {
  switch (v.kind()) {
    case Kind::kUndefined:
    case Kind::kNone: return false;
    case Kind::kBool:
    case Kind::kInt: return v.as_integer() != 0;
    case Kind::kFloat: return v.as_number() != 0;
    case Kind::kString: return !v.text().empty();
    case Kind::kList:
    case Kind::kTuple: return v.origin() == ListOrigin::kGenerator || !v.items().empty();
    case Kind::kDict: return !v.members().empty();
    default: return true;
  }
}

bool equal(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    if (a.is_integer() && b.is_integer()) return a.as_integer() == b.as_integer();
    return a.as_number() == b.as_number();
  }
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Kind::kUndefined:
    case Kind::kNone: return true;
    case Kind::kBigInt:
    case Kind::kString: return a.text() == b.text();
    case Kind::kList:
    case Kind::kTuple:
      if (a.origin() != b.origin()) fail_unsupported("comparing lists with generators");
      return std::equal(a.items().begin(), a.items().end(), b.items().begin(), b.items().end(),
                        equal);
    case Kind::kDict:
      if (a.members().size() != b.members().size()) return false;
      return std::all_of(a.members().begin(), a.members().end(), [&](const auto& m) {
        const Value* other = b.member(m.first);
        return other && equal(m.second, *other);
      });
    default: fail_unsupported("comparing functions, loops or namespaces");
  }
}

bool less(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    if (a.is_integer() && b.is_integer()) return a.as_integer() < b.as_integer();
    return a.as_number() < b.as_number();
  }
  if (a.is(Kind::kString) && b.is(Kind::kString)) return a.text() < b.text();
  if (a.is_sequence() && a.kind() == b.kind()) {
    const size_t n = std::min(a.items().size(), b.items().size());
    for (size_t i = 0; i < n; ++i) {
      if (!equal(a.items()[i], b.items()[i])) return less(a.items()[i], b.items()[i]);
    }
    return a.items().size() < b.items().size();
  }
  if (a.is(Kind::kUndefined) || b.is(Kind::kUndefined)) {
    fail_runtime((a.is(Kind::kUndefined) ? a : b).undefined_message());
  }
  fail_runtime("'<' not supported between instances of '" + type_name(a) + "' and '" +
               type_name(b) + "'");
}

bool contains(const Value& container, const Value& item) {
  switch (container.kind()) {
    case Kind::kUndefined: return false;
    case Kind::kString:
      if (!item.is(Kind::kString)) fail_runtime("'in <string>' requires string as left operand");
      return container.text().find(item.text()) != std::string::npos;
    case Kind::kDict: return container.member(item) != nullptr;
    case Kind::kList:
    case Kind::kTuple:
      return std::any_of(container.items().begin(), container.items().end(), [&](const Value& v) {
        return v.kind() == item.kind() || (v.is_number() && item.is_number()) ? equal(v, item)
                                                                              : false;
      });
    default: fail_runtime("argument of type '" + type_name(container) + "' is not iterable");
  }
}

std::string type_name(const Value& v) {
  switch (v.kind()) {
    case Kind::kUndefined: return "Undefined";
    case Kind::kNone: return "NoneType";
    case Kind::kBool: return "bool";
    case Kind::kInt:
    case Kind::kBigInt: return "int";
    case Kind::kFloat: return "float";
    case Kind::kString: return "str";
    case Kind::kList: return "list";
    case Kind::kTuple: return "tuple";
    case Kind::kDict: return "dict";
    case Kind::kNamespace: return "Namespace";
    case Kind::kCallable: return "function";
    case Kind::kLoop: return "LoopContext";
  }
  return "object";
}

std::string float_repr(double d) {
  if (std::isnan(d)) return "nan";
  if (std::isinf(d)) return d < 0 ? "-inf" : "inf";
  char buffer[40];
  const auto end =
      std::to_chars(buffer, buffer + sizeof buffer, d, std::chars_format::scientific).ptr;
  const std::string s(buffer, end);
  const size_t e = s.find('e');
  const int exponent = std::stoi(s.substr(e + 1));
  std::string sign = s[0] == '-' ? "-" : "";
  std::string digits;
  for (const char c : s.substr(0, e)) {
    if (c >= '0' && c <= '9') digits += c;
  }
  if (exponent < -4 || exponent >= 16) {
    std::string out = sign + digits[0];
    if (digits.size() > 1) out += '.' + digits.substr(1);
    const int size = std::abs(exponent);
    return out + 'e' + (exponent < 0 ? '-' : '+') + (size < 10 ? "0" : "") + std::to_string(size);
  }
  if (exponent < 0)
    return sign + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  const size_t whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() <= whole) return sign + digits + std::string(whole - digits.size(), '0') + ".0";
  return sign + digits.substr(0, whole) + '.' + digits.substr(whole);
}

std::string to_text(const Value& v) {
  if (v.is(Kind::kString)) return v.text();
  if (v.is(Kind::kUndefined)) return "";
  return to_repr(v);
}

std::string to_repr(const Value& v, int depth) {
  check_depth(depth);
  switch (v.kind()) {
    case Kind::kNone: return "None";
    case Kind::kBool: return v.as_integer() ? "True" : "False";
    case Kind::kInt: return std::to_string(v.as_integer());
    case Kind::kBigInt: return v.text();
    case Kind::kFloat: return float_repr(v.as_number());
    case Kind::kString:
      if (v.is_markup()) fail_unsupported("the repr of escaped text");
      return string_repr(v.text());
    case Kind::kList:
    case Kind::kTuple: {
      if (v.origin() != ListOrigin::kList && v.origin() != ListOrigin::kGroup) {
        fail_unsupported("printing a generator, view or range (use | list)");
      }
      std::string out;
      for (const Value& item : v.items()) {
        if (!out.empty()) out += ", ";
        out += to_repr(item, depth + 1);
      }
      if (v.is(Kind::kList)) return '[' + out + ']';
      return '(' + out + (v.items().size() == 1 ? ",)" : ")");
    }
    case Kind::kDict: {
      std::string out;
      for (const auto& [key, value] : v.members()) {
        if (!out.empty()) out += ", ";
        out += to_repr(key, depth + 1) + ": " + to_repr(value, depth + 1);
      }
      return '{' + out + '}';
    }
    case Kind::kUndefined: return "Undefined";
    default: fail_unsupported("printing a " + type_name(v));
  }
}

Items iterate(const Value& v) {
  switch (v.kind()) {
    case Kind::kUndefined: return {};
    case Kind::kList:
    case Kind::kTuple: return v.origin() == ListOrigin::kGenerator ? v.take_generated() : v.items();
    case Kind::kDict: {
      Items keys;
      for (const auto& member : v.members()) keys.push_back(member.first);
      return keys;
    }
    case Kind::kString: {
      Items out;
      for (size_t pos = 0; pos < v.text().size();) {
        const size_t begin = pos;
        next_code_point(v.text(), pos);
        out.push_back(Value::string(v.text().substr(begin, pos - begin)));
      }
      return out;
    }
    default: fail_runtime("'" + type_name(v) + "' object is not iterable");
  }
}

std::string to_json(const Value& v, const JsonStyle& style, int depth) {
  check_depth(depth);
  switch (v.kind()) {
    case Kind::kNone: return "null";
    case Kind::kBool: return v.as_integer() ? "true" : "false";
    case Kind::kInt:
    case Kind::kBigInt: return to_repr(v);
    case Kind::kFloat:
      if (std::isnan(v.as_number())) return "NaN";
      if (std::isinf(v.as_number())) return v.as_number() < 0 ? "-Infinity" : "Infinity";
      return float_repr(v.as_number());
    case Kind::kString: return json_string(v.text(), style.ensure_ascii);
    case Kind::kList:
    case Kind::kTuple:
      if (v.origin() != ListOrigin::kList && v.origin() != ListOrigin::kGroup) break;
      return json_container("[]", v.items(), style, depth,
                            [&](const Value& item) { return to_json(item, style, depth + 1); });
    case Kind::kDict: {
      Members members = v.members();
      if (style.sort_keys) {
        std::stable_sort(members.begin(), members.end(),
                         [](const auto& a, const auto& b) { return less(a.first, b.first); });
      }
      return json_container("{}", members, style, depth, [&](const auto& member) {
        return json_key(member.first, style.ensure_ascii) + style.key_separator +
               to_json(member.second, style, depth + 1);
      });
    }
    default: break;
  }
  fail_runtime("Object of type " + type_name(v) + " is not JSON serializable");
}

Value parse_json(std::string_view text) {
  Builder builder;
  if (!nlohmann::json::sax_parse(text, &builder)) fail_runtime("not JSON");
  return builder.result;
}

}  // namespace bicached::jinja
