// How a row of a table is called; the tables of tests, of methods and of global functions.
#include <algorithm>
#include <cmath>

#include "base/utf8.h"
#include "text/jinja/run.h"

namespace bicached::jinja {
namespace {

constexpr int64_t kMaxRange = 100000;

const std::string& text_argument(const Call& c, size_t index) {
  if (c[index].is(Kind::kString)) return c[index].text();
  fail_runtime("argument " + std::to_string(index + 1) + " must be str, not " +
               type_name(c[index]));
}

// --- tests

template <Kind kKind>
Value is_kind(const Call& c) {
  return Value::boolean(c.self.is(kKind));
}
template <bool kWanted>
Value is_bool(const Call& c) {
  return Value::boolean(c.self.is(Kind::kBool) && c.self.as_integer() == kWanted);
}
template <bool kWanted>
Value is_equal(const Call& c) {
  return Value::boolean(equal(c.self, c[0], c.meter) == kWanted);
}
Value is_iterable(const Call& c) {
  const Value& v = c.self;
  return Value::boolean(v.is(Kind::kList) || v.is(Kind::kString) || v.is(Kind::kDict) ||
                        v.is(Kind::kUndefined));
}
Value is_sequence(const Call& c) {
  if (c.self.is(Kind::kList) && !c.self.is(Origin::kList) && !c.self.is(Origin::kTuple))
    fail_unsupported("the test 'sequence' of a " + type_name(c.self));
  return is_iterable(c);
}
Value is_number(const Call& c) {
  return Value::boolean(c.self.is_number() || c.self.is(Kind::kBigInt));
}

constexpr Builtin kTests[] = {
    {"==", is_equal<true>, 1, 1},
    {"boolean", is_kind<Kind::kBool>},
    {"defined", [](const Call& c) { return Value::boolean(!c.self.is(Kind::kUndefined)); }},
    {"eq", is_equal<true>, 1, 1},
    {"equalto", is_equal<true>, 1, 1},
    {"false", is_bool<false>},
    {"in", [](const Call& c) { return Value::boolean(contains(c[0], c.self, c.meter)); }, 1, 1},
    {"iterable", is_iterable},
    {"mapping", is_kind<Kind::kDict>},
    {"ne", is_equal<false>, 1, 1},
    {"none", is_kind<Kind::kNone>},
    {"number", is_number},
    {"sequence", is_sequence},
    {"string", is_kind<Kind::kString>},
    {"true", is_bool<true>},
    {"undefined", is_kind<Kind::kUndefined>},
};

// --- methods

Value split(const Call& c) {
  if (c[0].is_missing()) fail_unsupported("the method 'split' without a separator");
  const std::string &s = c.self.text(), &separator = text_argument(c, 0);
  if (separator.empty()) fail_runtime("empty separator");
  if (!c[1].is_integer() && !c[1].is(Kind::kUndefined)) fail_runtime("maxsplit must be an integer");
  int64_t left = c[1].is_integer() ? c[1].as_integer() : -1;
  Items out;
  size_t begin = 0;
  for (size_t at; left != 0 && (at = s.find(separator, begin)) != std::string::npos; --left) {
    c.meter.make(at - begin + sizeof(Value) + sizeof(std::string));
    out.push_back(Value::string(s.substr(begin, at - begin)));
    begin = at + separator.size();
  }
  c.meter.make(s.size() - begin);
  out.push_back(Value::string(s.substr(begin)));
  return Value::list(std::move(out));
}

template <bool kStart>
Value has_affix(const Call& c) {
  const Items options = c[0].is(Origin::kTuple) ? c[0].items() : Items{c[0]};
  return Value::boolean(std::ranges::any_of(options, [&](const Value& option) {
    if (!option.is(Kind::kString))
      fail_runtime("startswith and endswith take a str or a tuple of str");
    return kStart ? c.self.text().starts_with(option.text())
                  : c.self.text().ends_with(option.text());
  }));
}

Value get(const Call& c) {
  const Value* found = find_member(c.self.members(), c[0], c.meter);
  return found ? *found : c.given.positional.size() > 1 ? c[1] : Value::none();
}

template <bool kKeys, bool kValues>
Value view(const Call& c) {
  Items out;
  for (const auto& [key, value] : c.self.members())
    out.push_back(kKeys && kValues ? Value::tuple({key, value}) : kKeys ? key : value);
  return Value::list(std::move(out), Origin::kView);
}

constexpr Builtin kStringMethods[] = {
    {"capitalize", change_text<capitalize>},
    {"endswith", has_affix<false>, 1, 1},
    {"lower", change_text<lower>},
    {"lstrip", strip_text<true, false>, 0, 1},
    {"replace", replace_text, 2, 3},
    {"rstrip", strip_text<false, true>, 0, 1},
    {"split", split, 0, 2},
    {"startswith", has_affix<true>, 1, 1},
    {"strip", strip_text<true, true>, 0, 1},
    {"title", change_text<title_of_letters>},
    {"upper", change_text<upper>},
};
constexpr Builtin kDictMethods[] = {{"get", get, 1, 2},
                                    {"items", view<true, true>},
                                    {"keys", view<true, false>},
                                    {"values", view<false, true>}};
// Python's other methods and attributes: refused, since they are not merely absent.
constexpr std::string_view kOthersOfDict = " clear copy fromkeys pop popitem setdefault update ";
constexpr std::string_view kOthers =
    " append casefold center clear close copy count encode expandtabs extend find format "
    "format_map index insert isalnum isalpha isascii isdecimal isdigit isdisjoint isidentifier "
    "islower isnumeric isprintable isspace istitle isupper join ljust maketrans mapping partition "
    "pop remove removeprefix removesuffix reverse rfind rindex rjust rpartition rsplit send sort "
    "splitlines start step stop swapcase throw translate zfill ";

// --- global functions

Value range(const Call& c) {
  for (const Value& number : c.given.positional) {
    if (!number.is_integer())
      fail_runtime("'" + type_name(number) + "' object cannot be interpreted as an integer");
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
  return Value::list(std::move(items), Origin::kRange);
}

template <Kind kKind>
Value dict(const Call& c) {
  const Items& given = c.given.positional;
  if (given.size() > 1) fail_runtime("dict and namespace take at most 1 argument");
  if (!given.empty() && !given[0].is(Kind::kDict))
    fail_unsupported("dict or namespace of a " + type_name(given[0]));
  const Value whole = Value::dict(given.empty() ? Members() : given[0].members(), Kind::kNamespace);
  for (const auto& [name, value] : c.given.named) whole.set_member(name, value);
  return Value::dict(whole.members(), kKind);
}

Value raise_exception(const Call& c) {
  fail(Failure::kRaised, c.given.positional.empty() ? "" : to_text(c[0], c.meter));
}

Value strftime_now(const Call& c) {
  constexpr std::string_view kKnown = "aAbBcdeFHIjmMpSTuUwWxXyY%";
  const std::string& format = text_argument(c, 0);
  if (format.size() > 256) fail_unsupported("a time format of more than 256 bytes");
  for (size_t i = format.find('%'); i != std::string::npos; i = format.find('%', i + 2)) {
    if (i + 1 == format.size() || kKnown.find(format[i + 1]) == std::string_view::npos)
      fail_unsupported("the time format \"" + format + "\"");
  }
  std::tm now{};
  const std::time_t seconds = std::time(nullptr);
  localtime_r(&seconds, &now);
  if (c.meter.options().now) now = *c.meter.options().now;
  char text[8192];
  return Value::string(std::string(text, std::strftime(text, sizeof text, format.c_str(), &now)));
}

constexpr Builtin kGlobals[] = {{"dict", dict<Kind::kDict>, 0, -1},
                                {"namespace", dict<Kind::kNamespace>, 0, -1},
                                {"raise_exception", raise_exception, 0, 1},
                                {"range", range, 1, 3},
                                {"strftime_now", strftime_now, 1, 1}};

}  // namespace

std::string text_input(const Call& c) {
  if (c.self.is_markup()) fail_unsupported("a filter of text behind safe");
  return to_text(c.self, c.meter);
}

Value replace_text(const Call& c) {
  const std::string text = text_input(c);
  const std::string &from = text_argument(c, 0), &to = text_argument(c, 1);
  int64_t left = c[2].is_integer() ? c[2].as_integer() : -1;
  if (from.empty()) fail_unsupported("replacing an empty text");
  std::string out;
  size_t done = 0;
  for (size_t at; left != 0 && (at = text.find(from, done)) != std::string::npos; --left) {
    c.meter.make(at - done + to.size());
    out.append(text, done, at - done).append(to);
    done = at + from.size();
  }
  return Value::string(out.append(text, done));
}

Value call(const Builtin& builtin, const Value& self, const Arguments& given, Meter& meter) {
  meter.step();
  meter.charge(self);
  Call call{self, given, meter, {}};
  if (builtin.most < 0) return meter.made(builtin.run(call));
  const auto most = static_cast<size_t>(builtin.most);
  const std::string name(builtin.name);
  if (given.positional.size() > most) fail_runtime(name + " got too many arguments");
  std::ranges::copy(given.positional, call.args.begin());
  for (const auto& [key, value] : given.named) {
    const auto at = static_cast<size_t>(std::ranges::find(builtin.parameters, key) -
                                        builtin.parameters.begin());
    if (at >= most) fail_unsupported("the argument '" + key + "' of " + name);
    if (at < given.positional.size()) fail_runtime(name + " got two values for '" + key + "'");
    call.args[at] = value;
  }
  if (given.positional.size() + given.named.size() < static_cast<size_t>(builtin.required))
    fail_runtime(name + " needs more arguments");
  return meter.made(builtin.run(call));
}

const Builtin* find_test(std::string_view name) { return find_row(kTests, name); }

const Builtin* find_method(const Value& object, std::string_view name) {
  const bool is_text = object.is(Kind::kString), is_dict = object.is(Kind::kDict);
  const Builtin* found = is_text   ? find_row(kStringMethods, name)
                         : is_dict ? find_row(kDictMethods, name)
                                   : nullptr;
  if (found && object.is_markup()) fail_unsupported("a method of text behind safe");
  if (found || (!is_text && !is_dict && !object.is(Kind::kList))) return found;
  if ((is_dict ? kOthersOfDict : kOthers).find(' ' + std::string(name) + ' ') != std::string::npos)
    fail_unsupported("the method '" + std::string(name) + "' of a " + type_name(object));
  return nullptr;
}

Members builtin_globals(Meter& meter) {
  Members out;
  for (const Builtin& row : kGlobals) {
    out.emplace_back(Value::string(std::string(row.name)),
                     Value::callable([&row, &meter](const Arguments& given) {
                       return call(row, Value(), given, meter);
                     }));
  }
  return out;
}

}  // namespace bicached::jinja
