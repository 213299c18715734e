#include "text/jinja/runtime.h"

#include <algorithm>
#include <cmath>

#include "text/utf8.h"

namespace bicached::jinja {
namespace {

constexpr int64_t kMaxRange = 100000;

const std::string& string_argument(const Arguments& arguments, size_t index, const char* what) {
  const Value* v = arguments.find(index, what);
  if (!v || !v->is(Kind::kString)) {
    fail_runtime(std::string(what) + " must be str, not " + (v ? type_name(*v) : "absent"));
  }
  return v->text();
}

int64_t integer_argument(const Arguments& arguments, size_t index, const char* name,
                         int64_t otherwise) {
  const Value* v = arguments.find(index, name);
  if (!v) return otherwise;
  if (!v->is_integer())
    fail_runtime("'" + type_name(*v) + "' object cannot be interpreted as an integer");
  return v->as_integer();
}

Items split(const std::string& s, const Arguments& arguments, Meter& meter) {
  arguments.check("split", 2, {"sep", "maxsplit"});
  int64_t left = integer_argument(arguments, 1, "maxsplit", -1);
  const Value separator = arguments.get(0, "sep", Value::none());
  Items out;
  const auto add = [&](std::string part) {
    meter.charge(part.size() + sizeof(Value));
    out.push_back(Value::string(std::move(part)));
  };
  size_t begin = 0;
  if (!separator.is(Kind::kNone)) {
    const std::string& sep = string_argument(arguments, 0, "sep");
    if (sep.empty()) fail_runtime("empty separator");
    for (size_t at; left != 0 && (at = s.find(sep, begin)) != std::string::npos; --left) {
      add(s.substr(begin, at - begin));
      begin = at + sep.size();
    }
    add(s.substr(begin));
    return out;
  }
  while (begin < s.size()) {
    const std::string rest =
        left == 0 ? strip(std::string_view(s).substr(begin), Value::none(), true, false) : "";
    if (left == 0) {
      if (!rest.empty()) add(rest);
      break;
    }
    size_t pos = begin, word = begin, end = begin;
    while (pos < s.size()) {  // white space before the word
      word = pos;
      const char32_t c = next_code_point(s, pos);
      if (!is_white_space(c) && !(c >= 0x1C && c <= 0x1F)) break;
      word = pos;
    }
    if (word >= s.size()) break;
    for (end = word, pos = word; pos < s.size(); end = pos) {
      const char32_t c = next_code_point(s, pos);
      if (is_white_space(c) || (c >= 0x1C && c <= 0x1F)) break;
    }
    add(s.substr(word, end - word));
    begin = end;
    --left;
  }
  return out;
}

std::string title_of_words(const std::string& s) {
  std::string out;
  bool after_letter = false;
  for (size_t pos = 0; pos < s.size();) {
    const size_t begin = pos;
    const char32_t c = next_code_point(s, pos);
    const std::string one = s.substr(begin, pos - begin);
    const bool cased = lower(one) != one || upper(one) != one;
    if (cased && c >= 0x80 && after_letter && c == 0x3A3)
      fail_unsupported("the title case of sigma");
    out += cased ? (after_letter ? lower(one) : capitalize(one)) : one;
    after_letter = cased;
  }
  return out;
}

bool affix(const std::string& s, const Arguments& arguments, bool at_start) {
  arguments.check(at_start ? "startswith" : "endswith", 1);
  const Value what = arguments.get(0, "prefix", Value());
  const Items options = what.is(Kind::kTuple) ? what.items() : Items{what};
  for (const Value& option : options) {
    if (!option.is(Kind::kString))
      fail_runtime("startswith and endswith take a str or a tuple of str");
    if (at_start ? s.starts_with(option.text()) : s.ends_with(option.text())) return true;
  }
  return false;
}

int64_t count_of(const std::string& s, const std::string& part) {
  if (part.empty()) fail_unsupported("counting an empty text");
  int64_t count = 0;
  for (size_t at = 0; (at = s.find(part, at)) != std::string::npos; at += part.size()) ++count;
  return count;
}

Value find_text(const std::string& s, const Arguments& arguments, bool last) {
  arguments.check("find", 1);
  const std::string& part = string_argument(arguments, 0, "sub");
  const size_t at = last ? s.rfind(part) : s.find(part);
  if (at == std::string::npos) return Value::integer(-1);
  return Value::integer(static_cast<int64_t>(count_code_points(std::string_view(s).substr(0, at))));
}

using Method = Value (*)(const Value& self, const Arguments&, Meter&);
struct NamedMethod {
  std::string_view name;
  Method method;
};

template <bool kLeft, bool kRight>
Value strip_method(const Value& self, const Arguments& a, Meter&) {
  a.check("strip", 1);
  return Value::string(strip(self.text(), a.get(0, "chars", Value::none()), kLeft, kRight));
}

Value join_method(const Value& self, const Arguments& a, Meter& meter) {
  a.check("join", 1);
  std::string out;
  bool first = true;
  for (const Value& item : iterate(a.get(0, "iterable", Value()))) {
    if (!item.is(Kind::kString))
      fail_runtime("sequence item: expected str instance, " + type_name(item) + " found");
    meter.charge(item.text().size() + self.text().size());
    if (!first) out += self.text();
    first = false;
    out += item.text();
  }
  return Value::string(std::move(out));
}

Value replace_method(const Value& self, const Arguments& a, Meter& meter) {
  a.check("replace", 3, {"count"});
  return Value::string(replace(self.text(), string_argument(a, 0, "old"),
                               string_argument(a, 1, "new"), integer_argument(a, 2, "count", -1),
                               meter));
}

Value lines_method(const Value& self, const Arguments& a, Meter&) {
  a.check("splitlines", 0);
  Items items;
  for (std::string& line : split_lines(self.text()))
    items.push_back(Value::string(std::move(line)));
  return Value::list(std::move(items));
}

constexpr NamedMethod kStringMethods[] = {
    {"strip", strip_method<true, true>},
    {"lstrip", strip_method<true, false>},
    {"rstrip", strip_method<false, true>},
    {"split", [](const Value& s, const Arguments& a,
                 Meter& m) { return Value::list(split(s.text(), a, m)); }},
    {"splitlines", lines_method},
    {"upper",
     [](const Value& s, const Arguments& a, Meter&) {
       a.check("upper", 0);
       return Value::string(upper(s.text()));
     }},
    {"lower",
     [](const Value& s, const Arguments& a, Meter&) {
       a.check("lower", 0);
       return Value::string(lower(s.text()));
     }},
    {"capitalize",
     [](const Value& s, const Arguments& a, Meter&) {
       a.check("capitalize", 0);
       return Value::string(capitalize(s.text()));
     }},
    {"title",
     [](const Value& s, const Arguments& a, Meter&) {
       a.check("title", 0);
       return Value::string(title_of_words(s.text()));
     }},
    {"startswith", [](const Value& s, const Arguments& a,
                      Meter&) { return Value::boolean(affix(s.text(), a, true)); }},
    {"endswith", [](const Value& s, const Arguments& a,
                    Meter&) { return Value::boolean(affix(s.text(), a, false)); }},
    {"replace", replace_method},
    {"find",
     [](const Value& s, const Arguments& a, Meter&) { return find_text(s.text(), a, false); }},
    {"rfind",
     [](const Value& s, const Arguments& a, Meter&) { return find_text(s.text(), a, true); }},
    {"count",
     [](const Value& s, const Arguments& a, Meter&) {
       a.check("count", 1);
       return Value::integer(count_of(s.text(), string_argument(a, 0, "sub")));
     }},
    {"join", join_method},
};
// Methods that Python has and this engine has not: refused instead of being undefined.
constexpr std::string_view kOtherStringMethods[] = {
    "casefold",     "center",  "encode",     "expandtabs",  "format",       "format_map",
    "index",        "isalnum", "isalpha",    "isascii",     "isdecimal",    "isdigit",
    "isidentifier", "islower", "isnumeric",  "isprintable", "isspace",      "istitle",
    "isupper",      "ljust",   "maketrans",  "partition",   "removeprefix", "removesuffix",
    "rindex",       "rjust",   "rpartition", "rsplit",      "swapcase",     "translate",
    "zfill"};

Value items_method(const Value& self, const Arguments& a, Meter&) {
  a.check("items", 0);
  Items items;
  for (const auto& [key, value] : self.members()) items.push_back(Value::tuple({key, value}));
  return Value::list(std::move(items), ListOrigin::kView);
}

Value values_method(const Value& self, const Arguments& a, Meter&) {
  a.check("values", 0);
  Items items;
  for (const auto& member : self.members()) items.push_back(member.second);
  return Value::list(std::move(items), ListOrigin::kView);
}

Value get_method(const Value& self, const Arguments& a, Meter&) {
  a.check("get", 2);
  if (a.positional.empty()) fail_runtime("get expected at least 1 argument, got 0");
  const Value* found = self.member(a.positional[0]);
  return found ? *found : a.get(1, "", Value::none());
}

constexpr NamedMethod kDictMethods[] = {
    {"items", items_method},
    {"keys",
     [](const Value& s, const Arguments& a, Meter&) {
       a.check("keys", 0);
       return Value::list(iterate(s), ListOrigin::kView);
     }},
    {"values", values_method},
    {"get", get_method},
    {"copy",
     [](const Value& s, const Arguments& a, Meter&) {
       a.check("copy", 0);
       return s;
     }},
};
constexpr std::string_view kUnsafeMethods[] = {"append",     "clear",   "extend", "insert",
                                               "pop",        "popitem", "remove", "reverse",
                                               "setdefault", "sort",    "update"};

Value list_count(const Value& self, const Arguments& a, Meter&) {
  a.check("count", 1);
  int64_t count = 0;
  for (const Value& item : self.items())
    count += contains(Value::list({item}), a.get(0, "", Value()));
  return Value::integer(count);
}

Value loop_attribute(const Value& loop, const std::string& name) {
  const std::shared_ptr<LoopState>& state = loop.loop_state();
  const auto size = static_cast<int64_t>(state->items.size());
  const auto index = static_cast<int64_t>(state->index);
  if (name == "index") return Value::integer(index + 1);
  if (name == "index0") return Value::integer(index);
  if (name == "revindex") return Value::integer(size - index);
  if (name == "revindex0") return Value::integer(size - index - 1);
  if (name == "first") return Value::boolean(index == 0);
  if (name == "last") return Value::boolean(index + 1 == size);
  if (name == "length") return Value::integer(size);
  if (name == "depth") return Value::integer(state->depth);
  if (name == "depth0") return Value::integer(state->depth - 1);
  if (name == "previtem")
    return index > 0 ? state->items[state->index - 1]
                     : Value::undefined("there is no previous item");
  if (name == "nextitem")
    return index + 1 < size ? state->items[state->index + 1]
                            : Value::undefined("there is no next item");
  if (name == "cycle") {
    return Value::callable([state](const Arguments& a) {
      if (a.positional.empty()) fail_runtime("no items for cycling given");
      return a.positional[state->index % a.positional.size()];
    });
  }
  fail_unsupported("loop." + name);
}

template <size_t N>
bool is_one_of(const std::string_view (&names)[N], std::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

template <size_t N>
std::optional<Value> bind(const NamedMethod (&methods)[N], const Value& object,
                          const std::string& name, Meter& meter) {
  for (const NamedMethod& m : methods) {
    if (m.name == name) {
      return Value::callable([object, method = m.method, &meter](const Arguments& a) {
        meter.charge(rough_bytes(object));
        return method(object, a, meter);
      });
    }
  }
  return std::nullopt;
}

Value missing(const Value& object, const std::string& name) {
  return Value::undefined("'" + type_name(object) + " object' has no attribute '" + name + "'");
}

int64_t floor_divide(int64_t a, int64_t b) {
  if (a == INT64_MIN && b == -1) fail_unsupported("an integer beyond 64 bits");
  const int64_t q = a / b;
  return q - ((a % b != 0) && ((a < 0) != (b < 0)));
}

int64_t power(int64_t base, int64_t exponent) {
  int64_t out = 1;
  for (; exponent > 0; --exponent) {
    if (__builtin_mul_overflow(out, base, &out)) fail_unsupported("an integer beyond 64 bits");
    if (out == 0 || out == 1) break;
    if (out == -1) return exponent % 2 ? -1 : 1;
  }
  return out;
}

Value integers(const std::string& op, int64_t a, int64_t b) {
  int64_t out = 0;
  bool overflow = false;
  if (op == "+")
    overflow = __builtin_add_overflow(a, b, &out);
  else if (op == "-")
    overflow = __builtin_sub_overflow(a, b, &out);
  else if (op == "*")
    overflow = __builtin_mul_overflow(a, b, &out);
  else if (op == "**" && b < 0)
    return Value::number(std::pow(static_cast<double>(a), static_cast<double>(b)));
  else if (op == "**")
    out = power(a, b);
  else if (b == 0)
    fail_runtime(op == "/" ? "division by zero" : "integer division or modulo by zero");
  else if (op == "/")
    return Value::number(static_cast<double>(a) / static_cast<double>(b));
  else if (op == "//")
    out = floor_divide(a, b);
  else
    out = b == -1 ? 0 : a - b * floor_divide(a, b);
  if (overflow) fail_unsupported("an integer beyond 64 bits");
  return Value::integer(out);
}

Value floats(const std::string& op, double a, double b) {
  if (op == "+") return Value::number(a + b);
  if (op == "-") return Value::number(a - b);
  if (op == "*") return Value::number(a * b);
  if (op == "**") {
    if (a < 0 && b != std::floor(b)) fail_unsupported("complex numbers");
    return Value::number(std::pow(a, b));
  }
  if (b == 0) fail_runtime("float division by zero");
  if (op == "/") return Value::number(a / b);
  if (op == "//") return Value::number(std::floor(a / b));
  double rest = std::fmod(a, b);
  if (rest != 0 && (rest < 0) != (b < 0)) rest += b;
  return Value::number(rest);
}

Value repeated(const Value& what, int64_t times, Meter& meter) {
  times = std::max<int64_t>(times, 0);
  const size_t one = rough_bytes(what);
  if (one > 0 && static_cast<uint64_t>(times) > (1ULL << 40) / one)
    fail(Failure::kLimit, "the template makes too much text");
  meter.charge(one * static_cast<size_t>(times));
  if (what.is(Kind::kString)) {
    std::string out;
    for (int64_t i = 0; !what.text().empty() && i < times; ++i) out += what.text();
    return Value::string(std::move(out));
  }
  Items items;
  for (int64_t i = 0; !what.items().empty() && i < times; ++i)
    items.insert(items.end(), what.items().begin(), what.items().end());
  return what.is(Kind::kList) ? Value::list(std::move(items)) : Value::tuple(std::move(items));
}

Value range(const Arguments& a) {
  a.check("range", 3);
  if (a.positional.empty()) fail_runtime("range expected at least 1 argument, got 0");
  int64_t start = 0, stop = integer_argument(a, 0, "", 0);
  if (a.positional.size() > 1) start = stop, stop = integer_argument(a, 1, "", 0);
  const int64_t step = integer_argument(a, 2, "", 1);
  if (step == 0) fail_runtime("range() arg 3 must not be zero");
  const double count = std::ceil((static_cast<double>(stop) - static_cast<double>(start)) /
                                 static_cast<double>(step));
  if (count > static_cast<double>(kMaxRange)) {
    fail_runtime("Range too big. The sandbox blocks ranges larger than MAX_RANGE (100000).");
  }
  Items items;
  for (int64_t i = 0; i < static_cast<int64_t>(std::max(count, 0.0)); ++i)
    items.push_back(Value::integer(start + i * step));
  return Value::list(std::move(items), ListOrigin::kRange);
}

Members dict_arguments(const Arguments& a, const char* function) {
  if (a.positional.size() > 1) fail_runtime(std::string(function) + " expected at most 1 argument");
  Members members;
  if (!a.positional.empty()) {
    if (!a.positional[0].is(Kind::kDict))
      fail_unsupported(std::string(function) + " of a " + type_name(a.positional[0]));
    members = a.positional[0].members();
  }
  Value whole = Value::namespace_of(std::move(members));
  for (const auto& [name, value] : a.named) whole.set_member(name, value);
  return whole.members();
}

Value format_time(const Arguments& a, const std::tm& now) {
  a.check("strftime_now", 1);
  const std::string& format = string_argument(a, 0, "format");
  if (format.size() > 256) fail_unsupported("a time format of more than 256 bytes");
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%') continue;
    ++i;
    if (i >= format.size() ||
        std::string_view("aAbBcdeFHIjmMpSTuUwWxXyY%").find(format[i]) == std::string_view::npos) {
      fail_unsupported("the time format \"" + format + "\"");
    }
  }
  char buffer[8192];
  return Value::string(
      std::string(buffer, std::strftime(buffer, sizeof buffer, format.c_str(), &now)));
}

}  // namespace

size_t rough_bytes(const Value& v) {
  switch (v.kind()) {
    case Kind::kString: return v.text().size();
    case Kind::kList:
    case Kind::kTuple: return v.items().size() * sizeof(Value);
    case Kind::kDict: return v.members().size() * 2 * sizeof(Value);
    default: return 0;
  }
}

std::optional<Value> find_method(const Value& object, const std::string& name, Meter& meter) {
  if (object.is(Kind::kString)) {
    if (auto method = bind(kStringMethods, object, name, meter)) {
      if (object.is_markup()) fail_unsupported("a method of escaped text");
      return method;
    }
    if (is_one_of(kOtherStringMethods, name))
      fail_unsupported("the method " + name + " of a string");
  } else if (object.is(Kind::kDict)) {
    if (auto method = bind(kDictMethods, object, name, meter)) return method;
  } else if (object.is_sequence() && object.origin() == ListOrigin::kList) {
    if (name == "count") {
      return Value::callable(
          [object, &meter](const Arguments& a) { return list_count(object, a, meter); });
    }
    if (name == "index" || name == "copy") fail_unsupported("the method " + name + " of a list");
  } else if (object.is_sequence() && object.origin() == ListOrigin::kGroup) {
    if (name == "grouper") return object.items()[0];
    if (name == "list") return object.items()[1];
  } else if (object.is_sequence()) {
    fail_unsupported("an attribute of a generator, view or range");
  }
  if ((object.is(Kind::kDict) || object.is(Kind::kList)) && is_one_of(kUnsafeMethods, name)) {
    fail_runtime("access to attribute '" + name + "' of '" + type_name(object) +
                 "' object is unsafe.");
  }
  return std::nullopt;
}

Value get_attribute(const Value& object, const std::string& name, Meter& meter) {
  if (object.is(Kind::kUndefined)) fail_runtime(object.undefined_message());
  if (name.starts_with("_")) {
    fail_runtime("access to attribute '" + name + "' of '" + type_name(object) +
                 "' object is unsafe.");
  }
  if (object.is(Kind::kLoop)) return loop_attribute(object, name);
  if (object.is(Kind::kNamespace)) {
    const Value* found = object.member(std::string_view(name));
    return found ? *found : missing(object, name);
  }
  if (object.is(Kind::kCallable) || object.is(Kind::kFloat) || object.is_integer() ||
      object.is(Kind::kBigInt)) {
    fail_unsupported("an attribute of a " + type_name(object));
  }
  if (auto method = find_method(object, name, meter)) return *method;
  if (object.is(Kind::kDict)) {
    if (const Value* found = object.member(std::string_view(name))) return *found;
  }
  return missing(object, name);
}

Value get_item(const Value& object, const Value& key, Meter& meter) {
  if (object.is(Kind::kUndefined)) fail_runtime(object.undefined_message());
  if (object.is(Kind::kDict)) {
    if (const Value* found = object.member(key)) return *found;
  } else if (object.is_sequence() || object.is(Kind::kString)) {
    if (object.origin() == ListOrigin::kGenerator || object.origin() == ListOrigin::kView) {
      fail_unsupported("indexing a generator or view");
    }
    if (key.is_integer()) {
      if (object.is(Kind::kString)) meter.charge(object.text().size());
      const int64_t size = static_cast<int64_t>(
          object.is(Kind::kString) ? count_code_points(object.text()) : object.items().size());
      const int64_t index = key.as_integer() < 0 ? key.as_integer() + size : key.as_integer();
      if (index < 0 || index >= size)
        return Value::undefined("'" + type_name(object) + " object' has no element " +
                                std::to_string(key.as_integer()));
      if (object.is_sequence()) return object.items()[static_cast<size_t>(index)];
      return slice(object, Value::integer(index), Value::integer(index + 1), Value::none());
    }
  }
  if (key.is(Kind::kString) && !object.is(Kind::kDict))
    return get_attribute(object, key.text(), meter);
  if (key.is(Kind::kString)) {
    if (key.text().starts_with("__")) return get_attribute(object, key.text(), meter);
    if (auto method = find_method(object, key.text(), meter)) return *method;
    return missing(object, key.text());
  }
  return Value::undefined("'" + type_name(object) + " object' has no such element");
}

Value slice(const Value& object, const Value& start, const Value& stop, const Value& step_value) {
  if (object.is(Kind::kUndefined)) fail_runtime(object.undefined_message());
  if ((!object.is_sequence() && !object.is(Kind::kString)) ||
      object.origin() == ListOrigin::kGenerator || object.origin() == ListOrigin::kView ||
      object.is_markup()) {
    fail_unsupported("a slice of a " + type_name(object));
  }
  for (const Value* part : {&start, &stop, &step_value}) {
    if (!part->is(Kind::kNone) && !part->is_integer())
      fail_runtime("slice indices must be integers or None");
  }
  const Items items = object.is(Kind::kString) ? iterate(object) : object.items();
  const int64_t size = static_cast<int64_t>(items.size());
  const int64_t step = step_value.is(Kind::kNone) ? 1 : step_value.as_integer();
  if (step == 0) fail_runtime("slice step cannot be zero");
  const auto place = [&](const Value& v, int64_t otherwise) {
    if (v.is(Kind::kNone)) return otherwise;
    int64_t i = v.as_integer();
    if (i < 0) i = std::max<int64_t>(i, -size) == i ? i + size : -1;
    return step > 0 ? std::clamp<int64_t>(i, 0, size) : std::clamp<int64_t>(i, -1, size - 1);
  };
  Items out;
  const int64_t first = place(start, step > 0 ? 0 : size - 1),
                last = place(stop, step > 0 ? size : -1);
  const int64_t stride = std::clamp<int64_t>(step, -size - 1, size + 1);
  for (int64_t i = first; stride > 0 ? i < last : i > last; i += stride)
    out.push_back(items[static_cast<size_t>(i)]);
  if (object.is(Kind::kString)) {
    std::string text;
    for (const Value& c : out) text += c.text();
    return Value::string(std::move(text));
  }
  return object.is(Kind::kTuple) ? Value::tuple(std::move(out))
                                 : Value::list(std::move(out), object.origin());
}

Value binary(const std::string& op, const Value& a, const Value& b, Meter& meter) {
  if (a.is(Kind::kUndefined)) fail_runtime(a.undefined_message());
  if (b.is(Kind::kUndefined)) fail_runtime(b.undefined_message());
  if (a.is_integer() && b.is_integer()) return integers(op, a.as_integer(), b.as_integer());
  if (a.is_number() && b.is_number()) return floats(op, a.as_number(), b.as_number());
  if (a.is_markup() || b.is_markup() || a.is(Kind::kBigInt) || b.is(Kind::kBigInt)) {
    fail_unsupported("arithmetic with escaped text or integers beyond 64 bits");
  }
  const bool plain = a.origin() == ListOrigin::kList && b.origin() == ListOrigin::kList;
  if (op == "+" && a.is(Kind::kString) && b.is(Kind::kString)) {
    meter.charge(a.text().size() + b.text().size());
    return Value::string(a.text() + b.text());
  }
  if (op == "+" && a.is_sequence() && a.kind() == b.kind() && plain) {
    meter.charge(rough_bytes(a) + rough_bytes(b));
    Items items = a.items();
    items.insert(items.end(), b.items().begin(), b.items().end());
    return a.is(Kind::kList) ? Value::list(std::move(items)) : Value::tuple(std::move(items));
  }
  if (op == "*" && plain && (a.is(Kind::kString) || a.is_sequence()) && b.is_integer())
    return repeated(a, b.as_integer(), meter);
  if (op == "*" && plain && (b.is(Kind::kString) || b.is_sequence()) && a.is_integer())
    return repeated(b, a.as_integer(), meter);
  if (op == "%" && a.is(Kind::kString)) {
    meter.charge(a.text().size() + rough_bytes(b));
    if (b.is(Kind::kDict)) fail_unsupported("% with a dict");
    return Value::string(percent_format(a.text(), b.is(Kind::kTuple) ? b.items() : Items{b}));
  }
  if (op == "+" && a.is(Kind::kString))
    fail_runtime("can only concatenate str (not \"" + type_name(b) + "\") to str");
  fail_runtime("unsupported operand type(s) for " + op + ": '" + type_name(a) + "' and '" +
               type_name(b) + "'");
}

Members builtin_globals(const RenderOptions& options, Meter&) {
  const auto now = options.now;
  Members out;
  const auto add = [&](const char* name, Function f) {
    out.emplace_back(Value::string(name), Value::callable(std::move(f)));
  };
  add("range", range);
  add("dict", [](const Arguments& a) { return Value::dict(dict_arguments(a, "dict")); });
  add("namespace",
      [](const Arguments& a) { return Value::namespace_of(dict_arguments(a, "namespace")); });
  add("raise_exception", [](const Arguments& a) -> Value {
    a.check("raise_exception", 1, {"message"});
    fail(Failure::kRaised, to_text(a.get(0, "message", Value())));
  });
  add("strftime_now", [now](const Arguments& a) {
    std::tm local{};
    const std::time_t seconds = std::time(nullptr);
    if (!now) localtime_r(&seconds, &local);
    return format_time(a, now ? *now : local);
  });
  return out;
}

}  // namespace bicached::jinja
