// How a row of a table is called; the tables of tests and of methods; the global functions.
#include <algorithm>
#include <cmath>

#include "base/utf8.h"
#include "text/jinja/runtime.h"

namespace bicached::jinja {
namespace {

constexpr int64_t kMaxRange = 100000;

template <size_t N>
const Builtin* find_row(const Builtin (&table)[N], std::string_view name) {
  const auto* row = std::find_if(std::begin(table), std::end(table),
                                 [&](const auto& r) { return r.name == name; });
  return row == std::end(table) ? nullptr : row;
}

// --- tests

template <Kind kKind>
Value kind_test(const Call& c) {
  return Value::boolean(c.self.is(kKind));
}
template <bool kWanted>
Value bool_test(const Call& c) {
  return Value::boolean(c.self.is(Kind::kBool) && c.self.as_integer() == kWanted);
}
bool is_iterable(const Value& v) {
  return v.is_sequence() || v.is(Kind::kString) || v.is(Kind::kDict) || v.is(Kind::kUndefined);
}
Value sequence_test(const Call& c) {
  if (c.self.is_sequence() && c.self.origin() != Origin::kList)
    fail_unsupported("the test 'sequence' of a " + type_name(c.self));
  return Value::boolean(is_iterable(c.self));
}
template <bool kWanted>
Value equal_test(const Call& c) {
  return Value::boolean(equal(c.self, c[0], c.meter) == kWanted);
}

constexpr Builtin kTests[] = {
    {"==", equal_test<true>, 1, 1},
    {"boolean", kind_test<Kind::kBool>},
    {"defined", [](const Call& c) { return Value::boolean(!c.self.is(Kind::kUndefined)); }},
    {"eq", equal_test<true>, 1, 1},
    {"equalto", equal_test<true>, 1, 1},
    {"false", bool_test<false>},
    {"in", [](const Call& c) { return Value::boolean(contains(c[0], c.self, c.meter)); }, 1, 1},
    {"iterable", [](const Call& c) { return Value::boolean(is_iterable(c.self)); }},
    {"mapping", kind_test<Kind::kDict>},
    {"ne", equal_test<false>, 1, 1},
    {"none", kind_test<Kind::kNone>},
    {"number",
     [](const Call& c) { return Value::boolean(c.self.is_number() || c.self.is(Kind::kBigInt)); }},
    {"sequence", sequence_test},
    {"string", kind_test<Kind::kString>},
    {"true", bool_test<true>},
    {"undefined", kind_test<Kind::kUndefined>},
};
// --- methods

const std::string& text_argument(const Call& c, size_t index) {
  if (!c[index].is(Kind::kString))
    fail_runtime("argument " + std::to_string(index + 1) + " must be str, not " +
                 type_name(c[index]));
  return c[index].text();
}

template <bool kLeft, bool kRight>
Value strip_method(const Call& c) {
  return Value::string(strip(c.self.text(), c[0], kLeft, kRight));
}

Value split_method(const Call& c) {
  if (c.given.positional.empty() || c[0].is(Kind::kNone))
    fail_unsupported("the method 'split' without a separator");
  const std::string &s = c.self.text(), &separator = text_argument(c, 0);
  if (separator.empty()) fail_runtime("empty separator");
  if (!c[1].is_integer() && !c[1].is(Kind::kUndefined)) fail_runtime("maxsplit must be an integer");
  int64_t left = c[1].is_integer() ? c[1].as_integer() : -1;
  Items out;
  size_t begin = 0;
  for (size_t at; left != 0 && (at = s.find(separator, begin)) != std::string::npos; --left) {
    c.meter.charge(at - begin + sizeof(Value) + sizeof(std::string));
    out.push_back(Value::string(s.substr(begin, at - begin)));
    begin = at + separator.size();
  }
  out.push_back(Value::string(s.substr(begin)));
  return Value::list(std::move(out));
}

template <bool kStart>
Value affix_method(const Call& c) {
  const Items options = c[0].is(Kind::kTuple) ? c[0].items() : Items{c[0]};
  return Value::boolean(std::any_of(options.begin(), options.end(), [&](const Value& option) {
    if (!option.is(Kind::kString))
      fail_runtime("startswith and endswith take a str or a tuple of str");
    return kStart ? c.self.text().starts_with(option.text())
                  : c.self.text().ends_with(option.text());
  }));
}

constexpr Builtin kStringMethods[] = {
    {"capitalize", [](const Call& c) { return Value::string(capitalize(c.self.text())); }},
    {"endswith", affix_method<false>, 1, 1},
    {"lower", [](const Call& c) { return Value::string(lower(c.self.text())); }},
    {"lstrip", strip_method<true, false>, 0, 1},
    {"replace",
     [](const Call& c) {
       return Value::string(replace(c.self.text(), text_argument(c, 0), text_argument(c, 1),
                                    c[2].is_integer() ? c[2].as_integer() : -1, c.meter));
     },
     2, 3},
    {"rstrip", strip_method<false, true>, 0, 1},
    {"split", split_method, 0, 2},
    {"startswith", affix_method<true>, 1, 1},
    {"strip", strip_method<true, true>, 0, 1},
    {"title",
     [](const Call& c) {
       return Value::string(title(c.self.text(), [](char32_t x) { return !has_case(x); }, true));
     }},
    {"upper", [](const Call& c) { return Value::string(upper(c.self.text())); }},
};
constexpr Builtin kDictMethods[] = {
    {"get",
     [](const Call& c) {
       const Value* found = find_member(c.self.members(), c[0], c.meter);
       return found ? *found : c.given.positional.size() > 1 ? c[1] : Value::none();
     },
     1, 2},
    {"items",
     [](const Call& c) {
       Items pairs;
       for (const auto& [key, value] : c.self.members())
         pairs.push_back(Value::tuple({key, value}));
       return Value::list(std::move(pairs), Origin::kView);
     }},
    {"keys", [](const Call& c) { return Value::list(iterate(c.self, c.meter), Origin::kView); }},
    {"values",
     [](const Call& c) {
       Items items;
       for (const auto& member : c.self.members()) items.push_back(member.second);
       return Value::list(std::move(items), Origin::kView);
     }},
};
// Python's other methods and attributes: refused, since they are not merely absent.
constexpr std::string_view kOtherOfString =
    " casefold center count encode expandtabs find format format_map index isalnum isalpha isascii "
    "isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle isupper join "
    "ljust maketrans partition removeprefix removesuffix rfind rindex rjust rpartition rsplit "
    "splitlines swapcase translate zfill ";
constexpr std::string_view kOtherOfDict = " clear copy fromkeys pop popitem setdefault update ";
constexpr std::string_view kOtherOfList =
    " append clear copy count extend index insert pop remove reverse sort ";
constexpr std::string_view kOtherOfIterator =
    " close count index isdisjoint mapping send start step stop throw ";

// --- global functions

Value range(const Call& c) {
  for (size_t i = 0; i < c.given.positional.size(); ++i) {
    if (!c[i].is_integer())
      fail_runtime("'" + type_name(c[i]) + "' object cannot be interpreted as an integer");
  }
  const bool only_stop = c.given.positional.size() == 1;
  const int64_t start = only_stop ? 0 : c[0].as_integer(), stop = c[only_stop ? 0 : 1].as_integer();
  const int64_t step = c[2].is_integer() ? c[2].as_integer() : 1;
  if (step == 0) fail_runtime("range() arg 3 must not be zero");
  const double count = std::ceil((static_cast<double>(stop) - static_cast<double>(start)) /
                                 static_cast<double>(step));
  if (count > static_cast<double>(kMaxRange))
    fail_runtime("Range too big. The sandbox blocks ranges larger than MAX_RANGE (100000).");
  Items items;
  for (int64_t i = 0; i < static_cast<int64_t>(count); ++i)
    items.push_back(Value::integer(start + i * step));
  c.meter.charge(items.size() * sizeof(Value));
  return Value::list(std::move(items), Origin::kRange);
}

Members dict_arguments(const Arguments& a, const std::string& function) {
  if (a.positional.size() > 1) fail_runtime(function + " expected at most 1 argument");
  if (!a.positional.empty() && !a.positional[0].is(Kind::kDict))
    fail_unsupported(function + " of a " + type_name(a.positional[0]));
  const Value whole =
      Value::namespace_of(a.positional.empty() ? Members() : a.positional[0].members());
  for (const auto& [name, value] : a.named) whole.set_member(name, value);
  return whole.members();
}

Value format_time(const std::string& format, const std::tm& now) {
  constexpr std::string_view kKnown = "aAbBcdeFHIjmMpSTuUwWxXyY%";
  if (format.size() > 256) fail_unsupported("a time format of more than 256 bytes");
  for (size_t i = format.find('%'); i != std::string::npos; i = format.find('%', i + 2)) {
    if (i + 1 == format.size() || kKnown.find(format[i + 1]) == std::string_view::npos)
      fail_unsupported("the time format \"" + format + "\"");
  }
  char buffer[8192];
  return Value::string(
      std::string(buffer, std::strftime(buffer, sizeof buffer, format.c_str(), &now)));
}

}  // namespace

Value run(const Builtin& builtin, const Value& self, const Arguments& given, Meter& meter) {
  meter.step();
  meter.charge(self);
  Call call{self, given, meter, {}};
  if (builtin.most < 0) return builtin.run(call);
  const auto most = static_cast<size_t>(builtin.most);
  const std::string name(builtin.name);
  if (given.positional.size() > most) fail_runtime(name + " got too many arguments");
  std::copy(given.positional.begin(), given.positional.end(), call.args.begin());
  for (const auto& [key, value] : given.named) {
    const auto at =
        static_cast<size_t>(std::find(builtin.parameters.begin(), builtin.parameters.end(), key) -
                            builtin.parameters.begin());
    if (at >= most) fail_unsupported("the argument '" + key + "' of " + name);
    if (at < given.positional.size()) fail_runtime(name + " got two values for '" + key + "'");
    call.args[at] = value;
  }
  if (given.positional.size() + given.named.size() < static_cast<size_t>(builtin.required))
    fail_runtime(name + " needs more arguments");
  return builtin.run(call);
}

const Builtin* find_test(std::string_view name) { return find_row(kTests, name); }

const Builtin* find_method(const Value& object, std::string_view name) {
  const bool is_text = object.is(Kind::kString), is_dict = object.is(Kind::kDict);
  const Builtin* found = is_text   ? find_row(kStringMethods, name)
                         : is_dict ? find_row(kDictMethods, name)
                                   : nullptr;
  if (found && object.is_markup()) fail_unsupported("a method of text behind safe");
  if (found || (!is_text && !is_dict && !object.is_sequence())) return found;
  const std::string_view others = is_text                            ? kOtherOfString
                                  : is_dict                          ? kOtherOfDict
                                  : object.origin() == Origin::kList ? kOtherOfList
                                                                     : kOtherOfIterator;
  if (others.find(' ' + std::string(name) + ' ') != std::string_view::npos)
    fail_unsupported("the method '" + std::string(name) + "' of a " + type_name(object));
  return nullptr;
}

Members builtin_globals(const RenderOptions& options, Meter& meter) {
  static constexpr Builtin kRange = {"range", range, 1, 3};
  Members out;
  const auto add = [&](const char* name, Function f) {
    out.emplace_back(Value::string(name), Value::callable(std::move(f)));
  };
  add("range", [&meter](const Arguments& a) { return run(kRange, Value(), a, meter); });
  add("raise_exception", [&meter](const Arguments& a) -> Value {
    fail(Failure::kRaised, a.positional.empty() ? "" : to_text(a.positional[0], meter));
  });
  add("dict", [](const Arguments& a) { return Value::dict(dict_arguments(a, "dict")); });
  add("namespace",
      [](const Arguments& a) { return Value::namespace_of(dict_arguments(a, "namespace")); });
  add("strftime_now", [now = options.now](const Arguments& a) {
    if (a.positional.size() != 1 || !a.positional[0].is(Kind::kString) || !a.named.empty())
      fail_runtime("strftime_now takes a text");
    std::tm local{};
    const std::time_t seconds = std::time(nullptr);
    localtime_r(&seconds, &local);
    return format_time(a.positional[0].text(), now ? *now : local);
  });
  return out;
}

}  // namespace bicached::jinja
